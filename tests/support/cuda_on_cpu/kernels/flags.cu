// Warps one after the other: each waits until the one before it has published its number, and adds one.
//
// Launch   one block of THREADS threads; `flag` is 0 before
#include "ptx.cuh"

KERNEL __launch_bounds__(THREADS) void flags(unsigned* flag, unsigned* numbers) {
    if (threadIdx.x % 32 != 0) return;
    const unsigned mine = threadIdx.x / 32;
    while (load_acquire(flag) != mine) {
    }
    numbers[mine] = mine == 0 ? 1 : numbers[mine - 1] + 1;
    store_release(flag, mine + 1);
}
