// A sum added up by the block that finishes last: a kernel and the sum of its results in one launch.
//
// The order of the additions depends only on the length: there are CHAINS sums, each of every CHAINS-th number, which are
// then added by halving. Threads beyond CHAINS add zeros, so that blocks of any size give the same bits. No value is added by atomics.
#pragma once
#include "reduce.cuh"

template <class Real>
struct Total {
    Real value;
    static DEVICE Total none() { return {0}; }
    template <int WIDTH>
    DEVICE Total over_lanes() const {
        return {sum_of_lanes<WIDTH>(value)};
    }
};

// Whether this block is the last to finish. All threads of a block call it after the block has written its part of x. The last
// block then sees what all blocks have written. `counter` must be 0 before the launch, and the last block sets it back to 0.
// Launches that may run at the same time need a counter each.
DEVICE bool is_last_block(unsigned* counter, unsigned blocks) {
    SHARED_ARRAY(unsigned, finished_before, 1);
    __syncthreads();  // this block's part of x is written
    if (threadIdx.x == 0) *finished_before = fetch_add(counter, 1);
    __syncthreads();
    if (*finished_before != blocks - 1) return false;
    return true;
}

// The sum of x, for all threads of a block.
template <int BLOCK_THREADS, class Real>
DEVICE Real sum_in_chains(const Real* x, Long length) {
    constexpr int CHAINS = 128;
    LongSum<Real> sum;
    if (threadIdx.x < CHAINS) {
#pragma unroll 8
        for (Long i = threadIdx.x; i < length; i += CHAINS) sum.add(x[i]);
    }
    return Team<BLOCK_THREADS, 1>::template over_all<1>(Total<Real>{sum.total()}).value;
}

template <int BLOCK_THREADS, class Real>
DEVICE void add_up_in_last_block(const Real* x, Long length, Real* total, unsigned* counter, unsigned blocks) {
    if (!is_last_block(counter, blocks)) return;
    const Real sum = sum_in_chains<BLOCK_THREADS>(x, length);
    if (threadIdx.x == 0) {
        *total = sum;
        *counter = 0;
    }
}
