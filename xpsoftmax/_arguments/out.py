"""The checks of `out=`: where a result may be written."""

from __future__ import annotations

import numpy as np
from array_api_compat import (
    is_cupy_array,
    is_dask_array,
    is_jax_array,
    is_numpy_array,
    is_torch_array,
    is_writeable_array,
)

from xpsoftmax._arguments.checks import as_companion
from xpsoftmax._arguments.home import library
from xpsoftmax._arguments.layout import Layout
from xpsoftmax._arguments.tracing import is_batched, is_differentiated
from xpsoftmax._typing import SIXTEEN_BIT, Array, dtype_name


def check_out(out: object, logits: object, layout: Layout, others: dict[str, object]) -> None:
    """Check an output array against the logits (as the user gave them) and the other arguments."""
    if out is None:
        return
    array = as_companion("out", out, layout.home)
    recorded = layout.home.differentiable and (is_differentiated(out) or is_differentiated(logits))
    if recorded and not is_batched(out):
        raise ValueError("out must be None where PyTorch differentiates the result, got a tensor. Call detach() first.")
    if is_jax_array(array) or is_dask_array(array):
        raise TypeError(
            f"out must be an array that can be written to, got one of {library(layout.home.xp)}. Leave it out."
        )
    if tuple(array.shape) != layout.shape:
        raise ValueError(f"out must have the shape of logits, {layout.shape}, got {tuple(array.shape)}.")
    dtype = logits.dtype  # type: ignore[attr-defined]
    wide = ("float32",) if dtype_name(dtype) in SIXTEEN_BIT else ()
    if dtype_name(array.dtype) not in (dtype_name(dtype), *wide):  # by name: in either byte order
        also = " or float32" if wide else ""
        raise TypeError(f"out must have the dtype of logits, {dtype}{also}, got {array.dtype}.")
    if not is_writeable_array(array):
        raise ValueError("out must be writable, got a read-only array.")
    if is_batched(out) or is_batched(logits):
        raise ValueError("out must be None inside torch.func.vmap, got a tensor.")
    check_memory(out, logits, others)


def check_memory(out: Array, logits: Array, others: dict[str, object]) -> None:
    """Check that nothing that is written to `out` changes an argument or another part of `out`."""
    if not _is_contiguous(out):
        footprint = _footprint(out)
        if footprint is not None and _overlaps_itself(*footprint[1:]):
            raise ValueError("out must not hold an element twice, got a broadcast or self-overlapping array.")
    if out is not logits and _share_memory(out, logits):
        footprint = _footprint(out)
        if footprint is None or footprint != _footprint(logits):
            raise ValueError("out must be logits itself or share no memory with it, got an overlapping array.")
    for name, other in others.items():
        if other is not None and _share_memory(out, other):
            raise ValueError(f"out must share no memory with {name}, got an overlapping array.")


def _is_contiguous(array: Array) -> bool:
    """Whether an array of NumPy or CuPy is C-contiguous; other libraries have no such flag."""
    return bool(getattr(getattr(array, "flags", None), "c_contiguous", False))


def _footprint(array: Array) -> tuple[int, tuple[int, ...], tuple[int, ...], int] | None:
    """Address, shape, strides in bytes and size of an element, where the library tells."""
    array = _as_numpy(array)
    if is_numpy_array(array):
        return array.__array_interface__["data"][0], array.shape, array.strides, array.itemsize
    if is_cupy_array(array):
        return array.data.ptr, array.shape, array.strides, array.itemsize
    if is_torch_array(array):
        size = array.element_size()
        return array.data_ptr(), tuple(array.shape), tuple(step * size for step in array.stride()), size
    return None


def _overlaps_itself(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether a stride is shorter than the span of the smaller strides, as in broadcasts and `as_strided` views."""
    span = itemsize
    for step, size in sorted((abs(step), size) for step, size in zip(strides, shape, strict=True) if size > 1):
        if step < span:
            return 0 not in shape
        span += step * (size - 1)
    return False


def _share_memory(a: Array, b: Array) -> bool:
    if type(a) is type(b) is np.ndarray:
        if a is not b and a.flags.owndata and b.flags.owndata:
            return False
    elif is_cupy_array(a) and is_cupy_array(b) and a.flags.c_contiguous and b.flags.c_contiguous:
        first, second = a.data.ptr, b.data.ptr
        apart = first + a.nbytes <= second or second + b.nbytes <= first or a.nbytes == 0 or b.nbytes == 0
        return a is b or not apart
    a, b = _as_numpy(a), _as_numpy(b)
    if is_numpy_array(a) and is_numpy_array(b):
        if not np.may_share_memory(a, b):
            return False
        try:
            return np.shares_memory(a, b, max_work=1_000_000)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True
    first, second = _extent(a), _extent(b)
    return a is b or (first is not None and second is not None and first[0] < second[1] and second[0] < first[1])


def _extent(array: Array) -> tuple[int, int] | None:
    """Return the address of the first byte and the one after the last. Interleaved arrays count as overlapping."""
    footprint = _footprint(array)
    if footprint is None or 0 in footprint[1]:
        return None
    address, shape, strides, itemsize = footprint
    spans = [(size - 1) * step for size, step in zip(shape, strides, strict=True)]
    return address + sum(s for s in spans if s < 0), address + sum(s for s in spans if s > 0) + itemsize


def _as_numpy(array: Array) -> Array:
    """Return a NumPy view of an array-api-strict array in host memory, to see its address; other arrays as they are."""
    if type(array) is not np.ndarray and type(array).__module__.startswith("array_api_strict"):
        try:
            return np.from_dlpack(array)
        except (BufferError, RuntimeError, ValueError, TypeError):
            return array
    return array
