"""Row operations on dask arrays: each block of rows is computed by the operation for arrays of the kind of the blocks.

A block sees whole rows, however the classes are chunked. The graph has one task for each block; the elementwise code of
`generic` on the dask arrays themselves would make a hundred. No warning comes from a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
from array_api_compat import array_namespace
from dask.array.utils import meta_from_array

from xpsoftmax._typing import Array, LossSpec
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.activations import Activation
from xpsoftmax.kernels.generic import narrowed


def by_blocks(operation: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return the row operation for dask arrays, given the operation for their blocks.

    Operations that are not listed below are elementwise: dask computes the generic ones block by block by itself.
    """
    return _OPERATIONS[operation](kernel) if operation in _OPERATIONS else getattr(generic, operation)


def with_rows_of(name: str, array: Array, owner: str, like: Array) -> Array:
    """Return an array, (R,) or (R, C), of which each block must have as many rows as that of `like`; else ValueError.

    Where the sizes of blocks are unknown, dask would broadcast a block of one row against a longer one.
    """
    # Blocks get whole rows: the index "l" is contracted, and "j" is new, because dask aligns two axes of one index.
    pairs = [(like, "ik"[: like.ndim]), (array, "il"[: array.ndim])]
    columns = {"j": array.shape[1]} if array.ndim == 2 else {}
    index = "ij"[: array.ndim]
    return _blockwise(_second, index, *pairs, new_axes=columns, dtype=array.dtype, names=(owner, name))


def _second(first: Array, second: Array) -> Array:  # noqa: ARG001
    return second


