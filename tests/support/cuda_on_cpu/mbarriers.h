// Barriers in shared memory (mbarriers), and the stores and copies that report to them when they arrive.
//
// The schedule decides when and in which order they arrive. Until then their target is poisoned.
#pragma once
#include "watch.h"

namespace {

constexpr uint64_t COOKIE = 0x6d62617272696572;  // what an initialised barrier has in its memory
constexpr long MOST_BYTES = (1 << 20) - 1;

struct Transfer {
    Block* to;
    void* barrier;
    unsigned char* target;
    unsigned bytes;
    const void* source;  // of a copy; null for a store
    unsigned char value[16];
    const char* name;
    bool remote = false;  // from another block
    Times past;           // of the thread that started it
};
std::vector<Transfer> under_way;

// The initialised barrier at an address of a block, or null after a failure.
BarrierInMemory* barrier_at(Block& block, void* address) {
    auto found = block.mbarriers.find(address);
    if (found == block.mbarriers.end()) {
        fail("an mbarrier of block %d is used that is not initialised", block.index);
        return nullptr;
    }
    uint64_t state;
    memcpy(&state, address, sizeof state);
    if (state != COOKIE) {
        fail("the memory of an mbarrier is overwritten");
        return nullptr;
    }
    return &found->second;
}

// How late a thread may look that waits: at the latest while the next phase is incomplete, or it waits forever.
void check_waiting(const BarrierInMemory& barrier) {
    for (const auto& [fiber, phase] : barrier.waiting)
        if (phase + 1 == barrier.phase)
            fail("phase %u of an mbarrier is complete before thread %d of block %d has seen that phase %u was",
                 barrier.phase, fiber->thread, fiber->block->index, phase);
}

void complete_if_full(BarrierInMemory& barrier, int cluster) {
    if (barrier.pending > 0 || barrier.bytes != 0) return;
    check_waiting(barrier);
    if (watched) {
        for (Times* all : {&barrier.gathered.known, &barrier.gathered.past}) {
            std::vector<unsigned>& times = (*all)[cluster];
            if (times.size() <= barrier.component) times.resize(barrier.component + 1);
            times[barrier.component] = barrier.phase + 1;
        }
    }
    barrier.released[barrier.phase & 1] = std::move(barrier.gathered);
    barrier.gathered.clear();
    ++barrier.phase;
    barrier.remote[barrier.phase & 1] = false;
    barrier.pending = barrier.expected, barrier.seen = false;
    ++events;
}

void arrive_at(BarrierInMemory& barrier, unsigned bytes, int cluster) {
    if (!barrier.seen && barrier.pending == barrier.expected)
        fail("thread %d of block %d arrives in phase %u of an mbarrier, but nobody has waited for the phase before",
             current->thread, current->block->index, barrier.phase);
    if (barrier.pending == 0) return fail("more threads arrive at an mbarrier than the %u it expects", barrier.expected);
    barrier.bytes += bytes;
    if (barrier.bytes > MOST_BYTES) fail("an mbarrier expects more than 2^20 - 1 bytes");
    --barrier.pending;
    tell(barrier.gathered);
    ++events;
    complete_if_full(barrier, cluster);
}

void mark_async(const Transfer& t, unsigned phase) {
    if (!watched) return;
    const BarrierInMemory& barrier = t.to->mbarriers.at(t.barrier);
    const Access write{t.to->cluster->index, barrier.component, phase, Access::WRITE, true};
    for_cells(t.target, t.bytes, true, [&](Cell& cell) { cell.assign(1, write); });
    if (!t.source) return;
    Access read = write;
    read.kind = Access::READ;
    for_cells(t.source, t.bytes, false, [&](Cell& cell) {
        for (Access& other : cell)
            if (other.component == read.component && other.cluster == read.cluster && other.time == NEVER) other = read;
    });
}

void deliver(size_t number) {
    const Transfer t = under_way[number];
    under_way.erase(under_way.begin() + (ptrdiff_t)number);
    BarrierInMemory* barrier = barrier_at(*t.to, t.barrier);
    if (!barrier) return;
    memcpy(t.target, t.source ? t.source : t.value, t.bytes);
    mark_async(t, barrier->phase + 1);
    if (t.remote) barrier->remote[barrier->phase & 1] = true;
    join(barrier->gathered.past, t.past);
    barrier->bytes -= t.bytes;
    if (barrier->bytes < -MOST_BYTES) fail("an mbarrier got more than 2^20 - 1 bytes that nobody announced");
    ++events;
    complete_if_full(*barrier, t.to->cluster->index);
}

// One of the stores and copies that are under way; false if there is none.
bool deliver_one() {
    if (under_way.empty()) return false;
    const size_t last = under_way.size() - 1;
    deliver(schedule->pick == Schedule::FRONT ? 0 : schedule->pick == Schedule::BACK ? last : schedule->below(last + 1));
    return true;
}
void deliver_perhaps() {
    if (schedule->arrival == Schedule::ANY_TIME && schedule->below(4) == 0) deliver_one();
}

void check_source(const Transfer& t) {
    check_given(t.source, t.bytes, "copies");
    if (!watched) return;
    for_cells(t.source, t.bytes, false, [&](Cell& cell) { check(cell, Access::READ, false); });
    const BarrierInMemory& barrier = t.to->mbarriers.at(t.barrier);
    for_cells(t.source, t.bytes, false, [&](Cell& cell) {
        cell.push_back({t.to->cluster->index, barrier.component, NEVER, Access::READ});
    });
}

void check_target(const Transfer& t) {
    for_cells(t.target, t.bytes, true, [&](Cell& cell) {
        check(cell, Access::WRITE, true);
        for (const Access& other : cell)
            if (t.source && other.kind == Access::WRITE && !other.for_copies)
                fail("copy_bulk to where a thread wrote, without fence_before_copies between");
    });
}

void start_transfer(const Transfer& t) {
    const size_t size = t.source ? 16 : t.bytes;
    if ((uintptr_t)t.target % size || (uintptr_t)t.source % size || t.bytes % size || t.bytes == 0)
        return fail("%s of %u bytes, with an address or a size that is no multiple of %zu", t.name, t.bytes, size);
    BarrierInMemory* barrier = barrier_at(*t.to, t.barrier);
    if (!barrier) return;
    if (!array_at(*t.to, t.target, t.bytes)) return fail("%s beyond an array of shared memory", t.name);
    for (const Transfer& other : under_way)
        if (t.target < other.target + other.bytes && other.target < t.target + t.bytes)
            return fail("%s to where another one is still under way", t.name);
    if (watched) {
        check_target(t);
        if (t.source) check_source(t);
        for_cells(t.target, t.bytes, true, [&](Cell& cell) {
            cell.assign(1, {t.to->cluster->index, barrier->component, NEVER, Access::WRITE, true});
        });
    } else if (t.source) {
        check_given(t.source, t.bytes, "copies");
    }
    memset(t.target, POISON, t.bytes);
    under_way.push_back(t);
    if (watched) {
        under_way.back().past = current->clock.past;
        step();
    }
    if (schedule->arrival == Schedule::AT_ONCE) deliver(under_way.size() - 1);
    let_others_go();
}

// A block of the cluster whose shared memory holds these bytes; it must run.
Block* running_block(void* address, size_t bytes) {
    Block* block = block_of_shared(address, bytes);
    if (!block || block->cluster != current->block->cluster) {
        fail("an address that is not in the shared memory of this cluster");
        return nullptr;
    }
    if (block != current->block && (!block->started || !block->alive)) {
        fail("a write to a block that has not begun or has ended");
        return nullptr;
    }
    return block;
}

// For other blocks there is a barrier only after mbarrier_fence_init.
bool is_fenced(Block& block, void* address) {
    const BarrierInMemory* barrier = barrier_at(block, address);
    if (!barrier) return false;
    const bool fenced = barrier->fenced || &block == current->block;
    if (!fenced) fail("another block uses an mbarrier that was initialised without mbarrier_fence_init");
    return fenced;
}

// What must not be left when a block ends.
void check_end(Block& block) {
    for (const Transfer& t : under_way)
        if (t.to == &block) fail("block %d ends while %s is still under way to it", block.index, t.name);
    for (const auto& [address, barrier] : block.mbarriers)
        if (barrier.bytes != 0)
            fail("block %d ends with %ld bytes that %s", block.index, labs(barrier.bytes),
                 barrier.bytes > 0 ? "an mbarrier still expects" : "came to an mbarrier without being announced");
    for (const Shared& s : block.shared)
        for (size_t i = 0; i < Shared::GUARD; ++i)
            if (s.first()[-1 - (ptrdiff_t)i] != POISON || s.first()[s.bytes + i] != POISON)
                fail("block %d wrote beyond an array of shared memory", block.index);
}

}  // namespace

