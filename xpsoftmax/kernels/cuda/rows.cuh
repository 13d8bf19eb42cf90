// A row of logits, as its threads read it: held in registers, or streamed from memory.
//
// The launcher gives the specialisation with -D:
//   SCALAR   float, double, Half or Bfloat: the type of the logits
//   RESULT   the type that is written: SCALAR, or float for 16-bit logits
//   QUICK    1: exponentials of Quick (exponentials.cuh), 0: of Careful
//   LANES    threads a row has in each block: 4, 8, 16 or 32 (several rows a block), or the whole block
//   VECTORS  16-byte vectors that each thread holds; 0: the row is streamed, by one block
//   BLOCKS   blocks a row has: 1, or a cluster of 2, 4 or 8
//   THREADS, RESIDENT  threads of a block; blocks that are to fit on a multiprocessor at once
//   SLOTS, GROUP  held rows may come through shared memory (ring.cuh): in SLOTS slots of GROUP vectors a thread. Then the
//            block has 32 threads more than LANES, the producer. Without SLOTS each thread loads its vectors itself
//
// A row is dealt out in whole vectors that lie on 16-byte boundaries, so that neighbouring threads read neighbouring
// vectors. Elements before the first and behind the last of them, the edges, are dealt out one by one to the first threads.
// One class may be left out of the sum: the label. The thread that has it takes it out once, and after it has written its
// vectors writes the value of that class. The only check of an element or vector is whether the row has it.
//
// Both kinds of rows offer the same, so that each kernel is written once. The sums are those of a warp's lanes:
//   distances(), count()   how far all logits are below the largest, in sum (of this thread alone); how many it has
//   others(label)          the sum of exponentials without the label
//   beside_largest()       the sum of exponentials without one of the largest
//   others_below(top)      the same without all that are as large as `top`
//   write_exponentials, write_shifted   the results
#pragma once
#include "exponentials.cuh"
#include "odds.cuh"
#include "ring.cuh"
#include "vectors.cuh"

#ifndef SLOTS
#define SLOTS 0
#define GROUP 1
#endif

using Scalar = SCALAR;
using Result = RESULT;
using Real = Working<Scalar>::Type;
constexpr int PER = PER_VECTOR<Scalar>;
constexpr int WARP_LANES = LANES < 32 ? LANES : 32;
// A block or cluster that fills its multiprocessors takes row after row: they have no room for another block, which could read
// while this one writes.
constexpr bool PERSISTENT = RESIDENT == 1 && VECTORS > 0;
constexpr bool HAS_PRODUCER = SLOTS > 0;
using RowTeam = Team<LANES, BLOCKS, HAS_PRODUCER>;
constexpr int GROUPS = VECTORS > 0 ? VECTORS / GROUP : 1;
using RowRing = Ring<LANES, BLOCKS, GROUPS, GROUP, (HAS_PRODUCER ? SLOTS / GROUPS : 1)>;
static_assert(HAS_PRODUCER ? PERSISTENT && VECTORS % GROUP == 0 && SLOTS % GROUPS == 0 && THREADS == LANES + 32 : GROUP == 1,
              "a ring holds whole rows, in whole slots, of a kernel that takes row after row");

template <bool IS_QUICK>
struct Choice {
    using RelativeExp = Careful<Real>;
};
template <>
struct Choice<true> {
    using RelativeExp = Quick;
};
using RelativeExp = Choice<(QUICK != 0)>::RelativeExp;
using Sum = PartialSum<RelativeExp>;
using SumBesideLargest = PartialSumBesideLargest<RelativeExp>;

// Which row a thread works on, and which part of the row. `turn` is the number of rows that the thread has had before.
struct Seat {
    Long row;
    int lane;   // of LANES
    int block;  // of BLOCKS
    int turn;

