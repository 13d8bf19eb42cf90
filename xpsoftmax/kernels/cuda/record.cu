// The end of a step of training: whether all losses so far are finite, and where the next step begins.
//
// Layout   place: the first row of the batch in the order of the epoch, the number of this update, that of the next.
// Launch   one warp, of which one thread works.
#include "numbers.cuh"

using Scalar = SCALAR;

KERNEL void record(const Scalar* loss, unsigned char* finite, Long* place, Long rows) {
    if (threadIdx.x != 0) return;
    if (!is_finite(*loss)) *finite = 0;
    place[0] += rows;
    place[1] = place[2];
    place[2] += 1;
}
