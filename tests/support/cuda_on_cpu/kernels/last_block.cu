// Sum of a vector by many blocks: the last one to finish adds up what all have published.
//
// Launch   blocks of THREADS threads, one for each THREADS elements; `counter` is 0 before and after
#include "warp.cuh"

constexpr int WARPS = THREADS / 32;

DEVICE unsigned sum_of_block(unsigned sum, unsigned* of_warp) {
    sum = sum_of_warp(sum);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < WARPS; ++w) sum += of_warp[w];
    return sum;
}

KERNEL __launch_bounds__(THREADS) void last_block(const unsigned* x, unsigned* published, unsigned* counter, unsigned* total,
                                                  int length) {
    SHARED_ARRAY(unsigned, of_warp, WARPS);
    SHARED_ARRAY(unsigned, before, 1);
    SHARED_ARRAY(unsigned, of_warp_last, WARPS);
    const int i = blockIdx.x * THREADS + threadIdx.x;
    const unsigned sum = sum_of_block(i < length ? x[i] : 0, of_warp);
    if (threadIdx.x == 0) published[blockIdx.x] = sum;
    if (threadIdx.x == 0) before[0] = fetch_add(counter, 1);
    __syncthreads();
    if (before[0] + 1 != gridDim.x) return;
    unsigned all = 0;
    for (int b = threadIdx.x; b < gridDim.x; b += THREADS) all += published[b];
    all = sum_of_block(all, of_warp_last);
    if (threadIdx.x == 0) {
        total[0] = all;
        counter[0] = 0;
    }
}