    DEVICE explicit Seat(int turn) : turn(turn) {
        const int thread = thread_index();
        lane = thread % LANES;
        block = BLOCKS > 1 ? cluster_rank() : 0;
        row = (Long)(blockIdx.x / BLOCKS) * (THREADS / LANES);
        if constexpr (!HAS_PRODUCER) row += thread / LANES;
        if constexpr (PERSISTENT) row += (Long)turn * (gridDim.x / BLOCKS);
    }
    DEVICE bool leads() const { return lane == 0 && block == 0; }
};

// The logits that a kernel is given.
struct Rows {
    const Scalar* first;
    Long stride, rows, classes;
    DEVICE const Scalar* operator[](Long r) const { return first + r * stride; }
};

// Copies the rows of this block into the ring, one after the other; by one thread.
template <class Counts>
DEVICE void bring_rows(const Rows& given, Counts counts) {
#pragma unroll 1
    for (int turn = 0;; ++turn) {
        const Seat seat(turn);
        if (seat.row >= given.rows) return;
        const Parts<Scalar> parts(given[seat.row], given.classes);
        RowRing::fill(parts, counts(seat.row) ? parts.vectors() : 0, seat.block, turn);
    }
}

constexpr auto EVERY_ROW = [](Long) { return true; };

// Calls body(seat, merges) for each row of these threads; `merges` counts what they have merged. Threads without a row call
// it, too, if others of their warp have one. counts(r): whether row r is read, which body must know by itself.
template <class Counts, class Body>
DEVICE void for_each_row(const Rows& given, Counts counts, Body body) {
    const Long rows = given.rows;
    RowTeam::begin();
    if constexpr (HAS_PRODUCER) {
        RowRing::begin();
        if (threadIdx.x >= LANES) {
            if (threadIdx.x == LANES) bring_rows(given, counts);
            __syncwarp();
            return;
        }
    }
    int merges = 0;
    if constexpr (PERSISTENT) {
#pragma unroll 1
        for (int turn = 0;; ++turn) {
            const Seat seat(turn);
            if (seat.row >= rows) return;
            body(seat, merges);
        }
    } else {
        body(Seat(0), merges);
    }
}

// The sum of a vector's values, by halving: the most accurate order, and the shortest chain of additions.
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

// The sum of a vector's values without the largest of them. Two chains of additions need few registers, and are short.
DEVICE BesideLargest<Real> beside_largest_of(const Real (&x)[PER]) {
    constexpr int HALF = PER / 2;
    BesideLargest<Real> first = {x[0], 0}, second = {x[HALF], 0};
#pragma unroll
    for (int i = 1; i < HALF; ++i) first = first.with(x[i]), second = second.with(x[HALF + i]);
    return first.with(second);
}

DEVICE Real distances_of(const Vector& v, Real top) {
    Real below[PER];
    unpack<Scalar>(v, below);
#pragma unroll
    for (int i = 0; i < PER; ++i) below[i] = top - below[i];
    return sum_of(below);
}

// Puts -inf in the place of element i: exp(-inf) is 0, and -inf is never the largest.
DEVICE void take_out(Vector& v, int i) {
    const Vector none = impossible<Scalar>();
    constexpr int BYTES = sizeof(Scalar);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        const unsigned whole = BYTES == 8 ? i == w / 2 : i * BYTES / 4 == w;
        const unsigned bits = BYTES == 2 ? 0xffffu << (i % 2 * 16) : 0xffffffffu;
        const unsigned mask = whole ? bits : 0;
        v.words[w] = (v.words[w] & ~mask) | (none.words[w] & mask);
    }
}

DEVICE Real shift_of(Real top) { return top == -Limits<Real>::infinity() ? 0 : top; }

// Writes the values of one vector. On a boundary it goes out whole, or, for a wider type, in two halves.
DEVICE void write(Result* place, const Real (&values)[PER], bool on_boundary) {
    constexpr int PER_PART = PER_VECTOR<Result>;
    if (on_boundary) {
#pragma unroll
        for (int part = 0; part < PER; part += PER_PART) store_streaming(place + part, packed<Result>(values, part));
    } else {
#pragma unroll
        for (int i = 0; i < PER; ++i) place[i] = narrowed<Result>(values[i]);
    }
}

