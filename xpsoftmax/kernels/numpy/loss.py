"""The loss and its gradient on NumPy arrays: which method computes which targets and options.

labels                                         label_loss
labels, smoothing only                         smoothed_loss
labels, class weights in the masses, z-loss    mass_loss, as for soft targets
soft targets                                   mass_loss
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from xpsoftmax._typing import Array, LossSpec
from xpsoftmax.kernels.numpy.label_loss import label_loss
from xpsoftmax.kernels.numpy.logsumexp import logsumexp_of_tile
from xpsoftmax.kernels.numpy.mass_loss import label_loss_with_options, soft_target_loss
from xpsoftmax.kernels.numpy.primitives import SHORT
from xpsoftmax.kernels.numpy.smoothed_loss import LEAST_SMOOTHING, smoothed_loss
from xpsoftmax.kernels.numpy.tiles import fit_one_tile, for_each_tile

_INT64 = np.dtype(np.int64)
BYTES_OF_ROW = 200
"""Bytes of the numbers that `mass_loss` computes once a row."""


def softmax_loss_rows(
    logits: Array, targets: Array, row_weight: Array | float, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.softmax_loss_rows`."""
    return _loss_rows(logits, targets, row_weight, spec, None, grad=grad, out=out)


def softmax_loss_and_logsumexp_rows(
    logits: Array, targets: Array, row_weight: Array | float, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None, Array]:
    """See `xpsoftmax.kernels.generic.softmax_loss_and_logsumexp_rows`."""
    sums = np.empty(logits.shape[0], logits.dtype if logits.itemsize >= 4 else np.float32)
    return *_loss_rows(logits, targets, row_weight, spec, sums, grad=grad, out=out), sums


def _loss_rows(
    logits: Array,
    targets: Array,
    row_weight: Array | float,
    spec: LossSpec,
    sums: Array | None,
    *,
    grad: bool,
    out: Array | None,
) -> tuple[Array, Array | None]:
    """Losses and gradient; the logsumexp of each row goes to `sums`, if it is wanted."""
    losses = np.empty(logits.shape[0], logits.dtype if logits.itemsize >= 4 else np.float32)
    result = (np.empty(logits.shape, logits.dtype) if out is None else out) if grad else None
    if type(row_weight) is float:
        weight, row_weight = row_weight, np.empty_like(losses)
        row_weight.fill(weight)
    if targets.ndim == 1 and targets.dtype is not _INT64:
        targets = targets.astype(_INT64)
    if targets.ndim == 1 and not spec.labels_known:
        targets, row_weight = _valid_labels(targets, row_weight, logits.shape[1])
    if targets.ndim == 1 and spec.label_smoothing == 0.0:
        cached = 4 if logits.shape[1] <= SHORT else 1  # short rows may be computed in float64
        if grad and out is None and fit_one_tile(logits, cached):
            label_loss(logits, result, targets, row_weight, losses, sums, z_loss=spec.z_loss, grad=True)
            return losses, result
        compute = partial(label_loss, z_loss=spec.z_loss, grad=grad)
        per_row = (targets, row_weight, losses) if sums is None else (targets, row_weight, losses, sums)
        for_each_tile(compute, logits, result, *per_row, scratch=0 if grad else 1, cached=cached)
    else:
        _loss_with_options(logits, targets, row_weight, spec, losses, sums, result)
    return losses, result


def softmax_loss_total(
    logits: Array, targets: Array, row_weight: Array | float, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.softmax_loss_total`."""
    losses, dlogits = softmax_loss_rows(logits, targets, row_weight, spec, grad=grad, out=out)
    return np.asarray(np.add.reduce(losses)), dlogits


def _loss_with_options(
    logits: Array,
    targets: Array,
    row_weight: Array,
    spec: LossSpec,
    losses: Array,
    sums: Array | None,
    result: Array | None,
) -> None:
    grad = result is not None
    compute: Callable[..., Array]
    if targets.ndim == 2:
        compute = soft_target_loss(spec, logits, grad=grad)
        cached = 4
    elif spec.class_weight is None and spec.z_loss == 0.0 and spec.label_smoothing >= LEAST_SMOOTHING:
        compute = partial(smoothed_loss, spec=spec, grad=grad)
        cached = 1
    else:
        compute = label_loss_with_options(spec, logits, grad=grad)
        cached = 1 + BYTES_OF_ROW // (logits.shape[1] * max(4, logits.itemsize))

    def write(*arrays: Array) -> None:
        if sums is not None:
            logsumexp_of_tile(arrays[0], arrays[1], arrays[-1])  # while the rows are in the cache
            arrays = arrays[:-1]
        arrays[-1][...] = compute(*arrays[:-1])

    scratch = (targets.ndim == 2) + (not grad)
    per_row = (targets, row_weight, losses) if sums is None else (targets, row_weight, losses, sums)
    for_each_tile(write, logits, result, *per_row, scratch=scratch, cached=cached)


def _valid_labels(labels: Array, weight: Array, classes: int) -> tuple[Array, Array]:
    """Replace labels that are no classes by 0, and the weights of their rows by nan, unless these are 0."""
    unsigned = labels.view(np.uint64)  # negative labels become huge
    if labels.size == 0 or unsigned[unsigned.argmax()] < classes:
        return labels, weight
    bad = unsigned >= classes
    return np.where(bad, 0, labels), np.where(bad & (weight != 0.0), np.nan, weight)
