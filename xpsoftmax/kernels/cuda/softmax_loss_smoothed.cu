// Softmax loss of one label a row with label smoothing, and its gradient.
//
//   q[label] = kept + share     q[j] = share elsewhere     kept = 1 - eps, share = eps / C
//   loss[r] = weight[r] * (kept * -log p[label] + share * sum of -log p[j])        dlogits[r, j] = weight[r] * (p[j] - q[j])
//
// The sum of -log p[j] is C times -log p of the largest logit, plus all distances from it: no term is negative.
//
// Layout, launch and limits as in softmax_loss.cu.
// Traffic  held: one read, one write. Streamed: two more reads.
#include "labels.cuh"
#include "rows.cuh"

// The two sums of a row, which are merged together.
struct Sums {
    Distances<Real> below;
    Sum others;
    static DEVICE Sums none() { return {Distances<Real>::none(), Sum::none()}; }
    template <int WIDTH>
    DEVICE Sums over_lanes() const {
        return {below.over_lanes<WIDTH>(), others.over_lanes<WIDTH>()};
    }
};

ROW_KERNEL softmax_loss_smoothed(const Scalar* logits, Long logits_stride, const void* labels_first, int label_bytes,
                                 const Real* weights, Real weight_of_all, Real* losses, Result* dlogits,
                                 Long dlogits_stride, Real kept, Real share, Long rows, Long classes) {
    const Rows given = {logits, logits_stride, rows, classes};
    const auto weight_of = [&](Long r) { return weights ? weights[r] : weight_of_all; };
    const auto counted = [&](Long r) { return weight_of(r) != 0; };
    for_each_row(given, counted, [&](const Seat& seat, int& merges) {
        const bool inside = seat.row < rows;
        const Long r = inside ? seat.row : 0;
        const Scalar* const start = given[r];

        const Long label = inside ? Labels{labels_first, label_bytes}[r] : 0;
        const auto weight = [&] { return inside ? weight_of(r) : 0; };
        const bool counts = weight() != 0, is_class = label >= 0 && label < classes;

        Row row(start, classes, seat, counts);
        const Real z_hot = counts && is_class ? widened(start[label]) : Limits<Real>::nan();
        Distances<Real> below = row.distances();
        const Sum of_warp = row.others(is_class ? label : -1);
        below.count = row.count();
        const Sums sums = RowTeam::over_warps<0>(Sums{below.over_lanes<WARP_LANES>(), of_warp}, merges++);
        if (!inside) return;

        below = sums.below;
        const Exponentials<Real> others = sums.others.exponentials();
        const Odds<Real> odds = against(others, z_hot);
        const Real weighted = is_usable(others, z_hot) ? weight() : Limits<Real>::nan();
        if (seat.leads()) {
            // The largest logit belongs to another class: it is others.top, and the total is the sum of exp(z - others.top).
            const Real of_largest = z_hot == below.top ? odds.loss : logarithm(odds.total);
            const Real of_label = kept != 0 ? kept * odds.loss : 0;  // 0 * inf
            losses[r] = counts ? (of_label + share * (Real(classes) * of_largest + below.sum)) * weighted : 0;
        }
        if (dlogits == nullptr) return;
        const Real pull = share * Real(classes - 1) * (odds.e_hot / odds.total);  // (1 - q) p of the label
        const Real of_label = counts ? (pull - (kept + share) * (odds.rest / odds.total)) * weighted : 0;
        const Real factor = counts ? odds.scale / odds.total * weighted : 0;
        const Real minus = counts ? share * weighted : 0;
        row.write_exponentials<true>(dlogits + r * dlogits_stride, others.top, factor, of_label, minus);
    });
}
