// Softmax loss of one label a row, and its gradient.
//
//   loss[r] = weight[r] * -log p[label]        dlogits[r, j] = weight[r] * (p[j] - (j == label))
//
// Layout   logits and dlogits (R, C), classes adjacent, rows any number of elements apart; dlogits may be the logits
//          themselves, or null: then only the loss is computed. weights (R,), or null: then all are weight_of_all.
// Launch   one row to LANES threads (several rows a block), to one block, or to a cluster of BLOCKS blocks: see rows.cuh.
// Limits   held: LANES * VECTORS * BLOCKS vectors must cover the row and its shift (the launcher checks); C < 2^31 - 16.
// Traffic  held: every logit read once, every gradient written once. Streamed: one more read.
//
// A label out of range is read nowhere, and makes its row nan. A row of weight 0 is not read at all and gets zeros.
#include "labels.cuh"
#include "rows.cuh"

ROW_KERNEL softmax_loss(const Scalar* logits, Long logits_stride, const void* labels_first, int label_bytes,
                        const Real* weights, Real weight_of_all, Real* losses, void* dlogits, Long dlogits_stride,
                        int wide, Long rows, Long classes) {
    RowTeam::begin();
    const Seat seat;
    const bool inside = seat.row < rows;
    const Long r = inside ? seat.row : 0;
    const Scalar* const start = logits + r * logits_stride;

    const Long label = inside ? Labels{labels_first, label_bytes}[r] : 0;
    const Real weight = !inside ? 0 : weights ? weights[r] : weight_of_all;
    const bool counts = weight != 0, is_class = label >= 0 && label < classes;
    // One load for all threads of the row, done before any of them writes in its place (there is a barrier between).
    const Real z_hot = counts && is_class ? widened(start[label]) : Limits<Real>::nan();

    Row row(start, classes, seat, counts);
    const Exponentials<Real> others = row.others<0>(is_class ? label : -1);
    if (!inside) return;

    const Odds<Real> odds = against(others, z_hot);
    const Real share = is_usable(others, z_hot) ? weight : Limits<Real>::nan();
    if (seat.leads()) losses[r] = counts ? odds.loss * share : 0;
    if (dlogits == nullptr) return;
    const Output<Scalar> out(dlogits, r, dlogits_stride, wide);
    const Real of_label = counts ? 0 - odds.rest / odds.total * share : 0;  // never p - 1
    row.write_exponentials(out, others.top, odds.scale / odds.total * share, of_label, !counts);
}