// What both kinds of rows know: where the row lies, which edges this thread has, and which class it left out.
struct Place {
    static constexpr int EDGES = (2 * PER + LANES - 1) / LANES;  // most edges of a thread
    static constexpr int STEP = LANES * BLOCKS;                  // from a thread's vector to its next one, in groups of 1
    Parts<Scalar> parts;
    Seat seat;
    bool reads;          // whether the row is read; if not, its logits count as -inf
    int left_out = -1;   // the class that this thread left out
    int hot_vector = -1, hot_element = 0;  // where it is, if it is in a vector

    DEVICE Place(const Scalar* row, Long classes, Seat seat, bool reads)
        : parts(row, classes), seat(seat), reads(reads) {}

    // The vectors of a row go to the blocks in turn, GROUP vectors for each thread at a time. `first` is the number of this
    // thread's first vector, and `distance` is how many vectors its n-th one lies behind the first.
    DEVICE int first() const { return seat.block * (GROUP * LANES) + seat.lane; }
    DEVICE static constexpr int distance(int n) { return n / GROUP * (GROUP * STEP) + n % GROUP * LANES; }
    // How many whole vectors this thread has.
    DEVICE int vectors() const {
        if constexpr (GROUP > 1) {
            const unsigned whole = (unsigned)parts.vectors() / (GROUP * STEP);
            const int rest = parts.vectors() - (int)whole * (GROUP * STEP) - first() + LANES - 1;
            const int more = rest < 0 ? 0 : (int)((unsigned)rest / LANES);
            return (int)whole * GROUP + (more < GROUP ? more : GROUP);
        }
        return (int)((unsigned)(parts.vectors() - first() + STEP - 1) / STEP);
    }
    // How many classes this thread has.
    DEVICE int count() const {
        int all = vectors() * PER;
#pragma unroll
        for (int k = 0; k < EDGES; ++k) all += edge(k) >= 0;
        return all;
    }
    // Class of the k-th edge of this thread, or -1.
    DEVICE int edge(int k) const {
        const int number = seat.lane + k * LANES;
        return seat.block == 0 && number < 2 * PER ? parts.edge(number) : -1;
    }
    DEVICE Real read_edge(int k) const {
        const int j = edge(k);
        return reads && j >= 0 && j != left_out ? widened(parts.row[j]) : -Limits<Real>::infinity();
    }
    DEVICE void find(Long label) {
        const int position = (int)label - parts.head;
        const unsigned number = (unsigned)position / PER;
        if (label >= 0 && position >= 0 && number < (unsigned)parts.vectors()) {
            if ((int)(number % LANES) != seat.lane || (int)(number / (GROUP * LANES) % BLOCKS) != seat.block) return;
            left_out = (int)label;
            hot_vector = (int)(number / (GROUP * STEP) * GROUP + number / LANES % GROUP);
            hot_element = (int)((unsigned)position % PER);
        } else if (label >= 0) {
#pragma unroll
            for (int k = 0; k < EDGES; ++k)
                if (edge(k) == label) left_out = (int)label;
        }
    }
    // Writes the value of the class that was left out. This comes after all other writes of the thread: the vector that it wrote
    // there has another value in the place of this class.
    DEVICE void write_left_out(Result* out, Real value) const {
        if (left_out >= 0) out[left_out] = narrowed<Result>(value);
    }
    // Reads the row again, one vector after the other, so that it needs few registers beside a held row. Few rows need it.
    DEVICE Sum others_below(Real row_top) const {
        const auto below = [&](Real x) { return x == row_top ? -Limits<Real>::infinity() : x; };
        Real top = -Limits<Real>::infinity();
        for_each_vector_again(
            [&](const Real (&x)[PER]) {
#pragma unroll
                for (int i = 0; i < PER; ++i) top = larger(top, below(x[i]));
            },
            [&](Real x) { top = larger(top, below(x)); });
        __syncwarp();
        top = largest_of_lanes<WARP_LANES>(top);
        const RelativeExp relative_exp(top);
        LongSum<Real> sum;
        for_each_vector_again(
            [&](Real (&x)[PER]) {
#pragma unroll
                for (int i = 0; i < PER; ++i) x[i] = relative_exp(below(x[i]));
                sum.add(sum_of(x));
            },
            [&](Real x) { sum.add(relative_exp(below(x))); });
        __syncwarp();
        return Sum{top, sum_of_lanes<WARP_LANES>(sum.total())};
    }
    template <class VisitVector, class VisitEdge>
    DEVICE void for_each_vector_again(VisitVector visit, VisitEdge visit_edge) const {
        const int end = reads ? parts.vectors() : 0;
#pragma unroll 1
        for (int number = seat.block * LANES + seat.lane; number < end; number += STEP) {
            Real x[PER];
            unpack<Scalar>(load_vector(parts.vector(number)), x);
            visit(x);
        }
#pragma unroll 1
        for (int k = 0; k < EDGES; ++k) visit_edge(read_edge(k));
    }
    DEVICE bool on_boundary(const Result* out) const { return (Word)(out + parts.head) % 16 == 0; }
};

