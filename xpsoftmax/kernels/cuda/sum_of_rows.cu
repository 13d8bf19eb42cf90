// Sum of the rows of a matrix, in parts: sums[b, j] = sum of x[r, j] over the rows r of part b.
//
// Layout   x (R, H), units adjacent, rows any number of elements apart; sums (parts, H), contiguous.
// Launch   a block of LANES x ROW_LANES threads for each LANES units and PART rows. The sums of the parts are added up in the
//          same way, until one is left.
// Traffic  one read. LANES neighbouring threads read LANES neighbouring units of a row.
//
// The order of the additions depends on the number of rows alone: the same bits in every run.
#include "reduce.cuh"

using Scalar = SCALAR;
constexpr int ROW_LANES = THREADS / LANES;

KERNEL __launch_bounds__(THREADS) void sum_of_rows(const Scalar* x, Long stride, Scalar* sums, Long rows, Long units,
                                                   Long groups) {
    SHARED_ARRAY(Scalar, partial, THREADS);
    const Long part = blockIdx.x / groups, j = blockIdx.x % groups * LANES + threadIdx.x % LANES;
    const int lane = threadIdx.x / LANES;
    const Long first = part * PART, end = first + PART < rows ? first + PART : rows;
    LongSum<Scalar> sum;
    if (j < units) {
#pragma unroll 4
        for (Long r = first + lane; r < end; r += ROW_LANES) sum.add(x[r * stride + j]);
    }
    partial[threadIdx.x] = sum.total();
    for (int step = ROW_LANES / 2; step > 0; step /= 2) {
        __syncthreads();
        if (lane < step) partial[threadIdx.x] += partial[threadIdx.x + step * LANES];
    }
    if (lane == 0 && j < units) sums[part * units + j] = partial[threadIdx.x];
}
