// Sets *found to 1 if a label is not a class; *found must be 0 before.
//
// Launch   one thread a label, in blocks of THREADS. All threads that write it write the same value.
#include "labels.cuh"

KERNEL __launch_bounds__(THREADS) void bad_labels(const void* labels_first, int label_bytes, int* found, Long rows,
                                                  Long classes) {
    const Long r = (Long)blockIdx.x * THREADS + threadIdx.x;
    if (r >= rows) return;
    const Long label = Labels{labels_first, label_bytes}[r];
    if (label < 0 || label >= classes) *found = 1;
}
