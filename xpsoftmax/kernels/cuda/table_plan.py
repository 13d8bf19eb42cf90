"""Launches for several arrays at once: updates of parameters, penalties of weights, sums of rows. Plain Python.

The arrays are listed in a table, which is an argument of the kernel (kernels/cuda/tables.cuh). More arrays than a table
has room for take several launches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from xpsoftmax.kernels import rules
from xpsoftmax.kernels.cuda import texts
from xpsoftmax.kernels.cuda.plan import (
    TOTAL_THREADS,
    UNIT_THREADS,
    Launch,
    Matrix,
    as_reals,
    checked_grid,
    total_defines,
    total_parts,
    unit_defines,
)

MOST_ITEMS = 32
"""Room of a table: CUDA gives the arguments of a kernel 4 KiB, and an update has 72 bytes for each parameter."""

RULES = {
    rules.SGD: "sgd_rule",
    rules.MOMENTUM: "momentum_rule",
    rules.NESTEROV: "nesterov_rule",
    rules.VELOCITY: "velocity_rule",
    rules.NESTEROV_VELOCITY: "nesterov_velocity_rule",
    rules.ADAM: "adam_rule",
    rules.ADAMW: "adamw_rule",
}
"""The function of kernels/cuda/rules.cuh for each update rule that it has."""
RULE_NUMBERS = 8
"""How many numbers a rule takes at most."""
ENTRIES_OF_A_THREAD = {"float32": 4, "float64": 2}
"""Entries of a parameter that a thread updates, by dtype: more would need too many registers."""

Item = tuple[Sequence[int], int]
"""What a table says of an array, before its end, and how many thread blocks work on the array."""


def update_launches(
    rule: str,
    parameters: Sequence[tuple[Sequence[int], Sequence[int], int, int]],
    ok: int,
    dtype: str,
    numbers: tuple[float, ...] = (),
    rows_of_numbers: tuple[int, int] = (0, 0),
) -> list[Launch]:
    """Launches of an update rule.

    Each of `parameters` has the addresses of the arrays before the update (the parameter, and at most two that are kept
    of it) and after it, the address of its gradient, and the number of its entries. `rows_of_numbers` has the addresses
    of rows of `RULE_NUMBERS` numbers and of the int64 that says which row is taken; without them the numbers are those
    given.
    """
    rest = (0.0,) * (RULE_NUMBERS - len(numbers))
    arguments = np.uint64(ok), *map(np.uint64, rows_of_numbers), *as_reals(dtype, (*numbers, *rest))
    of_a_block = UNIT_THREADS * ENTRIES_OF_A_THREAD[dtype]
    items = [
        ((*_three(before), grad, *_three(after), length), -(-length // of_a_block))
        for before, after, grad, length in parameters
    ]
    return [
        Launch("parameter_update", update_defines(dtype, rule), grid, UNIT_THREADS, (table, *arguments))
        for table, grid in _tables(items)
    ]


def _three(addresses: Sequence[int]) -> tuple[int, ...]:
    return (*addresses, *(0,) * (3 - len(addresses)))


@cache
def update_defines(dtype: str, rule: str) -> tuple[tuple[str, str], ...]:
    """The specialisation of the kernel for updates."""
    return unit_defines(dtype, ("RULE", rule), ("EACH", str(ENTRIES_OF_A_THREAD[dtype])))


class LossAdded(NamedTuple):
    """Where a loss and the penalties are added up: addresses. The counter must be 0, and is 0 again afterwards."""

    loss: int = 0
    total: int = 0  # 0: the sums are only written, one after the other, behind a copy of the loss
    counter: int = 0


def penalty_launches(
    weights: Sequence[tuple[int, int, int]],
    sums: int,
    strength: int,
    reg: float,
    dtype: str,
    added: LossAdded = LossAdded(),  # noqa: B008 - it is immutable
) -> list[Launch]:
    """Launches of reg/2 * sum(w^2) of the parts of contiguous weights, and of grad += reg * w.

    Each of `weights` has the addresses of a weight and of its gradient (0: none), and the number of its entries. From
    the address `sums` on are the sums of `total_parts` of each weight, one after the other; the first entry is a loss,
    if one is added. `strength` is the address of the strength, or 0 where it is `reg`. Only one launch can add up: more
    weights than a table has room for have no total.
    """
    items: list[Item] = []
    itemsize = np.dtype(dtype).itemsize
    count = 1 if added.loss else 0
    for weight, grad, length in weights:
        items.append(((weight, grad, sums + count * itemsize, length), total_parts(length)))
        count += total_parts(length)
    launches: list[Launch] = []
    for table, grid in _tables(items):
        of_loss = (0, 0) if launches else (added.loss, sums)
        arguments = (
            table,
            np.uint64(strength),
            *as_reals(dtype, (reg,)),
            *map(np.uint64, of_loss),
            np.int64(count),
            np.uint64(added.total),
            np.uint64(added.counter),
        )
        launches.append(Launch("weight_penalty", total_defines(dtype), grid, TOTAL_THREADS, arguments))
    return launches


ROWS_OF_A_PART = 1024
"""Rows that a block of `sum_of_rows` adds up."""
SUM_LANES = 32
SUM_THREADS = 512


def sum_of_rows_launches(matrices: Sequence[tuple[Matrix, int]], *, added: bool = False) -> list[Launch]:
    """Launches of the sums of the rows of each part of some matrices of one dtype.

    With each matrix is the address of its sums, (sum_parts, H). With `added` they are added to what is there.
    """
    items = [
        ((x.address, x.stride, sums, x.rows, x.classes), -(-x.classes // SUM_LANES) * sum_parts(x.rows))
        for x, sums in matrices
    ]
    defines = sum_defines(matrices[0][0].dtype)
    return [
        Launch("sum_of_rows", defines, grid, SUM_THREADS, (table, np.int32(added))) for table, grid in _tables(items)
    ]


def sum_parts(rows: int) -> int:
    """How many parts the rows of a matrix are added up in."""
    return -(-rows // ROWS_OF_A_PART)


@cache
def sum_defines(dtype: str) -> tuple[tuple[str, str], ...]:
    """The specialisation of the kernel for sums of rows."""
    sizes = {"THREADS": SUM_THREADS, "LANES": SUM_LANES, "PART": ROWS_OF_A_PART}
    return (("SCALAR", texts.SCALARS[dtype]), *((name, str(size)) for name, size in sizes.items()))


def _tables(items: Sequence[Item]) -> Iterator[tuple[np.ndarray, int]]:
    """Tables of the items, and the number of thread blocks of each table."""
    for first in range(0, len(items), MOST_ITEMS):
        part = items[first : first + MOST_ITEMS]
        ends = list(accumulate(blocks for _, blocks in part))
        words = np.zeros((MOST_ITEMS, len(part[0][0]) + 1), np.int64)
        words[: len(part)] = [(*item, end) for (item, _), end in zip(part, ends, strict=True)]
        # CuPy passes a NumPy array of one element by value.
        yield words.reshape(-1).view(np.dtype((np.void, words.nbytes))).reshape(()), checked_grid(ends[-1])
