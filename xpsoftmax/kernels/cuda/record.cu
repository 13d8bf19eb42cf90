// The end of a step of training: the loss of the batch, whether all losses so far are finite, and where the next step begins.
//
// Layout   terms: what the loss is the sum of. losses: one for each update. place: where the batch begins in the order of the
//          epoch, the number of this update, and that of the next. After the last row the next batch begins at 0.
// Launch   one block of THREADS.
// Traffic  the terms read once.
//
// The order of the additions depends on how many terms there are, and on nothing else: the same bits in every run.
#include "last_block.cuh"

using Scalar = SCALAR;

KERNEL __launch_bounds__(THREADS) void record(const Scalar* terms, Long length, Scalar* losses, unsigned char* finite,
                                              Long* place, Long rows, Long all_rows) {
    LongSum<Scalar> sum;
    for (Long i = threadIdx.x; i < length; i += THREADS) sum.add(terms[i]);
    const Scalar loss = Team<THREADS, 1>::over_all<0>(Total<Scalar>{sum.total()}).value;
    if (threadIdx.x != 0) return;
    losses[place[2]] = loss;
    if (!is_finite(loss)) *finite = 0;
    place[0] = place[0] + rows < all_rows ? place[0] + rows : 0;
    place[1] = place[2];
    place[2] += 1;
}
