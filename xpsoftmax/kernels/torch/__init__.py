"""The row operations on PyTorch tensors: the kernels for NumPy and CuPy, with derivative rules of their own.

A tensor in host memory is read as a NumPy array, one on an NVIDIA GPU as a CuPy array, without a copy. No single
`torch.autograd.Function` supports all that PyTorch can do with a function. Each operation therefore has three
implementations, and each call chooses one:

- Eager: a plain `Function` without `setup_context`, `vmap` and `jvp`, each of which costs more than a small loss.
- `torch.func`, forward-mode AD and second derivatives: the code of `smooth`, which PyTorch differentiates by itself.
- While compiling: the same `Function` around operators of `torch.library`, which register no autograd of their own.

This package imports PyTorch. `select` loads it for tensors only.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from xpsoftmax._typing import Array, LossSpec
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.activations import Activation
from xpsoftmax.kernels.torch import derivatives, smooth
from xpsoftmax.kernels.torch.modes import is_differentiated, is_transformed, refusal
from xpsoftmax.kernels.torch.operators import loss_rows, map_rows
from xpsoftmax.kernels.torch.tensors import working_dtype

__all__ = [
    "bias_activation",
    "log_softmax_rows",
    "logsumexp_rows",
    "refusal",
    "softmax_jacobian_rows",
    "softmax_jvp_rows",
    "softmax_loss_rows",
    "softmax_rows",
    "texts",
]


def softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `generic.softmax_rows`."""
    return _mapped("softmax_rows", logits, out)


def log_softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `generic.log_softmax_rows`."""
    return _mapped("log_softmax_rows", logits, out)


def logsumexp_rows(logits: Array) -> Array:
    """See `generic.logsumexp_rows`."""
    return _mapped("logsumexp_rows", logits, None)


def softmax_jvp_rows(logits: Array, tangent: Array) -> Array:
    """See `generic.softmax_jvp_rows`."""
    text = smooth if is_differentiated(logits, tangent) else generic
    return text.softmax_jvp_rows(logits, tangent)


def softmax_jacobian_rows(logits: Array) -> Array:
    """See `generic.softmax_jacobian_rows`."""
    return (smooth if is_differentiated(logits) else generic).softmax_jacobian_rows(logits)


def softmax_loss_rows(
    logits: Array, targets: Array, row_weight: Array, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `generic.softmax_loss_rows`. The losses can be differentiated; with `grad` nothing can."""
    arrays = *_plain_rows(logits, targets, row_weight), spec.class_weight
    options = spec.label_smoothing, spec.z_loss
    if grad or not is_differentiated(*arrays):
        losses, dlogits = loss_rows(*arrays, *options, grad=grad, out=out)
        return losses, dlogits if grad else None
    if is_transformed() or (torch.compiler.is_compiling() and any(_requires_grad(x) for x in arrays[1:])):
        return smooth.softmax_loss_rows(*arrays[:3], spec)
    return derivatives.losses(*arrays[:3], spec), None


def _plain_rows(logits: Array, targets: Array, row_weight: Array | float) -> tuple[Array, Array, Array]:
    """Labels in the index dtype, and one weight for each row. The caller may have other dtypes, and a single number."""
    if targets.ndim == 1 and targets.dtype != torch.int64:
        targets = targets.to(torch.int64)
    if isinstance(row_weight, float):
        row_weight = logits.new_full(targets.shape[:1], row_weight, dtype=working_dtype(logits))
    return logits, targets, row_weight


def bias_activation(
    z: Array, bias: Array, activation: Activation, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `generic.bias_activation`."""
    text: Any = smooth if is_differentiated(z, bias) and not grad else generic
    return text.bias_activation(z, bias, activation, grad=grad, out=out)  # type: ignore[no-any-return]


def _text(operation: str) -> Callable[..., Any]:
    def compute(*arguments: Any, **options: Any) -> Any:
        arrays = [x.class_weight if isinstance(x, LossSpec) else x for x in arguments]
        tensors = [x for x in arrays if isinstance(x, torch.Tensor)]
        text = smooth if is_differentiated(*tensors) and not options.get("grad") else generic
        return getattr(text, operation)(*arguments, **options)

    return compute


texts = SimpleNamespace(**{operation: _text(operation) for operation in smooth.__all__})
"""The operations without kernels, for tensors that these do not take and for impl="generic"."""


def _mapped(operation: str, logits: Array, out: Array | None) -> Array:
    if not is_differentiated(logits):
        return map_rows(operation, logits, out)
    return getattr(smooth, operation)(logits) if is_transformed() else derivatives.mapped(operation, logits)


def _requires_grad(tensor: Array | None) -> bool:
    return tensor is not None and bool(tensor.requires_grad)
