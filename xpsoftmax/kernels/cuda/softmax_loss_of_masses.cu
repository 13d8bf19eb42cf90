// Softmax loss and gradient for target masses: soft targets, label smoothing, class weights within a row, z-loss.
//
//   q[j] = class_weight[j] * ((1 - eps) * target[j] + eps / C)     Q = sum of q     slope = 2 z_loss c lse
//   loss[r] = weight[r] * (sum of q[j] * -log p[j] + z_loss c lse^2)     c = class weight of the label, if there is one
//   dlogits[r, j] = weight[r] * ((Q + slope) p[j] - q[j])
//
// Two classes are set apart: the largest logit, whose -log p is a log1p, and `hot`, which has the largest q and whose
// gradient is (Q - q) p - q (1 - p), formed without a difference from 1. What the others need is one sum each.
//
// Layout   logits, dlogits as in softmax_loss.cu; targets: labels (R,), or masses (R, C) of the working precision.
// Launch   one block of THREADS a row, as many blocks as rows. Each thread holds the logits and targets of CLASSES_HELD classes, every
//          THREADS-th; with CLASSES_HELD 0 it has any number of them, and every step reads them again.
// Limits   held: C <= THREADS * CLASSES_HELD (the launcher checks); C < 2^31 - 16.
// Traffic  held: one read, one write. Else three reads; while the rows that run at once fit the second-level cache, memory
//          sees one.
#include "labels.cuh"
#define LANES THREADS
#define VECTORS 0
#define BLOCKS 1
#define QUICK 0
#include "rows.cuh"

struct Masses {
    const Real* soft;  // this row's targets; null for a label
    Long label;
    const Real* class_weights;  // null: all 1
    Real kept, share;           // 1 - eps, eps / C

    DEVICE Real target(Long j) const { return soft ? soft[j] : Real(j == label); }
    DEVICE Real mass(Long j, Real target) const {
        const Real q = kept * target + share;
        return class_weights ? q * class_weights[j] : q;
    }
    DEVICE Real operator()(Long j) const { return mass(j, target(j)); }
};

// The classes of a thread: their logits and targets, in registers or read anew.
struct Classes {
    const Scalar* z;
    const Masses& masses;
    Long count;
    Real logits[CLASSES_HELD > 0 ? CLASSES_HELD : 1], targets[CLASSES_HELD > 0 ? CLASSES_HELD : 1];

    DEVICE Classes(const Scalar* z, const Masses& masses, Long count) : z(z), masses(masses), count(count) {
#pragma unroll
        for (int n = 0; n < CLASSES_HELD; ++n) {
            const Long j = threadIdx.x + n * THREADS;
            logits[n] = j < count ? widened(z[j]) : 0;
            targets[n] = j < count ? masses.target(j) : 0;
        }
    }
    // visit(class, logit, target)
    template <class Visit>
    DEVICE void for_each(Visit visit) const {
        if constexpr (CLASSES_HELD > 0) {
#pragma unroll
            for (int n = 0; n < CLASSES_HELD; ++n) {
                const Long j = threadIdx.x + n * THREADS;
                if (j < count) visit(j, logits[n], targets[n]);
            }
        } else {
            for (Long j = threadIdx.x; j < count; j += THREADS) visit(j, widened(z[j]), masses.target(j));
        }
    }
};

// A sum of few terms, with the interface of LongSum.
struct ShortSum {
    Real value = 0;
    DEVICE void add(Real x) { value += x; }
    DEVICE void scale(Real factor) { value *= factor; }
    DEVICE Real total() const { return value; }
};
template <bool FEW>
struct SumOf {
    using Type = LongSum<Real>;
};
template <>
struct SumOf<true> {
    using Type = ShortSum;
};
using SumOfClasses = SumOf<(CLASSES_HELD > 0)>::Type;

// How far logits may rise above the shift of their sum before it is moved (as in rows.cuh).
constexpr int SLACK = 4;

// What the first reading finds.
struct Survey {
    Largest<Real> logit, mass;
    Real targets;  // their sum: not finite if one is not
    int negative;  // whether a target is
    static DEVICE Survey none() { return {Largest<Real>::none(), Largest<Real>::none(), 0, 0}; }
    template <int WIDTH>
    DEVICE Survey over_lanes() const {
        return {logit.over_lanes<WIDTH>(), mass.over_lanes<WIDTH>(), sum_of_lanes<WIDTH>(targets),
                sum_of_lanes<WIDTH>(negative)};
    }
};

// What the second one sums: over all but the largest logit and the hot class, and over all.
struct Readings {
    Exponentials<Real> others;
    Real mass;  // of all but the hot class
    Real away;  // of q[j] * (top - z[j]), over all: no term is negative
    static DEVICE Readings none() { return {Exponentials<Real>::none(), 0, 0}; }
    template <int WIDTH>
    DEVICE Readings over_lanes() const {
        return {others.over_lanes<WIDTH>(), sum_of_lanes<WIDTH>(mass), sum_of_lanes<WIDTH>(away)};
    }
};

