// Logarithm of the softmax of rows, seen from the largest logit: out[r, j] = (z[j] - top) - log1p(sum of the others).
//
// Layout, launch and limits as in softmax_loss.cu; out may be the logits themselves.
// Traffic  held: one read, one write. Streamed: two more reads.
#include "rows.cuh"

ROW_KERNEL log_softmax(const Scalar* logits, Long logits_stride, void* out, Long out_stride, int wide, Long rows,
                       Long classes) {
    RowTeam::begin();
    const Seat seat;
    const bool inside = seat.row < rows;
    const Long r = inside ? seat.row : 0;

    Row row(logits + r * logits_stride, classes, seat, inside);
    const Largest<Real> hot = row.largest();
    const bool found = hot.index < classes;
    const Exponentials<Real> others = row.others<1, true>(found ? hot.index : -1);
    if (!inside) return;
    const Real loss = is_usable(others, hot.value) ? against(others, hot.value).loss : Limits<Real>::nan();
    row.write_shifted(Output<Scalar>(out, r, out_stride, wide), hot.value, loss, -loss);
}
