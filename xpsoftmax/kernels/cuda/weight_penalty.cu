// The L2 penalties of weights, all in one launch, and their gradients: g[i] += reg * w[i]. The penalty of a weight is a sum of
// parts, sums[b] = reg/2 * (sum of w[i]^2 over part b).
//
// Layout   w and g: vectors of `length` entries; g is null where no gradient is asked for. The strength is *strength, or
//          `reg` where that is null. terms: *loss and all sums, of which there are `count`; null where there is no loss to add.
//          The block that finishes last then writes their sum to *total, if that is not null.
// Launch   one block of THREADS for each PART entries.
// Traffic  w read once, g read and written once.
#include "last_block.cuh"
#include "tables.cuh"

using Scalar = SCALAR;

struct Weight {
    const Scalar* w;
    Scalar *g, *sums;
    Long length, end;
};

KERNEL __launch_bounds__(THREADS) void weight_penalty(const GRID_CONSTANT Table<Weight> table, const Scalar* strength,
                                                      Scalar reg, const Scalar* loss, Scalar* terms, Long count,
                                                      Scalar* total, unsigned* counter) {
    if (strength != nullptr) reg = *strength;
    if (loss != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *terms = *loss;
    const Share share(table);
    const Weight& of = table.items[share.item];
    const Scalar* const w = of.w;
    Scalar* const g = of.g;
    const Long first = share.block * PART, end = first + PART < of.length ? first + PART : of.length;
    LongSum<Scalar> squares;
    for (Long i = first + threadIdx.x; i < end; i += THREADS) {
        const Scalar x = w[i];
        squares.add(x * x);
        if (g != nullptr) g[i] = g[i] + reg * x;
    }
    const Total<Scalar> all = Team<THREADS, 1>::over_all<0>(Total<Scalar>{squares.total()});
    if (threadIdx.x == 0) of.sums[share.block] = Scalar(0.5) * reg * all.value;
    if (total != nullptr) add_up_in_last_block<THREADS>(terms, count, total, counter, gridDim.x);
}
