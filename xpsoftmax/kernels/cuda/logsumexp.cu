// Logarithm of the sum of exponentials of rows, seen from the largest logit: top + log1p(sum of the others).
//
// Layout, launch and limits as in softmax_loss.cu; sums (R,) has the type of the logits.
// Traffic  one read.
#include "rows.cuh"

ROW_KERNEL logsumexp(const Scalar* logits, Long logits_stride, Scalar* sums, Long rows, Long classes) {
    const Rows given = {logits, logits_stride, rows, classes};
    for_each_row(given, EVERY_ROW, [&](const Seat& seat, int& merges) {
        const bool inside = seat.row < rows;
        const Long r = inside ? seat.row : 0;

        Row row(given[r], classes, seat, inside);
        const SumBesideLargest sum = RowTeam::over_warps<0>(row.beside_largest(), merges++);
        const Real log_of_sum = log_of_rest(row, sum, merges);
        if (!inside || !seat.leads()) return;
        // An infinity is the sum itself, log(0) = -inf and log(inf) = inf, and the largest is nan if one is.
        const bool usable = sum.top > -Limits<Real>::infinity() && sum.top < Limits<Real>::infinity();
        sums[r] = narrowed<Scalar>(usable ? sum.top + log_of_sum : sum.top);
    });
}
