// CUDA threads as fibers, the blocks and clusters they belong to, and the barriers at which they wait.
//
// A fiber runs until it has to wait, or until it lets others go first: `let_others_go` is called where the order of
// threads may matter, and the schedule decides.
#pragma once
#include <algorithm>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
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

constexpr size_t STACK = 64 * 1024;
constexpr unsigned POISON = 0xff;  // nan in every floating type, and -1
using Body = void (*)(void**);

// For each cluster, how far each of its threads has come. Behind the threads of a cluster come its mbarriers.
using Times = std::map<int, std::vector<unsigned>>;

// What a thread knows of others when accesses are watched (watch.h). It sees what they wrote until `known`, and what they
// read until `past` they have read. The second is later where an asynchronous store came: it is done after what its thread
// did before, but does not show what that thread wrote (PTX ISA, "Asynchronous Operations").
struct Clock {
    Times known, past;
    void clear() { known.clear(), past.clear(); }
};

struct Barrier {
    int arrived = 0, round = 0;
    Clock gathered, released[2];
};
struct Warp {
    Barrier barrier;
    unsigned char mail[2][32][16];
    int alive = 32;
};
struct Shared {
    static constexpr size_t GUARD = 64;  // bytes on both sides that nobody may write
    const void* mark;
    size_t bytes, alignment;
    std::unique_ptr<unsigned char[]> memory;
    // A multiple of the alignment, and of nothing larger.
    unsigned char* first() const {
        return (unsigned char*)(((uintptr_t)memory.get() + GUARD + 127) & ~(uintptr_t)127) + alignment % 128;
    }
};
struct Cluster;
struct Fiber;
struct BarrierInMemory {  // an mbarrier: mbarriers.h
    unsigned component, expected, pending, phase = 0;
    long bytes = 0;  // announced and not yet there
    bool fenced = false, seen = true;
    bool remote[2] = {false, false};  // whether other blocks take part in the phases of this parity
    const Fiber* maker;
    std::vector<std::pair<const Fiber*, unsigned>> waiting;  // and for which phase
    Clock gathered, released[2];
};
struct Block {
    Cluster* cluster;
    int index, rank, alive;
    bool started = false;
    Barrier barrier;
    std::map<int, Barrier> numbered;
    std::vector<Warp> warps;
    std::vector<Shared> shared;
    std::map<void*, BarrierInMemory> mbarriers;
};
struct Cluster {
    int index, alive;
    unsigned components;  // of clocks: threads, and mbarriers
    Barrier barrier;
    std::vector<Block> blocks;
};
struct Fiber {
    std::unique_ptr<char[]> stack;
    void* top = nullptr;
    Block* block = nullptr;
    int thread = 0, mailbox = 0, cluster_round = 0;
    unsigned component = 0;
    bool done = false, delayed = false;
    const char* waits_at = "";
    long polled = -1;
    Clock clock;
};

// What is left open by CUDA, and decided by the number of the schedule.
struct Schedule {
    enum Order { FRONT, BACK, RANDOM };
    enum Arrival { LATE, AT_ONCE, ANY_TIME };
    std::mt19937 random;
    bool backwards;      // lanes of a warp
    Order order;         // of warps; of the clusters of the grid
    int resident;        // clusters that run at the same time
    Arrival arrival;     // of asynchronous stores and copies: when nobody can go on without it, at once, at any time
    Order pick;          // which of them arrives first
    int patience;        // of 4 times, how often a thread lets the others go first
    bool threads_first;  // when nobody else can go on: these threads go on before anything arrives

    explicit Schedule(unsigned number) : random(number), backwards(number & 1) {
        switch (number) {
            case 0: set(FRONT, 1, LATE, FRONT, 0, false); break;
            case 1: set(BACK, 1, LATE, BACK, 4, true); break;
            case 2: set(RANDOM, 2, AT_ONCE, RANDOM, 4, false); break;
            case 3: set(RANDOM, 4, ANY_TIME, RANDOM, 2, true); break;
            default: set(Order(below(3)), 1 + below(4), Arrival(below(3)), Order(below(3)), below(5), below(2));
        }
    }
    unsigned below(unsigned n) { return (unsigned)(random() % n); }

