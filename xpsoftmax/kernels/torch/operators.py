"""The row operations on tensors without derivatives; for a compiler as operators of `torch.library`.

The operators register no autograd of their own: `derivatives` has the rules.
"""

from __future__ import annotations

from typing import Any

import torch

from xpsoftmax._typing import Array
from xpsoftmax.kernels.torch import computing


def map_rows(operation: str, logits: Array, out: Array | None = None) -> Array:
    """See `computing.map_rows`."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.xpsoftmax, operation)(logits)
    return computing.map_rows(operation, logits, out)


def loss_rows(
    logits: Array,
    targets: Array,
    row_weight: Array,
    class_weight: Array | None,
    label_smoothing: float,
    z_loss: float,
    *,
    grad: bool,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """See `computing.loss_rows`."""
    arguments = logits, targets, row_weight, class_weight, label_smoothing, z_loss, grad
    if torch.compiler.is_compiling():
        return torch.ops.xpsoftmax.softmax_loss_rows(*arguments)  # type: ignore[no-any-return]
    return computing.loss_rows(*arguments, out=out)


# --- the operators ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("xpsoftmax::softmax_rows", mutates_args=())
def _softmax_operator(logits: torch.Tensor) -> torch.Tensor:
    return computing.map_rows("softmax_rows", logits)


@torch.library.custom_op("xpsoftmax::log_softmax_rows", mutates_args=())
def _log_softmax_operator(logits: torch.Tensor) -> torch.Tensor:
    return computing.map_rows("log_softmax_rows", logits)


@torch.library.custom_op("xpsoftmax::logsumexp_rows", mutates_args=())
def _logsumexp_operator(logits: torch.Tensor) -> torch.Tensor:
    return computing.map_rows("logsumexp_rows", logits)


@torch.library.custom_op("xpsoftmax::softmax_loss_rows", mutates_args=())
def _loss_operator(
    logits: torch.Tensor,
    targets: torch.Tensor,
    row_weight: torch.Tensor,
    class_weight: torch.Tensor | None,
    label_smoothing: float,
    z_loss: float,
    grad: bool,  # noqa: FBT001
) -> tuple[torch.Tensor, torch.Tensor]:
    return computing.loss_rows(logits, targets, row_weight, class_weight, label_smoothing, z_loss, grad)


@_softmax_operator.register_fake
@_log_softmax_operator.register_fake
def _like_logits(logits: Array) -> Array:
    return logits.new_empty(logits.shape)


@_logsumexp_operator.register_fake
def _one_a_row(logits: Array) -> Array:
    return logits.new_empty(logits.shape[:1])


@_loss_operator.register_fake
def _losses_and_grads(logits: Array, targets: Array, row_weight: Array, *options: Any) -> tuple[Array, Array]:  # noqa: ARG001
    return row_weight.new_empty(row_weight.shape), logits.new_empty(logits.shape if options[-1] else 0)
