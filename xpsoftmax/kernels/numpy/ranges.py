"""Which rows can be computed from exp(z) without a shift, and sums that need more than a shift by the largest logit.

Without the shift there is one pass less over the data, and no rounding of z - max(z). The result is exact to rounding
as long as the sums of the row stay in the `Range` of the dtype. Each row is decided by itself: its bits do not depend
on other rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xpsoftmax._typing import Array
from xpsoftmax.kernels.numpy.primitives import by_column, exponentials, row_max, row_sums
from xpsoftmax.kernels.numpy.tiles import groups
from xpsoftmax.kernels.two_sum import difference_error


class Range(NamedTuple):
    """Bounds of a row's sums of exp(z), not shifted, between which its result has all digits."""

    tiny: float  # the smallest normal number
    least_total: float  # of all classes. Below 1 a probability may come from a subnormal number, for which B has room
    least_rest: float  # of all but the hot class: so far above `tiny` that subnormal terms do not matter
    least_hot: float  # exp(z) of the hot class: rest / hot must not overflow. In shifted rows: least sum of the others
    most_total: float  # of all classes


RANGES = {  # by the bytes of a number
    4: Range(2.0**-126, 2.0**-4, 1e-30, 1e-20, float(np.exp(40.0))),
    8: Range(2.0**-1022, 2.0**-7, 1e-290, 1e-170, float(np.exp(300.0))),
}

LARGE_TILE = 2**14
"""Entries of a tile from which looking at its logits first saves time where most rows need a shift."""


def most_need_a_shift(z: Array, e: Array, least: float) -> tuple[Array, Array] | None:
    """Look at the largest logits of a large tile before anything is computed.

    Return them and the mask of the rows that need a shift because of the largest logit alone (the sum is below `least`
    or above the range), if these are most rows; else None. This only saves time: a row's result is the same either way.
    """
    if e.size < LARGE_TILE:
        return None
    high = np.log(RANGES[e.itemsize].most_total) + 1e-3  # a margin above the errors of exp and of the sum
    low = np.log(least / e.shape[1]) - 1e-3
    first: Any = z[0]
    if low <= first[first.argmax()] <= high:  # the first row stands for all: one maximum instead of R
        return None
    top = row_max(z) if z.flags.c_contiguous else z.max(axis=1)
    outside = (top < low) | (top > high)
    return (top.astype(e.dtype, copy=False), outside) if 2 * np.count_nonzero(outside) > outside.size else None


def rows_outside(total: Array, least: float, most: float) -> Array | None:
    """Rows whose sums are not from `least` to `most` (nan included); None if there are none."""
    if total.item(total.argmin()) >= least and total.item(total.argmax()) <= most:
        return None
    # The masks compare with the bounds rounded to the dtype, so they may find none.
    rows = np.flatnonzero(~((total >= least) & (total <= most)))
    return rows if rows.size else None


# --- sums that need more than a shift by the largest logit ------------------------------------------------------------


def times_exp(x: Array, z: Array, top: Array) -> Array:
    """Product x * exp(z - top) in float64, for z of at most top; exact to rounding where the exponential is subnormal.

    The exponential is the square of `half`, which is a normal number.
    """
    t = z - top
    error = difference_error(z, top, t)
    half = np.exp(0.5 * t) * (1.0 + 0.5 * np.where(np.isfinite(error), error, 0.0))
    return (x * half) * half


def beside_largest(z: Array, dtype: Any, rows: Array) -> tuple[Array, Array, Array]:
    """Sum of exp(z - second) over all but the largest logit, the second largest logit, and the largest, for some rows.

    The results are float64; the exponentials are computed in the working precision `dtype`. Shifting the others by
    their own largest logit keeps the digits of a sum of subnormal numbers; `times_exp` scales it back. The largest
    logit must be far ahead: of several equal ones, all would be left out.
    """
    total, second, top = np.empty((3, rows.size))
    for group in groups(rows.size, z.shape[1] * dtype.itemsize):
        part = np.ascontiguousarray(z.take(rows[group], axis=0), dtype)
        largest = row_max(part)
        top[group] = largest
        np.putmask(part, part == largest[:, None], -np.inf)
        others = row_max(part)
        second[group] = others
        by_column(np.subtract, part, others, part)
        exponentials(part, part)
        total[group] = row_sums(part)
    total[second == -np.inf] = 0.0  # all other classes are impossible
    return total, second, top
