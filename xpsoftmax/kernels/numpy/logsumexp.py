"""logsumexp on NumPy arrays: log(sum of exp(z)), without a shift where the range of the dtype allows it.

A sum near 1 has no digits of what exceeds 1, which is all that its logarithm depends on. There the result is
largest + log1p(sum of the others / exp(largest)).
"""

from __future__ import annotations

import numpy as np

from xpsoftmax._typing import Array
from xpsoftmax.kernels.numpy import ranges
from xpsoftmax.kernels.numpy.primitives import (
    SHORT,
    by_column,
    exponentials,
    flat_index,
    row_max,
    row_sums,
    wide,
    working,
)
from xpsoftmax.kernels.numpy.ranges import RANGES, beside_largest, times_exp
from xpsoftmax.kernels.numpy.tiles import for_each_tile, groups, recompute


def logsumexp_rows(logits: Array) -> Array:
    """See `xpsoftmax.logsumexp`."""
    result = np.empty(logits.shape[0], logits.dtype)
    for_each_tile(logsumexp_of_tile, logits, None, result, scratch=1)
    return result


def logsumexp_of_tile(z: Array, e: Array, result: Array) -> None:
    """Write the logarithms of the sums of rows to `result`; `e` is scratch."""
    found = ranges.most_need_a_shift(z, e, RANGES[e.itemsize].least_rest)
    if found is None:
        result[...] = _logsumexp_without_shift(z, e)
        return
    _, shifted = found
    lse = _logsumexp_with_shift(z, e)
    others = np.flatnonzero(~shifted)
    if others.size:
        lse[others] = recompute(_logsumexp_without_shift, others, z, e)
    result[...] = lse


def _logsumexp_without_shift(z: Array, e: Array) -> Array:
    np.exp(working(z, e), out=e)
    total = row_sums(e)
    lse = np.log(wide(total))
    correct_near_zero(lse, np.flatnonzero(np.abs(lse) < 1.0), z, e)
    unsafe = ranges.rows_outside(total, RANGES[e.itemsize].least_rest, RANGES[e.itemsize].most_total)
    if unsafe is not None:
        lse[unsafe] = recompute(_logsumexp_with_shift, unsafe, z, e, cached=0)
    return lse


def _logsumexp_with_shift(z: Array, e: Array) -> Array:
    """Return largest + log(sum of exp(z - largest)), which is accurate for sums far from 1."""
    tile = working(z, e)
    top = row_max(tile)
    by_column(np.subtract, tile, top, e)
    exponentials(e, e)
    top = wide(top)
    # An infinity is the result itself: log(0) = -inf, log(inf) = inf.
    return np.where(np.isfinite(top), top + np.log(wide(row_sums(e))), top)


def correct_near_zero(lse: Array, rows: Array, z: Array, e: Array) -> None:
    """Compute the logarithms of some rows, whose sums are near 1, anew from the largest logit; `e` is exp(z)."""
    if 2 * rows.size <= e.shape[0]:
        for group in groups(rows.size, e.strides[0]):
            lse[rows[group]] = _from_largest(z, e, rows[group])
        return
    result = np.empty_like(lse)  # of all rows: that is faster than picking most of them
    for group in groups(e.shape[0], e.strides[0]):
        result[group] = _from_largest(z[group], e[group], np.arange(e[group].shape[0]))
    lse[rows] = result[rows]


def _from_largest(z: Array, e: Array, rows: Array) -> Array:
    """Return largest + log1p(sum of the others / exp(largest)) of some rows."""
    whole = rows.size == e.shape[0]
    part = e.copy() if whole else e.take(rows, axis=0)
    if e.shape[1] <= SHORT:
        # Summing all entries that differ from the largest is faster than finding where the largest is.
        logits = (z if whole else z.take(rows, axis=0)).astype(e.dtype, copy=False)
        top, largest = row_max(logits), wide(row_max(part))
        others = (logits != top[:, None]).astype(e.dtype)
        ties = e.shape[1] - row_sums(others)
        odds = (wide(row_sums(part, others)) + (ties - 1.0) * largest) / largest
    else:
        column = part.argmax(axis=1)
        top_at = flat_index(part, column)
        top, largest = z[rows, column], wide(part.reshape(-1)[top_at])
        part.reshape(-1)[top_at] = 0.0
        odds = wide(row_sums(part)) / largest
    small = np.flatnonzero(odds < RANGES[e.itemsize].least_hot)
    if small.size:
        odds[small] = times_exp(*beside_largest(z, e.dtype, rows[small]))
    return wide(top) + np.log1p(odds)
