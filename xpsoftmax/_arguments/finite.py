"""The first row of inputs that holds nan or infinity, looked for in chunks of rows: `X` may be a memory map."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from xpsoftmax._arguments.checks import as_dtype
from xpsoftmax._arguments.values import BadValue, first_marked
from xpsoftmax._typing import Array, Namespace
from xpsoftmax.kernels import sparse

BYTES_OF_A_NUMBER = 10
"""Most bytes in memory for each number that is checked: the number, which may come from a file, and masks."""


def first_not_finite(xp: Namespace, name: str, X: Array, row_weight: Array, budget: int) -> BadValue | None:
    """The first row of X (N, D) that has a weight other than 0 and holds nan or infinity; None without one.

    If no row does, it waits for a device once.
    """
    if sparse.is_sparse(X):
        entry = sparse.first_not_finite(xp, X, row_weight)
        return None if entry is None else BadValue(name, "be finite", entry.value, "row", (entry.row,))
    parts = list(_parts(X, budget))
    if type(X) is np.ndarray:
        if all(sum_is_finite(X[rows]) for rows in parts):
            return None
    else:
        found: Any = False
        for rows in parts:
            found = found | xp.any(_bad_rows(xp, X, row_weight, rows))
        if not bool(found):
            return None
    for rows in parts:
        bad = _bad_rows(xp, X, row_weight, rows)
        if bool(xp.any(bad)):
            row = rows.start + first_marked(xp, bad)
            return BadValue(
                name, "be finite", _first_bad_number(xp, as_dtype(xp, X[row, :], row_weight.dtype)), "row", (row,)
            )
    return None


def sum_is_finite(x: np.ndarray) -> bool:
    """Whether the sum of all numbers is finite, and therefore each number. A sum of finite numbers may overflow."""
    with np.errstate(all="ignore"):
        return math.isfinite(np.add.reduce(x, axis=None))


def _parts(X: Array, budget: int) -> Iterator[slice]:
    step = max(1, budget // (BYTES_OF_A_NUMBER * max(1, X.shape[1])))
    for start in range(0, X.shape[0], step):
        yield slice(start, min(start + step, X.shape[0]))


def _bad_rows(xp: Namespace, X: Array, row_weight: Array, rows: slice) -> Array:
    # In the working precision: some libraries cannot ask it of 16-bit numbers.
    return ~xp.all(xp.isfinite(as_dtype(xp, X[rows, :], row_weight.dtype)), axis=1) & (row_weight[rows] != 0.0)


def _first_bad_number(xp: Namespace, row: Array) -> float:
    return float(row[first_marked(xp, ~xp.isfinite(row))])
