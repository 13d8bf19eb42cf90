"""softmax, log_softmax and logsumexp of rows of CuPy arrays."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cupy

from xpsoftmax._typing import Array
from xpsoftmax.kernels.cuda import launches, plan
from xpsoftmax.kernels.cuda.arrays import address_of, delivered, in_rows, is_elsewhere, laid_out, matrix_of, result_for
from xpsoftmax.kernels.cuda.launches import Ready, capability_of, made_ready


def softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.softmax`."""
    return _elementwise("softmax", logits, out)


def log_softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.log_softmax`."""
    return _elementwise("log_softmax", logits, out)


def logsumexp_rows(logits: Array) -> Array:
    """See `xpsoftmax.logsumexp`."""
    with logits.device:
        rows = in_rows(logits)
        sums = cupy.empty(rows.shape[0], rows.dtype)
        if sums.size:
            launches.run(
                plan.rows_launch("logsumexp", matrix_of(rows), address_of(sums), capability_of(rows.device.id))
            )
        return sums


def _elementwise(operation: str, logits: Array, out: Array | None) -> Array:
    done = _plain_rows(operation, logits, out)
    if done is not None:
        return done
    with logits.device:
        rows = in_rows(logits)
        result = result_for(rows, out)
        if rows.size:
            launches.run(plan.rows_launch(operation, matrix_of(rows), matrix_of(result), capability_of(rows.device.id)))
        return delivered(result, out)


def _plain_rows(operation: str, logits: Array, out: Array | None) -> Array | None:
    """Run a row operation if no array has to be copied for it; else return None."""
    if is_elsewhere(logits):
        with logits.device:
            return _plain_rows(operation, logits, out)
    result = cupy.empty(logits.shape, logits.dtype) if out is None else out
    ready = _ready_rows(
        operation,
        logits.shape,
        logits.strides,
        logits.dtype,
        result.strides,
        result.dtype,
        logits.data.device_id,
    )
    if ready is None or (logits.data.ptr | result.data.ptr) % ready.alignment:
        return None
    ready.run(logits, result)
    return result


@lru_cache(maxsize=256)
def _ready_rows(
    operation: str,
    shape: tuple[int, int],
    strides: tuple[int, int],
    dtype: Any,
    result_strides: tuple[int, int],
    result_dtype: Any,
    device: int,
) -> Ready | None:
    """Return the launch of a row operation, still without addresses; None for another layout, or without rows."""
    logits, result = laid_out(shape, strides, dtype), laid_out(shape, result_strides, result_dtype)
    if logits is None or result is None or logits.rows == 0:
        return None
    launch = plan.rows_launch(operation, logits, result, capability_of(device))
    return made_ready(launch, device, max(dtype.itemsize, result_dtype.itemsize), None)
