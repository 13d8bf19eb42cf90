"""The loss of labels with smoothing as the only option.

All masses but the label's are eps/C, so that no matrix of masses and only the sum of t = z - largest is needed:

    loss = (1 - eps) * (log(total) - t[label]) + eps/C * (C * log(total) - sum of t)

No t is positive: the sum cancels nothing.
"""

from __future__ import annotations

import numpy as np

from xpsoftmax._typing import Array, LossSpec
from xpsoftmax.kernels.numpy.mass_loss import label_loss_with_options
from xpsoftmax.kernels.numpy.primitives import by_column, exponentials, flat_index, row_max, row_sums, wide, working
from xpsoftmax.kernels.numpy.ranges import RANGES
from xpsoftmax.kernels.numpy.tiles import recompute

FEW_ROWS = 256
"""Rows up to which `argmax` finds the largest logits faster than one call for each class."""
LEAST_SMOOTHING = 1e-6
"""Below, the terms of the smoothing no longer cover what the smallest probabilities lose."""


def smoothed_loss(z: Array, e: Array, labels: Array, weight: Array, *, spec: LossSpec, grad: bool) -> Array:
    """Losses of smoothed labels, without class weights and z-loss; the gradient goes to `e`."""
    loss, unsafe = _loss_and_unsafe_rows(z, e, labels, weight, smoothing=spec.label_smoothing, grad=grad)
    if unsafe is not None:
        compute = label_loss_with_options(spec, z, grad=grad)
        loss[unsafe] = recompute(compute, unsafe, z, e, labels, weight, cached=0)
    return loss


def _loss_and_unsafe_rows(
    z: Array, e: Array, labels: Array, weight: Array, *, smoothing: float, grad: bool
) -> tuple[Array, Array | None]:
    classes = e.shape[1]
    share = smoothing / classes
    tile = working(z, e)
    flat, label_at = e.reshape(-1), flat_index(e, labels)
    few = tile.shape[0] <= FEW_ROWS
    top = tile.reshape(-1)[flat_index(tile, tile.argmax(axis=1))] if few else row_max(tile)
    behind = top.astype("f8") - tile.reshape(-1)[label_at]  # -t[label]
    by_column(np.subtract, tile, top, e)
    minus_sum_of_t = -row_sums(e).astype("f8", copy=False)
    exponentials(e, e)
    hot = flat[label_at]
    flat[label_at] = 0.0
    rest = row_sums(e)
    total = wide(rest)
    log_total = np.where(behind == 0.0, np.log1p(total), np.log(total + hot))
    loss = (1.0 - smoothing) * (log_total + behind) + share * (classes * log_total + minus_sum_of_t)
    factor = weight / (rest + hot)
    if grad:
        by_column(np.multiply, e, factor, e)
        by_column(np.subtract, e, share * weight, e)
        q_hot, q_rest = 1.0 - smoothing + share, share * (classes - 1)
        flat[label_at] = (q_rest * hot - q_hot * rest) * factor + 0.0
    # Three look-ups in place of ten passes for the masks: with few rows, the number of calls is what costs time.
    tiny = RANGES[e.itemsize].tiny
    finite = -np.inf < loss.item(loss.argmin()) and loss.item(loss.argmax()) < np.inf
    if finite and factor.item(factor.argmin()) >= tiny:
        loss *= weight
        return loss, None
    known = np.isfinite(loss)
    if not known.all():  # an infinite loss is right if a class is impossible, but not if a sum overflowed
        rows = np.flatnonzero(loss == np.inf)
        known[rows] = z[rows].min(axis=1) == -np.inf
    unsafe = np.flatnonzero(~(known & ((factor >= tiny) | (weight == 0.0))))
    return np.where(weight == 0.0, 0.0, loss * weight), unsafe if unsafe.size else None
