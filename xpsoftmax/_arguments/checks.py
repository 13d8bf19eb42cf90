"""The checks of arrays: "{argument} must {rule}, got {value}."."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import (
    array_namespace,
    is_array_api_obj,
    is_dask_array,
    is_jax_array,
    is_numpy_array,
    is_pydata_sparse_array,
    is_torch_array,
)

from xpsoftmax._arguments.home import Home, home_of, library, numpy_namespace, same_devices
from xpsoftmax._arguments.layout import Layout
from xpsoftmax._arguments.options import as_integer
from xpsoftmax._arguments.shapes import same_shape, size_hint, unknown
from xpsoftmax._arguments.tracing import check_untransformed
from xpsoftmax._typing import FLOATING, INTEGRAL, SIXTEEN_BIT, Array, Device, DType, Namespace, dtype_name


def as_array(name: str, value: object, *, differentiable: bool = False) -> tuple[Namespace, Array]:
    """Check that `value` is an array; return its namespace and the array, freed of subclasses.

    It is freed of autograd, too, unless the result of the function is `differentiable`.
    """
    if type(value) is np.ndarray:  # nothing to check; this saves time in small calls
        return numpy_namespace(), value
    if not _is_dense(value):
        raise TypeError(f"{name} must be a plain dense array, got {_kind(value)}. Convert it first.")
    try:
        xp = array_namespace(value)
    except TypeError:
        hint = " Make one with numpy.asarray." if isinstance(value, (list, tuple, int, float)) else ""
        raise TypeError(f"{name} must be an array of an Array API library, got {_kind(value)}.{hint}") from None
    if is_numpy_array(value):
        value = np.asarray(value)
    elif is_torch_array(value):
        if not differentiable:
            check_untransformed(name, value)
            value = value.detach()
    elif is_dask_array(value):
        value = without_empty_blocks(value)
    return xp, value


def without_empty_blocks(array: Array) -> Array:
    """Drop the blocks of a dask array that are known to be empty; if all are empty, one block stays.

    Dask repeats every dimension of size 1 for the blocks of other arrays, and does not reshape empty blocks. If a
    single row lies among empty blocks, both lead to wrong results, or to errors about the graph of dask.
    """
    for axis, sizes in enumerate(array.chunks):
        kept = [block for block, size in enumerate(sizes) if size != 0] or [0]
        if len(kept) < len(sizes) and not any(unknown(size) for size in sizes):
            array = array.blocks[(*(slice(None),) * axis, kept)]
    nothing = 0 in array.shape and not any(unknown(size) for size in array.shape)
    return array.rechunk(-1) if nothing and array.npartitions > 1 else array


def _is_dense(value: Any) -> bool:
    # np.matrix multiplies with * and a masked array hides values: both would change what every formula means.
    if isinstance(value, (np.ma.MaskedArray, np.matrix)) or is_pydata_sparse_array(value):
        return False
    if is_torch_array(value):
        return str(value.layout) == "torch.strided" and not value.is_nested
    return not is_dask_array(value) or (is_array_api_obj(value._meta) and _is_dense(value._meta))


def _is_floating(array: Array) -> bool:
    kind = dtype_name(array.dtype)
    if kind != "bfloat16":
        return kind in FLOATING
    # For NumPy, bfloat16 is a user-defined dtype: its comparisons and reductions are not reliable.
    return not (is_numpy_array(array) or is_dask_array(array))


def as_floating(name: str, value: object, *, differentiable: bool = False) -> tuple[Namespace, Array]:
    """Check for an array of float16, bfloat16, float32 or float64; return it in native byte order."""
    xp, array = as_array(name, value, differentiable=differentiable)
    if not _is_floating(array):
        raise TypeError(f"{name} must be of dtype float16, bfloat16, float32 or float64, got {array.dtype}.")
    if not getattr(array.dtype, "isnative", True):
        array = xp.astype(array, array.dtype.newbyteorder("="))
    return xp, array


def as_logits(logits: object, axis: object, *, differentiable: bool = False) -> tuple[Array, Layout]:
    """Check the logits and the class axis."""
    xp, array = as_floating("logits", logits, differentiable=differentiable)
    if array.ndim == 0:
        raise ValueError("logits must have at least one dimension, got shape ().")
    position = as_axis(axis, array.ndim)
    if array.shape[position] == 0:
        raise ValueError(f"logits must have at least one class along axis {axis}, got shape {tuple(array.shape)}.")
    if unknown(array.shape[position]) or (array.ndim != 2 and any(unknown(size) for size in array.shape)):
        raise ValueError(
            f"logits must be of known size, except for the rows of a matrix, got shape {tuple(array.shape)}. "
            "For a dask array, call compute_chunk_sizes() first."
        )
    where = Home(xp, home_of(array), differentiable=differentiable)
    return array, Layout(where, tuple(array.shape), position, working_dtype(xp, array), blocks_of(array))


def working_dtype(xp: Namespace, array: Array) -> DType:
    """Return float32 for 16-bit numbers, else the array's own dtype."""
    return xp.float32 if dtype_name(array.dtype) in SIXTEEN_BIT else array.dtype


