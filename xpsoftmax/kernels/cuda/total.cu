// Sum of a vector: sums[b] = sum of x[b PART], ..., x[(b + 1) PART - 1], so far as there are any.
//
// Launch   one block of THREADS a part; the sums of the parts are added up in the same way, until one is left.
// Traffic  one read.
//
// The order of the additions depends on the length alone: no atomics, the same bits in every run.
#include "last_block.cuh"

using Scalar = SCALAR;

KERNEL __launch_bounds__(THREADS) void total(const Scalar* x, Scalar* sums, Long length) {
    const Long first = (Long)blockIdx.x * PART, end = first + PART < length ? first + PART : length;
    LongSum<Scalar> sum;
    for (Long i = first + threadIdx.x; i < end; i += THREADS) sum.add(x[i]);
    const Total<Scalar> all = Team<THREADS, 1>::over_all<0>(Total<Scalar>{sum.total()});
    if (threadIdx.x == 0) sums[blockIdx.x] = all.value;
}
