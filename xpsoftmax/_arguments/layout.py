"""How logits are laid out: the class axis moved last and the other axes flattened to rows, and back."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from xpsoftmax._arguments.home import Home
from xpsoftmax._arguments.shapes import unknown
from xpsoftmax._typing import Array, DType, Namespace
from xpsoftmax.kernels import generic, of_library


class Layout(NamedTuple):
    """Home, shape and class axis of the logits. The other arrays of a call must fit."""

    home: Home
    shape: tuple[Any, ...]  # of the logits; a size is nan where a dask array does not know it
    axis: int  # of the classes, not negative
    working: DType  # float32 or float64
    blocks: tuple[int, ...] = ()  # of a dask array: how many along each axis
    axes: tuple[int, ...] = ()  # of the classes where they have several, in order; `axis` is the last of them

    @property
    def lengthless(self) -> bool:
        """Whether the rows are blocks of a dask array that does not know how many each block has."""
        return bool(self.blocks) and any(unknown(size) for size in self.shape)

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return math.prod(int(self.shape[axis]) for axis in self.axes) if self.axes else int(self.shape[self.axis])

    @property
    def rows_shape(self) -> tuple[Any, ...]:
        """Shape of the logits without the class axes: one entry a row."""
        if self.axes:
            return tuple(self.shape[axis] for axis in self.row_axes)
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]

    @property
    def row_axes(self) -> tuple[int, ...]:
        """The axes that are not of the classes."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in (self.axes or (self.axis,)))


def to_rows(xp: Namespace, array: Array, axis: int) -> Array:
    """View or copy (..., C, ...) as rows (R, C); a 2-D array is never reshaped: dask may not know its length."""
    if array.ndim == 2:
        return array if axis == 1 else xp.permute_dims(array, (1, 0))
    if axis != array.ndim - 1:
        array = moved(xp, array, axis, array.ndim - 1)
    classes = array.shape[-1]
    return reshaped(array, (math.prod(array.shape[:-1]), classes))


def reshaped(array: Array, shape: tuple[int, ...]) -> Array:
    """Reshape an array. JAX arrays may be distributed over several devices, and have their own function."""
    return of_library("reshaped", array)(array, shape)


def in_rows(array: Array, layout: Layout, out: Array | None) -> Array:
    """Return the logits as rows; in the working precision if the result is copied to `out`, to round only once."""
    xp = layout.home.xp
    if layout.axes:
        array = xp.permute_dims(array, (*layout.row_axes, *layout.axes))
        rows = reshaped(array, (math.prod(layout.rows_shape), layout.classes))
    else:
        rows = to_rows(xp, array, layout.axis)
    if out is not None and rows_out(layout, out) is None:
        return xp.astype(rows, layout.working, copy=False)
    return rows


def from_rows(xp: Namespace, rows: Array, layout: Layout) -> Array:
    """Undo `in_rows`."""
    if layout.axes:
        order = (*layout.row_axes, *layout.axes)
        array = reshaped(rows, tuple(layout.shape[axis] for axis in order))
        return xp.permute_dims(array, tuple(order.index(axis) for axis in range(len(order))))
    if len(layout.shape) == 2:
        return rows if layout.axis == 1 else xp.permute_dims(rows, (1, 0))
    return moved(xp, reshaped(rows, (*layout.rows_shape, layout.classes)), len(layout.shape) - 1, layout.axis)


def rowwise(values: Array, layout: Layout) -> Array:
    """One value a row, in the shape of the logits without the class axes."""
    return values if len(layout.shape) == 2 and not layout.axes else reshaped(values, layout.rows_shape)


def moved(xp: Namespace, array: Array, axis: int, to: int) -> Array:
    """Move an axis. PyTorch's moveaxis does not run under torch.func.vmap."""
    if axis == to:
        return array
    order = [i for i in range(array.ndim) if i != axis]
    order.insert(to, axis)
    return xp.permute_dims(array, tuple(order))


def deliver(xp: Namespace, rows: Array, layout: Layout, out: Array | None) -> Array:
    """Bring rows into the caller's shape; copy them to `out` unless a kernel has written there already."""
    if out is None:
        return from_rows(xp, rows, layout)
    if rows_out(layout, out) is None:
        copied(xp, from_rows(xp, rows, layout), out)
    return out


def copied(xp: Namespace, result: Array, out: Array) -> None:
    """Copy a result to `out`, rounded to its dtype."""
    target = out.detach() if hasattr(out, "detach") else out
    target[...] = generic.narrowed(xp, result, out.dtype)


def rows_out(layout: Layout, out: Array | None) -> Array | None:
    """Return `out` as rows that a kernel can write to; None if its layout or byte order needs a copy."""
    if (
        out is None
        or len(layout.shape) != 2
        or layout.axis != 1
        or layout.axes
        or not getattr(out.dtype, "isnative", True)
    ):
        return None
    return out.detach() if hasattr(out, "detach") else out
