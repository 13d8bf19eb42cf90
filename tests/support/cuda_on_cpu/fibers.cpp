// Runs a kernel on a CPU, one fiber for each CUDA thread, some clusters of blocks at a time.
//
// A warp runs as far as it can before the next one gets its turn: the schedule that is least kind to a missing barrier.
// The number of the schedule decides about everything that CUDA leaves open (Schedule in threads.h).
#include "mbarriers.h"

#include <pmmintrin.h>

namespace {

void run_fiber() {
    kernel(arguments);
    Block& block = *current->block;
    Warp& own = warp();
    current->done = true;
    ++events;
    --block.alive, --own.alive, --block.cluster->alive;
    release_if_full(block.barrier, block.alive);
    release_if_full(own.barrier, own.alive);
    release_if_full(block.cluster->barrier, block.cluster->alive);
    if (!block.alive) check_end(block);
    for (;;) pause("its end");
}

void start(Fiber& fiber, Block& block, int thread, int threads) {
    if (!fiber.stack) fiber.stack = std::make_unique_for_overwrite<char[]>(STACK);
    auto top = (void**)(((uintptr_t)fiber.stack.get() + STACK) & ~(uintptr_t)15);
    *--top = nullptr;             // where run_fiber would return to
    *--top = (void*)&run_fiber;   // where the first switch returns to
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.top = top, fiber.block = &block, fiber.thread = thread;
    fiber.mailbox = fiber.cluster_round = 0, fiber.done = fiber.delayed = false, fiber.polled = -1;
    fiber.component = (unsigned)(block.rank * threads + thread);
    fiber.clock.clear();
    if (!watched) return;
    std::vector<unsigned>& times = fiber.clock.known[block.cluster->index];
    times.assign(block.cluster->components, 0);
    times[fiber.component] = 1;
    fiber.clock.past = fiber.clock.known;
}

// How many lanes of a warp are left when none can go on.
int run_warp(size_t index) {
    for (;;) {
        int left = 0;
        const long before = events;
        for (int n = 0; n < 32; ++n) {
            Fiber& fiber = fibers[index * 32 + (schedule->backwards ? 31 - n : n)];
            if (fiber.done) continue;
            ++left;
            if (fiber.delayed) continue;
            current = &fiber;
            fiber.block->started = true;
            switch_stack(&scheduler, fiber.top);
            current = nullptr;
            if (!failure_text.empty()) return left;
            left -= fiber.done;
        }
        if (!left || events == before) return left;
    }
}

// Threads that let others go first have waited long enough.
bool wake_the_patient() {
    bool some = false;
    for (Fiber& fiber : fibers) {
        some |= fiber.delayed;
        fiber.delayed = false;
    }
    return some;
}

void say_who_waits() {
    std::map<std::string, int> places;
    for (const Fiber& fiber : fibers)
        if (fiber.block && !fiber.done) ++places[fiber.waits_at];
    std::string text;
    for (const auto& [place, number] : places)
        text += (text.empty() ? "" : ", ") + std::to_string(number) + " at " + place;
    fail("threads wait forever: %s", text.c_str());
}

std::unique_ptr<Cluster> new_cluster(int index, int size, int threads) {
    auto cluster = std::make_unique<Cluster>();
    cluster->index = index, cluster->alive = size * threads, cluster->components = (unsigned)(size * threads);
    cluster->blocks.resize(size);
    for (int rank = 0; rank < size; ++rank) {
        Block& block = cluster->blocks[rank];
        block.cluster = cluster.get(), block.index = index * size + rank, block.rank = rank, block.alive = threads;
        block.warps.resize(threads / 32);
    }
    return cluster;
}

// Until all threads of the clusters have ended; false after a failure.
bool run_clusters(const std::vector<int>& indices, int size, int threads) {
    clusters.clear();
    shared_cells.clear();
    under_way.clear();
    for (int index : indices) clusters.push_back(new_cluster(index, size, threads));
    fibers.resize(indices.size() * size * threads);
    size_t next = 0;
    for (auto& cluster : clusters)
        for (Block& block : cluster->blocks)
            for (int t = 0; t < threads; ++t) start(fibers[next++], block, t, threads);
    std::vector<size_t> order(fibers.size() / 32);
    for (size_t i = 0; i < order.size(); ++i) order[i] = schedule->order == Schedule::BACK ? order.size() - 1 - i : i;
    for (int in_vain = 0; in_vain < 10'000;) {
        const long before = events;
        int left = 0;
        if (schedule->order == Schedule::RANDOM) std::shuffle(order.begin(), order.end(), schedule->random);
        for (size_t index : order) {
            left += run_warp(index);
            if (!failure_text.empty()) return false;
            deliver_perhaps();
        }
        if (!left) return failure_text.empty();
        in_vain = events == before ? in_vain + 1 : 0;
        if (events != before) continue;
        const bool threads_first = schedule->threads_first == (in_vain % 2 == 1);  // in turn, for those that only look
        if (threads_first ? wake_the_patient() || deliver_one() : deliver_one() || wake_the_patient()) continue;
        say_who_waits();
        return false;
    }
    say_who_waits();
    return false;
}

// The clusters of a grid in the order in which they run.
std::vector<int> order_of_clusters(int number) {
    std::vector<int> order(number);
    for (int i = 0; i < number; ++i) order[i] = schedule->order == Schedule::BACK ? number - 1 - i : i;
    if (schedule->order == Schedule::RANDOM) std::shuffle(order.begin(), order.end(), schedule->random);
    return order;
}

void run_grid(int grid, int threads, int size) {
    constexpr int MOST_FIBERS = 4096;
    const int at_once = std::max(1, std::min(schedule->resident, MOST_FIBERS / (size * threads)));
    const std::vector<int> order = order_of_clusters(grid / size);
    for (size_t first = 0; first < order.size(); first += at_once) {
        const size_t end = std::min(first + at_once, order.size());
        if (!run_clusters({order.begin() + first, order.begin() + end}, size, threads)) break;
    }
}

std::map<const unsigned*, Clock> clock_of_counter;
size_t dynamic_bytes;

}  // namespace

