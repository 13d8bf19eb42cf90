// The rules of optimisers for one entry, with the names and order of xpsoftmax/kernels/rules.py: the same bits as NumPy's,
// but for subnormal numbers of float32, which CuPy flushes.
#pragma once
#include "numbers.cuh"

// A parameter, the arrays that are kept for it, and its gradient.
template <class Real>
struct Entry {
    Real p, a, b, g;
};

template <class Real>
struct Numbers {
    Real n[8];
};

namespace rules {

template <class Real>
DEVICE void sgd_rule(Entry<Real>& x, const Numbers<Real>& of) {
    x.p = x.p - of.n[0] * x.g;
}

template <class Real>
DEVICE void momentum_rule(Entry<Real>& x, const Numbers<Real>& of) {
    const Real rate = of.n[0], momentum = of.n[1];
    x.a = momentum * x.a + x.g;
    x.p = x.p - rate * x.a;
}

template <class Real>
DEVICE void nesterov_rule(Entry<Real>& x, const Numbers<Real>& of) {
    const Real rate = of.n[0], momentum = of.n[1];
    x.a = momentum * x.a + x.g;
    x.p = x.p - rate * (x.g + momentum * x.a);
}

template <class Real>
DEVICE void velocity_rule(Entry<Real>& x, const Numbers<Real>& of) {
    const Real rate = of.n[0], momentum = of.n[1];
    x.a = momentum * x.a - rate * x.g;
    x.p = x.p + x.a;
}

template <class Real>
DEVICE void nesterov_velocity_rule(Entry<Real>& x, const Numbers<Real>& of) {
    const Real rate = of.n[0], momentum = of.n[1];
    x.a = momentum * x.a - rate * x.g;
    x.p = x.p + (momentum * x.a - rate * x.g);
}

template <class Real>
DEVICE void adam(Entry<Real>& x, const Real* n) {
    const Real rate = n[0], root = n[1], b1 = n[2], rest1 = n[3], b2 = n[4], rest2 = n[5], eps = n[6];
    x.a = b1 * x.a + rest1 * x.g;
    x.b = b2 * x.b + rest2 * (x.g * x.g);
    x.p = x.p - (rate * x.a) / (root * square_root(x.b) + eps);
}

template <class Real>
DEVICE void adam_rule(Entry<Real>& x, const Numbers<Real>& of) {
    adam(x, of.n);
}

template <class Real>
DEVICE void adamw_rule(Entry<Real>& x, const Numbers<Real>& of) {
    x.p = of.n[0] * x.p;
    adam(x, of.n + 1);
}

}  // namespace rules