namespace on_cpu {

void mbarrier_init(void* address, unsigned arrivals) {
    Block& block = *current->block;
    if (arrivals < 1 || arrivals >= 1 << 20) return fail("an mbarrier for %u arrivals", arrivals);
    if ((uintptr_t)address % 8 || !array_at(block, address, 8)) return fail("an mbarrier that is not in shared memory");
    if (block.mbarriers.count(address)) return fail("an mbarrier is initialised twice");
    touch(address, 8, Access::WRITE);
    memcpy(address, &COOKIE, 8);
    BarrierInMemory& barrier = block.mbarriers[address];
    barrier.expected = barrier.pending = arrivals;
    barrier.component = block.cluster->components++;
    barrier.maker = current;
}

// Then even a barrier of the cluster that orders no memory shows the initialisation.
void mbarrier_fence_init() {
    for (auto& [address, barrier] : current->block->mbarriers) {
        if (barrier.maker != current) continue;
        barrier.fenced = true;
        for_cells(address, 8, true, [](Cell& cell) { cell.clear(); });
    }
}

void mbarrier_invalidate(void* address) {
    Block& block = *current->block;
    BarrierInMemory* barrier = barrier_at(block, address);
    if (!barrier) return;
    if (!barrier->waiting.empty()) fail("an mbarrier is invalidated while a thread waits at it");
    for (const Transfer& t : under_way)
        if (t.barrier == address) fail("an mbarrier is invalidated while %s is under way", t.name);
    touch(address, 8, Access::WRITE);
    memset(address, POISON, 8);
    block.mbarriers.erase(address);
}

void mbarrier_arrive(void* address, unsigned bytes) {
    Block& block = *current->block;
    BarrierInMemory* barrier = barrier_at(block, address);
    if (!barrier) return;
    touch(address, 8, Access::ATOMIC);
    arrive_at(*barrier, bytes, block.cluster->index);
    let_others_go();
}

void mbarrier_arrive_remote(void* address) {
    Block* block = running_block(address, 8);
    if (!block || !is_fenced(*block, address)) return;
    BarrierInMemory& barrier = block->mbarriers[address];
    if (block != current->block) barrier.remote[barrier.phase & 1] = true;
    arrive_at(barrier, 0, block->cluster->index);
    let_others_go();
}

void mbarrier_wait(void* address, unsigned parity, bool of_cluster) {
    BarrierInMemory* barrier = barrier_at(*current->block, address);
    if (!barrier) return;
    if (parity > 1) return fail("an mbarrier has parities 0 and 1, not %u", parity);
    touch(address, 8, Access::ATOMIC);
    const unsigned phase = (barrier->phase & 1) == parity ? barrier->phase : barrier->phase - 1;
    barrier->waiting.push_back({current, phase});
    while ((barrier->phase & 1) == parity) {
        pause("an mbarrier");
        if (!(barrier = barrier_at(*current->block, address))) return;
    }
    std::erase(barrier->waiting, std::pair<const Fiber*, unsigned>{current, phase});
    barrier->seen = true;
    if (phase == ~0u) return;  // the one before the first
    if (barrier->remote[parity] && !of_cluster)
        fail("what other blocks sent must be waited for with mbarrier_wait_cluster");
    hear(barrier->released[parity]);
    let_others_go();
}

void store_async(void* place, const void* value, unsigned bytes, void* address) {
    Block* block = running_block(place, bytes);
    if (!block) return;
    if (block->cluster->blocks.size() < 2) return fail("store_async outside of a cluster");
    if (running_block(address, 8) != block) return fail("store_async to one block, with the mbarrier of another");
    if (!is_fenced(*block, address)) return;
    Transfer t{block, address, (unsigned char*)place, bytes, nullptr, {}, "store_async"};
    memcpy(t.value, value, bytes);
    t.remote = block != current->block;
    start_transfer(t);
}

// Of what this thread has written itself or knows of.
void fence_before_copies() {
    for (auto& [place, cell] : shared_cells)
        for (Access& access : cell) access.for_copies |= covers(current->clock.known, access);
}

void copy_bulk(void* shared, const void* global, unsigned bytes, void* address) {
    start_transfer({current->block, address, (unsigned char*)shared, bytes, global, {}, "copy_bulk"});
}

}  // namespace on_cpu