  private:
    void set(Order o, int r, Arrival a, Order p, int some, bool first) {
        order = o, resident = r, arrival = a, pick = p, patience = some, threads_first = first;
    }
};

std::vector<Fiber> fibers;
std::vector<std::unique_ptr<Cluster>> clusters;  // that run at this time
std::unique_ptr<Schedule> schedule;
unsigned schedule_number;
Fiber* current;
void* scheduler;
long events;  // barriers released, fibers ended, arrivals
std::string failure_text;
Body kernel;
void** arguments;
bool watched;  // accesses to memory are watched: watch.h

// The first failure counts: what comes after it may be its consequence.
void fail(const char* form, ...) {
    if (!failure_text.empty()) return;
    char text[300];
    va_list rest;
    va_start(rest, form);
    vsnprintf(text, sizeof text, form, rest);
    va_end(rest);
    failure_text = text;
}

void pause(const char* at) {
    current->waits_at = at;
    switch_stack(&current->top, scheduler);
}
// Others go on as far as they can.
void wait_for_others() {
    current->delayed = true;
    pause("a place where it lets others go first");
}
void let_others_go() {
    if ((int)schedule->below(4) >= schedule->patience) return;
    wait_for_others();
    ++events;
}

void join(Times& into, const Times& other) {
    for (const auto& [cluster, times] : other) {
        std::vector<unsigned>& mine = into[cluster];
        if (mine.size() < times.size()) mine.resize(times.size());
        for (size_t i = 0; i < times.size(); ++i) mine[i] = std::max(mine[i], times[i]);
    }
}
void join(Clock& into, const Clock& other) {
    join(into.known, other.known);
    join(into.past, other.past);
}
// What this thread does from now on is not covered by what it told before.
void step() {
    const int cluster = current->block->cluster->index;
    const unsigned time = ++current->clock.known[cluster][current->component];
    current->clock.past[cluster][current->component] = time;
}
void tell(Clock& into) {
    if (!watched) return;
    join(into, current->clock);
    step();
}
void hear(const Clock& from) {
    if (watched) join(current->clock, from);
}

void release_if_full(Barrier& barrier, int expected) {
    if (barrier.arrived > 0 && barrier.arrived >= expected) {
        barrier.arrived = 0;
        barrier.released[barrier.round & 1] = std::move(barrier.gathered);
        barrier.gathered.clear();
        ++barrier.round;
        ++events;
    }
}
void arrive(Barrier& barrier, int expected, bool orders_memory) {
    ++barrier.arrived;
    if (orders_memory) tell(barrier.gathered);
    release_if_full(barrier, expected);
}
void wait(const Barrier& barrier, int round, const char* at) {
    while (barrier.round == round) pause(at);
    hear(barrier.released[round & 1]);
}
void arrive_and_wait(Barrier& barrier, int expected, const char* at, bool orders_memory = true) {
    const int round = barrier.round;
    arrive(barrier, expected, orders_memory);
    wait(barrier, round, at);
}
Warp& warp() { return current->block->warps[current->thread / 32]; }

// Filled with poison, so that a read before the write shows.
Shared& shared_of(Block& block, const void* mark, size_t bytes, size_t alignment) {
    for (Shared& s : block.shared)
        if (s.mark == mark) return s;
    const size_t all = bytes + 2 * Shared::GUARD + 256;
    block.shared.push_back({mark, bytes, alignment, std::make_unique_for_overwrite<unsigned char[]>(all)});
    memset(block.shared.back().memory.get(), POISON, all);
    return block.shared.back();
}
// The array of a block's shared memory that holds all of these bytes, or null.
Shared* array_at(Block& block, const void* address, size_t bytes) {
    for (Shared& s : block.shared) {
        const ptrdiff_t offset = (const unsigned char*)address - s.first();
        if (offset >= 0 && offset + (ptrdiff_t)bytes <= (ptrdiff_t)s.bytes) return &s;
    }
    return nullptr;
}
Block* block_of_shared(const void* address, size_t bytes) {
    for (auto& cluster : clusters)
        for (Block& block : cluster->blocks)
            if (array_at(block, address, bytes)) return &block;
    return nullptr;
}

}  // namespace
