"""The operations written with the Array API standard alone: the reference for every other kernel.

Every row operation takes rows (R, C) of float16, bfloat16, float32 or float64, works in float32 or wider, and treats
each row by itself. No code here branches on the value of an array, writes into an argument (except `out`) or moves data
between devices. The same code therefore runs eagerly, lazily and under a tracing compiler.

The idea behind the accuracy: a row is seen *from one class*, called hot (the label; the largest logit; the class of the
largest soft target). The other classes are summed without it, so nothing is ever subtracted from 1. See `odds`.
"""

from xpsoftmax.kernels.generic.arithmetic import narrowed, row_max, row_sum
from xpsoftmax.kernels.generic.arrays import are_classes, are_weights, as_0d, product, reshaped, some_rows, total
from xpsoftmax.kernels.generic.jacobian import (
    log_softmax_jvp_rows,
    log_softmax_vjp_rows,
    softmax_jacobian_rows,
    softmax_jvp_rows,
)
from xpsoftmax.kernels.generic.layers import (
    ROWS_OF_A_SUM,
    activation_backward,
    bias_activation,
    parameter_update,
    parameter_updates,
    sum_of_rows,
    sums_of_rows,
    weight_penalties,
    weight_penalty,
)
from xpsoftmax.kernels.generic.loss import (
    scratch_arrays,
    softmax_loss_and_logsumexp_rows,
    softmax_loss_rows,
    softmax_loss_total,
    undefined_rows,
)
from xpsoftmax.kernels.generic.softmax import log_softmax_rows, logsumexp_rows, softmax_rows
from xpsoftmax.kernels.generic.targets import (
    RowWeights,
    class_weight_at,
    class_weight_of,
    counted_rows,
    soft_targets,
    weigh_rows,
)

__all__ = [
    "ROWS_OF_A_SUM",
    "RowWeights",
    "activation_backward",
    "are_classes",
    "are_weights",
    "as_0d",
    "bias_activation",
    "class_weight_at",
    "class_weight_of",
    "counted_rows",
    "log_softmax_jvp_rows",
    "log_softmax_rows",
    "log_softmax_vjp_rows",
    "logsumexp_rows",
    "narrowed",
    "parameter_update",
    "parameter_updates",
    "product",
    "reshaped",
    "row_max",
    "row_sum",
    "scratch_arrays",
    "soft_targets",
    "softmax_jacobian_rows",
    "softmax_jvp_rows",
    "softmax_loss_and_logsumexp_rows",
    "softmax_loss_rows",
    "softmax_loss_total",
    "softmax_rows",
    "some_rows",
    "sum_of_rows",
    "sums_of_rows",
    "total",
    "undefined_rows",
    "weigh_rows",
    "weight_penalties",
    "weight_penalty",
]
