"""Graphs over dask arrays in blocks of rows: a task for each block, and a tree of tasks that adds up their results.

Parameters and options are one object of the graph, on which all these tasks depend. It is sent to each worker once, and
a worker that takes over from a lost one gets it from the graph again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import dask.array as da
import numpy as np
from array_api_compat import array_namespace, device, is_dask_array
from dask.array.utils import meta_from_array
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.caller import warn
from xpsoftmax._arguments.values import in_block, starts_of
from xpsoftmax._network.layers import Layer, Params, with_types_of
from xpsoftmax._network.network import Network
from xpsoftmax._typing import FLOATING, Array, Reduction, dtype_name
from xpsoftmax.dask.blocks import (
    Block,
    Model,
    bad_row,
    list_of_results,
    one_thread,
    sum_blocks,
    sums_of_block,
    sums_of_rows,
)

FAN_IN = 8
"""How many results a task of the tree adds up. A fixed number: the tree, and with it every bit of the sum, depends on
the number of blocks alone."""


# --- arguments --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Partitions:
    """Dask arrays with the same blocks of rows; rows are in one chunk."""

    X: Array  # (N, D)
    targets: Array  # (N,) or (N, C)
    sample_weight: Array | None = None  # (N,)

    @property
    def pairs(self) -> list[Any]:
        """Return arrays and indices for `blockwise`: rows and columns have one each for all arrays."""
        return [self.X, "ij", *self.labels]

    @property
    def labels(self) -> list[Any]:
        """Return the arguments of `blockwise` for targets and weights: each array, then the letters of its axes."""
        weight = [] if self.sample_weight is None else [self.sample_weight, "i"]
        return [self.targets, "ij"[: self.targets.ndim], *weight]

    @property
    def arrays(self) -> list[Any]:
        """Return inputs, targets and, if there are any, weights."""
        return self.pairs[::2]

    def blocks(self, numbers: list[int]) -> Partitions:
        """Return the arrays of these blocks only."""
        return Partitions(*(array.blocks[numbers] for array in self.arrays))


def as_rows(net: Network, X: object) -> Array:
    """Check inputs (N, D), a dask array; return them with their features in one chunk."""
    if not is_dask_array(X):
        hint = (
            "Call its to_dask_array()." if hasattr(X, "to_dask_array") else "xpsoftmax itself takes arrays in memory."
        )
        raise TypeError(f"X must be a dask array, got {_kind(X)}. {hint}")
    check.as_companion("X", X._meta, net.home)
    fan_in = net.layers[0].weight.shape[0]
    if X.ndim != 2 or X.shape[1] != fan_in:
        raise ValueError(f"X must have shape (N, {fan_in}) to fit params[0].weight, got {X.shape}.")
    return whole_rows("X", X, "features")


def whole_rows(name: str, array: Array, columns: str) -> Array:
    """Return a matrix with its columns in one chunk; warn if they were not."""
    if array.ndim != 2 or array.numblocks[1] == 1:
        return array
    warn(
        f"{name} has its {columns} in {array.numblocks[1]} chunks: every block of rows is put together again on each "
        f"pass. Call rechunk({{1: -1}}) where {name} is made.",
        da.PerformanceWarning,
    )
    return array.rechunk({1: -1})


def as_partitions(model: Model, X: Array, targets: Array, sample_weight: Array | None) -> Partitions:
    """Check all that can be checked without computing; return targets and weights in the blocks of the inputs."""
    net = model.network
    X = as_rows(net, X)
    classes = net.layers[-1].bias.shape[0]
    targets = _as_companion("targets", targets, X, net)
    soft = dtype_name(targets.dtype) in FLOATING
    if targets.ndim != 1 + soft or (soft and targets.shape[1] != classes):
        rule = f"shape (N, {classes}) if they are floating soft targets" if soft else "shape (N,) if they are labels"
        hint = " Labels must be of an integer dtype." if soft and targets.ndim == 1 else ""
        raise ValueError(f"targets must have {rule}, got {targets.shape}.{hint}")
    targets = _aligned("targets", whole_rows("targets", targets, "classes"), X)
    if sample_weight is not None:
        sample_weight = _as_companion("sample_weight", sample_weight, X, net)
        if sample_weight.ndim != 1:
            raise ValueError(f"sample_weight must have shape (N,), got {sample_weight.shape}.")
        sample_weight = _aligned("sample_weight", sample_weight, X)
    data = Partitions(X, targets, sample_weight)
    # A block without rows raises the errors of dtypes and options that all blocks would raise.
    sums_of_block(*(_like(array._meta, (0, *array.shape[1:])) for array in data.arrays), model=model)
    return data


def _like(meta: Array, shape: tuple[int, ...]) -> Array:
    return array_namespace(meta).zeros(shape, dtype=meta.dtype, device=device(meta))


def _as_companion(name: str, value: object, X: Array, net: Network) -> Array:
    """Return a dask array of the library of the parameters; one in memory is cut into the blocks of `X`."""
    if is_dask_array(value):
        check.as_companion(name, value._meta, net.home)
        return value
    if hasattr(value, "to_dask_array"):
        raise TypeError(f"{name} must be a dask array, got {_kind(value)}. Call its to_dask_array().")
    array = check.as_companion(name, value, net.home)
    if array.ndim == 0 or array.shape[0] != X.shape[0]:
        more = " Make it a dask array with the blocks of X." if is_unknown(X) else ""
        raise ValueError(f"{name} must have as many rows as X, {X.shape[0]}, got shape {tuple(array.shape)}.{more}")
    return da.from_array(array, chunks=(X.chunks[0], *(-1 for _ in array.shape[1:])))


def is_unknown(array: Array) -> bool:
    """Whether the number of rows is known only when they are computed."""
    return bool(np.isnan(array.shape[0]))


def _aligned(name: str, array: Array, X: Array) -> Array:
    if not is_unknown(array) and not is_unknown(X):
        if array.shape[0] != X.shape[0]:
            raise ValueError(f"{name} must have as many rows as X, {X.shape[0]}, got {array.shape[0]}.")
        if X.shape[0] == 0:  # dask cannot cut an array without rows into several blocks
            array = da.concatenate([check.without_empty_blocks(array)] * X.numblocks[0])
        return array if array.chunks[0] == X.chunks[0] else array.rechunk({0: X.chunks[0]})
    if array.numblocks[0] != X.numblocks[0]:
        raise ValueError(
            f"{name} must have as many blocks of rows as X where their sizes are not known, {X.numblocks[0]}, "
            f"got {array.numblocks[0]}. Call compute_chunk_sizes() on both first."
        )
    return array


def _kind(value: object) -> str:
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}".removeprefix("builtins.")


# --- graphs -----------------------------------------------------------------------------------------------------------


def as_node(model: Model) -> Delayed:
    """Return a model as one object of a graph."""
    name = _name("model")
    return Delayed(name, HighLevelGraph.from_collections(name, {name: model}, dependencies=()))


def _name(what: str) -> str:
    return f"xpsoftmax-{what}-{uuid.uuid4().hex}"


def each_block(function: Callable[..., Block], pairs: Sequence[Any], **options: Any) -> Array:
    """Return a column of the results of one task for each block.

    The result keeps the index of the columns: dask fuses loading and computing a block only if no index is summed over.
    """
    index = max(pairs[1::2], key=len)
    meta = np.empty((0,) * len(index), object)
    return da.blockwise(
        function,
        index,
        *pairs,
        name=_name(function.__name__.strip("_")),
        align_arrays=False,
        dtype=object,
        meta=meta,
        **options,
    )


def each_part_of_batch(data: Partitions, node: Delayed, batch: Sequence[np.ndarray]) -> Array:
    """Return the results of one task for each block that has rows of a batch, given their numbers in each block."""
    name, tasks = _name("sums_of_rows"), dict[Any, Any]()
    for block, rows in enumerate(batch):
        if rows.size:
            keys = [(array.name, block, *(0 for _ in array.shape[1:])) for array in data.arrays]
            tasks[name, len(tasks)] = (sums_of_rows, node.key, rows, *keys)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[*data.arrays, node])
    return da.Array(graph, name, chunks=((1,) * len(tasks),), meta=np.empty(0, object))


def tree_sum(column: Array) -> Array:
    """Return the sum of a column of results, neighbours first, as a 0-d array of one object."""
    name, tasks = _name("tree_sum"), dict[Any, Any]()
    keys: list[Any] = [(column.name, block, *(0 for _ in column.shape[1:])) for block in range(column.numblocks[0])]
    level = 0
    while len(keys) > 1 or level == 0:
        level += 1
        groups = [keys[start : start + FAN_IN] for start in range(0, len(keys), FAN_IN)]
        keys = [(f"{name}-{level}", i) for i in range(len(groups))]
        tasks.update({key: (sum_blocks, group) for key, group in zip(keys, groups, strict=True)})
    tasks[name,] = tasks.pop(keys[0])
    return _array(name, tasks, [column], (), np.empty((), object))


def _array(name: str, tasks: dict[Any, Any], dependencies: Sequence[Any], shape: tuple[int, ...], meta: Array) -> Array:
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=dependencies)
    return da.Array(graph, name, chunks=tuple((n,) for n in shape), meta=meta)


def lazy_loss_and_grads(
    model: Model, node: Delayed, total: Array, reg: float, reduction: Reduction, *, grad: bool
) -> list[Array]:
    """Return the loss and, with `grad`, the gradients of all parameters as dask arrays, which one task computes."""
    name, net = _name("loss_and_grads"), model.network
    tasks = {name: (list_of_results, node.key, (total.name,), reg, reduction)}
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[total, node])
    whole = Delayed(name, graph)
    like = net.layers[0].weight
    wanted = [((), net.working)]
    if grad:
        wanted += [(tuple(array.shape), net.dtype) for layer in net.layers for array in layer]
    arrays = []
    for i, (shape, dtype) in enumerate(wanted):
        part = _name("part")
        task = {(part, *(0 for _ in shape)): (getitem, name, i)}
        arrays.append(_array(part, task, [whole], shape, meta_from_array(like, ndim=len(shape), dtype=dtype)))
    return arrays


def as_layers(arrays: Sequence[Array], own: Params) -> Params:
    """Return arrays, two for each layer, as layers that carry the activations of others."""
    return with_types_of([Layer(*pair) for pair in zip(arrays[::2], arrays[1::2], strict=True)], own)


def by_rows(function: Callable[..., Array], model: Model, X: Array, *, numbered: bool = False) -> Array:
    """Apply a function of a model and a block of inputs to each block; return a dask array (N,) or (N, columns).

    With `numbered` the function gets the number of the first row of its block as `first`: None if it is not known.
    """
    meta = function(_like(X._meta, (0, X.shape[1])), model=model)
    matrix = meta.ndim == 2
    width = {"j": meta.shape[1] if matrix else 1}
    numbers, starts = da.arange(X.numblocks[0], chunks=1), starts_of(X.chunks[0])
    rows = da.blockwise(
        _of_rows, "ij", X, "ij", numbers, "i", name=_name(function.__name__.strip("_")), adjust_chunks=width,
        align_arrays=False, dtype=meta.dtype, meta=meta if matrix else meta[:, None], function=function,
        model=as_node(model), starts=starts, numbered=numbered,
    )  # fmt: skip
    if matrix:
        return rows
    name = _name("column")
    tasks = {(name, block): (_column, (rows.name, block, 0)) for block in range(rows.numblocks[0])}
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[rows])
    return da.Array(graph, name, chunks=X.chunks[:1], meta=meta)


def _of_rows(
    X: Array,
    number: Array,
    *,
    function: Callable[..., Array],
    model: Model,
    starts: tuple[int, ...] | None,
    numbered: bool,
) -> Array:
    block = int(number[0])
    place = {"first": None if starts is None else starts[block]} if numbered else {}
    try:
        with one_thread():
            result = function(X, model=model, **place)
    except ValueError as error:
        raise in_block(bad_row(error), block, starts).error() from None
    return result if result.ndim == 2 else result[:, None]


def _column(block: Array) -> Array:
    return block[:, 0]
