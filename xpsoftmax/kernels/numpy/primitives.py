"""Operations on all rows of a tile (R, C) at once: maxima, sums, exponentials, one number combined with each row.

All are elementwise, or reductions of a C-contiguous row. The bits of a row's result therefore depend neither on the
other rows nor on how rows are cut into tiles and shared by threads. Where NumPy offers several calls for the same
thing, the fastest is taken; the constants are measured.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from xpsoftmax._typing import Array
from xpsoftmax.kernels.generic import row_sum

SHORT = 16
"""Most classes of a short row. For short rows, NumPy is faster class by class than row by row."""
CHUNK = 2048
"""Bytes of a row that one einsum adds up. With twice as many, rows of few different values break the error bound."""
CACHED_ROWS = 1024
"""Most rows whose start positions are cached: making them anew takes a thirtieth of the time of a small loss."""
LOWEST = np.nextafter(np.log(np.finfo("f4").smallest_normal), np.float32(0))
"""The next number above the logarithm of the smallest normal float32."""


def working(z: Array, buffer: Array) -> Array:
    """Logits as a C-contiguous tile in the working precision: z itself, or a copy of it in `buffer`."""
    if z.dtype == buffer.dtype and z.flags.c_contiguous and z.flags.aligned:
        return z
    np.copyto(buffer, z)
    return buffer


def wide(x: Array) -> Array:
    """Convert to float64."""
    return x.astype("f8", copy=False)


# --- maxima and positions ---------------------------------------------------------------------------------------------


def row_max(tile: Array) -> Array:
    """Largest entry of each row; nan if the row holds a nan."""
    if tile.shape[1] <= SHORT:
        top = tile[:, 0].copy()
        for j in range(1, tile.shape[1]):
            np.maximum(top, tile[:, j], out=top)
        return top
    return tile.reshape(-1)[flat_index(tile, tile.argmax(axis=1))]  # argmax is several times faster than max


def all_finite(x: Array) -> bool:
    """Whether all numbers are finite; argmin and argmax stop at a nan, so it is found, too."""
    return bool(x.item(x.argmin()) > -np.inf and x.item(x.argmax()) < np.inf)


def flat_index(tile: Array, columns: Array) -> Array:
    """Positions in the flat tile of one column of each row."""
    return row_starts(*tile.shape) + columns


def row_starts(rows: int, columns: int) -> Array:
    """Positions in a flat tile where its rows begin."""
    if rows > CACHED_ROWS:
        return np.arange(0, rows * columns, columns)
    return _cached_row_starts(rows, columns)


@lru_cache(maxsize=16)
def _cached_row_starts(rows: int, columns: int) -> Array:
    result = np.arange(0, rows * columns, columns)
    result.flags.writeable = False
    return result


# --- sums -------------------------------------------------------------------------------------------------------------


def row_sums(*factors: Array) -> Array:
    """Sum of each row, or of each row of a product."""
    rows, columns = factors[0].shape
    width = CHUNK // factors[0].itemsize
    if columns <= width:
        if len(factors) == 1:  # the same without making the subscripts
            return np.einsum("ij->i", factors[0])
        return np.einsum(",".join(["ij"] * len(factors)) + "->i", *factors)
    chunks, width = _chunks(columns, width)
    whole = [x[:, : chunks * width].reshape(rows, chunks, width) for x in factors]
    sums = row_sum(np, np.einsum(",".join(["ijk"] * len(factors)) + "->ij", *whole))
    if columns == chunks * width:
        return sums
    return sums + row_sums(*[x[:, chunks * width :] for x in factors])


@lru_cache
def _chunks(columns: int, width: int) -> tuple[int, int]:
    """Number and length of the chunks of a row; without a remainder, which would take calls of its own, if possible."""
    least = -(-columns // width)
    for chunks in range(least, 2 * least):
        if columns % chunks == 0:
            return chunks, columns // chunks
    return columns // width, width


# --- elementwise ------------------------------------------------------------------------------------------------------


def by_column(operation: np.ufunc, tile: Array, column: Array, out: Array) -> None:
    """Write operation(tile, column) to `out`: one number of the column (R,) for each row."""
    if 128 <= tile.shape[1] < 8192:
        with np.errstate():  # restores the buffer size; with the default one, NumPy copies the column many times
            np.setbufsize(16)
            operation(tile, column[:, None], out=out)
    else:
        operation(tile, column[:, None], out=out)


def exponentials(t: Array, e: Array) -> None:
    """Write exp(t) to `e`, for t that is not positive. Subnormal results may become 0."""
    if e.itemsize == 8 or not _slow_where_subnormal():
        np.exp(t, out=e)
        return
    normal = t >= LOWEST
    np.clip(t, LOWEST, np.float32(0), out=e)
    np.exp(e, out=e)
    np.multiply(e, normal, out=e)


@cache
def _slow_where_subnormal() -> bool:
    """Whether NumPy's float32 exp takes three times as long for a vector that holds one subnormal result.

    It does, except with the instructions of AVX-512 (x86-64-v4).
    """
    try:
        from numpy.lib import introspect  # since NumPy 2.1

        (target,) = introspect.opt_func_info(func_name="^exp$", signature="^float32$")["exp"].values()
        return not ("X86_V4" in target["current"] or "AVX512" in target["current"])
    except (ImportError, KeyError, ValueError):
        return True
