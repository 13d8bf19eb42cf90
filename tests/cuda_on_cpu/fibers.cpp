// Runs a kernel on a CPU, one fiber for each CUDA thread, one cluster of blocks after the other.
//
// A warp runs as far as it can before the next one gets its turn: the schedule that is least kind to a missing barrier.
// `schedule` picks the order of warps and lanes: 0 from the front, 1 from the back, more: at random.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <pmmintrin.h>
#include <random>
#include <vector>

#ifndef __x86_64__
#error "switching fibers is written for x86-64"
#endif

// Push what a function must preserve, change stacks, pop it.
asm(R"(
.text
.type switch_stack, @function
switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
extern "C" void switch_stack(void** from, void* to);

namespace {

constexpr size_t STACK = 32 * 1024;
using Body = void (*)(void**);

struct Barrier {
    int arrived = 0, round = 0;
};
struct Warp {
    Barrier barrier;
    unsigned char mail[2][32][16];
    int alive = 32;
};
struct Shared {
    const void* mark;
    size_t bytes;
    std::unique_ptr<std::max_align_t[]> memory;
};
struct Block {
    int index, rank, alive;
    bool started = false;
    Barrier barrier;
    std::vector<Warp> warps;
    std::vector<Shared> shared;
};
struct Fiber {
    std::unique_ptr<char[]> stack;
    void* top = nullptr;
    Block* block = nullptr;
    int thread = 0, mailbox = 0, cluster_round = 0;
    bool done = false;
};

std::vector<Fiber> fibers;
std::vector<Block> blocks;
Barrier cluster;
int cluster_alive;
Fiber* current;
void* scheduler;
long events;  // barriers released, fibers ended
const char* failure_text;
Body kernel;
void** arguments;
int blocks_of_grid;

void pause() { switch_stack(&current->top, scheduler); }

void release_if_full(Barrier& barrier, int expected) {
    if (barrier.arrived > 0 && barrier.arrived >= expected) {
        barrier.arrived = 0;
        ++barrier.round;
        ++events;
    }
}
void arrive(Barrier& barrier, int expected) {
    ++barrier.arrived;
    release_if_full(barrier, expected);
}
void wait(const Barrier& barrier, int round) {
    while (barrier.round == round) pause();
}
void arrive_and_wait(Barrier& barrier, int expected) {
    const int round = barrier.round;
    arrive(barrier, expected);
    wait(barrier, round);
}
Warp& warp() { return current->block->warps[current->thread / 32]; }

// Filled with ones (nan, -1), so that a read before the write shows.
unsigned char* shared_of(Block& block, const void* mark, size_t bytes) {
    for (Shared& s : block.shared)
        if (s.mark == mark) return (unsigned char*)s.memory.get();
    block.shared.push_back({mark, bytes, std::make_unique<std::max_align_t[]>(bytes / sizeof(std::max_align_t) + 1)});
    memset(block.shared.back().memory.get(), 0xff, bytes);
    return (unsigned char*)block.shared.back().memory.get();
}

void run_fiber() {
    kernel(arguments);
    Block& block = *current->block;
    Warp& own = warp();
    current->done = true;
    ++events;
    --block.alive, --own.alive, --cluster_alive;
    release_if_full(block.barrier, block.alive);
    release_if_full(own.barrier, own.alive);
    for (;;) pause();
}

void start(Fiber& fiber, Block& block, int thread) {
    if (!fiber.stack) fiber.stack = std::make_unique<char[]>(STACK);
    auto top = (void**)(((uintptr_t)fiber.stack.get() + STACK) & ~(uintptr_t)15);
    *--top = nullptr;             // where run_fiber would return to
    *--top = (void*)&run_fiber;   // where the first switch returns to
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.top = top, fiber.block = &block, fiber.thread = thread;
    fiber.mailbox = fiber.cluster_round = 0, fiber.done = false;
}

// How many lanes of a warp are left when none can go on.
int run_warp(size_t index, bool backwards) {
    for (;;) {
        int left = 0;
        const long before = events;
        for (int n = 0; n < 32; ++n) {
            Fiber& fiber = fibers[index * 32 + (backwards ? 31 - n : n)];
            if (fiber.done) continue;
            current = &fiber;
            fiber.block->started = true;
            switch_stack(&scheduler, fiber.top);
            left += !fiber.done;
        }
        if (!left || events == before) return left;
    }
}

bool run_cluster(int first, int size, int threads, unsigned schedule, std::mt19937& random) {
    blocks.clear();
    blocks.resize(size);
    fibers.resize((size_t)size * threads);
    cluster = Barrier();
    cluster_alive = size * threads;
    for (int rank = 0; rank < size; ++rank) {
        Block& block = blocks[rank];
        block.index = first + rank, block.rank = rank, block.alive = threads;
        block.warps.assign(threads / 32, Warp());
        for (int t = 0; t < threads; ++t) start(fibers[(size_t)rank * threads + t], block, t);
    }
    std::vector<size_t> order(fibers.size() / 32);
    for (size_t i = 0; i < order.size(); ++i) order[i] = schedule == 1 ? order.size() - 1 - i : i;
    for (;;) {
        const long before = events;
        int left = 0;
        if (schedule > 1) std::shuffle(order.begin(), order.end(), random);
        for (size_t index : order) left += run_warp(index, schedule & 1);
        if (!left) return true;
        if (events == before) {
            failure_text = "a barrier or shuffle is not reached by every thread";
            return false;
        }
    }
}

}  // namespace

namespace on_cpu {

int thread() { return current->thread; }
int block() { return current->block->index; }
int grid() { return blocks_of_grid; }
int rank() { return current->block->rank; }
void fail(const char* why) { failure_text = why; }
void* shared(const void* mark, size_t bytes) { return shared_of(*current->block, mark, bytes); }
void block_barrier() { arrive_and_wait(current->block->barrier, current->block->alive); }
void warp_barrier() { arrive_and_wait(warp().barrier, warp().alive); }
void cluster_arrive() {
    current->cluster_round = cluster.round;
    arrive(cluster, cluster_alive);
}
void cluster_wait() { wait(cluster, current->cluster_round); }

// Two mailboxes in turn: a lane may be one exchange ahead of another, not two.
void exchange(const void* mine, void* other, int bytes, int step) {
    Warp& own = warp();
    const int lane = current->thread % 32, box = current->mailbox ^= 1;
    memcpy(own.mail[box][lane], mine, bytes);
    arrive_and_wait(own.barrier, own.alive);
    memcpy(other, own.mail[box][lane ^ step], bytes);
}

void* remote(void* local, int rank) {
    for (Shared& s : current->block->shared) {
        const ptrdiff_t offset = (unsigned char*)local - (unsigned char*)s.memory.get();
        if (offset < 0 || offset >= (ptrdiff_t)s.bytes) continue;
        Block& there = blocks[rank];
        if (!there.started || !there.alive) fail("a write to a block that has not begun or has ended");
        return shared_of(there, s.mark, s.bytes) + offset;
    }
    fail("a write to another block, but not to its shared memory");
    return nullptr;
}

}  // namespace on_cpu

// With `flush`, subnormal numbers are taken for 0 and become 0, as CuPy has every kernel do it in float.
extern "C" int run_kernel(Body body, void** params, int grid, int block, int cluster_size, unsigned schedule, int flush) {
    failure_text = nullptr;
    if (block % 32 || block > 1024 || grid % cluster_size) {
        failure_text = "no launch of whole warps and clusters";
        return 1;
    }
    kernel = body;
    arguments = params;
    blocks_of_grid = grid;
    std::mt19937 random(schedule);
    const unsigned before = _mm_getcsr();
    if (flush) _mm_setcsr(before | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
    for (int first = 0; first < grid; first += cluster_size)
        if (!run_cluster(first, cluster_size, block, schedule, random)) break;
    _mm_setcsr(before);
    return failure_text != nullptr;
}
extern "C" const char* failure() { return failure_text ? failure_text : ""; }
