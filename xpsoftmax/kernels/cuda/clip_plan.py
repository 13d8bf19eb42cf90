"""Launches that shorten gradients: the squares of a vector, and its product with what makes it short. Plain Python."""

from __future__ import annotations

import numpy as np

from xpsoftmax.kernels.cuda.plan import TOTAL_THREADS, Launch, as_reals, checked_grid, total_defines, total_parts

SUMS_OF_A_PART = 3
"""Squares of large, medium and small entries: see kernels/cuda/squares.cuh."""


def squares_launch(x: int, sums: int, length: int, dtype: str) -> Launch:
    """Launch of the squares of a contiguous vector; arrays are given by address."""
    arguments = np.uint64(x), np.uint64(sums), np.int64(length)
    return Launch("squares", total_defines(dtype), checked_grid(total_parts(length)), TOTAL_THREADS, arguments)


def shorten_launch(x: int, sums: int, length: int, max_norm: float, dtype: str) -> Launch:
    """Launch that shortens a vector in place, so that its norm is at most `max_norm`."""
    arguments = np.uint64(x), np.uint64(sums), *as_reals(dtype, (max_norm,)), np.int64(length)
    return Launch("shorten", total_defines(dtype), checked_grid(total_parts(length)), TOTAL_THREADS, arguments)
