// A row seen from one class, called hot: the label, or the largest logit.
//
// The others are shifted by their own largest logit, so their sum keeps its digits however far the hot class leads, even
// where exp(z[j] - z[hot]) is subnormal for each of them; nothing is ever subtracted from 1 (docs/adr/0001).
#pragma once
#include "reduce.cuh"

template <class Real>
struct Odds {
    Real scale;  // p[j] = exp(z[j] - top of the others) * scale / total
    Real rest;   // 1 - p[hot] = rest / total
    Real e_hot;  // p[hot] = e_hot / total
    Real total;  // at least 1
    Real loss;   // -log p[hot]
};

// exp(lead) * sum for lead <= 0, with all digits where the factor alone would be subnormal and the product is not.
template <class Real>
DEVICE Real scaled_down(Real sum, Real factor, Difference<Real> lead) {
    const Real half = exponential(Real(0.5) * lead.rounded) * (1 + Real(0.5) * lead.lost);  // halving is exact
    return factor >= Limits<Real>::tiny() ? factor * sum : half * sum * half;
}

template <class Real>
DEVICE Odds<Real> against(Exponentials<Real> others, Real z_hot) {
    const Real top = others.top == -Limits<Real>::infinity() ? z_hot : others.top;  // no other class is possible
    const Difference<Real> behind = difference(top, z_hot);
    Odds<Real> odds;
    if (behind.rounded > 0) {  // some other class is larger
        odds.scale = 1;
        odds.rest = others.sum;
        odds.e_hot = exponential(-behind.rounded) * (1 - behind.lost);
        odds.total = odds.rest + odds.e_hot;
        odds.loss = (logarithm(odds.total) + behind.lost) + behind.rounded;
    } else {
        odds.scale = exponential(behind.rounded) * (1 + behind.lost);
        odds.rest = scaled_down(others.sum, odds.scale, behind);
        odds.e_hot = 1;
        odds.total = odds.rest + 1;
        odds.loss = log_of_one_and(odds.rest);
    }
    return odds;
}

// x * (1 - p[hot]) * total, where the hot class is the largest. It keeps all digits also where 1 - p[hot] is subnormal and the
// product is not.
template <class Real>
DEVICE Real times_others(Real x, Exponentials<Real> others, Real z_hot) {
    if (others.top == -Limits<Real>::infinity()) return 0;
    const Difference<Real> lead = difference(others.top, z_hot);
    return scaled_down(x * others.sum, exponential(lead.rounded) * (1 + lead.lost), lead);
}

// Whether a row has probabilities: it has none if it holds a nan or +inf, or nothing but -inf.
template <class Real>
DEVICE bool is_usable(Exponentials<Real> others, Real z_hot) {
    const Real infinity = Limits<Real>::infinity();
    const bool possible = others.top > -infinity || z_hot > -infinity;
    return possible && others.top < infinity && z_hot < infinity && others.sum == others.sum;
}