DEVICE Survey survey(const Classes& classes) {
    Survey found = Survey::none();
    classes.for_each([&](Long j, Real z, Real target) {
        found.logit = found.logit.or_else({z, (int)j});
        found.mass = found.mass.or_else({classes.masses.mass(j, target), (int)j});
        found.targets += target;
        found.negative |= target < 0;
    });
    return RowTeam::over_all<0>(found);
}

DEVICE Readings sums(const Classes& classes, const Survey& found) {
    Real top = -Limits<Real>::infinity();
    SumOfClasses others, mass, away;
    classes.for_each([&](Long j, Real z, Real target) {
        const Real q = classes.masses.mass(j, target);
        if (j != found.mass.index) mass.add(q);
        if (q != 0) away.add(q * (found.logit.value - z));
        if (j == found.logit.index || j == found.mass.index) return;
        if (z > top + SLACK) {
            others.scale(exponential(top - z));
            top = z;
        }
        others.add(exponential(z - shift_of(top)));
    });
    return RowTeam::over_all<1>(Readings{{top, others.total()}, mass.total(), away.total()});
}

// x * exp(z - top) with all its digits also where the exponential is subnormal and the product is not.
DEVICE Real times_exponential(Real x, Real z, Real top) {
    const Difference<Real> t = difference(z, top);
    if (t.rounded < -1000) return 0;  // in every precision
    const Real e = exponential(t.rounded);
    x *= 1 + t.lost;
    if (e >= Limits<Real>::tiny()) return x * e;
    const Real half = exponential(Real(0.5) * t.rounded);
    return (half * x) * half;
}

KERNEL __launch_bounds__(THREADS, RESIDENT) void softmax_loss_of_masses(
    const Scalar* logits, Long logits_stride, const void* labels, int label_bytes, const Real* soft, Long soft_stride,
    const Real* class_weights, const Real* weights, Real weight_of_all, Real* losses, Result* dlogits, Long dlogits_stride,
    Long classes, Real kept, Real share_of_class, Real z_loss) {
    const Long r = blockIdx.x;
    const Scalar* const z = logits + r * logits_stride;
    const Long label = labels ? Labels{labels, label_bytes}[r] : 0;
    const bool is_class = label >= 0 && label < classes;
    const Masses masses{soft ? soft + r * soft_stride : nullptr, label, class_weights, kept, share_of_class};
    Result* const out = dlogits + r * dlogits_stride;
    const Real weight = weights ? weights[r] : weight_of_all;
    if (weight == 0) {  // the whole block agrees
        if (threadIdx.x == 0) losses[r] = 0;
        for (Long j = threadIdx.x; dlogits && j < classes; j += THREADS) out[j] = narrowed<Result>(Real(0));
        return;
    }

    const Classes own(z, masses, classes);
    const Survey found = survey(own);
    const int top_index = found.logit.index, hot = found.mass.index;
    const bool one = hot == top_index;
    const Real top = found.logit.value;
    const Real z_hot = hot < classes ? widened(z[hot]) : Limits<Real>::nan();  // before any thread writes in its place
    const Readings sum = sums(own, found);

    // exp(z - top): of the others, of the hot class, and all of it. A product with one that is subnormal need not be.
    const Odds<Real> odds = against(sum.others, top);
    const Real e_hot = one ? 0 : times_exponential(1, z_hot, top);
    const Real beside_top = odds.rest + e_hot, total = beside_top + 1;
    const auto times_rest = [&](Real x) { return times_others(x, sum.others, top); };
    const auto times_hot = [&](Real x) { return one ? x : times_exponential(x, z_hot, top); };

    const Real q_hot = hot < classes ? masses(hot) : 0, q_all = q_hot + sum.mass;
    const Real loss_of_top = log_of_one_and(beside_top), lse = top + loss_of_top;
    const Real of_top = beside_top >= Limits<Real>::tiny() ? q_all * loss_of_top
                                                           : times_rest(q_all) + (one ? 0 : times_hot(q_all));
    const Real c = labels && class_weights && is_class ? class_weights[label] : 1;
    const Real slope = 2 * z_loss * c * lse;
    const bool usable = is_usable(sum.others, top) && is_class && is_finite(found.targets) && !found.negative;
    const Real share = usable ? weight : Limits<Real>::nan();
    if (threadIdx.x == 0) losses[r] = (sum.away + of_top + (z_loss != 0 ? Real(0.5) * slope * lse : 0)) * share;

    if (dlogits == nullptr) return;
    const Real pull = (q_all + slope) / total, push = q_hot / total;
    const Real of_hot = times_hot((sum.mass + slope) / total) - (times_rest(push) + (one ? 0 : push));
    own.for_each([&](Long j, Real z_j, Real target) {
        const Real value = times_exponential(pull, z_j, top) - masses.mass(j, target);
        out[j] = narrowed<Result>((j == hot ? of_hot : value) * share);
    });
}
