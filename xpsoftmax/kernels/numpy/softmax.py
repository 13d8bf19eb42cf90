"""softmax and log_softmax on NumPy arrays.

softmax: exp(z) without a shift where the range of the dtype allows it, else exp(z - largest).
log_softmax: z - log(sum of exp(z)) where the logarithm is far enough from the largest logit; else from the largest
logit, t - log1p(sum of the others) with t = z - largest, which keeps the digits of a probability near 1.
"""

from __future__ import annotations

import numpy as np

from xpsoftmax._typing import Array
from xpsoftmax.kernels.numpy import ranges
from xpsoftmax.kernels.numpy.primitives import (
    all_finite,
    by_column,
    exponentials,
    flat_index,
    row_max,
    row_sums,
    wide,
    working,
)
from xpsoftmax.kernels.numpy.ranges import RANGES, beside_largest, times_exp
from xpsoftmax.kernels.numpy.tiles import for_each_tile, recompute

FEW = 32
"""Most classes for which log_softmax works from the largest logit at once: finding out which rows need it is slower."""


def softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.softmax`."""
    result = np.empty(logits.shape, logits.dtype) if out is None else out
    for_each_tile(_softmax, logits, result)
    return result


def _softmax(z: Array, e: Array) -> None:
    found = ranges.most_need_a_shift(z, e, RANGES[e.itemsize].least_total)
    if found is None:
        _softmax_without_shift(z, e)
        return
    top, shifted = found
    _softmax_with_shift(z, e, top)
    others = np.flatnonzero(~shifted)
    if others.size:
        recompute(_softmax_without_shift, others, z, e)


def _softmax_without_shift(z: Array, e: Array) -> None:
    np.exp(working(z, e), out=e)
    total = row_sums(e)
    by_column(np.multiply, e, 1.0 / total, e)
    unsafe = ranges.rows_outside(total, RANGES[e.itemsize].least_total, RANGES[e.itemsize].most_total)
    if unsafe is not None:
        recompute(_softmax_with_shift, unsafe, z, e, cached=0)


def _softmax_with_shift(z: Array, e: Array, top: Array | None = None) -> None:
    tile = working(z, e)
    if top is None:
        top = row_max(tile)
    if not np.isfinite(top).any():
        e[...] = np.nan
        return
    by_column(np.subtract, tile, top, e)
    exponentials(e, e)
    by_column(np.multiply, e, 1.0 / row_sums(e), e)
    if not all_finite(top):
        e[~np.isfinite(top)] = np.nan


def log_softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.log_softmax`."""
    result = np.empty(logits.shape, logits.dtype) if out is None else out
    compute = _log_softmax_of_few_classes if logits.shape[1] <= FEW else _log_softmax
    for_each_tile(compute, logits, result, cached=3)
    return result


def _log_softmax(z: Array, t: Array) -> None:
    if working(z, t) is t:  # z has another layout or dtype: several reads of a copy in order are faster
        z = t.copy()
    top = wide(row_max(z))
    most = np.log(t.shape[1])  # most that the logarithm of the sum can be above the largest logit
    from_largest = (np.abs(top) > 8.0 * most) | (top > np.log(RANGES[t.itemsize].most_total) + 1e-3)
    if 2 * np.count_nonzero(from_largest) > from_largest.size:
        _log_softmax_from_largest(z, t)
        others = np.flatnonzero(~from_largest)
        if others.size:
            recompute(_log_softmax_by_sum, others, z, t, top)
    else:
        _log_softmax_by_sum(z, t, top)


def _log_softmax_by_sum(z: Array, t: Array, top: Array) -> None:
    """Write z - log(sum of exp(z)) to t."""
    np.exp(z, out=t)
    total = row_sums(t)
    lse = np.log(wide(total))
    by_column(np.subtract, z, lse.astype(t.dtype, copy=False), t)
    # Every entry is at least lse - top: the error of the sum (3 eps) takes 3 eps of it at most, the rounding of lse 4.
    bounds = RANGES[t.itemsize]
    safe = (lse - top >= 1.0 + np.abs(lse) / 8) & (total >= bounds.least_rest) & (total <= bounds.most_total)
    undefined = ~np.isfinite(top)
    if not (safe | undefined).all():
        recompute(_log_softmax_from_largest, np.flatnonzero(~(safe | undefined)), z, t)
    if undefined.any():
        t[undefined] = np.nan


def _log_softmax_from_largest(z: Array, t: Array) -> None:
    tile = working(z, t)
    top_at = flat_index(tile, tile.argmax(axis=1))
    top = tile.reshape(-1)[top_at]
    by_column(np.subtract, tile, top, t)
    e = np.empty_like(t)
    exponentials(t, e)
    e.reshape(-1)[top_at] = 0.0
    by_column(np.subtract, t, _minus_log_of_largest(row_sums(e), z), t)
    if not all_finite(top):
        t[~np.isfinite(top)] = np.nan


def _log_softmax_of_few_classes(z: Array, t: Array) -> None:
    """From the largest logit, on the transposed tile: NumPy works along its long rows, one for each class."""
    if z.shape[0] == 1:
        z = np.concatenate([z, z])  # for a single row NumPy would add the classes in another order
    columns = np.array(z.T, t.dtype, order="C")
    top = columns.max(axis=0)
    columns -= top
    e = np.empty_like(columns)
    exponentials(columns, e)
    whole = np.add.reduce(e, axis=0)
    e *= columns != 0.0
    rest = np.add.reduce(e, axis=0)
    rest += np.rint(whole - rest) - 1.0  # of several largest logits, all but one belong to the others
    columns -= _minus_log_of_largest(rest, z)
    if not all_finite(top):
        columns[:, ~np.isfinite(top)] = np.nan
    np.copyto(t, columns.T[: t.shape[0]])


def _minus_log_of_largest(rest: Array, z: Array) -> Array:
    """Return -log of the largest probability of each row, from the sum over the others of exp(z - largest)."""
    loss = np.log1p(wide(rest))
    least = RANGES[rest.itemsize].least_hot  # far above what subnormal terms may have lost
    if not rest.item(rest.argmin()) >= least:
        small = np.flatnonzero(rest < least)
        loss[small] = np.log1p(times_exp(*beside_largest(z, rest.dtype, small)))
    return loss.astype(rest.dtype, copy=False)
