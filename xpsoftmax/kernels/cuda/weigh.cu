// Divide the weights of a batch by the sum of its counting weights, and the strength of the penalty by the same sum.
//
// Where the sum is 0 all weights become 0: there is no mean. Where it is not finite all weights become nan.
//
// Layout   counting, weights and shares (rows,); shares are the weights after the division, and may be the same array. Null
//          shares: no weights are divided. Null strength: there is no penalty.
// Launch   one block of THREADS.
// Traffic  counting and weights read once, shares written once.
#include "last_block.cuh"

using Scalar = SCALAR;

KERNEL __launch_bounds__(THREADS) void weigh(const Scalar* counting, const Scalar* weights, Scalar* shares, Long rows,
                                             Scalar reg, Scalar* strength) {
    LongSum<Scalar> sum;
    for (Long i = threadIdx.x; i < rows; i += THREADS) sum.add(counting[i]);
    const Scalar total = Team<THREADS, 1>::over_all<0>(Total<Scalar>{sum.total()}).value;
    if (threadIdx.x == 0 && strength != nullptr) *strength = reg / total;
    for (Long i = threadIdx.x; shares != nullptr && i < rows; i += THREADS)
        shares[i] = total == 0 ? 0 : is_finite(total) ? weights[i] / total : Limits<Scalar>::nan();
}
