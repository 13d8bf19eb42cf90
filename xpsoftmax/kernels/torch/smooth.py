"""The row operations on PyTorch tensors in a form whose derivatives PyTorch can take by itself, of every order.

PyTorch differentiates a program as it is written. The code of `generic` has an `abs`, a maximum or a `where` at points
where the function is smooth, and there the derivative of the program is not that of the function. Here the program is
smooth wherever the function is: one class of each row, the largest, is picked without a derivative, and the others are
looked at relative to it. With d[j] = z[j] - z[top] and r the sum of exp(d[j]) over the other classes,

    log p[j] = d[j] - log1p(r)        p[top] = 1 / (1 + r)        p[j] = exp(d[j]) / (1 + r)

holds for any class in the place of the top one, so nothing depends on the choice, and ties need no care. As in the
numerics contract, 1 - p is never formed where p may be near 1. Where no class has half of the probability (r >= 1) the
usual form, relative to a constant, has the more accurate derivatives.

This is what `torch.func`, forward-mode AD, compiled transforms and second derivatives use. It holds many arrays of the
size of the logits: the first derivative of a plain call is made by a kernel, see `computing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from array_api_compat import array_namespace

from xpsoftmax._typing import SIXTEEN_BIT, Array, LossSpec, dtype_name
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.activations import (
    GELU,
    GELU_CUBIC,
    GELU_SLOPE,
    IDENTITY,
    LOGISTIC,
    RELU,
    SILU,
    TANH,
    Activation,
)

__all__ = [
    "bias_activation",
    "log_softmax_rows",
    "logsumexp_rows",
    "softmax_jacobian_rows",
    "softmax_jvp_rows",
    "softmax_loss_rows",
    "softmax_rows",
]


class _Row(NamedTuple):
    """Rows of logits z (R, C) seen from their largest logit."""

    top: Array  # (R, C) of bool: one class for each row, picked without a derivative
    z_top: Array  # (R, 1)
    d: Array  # (R, C): z - z_top
    odds: Array  # (R, C): exp(d), 0 at the top class
    r: Array  # (R, 1): their sum
    sure: Array  # (R, 1): r < 1, that is p[top] > 1/2
    t: Array  # (R, C): z - a constant
    e: Array  # (R, C): exp(t)
    total: Array  # (R, 1): their sum, at least 1
    constant: Array  # (R, 1)


def _row(z: Array) -> _Row:
    constant, index = torch.max(z.detach(), dim=1, keepdim=True)
    top = torch.arange(z.shape[1], device=z.device)[None, :] == index
    z_top = torch.sum(torch.where(top, z, 0.0), dim=1, keepdim=True)
    d = torch.where(top, 0.0, z - z_top)  # at the top it is 0, and so is its derivative
    odds = torch.where(top, 0.0, torch.exp(d))
    r = torch.sum(odds, dim=1, keepdim=True)
    r = torch.where(torch.isfinite(constant), r, float("nan"))  # also of one class, and of others than an infinite one
    t = z - constant
    e = torch.exp(t)
    return _Row(top, z_top, d, odds, r, r.detach() < 1.0, t, e, torch.sum(e, dim=1, keepdim=True), constant)


def softmax_rows(logits: Array, out: None = None) -> Array:  # noqa: ARG001 - what is differentiated is not overwritten
    """See `generic.softmax_rows`."""
    return _narrowed(_softmax(_row(_working(logits))), logits)


def log_softmax_rows(logits: Array, out: None = None) -> Array:  # noqa: ARG001
    """See `generic.log_softmax_rows`."""
    return _narrowed(_log_softmax(_row(_working(logits))), logits)


def logsumexp_rows(logits: Array) -> Array:
    """See `generic.logsumexp_rows`."""
    row = _row(_working(logits))
    # Unlike a loss, the sum itself is known for rows that hold an infinity.
    lse = torch.where(torch.isfinite(row.constant), _logsumexp(row), row.constant)
    return _narrowed(lse[:, 0], logits)


def softmax_jvp_rows(logits: Array, tangent: Array) -> Array:
    """See `generic.softmax_jvp_rows`."""
    row = _row(logits)
    p = _softmax(row)
    v = tangent - torch.sum(torch.where(row.top, tangent, 0.0), dim=1, keepdim=True)
    return p * (v - torch.sum(p * v, dim=1, keepdim=True))


def softmax_jacobian_rows(logits: Array) -> Array:
    """See `generic.softmax_jacobian_rows`."""
    row = _row(logits)
    p = _softmax(row)
    others = torch.where(row.top, row.r / (1.0 + row.r), 1.0 - p)
    diagonal = torch.eye(p.shape[1], dtype=torch.bool, device=p.device)
    return torch.where(diagonal, (p * others)[:, :, None], -p[:, :, None] * p[:, None, :])


def softmax_loss_rows(
    logits: Array,
    targets: Array,
    row_weight: Array,
    spec: LossSpec,
    *,
    grad: bool = False,  # noqa: ARG001
    out: None = None,  # noqa: ARG001
) -> tuple[Array, None]:
    """See `generic.softmax_loss_rows`; the losses alone, of target masses of either sign."""
    z = _working(logits)
    poor = generic.undefined_rows(z.detach(), targets.detach())
    counted = row_weight.detach() != 0.0
    # Rows that must not count are replaced by zeros before anything is computed from them, if they are not finite.
    empty = (poor & ~counted)[:, None]
    z = torch.where(empty, 0.0, z)
    row_weight = torch.where(poor, torch.where(counted, float("nan"), 0.0), row_weight)
    row = _row(z)
    log_p = _log_softmax(row)
    largest = torch.finfo(z.dtype).max
    if targets.ndim == 1 and spec.label_smoothing == 0.0:
        hot = torch.arange(z.shape[1], device=z.device)[None, :] == targets[:, None]
        loss = -torch.sum(torch.where(hot, log_p, 0.0), dim=1)
    else:
        masses = torch.where(empty, 0.0, generic.soft_targets(array_namespace(z), z, targets, spec))
        # 0 * inf is 0 here; the derivative with respect to the mass is as large as it can be.
        loss = -torch.sum(masses * torch.where(masses.detach() == 0.0, log_p.clamp(min=-largest), log_p), dim=1)
    if spec.z_loss != 0.0:
        of_label = generic.class_weight_of(array_namespace(z), targets, spec)
        loss = loss + spec.z_loss * of_label * _logsumexp(row)[:, 0] ** 2
    return torch.where(counted, loss, loss.clamp(max=largest)) * row_weight, None


def bias_activation(
    z: Array,
    bias: Array,
    activation: Activation,
    *,
    grad: bool = False,  # noqa: ARG001
    out: None = None,  # noqa: ARG001
) -> tuple[Array, None]:
    """See `generic.bias_activation`; the activation alone."""
    return _ACTIVATIONS[activation](z + bias), None


def _relu(z: Array) -> Array:
    return torch.where(z <= 0.0, 0.0, z)  # its derivative at 0 is 0, and nan stays nan


def _tanh(z: Array) -> Array:
    a = torch.where(z < 0.0, -z, z)
    e = torch.exp(-2.0 * a)
    # PyTorch has 1 - tanh**2 for the slope, which is 0 from 19 on (9 in float32).
    value = torch.where(a < 0.5, torch.tanh(torch.where(a < 0.5, a, 0.0)), 1.0 - 2.0 * e / (1.0 + e))
    return torch.where(z < 0.0, -value, value)


def _logistic(z: Array) -> Array:
    negative = torch.exp(torch.where(z < 0.0, z, 0.0))
    positive = torch.exp(torch.where(z < 0.0, 0.0, -z))
    return torch.where(z < 0.0, negative / (1.0 + negative), 1.0 / (1.0 + positive))


def _gelu(z: Array) -> Array:
    near = torch.clamp(z, -100.0, 100.0)  # beyond, the slope of the logistic function is 0, and z * z must not overflow
    return z * _logistic(GELU_SLOPE * (near + GELU_CUBIC * near * near * near))


_ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    IDENTITY: lambda z: z,
    RELU: _relu,
    TANH: _tanh,
    LOGISTIC: _logistic,
    SILU: lambda z: z * _logistic(z),
    GELU: _gelu,
}
"""As `kernels.activations` has them, but differentiated by PyTorch as they should be, also at 0 and far from it."""


def _softmax(row: _Row) -> Array:
    relative = torch.where(row.top, 1.0, row.odds) / (1.0 + row.r)
    return torch.where(row.sure, relative, row.e / row.total)


def _log_softmax(row: _Row) -> Array:
    relative = row.d - torch.log1p(row.r)
    return torch.where(row.sure, relative, row.t - torch.log(row.total))


def _logsumexp(row: _Row) -> Array:
    return torch.where(row.sure, row.z_top + torch.log1p(row.r), row.constant + torch.log(row.total))


def _working(logits: Array) -> Array:
    return logits.to(torch.float32) if dtype_name(logits.dtype) in SIXTEEN_BIT else logits


def _narrowed(x: Array, logits: Array) -> Any:
    return x.to(logits.dtype)
