"""CuPy arrays as the kernels see them: an address, rows, neighbouring classes."""

from __future__ import annotations

from typing import Any

import cupy

from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.kernels.cuda import plan


def is_elsewhere(array: Array) -> bool:
    """Whether the current device is not the one that holds the array. Switching devices takes a microsecond."""
    return bool(array.data.device_id != cupy.cuda.runtime.getDevice())


def laid_out(shape: tuple[int, int], strides: tuple[int, int], dtype: Any) -> plan.Matrix | None:
    """Describe rows whose classes are contiguous in memory, at the address 0; None for rows laid out otherwise."""
    if len(shape) != 2 or not (shape[1] <= 1 or strides[1] == dtype.itemsize) or strides[0] % dtype.itemsize:
        return None
    return plan.Matrix(0, *shape, strides[0] // dtype.itemsize, dtype_name(dtype))


def lies_in_rows(array: Array) -> bool:
    """Whether the classes of each row are contiguous in memory: a kernel can read or write the array in place."""
    size = array.itemsize
    adjacent = array.shape[1] <= 1 or array.strides[1] == size
    return bool(adjacent and array.strides[0] % size == 0 and address_of(array) % size == 0)


def in_rows(array: Array) -> Array:
    """Return the array, or a copy if its classes are not contiguous; the copy costs less than the generic code."""
    return array if lies_in_rows(array) else cupy.ascontiguousarray(array)


def result_for(rows: Array, out: Array | None) -> Array:
    """Where a kernel writes: `out`, or a new array."""
    if out is not None and lies_in_rows(out):
        return out
    return cupy.empty(rows.shape, rows.dtype if out is None else out.dtype)


def delivered(result: Array, out: Array | None) -> Array:
    """Return `out`, after a result that lies elsewhere was copied into it; without `out`, return the result."""
    if out is None or out is result:
        return result
    out[...] = result
    return out


def address_of(array: Array | None) -> int:
    """Return the address of the first entry; 0 for no array."""
    return 0 if array is None else array.data.ptr


def matrix_of(array: Array) -> plan.Matrix:
    """Return what a plan needs to know of rows that a kernel can read in place."""
    rows, classes = array.shape
    return plan.Matrix(address_of(array), rows, classes, array.strides[0] // array.itemsize, dtype_name(array.dtype))
