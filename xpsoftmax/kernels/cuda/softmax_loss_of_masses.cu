// Softmax loss and gradient for target masses: soft targets, label smoothing, class weights within a row, z-loss.
//
//   q[j] = class_weight[j] * ((1 - eps) * target[j] + eps / C)     Q = sum of q     slope = 2 z_loss c lse
//   loss[r] = weight[r] * (sum of q[j] * -log p[j] + z_loss c lse^2)     c = class weight of the label, if there is one
//   dlogits[r, j] = weight[r] * ((Q + slope) p[j] - q[j])
//
// Two classes are set apart: the largest logit, whose -log p is a log1p, and `hot`, which has the largest q and whose
// gradient is (Q - q) p - q (1 - p), formed without a difference from 1. What the others need is one sum each. Which two
// classes these are is known only at the end of a row: each thread sets its own two apart, and adds them to its sums when it
// learns that they are not the row's.
//
// Layout   logits, dlogits as in softmax_loss.cu; targets: labels (R,), or masses (R, C) of the working precision.
// Launch   one block of THREADS a row, as many blocks as rows. Each thread holds the logits and targets of CLASSES_HELD classes, every
//          THREADS-th; with CLASSES_HELD 0 it has any number of them, and the gradient reads them again.
// Limits   held: C <= THREADS * CLASSES_HELD (the launcher checks); C < 2^31 - 16.
// Traffic  held: one read, one write. Else a second read, from the end of the row, which was read last: while the rows that
//          run at once fit the second-level cache, memory sees one.
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

// Classes that a thread reads at once where it does not hold them.
constexpr int READ_AT_ONCE = 4;
constexpr int AT_ONCE = CLASSES_HELD > 0 ? CLASSES_HELD : READ_AT_ONCE;

// Some classes of a thread: the first, and every THREADS-th after it. A class beyond the row has no logit.
struct Classes {
    Long first;
    Real logits[AT_ONCE], targets[AT_ONCE];