namespace on_cpu {

int thread() { return current->thread; }
int block() { return current->block->index; }
int rank() { return current->block->rank; }
int grid_size;
void fail(const char* why) { ::fail("%s", why); }
void* shared(const void* mark, size_t bytes, size_t alignment) {
    return shared_of(*current->block, mark, bytes, alignment).first();
}
void* dynamic_shared(const void* mark, size_t bytes) {
    if (bytes > dynamic_bytes) ::fail("a kernel uses %zu bytes of dynamic shared memory, and got %zu", bytes, dynamic_bytes);
    return shared(mark, bytes, 128);
}
void read(const void* address, size_t bytes) { touch(address, bytes, Access::READ); }
void write(const void* address, size_t bytes) { touch(address, bytes, Access::WRITE); }

void block_barrier() { arrive_and_wait(current->block->barrier, current->block->alive, "__syncthreads"); }
void warp_barrier() { arrive_and_wait(warp().barrier, warp().alive, "__syncwarp or a shuffle"); }
void numbered_barrier(int number, int threads) {
    if (number < 1 || number > 15 || threads < 32 || threads % 32)
        return ::fail("barrier_of(%d, %d): numbers are 1 to 15, threads are whole warps", number, threads);
    arrive_and_wait(current->block->numbered[number], threads, "barrier_of");
}
void cluster_arrive(bool orders_memory) {
    Cluster& cluster = *current->block->cluster;
    current->cluster_round = cluster.barrier.round;
    arrive(cluster.barrier, cluster.alive, orders_memory);
    let_others_go();
}
void cluster_wait() { wait(current->block->cluster->barrier, current->cluster_round, "a barrier of the cluster"); }

// Two mailboxes in turn: a lane may be one exchange ahead of another, not two.
void exchange(const void* mine, void* other, int bytes, int from) {
    Warp& own = warp();
    const int box = current->mailbox ^= 1;
    memcpy(own.mail[box][current->thread % 32], mine, bytes);
    arrive_and_wait(own.barrier, own.alive, "__syncwarp or a shuffle", false);
    memcpy(other, own.mail[box][from], bytes);
}

// Where another block of the cluster has what is at `local` in this one; null after a failure.
void* remote(const void* local, int rank) {
    Cluster& cluster = *current->block->cluster;
    Shared* array = array_at(*current->block, local, 1);
    if (!array || rank < 0 || rank >= (int)cluster.blocks.size()) {
        ::fail("a place in another block, but no shared memory of this one, or no such block");
        return nullptr;
    }
    const Shared& there = shared_of(cluster.blocks[rank], array->mark, array->bytes, array->alignment);
    return there.first() + ((unsigned char*)local - array->first());
}
void store_remote(void* local, int rank, const void* value, size_t bytes) {
    void* const there = remote(local, rank);
    if (!there || !running_block(there, bytes)) return;
    if (watched)
        for_cells(there, bytes, true, [&](Cell& cell) {
            check(cell, Access::WRITE, true);
            note(cell, access_of_current(Access::WRITE));
        });
    memcpy(there, value, bytes);
}

unsigned fetch_add(unsigned* counter, unsigned value) {
    let_others_go();
    touch(counter, sizeof *counter, Access::ATOMIC);
    const unsigned before = *counter;
    *counter += value;
    ++events;
    hear(clock_of_counter[counter]);
    tell(clock_of_counter[counter]);
    let_others_go();
    return before;
}
// A thread that looks again and again must let others go on.
unsigned load_acquire(const unsigned* address) {
    if (current->polled == events) wait_for_others();
    current->polled = events;
    touch(address, sizeof *address, Access::ATOMIC);
    hear(clock_of_counter[address]);
    return *address;
}
void store_release(unsigned* address, unsigned value) {
    let_others_go();
    touch(address, sizeof *address, Access::ATOMIC);
    clock_of_counter[address].clear();
    tell(clock_of_counter[address]);
    *address = value;
    ++events;
    let_others_go();
}

// By how many ulp exp2_approx is off for an argument: at most 2, and always as much for the same one.
int exp2_error(unsigned argument) {
    if (schedule_number < 3) return schedule_number == 0 ? 0 : schedule_number == 1 ? 2 : -2;
    uint64_t x = argument * 0x9e3779b97f4a7c15u + schedule_number * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (int)((x >> 33) % 5) - 2;
}

}  // namespace on_cpu

// The global memory that the next kernel may use: first and end of each part, in order; none: any.
extern "C" void give_memory(const uintptr_t* parts, int number) {
    given.clear();
    for (int i = 0; i < number; ++i) given.push_back({parts[2 * i], parts[2 * i + 1]});
}

// With `flush`, subnormal numbers are taken for 0 and become 0, as CuPy has every kernel do it in float.
extern "C" int run_kernel(Body body, void** params, int grid, int block, int cluster_size, size_t shared_bytes,
                          unsigned number, int flush, int watch) {
    failure_text.clear();
    if (block % 32 || block > 1024 || grid % cluster_size) {
        fail("no launch of whole warps and clusters");
        return 1;
    }
    kernel = body;
    arguments = params;
    watched = watch;
    dynamic_bytes = shared_bytes;
    on_cpu::grid_size = grid;
    schedule_number = number;
    schedule = std::make_unique<Schedule>(number);
    global_cells.clear();
    clock_of_counter.clear();
    const unsigned before = _mm_getcsr();
    if (flush) _mm_setcsr(before | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
    run_grid(grid, block, cluster_size);
    _mm_setcsr(before);
    given.clear();
    return !failure_text.empty();
}
extern "C" const char* failure() { return failure_text.c_str(); }
