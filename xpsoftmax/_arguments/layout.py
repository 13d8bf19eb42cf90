"""The class axis moved last and the other axes flattened to rows, and back."""

from __future__ import annotations

import math

from array_api_compat import is_jax_namespace

from xpsoftmax._arguments.frame import Frame
from xpsoftmax._typing import Array, Namespace
from xpsoftmax.kernels import generic, select


def to_rows(xp: Namespace, array: Array, axis: int) -> Array:
    """View or copy (..., C, ...) as rows (R, C); a 2-D array is never reshaped: dask may not know its length."""
    if array.ndim == 2:
        return array if axis == 1 else xp.permute_dims(array, (1, 0))
    if axis != array.ndim - 1:
        array = moved(xp, array, axis, array.ndim - 1)
    classes = array.shape[-1]
    return reshaped(xp, array, (math.prod(array.shape[:-1]), classes))


def reshaped(xp: Namespace, array: Array, shape: tuple[int, ...]) -> Array:
    """Array in another shape; in JAX it may be in parts on several devices."""
    return select("reshaped", array, "generic")(array, shape) if is_jax_namespace(xp) else xp.reshape(array, shape)


def in_rows(array: Array, frame: Frame, out: Array | None) -> Array:
    """Return the logits as rows; widened if the result goes to `out` by way of a copy, which must round only once."""
    xp = frame.xp
    if frame.axes:
        array = xp.permute_dims(array, (*frame.row_axes, *frame.axes))
        rows = reshaped(xp, array, (math.prod(frame.rows_shape), frame.classes))
    else:
        rows = to_rows(xp, array, frame.axis)
    if out is not None and rows_out(frame, out) is None:
        return xp.astype(rows, frame.working, copy=False)
    return rows


def from_rows(xp: Namespace, rows: Array, frame: Frame) -> Array:
    """Undo `in_rows`."""
    if frame.axes:
        order = (*frame.row_axes, *frame.axes)
        array = reshaped(xp, rows, tuple(frame.shape[axis] for axis in order))
        return xp.permute_dims(array, tuple(order.index(axis) for axis in range(len(order))))
    if len(frame.shape) == 2:
        return rows if frame.axis == 1 else xp.permute_dims(rows, (1, 0))
    return moved(xp, reshaped(xp, rows, (*frame.rows_shape, frame.classes)), len(frame.shape) - 1, frame.axis)


def moved(xp: Namespace, array: Array, axis: int, to: int) -> Array:
    """Put an axis elsewhere. PyTorch's moveaxis does not run under torch.func.vmap."""
    if axis == to:
        return array
    order = [i for i in range(array.ndim) if i != axis]
    order.insert(to, axis)
    return xp.permute_dims(array, tuple(order))


def deliver(xp: Namespace, rows: Array, frame: Frame, out: Array | None) -> Array:
    """Bring rows into the caller's shape; copy them to `out` unless a kernel has written there already."""
    if out is None:
        return from_rows(xp, rows, frame)
    if rows_out(frame, out) is None:
        copied(xp, from_rows(xp, rows, frame), out)
    return out


def copied(xp: Namespace, result: Array, out: Array) -> None:
    """Copy a result to `out`, rounded to its dtype."""
    target = out.detach() if hasattr(out, "detach") else out
    target[...] = generic.narrowed(xp, result, out.dtype)


def rows_out(frame: Frame, out: Array | None) -> Array | None:
    """Return `out` as the rows that a kernel can write straight into, if it lies that way."""
    if (
        out is None
        or len(frame.shape) != 2
        or frame.axis != 1
        or frame.axes
        or not getattr(out.dtype, "isnative", True)
    ):
        return None
    return out.detach() if hasattr(out, "detach") else out
