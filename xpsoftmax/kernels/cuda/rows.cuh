// A row in the hands of its threads: held in registers, or streamed from memory.
//
// The launcher gives the specialisation with -D:
//   SCALAR   float, double, Half or Bfloat: the type of the logits
//   LANES    threads a row has in each block: 4, 8, 16 or 32 (several rows a block), or the whole block
//   VECTORS  16-byte vectors that each thread holds; 0: the row is streamed, by one block
//   BLOCKS   blocks a row has: 1, or a cluster of 2, 4 or 8
//   THREADS, RESIDENT  threads of a block; blocks that are to fit on a multiprocessor at once
//
// Both kinds offer the same, so that each kernel is written once:
//   largest()         the largest logit and its class
//   distances()       how far all logits are below the largest, in sum
//   others(hot)       the sum of exponentials without class `hot` (none for hot = -1)
//   write_exponentials, write_shifted   the result; class `hot` gets a value of its own
#pragma once
#include "odds.cuh"
#include "vectors.cuh"

using Scalar = SCALAR;
using Real = Working<Scalar>::Type;
constexpr int PER = PER_VECTOR<Scalar>;
constexpr int WARP_LANES = LANES < 32 ? LANES : 32;
using RowTeam = Team<LANES, BLOCKS>;

// Which row and which part of it this thread has.
struct Seat {
    Long row;
    int lane;   // of LANES
    int block;  // of BLOCKS

    DEVICE Seat() {
        lane = (int)threadIdx.x % LANES;
        block = BLOCKS > 1 ? cluster_rank() : 0;
        row = BLOCKS > 1 ? (Long)(blockIdx.x / BLOCKS)
                         : (Long)blockIdx.x * (THREADS / LANES) + (int)threadIdx.x / LANES;
    }
    DEVICE bool leads() const { return lane == 0 && block == 0; }
};

// Sum of a vector's values by halving: as accurate as it gets, and no longer chain than needed.
DEVICE Real sum_of(const Real (&x)[PER]) {
    Real part[PER];
#pragma unroll
    for (int i = 0; i < PER; ++i) part[i] = x[i];
#pragma unroll
    for (int width = PER / 2; width > 0; width /= 2)
#pragma unroll
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}

DEVICE Real top_of(const Vector& v) {
    Real top = widened(element<Scalar>(v, 0));
#pragma unroll
    for (int i = 1; i < PER; ++i) top = larger(top, widened(element<Scalar>(v, i)));
    return top;
}

DEVICE void find_largest(const Vector& v, const Span<Scalar>& span, Long position, Largest<Real>& best) {
#pragma unroll
    for (int i = 0; i < PER; ++i)
        if (span.holds(position + i))
            best = best.or_else({widened(element<Scalar>(v, i)), (int)(position + i - span.shift)});
}

// How far the classes of a vector are below `top`; 0 where the row does not reach.
DEVICE Real distances_of(const Vector& v, const Span<Scalar>& span, Long position, Real top) {
    const int from = span.from(position), upto = span.upto(position);
    Real below[PER];
#pragma unroll
    for (int i = 0; i < PER; ++i) below[i] = i >= from && i < upto ? top - widened(element<Scalar>(v, i)) : 0;
    return sum_of(below);
}

// Take the hot class out: exp(-inf) is 0, and -inf is never the largest.
DEVICE void leave_out(Vector& v, Long position, Long hot) {
    if (hot < position || hot >= position + PER) return;
#pragma unroll
    for (int i = 0; i < PER; ++i)
        if (position + i == hot) set_element(v, i, narrowed<Scalar>(-Limits<Real>::infinity()));
}

DEVICE void put(Real (&values)[PER], Long position, Long hot, Real value) {
    if (hot < position || hot >= position + PER) return;
#pragma unroll
    for (int i = 0; i < PER; ++i)
        if (position + i == hot) values[i] = value;
}

DEVICE Real shift_of(Real top) { return top == -Limits<Real>::infinity() ? 0 : top; }

// A row in registers: read once, written once. Positions are dealt out vector by vector, so that neighbouring threads
// read neighbouring vectors.
struct HeldRow {
    static constexpr bool KEEPS = sizeof(Scalar) == sizeof(Real);  // exponentials fit where the logits were
    Span<Scalar> span;
    Seat seat;
    bool reads;
    Vector held[VECTORS > 0 ? VECTORS : 1];
    Real top;  // of this warp, without the hot class
    Long hot;  // its position

