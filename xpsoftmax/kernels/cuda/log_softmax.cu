// Logarithm of the softmax of rows, seen from the largest logit: out[r, j] = (z[j] - top) - log1p(sum of the others).
//
// Layout, launch and limits as in softmax_loss.cu; out may be the logits themselves.
// Traffic  held: one read, one write. Streamed: one more read.
#include "rows.cuh"

ROW_KERNEL log_softmax(const Scalar* logits, Long logits_stride, Result* out, Long out_stride, Long rows,
                       Long classes) {
    const Rows given = {logits, logits_stride, rows, classes};
    for_each_row(given, EVERY_ROW, [&](const Seat& seat, int& merges) {
        const bool inside = seat.row < rows;
        const Long r = inside ? seat.row : 0;

        Row row(given[r], classes, seat, inside);
        const SumBesideLargest sum = RowTeam::over_warps<0>(row.beside_largest(), merges++);
        const Real log_of_sum = log_of_rest(row, sum, merges);
        if (!inside) return;
        const bool usable = sum.top > -Limits<Real>::infinity() && sum.top < Limits<Real>::infinity();
        const Real loss = usable ? log_of_sum : Limits<Real>::nan();
        row.write_shifted(out + r * out_stride, sum.top, loss);
    });
}
