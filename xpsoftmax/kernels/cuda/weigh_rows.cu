// What each row weighs, by its label, its sample weight and the class weights; and whether all these values are good.
//
//     counting[i] = 0 for an ignored row, else sample_weight[i] * class_weight[label[i]]
//     weights[i] = counting[i] / (sum of all) for a mean, counting[i] for a sum
//
// A label that is no class has class weight 1. With `within`, the class weights are no part of weights[i], because the loss
// applies them to each class; they are part of counting[i]. Where the sum is 0 all weights are 0 and *correction is nan: there
// is no mean. Otherwise *correction is 0. Where the sum is not finite all weights are nan.
//
// Layout   labels, sample weights, counting and weights (R,); class weights (C,). Null: sample or class weights of 1. `ignores`
//          says whether rows of the label `ignored` are. *found becomes 1 where a row that is not ignored has no class, or a
//          weight is negative or not finite; null: nobody asks.
// Launch   a thread a row, in blocks of THREADS. The block that finishes last adds up and divides.
// Traffic  every array read once, counting and weights written, and read and written once more.
#include "last_block.cuh"

using Scalar = SCALAR;

DEVICE bool is_weight(Scalar x) { return x >= 0 && is_finite(x); }

KERNEL __launch_bounds__(THREADS) void weigh_rows(const Long* labels, const Scalar* sample_weights, const Scalar* class_weights,
                                                  int ignores, Long ignored, int within, int mean, Scalar* counting,
                                                  Scalar* weights, Scalar* total, Scalar* correction, int* found, Long rows,
                                                  Long classes, unsigned* counter) {
    const Long first = (Long)blockIdx.x * THREADS + threadIdx.x;
    bool bad = false;
    if (first < rows) {
        const Long label = labels[first];
        const bool is_ignored = ignores && label == ignored, is_class = label >= 0 && label < classes;
        const Scalar sample_weight = sample_weights != nullptr ? sample_weights[first] : 1;
        const Scalar of_label = class_weights != nullptr && is_class ? class_weights[label] : 1;
        const Scalar weight = is_ignored ? 0 : sample_weight;
        counting[first] = weight * of_label;
        weights[first] = within ? weight : weight * of_label;
        bad = (!is_class && !is_ignored) || !is_weight(sample_weight);
    }
    for (Long j = first; class_weights != nullptr && j < classes; j += (Long)gridDim.x * THREADS)
        bad = bad || !is_weight(class_weights[j]);
    if (bad && found != nullptr) *found = 1;  // all threads that write it write the same value

    if (!is_last_block(counter, gridDim.x)) return;
    const Scalar sum = sum_in_chains<THREADS>(counting, rows);
    if (threadIdx.x == 0) {
        *total = sum;
        *correction = mean && sum == 0 ? Limits<Scalar>::nan() : 0;
        *counter = 0;
    }
    for (Long i = threadIdx.x; mean && i < rows; i += THREADS)
        weights[i] = sum == 0 ? 0 : is_finite(sum) ? weights[i] / sum : Limits<Scalar>::nan();
}