// A row in registers: read once, written once.
struct HeldRow : Place {
    static constexpr bool KEEPS = sizeof(Scalar) == sizeof(Real);  // exponentials fit where the logits were
    Vector held[VECTORS > 0 ? VECTORS : 1];
    Real edges[EDGES];
    Real top;  // of this warp

    DEVICE HeldRow(const Scalar* row, Long classes, Seat seat, bool reads) : Place(row, classes, seat, reads) {
        const int end = reads ? vectors() : 0;
        if constexpr (HAS_PRODUCER) {
#pragma unroll
            for (int n = 0; n < VECTORS; ++n) held[n] = impossible<Scalar>();
#pragma unroll
            for (int group = 0; group < GROUPS; ++group)
                RowRing::take(held + group * GROUP, end - group * GROUP, seat.lane, group, seat.turn);
        } else {
            const Scalar* const at = one_address(parts.vector(first()));
#pragma unroll
            for (int n = 0; n < VECTORS; ++n) {
                held[n] = impossible<Scalar>();
                if (n < end) held[n] = load_vector(at + distance(n) * PER);
            }
        }
#pragma unroll
        for (int k = 0; k < EDGES; ++k) edges[k] = read_edge(k);
    }

    DEVICE Distances<Real> distances() {
        find_top();
        Distances<Real> below = {top, 0, 0};
        const int end = vectors();
#pragma unroll
        for (int n = 0; n < VECTORS; ++n)
            if (n < end) below.sum += distances_of(held[n], shift_of(top));
#pragma unroll
        for (int k = 0; k < EDGES; ++k)
            if (edge(k) >= 0) below.sum += shift_of(top) - edges[k];
        forget_all();
        return below;
    }

    DEVICE Sum others(Long label) {
        find(label);
        if (hot_vector >= 0) {
#pragma unroll
            for (int n = 0; n < VECTORS; ++n)
                if (n == hot_vector) take_out(held[n], hot_element);
        }
#pragma unroll
        for (int k = 0; k < EDGES; ++k)
            if (left_out >= 0 && edge(k) == left_out) edges[k] = -Limits<Real>::infinity();
        find_top();
        const RelativeExp relative_exp(top);
        Real sum = 0;
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            Real e[PER];
            exponentials(relative_exp, held[n], e);
            sum += sum_of(e);
            if constexpr (KEEPS) held[n] = packed<Scalar>(e);
        }
#pragma unroll
        for (int k = 0; k < EDGES; ++k) {
            const Real e = relative_exp(edges[k]);
            sum += e;
            if constexpr (KEEPS) edges[k] = e;
        }
        forget_all();
        return Sum{top, sum_of_lanes<WARP_LANES>(sum)};
    }

    DEVICE SumBesideLargest beside_largest() {
        find_top();
        const RelativeExp relative_exp(top);
        BesideLargest<Real> terms = BesideLargest<Real>::none();
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            Real e[PER];
            exponentials(relative_exp, held[n], e);
            terms = terms.with(beside_largest_of(e));
        }
