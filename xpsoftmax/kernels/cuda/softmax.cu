// Softmax of rows: out[r, j] = exp(z[j] - top) / sum of exp(z[k] - top).
//
// Layout, launch and limits as in softmax_loss.cu; out may be the logits themselves.
// Traffic  held: one read, one write. Streamed: one more read.
#include "rows.cuh"

ROW_KERNEL softmax(const Scalar* logits, Long logits_stride, Result* out, Long out_stride, Long rows, Long classes) {
    const Rows given = {logits, logits_stride, rows, classes};
    for_each_row(given, EVERY_ROW, [&](const Seat& seat, int& merges) {
        const bool inside = seat.row < rows;
        const Long r = inside ? seat.row : 0;

        Row row(given[r], classes, seat, inside);
        const Exponentials<Real> all = RowTeam::over_warps<0>(row.others(-1), merges++).exponentials();
        if (!inside) return;
        const Real factor = is_usable(all, all.top) ? 1 / all.sum : Limits<Real>::nan();
        row.write_exponentials(out + r * out_stride, all.top, factor, 0);
    });
}