def _same_shape(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """One or two arrays (R, C) to one (R, C)."""

    def mapped(*arrays: Array, out: None = None) -> Array:  # noqa: ARG001
        classes = arrays[0].shape[1]
        pairs = [(x, "ij") for x in arrays]
        names = ("logits", "tangent")
        return _blockwise(kernel, "ik", *pairs, new_axes={"k": classes}, dtype=arrays[0].dtype, names=names)

    return mapped


def _reduced(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """(R, C) to (R,)."""
    return lambda logits: _blockwise(kernel, "i", (logits, "ij"), new_axes={}, dtype=logits.dtype)


def _product(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """(R, C) and (C, D) to (R, D)."""

    def mapped(left: Array, right: Array) -> Array:
        return _blockwise(kernel, "ik", (left, "ij"), (right, "jk"), new_axes={}, dtype=left.dtype)

    return mapped


def _bias_activation(kernel: Callable[..., Any]) -> Callable[..., Any]:  # noqa: ARG001
    """Products (R, H) and bias (H,) to the activation and, with `grad`, its slope (R, H).

    The generic operation computes a block: a kernel would overwrite it, and other tasks may need it.
    """

    def mapped(
        z: Array,
        bias: Array,
        activation: Activation,
        *,
        grad: bool,
        out: None = None,  # noqa: ARG001
    ) -> tuple[Array, Array | None]:
        pairs = [(z, "ij"), (bias, "j")]
        options = {"dtype": z.dtype, "activation": activation}
        if not grad:
            return _blockwise(_value_of_block, "ij", *pairs, new_axes={}, **options), None
        both = _blockwise(_value_and_slope_of_block, "nij", *pairs, new_axes={"n": 2}, **options)
        return both[0, ...], both[1, ...]

    return mapped


def _value_of_block(z: Array, bias: Array, *, activation: Activation) -> Array:
    return generic.bias_activation(z, bias, activation, grad=False)[0]


def _value_and_slope_of_block(z: Array, bias: Array, *, activation: Activation) -> Array:
    """Value and slope stacked: a task returns one array."""
    xp = array_namespace(z)
    value, slope = generic.bias_activation(z, bias, activation, grad=True)
    return xp.stack([value, xp.ones_like(value) if slope is None else slope])


def _squared(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """(R, C) to (R, C, C)."""

    def mapped(logits: Array) -> Array:
        classes = logits.shape[1]
        return _blockwise(kernel, "ikl", (logits, "ij"), new_axes={"k": classes, "l": classes}, dtype=logits.dtype)

    return mapped


def _loss(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Loss (R,) and gradient (R, C)."""

    def mapped(
        logits: Array,
        targets: Array,
        row_weight: Array,
        spec: LossSpec,
        *,
        grad: bool,
        out: None = None,  # noqa: ARG001
    ) -> tuple[Array, Array | None]:
        pairs = [(logits, "ij"), (targets, "ij"[: targets.ndim]), (row_weight, "i")]
        if spec.class_weight is not None:
            pairs.append((spec.class_weight, "j"))
        width = 1 + (logits.shape[1] if grad else 0)
        options = {"kernel": kernel, "spec": replace(spec, class_weight=None), "grad": grad, "names": ROWS_OF_LOSS}
        # A task returns one array, with the loss as its first column, in the working precision.
        both = _blockwise(_loss_of_block, "ik", *pairs, new_axes={"k": width}, dtype=row_weight.dtype, **options)
        return both[:, 0], narrowed(array_namespace(both), both[:, 1:], logits.dtype) if grad else None

    return mapped


ROWS_OF_LOSS = ("logits", "targets", "sample_weight")


def _loss_of_block(
    logits: Array,
    targets: Array,
    row_weight: Array,
    class_weight: Array | None = None,
    *,
    kernel: Callable[..., Any],
    spec: LossSpec,
    grad: bool,
) -> Array:
    wide = logits.astype(row_weight.dtype)  # a 16-bit gradient is rounded once, at the end
    losses, dlogits = kernel(wide, targets, row_weight, replace(spec, class_weight=class_weight), grad=grad)
    columns = [losses[:, None], dlogits] if grad else [losses[:, None]]
    return array_namespace(losses).concat(columns, axis=1)


def _blockwise(
    function: Callable[..., Any],
    index: str,
    *pairs: tuple[Array, str],
    new_axes: dict[str, int],
    dtype: Any,
    **options: Any,
) -> Array:
    flat = [x for pair in pairs for x in pair]
    meta = meta_from_array(pairs[0][0], ndim=len(index), dtype=dtype)
    return da.blockwise(
        _quietly, index, *flat, new_axes=new_axes, concatenate=True, meta=meta, function=function, **options
    )


def by_rows(function: Callable[..., Array], array: Array, dtype: Any, **options: Any) -> Array:
    """Apply a function to each block (r, C) of an array (R, C), and to the number of the block; the result is (R,)."""
    numbers = da.arange(array.numblocks[0], chunks=1)
    meta = meta_from_array(array, ndim=1, dtype=dtype)
    return da.blockwise(
        _quietly, "i", array, "ij", numbers, "i", concatenate=True, align_arrays=False, meta=meta, function=function,
        **options,
    )  # fmt: skip


def _quietly(*blocks: Array, function: Callable[..., Any], names: tuple[str, ...] = (), **options: Any) -> Array:
    """Call a function with blocks without warnings; blocks that have a name must have the rows of the first.

    The threads of dask do not inherit the errstate of the caller.
    """
    for name, block in zip(names[1:], blocks[1:], strict=False):
        rows, found = blocks[0].shape[0], block.shape[0]
        if rows != found:
            raise ValueError(f"{name} must have as many rows as {names[0]} in every block, {rows}, got {found}.")
    with np.errstate(all="ignore"):
        return function(*blocks, **options)


_OPERATIONS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "product": _product,
    "bias_activation": _bias_activation,
    "softmax_rows": _same_shape,
    "log_softmax_rows": _same_shape,
    "logsumexp_rows": _reduced,
    "softmax_jvp_rows": _same_shape,
    "softmax_jacobian_rows": _squared,
    "softmax_loss_rows": _loss,
}
