// Softmax loss of one label a row with label smoothing, and its gradient.
//
//   q[label] = kept + share     q[j] = share elsewhere     kept = 1 - eps, share = eps / C
//   loss[r] = weight[r] * (kept * -log p[label] + share * sum of -log p[j])        dlogits[r, j] = weight[r] * (p[j] - q[j])
//
// The sum of -log p[j] is C times that of the largest logit, and how far all are below it in sum: no term is negative.
//
// Layout, launch and limits as in softmax_loss.cu.
// Traffic  held: one read, one write. Streamed: two more reads.
#include "labels.cuh"
#include "rows.cuh"

ROW_KERNEL softmax_loss_smoothed(const Scalar* logits, Long logits_stride, const void* labels_first, int label_bytes,
                                 const Real* weights, Real weight_of_all, Real* losses, void* dlogits,
                                 Long dlogits_stride, int wide, Real kept, Real share, Long rows, Long classes) {
    RowTeam::begin();
    const Seat seat;
    const bool inside = seat.row < rows;
    const Long r = inside ? seat.row : 0;
    const Scalar* const start = logits + r * logits_stride;

    const Long label = inside ? Labels{labels_first, label_bytes}[r] : 0;
    const Real weight = !inside ? 0 : weights ? weights[r] : weight_of_all;
    const bool counts = weight != 0, is_class = label >= 0 && label < classes;
    const Real z_hot = counts && is_class ? widened(start[label]) : Limits<Real>::nan();

    Row row(start, classes, seat, counts);
    const Distances<Real> below = row.distances();
    const Exponentials<Real> others = row.others<1>(is_class ? label : -1);
    if (!inside) return;

    const Odds<Real> odds = against(others, z_hot);
    const Real factor = is_usable(others, z_hot) ? weight : Limits<Real>::nan();
    if (seat.leads()) {
        // Of another class than the label the largest is others.top, and the total that of exp(z - others.top).
        const Real of_largest = z_hot == below.top ? odds.loss : logarithm(odds.total);
        const Real of_label = kept != 0 ? kept * odds.loss : 0;  // 0 * inf
        losses[r] = counts ? (of_label + share * (Real(classes) * of_largest + below.sum)) * factor : 0;
    }
    if (dlogits == nullptr) return;
    const Output<Scalar> out(dlogits, r, dlogits_stride, wide);
    const Real pull = share * Real(classes - 1) * (odds.e_hot / odds.total);  // (1 - q) p of the label
    const Real of_label = counts ? (pull - (kept + share) * (odds.rest / odds.total)) * factor : 0;
    row.write_exponentials(out, others.top, odds.scale / odds.total * factor, of_label, !counts, share * factor);
}