#pragma unroll
        for (int k = 0; k < EDGES; ++k) terms = terms.with(relative_exp(edges[k]));
        forget_all();
        __syncwarp();
        return SumBesideLargest{top, terms.over_lanes<WARP_LANES>()};
    }

    // exp(z - row_top) * factor - minus; after others()
    template <bool SUBTRACTS = false>
    DEVICE void write_exponentials(Result* out, Real row_top, Real factor, Real hot_value, Real minus = 0) {
        const RelativeExp relative_exp = RelativeExp::for_products(row_top, factor);
        if constexpr (!KEEPS) factor *= relative_exp.to(row_top);
        else if (LANES > 32) factor *= brought_to<RelativeExp>(top, row_top);
        const auto value = [&](Real x) {
            const Real product = (KEEPS ? x : relative_exp(x)) * factor;
            return SUBTRACTS ? product - minus : product;
        };
        write_all<false>(out, value);
        write_left_out(out, hot_value);
    }

    // (z - row_top) - minus; after beside_largest()
    DEVICE void write_shifted(Result* out, Real row_top, Real minus) {
        write_all<true>(out, [&](Real x) { return (x - row_top) - minus; });
    }

  private:
    DEVICE void find_top() {
        Tops<Scalar> tops;
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) tops.add(held[n]);
        top = tops.value();
#pragma unroll
        for (int k = 0; k < EDGES; ++k) top = larger(top, edges[k]);
        __syncwarp();  // so that the compiler makes no second copy for diverged warps
        top = largest_of_lanes<WARP_LANES>(top);
    }
    static DEVICE void exponentials(const RelativeExp& relative_exp, const Vector& v, Real (&e)[PER]) {
        unpack<Scalar>(v, e);
#pragma unroll
        for (int i = 0; i < PER; ++i) e[i] = relative_exp(e[i]);
    }
    // Exponentials of 16-bit logits are not kept, because they would need twice the registers of the logits. This makes the
    // compiler compute them again.
    DEVICE void forget_all() {
        if constexpr (!KEEPS) {
#pragma unroll
            for (int n = 0; n < VECTORS; ++n) forget(held[n]);
        }
    }
    // ANEW: the assembler must be made to unpack the logits again, too. Where exponentials are computed again, it does so by
    // itself.
    template <bool ANEW, class Value>
    DEVICE void write_all(Result* out, Value value) {
        const bool whole = on_boundary(out);
        const unsigned zero = ANEW && !KEEPS ? unknown_zero() : 0;
        Result* const at = one_address(out + parts.head + first() * PER);
        const int end = vectors();
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            if (n >= end) continue;
            if constexpr (ANEW && !KEEPS) set_anew(held[n], zero);
            Real x[PER];
            unpack<Scalar>(held[n], x);
#pragma unroll
            for (int i = 0; i < PER; ++i) x[i] = value(x[i]);
            write(at + distance(n) * PER, x, whole);
        }
#pragma unroll
        for (int k = 0; k < EDGES; ++k)
            if (const int j = edge(k); j >= 0) out[j] = narrowed<Result>(value(edges[k]));
    }
};

// A row too long for registers: one block, which reads it again for each step.
struct StreamedRow : Place {
    static constexpr int AT_ONCE = PER == 4 ? 4 : 2;  // vectors that a thread loads before it uses the first
    // How far logits may rise above the logit that the sum's reference was picked for. Each move of the reference adds the
    // error of an exponential. What was added two moves ago is by then smaller than e^-4 of the sum, so that these errors do not add
    // up, even if the logits of a row rise steadily.
    static constexpr int SLACK = 4;

