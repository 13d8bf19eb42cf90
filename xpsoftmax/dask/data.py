"""The rows of a training over blocks, checked once: labels, weights, and how many rows each block has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from array_api_compat import is_dask_array

from xpsoftmax._arguments.naming import VALIDATION, named
from xpsoftmax._train.data import Data, as_data, check_held_out
from xpsoftmax.dask import graph
from xpsoftmax.dask.blocks import Block, Model, UnequalRows, check_block, check_labels_of_block
from xpsoftmax.dask.cluster import Scheduler
from xpsoftmax.dask.graph import Partitions

BLOCKS_PER_STEP = 8
"""Over how many blocks a minibatch goes by default. A fixed number: it decides which rows a batch has."""


def checked_sizes(scheduler: Scheduler, model: Model, data: Partitions) -> tuple[int, ...]:
    """Check all labels and weights; return how many rows each block has."""
    X = data.X
    if not model.options.validate and not graph.is_unknown(X):
        return nonempty(map(int, X.chunks[0]))
    total = scheduler.compute(graph.tree_sum(graph.each_block(check_labels_of_block, data.labels, **_rules(model))))
    return _sizes_of(data, total)


def check_all_blocks(scheduler: Scheduler, model: Model, data: Partitions) -> Block:
    """Check labels, weights and inputs; return the result of all blocks."""
    rules = _rules(model) | {"max_memory": model.max_memory}
    found: Block = scheduler.compute(graph.tree_sum(graph.each_block(check_block, data.pairs, **rules)))
    return found


def _rules(model: Model) -> dict[str, Any]:
    net = model.network
    return {"classes": net.layers[-1].bias.shape[0], "options": model.options, "working": net.working}


def _sizes_of(data: Partitions, total: Block) -> tuple[int, ...]:
    """Return how many rows each block has; raise ValueError if the labels of a block are not as many as its inputs."""
    X, sizes = data.X, nonempty(total.without_flaw().sizes)
    if not graph.is_unknown(X):
        for block, (rows, found) in enumerate(zip(X.chunks[0], sizes, strict=True)):
            if rows != found:
                raise UnequalRows("targets", int(rows), found, block).error()
    return sizes


def nonempty(sizes: Iterable[int]) -> tuple[int, ...]:
    """Return the sizes of the blocks; raise ValueError if there is no row."""
    sizes = tuple(sizes)
    if sum(sizes) == 0:
        raise ValueError("X must have at least one row, got none.")
    return sizes


def blocks_of_a_step(blocks_per_step: int | None, batch_size: int | None, sizes: tuple[int, ...]) -> int:
    """Return how many blocks a step goes over: by default all for full batches, some for minibatches."""
    if blocks_per_step is None:
        blocks_per_step = BLOCKS_PER_STEP if batch_size is not None else len(sizes)
    return min(blocks_per_step, len(sizes))


def as_held_out(scheduler: Scheduler, model: Model, X: Any, targets: Any) -> Data | Partitions:
    """Check validation data: dask arrays, or arrays in memory, which the client evaluates."""
    with named(VALIDATION):
        if not is_dask_array(X):
            held_out = as_data(model.network, X, targets, model.options, model.max_memory)
            check_held_out(model.network, held_out, model.max_memory)
            return held_out
        data = graph.as_partitions(model, X, targets, None)
        _sizes_of(data, check_all_blocks(scheduler, model, data))
    return data