    DEVICE Classes(Long first, const Scalar* z, const Masses& masses, Long count) : first(first) {
#pragma unroll
        for (int n = 0; n < AT_ONCE; ++n) {
            const Long j = first + n * THREADS;
            logits[n] = j < count ? widened(z[j]) : 0;
            targets[n] = j < count ? masses.target(j) : 0;
        }
    }
    // visit(class, logit, target)
    template <class Visit>
    DEVICE void for_each(Long count, Visit visit) const {
#pragma unroll
        for (int n = 0; n < AT_ONCE; ++n) {
            const Long j = first + n * THREADS;
            if (j < count) visit(j, logits[n], targets[n]);
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

// What all threads of a row must know before they can add up: the largest logit, and the class with the largest target.
struct Survey {
    Largest<Real> logit, mass;
    Real targets;  // their sum: not finite if one is not
    int negative;  // whether a target is
    template <int WIDTH>
    DEVICE Survey over_lanes() const {
        return {logit.over_lanes<WIDTH>(), mass.over_lanes<WIDTH>(), sum_of_lanes<WIDTH>(targets),
                sum_of_lanes<WIDTH>(negative)};
    }
    static DEVICE Survey none() { return {Largest<Real>::none(), Largest<Real>::none(), 0, 0}; }
};

// The sums of a row: some leave out the largest logit or the hot class, others cover all classes.
struct Sums {
    Exponentials<Real> others;
    Real mass;  // of all but the hot class
    Real away;  // of q[j] * (top - z[j]), over all: no term is negative
    static DEVICE Sums none() { return {Exponentials<Real>::none(), 0, 0}; }
    template <int WIDTH>
    DEVICE Sums over_lanes() const {
        return {others.over_lanes<WIDTH>(), sum_of_lanes<WIDTH>(mass), sum_of_lanes<WIDTH>(away)};
    }
};

// The sums of the classes that one thread has read so far. The largest logit and the hot class among these are set apart.
struct Reading {
    Survey found = Survey::none();
    Real z_hot = 0;
    Real shift = -Limits<Real>::infinity();
    SumOfClasses others, mass, away;

    DEVICE void add(Long j, Real z, Real q, Real target) {
        const Largest<Real> top = found.logit, hot = found.mass;
        found.targets += target;
        found.negative |= target < 0;
        found.logit = top.or_else({z, (int)j});
        found.mass = hot.or_else({q, (int)j});
        const bool is_top = found.logit.index == j, is_hot = found.mass.index == j;
        if (is_top) rise_by(top, hot);
        if (q != 0) away.add(z == -Limits<Real>::infinity() ? -z : q * (found.logit.value - z));
        if (is_top && exists(top) && top.index != found.mass.index) add_exponential(top.value);
        if (is_hot && exists(hot)) {
            mass.add(hot.value);
            if (hot.index != top.index) add_exponential(z_hot);  // else it was added as the largest logit, or still is that
        }
        if (is_hot) z_hot = z;
        else mass.add(q);
        if (!is_top && !is_hot) add_exponential(z);
    }

    // The sums, once the largest logit and the hot class of the whole row are known.
    DEVICE Sums beside(const Survey& row) {
        const Largest<Real> top = found.logit, hot = found.mass;
        found.logit = row.logit;
        rise_by(top, hot);
        if (exists(top) && top.index != row.logit.index && top.index != row.mass.index) add_exponential(top.value);
        if (exists(hot) && hot.index != row.mass.index) {
            mass.add(hot.value);
            if (hot.index != top.index) add_exponential(z_hot);
        }
        return {{shift, others.total()}, mass.total(), away.total()};
    }

   private:
    static DEVICE bool exists(const Largest<Real>& of) { return of.index != Largest<Real>::none().index; }

    // Called after the largest logit has risen from `top`; `hot` was the hot class before. All masses are farther from it now.
    DEVICE void rise_by(const Largest<Real>& top, const Largest<Real>& hot) {
        if (!exists(top) || top.value == found.logit.value) return;
        const Real all = mass.total() + hot.value;
        if (all != 0) away.add(all * (found.logit.value - top.value));
    }

    DEVICE void add_exponential(Real z) {
        if (z > shift + SLACK) {
            others.scale(exponential(shift - z));
            shift = z;
        }
        others.add(exponential(z - shift_of(shift)));
    }
};

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

    Reading reading;
    const auto read = [&](Long j, Real z_j, Real target) { reading.add(j, z_j, masses.mass(j, target), target); };
#if CLASSES_HELD > 0
    const Classes own(threadIdx.x, z, masses, classes);
    own.for_each(classes, read);
#else
    constexpr Long STEP = Long(THREADS) * READ_AT_ONCE;
    for (Long j = threadIdx.x; j < classes; j += STEP) Classes(j, z, masses, classes).for_each(classes, read);
#endif
    const Survey found = RowTeam::over_all<0>(reading.found);
    const int top_index = found.logit.index, hot = found.mass.index;
    const bool one = hot == top_index;
    const Real top = found.logit.value;
    const Real z_hot = hot < classes ? widened(z[hot]) : Limits<Real>::nan();  // before any thread writes in its place
    const Sums sum = RowTeam::over_all<1>(reading.beside(found));

    // exp(z - top): of the others, of the hot class, and all of it. A product with a subnormal one may be normal.
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
    const auto write = [&](Long j, Real z_j, Real target) {
        const Real value = times_exponential(pull, z_j, top) - masses.mass(j, target);
        out[j] = narrowed<Result>((j == hot ? of_hot : value) * share);
    };
#if CLASSES_HELD > 0
    own.for_each(classes, write);
#else
    for (Long j = threadIdx.x + (classes - 1) / STEP * STEP; j >= 0; j -= STEP)
        Classes(j, z, masses, classes).for_each(classes, write);
#endif
}
