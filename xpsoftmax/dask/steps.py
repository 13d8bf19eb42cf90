"""The steps of a training over blocks: which rows of which blocks a batch has, and the tasks that compute its sums.

The loop is that of `train`, and the client makes the updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from xpsoftmax._arguments.home import quiet
from xpsoftmax._arguments.values import BadValue
from xpsoftmax._network.layers import Params
from xpsoftmax._train.data import Data, as_data, first_flaw
from xpsoftmax._train.evaluation import Evaluation, evaluation
from xpsoftmax._train.programmed import ProgrammedSteps
from xpsoftmax._typing import Array, Reduction
from xpsoftmax.dask import graph
from xpsoftmax.dask.blocks import Block, Model, loss_and_grads_of, one_thread, sums_of_block, unequal_rows
from xpsoftmax.dask.cluster import ClusterError, Scheduler
from xpsoftmax.dask.data import check_all_blocks
from xpsoftmax.dask.graph import Partitions


class _Batch(NamedTuple):
    """The rows of a step."""

    blocks: list[int]
    rows: np.ndarray | None  # their indices, counted over these blocks; None for all rows of the blocks
    size: int


class _Epoch:
    """The batches of an epoch: blocks in a random order and in groups; within a group rows in a random order.

    The rows of a group are drawn only when its batches begin: a permutation of all rows may be large.
    """

    def __init__(self, steps: BlockSteps, generator: Any, batch_size: int) -> None:
        self.steps, self.generator, self.batch_size = steps, generator, batch_size
        count, most = len(steps.sizes), steps.blocks_per_step
        order: Any = range(count) if generator is None or most >= count else generator.permutation(count).tolist()
        self.groups = [sorted(order[start : start + most]) for start in range(0, count, most)]

    def rows(self, group: list[int]) -> int:
        """Return how many rows a group of blocks has."""
        return sum(self.steps.sizes[block] for block in group)

    def __len__(self) -> int:
        return sum(-(-self.rows(group) // self.batch_size) for group in self.groups)

    def __iter__(self) -> Iterator[_Batch]:
        for group in self.groups:
            rows = self.rows(group)
            if 0 < rows <= self.batch_size:
                yield _Batch(group, None, rows)
            elif rows:
                order = np.arange(rows) if self.generator is None else self.generator.permutation(rows)
                for start in range(0, rows, self.batch_size):
                    part = order[start : start + self.batch_size]
                    yield _Batch(group, part, len(part))


class BlockSteps:
    """Loss and gradients of batches of rows in blocks: `xpsoftmax._train.steps.Steps` over dask arrays.

    With `averaged` the penalty is divided by the weight of the batch, as the losses are.
    """

    programs: ProgrammedSteps | None = None  # of rows in memory only

    def __init__(
        self,
        model: Model,
        data: Partitions,
        sizes: tuple[int, ...],
        reg: float,
        reduction: Reduction,
        blocks_per_step: int,
        scheduler: Scheduler,
        *,
        averaged: bool = False,
    ) -> None:
        net = model.network
        model = replace(model.without_validation(), widened=net.dtype != net.working)
        self.network, self.model, self.data, self.sizes = net, model, data, sizes
        self.reg, self.reduction, self.blocks_per_step = reg, reduction, blocks_per_step
        self.scheduler, self.averaged = scheduler, averaged
        self.on_host = type(net.layers[0].weight) is np.ndarray
        self.rows = sum(sizes)
        self.blocks: tuple[tuple[int, ...], int] | None = (sizes, blocks_per_step)
        self.loaded: tuple[list[int], Partitions] | None = None  # the group of blocks that the workers have in memory

    def batch_count(self, batch_size: int, generator: Any = None) -> int:
        """Return how many batches the epoch has that the generator draws."""
        return len(_Epoch(self, generator, batch_size))

    def batch_count_range(self, batch_size: int) -> tuple[int, int]:
        """Return how many batches an epoch has at least and at most; the number depends on the order of the blocks."""
        if self.blocks_per_step >= len(self.sizes):
            return self.batch_count(batch_size), self.batch_count(batch_size)
        return -(-self.rows // batch_size), sum(-(-size // batch_size) for size in self.sizes)

    def batches(self, generator: Any, batch_size: int) -> _Epoch:
        """Return the batches of an epoch in a random order; without a generator blocks and rows keep their order."""
        return _Epoch(self, generator, batch_size)

    def of_batch(self, params: Params, batch: _Batch) -> tuple[Array, Params] | None:
        """Return loss and gradients of a batch; None if no row of it counts."""
        model = replace(self.model, params=params)
        node = graph.as_node(model)
        if batch.rows is None:
            data = self.partitions(batch.blocks)
            column = graph.each_block(sums_of_block, data.pairs, model=node)
        else:
            column = graph.each_part_of_batch(
                self.load(batch.blocks), node, self.rows_of_blocks(batch.blocks, batch.rows)
            )
        total = graph.tree_sum(column)
        block: Block = self.scheduler.compute(total, optimized=batch.rows is None).without_flaw()
        if not block.counts or (self.reduction == "mean" and not bool(block.sums.weight != 0.0)):
            return None
        reg = self.reg / block.sums.weight if self.averaged else self.reg
        return loss_and_grads_of(model.network, block.sums, reg, self.reduction)

    def loss_and_grads(self, params: Params, rows: None) -> tuple[Array, Params]:  # noqa: ARG002
        """Return loss and gradients of all rows; raise ValueError if none counts."""
        found = self.of_batch(params, _Batch(list(range(len(self.sizes))), None, self.rows))
        if found is None:
            raise ValueError("sample_weight must let a row count, got none that does.")
        return found

    def partitions(self, blocks: list[int]) -> Partitions:
        """Return the arrays of these blocks."""
        return self.data if len(blocks) == len(self.sizes) else self.data.blocks(blocks)

    def load(self, blocks: list[int]) -> Partitions:
        """Load these blocks into the memory of the workers, after the blocks loaded before are freed; return them."""
        if self.loaded is None or self.loaded[0] != blocks:
            self.loaded = None
            self.loaded = blocks, Partitions(*self.scheduler.persist(self.partitions(blocks).arrays))
        return self.loaded[1]

    def rows_of_blocks(self, blocks: list[int], rows: np.ndarray) -> list[np.ndarray]:
        """Return for each block which of its rows are in a batch."""
        ends = np.cumsum([self.sizes[block] for block in blocks])
        block_of = np.searchsorted(ends, rows, side="right")
        return [rows[block_of == i] - (end - self.sizes[blocks[i]]) for i, end in enumerate(ends)]

    def evaluated(self, params: Params, data: Data | Partitions) -> tuple[float, float]:
        """Return loss, without penalty, and accuracy of other data."""
        if isinstance(data, Data):
            net = replace(self.network, layers=params)
            return evaluation(net, data, self.reduction, self.model.max_memory, None).means(self.reduction)
        node = graph.as_node(replace(self.model, params=params))
        column = graph.each_block(evaluate_block, data.pairs, model=node, reduction=self.reduction)
        sums: Evaluation = self.scheduler.compute(graph.tree_sum(column)).without_flaw().sums
        return sums.means(self.reduction)

    def flaw(self, data: Data | Partitions | None = None) -> BadValue | None:
        """Return the first bad value of the data, or of other data; None also if the cluster is lost meanwhile."""
        if isinstance(data, Data):
            return first_flaw(self.network, data, self.model.max_memory)
        model = replace(self.model, options=self.model.options._replace(validate=True))
        try:
            found = check_all_blocks(self.scheduler, model, self.data if data is None else data).flaw
        except ClusterError:
            return None
        except ValueError as error:  # about a class weight
            return getattr(error, "bad", None)
        return found if isinstance(found, BadValue) else None


def evaluate_block(
    X: Array, targets: Array, weight: Array | None = None, *, model: Model, reduction: Reduction
) -> Block:
    """Return the sums of losses and of correct labels of a block."""
    sizes, flaw = (int(X.shape[0]),), unequal_rows(X, targets, weight)
    if flaw is not None:
        return Block(sizes, flaw)
    if sizes == (0,):
        return Block(sizes, None, Evaluation(0.0, 0.0, 0.0, 0))
    net = replace(model.network, dtype=X.dtype)
    with one_thread(), quiet(net.xp, net.home.device):
        data = as_data(net, X, targets, model.options._replace(reduction=reduction, sample_weight=weight))
        loss, total, correct, counted = evaluation(net, data, reduction, model.max_memory, None)
        return Block(sizes, None, Evaluation(float(loss), float(total), float(correct), counted))
