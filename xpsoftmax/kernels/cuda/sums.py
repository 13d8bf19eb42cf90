"""Sums of CuPy arrays in a fixed order: of all entries, of rows, and the penalty of a weight."""

from __future__ import annotations

import cupy

from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.kernels.cuda import launches, plan
from xpsoftmax.kernels.cuda.arrays import address_of, delivered, in_rows, matrix_of


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
            parts = plan.sum_parts(sums.shape[0])
            rows, sums = sums, cupy.empty((parts, x.shape[1]), x.dtype)
            launches.run(plan.sum_of_rows_launch(matrix_of(rows), address_of(sums)))
            if parts == 1:
                return sums[0]


def weight_penalty(weight: Array, grad: Array | None, reg: float | Array) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.weight_penalty`; the gradient is written in place."""
    with weight.device:
        if not weight.size:
            return cupy.zeros((), weight.dtype), grad
        # Copies, where they are needed; they must live until the launch.
        given, slopes = cupy.ascontiguousarray(weight), None if grad is None else cupy.ascontiguousarray(grad)
        strength = (
            None if isinstance(reg, (int, float)) else cupy.ascontiguousarray(reg).astype(given.dtype, copy=False)
        )
        parts = plan.total_parts(given.size)
        sums = cupy.empty(parts if parts > 1 else (), given.dtype)
        launches.run(
            plan.penalty_launch(
                address_of(given),
                address_of(slopes),
                address_of(strength),
                0.0 if strength is not None else float(reg),
                address_of(sums),
                given.size,
                dtype_name(given.dtype),
            )
        )
        return sums if parts == 1 else total(sums), None if slopes is None else delivered(slopes, grad)
