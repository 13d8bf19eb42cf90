"""Several class axes at once, and masks of classes: options of softmax, log_softmax and logsumexp."""

from __future__ import annotations

from typing import TypeAlias

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.layout import Layout
from xpsoftmax._arguments.shapes import same_shape, size_hint
from xpsoftmax._typing import Array

INF = float("inf")

Axes: TypeAlias = int | tuple[int, ...] | None
"""The axes that are summed over; None for all."""


def as_logits_over_axes(logits: object, axis: object, *, differentiable: bool = False) -> tuple[Array, Layout]:
    """Check the logits and the class axes."""
    if axis is not None and not isinstance(axis, tuple):
        return check.as_logits(logits, axis, differentiable=differentiable)
    _, array = check.as_floating("logits", logits, differentiable=differentiable)
    axes = sorted(check.as_axis(each, array.ndim) for each in (range(array.ndim) if axis is None else axis))
    if axis == ():
        raise ValueError("axis must name at least one axis, got ().")
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis must name each axis once, got {axis}.")
    for each in axes or (-1,):  # none of these axes may be empty, or of unknown size; a number has none
        array, layout = check.as_logits(array, each, differentiable=differentiable)
    return array, layout._replace(axis=axes[-1], axes=tuple(axes) if len(axes) > 1 else ())


def as_mask(where: object, layout: Layout) -> Array | None:
    """Check a mask of classes, which broadcasts to the logits; True keeps a class."""
    if where is None:
        return None
    mask = check.as_companion("where", where, layout.home)
    if not layout.home.xp.isdtype(mask.dtype, "bool"):
        raise TypeError(f"where must be of dtype bool, got {mask.dtype}.")
    last = layout.shape[len(layout.shape) - mask.ndim :]
    wanted = tuple(1 if own == 1 else size for own, size in zip(mask.shape, last, strict=False))
    if mask.ndim > len(layout.shape) or not same_shape(mask.shape, wanted):
        hint = size_hint(mask.shape, layout.shape)
        raise ValueError(
            f"where must have a shape that broadcasts to that of logits, {layout.shape}, got {tuple(mask.shape)}.{hint}"
        )
    if mask.ndim == len(layout.shape):
        check.check_blocks("where", mask, layout)
    return mask


def masked(array: Array, mask: Array | None, layout: Layout) -> Array:
    """Return the logits with -inf for the classes that the mask leaves out."""
    return array if mask is None else layout.home.xp.where(mask, array, -INF)
