// Shorten a vector whose norm is above `most` to that norm. One that is not finite stays as it is.
//
// Layout   x (length,); sums: what `squares` made of it, (parts,).
// Launch   one block of THREADS for each PART entries; each adds up the sums of all parts for itself.
// Traffic  one read and one write, none of x where it is short.
#include "squares.cuh"

using Scalar = SCALAR;

KERNEL __launch_bounds__(THREADS) void shorten(Scalar* x, const Squares<Scalar>* sums, Scalar most, Long length) {
    LongSquares<Scalar> sum;
    const Long parts = (length + PART - 1) / PART;
    for (Long b = threadIdx.x; b < parts; b += THREADS) sum.add(sums[b]);
    const Scalar norm = Team<THREADS, 1>::over_all<0>(sum.total()).norm();
    if (!(norm > most) || !is_finite(norm)) return;
    const Scalar factor = most / norm;
    const Long first = (Long)blockIdx.x * PART, end = first + PART < length ? first + PART : length;
    for (Long i = first + threadIdx.x; i < end; i += THREADS) x[i] = x[i] * factor;
}
