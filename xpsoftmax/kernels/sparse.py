"""Inputs that are sparse matrices: SciPy's on NumPy, cupyx's on CuPy; never made dense.

A network uses its inputs in three ways only: it takes rows, multiplies them by the first weight, and multiplies their
transpose by a gradient. The sparse library computes both products: ``X @ W`` takes memory for its result alone, (R, H),
and ``X.T @ D`` for its result, (D, H).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from xpsoftmax._typing import Array, Namespace
from xpsoftmax.kernels.numpy.threads import share

LIBRARIES = {"scipy.sparse": "numpy", "cupyx.scipy.sparse": "cupy"}
"""Modules with sparse matrices, and the library of arrays that each computes with."""


def is_sparse(value: object) -> bool:
    """Whether this is a sparse matrix of SciPy or cupyx; neither is imported."""
    return library_of(value) is not None


def library_of(value: object) -> str | None:
    """Return the library of the arrays that a sparse matrix is multiplied with: "numpy" or "cupy"."""
    for module, library in LIBRARIES.items():
        if module in sys.modules and sys.modules[module].issparse(value):
            return library
    return None


def are_places(X: Any) -> bool:
    """Whether all entries of a matrix of SciPy are within its shape.

    SciPy does not look when it makes a matrix of compressed rows or columns, and its products read memory of others.
    cupyx is not asked: looking would wait for the device.
    """
    if library_of(X) != "numpy" or X.format not in ("csr", "csc", "bsr"):
        return True
    starts, block = X.indptr, X.blocksize[1] if X.format == "bsr" else 1
    size = (X.shape[0] if X.format == "csc" else X.shape[1]) // block
    if starts[0] != 0 or starts[-1] > X.indices.shape[0] or bool(np.any(starts[1:] < starts[:-1])):
        return False
    places = X.indices[: starts[-1]]
    return places.size == 0 or bool(np.min(places) >= 0 and np.max(places) < size)


def as_rows(X: Any) -> Any:
    """Return a sparse matrix (N, D) in CSR: the format in which rows are taken quickly."""
    return X.tocsr()


def stand_in(xp: Namespace, X: Any) -> Array:
    """Return a dense array of the library, shape and dtype of a sparse matrix: a single zero, broadcast."""
    return xp.broadcast_to(xp.zeros((), dtype=X.dtype), X.shape)


def product(X: Any, weight: Array) -> Array:
    """Return X W, (R, H). SciPy uses one thread, so several are given some of the rows each."""
    multiplications = X.nnz * weight.shape[1]
    if type(weight) is not np.ndarray or multiplications < 2 * SHARE:
        return _contiguous(X @ weight)
    result = np.empty((X.shape[0], weight.shape[1]), weight.dtype)
    step = max(1, X.shape[0] * SHARE // multiplications)

    def worker(starts: Iterator[int]) -> None:
        for start in starts:
            rows = slice(start, start + step)
            result[rows] = X[rows] @ weight

    share(worker, range(0, X.shape[0], step), multiplications // SHARE)
    return result


def transposed_product(X: Any, delta: Array) -> Array:
    """Return X^T delta, (D, H): the gradient of the first weight."""
    return _contiguous(X.T @ delta)


SHARE = 2**20
"""Least multiplications for each thread: below, starting a thread takes longer than its work."""
ENTRY = 3
"""Numbers that are held for an entry while rows are cleared: its number, its row, masks."""


def held_for_a_row(X: Any) -> int:
    """Return how many numbers a copy of a row takes, on average."""
    return ENTRY * -(-int(X.nnz) // max(1, int(X.shape[0])))


def _contiguous(array: Array) -> Array:
    """Return an array in C order: products of cupyx come in Fortran order."""
    return array if array.flags.c_contiguous else array.copy(order="C")


def without_rows(xp: Namespace, X: Any, kept: Array) -> Any:
    """Return the matrix with stored zeros in the rows that are not `kept` (R,), which may hold anything."""
    rows = rows_of_entries(xp, X)
    data = xp.where(kept[rows], X.data, xp.zeros_like(X.data))
    return type(X)((data, X.indices, X.indptr), shape=X.shape)


def rows_of_entries(xp: Namespace, X: Any) -> Array:
    """Return the row of each entry that is stored."""
    return xp.searchsorted(X.indptr, xp.arange(X.data.shape[0], dtype=X.indptr.dtype), side="right") - 1


class Entry(NamedTuple):
    """A number that is stored, and where."""

    row: int
    column: int
    value: float


def first_not_finite(xp: Namespace, X: Any, row_weight: Array | None = None) -> Entry | None:
    """Return the first entry, by rows, that is not finite, of those whose row has a weight other than 0."""
    bad = ~xp.isfinite(X.data)
    if row_weight is not None:
        bad = bad & (row_weight[rows_of_entries(xp, X)] != 0.0)
    if not bool(xp.any(bad)):
        return None
    entry = int(xp.argmax(bad))
    row = int(xp.searchsorted(X.indptr, xp.asarray([entry], dtype=X.indptr.dtype), side="right")[0]) - 1
    return Entry(row, int(X.indices[entry]), float(X.data[entry]))
