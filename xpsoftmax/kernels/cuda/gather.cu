// A batch: its rows of the inputs, its targets and its weights, in one launch. Row i of the batch is row order[*start + i] of
// the data, or row *start + i without an order; without a start it is row i. Inputs and soft targets are converted to the
// working precision.
//
// Layout   inputs (N, D) and targets (N, T), columns adjacent, rows any number of elements apart; labels have T = 1. Copies
//          (rows, D) and (rows, T), contiguous. Weights and counting weights (N,), copies (rows,). A null copy is not made.
//          With zero_rows, rows of the inputs that weigh 0 become zeros, because they may hold anything.
//          order holds numbers of rows, from 0 to N - 1, that the host drew.
// Launch   2^lane_bits threads a row, at most THREADS. -D INPUT, TARGET (their types), REAL (the working precision),
//          RESULT_TARGET (that, or Long for labels).
// Traffic  one read, one write.
#include "numbers.cuh"

using Input = INPUT;
using Target = TARGET;
using ResultTarget = RESULT_TARGET;
using Real = REAL;

template <class To, class From>
struct Conversion {
    static DEVICE To of(From x) { return To(widened(x)); }
};
template <class T>
struct Conversion<T, T> {
    static DEVICE T of(T x) { return x; }
};

KERNEL __launch_bounds__(THREADS) void gather(const Input* inputs, Long input_stride, Long input_columns, Real* input_copy,
                                              const Target* targets, Long target_stride, Long target_columns,
                                              ResultTarget* target_copy, const Real* weights, Real* weight_copy,
                                              const Real* counting, Real* counting_copy, int zero_rows, const Long* order,
                                              const Long* start, int lane_bits, Long rows) {
    const Long i = ((Long)blockIdx.x * THREADS + threadIdx.x) >> lane_bits;
    if (i >= rows) return;
    const Long lanes = 1ll << lane_bits, lane = threadIdx.x & (lanes - 1);
    const Long begin = start != nullptr ? *start : 0, r = order != nullptr ? order[begin + i] : begin + i;
    if (input_copy != nullptr) {
        const bool kept = !zero_rows || weights[r] != 0;
        for (Long j = lane; j < input_columns; j += lanes)
            input_copy[i * input_columns + j] = kept ? Conversion<Real, Input>::of(inputs[r * input_stride + j]) : Real(0);
    }
    if (target_copy != nullptr)
        for (Long j = lane; j < target_columns; j += lanes)
            target_copy[i * target_columns + j] = Conversion<ResultTarget, Target>::of(targets[r * target_stride + j]);
    if (lane != 0) return;
    if (weight_copy != nullptr) weight_copy[i] = weights[r];
    if (counting_copy != nullptr) counting_copy[i] = counting[r];
}
