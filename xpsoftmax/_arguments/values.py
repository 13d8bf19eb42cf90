"""The checks that look at the values of arrays: labels, weights, soft targets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from array_api_compat import array_namespace, is_dask_array

from xpsoftmax._arguments.layout import Layout
from xpsoftmax._arguments.shapes import unknown
from xpsoftmax._arguments.tracing import check_has_values, unbatched
from xpsoftmax._typing import INTEGRAL, Array, Namespace, dtype_name

Rows: TypeAlias = "slice | None"


def first_marked(xp: Namespace, marks: Array) -> int:
    """Index of the first True in marks (N,), which has one; waits for the device."""
    return int(xp.argmax(xp.astype(marks, xp.int32)))


def bad_labels(labels: Array, layout: Layout, ignored: Array | None) -> Array:
    """Mark the labels that are neither a class nor ignored."""
    bad = (labels < 0) | (labels >= layout.classes)
    return bad if ignored is None else bad & ~ignored


def bad_masses(xp: Namespace, values: Array) -> Array:
    """Mark the weights or soft targets that are negative or not finite."""
    return ~(xp.isfinite(values) & (values >= 0.0))


class ValueCheck(NamedTuple):
    """Values of an array to check. Reading the result waits for the device."""

    name: str
    rule: str
    unit: str  # what an entry is: row, class, index
    bad: Callable[[Rows], Array]  # the mask of some rows
    values: Array  # as the user gave them
    parts: Sequence[Rows] = (None,)  # checked one after the other


def rows_of(array: Array, rows: Rows) -> Array:
    """Some rows of an array; all of it for None."""
    return array if rows is None else array[rows, ...]


def check_values(xp: Namespace, value_checks: Sequence[ValueCheck]) -> None:
    """Raise ValueError for the first bad value; all checks share one synchronisation."""
    flag = None
    for value_check in value_checks:
        for rows in value_check.parts:
            bad = value_check.bad(rows)
            check_has_values("labels", bad)
            found = np.count_nonzero(bad) > 0 if type(bad) is np.ndarray else xp.any(unbatched(bad))
            flag = found if flag is None else flag | found
    if flag is not None and bool(flag):
        for value_check in value_checks:
            _raise_first(value_check)


class BadValue(NamedTuple):
    """The first bad value. `in_block` turns the row of a block into a row of all blocks."""

    name: str
    rule: str
    value: float
    unit: str
    position: tuple[int, ...]
    hint: str = ""

    def text(self) -> str:
        """The message of the exception."""
        place = f" at {self.unit} {self.position[0] if len(self.position) == 1 else self.position}"
        text = f"{self.name} must {self.rule}, got {self.value}{place if self.position else ''}."
        return f"{text} {self.hint}" if self.hint else text

    def error(self) -> ValueError:
        """The exception to raise, with this object as its attribute `bad`."""
        error = ValueError(self.text())
        error.bad = self  # type: ignore[attr-defined]
        return error


def starts_of(sizes: Sequence[float]) -> tuple[int, ...] | None:
    """The number of the first row of each block; None where the sizes of the blocks are not known (nan)."""
    if any(unknown(size) for size in sizes):
        return None
    return tuple(itertools.accumulate(map(int, sizes[:-1]), initial=0))


def in_block(bad: BadValue, number: int, starts: Sequence[int] | None) -> BadValue:
    """Turn the row of a block into a row of all blocks, or name the block where the sizes of blocks are not known."""
    row, *rest = bad.position
    if starts is None:
        return bad._replace(unit=f"block {number}, {bad.unit}")
    return bad._replace(position=(starts[number] + row, *rest))


def _raise_first(value_check: ValueCheck) -> None:
    for rows in value_check.parts:
        bad, values = (_computed(unbatched(x)) for x in (value_check.bad(rows), rows_of(value_check.values, rows)))
        xp = array_namespace(bad)
        if not bool(xp.any(bad)):
            continue
        flat = first_marked(xp, xp.reshape(bad, (-1,)))
        position = tuple(int(i) for i in np.unravel_index(flat, tuple(bad.shape)))
        if rows is not None:
            position = (rows.start + position[0], *position[1:])
        value = xp.reshape(values, (-1,))[flat]
        value = value.item() if hasattr(value, "item") else value  # PyTorch's int() has no uint64 above 2**63
        value = int(value) if dtype_name(values.dtype) in INTEGRAL else float(value)
        raise BadValue(value_check.name, value_check.rule, value, value_check.unit, position).error()


def _computed(array: Array) -> Array:
    return array.compute() if is_dask_array(array) else array
