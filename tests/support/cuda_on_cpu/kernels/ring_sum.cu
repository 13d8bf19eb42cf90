// Sums of rows that a producer warp brings to shared memory, slot by slot, with copy_bulk.
//
//   sums[r] = sum of row r
//
// Launch   any number of blocks of THREADS + 32 threads, the last warp being the producer; block k has rows k,
//          k + blocks, ...; SLOTS * SLOT_BYTES bytes of dynamic shared memory
// Limits   rows begin at multiples of 16 bytes, and are as long
#include "warp.cuh"

constexpr int WARPS = THREADS / 32, PER_SLOT = SLOT_BYTES / 4;

// The slot whose turn it is, and the parity of its phase.
struct Turn {
    int slot = 0;
    unsigned parity = 0;
    DEVICE void next() {
        if (++slot < SLOTS) return;
        slot = 0;
        parity ^= 1;
    }
};

DEVICE void produce(const unsigned* x, unsigned* ring, Mbarrier* full, Mbarrier* empty, int rows, int length) {
    Turn turn;
    for (int r = blockIdx.x; r < rows; r += gridDim.x)
        for (int first = 0; first < length; first += PER_SLOT, turn.next()) {
            const int number = length - first < PER_SLOT ? length - first : PER_SLOT;
            mbarrier_wait(&empty[turn.slot], turn.parity ^ 1);  // at first nothing has to be read
            mbarrier_arrive_expect(&full[turn.slot], number * 4);
            copy_bulk(ring + turn.slot * PER_SLOT, x + (Long)r * length + first, number * 4, &full[turn.slot]);
        }
}

DEVICE void consume(const unsigned* ring, Mbarrier* full, Mbarrier* empty, unsigned* of_warp, unsigned* sums, int rows,
                    int length) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Turn turn;
    for (int r = blockIdx.x; r < rows; r += gridDim.x) {
        unsigned sum = 0;
        for (int first = 0; first < length; first += PER_SLOT, turn.next()) {
            const int number = length - first < PER_SLOT ? length - first : PER_SLOT;
            mbarrier_wait(&full[turn.slot], turn.parity);
            for (int i = threadIdx.x; i < number; i += THREADS) sum += ring[turn.slot * PER_SLOT + i];
            __syncwarp();
            if (lane == 0) mbarrier_arrive(&empty[turn.slot]);
        }
        sum = sum_of_warp(sum);
        if (lane == 0) of_warp[warp] = sum;
        barrier_of(1, THREADS);
        if (threadIdx.x == 0) {
            unsigned total = 0;
            for (int w = 0; w < WARPS; ++w) total += of_warp[w];
            sums[r] = total;
        }
        barrier_of(1, THREADS);
    }
}

KERNEL __launch_bounds__(THREADS + 32) void ring_sum(const unsigned* x, unsigned* sums, int rows, int length) {
    DYNAMIC_SHARED_ARRAY(unsigned, ring, SLOTS * PER_SLOT);
    SHARED_ARRAY(Mbarrier, full, SLOTS);
    SHARED_ARRAY(Mbarrier, empty, SLOTS);
    SHARED_ARRAY(unsigned, of_warp, WARPS);
    if (threadIdx.x == 0) {
        for (int i = 0; i < SLOTS; ++i) {
            mbarrier_init(&full[i], 1);
            mbarrier_init(&empty[i], WARPS);
        }
        mbarrier_fence_init();
    }
    __syncthreads();
    if (threadIdx.x < THREADS)
        consume(ring, full, empty, of_warp, sums, rows, length);
    else if (threadIdx.x == THREADS)
        produce(x, ring, full, empty, rows, length);
}