def as_axis(axis: object, ndim: int) -> int:
    """Check an axis; return it counted from the front."""
    position = as_integer("axis", axis)
    if not -ndim <= position < ndim:
        raise ValueError(f"axis must be from {-ndim} to {ndim - 1} for {ndim}-dimensional logits, got {position}.")
    return position % ndim


def as_companion(name: str, value: object, home: Home) -> Array:
    """Check that an array is of the library, and on the device, of the arrays of a call."""
    xp, array = as_array(name, value, differentiable=home.differentiable)
    if xp is home.xp and type(array) is np.ndarray:
        return array
    if xp is not home.xp:
        hint = " For rows in dask arrays see xpsoftmax.dask." if name == "X" and is_dask_array(array) else ""
        raise TypeError(
            f"{name} must be an array of the same library as {home.owner} ({library(home.xp)}), "
            f"got one of {library(xp)}.{hint}"
        )
    where = home_of(array)
    # Arrays being traced by jax.jit have no device.
    if where is not None and home.device is not None and not same_devices(where, home.device):
        raise ValueError(f"{name} must be on the device of {home.owner} ({home.device}), got {where}.")
    return array


def blocks_of(array: Array) -> tuple[int, ...]:
    """Number of blocks of a dask array along each axis; () for other arrays."""
    return tuple(array.numblocks) if is_dask_array(array) else ()


def check_blocks(name: str, array: Array, layout: Layout) -> None:
    """Check that a dask array of unknown length has as many blocks of rows as the logits."""
    for axis, size in enumerate(array.shape if layout.blocks else ()):
        if not unknown(size):
            continue
        rows = next(i for i, length in enumerate(layout.shape) if unknown(length))
        if array.numblocks[axis] != layout.blocks[rows]:
            raise ValueError(
                f"{name} must have as many blocks of rows as {layout.home.owner} where their sizes are not known, "
                f"{layout.blocks[rows]}, got {array.numblocks[axis]}. Call compute_chunk_sizes() on both first."
            )


def _kind(value: Any) -> str:
    if is_torch_array(value) and not _is_dense(value):
        return "a nested tensor" if value.is_nested else f"one of the layout {value.layout}"
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}".removeprefix("builtins.")


