"""The loss of soft targets, and of labels with smoothing, on blocks of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from xpsoftmax._typing import Array, LossSpec
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.numpy_blocks import (
    RANGES,
    again,
    by_column,
    each_block,
    exponentials,
    places,
    row_max,
    row_sums,
    working,
)

LEAST_SMOOTHING = 1e-6
"""Below, the terms of smoothing no longer cover what is lost of the smallest probabilities."""


def loss_of_masses(
    logits: Array, targets: Array, row_weight: Array, spec: LossSpec, losses: Array, result: Array | None
) -> None:
    """Write the losses of rows of logits and, where there is a `result`, their gradients."""
    hard, grad = targets.ndim == 1, result is not None
    if spec.z_loss != 0.0 or spec.class_weight is not None or 0.0 < spec.label_smoothing < LEAST_SMOOTHING:
        way: Callable[..., tuple[Array, Array]] | None = None
    elif hard:
        way = partial(_loss_smoothed, smoothing=spec.label_smoothing)
    else:
        way = _loss_soft if spec.label_smoothing == 0.0 else None
    care = partial(loss_by_generic, spec=spec, grad=grad)

    def compute(z: Array, e: Array, *arrays: Array) -> None:
        *scratch, q, w, out = arrays
        if way is None:
            out[...] = care(z, e, q, w)
            return
        loss, safe = way(z, e, *scratch, q, w, grad=grad)
        if not safe.all():
            unsafe = np.flatnonzero(~safe)
            loss[unsafe] = again(care, unsafe, z, e, q, w, held=8)
        out[...] = loss

    scratch = (not hard) + (not grad)
    held = 8 if way is None else 1 if hard else 4
    each_block(compute, logits, result, targets, row_weight, losses, scratch=scratch, held=held)


def _loss_smoothed(
    z: Array, e: Array, labels: Array, weight: Array, *, smoothing: float, grad: bool
) -> tuple[Array, Array]:
    """Losses of rows of logits, and which of them are not safe; the gradient goes to `e`.

    Q = 1, q[j] = eps/C but at the label; sum of q[j] (log(total) - t[j]) from the sum of t, none of which is positive.
    """
    classes = e.shape[1]
    share = smoothing / classes
    block = working(z, e)
    flat, hot_at = e.reshape(-1), places(e, labels)
    top = row_max(block)
    behind = top.astype("f8") - block.reshape(-1)[hot_at]
    by_column(np.subtract, block, top, e)
    away = -row_sums(e).astype("f8", copy=False)
    exponentials(e, e)
    hot = flat[hot_at]
    flat[hot_at] = 0.0
    rest = row_sums(e)
    wide = rest.astype("f8", copy=False)
    log_total = np.where(behind == 0.0, np.log1p(wide), np.log(wide + hot))
    loss = (1.0 - smoothing) * (log_total + behind) + share * (classes * log_total + away)
    factor = weight / (rest + hot)
    if grad:
        by_column(np.multiply, e, factor, e)
        by_column(np.subtract, e, share * weight, e)
        q_hot, q_rest = 1.0 - smoothing + share, share * (classes - 1)
        flat[hot_at] = (q_rest * hot - q_hot * rest) * factor + 0.0
    return loss * weight, _counted_on(rest, factor, weight) & np.isfinite(loss)


def _loss_soft(z: Array, e: Array, q: Array, targets: Array, weight: Array, *, grad: bool) -> tuple[Array, Array]:
    """The same for soft targets; `q` is scratch."""
    flat = e.reshape(-1)
    np.copyto(q, targets)
    positive = q.reshape(-1)[places(q, q.argmin(axis=1))] >= 0.0
    hot_at = places(q, q.argmax(axis=1))
    q_hot = q.reshape(-1)[hot_at]
    block = working(z, e)
    top_at = places(block, block.argmax(axis=1))
    top = block.reshape(-1)[top_at]
    by_column(np.subtract, block, top, e)
    away = -row_sums(q, e).astype("f8", copy=False)
    q.reshape(-1)[hot_at] = 0.0
    q_rest = row_sums(q)
    np.exp(e, out=e)
    flat[top_at] = 0.0
    rest = row_sums(e)  # beside the largest
    flat[top_at] = 1.0
    loss = (q_rest + q_hot) * np.log1p(rest.astype("f8", copy=False)) + away
    total = rest + 1.0
    factor = weight / total
    if grad:
        hot = flat[hot_at]
        beside_hot = np.where(hot_at == top_at, rest, total - hot)  # a hot class that is not the largest is below half
        by_column(np.multiply, e, (q_rest + q_hot) * factor, e)
        by_column(np.multiply, q, weight, q)
        np.subtract(e, q, out=e)
        flat[hot_at] = (q_rest * hot - q_hot * beside_hot) * factor + 0.0
    # Targets of a sum above 1 make normal numbers of subnormal probabilities.
    safe = positive & (q_rest + q_hot <= 1.0 + 1e-4) & np.isfinite(loss) & _counted_on(rest, factor, weight)
    return loss * weight, safe


def _counted_on(rest: Array, factor: Array, weight: Array) -> Array:
    """Which shifted rows have no nan and all digits: the others so small that their digits are lost have not."""
    tiny, least_rest, _, _ = RANGES[rest.itemsize]
    return (rest >= least_rest) & ((factor >= tiny) | (weight == 0.0))


def loss_by_generic(z: Array, e: Array, targets: Array, weight: Array, spec: LossSpec, *, grad: bool) -> Array:
    """Losses of rows of logits with options of any kind, by the generic text; the gradient goes to `e`."""
    loss, dz = generic.softmax_loss_rows(z.astype(e.dtype, copy=False), targets, weight, spec, grad=grad)
    if dz is not None:
        np.add(dz, 0.0, out=e)  # +0 where the weight is
    return loss
