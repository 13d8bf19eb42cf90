// A ring of slots in shared memory, which one more warp of the block, the producer, fills with the vectors of its rows.
//
// The producer copies the next rows while the other warps compute and write theirs: memory is never idle between two rows.
// A slot holds GROUP vectors of each thread, and a row takes GROUPS slots of each block, also where it is shorter: then some
// of them stay without vectors. So the ring holds DEPTH rows, and the slots of a row follow from its `turn`: the number of
// rows that the block has had before.
//
// Each slot has two barriers. At `full` the producer arrives and announces the bytes of its copy: the phase is complete when
// they are there. At `empty` each other warp arrives when it has read the slot: then it may be filled again.
//
// The launch asks for SLOTS * GROUP * LANES * 16 bytes of dynamic shared memory.
#pragma once
#include "vectors.cuh"

template <int LANES_OF_ROW, int BLOCKS_OF_ROW, int GROUPS, int VECTORS_OF_SLOT, int DEPTH>
struct Ring {
    static constexpr int SLOTS_OF_RING = DEPTH * GROUPS, PER_SLOT = VECTORS_OF_SLOT * LANES_OF_ROW;

    // By all threads of the block, before anything else.
    static DEVICE void begin() {
        if (threadIdx.x == 0) {
            for (int i = 0; i < SLOTS_OF_RING; ++i) {
                mbarrier_init(&full()[i], 1);
                mbarrier_init(&empty()[i], LANES_OF_ROW / 32);
            }
            mbarrier_fence_init();
        }
        __syncthreads();
    }

    // By one thread: fill the slots of a row, of whose first `vectors` whole vectors this block has its part.
    template <class T>
    static DEVICE void fill(const Parts<T>& parts, int vectors, int block, int turn) {
#pragma unroll 1
        for (int group = 0; group < GROUPS; ++group) {
            const int i = slot_of(turn, group), first = (group * BLOCKS_OF_ROW + block) * PER_SLOT;
            const int left = vectors - first, number = left < PER_SLOT ? left : PER_SLOT;
            mbarrier_wait(&empty()[i], phase_of(turn) ^ 1);  // the first DEPTH rows find empty slots
            if (number > 0) {
                mbarrier_arrive_expect(&full()[i], number * sizeof(Vector));
                copy_bulk(slot(i), parts.vector(first), number * sizeof(Vector), &full()[i]);
            } else {
                mbarrier_arrive(&full()[i]);
            }
        }
    }

    // By all other threads: take the vectors of a group out of their slot. This thread has `number` of them; the others stay.
    static DEVICE void take(Vector* held, int number, int lane, int group, int turn) {
        const int i = slot_of(turn, group);
        const Vector* const mine = slot(i) + lane;
        mbarrier_wait(&full()[i], phase_of(turn));
#pragma unroll
        for (int n = 0; n < VECTORS_OF_SLOT; ++n)
            if (n < number) held[n] = mine[n * LANES_OF_ROW];
        __syncwarp();  // all lanes have read
        if (lane % 32 == 0) mbarrier_arrive(&empty()[i]);
    }

  private:
    static DEVICE int slot_of(int turn, int group) { return turn % DEPTH * GROUPS + group; }
    static DEVICE unsigned phase_of(int turn) { return turn / DEPTH % 2; }

    static DEVICE Vector* slot(int i) {
        DYNAMIC_SHARED_ARRAY(Vector, slots, SLOTS_OF_RING * PER_SLOT);
        return slots + i * PER_SLOT;
    }
    static DEVICE Mbarrier* full() {
        SHARED_ARRAY(Mbarrier, full_slots, SLOTS_OF_RING);
        return full_slots;
    }
    static DEVICE Mbarrier* empty() {
        SHARED_ARRAY(Mbarrier, empty_slots, SLOTS_OF_RING);
        return empty_slots;
    }
};
