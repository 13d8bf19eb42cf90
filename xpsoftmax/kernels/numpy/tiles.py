"""Tiles: groups of rows that stay in the cache. How logits are cut into tiles, and the tiles shared by threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xpsoftmax._typing import Array
from xpsoftmax.kernels.numpy.halves import to_half
from xpsoftmax.kernels.numpy.threads import allowed, share

TILE = 2**21
"""Most bytes of a tile. On three CPUs 1 to 4 MiB were equally fast; smaller tiles cost more Python calls."""
SHARE = 3 * 2**20
"""Least bytes for each thread: waking a thread and waiting for it takes about a tenth of a millisecond."""
ROW = 96
"""Bytes whose computation takes as long as the steps that are done once a row."""
SCRATCH = 2**22
"""Most bytes of scratch that all threads hold together, unless single rows are longer."""
GROUP = 2**19
"""Most bytes of the rows of a tile that are computed anew in one call."""


def for_each_tile(
    compute: Callable[..., None],
    logits: Array,
    result: Array | None,
    *per_row: Array,
    scratch: int = 0,
    cached: int = 1,
) -> None:
    """Call `compute` for tiles that together cover all rows, in several threads if that is faster.

    Parameters
    ----------
    compute : called with the logits of a tile; C-contiguous arrays of its size in the working precision, the first for
        the tile's part of `result` (if there is one), the others scratch; and the tile's part of each of `per_row`
    logits : (R, C)
    result : (R, C), or None
    per_row : (R, ...)
    scratch : number of scratch arrays that `compute` gets
    cached : number of arrays of the size of a tile that `compute` needs in the cache at the same time

    Notes
    -----
    The array for the result is a part of `result` itself, unless that has another dtype or layout, or overlaps the
    logits: `compute` may read the logits several times.
    """
    rows, columns = logits.shape
    dtype = logits.dtype if logits.itemsize >= 4 else np.dtype("f4")
    direct = result is not None and result.dtype == dtype and result.flags.carray and disjoint(result, logits)
    buffers = scratch + (result is not None and not direct)
    size = rows * columns * dtype.itemsize
    threads = min(rows, (size + rows * ROW) // SHARE)
    if direct and buffers == 0 and threads <= 1 and 0 < size <= TILE // cached:
        compute(logits, result, *per_row)  # small arrays are one tile: no slices, no closure
        return

    def worker(tiles: Iterator[slice]) -> None:
        own: list[Array] = []
        for tile in tiles:
            length = tile.stop - tile.start
            if not own or own[0].shape[0] < length:
                own = [np.empty((length, columns), dtype) for _ in range(buffers)]
            arrays = [buffer[:length] for buffer in own]
            if direct:
                arrays.insert(0, result[tile])  # type: ignore[index]
            compute(logits[tile], *arrays, *[array[tile] for array in per_row])
            if result is not None and not direct:
                deliver(arrays[0], result[tile])

    if threads > 1:
        threads = min(threads, allowed())
    tile_bytes = min(TILE, SCRATCH // max(1, threads)) // cached
    if threads > 1:
        # At least two tiles for each thread: a thread that wakes late then does less.
        share(worker, slices(rows, threads * max(2, -(-size // (threads * tile_bytes)))), threads)
    else:
        worker(iter(slices(rows, -(-size // tile_bytes))))


def deliver(tile: Array, part: Array) -> None:
    """Write a tile in the working precision to its part of the result."""
    if part.dtype == np.float16 and tile.dtype == np.float32:
        to_half(tile, part)
    else:
        part[...] = tile


def fit_one_tile(logits: Array, cached: int) -> bool:
    """Whether `for_each_tile` would make one call with these logits and a new array for the result of their dtype.

    `for_each_tile` makes the same test, but a call of it takes a twentieth of the time of a small loss.
    """
    size = logits.nbytes
    short = size + logits.shape[0] * ROW < 2 * SHARE
    return bool(0 < size <= TILE // cached and short and logits.itemsize >= 4)


def disjoint(a: Array, b: Array) -> bool:
    """Whether two arrays are known to share no memory."""
    return bool(a is not b and ((a.flags.owndata and b.flags.owndata) or not np.may_share_memory(a, b)))


def slices(rows: int, count: int) -> list[slice]:
    """Cut rows into about `count` equal parts."""
    step = max(1, -(-rows // max(1, count)))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def groups(rows: int, row_bytes: int) -> list[slice]:
    """Cut rows into groups of at most about `GROUP` bytes."""
    return slices(rows, 1 + rows * row_bytes // GROUP)


def recompute(
    compute: Callable[..., Any], rows: Array, z: Array, e: Array, *per_row: Array, cached: int = 1, **options: Any
) -> Any:
    """Compute some rows of a tile anew, group by group; return what `compute` returns for all of them.

    `compute` gets logits, an array for their results and the rows' entries of `per_row`; the results are copied to
    these rows of `e`. `cached` is as in `for_each_tile`. With 0, `compute` needs no arrays but the tile: if the rows
    are all rows of the tile, it gets them in one call.
    """
    whole = rows.size == e.shape[0]
    count = 1 + rows.size * e.strides[0] * (cached if whole else max(1, cached)) // GROUP
    if count == 1 and whole:
        return compute(z, e, *per_row, **options)
    results = []
    for group in slices(rows.size, count):
        if whole:
            results.append(compute(z[group], e[group], *[array[group] for array in per_row], **options))
            continue
        some = rows[group]
        part = np.empty((some.size, e.shape[1]), e.dtype)
        results.append(compute(z.take(some, axis=0), part, *[array[some] for array in per_row], **options))
        put_rows(e, some, part)
    return results[0] if len(results) == 1 or results[0] is None else np.concatenate(results)


def put_rows(tile: Array, rows: Array, part: Array) -> None:
    """Write some rows of a C-contiguous tile. NumPy copies each row as a single entry, which is faster."""
    row = np.dtype((np.void, tile.strides[0]))
    tile.view(row)[:, 0][rows] = part.view(row)[:, 0]
