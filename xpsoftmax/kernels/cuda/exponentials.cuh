// exp(x - top) of the logits of a row, and sums of them.
//
// A RelativeExp (Careful, Quick) computes exponentials beside a reference. Its constructor picks the reference for a top;
// the reference is finite also where the top is the largest of no logits, -inf:
//   relative_exp(x)           the exponential of x beside the reference, for x up to the top
//   relative_exp.near(x)      the same for x that may lie somewhat above it, in streams
//   relative_exp.from(other)  what brings a sum of `other` to this reference
//   relative_exp.to(top)      what brings a sum to exp(x - top), where the reference was picked for this top
//
// Careful is within B = (4 + T/2 + log2 C) eps for every C (docs/numerics.md): in float five instructions, whose last one
// adds what rounding lost in the first product. Quick takes one fused multiply-add and ex2.approx: with log2(e) rounded to
// float its error is up to 1.02 B at two classes, so that it needs the log2 C of the bound: the launcher asks for it from 256
// classes on, for results of 16 bits. Its reference is a power of two, so that sums are merged without an error.
#pragma once
#include "reduce.cuh"

// exp(x) for x <= 0. In float a nan gives 0: that the row has one shows in its top.
DEVICE float exponential_below(float x) {
    const float log2_e = 1.4426950408889634f, log_2 = 0.6931471805599453f;
    const float p = x * log2_e, e = exp2_approx(p);
    return multiply_add_saturated(e, multiply_add(p, -log_2, x), e);  // saturated: for x = -inf the correction is nan
}
DEVICE double exponential_below(double x) { return exp(x); }

// exp(x) for any x. In float one instruction more.
DEVICE float exponential_near(float x) {
    const float log2_e = 1.4426950408889634f, log_2 = 0.6931471805599453f;
    const float above = most_of(x, -200.f), p = above * log2_e, e = exp2_approx(p);
    return multiply_add(e, multiply_add(p, -log_2, above), e);
}
DEVICE double exponential_near(double x) { return exp(x); }

// 2^n as a number; 0 where it would be subnormal.
DEVICE float power_of_two(int n) { return n < -126 ? 0.f : __uint_as_float((unsigned)(n < 127 ? n + 127 : 254) << 23); }

template <class Type>
struct Careful {
    using Real = Type;
    Real reference;

    DEVICE explicit Careful(Real top) : reference(most_of(top, Limits<Real>::lowest())) {}
    DEVICE static Careful for_products(Real top, Real) { return Careful(top); }

    DEVICE Real operator()(Real x) const { return exponential_below(x - reference); }
    DEVICE Real near(Real x) const { return exponential_near(x - reference); }
    DEVICE Real from(const Careful& other) const {
        return other.reference == reference ? 1 : exponential(other.reference - reference);
    }
    DEVICE Real to(Real) const { return 1; }
};

struct Quick {
    using Real = float;
    // The largest top for which the rounding of top * log2(e) is far below 1. Above it, logits of 16 bits are equal to the top
    // or at least 2^14 below it, so that their exponentials are 1 or 0, whatever the factor is.
    static constexpr float LARGEST = 4e6f;
    float factor, reference;

    DEVICE explicit Quick(float top) : factor(factor_of(top)), reference(rintf(exponent_of(top))) {}
    // For products exp(x - top) * factor: picks the reference so that neither the exponential nor factor * to(top) is subnormal
    // where the product is not.
    DEVICE static Quick for_products(float top, float factor) {
        Quick relative_exp(top);
        relative_exp.reference = factor > 0.5f ? floorf(exponent_of(top)) : ceilf(exponent_of(top));
        return relative_exp;
    }

    DEVICE float operator()(float x) const { return exp2_approx(multiply_add(x, factor, -reference)); }
    DEVICE float near(float x) const { return (*this)(x); }
    DEVICE float from(const Quick& other) const {
        const float n = other.reference - reference;
        return other.factor == factor && n > -127 ? power_of_two((int)n) : 0.f;
    }
    DEVICE float to(float top) const { return exp2_approx(-multiply_add(finite(top), factor, -reference)); }

  private:
    // Where there are no logits the top is -inf, but a reference must be finite.
    DEVICE static float finite(float top) { return most_of(top, Limits<float>::lowest()); }
    DEVICE static float factor_of(float top) { return fabsf(finite(top)) < LARGEST ? 1.4426950408889634f : 1.f; }
    DEVICE static float exponent_of(float top) { return finite(top) * factor_of(top); }
};

// What brings a sum beside the reference of RelativeExp(top) to that of RelativeExp(highest). A sum without a top stays 0.
template <class RelativeExp>
DEVICE typename RelativeExp::Real brought_to(typename RelativeExp::Real top, typename RelativeExp::Real highest) {
    const bool without_top = top == -Limits<typename RelativeExp::Real>::infinity();
    return top == highest || without_top ? 1 : RelativeExp(highest).from(RelativeExp(top));
}

// A sum of exponentials of some logits, beside the reference of RelativeExp(top), top being the largest of these logits.
// Without a top it is 0.
template <class RelativeExp>
struct PartialSum {
    using Real = typename RelativeExp::Real;
    Real top, sum;
    static DEVICE PartialSum none() { return {-Limits<Real>::infinity(), 0}; }

    template <int WIDTH>
    DEVICE PartialSum over_lanes() const {
        const Real highest = largest_of_lanes<WIDTH>(top);
        return {highest, sum_of_lanes<WIDTH>(sum * brought_to<RelativeExp>(top, highest))};
    }
    DEVICE Exponentials<Real> exponentials() const { return {top, sum * RelativeExp(top).to(top)}; }
};

// A sum of exponentials as above, but for one of the largest, which is kept apart.
template <class RelativeExp>
struct PartialSumBesideLargest {
    using Real = typename RelativeExp::Real;
    Real top;
    BesideLargest<Real> terms;
    static DEVICE PartialSumBesideLargest none() { return {-Limits<Real>::infinity(), BesideLargest<Real>::none()}; }

    template <int WIDTH>
    DEVICE PartialSumBesideLargest over_lanes() const {
        const Real highest = largest_of_lanes<WIDTH>(top), factor = brought_to<RelativeExp>(top, highest);
        const BesideLargest<Real> mine = {terms.largest * factor, terms.rest * factor};
        return {highest, mine.template over_lanes<WIDTH>()};
    }
    // The sum of exp(x - top) over all logits but one of the largest.
    DEVICE Real rest() const { return terms.rest * RelativeExp(top).to(top); }
};
