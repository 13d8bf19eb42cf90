// Softmax loss of one label a row, and its gradient.
//
//   loss[r] = weight[r] * -log p[label]        dlogits[r, j] = weight[r] * (p[j] - (j == label))
//
// Layout   logits and dlogits (R, C), classes adjacent, rows any number of elements apart; dlogits may be the logits
//          themselves, or null: then only the loss is computed. weights (R,), or null: then all are weight_of_all.
//          total (), or null: the sum of the losses, added up by the block that finishes last (last_block.cuh).
// Launch   one row to LANES threads (several rows a block), to one block, or to a cluster of BLOCKS blocks: see rows.cuh. A
//          kernel with one block a multiprocessor takes row after row, and its grid need not have all of them. With a ring
//          (ring.cuh) a block has 32 threads more, and needs dynamic shared memory.
// Limits   held: LANES * VECTORS * BLOCKS must be at least the row's whole vectors (the launcher checks); C < 2^31 - 16.
// Traffic  held: every logit read once, every gradient written once. Streamed: one more read.
//
// No logit is read for a label out of range; its row becomes nan. A row of weight 0 is not read at all and gets zeros.
#include "labels.cuh"
#include "last_block.cuh"
#include "rows.cuh"

ROW_KERNEL softmax_loss(const Scalar* logits, Long logits_stride, const void* labels_first, int label_bytes,
                        const Real* weights, Real weight_of_all, Real* losses, Result* dlogits, Long dlogits_stride,
                        Real* total, unsigned* counter, Long rows, Long classes) {
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
        // One load for all threads of the row, done before any of them writes in its place (there is a barrier between).
        const Real z_hot = counts && is_class ? widened(start[label]) : Limits<Real>::nan();
        const Exponentials<Real> others =
            RowTeam::over_warps<0>(row.others(is_class ? label : -1), merges++).exponentials();
        if (!inside) return;

        const Odds<Real> odds = against(others, z_hot);
        const Real share = is_usable(others, z_hot) ? weight() : Limits<Real>::nan();
        if (seat.leads()) losses[r] = counts ? odds.loss * share : 0;
        if (dlogits == nullptr) return;
        const Real factor = counts ? odds.scale / odds.total * share : 0;
        const Real of_label = counts ? 0 - odds.rest / odds.total * share : 0;  // never p - 1
        row.write_exponentials(dlogits + r * dlogits_stride, others.top, factor, of_label);
    });
    // Only the first block of a cluster writes losses.
    if (total != nullptr && (BLOCKS == 1 || cluster_rank() == 0))
        add_up_in_last_block<THREADS>(losses, rows, total, counter, gridDim.x / BLOCKS);
}
