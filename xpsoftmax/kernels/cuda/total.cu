// Sum of a vector: sums[b] = sum of x[b PART], ..., x[(b + 1) PART - 1], so far as there are any.
//
// Launch   one block of THREADS a part; the sums of the parts are added up in the same way, until one is left.
// Traffic  one read.
//
// The order of the additions depends on the length alone: no atomics, the same bits in every run.
#include "reduce.cuh"

using Scalar = SCALAR;

struct Sum {
    Scalar value;
    static DEVICE Sum none() { return {0}; }
    template <int WIDTH>
    DEVICE Sum over_lanes() const {
        return {sum_of_lanes<WIDTH>(value)};
    }
};

KERNEL __launch_bounds__(THREADS) void total(const Scalar* x, Scalar* sums, Long length) {
    const Long first = (Long)blockIdx.x * PART, end = first + PART < length ? first + PART : length;
    LongSum<Scalar> sum;
    for (Long i = first + threadIdx.x; i < end; i += THREADS) sum.add(x[i]);
    const Sum all = Team<THREADS, 1>::over_all<0>(Sum{sum.total()});
    if (threadIdx.x == 0) sums[blockIdx.x] = all.value;
}
