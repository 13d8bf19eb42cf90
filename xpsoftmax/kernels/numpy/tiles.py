"""Blocks of rows for the NumPy kernels: how they are cut and shared by threads, and what is done to all rows of one.

All that is done to a row is elementwise, or a sum over a C-contiguous row: its bits depend neither on its neighbours
nor on blocks and threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from xpsoftmax._typing import Array
from xpsoftmax.kernels.generic import row_sum
from xpsoftmax.kernels.numpy.threads import allowed, share

BLOCK = 2**21
"""Bytes of a block of rows at most. Measured on three CPUs: 1 to 4 MiB are alike, less costs calls."""
SHARE = 3 * 2**20
"""Bytes that a thread must have to do: waking one, and waiting for it, takes about a tenth of a millisecond."""
ROW = 96
"""Bytes that take as long as what is done once a row."""
SCRATCH = 2**22
"""Bytes of scratch that all threads hold together, as far as single rows allow."""
PART = 2**19
"""Bytes of a block that are done again at once."""
CHUNK = 2048
"""Bytes of a row that einsum sums at once. Twice that and rows of a few levels break the bound, by up to half of it."""
SHORT = 16
"""Classes up to which float32 rows that need a shift take less time in float64, where most need none."""
FEW_ROWS = 1024
"""Rows up to which it is kept where they begin: to make that anew takes a thirtieth of a small loss."""
LOWEST = np.nextafter(np.log(np.finfo("f4").smallest_normal), np.float32(0))
"""The next number above the logarithm of the smallest normal float32."""


class _Range(NamedTuple):
    """Between which sizes a row's sums of exp(z), not shifted, give its result with all digits."""

    tiny: float  # the smallest normal number
    least: float  # least sum of all: below 1 a probability may come from a subnormal number, for which B has room
    rest: float  # least sum of the others: so far above `tiny` that subnormal terms do not matter
    hot: float  # least exp(z) of the hot class: rest / hot must not overflow. Shifted: least sum of the others
    largest: float  # whole sum


RANGES = {  # by the bytes of a number
    4: _Range(2.0**-126, 2.0**-4, 1e-30, 1e-20, float(np.exp(40.0))),
    8: _Range(2.0**-1022, 2.0**-7, 1e-290, 1e-170, float(np.exp(300.0))),
}


