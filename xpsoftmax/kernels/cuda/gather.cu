// Rows of a batch: out[i, j] = source[order[*start + i], j], in the working precision; zeros where that row weighs 0.
//
// Layout   source (N, D), columns adjacent, rows any number of elements apart; out (rows, D), contiguous; order: numbers of
//          rows, from 0 to N - 1 (the host drew them), null for 0, 1, 2, ...; weights (N,), null where all rows count.
// Launch   2^lane_bits threads a row, at most THREADS. RESULT is SCALAR, or the working precision.
// Traffic  one read, one write.
#include "numbers.cuh"

using Scalar = SCALAR;
using Result = RESULT;

template <class To, class From>
struct Conversion {
    static DEVICE To of(From x) { return To(widened(x)); }
};
template <class T>
struct Conversion<T, T> {
    static DEVICE T of(T x) { return x; }
};

KERNEL __launch_bounds__(THREADS) void gather(const Scalar* source, Long stride, const Long* order, const Long* start,
                                              const Result* weights, Result* out, int lane_bits, Long rows, Long columns) {
    const Long i = ((Long)blockIdx.x * THREADS + threadIdx.x) >> lane_bits;
    if (i >= rows) return;
    const Long lanes = 1ll << lane_bits, r = order != nullptr ? order[*start + i] : *start + i;
    const bool counts = weights == nullptr || weights[r] != 0;
    for (Long j = threadIdx.x & (lanes - 1); j < columns; j += lanes)
        out[i * columns + j] = counts ? Conversion<Result, Scalar>::of(source[r * stride + j]) : Result(0);
}
