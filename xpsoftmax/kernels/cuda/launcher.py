"""The CUDA backend: its operations, and which arrays it refuses.

Everything happens on the current stream of the device that holds the arrays, and nothing is waited for. CuPy is
imported by this module and by those that only it imports.
"""

from __future__ import annotations

import cupy

from xpsoftmax._typing import Array
from xpsoftmax.kernels.cuda import plan
from xpsoftmax.kernels.cuda.capture import Runner
from xpsoftmax.kernels.cuda.launches import capability_of
from xpsoftmax.kernels.cuda.layers import activation_backward, bias_activation, parameter_updates
from xpsoftmax.kernels.cuda.losses import are_classes, softmax_loss_rows, softmax_loss_total
from xpsoftmax.kernels.cuda.rows import log_softmax_rows, logsumexp_rows, softmax_rows
from xpsoftmax.kernels.cuda.sums import sum_of_rows, sums_of_rows, total, weight_penalties
from xpsoftmax.kernels.cuda.weights import counted_rows, weigh_rows


def refusal(logits: Array) -> str | None:
    """Why the kernels cannot take these logits, or None. It is also called with labels, which have no class axis."""
    if cupy.cuda.runtime.is_hip:
        return "its kernels are written for NVIDIA GPUs"
    if logits.ndim > 1 and logits.shape[-1] > plan.MOST_CLASSES:
        return f"its kernels take at most {plan.MOST_CLASSES} classes"
    capability = capability_of(logits.data.device_id)
    if capability < plan.LEAST_CAPABILITY:
        return f"its kernels need compute capability 7.5, and the device has {capability / 10}"
    return None


__all__ = [
    "Runner",
    "activation_backward",
    "are_classes",
    "bias_activation",
    "counted_rows",
    "log_softmax_rows",
    "logsumexp_rows",
    "parameter_updates",
    "refusal",
    "softmax_loss_rows",
    "softmax_loss_total",
    "softmax_rows",
    "sum_of_rows",
    "sums_of_rows",
    "total",
    "weigh_rows",
    "weight_penalties",
]
