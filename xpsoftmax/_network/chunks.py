"""How many rows pass through the network at once, so that temporary arrays stay within a memory limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from array_api_compat import is_dask_array, is_jax_array

from xpsoftmax._arguments.options import as_integer
from xpsoftmax._arguments.problem import Problem
from xpsoftmax._network.network import Network
from xpsoftmax._typing import Array, DType, Namespace
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.generic import scratch_arrays
from xpsoftmax.kernels.sparse import held_for_a_row, is_sparse

DEFAULT_MAX_MEMORY = 256 * 2**20
"""Most bytes of temporary memory of an mlp call if `max_memory` is None and one row does not need more."""


def is_writable(array: Array) -> bool:
    """Whether arrays of this library can be written to."""
    return not (is_jax_array(array) or is_dask_array(array))


def slices(length: int, step: int) -> list[slice]:
    """Cut a length into slices of `step`."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def overwrites_logits(net: Network) -> bool:
    """Whether the loss is computed by a kernel that can write the gradient over the logits."""
    return net.kernels.has_kernel("softmax_loss_rows") and is_writable(net.layers[0].weight)


class Plan(NamedTuple):
    """Chunks of rows (None: all rows), and memory for a temporary product."""

    chunks: Sequence[slice | None]
    spare: int  # bytes for the product that is added to a weight gradient


ACTIVATION_ARRAYS = 8
"""Most arrays of the size of a hidden layer that an activation holds: temporaries, and masks of one byte a number."""


SMALL = 2**20
"""Most bytes of NumPy logits whose gradient gets an array of its own, which is faster than overwriting them."""


IN_PLACE = 8 * 2**20
"""Most bytes that kernels hold in addition to the arrays that they overwrite."""


MOST_HELD = 16
"""Most numbers that are held for one unit of one row, in any layer."""


def features_of(X: Array) -> int:
    """Return how many numbers a copy of one row of the inputs holds."""
    return held_for_a_row(X) if is_sparse(X) else int(X.shape[1])


def plan_chunks(net: Network, rows: int, problem: Problem, max_memory: int | None, features: int | None = None) -> Plan:
    """Cut the rows so that the temporaries of a chunk stay within `max_memory`.

    `features` is `features_of` the inputs, if these are known.
    """
    if max_memory is not None:
        max_memory = as_integer("max_memory", max_memory)
    widths = (
        (net.layers[0].weight.shape[0] if features is None else features)
        + sum(net.hidden)
        + net.layers[-1].bias.shape[0]
    )
    # Small problems are recognised without the counts below.
    if is_dask_array(net.layers[0].weight) or (
        max_memory is None and rows * widths * MOST_HELD * 8 <= DEFAULT_MAX_MEMORY
    ):
        return Plan([None], 0)
    itemsize = itemsize_of(net.xp, net.working)
    forward, backward = _numbers_for_a_row(net, problem, features)
    column = itemsize * max(layer.weight.shape[0] for layer in net.layers)  # of the product added to a weight gradient
    least = itemsize * max(forward, backward) + column
    if max_memory is None:
        max_memory = max(DEFAULT_MAX_MEMORY, least)
    if max_memory < least:
        raise ValueError(f"max_memory must be at least {least} bytes, what one row needs, got {max_memory}.")
    spare = max(column, max_memory // 8)
    step = (max_memory - spare) // (itemsize * max(forward, backward))
    if overwrites_logits(net):
        step = max(step, (max_memory - spare - IN_PLACE) // (itemsize * backward))
    return Plan(chunks_of(rows, max(1, step)), spare)


def _numbers_for_a_row(net: Network, problem: Problem, features: int | None) -> tuple[int, int]:
    """How many numbers a row of a chunk needs at most on the way forward, and backward.

    These are inputs and targets that are cast, activations and slopes, and the logits with the temporaries of the loss
    (forward), or with the gradients of the layers (backward).
    """
    hidden, classes = net.hidden, net.layers[-1].bias.shape[0]
    soft = problem.targets.ndim == 2 or problem.spec.label_smoothing > 0.0
    if not (problem.weighted or net.dtype != net.working):
        features = 0  # the inputs are not copied
    elif features is None:
        features = net.layers[0].weight.shape[0]
    cast = classes if problem.targets.ndim == 2 and problem.targets.dtype != net.working else 0
    kept = features + cast + 2 * sum(hidden)
    if net.kernels.bias_activation is generic.bias_activation:  # products and their activations are different arrays
        kept += 2 * sum(hidden) + classes
    widest = max(hidden, default=0)
    loss = classes * scratch_arrays(soft=soft, z_loss=problem.spec.z_loss > 0.0)
    forward = kept + max(loss, classes + ACTIVATION_ARRAYS * widest)  # the last chunk's logits may still exist
    return forward, kept + classes + 3 * widest


def chunks_of(rows: int, step: int) -> Sequence[slice | None]:
    """Chunks of `step` rows; None stands for all of them."""
    return [None] if step >= rows else slices(rows, step)


def budget(max_memory: int | None) -> int:
    """Bytes of temporary memory; `plan_chunks` checks whether one row fits."""
    return DEFAULT_MAX_MEMORY if max_memory is None else as_integer("max_memory", max_memory)


def itemsize_of(xp: Namespace, dtype: DType) -> int:
    """Bytes of a number."""
    if isinstance(dtype, np.dtype):
        return dtype.itemsize
    return int(xp.finfo(dtype).bits) // 8
