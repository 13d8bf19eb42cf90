// Activation functions and their slopes, with the formulas of xpsoftmax/kernels/activations.py.
//
// The exponentials in them cannot overflow. No slope is a difference of nearly equal numbers, so that a saturated unit passes
// on a small gradient, and not zero. A nan stays nan.
#pragma once
#include "numbers.cuh"

template <class Real>
struct Active {
    Real value, slope;
};

namespace activations {

template <class Real>
DEVICE Active<Real> identity(Real x) {
    return {x, 1};
}

// The slope follows from the value (activation_backward.cu), so it is not written.
template <class Real>
DEVICE Active<Real> relu(Real x) {
    return {x < 0 ? 0 : x, 0};
}

template <class Real>
DEVICE Active<Real> tanh(Real x) {
    const Real e = exponential(-2 * larger(x, -x)), above = 1 + e;
    return {hyperbolic_tangent(x), 4 * e / (above * above)};  // 1 - tanh^2
}

template <class Real>
DEVICE Active<Real> logistic(Real x) {
    const Real e = exponential(-larger(x, -x)), above = 1 + e;
    return {(x < 0 ? e : 1) / above, e / (above * above)};
}

template <class Real>
DEVICE Active<Real> silu(Real x) {
    const Active<Real> gate = logistic(x);
    return {x * gate.value, gate.value + x * gate.slope};
}

// In its tanh form, x/2 (1 + tanh(u)), which is x * logistic(2 u): without the 1 + tanh that cancels for negative x.
template <class Real>
DEVICE Active<Real> gelu(Real x) {
    const Real steepness = Real(1.5957691216057308), cubic = Real(0.044715);  // 2 sqrt(2 / pi)
    const Real near = x > 100 ? 100 : x < -100 ? -100 : x;  // beyond, the gate is 0 or 1, and x * x must not overflow
    const Active<Real> gate = logistic(steepness * (near + cubic * near * near * near));
    return {x * gate.value, gate.value + near * (steepness * (1 + 3 * cubic * near * near)) * gate.slope};
}

}  // namespace activations
