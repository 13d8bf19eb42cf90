// Sums of rows, each by a cluster: its blocks send one another their parts with store_async.
//
//   sums[r * BLOCKS + b] = sum of row r, as block b of the cluster has it
//
// Launch   any number of clusters of BLOCKS blocks of THREADS threads; cluster k has rows k, k + clusters, ...
// -D       MESSAGE is what is sent: unsigned, Word or Vector, for 4, 8 or 16 bytes
#include "warp.cuh"

constexpr int WARPS = THREADS / 32;

DEVICE void fill(unsigned& message, unsigned sum) { message = sum; }
DEVICE void fill(Word& message, unsigned sum) { message = (Word)~sum << 32 | sum; }
DEVICE void fill(Vector& message, unsigned sum) { message = {{sum, ~sum, sum + 1, sum + 2}}; }

// What was sent, or a wrong number if the parts of the message do not fit together.
DEVICE unsigned content(unsigned message) { return message; }
DEVICE unsigned content(Word message) {
    const unsigned sum = (unsigned)message;
    return (unsigned)(message >> 32) == ~sum ? sum : 0xbadu;
}
DEVICE unsigned content(const Vector& v) {
    const unsigned sum = v.words[0];
    return v.words[1] == ~sum && v.words[2] == sum + 1 && v.words[3] == sum + 2 ? sum : 0xbadu;
}

KERNEL CLUSTER(BLOCKS) __launch_bounds__(THREADS) void cluster_sum(const unsigned* x, unsigned* sums, int rows, int length) {
    SHARED_ARRAY(MESSAGE, parts, 2 * BLOCKS);  // two rows in turn
    SHARED_ARRAY(unsigned, of_warp, 2 * WARPS);
    SHARED_ARRAY(Mbarrier, arrived, 2);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, rank = cluster_rank();
    const int clusters = gridDim.x / BLOCKS;
    if (threadIdx.x == 0) {
        mbarrier_init(&arrived[0], 1);
        mbarrier_init(&arrived[1], 1);
        mbarrier_fence_init();
    }
    cluster_arrive_relaxed();
    cluster_wait();

    int turn = 0;
    for (int r = blockIdx.x / BLOCKS; r < rows; r += clusters, ++turn) {
        const int half = turn % 2, parity = turn / 2 % 2;
        unsigned sum = 0;
        for (int i = rank * THREADS + threadIdx.x; i < length; i += BLOCKS * THREADS) sum += x[r * length + i];
        sum = sum_of_warp(sum);
        if (lane == 0) of_warp[half * WARPS + warp] = sum;
        __syncthreads();
        if (threadIdx.x == 0) mbarrier_arrive_expect(&arrived[half], BLOCKS * sizeof(MESSAGE));
        if (threadIdx.x < BLOCKS) {
            sum = 0;
            for (int w = 0; w < WARPS; ++w) sum += of_warp[half * WARPS + w];
            MESSAGE message;
            fill(message, sum);
            const int to = threadIdx.x;
            store_async(remote_place(&parts[half * BLOCKS + rank], to), message, remote_place(&arrived[half], to));
        }
        mbarrier_wait_cluster(&arrived[half], parity);
        if (threadIdx.x == THREADS - 1) {
            unsigned total = 0;
            for (int b = 0; b < BLOCKS; ++b) total += content(parts[half * BLOCKS + b]);
            sums[r * BLOCKS + rank] = total;
        }
    }
    cluster_arrive();
    cluster_wait();
}
