// Logarithm of the sum of exponentials of rows, seen from the largest logit: top + log1p(sum of the others).
//
// Layout, launch and limits as in softmax_loss.cu; sums (R,) has the type of the logits.
// Traffic  held: one read. Streamed: two.
#include "rows.cuh"

ROW_KERNEL logsumexp(const Scalar* logits, Long logits_stride, Scalar* sums, Long rows, Long classes) {
    RowTeam::begin();
    const Seat seat;
    const bool inside = seat.row < rows;
    const Long r = inside ? seat.row : 0;

    Row row(logits + r * logits_stride, classes, seat, inside);
    const Largest<Real> hot = row.largest();
    const bool found = hot.index < classes;
    const Exponentials<Real> others = row.others<1>(found ? hot.index : -1);
    if (!inside || !seat.leads()) return;
    // An infinity is the sum itself, log(0) = -inf and log(inf) = inf, and the largest is nan if one is.
    const Real sum = is_usable(others, hot.value) ? hot.value + against(others, hot.value).loss : hot.value;
    sums[r] = narrowed<Scalar>(sum);
}