    DEVICE HeldRow(const Scalar* row, Long classes, Seat seat, bool reads)
        : span(row, classes), seat(seat), reads(reads) {
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            held[n] = {};
            if (reads) held[n] = span.load(position(n));
            else set_all_impossible(held[n]);
        }
    }

    DEVICE Largest<Real> largest() const {
        Largest<Real> best = Largest<Real>::none();
#pragma unroll
        for (int n = 0; n < VECTORS; ++n)
            if (reads) find_largest(held[n], span, position(n), best);
        return RowTeam::over_all<0>(best);
    }

    DEVICE Distances<Real> distances() {
        Distances<Real> below = Distances<Real>::none();
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) below.top = larger(below.top, top_of(held[n]));
        below.top = largest_of_lanes<WARP_LANES>(below.top);
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            if constexpr (!KEEPS) forget(held[n]);
            below.sum += distances_of(held[n], span, position(n), shift_of(below.top));
            below.count += span.count(position(n));
            if constexpr (!KEEPS) forget(held[n]);
        }
        return RowTeam::over_all<0>(below);
    }

    template <int SLOT, bool KEEP_LOGITS = false>
    DEVICE Exponentials<Real> others(Long hot_class) {
        hot = hot_class < 0 ? -1 : hot_class + span.shift;
        top = -Limits<Real>::infinity();
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            leave_out(held[n], position(n), hot);
            top = larger(top, top_of(held[n]));
        }
        top = largest_of_lanes<WARP_LANES>(top);
        Real sum = 0;
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            Real e[PER];
            exponentials(held[n], e);
            sum += sum_of(e);
            if constexpr (KEEPS && !KEEP_LOGITS) keep(held[n], e);
        }
        return RowTeam::over_warps<SLOT>(Exponentials<Real>{top, sum_of_lanes<WARP_LANES>(sum)});
    }

    // exp(z - row_top) * factor - minus
    DEVICE void write_exponentials(const Output<Scalar>& out, Real row_top, Real factor, Real hot_value, bool zeros,
                                   Real minus = 0) {
        if (LANES > 32 && top > -Limits<Real>::infinity()) factor *= exponential(top - row_top);
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            if (!span.touches(position(n))) continue;
            Real values[PER];
            if constexpr (KEEPS) {
#pragma unroll
                for (int i = 0; i < PER; ++i) values[i] = widened(element<Scalar>(held[n], i));
            } else {
                forget(held[n]);
                exponentials(held[n], values);
            }
#pragma unroll
            for (int i = 0; i < PER; ++i) values[i] = zeros ? 0 : values[i] * factor - minus;
            put(values, position(n), hot, hot_value);
            out.store(span, position(n), values);
        }
    }

    // (z - row_top) - minus; after others<SLOT, true>
    DEVICE void write_shifted(const Output<Scalar>& out, Real row_top, Real minus, Real hot_value) {
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            if (!span.touches(position(n))) continue;
            Real values[PER];
#pragma unroll
            for (int i = 0; i < PER; ++i) values[i] = (widened(element<Scalar>(held[n], i)) - row_top) - minus;
            put(values, position(n), hot, hot_value);
            out.store(span, position(n), values);
        }
    }

  private:
    DEVICE int position(int n) const { return ((n * BLOCKS + seat.block) * LANES + seat.lane) * PER; }

    DEVICE void exponentials(const Vector& v, Real (&e)[PER]) const {
        const Real shift = shift_of(top);
#pragma unroll
        for (int i = 0; i < PER; ++i) e[i] = exponential(widened(element<Scalar>(v, i)) - shift);
    }
    static DEVICE void keep(Vector& v, const Real (&e)[PER]) {
#pragma unroll
        for (int i = 0; i < PER; ++i) set_element(v, i, e[i]);
    }
    static DEVICE void set_all_impossible(Vector& v) {
#pragma unroll
        for (int i = 0; i < PER; ++i) set_element(v, i, narrowed<Scalar>(-Limits<Real>::infinity()));
    }
};

