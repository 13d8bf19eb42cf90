// Sums of the rows of matrices, all in one launch, in parts: sums[b, j] = sum of x[r, j] over the rows r of part b.
//
// Layout   x (R, H), units adjacent, rows any number of elements apart; sums (parts, H), contiguous. If `added`, to what they are.
// Launch   a block of LANES x ROW_LANES threads for each LANES units and PART rows. The sums of the parts are added up in the
//          same way, until one is left.
// Traffic  one read. LANES neighbouring threads read LANES neighbouring units of a row.
//
// The order of the additions depends on the number of rows alone: the same bits in every run.
#include "reduce.cuh"
#include "tables.cuh"

using Scalar = SCALAR;
constexpr int ROW_LANES = THREADS / LANES;

struct Rows {
    const Scalar* x;
    Long stride;
    Scalar* sums;
    Long rows, units, end;
};

KERNEL __launch_bounds__(THREADS) void sum_of_rows(const GRID_CONSTANT Table<Rows> table, int added) {
    SHARED_ARRAY(Scalar, partial, THREADS);
    const Share share(table);
    const Rows& of = table.items[share.item];
    const Long rows = of.rows, units = of.units, groups = (units + LANES - 1) / LANES;
    const Long part = share.block / groups, j = share.block % groups * LANES + threadIdx.x % LANES;
    const int lane = threadIdx.x / LANES;
    const Long first = part * PART, end = first + PART < rows ? first + PART : rows;
    const Scalar* const x = of.x;
    const Long stride = of.stride;
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
    if (lane != 0 || j >= units) return;
    Scalar* const sums = of.sums + part * units + j;
    *sums = added ? *sums + partial[threadIdx.x] : partial[threadIdx.x];
}
