// The end of a step of training: its loss among the losses, whether all so far are finite, and where the next step begins.
//
// Layout   place: the first row of the batch in the order of the epoch, the number of this update, that of the next;
//          losses: one for each number.
// Launch   one warp, of which one thread works.
#include "numbers.cuh"

using Scalar = SCALAR;

KERNEL void record(const Scalar* loss, Scalar* losses, unsigned char* finite, Long* place, Long rows, Long all_rows) {
    if (threadIdx.x != 0) return;
    if (!is_finite(*loss)) *finite = 0;
    losses[place[2]] = *loss;
    place[0] = place[0] + rows < all_rows ? place[0] + rows : 0;
    place[1] = place[2];
    place[2] += 1;
}
