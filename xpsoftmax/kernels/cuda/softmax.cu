// Softmax of rows: out[r, j] = exp(z[j] - top) / sum of exp(z[k] - top).
//
// Layout, launch and limits as in softmax_loss.cu; out may be the logits themselves.
// Traffic  held: one read, one write. Streamed: one more read.
#include "rows.cuh"

ROW_KERNEL softmax(const Scalar* logits, Long logits_stride, void* out, Long out_stride, int wide, Long rows,
                   Long classes) {
    RowTeam::begin();
    const Seat seat;
    const bool inside = seat.row < rows;
    const Long r = inside ? seat.row : 0;

    Row row(logits + r * logits_stride, classes, seat, inside);
    const Exponentials<Real> all = row.others<0>(-1);
    if (!inside) return;
    // A nan or +inf makes the sum nan; -inf alone makes it 0, and 0 / 0 is nan, too.
    row.write_exponentials(Output<Scalar>(out, r, out_stride, wide), all.top, 1 / all.sum, 0, false);
}
