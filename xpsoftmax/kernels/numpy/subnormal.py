"""Products with subnormal probabilities that are normal numbers: computed anew from the logits, entry by entry."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpsoftmax._typing import Array
from xpsoftmax.kernels.numpy.primitives import wide
from xpsoftmax.kernels.numpy.ranges import RANGES, times_exp
from xpsoftmax.kernels.numpy.tiles import groups, put_rows

MOST_FACTOR = 1.0 + 1e-4
"""Most that a subnormal probability may be multiplied by: a larger factor makes a normal number of it."""
DENSE = 0.03
"""Share of the entries from which computing all of them anew is faster than picking some."""


def restore_products(
    z: Array, e: Array, rows: Array, top: Array, p_factor: Array, scale: Array, beside_small_masses: Array
) -> None:
    """Replace the entries of `e`, scale * exp(z - top), whose exponential has lost digits that the product shows.

    These are the entries with a subnormal exponential and a normal product p_factor * exp(z - top). In rows that are
    marked as `beside_small_masses`, products down to eps times the smallest normal number count, too: there, a mass of
    about that size is subtracted from them.
    """
    lowest = float(np.log(RANGES[e.itemsize].tiny))
    margin = np.where(beside_small_masses, float(np.log(np.finfo(e.dtype).eps)) - 1.0, -0.01)
    for group in groups(rows.size, e.strides[0]):
        some = rows[group]
        whole = rows.size == e.shape[0]
        logits, part = (z[group], e[group]) if whole else (z.take(some, axis=0), e.take(some, axis=0))
        below = (top[some] + lowest + 0.01).astype(e.dtype)[:, None]
        least = (top[some] + lowest + margin[some] - np.log(np.abs(p_factor[some]))).astype(e.dtype)[:, None]
        lost = (logits < below) & (logits > least)
        count = np.count_nonzero(lost)
        if count > DENSE * lost.size:
            np.putmask(part, lost, _product(scale[some, None], wide(logits), top[some, None], e.dtype))
        elif count:
            row, column = np.divmod(np.flatnonzero(lost.reshape(-1)), e.shape[1])
            of_all = some[row]
            part[row, column] = _product(scale[of_all], wide(logits[row, column]), top[of_all], e.dtype)
        if count and not whole:
            put_rows(e, some, part)


def _product(x: Array, z: Array, top: Array, dtype: Any) -> Array:
    """Product x * exp(z - top), rounded to the dtype; float64 has room for the exponentials of float32."""
    if dtype.itemsize == 8:
        return times_exp(x, z, top)
    return (np.exp(z - top) * x).astype(dtype)