    DEVICE StreamedRow(const Scalar* row, Long classes, Seat seat, bool reads) : Place(row, classes, seat, reads) {}

    DEVICE Distances<Real> distances() const {
        Distances<Real> below = Distances<Real>::none();
        LongSum<Real> sum;
        const auto rise_to = [&](Real highest) {
            if (!(highest > below.top)) return;
            if (below.count > 0) sum.add(below.count * (highest - below.top));
            below.top = highest;
        };
        for_each_vector([&](const Vector& v, int) {
            rise_to(top_of(v));
            sum.add(distances_of(v, shift_of(below.top)));
            below.count += PER;
        });
        for (int k = 0; k < EDGES; ++k) {
            if (edge(k) < 0) continue;
            const Real x = read_edge(k);
            rise_to(x);
            sum.add(shift_of(below.top) - x);
            below.count += 1;
        }
        below.sum = sum.total();
        return below;
    }

    // The reference of a sum of exponentials. It moves when larger logits come. Every sum of a streamed row has one.
    struct Reference {
        Real picked_for = -Limits<Real>::infinity(), largest = picked_for;
        RelativeExp relative_exp = RelativeExp(picked_for);
        // Makes the reference fit for logits up to `highest`; returns what the sum so far must be multiplied with.
        DEVICE Real rise_to(Real highest) {
            largest = larger(largest, highest);
            if (!(highest > picked_for + SLACK)) return 1;
            const RelativeExp next(highest);
            const bool first = picked_for == -Limits<Real>::infinity();  // nothing was added yet
            const Real factor = first ? 1 : next.from(relative_exp);
            relative_exp = next, picked_for = highest;
            return factor;
        }
        // What brings the sum beside the largest logit, as it is for a held row: otherwise a probability could be written as a
        // subnormal number times a factor above 1.
        DEVICE Real to_largest() const {
            return largest == -Limits<Real>::infinity() ? 1 : RelativeExp(largest).from(relative_exp);
        }
    };

    DEVICE Sum others(Long label) {
        find(label);
        const int hot_number = hot_vector < 0 ? -1 : hot_vector * LANES + seat.lane;
        Reference reference;
        LongSum<Real> sum;
        const auto rise_to = [&](Real highest) {
            const Real factor = reference.rise_to(highest);
            if (factor != 1) sum.scale(factor);
        };
        for_each_vector([&](Vector v, int number) {
            if (number == hot_number) take_out(v, hot_element);
            rise_to(top_of(v));
            Real e[PER];
            exponentials(reference.relative_exp, v, e);
            sum.add(sum_of(e));
        });
        for (int k = 0; k < EDGES; ++k) {
            const Real x = read_edge(k);
            rise_to(x);
            sum.add(reference.relative_exp.near(x));
        }
        const Sum mine = {reference.largest, sum.total() * reference.to_largest()};
        return mine.over_lanes<WARP_LANES>();
    }

    DEVICE SumBesideLargest beside_largest() const {
        Reference reference;
        Real largest = 0;  // exponential
        LongSum<Real> rest;
        const auto rise_to = [&](Real highest) {
            const Real factor = reference.rise_to(highest);
            if (factor != 1) largest *= factor, rest.scale(factor);
        };
        const auto add = [&](BesideLargest<Real> terms) {
            rest.add(terms.rest + least_of(largest, terms.largest));
            largest = most_of(largest, terms.largest);
        };
        for_each_vector([&](const Vector& v, int) {
            rise_to(top_of(v));
            Real e[PER];
            exponentials(reference.relative_exp, v, e);
            add(beside_largest_of(e));
        });
        for (int k = 0; k < EDGES; ++k) {
            const Real x = read_edge(k);
            rise_to(x);
            add({reference.relative_exp.near(x), 0});
        }
        const Real factor = reference.to_largest();
        const SumBesideLargest mine = {reference.largest, {largest * factor, rest.total() * factor}};
        return mine.over_lanes<WARP_LANES>();
    }

