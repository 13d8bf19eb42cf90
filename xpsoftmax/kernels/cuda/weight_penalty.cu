// The L2 penalty of a weight, in parts: sums[b] = reg/2 * (sum of w[i]^2 over part b), and its gradient: g[i] += reg * w[i].
//
// Layout   w and g: vectors of `length` entries; g is null where no gradient is asked for. The strength is *strength, or
//          `reg` where that is null.
// Launch   one block of THREADS for each PART entries; `total` adds up the sums of the parts.
// Traffic  w read once, g read and written once.
#include "last_block.cuh"

using Scalar = SCALAR;

KERNEL __launch_bounds__(THREADS) void weight_penalty(const Scalar* w, Scalar* g, const Scalar* strength, Scalar reg,
                                                      Scalar* sums, Long length) {
    if (strength != nullptr) reg = *strength;
    const Long first = (Long)blockIdx.x * PART, end = first + PART < length ? first + PART : length;
    LongSum<Scalar> squares;
    for (Long i = first + threadIdx.x; i < end; i += THREADS) {
        const Scalar x = w[i];
        squares.add(x * x);
        if (g != nullptr) g[i] = g[i] + reg * x;
    }
    const Total<Scalar> all = Team<THREADS, 1>::over_all<0>(Total<Scalar>{squares.total()});
    if (threadIdx.x == 0) sums[blockIdx.x] = Scalar(0.5) * reg * all.value;
}
