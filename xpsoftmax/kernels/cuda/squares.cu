// Squares of a vector in parts: sums[b] = those of x[b PART], ..., x[(b + 1) PART - 1], so far as there are any.
//
// Layout   x (length,); sums: three numbers a part, see squares.cuh.
// Launch   one block of THREADS a part. Traffic: one read.
#include "squares.cuh"

using Scalar = SCALAR;

KERNEL __launch_bounds__(THREADS) void squares(const Scalar* x, Squares<Scalar>* sums, Long length) {
    const Long first = (Long)blockIdx.x * PART, end = first + PART < length ? first + PART : length;
    LongSquares<Scalar> sum;
    for (Long i = first + threadIdx.x; i < end; i += THREADS) sum.add(x[i]);
    const Squares<Scalar> all = Team<THREADS, 1>::over_all<0>(sum.total());
    if (threadIdx.x == 0) sums[blockIdx.x] = all;
}
