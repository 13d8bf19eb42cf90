"""Sums of CuPy arrays in a fixed order: of all entries, of rows, and of the penalties of weights."""

from __future__ import annotations

from collections.abc import Sequence

import cupy

from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.cuda import launches, plan, table_plan
from xpsoftmax.kernels.cuda.arrays import address_of, delivered, in_rows, matrix_of
from xpsoftmax.kernels.cuda.counters import counter_on


def total(x: Array) -> Array:
    """Sum of all entries of float32 or float64, 0-d."""
    with x.device:
        sums = cupy.ascontiguousarray(x)
        if not sums.size:
            return cupy.zeros((), x.dtype)
        while True:
            parts = plan.total_parts(sums.size)
            x, sums = sums, cupy.empty(parts if parts > 1 else (), x.dtype)
            launches.run(plan.total_launch(address_of(x), address_of(sums), x.size, dtype_name(x.dtype)))
            if parts == 1:
                return sums


def sum_of_rows(x: Array) -> Array:
    """See `xpsoftmax.kernels.generic.sum_of_rows`."""
    with x.device:
        if not x.size:
            return cupy.zeros(x.shape[1], x.dtype)
        sums = in_rows(x)
        while True:
            parts = table_plan.sum_parts(sums.shape[0])
            rows, sums = sums, cupy.empty((parts, x.shape[1]), x.dtype)
            _run(table_plan.sum_of_rows_launches([(matrix_of(rows), address_of(sums))]))
            if parts == 1:
                return sums[0]


def sums_of_rows(matrices: Sequence[Array]) -> list[Array]:
    """See `xpsoftmax.kernels.generic.sums_of_rows`; one launch for matrices of few rows."""
    with matrices[0].device:
        if not all(x.size for x in matrices):
            return [sum_of_rows(x) for x in matrices]
        sums = [in_rows(x) for x in matrices]
        while True:
            rows = sums
            sums = [cupy.empty((table_plan.sum_parts(x.shape[0]), x.shape[1]), x.dtype) for x in rows]
            pairs = zip(map(matrix_of, rows), map(address_of, sums), strict=True)
            _run(table_plan.sum_of_rows_launches(list(pairs)))
            if sums[0].shape[0] == 1:
                return [x[0] for x in sums]


def weight_penalties(
    weights: Sequence[Array], grads: Sequence[Array] | None, reg: float | Array, loss: Array
) -> tuple[Array, Sequence[Array] | None]:
    """See `xpsoftmax.kernels.generic.weight_penalties`; the gradients are written in place.

    One launch for all weights, which also adds the loss if the sums have few parts.
    """
    with loss.device:
        if not all(weight.size for weight in weights):
            return generic.weight_penalties(weights, grads, reg, loss)
        # Copies, where they are needed; they must live until the launch.
        given = [cupy.ascontiguousarray(weight) for weight in weights]
        slopes = None if grads is None else [cupy.ascontiguousarray(grad) for grad in grads]
        is_number = isinstance(reg, (int, float))
        strength = None if is_number else cupy.ascontiguousarray(reg).astype(loss.dtype, copy=False)
        sums = cupy.empty(1 + sum(plan.total_parts(weight.size) for weight in given), loss.dtype)
        few = len(given) <= table_plan.MOST_ITEMS and sums.size <= plan.MOST_ROWS_IN_ONE_LAUNCH
        counter = counter_on(loss.data.device_id) if few else None
        result = None if counter is None else cupy.empty((), loss.dtype)
        addresses = [0] * len(given) if slopes is None else list(map(address_of, slopes))
        _run(
            table_plan.penalty_launches(
                [(address_of(weight), grad, weight.size) for weight, grad in zip(given, addresses, strict=True)],
                address_of(sums),
                address_of(strength),
                float(reg) if is_number else 0.0,
                dtype_name(loss.dtype),
                table_plan.LossAdded(address_of(loss), address_of(result), address_of(counter)),
            )
        )
        result = total(sums) if result is None else result
        if grads is None or slopes is None:
            return result, None
        return result, [delivered(slope, out) for slope, out in zip(slopes, grads, strict=True)]


def _run(several: list[plan.Launch]) -> None:
    for launch in several:
        launches.run(launch)
