// The norm of a vector from sums of squares that neither overflow nor underflow: of its large, medium and small entries,
// the large and small ones scaled by a power of two.
//
// Source: J. L. Blue, "A portable Fortran program to find the Euclidean norm of a vector", ACM TOMS 4 (1978), 15-23.
#pragma once
#include "last_block.cuh"

template <class Real>
struct Scales;
template <>
struct Scales<float> {
    static DEVICE float least_large() { return 0x1p40f; }
    static DEVICE float largest_small() { return 0x1p-40f; }
    static DEVICE float of_large() { return 0x1p-76f; }
    static DEVICE float of_small() { return 0x1p76f; }
};
template <>
struct Scales<double> {
    static DEVICE double least_large() { return 0x1p400; }
    static DEVICE double largest_small() { return 0x1p-400; }
    static DEVICE double of_large() { return 0x1p-538; }
    static DEVICE double of_small() { return 0x1p600; }
};

template <class Real>
struct Squares {
    Real large, medium, small;
    static DEVICE Squares none() { return {0, 0, 0}; }
    template <int WIDTH>
    DEVICE Squares over_lanes() const {
        return {sum_of_lanes<WIDTH>(large), sum_of_lanes<WIDTH>(medium), sum_of_lanes<WIDTH>(small)};
    }

    // Beside large entries small ones do not count. A nan is a medium entry.
    DEVICE Real norm() const {
        const Real large_scale = Scales<Real>::of_large(), small_scale = Scales<Real>::of_small();
        if (large > 0) return square_root(large + medium * large_scale * large_scale) / large_scale;
        if (medium == 0) return square_root(small) / small_scale;
        return square_root(medium + small / small_scale / small_scale);
    }
};

// The sums of the squares of the entries that one thread looks at.
template <class Real>
struct LongSquares {
    LongSum<Real> large, medium, small;

    DEVICE void add(Real x) {
        const Real size = x < 0 ? -x : x;
        if (size > Scales<Real>::least_large())
            large.add(squared(x * Scales<Real>::of_large()));
        else if (size < Scales<Real>::largest_small())
            small.add(squared(x * Scales<Real>::of_small()));
        else
            medium.add(squared(x));
    }
    DEVICE void add(const Squares<Real>& sums) {
        large.add(sums.large);
        medium.add(sums.medium);
        small.add(sums.small);
    }
    DEVICE Squares<Real> total() const { return {large.total(), medium.total(), small.total()}; }

  private:
    static DEVICE Real squared(Real x) { return x * x; }
};
