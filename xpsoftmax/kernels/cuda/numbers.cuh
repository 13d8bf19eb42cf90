// The dtypes, what they are computed in, and the elementary functions.
//
// 16-bit numbers are carried as bits and computed in float; float and double are computed in themselves. exp, log, log1p
// and tanh are CUDA's own (documented to at most 1 or 2 ulp; nothing here is compiled with fast-math). exponentials.cuh has
// the cheaper exponentials that every logit of a row takes.
#pragma once
#include "ptx.cuh"

struct Half {
    unsigned short bits;
};
struct Bfloat {
    unsigned short bits;
};

template <class T>
struct Working {
    using Type = float;
};
template <>
struct Working<double> {
    using Type = double;
};

DEVICE float widened(float x) { return x; }
DEVICE double widened(double x) { return x; }
DEVICE float widened(Half x) { return half_to_float(x.bits); }
DEVICE float widened(Bfloat x) { return __uint_as_float((unsigned)x.bits << 16); }

template <class T>
DEVICE T narrowed(typename Working<T>::Type x) {
    return x;
}
template <>
DEVICE Half narrowed<Half>(float x) {
    return Half{float_to_half(x)};
}
template <>
DEVICE Bfloat narrowed<Bfloat>(float x) {
    return Bfloat{(unsigned short)pack_bfloats(x, 0)};
}

// What is known of a working precision: its infinity, nan, lowest finite number, smallest normal number,
// and a number so far above the last that a sum of subnormal numbers is negligible beside it.
template <class Real>
struct Limits;
template <>
struct Limits<float> {
    static DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
    static DEVICE float nan() { return __uint_as_float(0x7fc00000u); }
    static DEVICE float lowest() { return __uint_as_float(0xff7fffffu); }
    static DEVICE float small() { return 1e-24f; }
    static DEVICE float tiny() { return __uint_as_float(0x00800000u); }
};
template <>
struct Limits<double> {
    static DEVICE double infinity() { return __longlong_as_double(0x7ff0000000000000ll); }
    static DEVICE double nan() { return __longlong_as_double(0x7ff8000000000000ll); }
    static DEVICE double lowest() { return __longlong_as_double(0xffefffffffffffffll); }
    static DEVICE double small() { return 1e-280; }
    static DEVICE double tiny() { return __longlong_as_double(0x0010000000000000ll); }
};

DEVICE float exponential(float x) { return expf(x); }
DEVICE double exponential(double x) { return exp(x); }
DEVICE float logarithm(float x) { return logf(x); }
DEVICE double logarithm(double x) { return log(x); }
DEVICE float log_of_one_and(float x) { return log1pf(x); }
DEVICE double log_of_one_and(double x) { return log1p(x); }
DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }
DEVICE double hyperbolic_tangent(double x) { return tanh(x); }

// Rounded correctly, as every square root here.
DEVICE float square_root(float x) { return sqrtf(x); }
DEVICE double square_root(double x) { return sqrt(x); }

// Of two numbers, neither of which is nan.
DEVICE float most_of(float a, float b) { return fmaxf(a, b); }
DEVICE double most_of(double a, double b) { return fmax(a, b); }
DEVICE float least_of(float a, float b) { return fminf(a, b); }
DEVICE double least_of(double a, double b) { return fmin(a, b); }

// The larger of two numbers; nan if one of them is nan.
DEVICE float larger(float a, float b) { return larger_or_nan(a, b); }
DEVICE double larger(double a, double b) { return a > b || a != a ? a : b; }

template <class Real>
DEVICE bool is_finite(Real x) {
    return x - x == 0;
}

// a - b is `rounded + lost` exactly (D. E. Knuth's TwoSum); only for finite differences.
template <class Real>
struct Difference {
    Real rounded, lost;
};
template <class Real>
DEVICE Difference<Real> difference(Real a, Real b) {
    const Real d = a - b, back = d - a;
    const Real lost = (a - (d - back)) - (b + back);
    return {d, is_finite(d) ? lost : 0};
}

// A sum that carries what its additions lose: for the thousands of terms of one thread of a streamed row.
template <class Real>
struct LongSum {
    Real value = 0, lost = 0;
    DEVICE void add(Real x) {
        const Real sum = value + x, back = sum - value;
        lost += (value - (sum - back)) + (x - back);
        value = sum;
    }
    DEVICE void scale(Real factor) { value *= factor, lost *= factor; }
    DEVICE Real total() const { return is_finite(value) ? value + lost : value; }  // an infinite one has lost nan
};
