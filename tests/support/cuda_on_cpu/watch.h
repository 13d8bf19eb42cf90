// Every access to memory, where a run is watched: it must stay within the arrays given, and be in order with the accesses
// of other threads to the same place.
//
// The kernel is compiled with -fsanitize=thread, which calls __tsan_read4 and so on; these are here. Order is what barriers,
// mbarriers and counters make: each thread has a clock for what it knows of others (FastTrack: Flanagan and Freund, 2009).
// Shuffles order no memory.
#pragma once
#include "threads.h"

#include <dlfcn.h>
#include <unordered_map>

namespace {

struct Range {
    uintptr_t first, end;
};
std::vector<Range> given;  // global memory that the kernel may use, sorted; empty: any
constexpr unsigned NEVER = ~0u;

struct Access {
    enum Kind : unsigned char { READ, WRITE, ATOMIC };
    int cluster;
    unsigned component, time;
    Kind kind;
    bool for_copies = false;  // a write that asynchronous copies to the same place come after: fence_before_copies
};
// What was done to two bytes since their last write in order.
using Cell = std::vector<Access>;
std::unordered_map<uintptr_t, Cell> global_cells, shared_cells;

bool covers(const Times& all, const Access& access) {
    const auto times = all.find(access.cluster);
    return access.time != NEVER && times != all.end() && access.component < times->second.size() &&
           times->second[access.component] >= access.time;
}

bool is_async(const Access& access) {
    return access.component >= 32 * current->block->warps.size() * current->block->cluster->blocks.size();
}

std::string name_of(const Access& access) {
    const unsigned threads = 32 * (unsigned)current->block->warps.size();
    const unsigned blocks = (unsigned)current->block->cluster->blocks.size();
    if (is_async(access)) return "an asynchronous copy or store";
    return "thread " + std::to_string(access.component % threads) + " of block " +
           std::to_string((unsigned)access.cluster * blocks + access.component / threads);
}

// Whether the running thread comes after an access. What it overwrites need not be seen, only be done.
bool comes_after(const Access& other, Access::Kind kind) {
    const bool done_is_enough = other.kind == Access::READ || (kind == Access::WRITE && is_async(other));
    return covers(done_is_enough ? current->clock.past : current->clock.known, other);
}

void check(const Cell& cell, Access::Kind kind, bool shared) {
    for (const Access& other : cell) {
        if (kind == Access::READ && other.kind == Access::READ) continue;
        if (kind == Access::ATOMIC && other.kind == Access::ATOMIC) continue;
        if (comes_after(other, kind)) continue;
        const char* const names[] = {"reads", "writes", "counts in"};
        fail("no order between threads: thread %d of block %d %s %s memory that %s %s", current->thread,
             current->block->index, names[kind], shared ? "shared" : "global", name_of(other).c_str(), names[other.kind]);
        return;
    }
}

void note(Cell& cell, Access access) {
    if (access.kind == Access::WRITE) cell.clear();
    for (Access& other : cell)
        if (other.cluster == access.cluster && other.component == access.component && other.kind == access.kind) {
            other = access;
            return;
        }
    cell.push_back(access);
}

Access access_of_current(Access::Kind kind) {
    const int cluster = current->block->cluster->index;
    return {cluster, current->component, current->clock.known[cluster][current->component], kind};
}

// Run `each` for the cells of some bytes.
template <class Function>
void for_cells(const void* address, size_t bytes, bool shared, Function each) {
    auto& cells = shared ? shared_cells : global_cells;
    const uintptr_t first = (uintptr_t)address / 2, last = ((uintptr_t)address + bytes - 1) / 2;
    for (uintptr_t i = first; i <= last; ++i) each(cells[i]);
}

bool is_given(const void* address, size_t bytes) {
    if (given.empty()) return true;
    const uintptr_t first = (uintptr_t)address;
    auto after = std::upper_bound(given.begin(), given.end(), first, [](uintptr_t a, const Range& r) { return a < r.first; });
    return after != given.begin() && first + bytes <= (after - 1)->end;
}
void check_given(const void* address, size_t bytes, const char* what) {
    Dl_info in_a_library;  // a constant of the kernel
    if (is_given(address, bytes) || dladdr(address, &in_a_library)) return;
    fail("thread %d of block %d %s %zu bytes of memory that it was not given", current->thread, current->block->index, what,
         bytes);
    for (;;) pause("an access that failed");  // the run ends here: a write would destroy memory of this process
}

bool on_stack(const void* address) {
    return address >= current->stack.get() && address < current->stack.get() + STACK;
}

// An access of the running thread to its block's shared memory or to global memory.
void touch(const void* address, size_t bytes, Access::Kind kind) {
    if (!current || on_stack(address)) return;
    const bool shared = array_at(*current->block, address, bytes);
    if (!shared) check_given(address, bytes, kind == Access::READ ? "reads" : "writes");
    if (!watched) return;
    const Access access = access_of_current(kind);
    for_cells(address, bytes, shared, [&](Cell& cell) {
        check(cell, kind, shared);
        note(cell, access);
    });
}

}  // namespace

// Calls that g++ puts before each access of a watched kernel.
#define WATCH(size)                                                                                    \
    extern "C" void __tsan_read##size(void* p) { touch(p, size, Access::READ); }                       \
    extern "C" void __tsan_write##size(void* p) { touch(p, size, Access::WRITE); }                     \
    extern "C" void __tsan_unaligned_read##size(void* p) { touch(p, size, Access::READ); }             \
    extern "C" void __tsan_unaligned_write##size(void* p) { touch(p, size, Access::WRITE); }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
extern "C" void __tsan_read_range(void* p, size_t bytes) { touch(p, bytes, Access::READ); }
extern "C" void __tsan_write_range(void* p, size_t bytes) { touch(p, bytes, Access::WRITE); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