def as_targets(targets: object, layout: Layout, ignore_index: int | None) -> Array:
    """Check targets: labels or soft targets."""
    array = as_companion("targets", targets, layout.home)
    if dtype_name(array.dtype) in INTEGRAL:
        if not same_shape(array.shape, layout.rows_shape):
            raise ValueError(
                f"targets must have shape {layout.rows_shape} if they are integer labels for logits of shape "
                f"{layout.shape} with classes along axis {layout.axis}, got {tuple(array.shape)}. "
                f"One-hot rows must be of a floating dtype.{size_hint(array.shape, layout.shape)}"
            )
        check_blocks("targets", array, layout)
        return array
    if not _is_floating(array):
        raise TypeError(f"targets must be integer labels or floating soft targets, got dtype {array.dtype}.")
    if not same_shape(array.shape, layout.shape):
        raise ValueError(
            f"targets must have the shape of logits, {layout.shape}, if they are floating soft targets, "
            f"got {tuple(array.shape)}. Labels must be of an integer dtype.{size_hint(array.shape, layout.shape)}"
        )
    check_blocks("targets", array, layout)
    if ignore_index is not None:
        raise ValueError(
            f"ignore_index must be None for soft targets, got {ignore_index}. Use sample_weight to leave rows out."
        )
    return array


def index_of(labels: Array, xp: Namespace) -> tuple[DType, bool]:
    """Return the index dtype of the library, and whether labels of this dtype may be too large for it."""
    index = xp.__array_namespace_info__().default_dtypes()["indexing"] if is_jax_array(labels) else xp.int64
    if labels.dtype == index:
        return index, False
    return index, xp.isdtype(labels.dtype, "unsigned integer") and xp.iinfo(labels.dtype).max > xp.iinfo(index).max


def as_index(labels: Array, index: DType, layout: Layout, ignore_index: int | None, *, wraps: bool) -> Array:
    """Labels in the index dtype; unsigned values beyond it become a label that is bad and not ignored."""
    if labels.dtype == index:
        return labels
    if type(labels) is np.ndarray and not wraps:  # the same without the wrapper
        return labels.astype(index)
    xp = layout.home.xp
    labels = xp.astype(labels, index, copy=False)
    if wraps:
        bad = layout.classes + (layout.classes == ignore_index)
        labels = xp.where(labels < 0, bad, labels)
    return labels


def as_weight(name: str, value: object, layout: Layout, shape: tuple[Any, ...], meaning: str) -> Array | None:
    """Check an optional array of weights."""
    if value is None:
        return None
    array = as_companion(name, value, layout.home)
    if not _is_floating(array) and dtype_name(array.dtype) not in INTEGRAL:
        raise TypeError(f"{name} must be of a real floating or integer dtype, got {array.dtype}.")
    if not same_shape(array.shape, shape):
        hint = size_hint(array.shape, shape)
        raise ValueError(f"{name} must have shape {shape}, {meaning}, got {tuple(array.shape)}.{hint}")
    check_blocks(name, array, layout)
    return array


def as_dtype(xp: Namespace, array: Array, dtype: DType) -> Array:
    """Cast an array if it is of another dtype."""
    return array if array.dtype == dtype else xp.astype(array, dtype)


def as_namespace(name: str, module: Any) -> Namespace:
    """Check for a library of arrays; return its Array API namespace."""
    try:
        return array_namespace(module.asarray(0.0))
    except (AttributeError, TypeError):
        raise TypeError(f"{name} must be an Array API library such as numpy or cupy, got {module!r}.") from None


def as_placement(xp: Namespace, dtype: DType | None, where: Device | None) -> dict[str, Any]:
    """Check dtype and device of new arrays of a library; return them as keywords."""
    failures = (TypeError, ValueError, RuntimeError, AttributeError, AssertionError)
    if dtype is None:
        dtype = xp.__array_namespace_info__().default_dtypes()["real floating"]
    try:
        probe = xp.zeros((), dtype=dtype)
    except failures:
        raise TypeError(f"dtype must be a dtype of {library(xp)}, got {dtype!r}.") from None
    if not _is_floating(probe):
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {probe.dtype}.")
    if where is None:
        return {"dtype": dtype}
    try:
        xp.zeros((), dtype=dtype, device=where)
    except failures:
        raise ValueError(f"device must be a device of {library(xp)} that can be used here, got {where!r}.") from None
    return {"dtype": dtype, "device": where}