    template <bool SUBTRACTS = false>
    DEVICE void write_exponentials(Result* out, Real row_top, Real factor, Real hot_value, Real minus = 0) {
        const RelativeExp relative_exp = RelativeExp::for_products(row_top, factor);
        factor *= relative_exp.to(row_top);
        write_all(out, [&](Real x) {
            const Real product = relative_exp(x) * factor;
            return SUBTRACTS ? product - minus : product;
        });
        write_left_out(out, hot_value);
    }

    DEVICE void write_shifted(Result* out, Real row_top, Real minus) {
        write_all(out, [&](Real x) { return (x - row_top) - minus; });
    }

  private:
    static DEVICE Real top_of(const Vector& v) {
        Tops<Scalar> tops;
        tops.add(v);
        return tops.value();
    }
    static DEVICE void exponentials(const RelativeExp& relative_exp, const Vector& v, Real (&e)[PER]) {
        unpack<Scalar>(v, e);
#pragma unroll
        for (int i = 0; i < PER; ++i) e[i] = relative_exp.near(e[i]);
    }
    // Calls visit(vector, number) for each vector of this thread. A row that is not read has vectors of -inf.
    template <class Visit>
    DEVICE void for_each_vector(Visit visit) const {
        int number = seat.lane;
        for (; number < parts.vectors() - (AT_ONCE - 1) * LANES; number += AT_ONCE * LANES) {
            Vector v[AT_ONCE];
#pragma unroll
            for (int n = 0; n < AT_ONCE; ++n) v[n] = read(number + n * LANES);
#pragma unroll
            for (int n = 0; n < AT_ONCE; ++n) visit(v[n], number + n * LANES);
        }
#pragma unroll 1
        for (; number < parts.vectors(); number += LANES) visit(read(number), number);
    }
    DEVICE Vector read(int number) const { return reads ? load_vector(parts.vector(number)) : impossible<Scalar>(); }

    template <class Value>
    DEVICE void write_all(Result* out, Value value) {
        const bool whole = on_boundary(out);
        for_each_vector([&](const Vector& v, int number) {
            Real x[PER];
            unpack<Scalar>(v, x);
#pragma unroll
            for (int i = 0; i < PER; ++i) x[i] = value(x[i]);
            write(out + parts.head + (Long)number * PER, x, whole);
        });
        for (int k = 0; k < EDGES; ++k)
            if (const int j = edge(k); j >= 0) out[j] = narrowed<Result>(value(read_edge(k)));
    }
};

template <bool HELD>
struct Kind {
    using Row = HeldRow;
};
template <>
struct Kind<false> {
    using Row = StreamedRow;
};
using Row = Kind<(VECTORS > 0)>::Row;

// log1p of the sum of exp(z - top) over all but one of the largest. Where the largest leads by far, the exponentials of the
// others may be subnormal and lose digits: their sum is then taken once more, relative to the largest of the others.
DEVICE Real log_of_rest(Row& row, const SumBesideLargest& sum, int& merges) {
    const Real rest = sum.rest();
    const bool leads = !(rest >= Limits<Real>::small());
    const Real log_of_sum = log_of_one_and(rest);
    if (!(LANES < 32 ? sum_of_lanes<32>((int)leads) > 0 : leads)) return log_of_sum;  // all threads of a warp agree
    const Exponentials<Real> others = RowTeam::over_warps<1>(row.others_below(sum.top), merges++).exponentials();
    return leads ? against(others, sum.top).loss : log_of_sum;
}

#if BLOCKS > 1
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#error "blocks form clusters from compute capability 9.0 on: each would take itself for the first of its row"
#endif
#define ROW_KERNEL KERNEL __launch_bounds__(THREADS, RESIDENT) CLUSTER(BLOCKS) void
#else
#define ROW_KERNEL KERNEL __launch_bounds__(THREADS, RESIDENT) void
#endif
