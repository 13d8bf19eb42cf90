// Gradient through an activation: delta[r, j] *= slopes[r, j].
//
// With STEP, for ReLU, `slopes` holds the values of the activation: the slope is 1 where they are positive, else 0.
//
// Layout   delta and slopes (R, H), units adjacent, rows any number of elements apart.
// Launch   -D STEP, 0 or 1; otherwise see units.cuh.
// Traffic  two reads, one write.
#include "units.cuh"

KERNEL __launch_bounds__(THREADS) void activation_backward(Scalar* delta, Long delta_stride, const Scalar* slopes,
                                                           Long slopes_stride, int lane_bits, Long rows, Long units) {
    const Place at(lane_bits);
    if (at.row >= rows) return;
    const Span<Scalar> span(delta + at.row * delta_stride, units);
    if (!span.touches(at.position)) return;

    const Vector v = span.load(at.position), s = span.load_beside(slopes + at.row * slopes_stride, at.position);
    Scalar value[PER];
#pragma unroll
    for (int i = 0; i < PER; ++i) {
        const Scalar slope = element<Scalar>(s, i);
        value[i] = element<Scalar>(v, i) * (STEP ? Scalar(slope > 0) : slope);
    }
    Output<Scalar>(delta, at.row, delta_stride).store(span, at.position, value);
}
