"""Launches that only a training step needs: gather a batch, weigh its rows, record its loss. Plain Python."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xpsoftmax.kernels.cuda import texts
from xpsoftmax.kernels.cuda.plan import (
    REALS,
    TOTAL_THREADS,
    UNIT_THREADS,
    Launch,
    Matrix,
    as_reals,
    checked_grid,
    total_defines,
    unit_defines,
)

PLACE, THIS_UPDATE, NEXT_UPDATE = range(3)
"""What the entries of a place are: see kernels/cuda/record.cu."""
SCALARS = {**texts.SCALARS, "int64": "Long"}
NO_ROWS = Matrix(0, 0, 0, 0, "float32")


class Copied(NamedTuple):
    """The addresses of two vectors with an entry for each row: of the data, and of the batch."""

    source: int = 0
    copy: int = 0


class Batch(NamedTuple):
    """What is gathered. A copy at the address 0 is not made."""

    inputs: Matrix
    input_copy: int
    targets: Matrix  # labels are a matrix of one column
    target_copy: int
    weights: Copied
    counting: Copied
    zero_rows: bool  # rows of the inputs that weigh 0 become zeros


def gather_launch(batch: Batch, order: int, start: int, rows: int) -> Launch:
    """Launch that copies the rows of a batch; `order` (0: that of the data) and `start` are addresses."""
    inputs, targets = batch.inputs, batch.targets
    columns = max(inputs.classes if batch.input_copy else 1, targets.classes if batch.target_copy else 1)
    lane_bits = min((columns - 1).bit_length(), (UNIT_THREADS - 1).bit_length())
    return Launch(
        "gather",
        gather_defines(inputs.dtype, targets.dtype),
        checked_grid(-(-(rows << lane_bits) // UNIT_THREADS)),
        UNIT_THREADS,
        (
            *_copied(inputs, batch.input_copy),
            *_copied(targets, batch.target_copy),
            *map(np.uint64, (*batch.weights, *batch.counting)),
            np.int32(batch.zero_rows),
            np.uint64(order),
            np.uint64(start),
            np.int32(lane_bits),
            np.int64(rows),
        ),
    )


def _copied(matrix: Matrix, copy: int) -> tuple[np.generic, ...]:
    return np.uint64(matrix.address), np.int64(matrix.stride), np.int64(matrix.classes), np.uint64(copy)


def gather_defines(dtype: str, target_dtype: str) -> tuple[tuple[str, str], ...]:
    """The specialisation of the kernel that gathers a batch, for the dtypes of inputs and targets."""
    real = texts.SCALARS[np.dtype(REALS[dtype]).name]
    return (
        ("INPUT", texts.SCALARS[dtype]),
        ("TARGET", SCALARS[target_dtype]),
        ("RESULT_TARGET", "Long" if target_dtype == "int64" else real),
        ("REAL", real),
        ("THREADS", str(UNIT_THREADS)),
    )


def weigh_launch(counting: int, weights: int, shares: int, rows: int, reg: float, strength: int, dtype: str) -> Launch:
    """Launch that divides the weights of a batch by the sum of its counting weights; all are addresses."""
    arguments = (
        *map(np.uint64, (counting, weights, shares)),
        np.int64(rows),
        *as_reals(dtype, (reg,)),
        np.uint64(strength),
    )
    return Launch("weigh", total_defines(dtype), 1, TOTAL_THREADS, arguments)


def weigh_rows_launch(
    given: tuple[int, ...],
    ignored: int | None,
    written: tuple[int, ...],
    sizes: tuple[int, int],
    dtype: str,
    *,
    found: int,
    counter: int,
    within: bool,
    mean: bool,
) -> Launch:
    """Launch that weighs rows: see kernels/cuda/weigh_rows.cu.

    Addresses: `given` are labels of int64, sample weights and class weights; `written` are the counting weights, the
    weights, their total and the correction; `found` and `counter` are 0 before. `sizes` are rows and classes.
    """
    arguments = (
        *map(np.uint64, given),
        np.int32(ignored is not None),
        np.int64(ignored or 0),
        np.int32(within),
        np.int32(mean),
        *map(np.uint64, (*written, found)),
        *map(np.int64, sizes),
        np.uint64(counter),
    )
    grid = checked_grid(-(-sizes[0] // UNIT_THREADS))
    return Launch("weigh_rows", unit_defines(dtype), grid, UNIT_THREADS, arguments)


def record_launch(
    terms: int, length: int, losses: int, finite: int, place: int, rows: int, all_rows: int, dtype: str
) -> Launch:
    """Launch that adds up the loss of a step and ends the step; arrays are given by address."""
    arguments = (
        np.uint64(terms),
        np.int64(length),
        *map(np.uint64, (losses, finite, place)),
        np.int64(rows),
        np.int64(all_rows),
    )
    return Launch("record", total_defines(dtype), 1, TOTAL_THREADS, arguments)
