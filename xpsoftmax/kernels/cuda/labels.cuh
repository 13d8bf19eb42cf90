// Labels of any integer type, read where they lie.
#pragma once
#include "ptx.cuh"

struct Labels {
    const void* first;
    int bytes;  // of a label: 1, 2, 4 or 8; negative for unsigned ones

    // As a signed number; unsigned ones from 2^63 on come out negative, and are no class either.
    DEVICE Long operator[](Long row) const {
        switch (bytes) {
            case 1: return ((const signed char*)first)[row];
            case 2: return ((const short*)first)[row];
            case 4: return ((const int*)first)[row];
            case -1: return ((const unsigned char*)first)[row];
            case -2: return ((const unsigned short*)first)[row];
            case -4: return ((const unsigned*)first)[row];
            default: return ((const Long*)first)[row];
        }
    }
};