def each_block(
    compute: Callable[..., None],
    logits: Array,
    result: Array | None,
    *per_row: Array,
    scratch: int = 0,
    held: int = 1,
) -> None:
    """Call `compute` for blocks of rows that together cover all, in several threads if that pays.

    It gets rows of the logits, and C-contiguous blocks of that size in the working precision: one for what `result` (if
    there is one) is to hold of them, and so many for its own use; then the entries of `per_row` that belong to them.
    The first is part of the result where it can be: not where it overwrites logits, which may be read again. `held` is
    how many such blocks `compute` needs in the cache.
    """
    rows, columns = logits.shape
    dtype = logits.dtype if logits.itemsize >= 4 else np.dtype("f4")
    direct = result is not None and result.dtype == dtype and result.flags.carray and apart(result, logits)
    count = scratch + (result is not None and not direct)
    size = rows * columns * dtype.itemsize
    threads = min(rows, (size + rows * ROW) // SHARE)
    if direct and count == 0 and threads <= 1 and 0 < size <= BLOCK // held:  # the usual way of small arrays
        compute(logits, result, *per_row)
        return

    def worker(blocks: Iterator[slice]) -> None:
        buffers: list[Array] = []
        for block in blocks:
            length = block.stop - block.start
            if not buffers or buffers[0].shape[0] < length:
                buffers = [np.empty((length, columns), dtype) for _ in range(count)]
            arrays = [buffer[:length] for buffer in buffers]
            if direct:
                arrays.insert(0, result[block])  # type: ignore[index]
            compute(logits[block], *arrays, *[array[block] for array in per_row])
            if result is not None and not direct:
                result[block] = arrays[0]

    if threads > 1:
        threads = min(threads, allowed())
    block = min(BLOCK, SCRATCH // max(1, threads)) // held
    if threads > 1:
        # At least two blocks a thread: one that wakes late does less.
        share(worker, slices(rows, threads * max(2, -(-size // (threads * block)))), threads)
    else:
        worker(iter(slices(rows, -(-size // block))))


def apart(a: Array, b: Array) -> bool:
    """Whether two arrays surely share no memory."""
    return bool(a is not b and ((a.flags.owndata and b.flags.owndata) or not np.may_share_memory(a, b)))


def slices(rows: int, count: int) -> list[slice]:
    """Cut rows into about `count` equal parts."""
    step = max(1, -(-rows // max(1, count)))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def working(z: Array, buffer: Array) -> Array:
    """Logits as a C-contiguous block in the working precision: themselves or copied to `buffer`."""
    if z.dtype == buffer.dtype and z.flags.c_contiguous and z.flags.aligned:
        return z
    np.copyto(buffer, z)
    return buffer


def exponentials(t: Array, e: Array) -> None:
    """Exponentials of numbers that are not positive; those that would be subnormal may become 0."""
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

    Not with the instructions of AVX-512 (x86-64-v4).
    """
    try:
        from numpy.lib import introspect  # since NumPy 2.1

        (target,) = introspect.opt_func_info(func_name="^exp$", signature="^float32$")["exp"].values()
        return not ("X86_V4" in target["current"] or "AVX512" in target["current"])
    except (ImportError, KeyError, ValueError):
        return True


def wide(x: Array) -> Array:
    """Numbers as float64."""
    return x.astype("f8", copy=False)


def times_exp(x: Array, z: Array, top: Array) -> Array:
    """Product x * exp(z - top), z at most top, with all its digits also where the exponential is subnormal; float64."""
    t = z - top
    back = t - z
    lost = (z - (t - back)) - (top + back)  # by D. E. Knuth's TwoSum
    half = np.exp(0.5 * t) * (1.0 + 0.5 * np.where(np.isfinite(lost), lost, 0.0))
    return (x * half) * half


def beside_largest(z: Array, dtype: Any, rows: Array) -> tuple[Array, Array, Array]:
    """What rows hold beside their largest logit: the sum of exp(z - second), the second largest logit, and the largest.

    All are of float64; the exponentials are taken in the working precision `dtype`. The others are shifted by their own
    largest logit, which keeps the digits of a sum of subnormal numbers; `times_exp` brings it to the scale of the row.
    The largest must be far ahead: of several that are equal, all would be left out.
    """
    total, second, top = np.empty((3, rows.size))
    for few in slices(rows.size, 1 + rows.size * z.shape[1] * dtype.itemsize // PART):
        part = np.ascontiguousarray(z.take(rows[few], axis=0), dtype)
        largest = row_max(part)
        top[few] = largest
        np.putmask(part, part == largest[:, None], -np.inf)
        others = row_max(part)
        second[few] = others
        by_column(np.subtract, part, others, part)
        exponentials(part, part)
        total[few] = row_sums(part)
    total[second == -np.inf] = 0.0  # there is no other class that is possible
    return total, second, top


def places(block: Array, columns: Array) -> Array:
    """Where in the flat block one column of each row lies."""
    return starts(*block.shape) + columns


def starts(rows: int, columns: int) -> Array:
    """Where in a flat block the rows begin."""
    if rows > FEW_ROWS:
        return np.arange(0, rows * columns, columns)
    return _starts(rows, columns)


@lru_cache(maxsize=16)
def _starts(rows: int, columns: int) -> Array:
    result = np.arange(0, rows * columns, columns)
    result.flags.writeable = False
    return result


def row_max(block: Array) -> Array:
    """Largest entry of each row, nan if one is.

    `argmax` is several times faster than `max`, and in short rows going class by class is several times faster still.
    """
    if block.shape[1] <= SHORT:
        top = block[:, 0].copy()
        for j in range(1, block.shape[1]):
            np.maximum(top, block[:, j], out=top)
        return top
    return block.reshape(-1)[places(block, block.argmax(axis=1))]


def finite(x: Array) -> bool:
    """Whether all numbers are, and none is nan, which is where `argmin` and `argmax` stop."""
    return bool(x.item(x.argmin()) > -np.inf and x.item(x.argmax()) < np.inf)


def row_sums(*factors: Array) -> Array:
    """Sum of each row, or of each row of a product."""
    rows, columns = factors[0].shape
    width = CHUNK // factors[0].itemsize
    if columns <= width:
        if len(factors) == 1:
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
    """Number and length of the chunks of a row; if possible without a remainder, which would take calls of its own."""
    least = -(-columns // width)
    for chunks in range(least, 2 * least):
        if columns % chunks == 0:
            return chunks, columns // chunks
    return columns // width, width


def by_column(operation: np.ufunc, block: Array, column: Array, out: Array) -> None:
    """Combine each row of a block with its number."""
    if 128 <= block.shape[1] < 8192:
        with np.errstate():  # restores the buffer size; with the usual one NumPy copies the column again and again
            np.setbufsize(16)
            operation(block, column[:, None], out=out)
    else:
        operation(block, column[:, None], out=out)


def put_rows(block: Array, rows: Array, part: Array) -> None:
    """Write some rows of a C-contiguous block, each as one entry: NumPy takes less time than for rows of an array."""
    row = np.dtype((np.void, block.strides[0]))
    block.view(row)[:, 0][rows] = part.view(row)[:, 0]


def again(
    compute: Callable[..., Any], rows: Array, z: Array, e: Array, *per_row: Array, held: int = 1, **options: Any
) -> Any:
    """Do some rows of a block anew, a few at a time: what `compute` returns for them. `held` as for `each_block`.

    With 0, `compute` needs nothing beside the block: it gets all rows at once if they are all of a block.
    """
    parts = 1 + rows.size * e.strides[0] * (held if rows.size == e.shape[0] else max(1, held)) // PART
    if parts == 1 and rows.size == e.shape[0]:
        return compute(z, e, *per_row, **options)
    results = []
    for few in slices(rows.size, parts):
        if rows.size == e.shape[0]:
            results.append(compute(z[few], e[few], *[array[few] for array in per_row], **options))
            continue
        some = rows[few]
        part = np.empty((some.size, e.shape[1]), e.dtype)
        results.append(compute(z.take(some, axis=0), part, *[array[some] for array in per_row], **options))
        put_rows(e, some, part)
    return results[0] if len(results) == 1 or results[0] is None else np.concatenate(results)