// A row too long for registers: each step reads it again, one block from end to end.
struct StreamedRow {
    static constexpr Long STEP = (Long)LANES * PER;
    // How far logits may rise above the shift of the sum before it is moved. Moving it costs an exponential's error;
    // what was added two moves ago is smaller than e^-4, so these errors do not add up even if the row rises steadily.
    static constexpr int SLACK = 4;
    Span<Scalar> span;
    Seat seat;
    Long end;  // 0 if the row is not to be read
    Long hot;

    DEVICE StreamedRow(const Scalar* row, Long classes, Seat seat, bool reads)
        : span(row, classes), seat(seat), end(reads ? span.end : 0) {}

    DEVICE Largest<Real> largest() const {
        Largest<Real> best = Largest<Real>::none();
        for (Long p = first(); p < end; p += STEP) find_largest(span.load(p), span, p, best);
        return RowTeam::over_all<0>(best);
    }

    DEVICE Distances<Real> distances() const {
        Distances<Real> below = Distances<Real>::none();
        LongSum<Real> sum;
        for (Long p = first(); p < end; p += STEP) {
            const Vector v = span.load(p);
            const Real highest = top_of(v);
            if (highest > below.top) {
                if (below.count > 0) sum.add(below.count * (highest - below.top));
                below.top = highest;
            }
            sum.add(distances_of(v, span, p, shift_of(below.top)));
            below.count += span.count(p);
        }
        below.sum = sum.total();
        return RowTeam::over_all<0>(below);
    }

    template <int SLOT, bool KEEP_LOGITS = false>
    DEVICE Exponentials<Real> others(Long hot_class) {
        hot = hot_class < 0 ? -1 : hot_class + span.shift;
        Real top = -Limits<Real>::infinity(), largest = top;
        LongSum<Real> sum;
        for (Long p = first(); p < end; p += STEP) {
            Vector v = span.load(p);
            leave_out(v, p, hot);
            const Real highest = top_of(v);
            largest = larger(largest, highest);
            if (highest > top + SLACK) {
                sum.scale(exponential(top - highest));
                top = highest;
            }
            Real e[PER];
#pragma unroll
            for (int i = 0; i < PER; ++i) e[i] = exponential(widened(element<Scalar>(v, i)) - shift_of(top));
            sum.add(sum_of(e));
        }
        // As of a held row: a probability must not be written as a subnormal number times an exponential above 1.
        const Real all = Exponentials<Real>{top, sum.total()}.brought_to(largest);
        return RowTeam::over_all<SLOT>(Exponentials<Real>{largest, all});
    }

    DEVICE void write_exponentials(const Output<Scalar>& out, Real row_top, Real factor, Real hot_value, bool zeros,
                                   Real minus = 0) {
        for (Long p = first(); p < span.end; p += STEP) {
            Real values[PER] = {};
            if (!zeros) {
                const Vector v = span.load(p);
#pragma unroll
                for (int i = 0; i < PER; ++i)
                    values[i] = exponential(widened(element<Scalar>(v, i)) - shift_of(row_top)) * factor - minus;
            }
            put(values, p, hot, hot_value);
            out.store(span, p, values);
        }
    }

    DEVICE void write_shifted(const Output<Scalar>& out, Real row_top, Real minus, Real hot_value) {
        for (Long p = first(); p < span.end; p += STEP) {
            const Vector v = span.load(p);
            Real values[PER];
#pragma unroll
            for (int i = 0; i < PER; ++i) values[i] = (widened(element<Scalar>(v, i)) - row_top) - minus;
            put(values, p, hot, hot_value);
            out.store(span, p, values);
        }
    }

  private:
    DEVICE Long first() const { return (Long)seat.lane * PER; }
};

template <bool HELD>
struct Choice {
    using Row = HeldRow;
};
template <>
struct Choice<false> {
    using Row = StreamedRow;
};
using Row = Choice<(VECTORS > 0)>::Row;

#if BLOCKS > 1
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#error "blocks form clusters from compute capability 9.0 on: each would take itself for the first of its row"
#endif
#define ROW_KERNEL KERNEL __launch_bounds__(THREADS, RESIDENT) CLUSTER(BLOCKS) void
#else
#define ROW_KERNEL KERNEL __launch_bounds__(THREADS, RESIDENT) void
#endif
