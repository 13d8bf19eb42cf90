// Bias and activation of a layer: z[r, j] = f(z[r, j] + bias[j]) and, if they are wanted, slopes[r, j] = f'(z[r, j] + bias[j]).
//
// Layout   z and slopes (R, H), units adjacent, rows any number of elements apart; bias (H,); slopes may be null.
// Launch   -D ACTIVATION, a name of activations.cuh; otherwise see units.cuh.
// Traffic  one read, one write; one more write for the slopes.
#include "activations.cuh"
#include "units.cuh"

KERNEL __launch_bounds__(THREADS) void bias_activation(Scalar* z, Long z_stride, const Scalar* bias, Scalar* slopes,
                                                       Long slopes_stride, int lane_bits, Long rows, Long units) {
    const Place at(lane_bits);
    if (at.row >= rows) return;
    const Span<Scalar> span(z + at.row * z_stride, units);
    if (!span.touches(at.position)) return;

    const Vector v = span.load(at.position);
    Scalar value[PER], slope[PER];
#pragma unroll
    for (int i = 0; i < PER; ++i) {
        const Long p = at.position + i;
        const Scalar b = span.holds(p) ? bias[p - span.shift] : 0;
        const Active<Scalar> unit = activations::ACTIVATION(element<Scalar>(v, i) + b);
        value[i] = unit.value, slope[i] = unit.slope;
    }
    Output<Scalar>(z, at.row, z_stride).store(span, at.position, value);
    if (slopes != nullptr) Output<Scalar>(slopes, at.row, slopes_stride).store(span, at.position, slope);
}
