// One value for all threads of a row: over the lanes of a warp, the warps of a block, the blocks of a cluster.
//
// A value is a small struct with `none()` and `over_lanes<width>()`, which merges neighbouring lanes by xor-shuffles. All
// lanes get the same bits, because every merge is symmetric (which is why kernels are compiled without fused
// multiply-add). The order of the additions is fixed by the size class: no atomics, the same bits in every run.
#pragma once
#include "numbers.cuh"

constexpr unsigned ALL_LANES = 0xffffffffu;

template <int WIDTH, class Real>
DEVICE Real largest_of_lanes(Real x) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

template <int WIDTH, class Real>
DEVICE Real sum_of_lanes(Real x) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// A sum of exp(z - top), top being about the largest of the z: -inf and 0 for no terms.
template <class Real>
struct Exponentials {
    Real top, sum;
    static DEVICE Exponentials none() { return {-Limits<Real>::infinity(), 0}; }

    // A sum without a top is 0, or nan because of a nan among its terms: it stays as it is.
    DEVICE Real brought_to(Real new_top) const {
        return top == new_top || top == -Limits<Real>::infinity() ? sum : sum * exponential(top - new_top);
    }
    template <int WIDTH>
    DEVICE Exponentials over_lanes() const {
        const Real new_top = largest_of_lanes<WIDTH>(top);
        return {new_top, sum_of_lanes<WIDTH>(brought_to(new_top))};
    }
};

// The largest of some numbers that are not negative, and the sum of all others: nothing is subtracted.
template <class Real>
struct BesideLargest {
    Real largest, rest;
    static DEVICE BesideLargest none() { return {0, 0}; }
    DEVICE BesideLargest with(Real x) const { return {most_of(largest, x), rest + least_of(largest, x)}; }
    DEVICE BesideLargest with(BesideLargest other) const {
        return {most_of(largest, other.largest), (rest + other.rest) + least_of(largest, other.largest)};
    }
    template <int WIDTH>
    DEVICE BesideLargest over_lanes() const {
        BesideLargest all = *this;
#pragma unroll
        for (int step = WIDTH / 2; step > 0; step /= 2)
            all = all.with({__shfl_xor_sync(ALL_LANES, all.largest, step), __shfl_xor_sync(ALL_LANES, all.rest, step)});
        return all;
    }
};

// How far `count` numbers are below `top`, about the largest of them, in sum: -inf and 0 for none.
template <class Real>
struct Distances {
    Real top, sum, count;
    static DEVICE Distances none() { return {-Limits<Real>::infinity(), 0, 0}; }

    DEVICE Real brought_to(Real new_top) const {
        return top == new_top || count == 0 ? sum : sum + count * (new_top - top);
    }
    template <int WIDTH>
    DEVICE Distances over_lanes() const {
        const Real new_top = largest_of_lanes<WIDTH>(top);
        return {new_top, sum_of_lanes<WIDTH>(brought_to(new_top)), sum_of_lanes<WIDTH>(count)};
    }
};

// The largest of some numbers and the first place where it is. A nan is larger than any number.
template <class Real>
struct Largest {
    Real value;
    int index;
    static DEVICE Largest none() { return {-Limits<Real>::infinity(), 0x7fffffff}; }

    DEVICE Largest or_else(Largest other) const {
        const bool mine_nan = value != value, other_nan = other.value != other.value;
        if (mine_nan != other_nan) return mine_nan ? *this : other;
        if (value > other.value || (!(value < other.value) && index < other.index)) return *this;
        return other;
    }
    template <int WIDTH>
    DEVICE Largest over_lanes() const {
        Largest best = *this;
#pragma unroll
        for (int step = WIDTH / 2; step > 0; step /= 2)
            best = best.or_else({__shfl_xor_sync(ALL_LANES, best.value, step),
                                 __shfl_xor_sync(ALL_LANES, best.index, step)});
        return best;
    }
};

// The threads of one row. A kernel that merges twice a row uses another SLOT for each; one that takes row after row says which
// `turn` it is: how often its threads have merged before. Messages have two places, used in turn: what was merged two turns
// ago has been read by all threads when it is written over, because all have met in the turn between.
//
// Blocks of a cluster send their values to each other by stores that report to a barrier in the block that they reach: no
// thread waits for more than the messages of its row. None ends while messages to it are under way, for it waits for all.
//
// OTHERS: the block has more threads, which merge nothing and do not come to the barrier of these.
template <int ROW_LANES, int ROW_BLOCKS, bool OTHERS = false>
struct Team {
    // Blocks of a cluster wait until all run and have their barriers.
    static DEVICE void begin() {
        if constexpr (ROW_BLOCKS > 1) {
            if (threadIdx.x == 0) {
                for (int half = 0; half < 2; ++half) mbarrier_init(&arrived()[half], 1);
                mbarrier_fence_init();
            }
            __syncwarp();  // a warp must arrive as one
            cluster_arrive_relaxed();
            cluster_wait();
        }
    }

    // Merges values that are already the same in all lanes of a warp.
    template <int SLOT, class Value>
    static DEVICE Value over_warps(Value value, int turn = 0) {
        if constexpr (ROW_LANES > 32) value = over_block<SLOT>(value, turn % 2);
        if constexpr (ROW_BLOCKS > 1) value = over_cluster(value, turn);
        // A row of the lanes of one warp has no other barrier: all lanes must have read before one of them writes in the place
        // of what they read.
        if constexpr (ROW_LANES <= 32) __syncwarp();
        return value;
    }

    template <int SLOT, class Value>
    static DEVICE Value over_all(Value value) {
        return over_warps<SLOT>(value.template over_lanes<(ROW_LANES < 32 ? ROW_LANES : 32)>());
    }

  private:
    template <int SLOT, class Value>
    static DEVICE Value over_block(Value value, int half) {
        constexpr int WARPS = ROW_LANES / 32;
        SHARED_ARRAY(Value, of_warp, 2 * WARPS);
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        if (lane == 0) of_warp[half * WARPS + warp] = value;
        if constexpr (OTHERS) barrier_of(1, ROW_LANES);
        else __syncthreads();
        value = lane < WARPS ? of_warp[half * WARPS + lane] : Value::none();
        return value.template over_lanes<32>();
    }

    // The two barriers at which messages report, one for each place. The parity of a phase follows from `turn`.
    static DEVICE Mbarrier* arrived() {
        SHARED_ARRAY(Mbarrier, both, 2);
        return both;
    }

    template <class Value>
    static DEVICE Value over_cluster(Value value, int turn) {
        constexpr int WORDS = (sizeof(Value) + 7) / 8;
        union Message {
            Word words[WORDS];
            Value value;
        };
        SHARED_ARRAY(Message, of_block, 2 * ROW_BLOCKS);
        Message* const place = of_block + turn % 2 * ROW_BLOCKS;
        Mbarrier* const barrier = arrived() + turn % 2;
        if (threadIdx.x == 0) mbarrier_arrive_expect(barrier, ROW_BLOCKS * sizeof(Message));
        if (threadIdx.x < ROW_BLOCKS) {
            const int there = threadIdx.x;
            Message message = {};
            message.value = value;
            const Remote remote = remote_place(&place[cluster_rank()], there), remote_barrier = remote_place(barrier, there);
            for (int i = 0; i < WORDS; ++i) store_async(remote + 8 * i, message.words[i], remote_barrier);
        }
        mbarrier_wait_cluster(barrier, turn / 2 % 2);
        const int lane = threadIdx.x % 32;
        value = lane < ROW_BLOCKS ? place[lane].value : Value::none();
        return value.template over_lanes<32>();
    }
};
