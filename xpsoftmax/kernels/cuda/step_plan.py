"""Launches that only a training step needs: gather a batch, weigh its rows, record its loss. Plain Python."""

from __future__ import annotations

import numpy as np

from xpsoftmax.kernels.cuda import texts
from xpsoftmax.kernels.cuda.plan import (
    TOTAL_THREADS,
    UNIT_THREADS,
    Launch,
    Matrix,
    as_reals,
    checked_grid,
    total_defines,
)

PLACE, THIS_UPDATE, NEXT_UPDATE = range(3)
"""What the entries of a place are: see kernels/cuda/record.cu."""
SCALARS = {**texts.SCALARS, "int64": "Long"}


def gather_launch(source: Matrix, order: int, start: int, weights: int, out: int, rows: int, result: str) -> Launch:
    """Launch that copies rows (N, D) to contiguous (rows, D) of the dtype `result`; all others are addresses."""
    lane_bits = min((source.classes - 1).bit_length(), (UNIT_THREADS - 1).bit_length())
    return Launch(
        "gather",
        gather_defines(source.dtype, result),
        checked_grid(-(-(rows << lane_bits) // UNIT_THREADS)),
        UNIT_THREADS,
        (
            np.uint64(source.address),
            np.int64(source.stride),
            *map(np.uint64, (order, start, weights, out)),
            np.int32(lane_bits),
            np.int64(rows),
            np.int64(source.classes),
        ),
    )


def gather_defines(dtype: str, result: str) -> tuple[tuple[str, str], ...]:
    """The specialisation of the kernel that gathers rows."""
    return (("SCALAR", SCALARS[dtype]), ("RESULT", SCALARS[result]), ("THREADS", str(UNIT_THREADS)))


def weigh_launch(counting: int, weights: int, rows: int, reg: float, strength: int, dtype: str) -> Launch:
    """Launch that divides the weights of a batch by the sum of its counting weights; all are addresses."""
    arguments = (np.uint64(counting), np.uint64(weights), np.int64(rows), *as_reals(dtype, (reg,)), np.uint64(strength))
    return Launch("weigh", total_defines(dtype), 1, TOTAL_THREADS, arguments)


def record_launch(loss: int, losses: int, finite: int, place: int, rows: int, all_rows: int, dtype: str) -> Launch:
    """Launch that ends a step; all are addresses."""
    arguments = (*map(np.uint64, (loss, losses, finite, place)), np.int64(rows), np.int64(all_rows))
    return Launch("record", (("SCALAR", texts.SCALARS[dtype]),), 1, 32, arguments)
