// The sum of a number over the lanes of a warp, for the small kernels, which use nothing of the package but ptx.cuh.
#pragma once
#include "ptx.cuh"

DEVICE unsigned sum_of_warp(unsigned x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
