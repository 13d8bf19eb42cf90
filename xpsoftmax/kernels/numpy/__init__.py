"""The row operations on NumPy arrays: tiles of rows that stay in the cache, shared by threads."""

from xpsoftmax.kernels.numpy.layers import activation_backward, bias_activation
from xpsoftmax.kernels.numpy.logsumexp import logsumexp_rows
from xpsoftmax.kernels.numpy.loss import softmax_loss_and_logsumexp_rows, softmax_loss_rows, softmax_loss_total
from xpsoftmax.kernels.numpy.softmax import log_softmax_rows, softmax_rows
from xpsoftmax.kernels.numpy.updates import parameter_updates, weight_penalties
from xpsoftmax.kernels.numpy.values import are_classes, are_weights

__all__ = [
    "activation_backward",
    "are_classes",
    "are_weights",
    "bias_activation",
    "log_softmax_rows",
    "logsumexp_rows",
    "parameter_updates",
    "softmax_loss_and_logsumexp_rows",
    "softmax_loss_rows",
    "softmax_loss_total",
    "softmax_rows",
    "weight_penalties",
]
