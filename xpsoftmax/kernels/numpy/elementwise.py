"""Elementwise work on NumPy arrays, tile by tile, so that a second pass over a tile finds it in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from xpsoftmax._typing import Array
from xpsoftmax.kernels.numpy.threads import share

TILE = 2**20
"""Bytes of a tile of the first array: small enough for the cache, large enough for few Python calls."""
TILE_OF_EXP = 2**18
"""Bytes of a tile for formulas with half a dozen temporary arrays, which must stay in the cache too."""
SHARE = 2**21
"""Least bytes of the first array for each thread: below, starting a thread takes longer than its work."""


def in_tiles(compute: Callable[..., None], *arrays: Array, tile: int = TILE) -> None:
    """Call `compute` with tiles of the arrays that together cover them, in several threads if that is faster.

    The arrays have the same length, and none is larger than the first.
    """
    size = arrays[0].nbytes
    if size <= tile:
        compute(*arrays)
        return
    length = arrays[0].shape[0]
    step = max(1, length * tile // size)

    def worker(starts: Iterator[int]) -> None:
        for start in starts:
            compute(*[array[start : start + step] for array in arrays])

    starts = range(0, length, step)
    threads = size // SHARE
    if threads > 1:
        share(worker, starts, threads)
    else:
        worker(iter(starts))
