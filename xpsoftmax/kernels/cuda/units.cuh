// Matrices of units (R, H), element by element: one 16-byte vector of a row to each thread.
//
// The launcher gives -D SCALAR (float or double) and THREADS. A row has 2^lane_bits threads: as many as it has vectors, counted
// from the 16-byte boundary before the row, rounded up to a power of two.
#pragma once
#include "vectors.cuh"

using Scalar = SCALAR;
constexpr int PER = PER_VECTOR<Scalar>;

struct Place {
    Long row, position;

    DEVICE Place(int lane_bits) {
        const Long index = (Long)blockIdx.x * THREADS + threadIdx.x;
        row = index >> lane_bits;
        position = (index & ((1ll << lane_bits) - 1)) * PER;
    }
};
