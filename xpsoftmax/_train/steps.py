"""Steps: which batches an epoch has, and loss and gradients of a batch; here for rows in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from xpsoftmax._arguments.problem import Problem, divided
from xpsoftmax._arguments.values import BadValue
from xpsoftmax._network.backprop import Buffers
from xpsoftmax._network.chunks import Plan, features_of, plan_chunks
from xpsoftmax._network.layers import Params, recorded_activation, with_activation
from xpsoftmax._network.network import Network
from xpsoftmax._network.passes import sum_over_chunks
from xpsoftmax._network.sums import with_penalty
from xpsoftmax._network.vectors import parts_of
from xpsoftmax._train.data import Data, first_flaw
from xpsoftmax._train.evaluation import evaluation
from xpsoftmax._train.programmed import ProgrammedSteps
from xpsoftmax._train.state import TrainState
from xpsoftmax._typing import Array, Reduction
from xpsoftmax.kernels.sparse import is_sparse


def activation_to_train(net: Network, activation: str | None, resume: object) -> str:
    """Return the activation of the network; if neither it nor the call says one, that of the training to resume."""
    unspecified = activation is None and recorded_activation(net.layers) is None
    if unspecified and isinstance(resume, TrainState) and isinstance(resume.params, tuple):
        return recorded_activation(resume.params, "resume") or net.activation
    return net.activation


def trained_network(net: Network, activation: str) -> Network:
    """Return the network with hidden layers that carry their activation, as will all layers made of them."""
    return replace(net, layers=with_activation(net.layers, activation), activation=activation)


class Batch(Protocol):
    """The rows of a step. Only the `Steps` that drew the batch knows which rows these are."""

    @property
    def size(self) -> int:
        """How many rows it has."""


class Batches(Protocol):
    """The batches of an epoch in their order."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


class Steps(Protocol):
    """What a training goes over: rows in memory (`RowSteps`), or the blocks of dask arrays (`BlockSteps`)."""

    network: Network  # with the parameters to start from
    on_host: bool  # whether losses are on the host, where reading one does not wait
    rows: int
    blocks: tuple[tuple[int, ...], int] | None  # rows of each block, and blocks of a step; None for rows in memory
    programs: ProgrammedSteps | None  # runs whole steps; None if no backend does

    def batch_count(self, batch_size: int, generator: np.random.Generator | None = None) -> int:
        """Return the number of batches of the epoch that the generator draws; without one, an estimate."""

    def batch_count_range(self, batch_size: int) -> tuple[int, int]:
        """Return how many batches an epoch has at least and at most."""

    def batches(self, generator: Any, batch_size: int) -> Batches:
        """Draw an epoch; without a generator the rows keep their order."""

    def of_batch(self, params: Params, batch: Any) -> tuple[Array, Params] | None:
        """Return loss and gradients, which are valid until the next call; None if no row counts."""

    def evaluated(self, params: Params, data: Any) -> tuple[float, float]:
        """Return loss, without penalty, and accuracy of other data."""

    def flaw(self, data: Any = None) -> BadValue | None:
        """Return the first bad value of the data, or of other data: the cause of a loss that is not finite."""


class RowBatch(NamedTuple):
    """A batch of rows in memory."""

    size: int
    counts: bool  # whether a row of it counts
    order: Array | None = None  # of all rows, where the data is; None: the order of the data
    start: int = 0  # where the batch begins in it
    whole: bool = True  # whether it has all rows, in the order of the data

    @property
    def rows(self) -> Array | slice | None:
        """Their numbers, where the data is; None for all rows."""
        part = slice(self.start, self.start + self.size)
        return None if self.whole else part if self.order is None else self.order[part]


class RowBatches:
    """The batches of an epoch over rows in memory, in an order of the rows; None is the order that they have."""

    def __init__(self, stepper: RowSteps, order: np.ndarray | None, batch_size: int) -> None:
        self.stepper, self.order, self.batch_size = stepper, order, batch_size
        self.all_at_once = batch_size >= stepper.rows
        self.numbers = None if order is None or self.all_at_once else stepper.to_device(order)

    def __len__(self) -> int:
        return self.stepper.batch_count(self.batch_size)

    def __iter__(self) -> Iterator[RowBatch]:
        rows, size, whole = self.stepper.rows, self.batch_size, self.all_at_once
        starts = range(0, rows, size)
        counts = self.stepper.counts(self.order, starts)
        for start, counted in zip(starts, counts, strict=True):
            yield RowBatch(min(size, rows - start), counted, self.numbers, start, whole)


class RowSteps:
    """Loss and gradients of batches of rows in memory. On NumPy all steps use the same arrays for their results.

    With `averaged` the penalty is divided by the weight of the batch, as the losses are.
    """

    def __init__(
        self,
        net: Network,
        data: Data,
        reg: float,
        reduction: Reduction,
        max_memory: int | None,
        *,
        averaged: bool = False,
    ) -> None:
        self.network = net
        self.net = replace(net, dtype=net.working)
        self.data, self.reg, self.reduction, self.max_memory = data, reg, reduction, max_memory
        self.averaged = averaged
        self.rows = data.rows
        self.blocks: tuple[tuple[int, ...], int] | None = None
        self.plans: dict[int, Plan] = {}
        self.equal_weights: dict[int, Array] = {}
        self.on_host = type(net.layers[0].weight) is np.ndarray
        runner = net.kernels.runner()
        self.programs = None if runner is None else ProgrammedSteps(net, data, runner)
        self.buffers = Buffers() if self.on_host else None
        self.grads: Params | None = None
        if self.on_host:
            size = sum(array.size for layer in net.layers for array in layer)
            self.grads = parts_of(np.empty(size, net.working), net.layers)

    def plan(self, rows: int) -> Plan:
        """Return the chunks of a batch of so many rows."""
        if rows not in self.plans:
            features = features_of(self.data.X)
            self.plans[rows] = plan_chunks(self.network, rows, self.data.problem, self.max_memory, features)
        return self.plans[rows]

    def loss_and_grads(self, params: Params, rows: Array | slice | None) -> tuple[Array, Params]:
        """Return loss and gradients of these rows, or of all; NumPy gradients are valid until the next call."""
        self.net.layers = params
        X, problem = self.batch(rows)
        plan = self.plan(X.shape[0])
        loss, grads = sum_over_chunks(self.net, X, problem, plan, grad=True, buffers=self.buffers, out=self.grads)
        return with_penalty(self.net, loss, grads, self.reg / problem.total if self.averaged else self.reg)

    def batch_count(self, batch_size: int, generator: np.random.Generator | None = None) -> int:  # noqa: ARG002
        return -(-self.rows // batch_size)

    def batch_count_range(self, batch_size: int) -> tuple[int, int]:
        return self.batch_count(batch_size), self.batch_count(batch_size)

    def batches(self, generator: Any, batch_size: int) -> RowBatches:
        drawn = generator is not None and batch_size < self.rows
        return RowBatches(self, generator.permutation(self.rows) if drawn else None, batch_size)

    def in_order(self, order: np.ndarray, batch_size: int) -> RowBatches:
        """Return the batches of an epoch in this order of the rows."""
        return RowBatches(self, order, batch_size)

    def of_batch(self, params: Params, batch: RowBatch) -> tuple[Array, Params] | None:
        return self.loss_and_grads(params, batch.rows) if batch.counts else None

    def to_device(self, order: np.ndarray) -> Array:
        """Return numbers of rows where the data is."""
        return order if self.on_host else self.network.xp.asarray(order, device=self.network.home.device)

    def counts(self, order: np.ndarray | None, starts: range) -> list[bool]:
        """Return for each batch that begins there, in this order of the rows, whether a row of it counts."""
        counts = self.data.counts
        if counts is None:
            return [True] * len(starts)
        counts = counts if order is None else counts[order]
        any_counts = np.logical_or.reduceat(counts, np.arange(starts.start, starts.stop, starts.step))
        return list(map(bool, any_counts))

    def batch(self, rows: Array | slice | None) -> tuple[Array, Problem]:
        """Return the inputs of a batch, and what its loss is computed of."""
        X, problem = self.data.X, self.data.problem
        targets, row_weight, counting = problem.targets, problem.row_weight, problem.counting
        if rows is not None:
            X, targets = self.select(X, rows), self.select(targets, rows)
            if counting is not None:
                counting, row_weight = self.select(counting, rows), self.select(row_weight, rows)
        size = X.shape[0]
        total = float(size) if counting is None else self.network.xp.sum(counting)
        if counting is None:
            share = 1.0 / size if self.reduction == "mean" else 1.0
            if size not in self.equal_weights:
                self.equal_weights[size] = self.network.xp.full_like(row_weight[:size], share)
            row_weight = self.equal_weights[size]
        elif self.reduction == "mean":
            row_weight = divided(self.network.xp, row_weight, total)
        return X, problem._replace(targets=targets, row_weight=row_weight, total=total)

    def select(self, array: Array, rows: Array | slice) -> Array:
        """Return these rows of an array; NumPy rows are valid until the next call for this array."""
        if is_sparse(array):
            return array[rows, :]
        if type(rows) is slice:
            return array[rows, ...]
        if type(array) is not np.ndarray:
            return self.network.xp.take(array, rows, axis=0)
        if not array.flags.c_contiguous:  # `take` would copy all of it
            return array[rows]
        if array.ndim == 1 or self.buffers is None:
            return array.take(rows, axis=0)
        out = self.buffers.take(("rows", id(array)), (rows.shape[0], array.shape[1]), array.dtype)
        return array.take(rows, axis=0, out=out, mode="clip")  # in its default mode NumPy fills a copy of `out` first

    def evaluated(self, params: Params, data: Data) -> tuple[float, float]:
        net = replace(self.network, layers=params)
        return evaluation(net, data, self.reduction, self.max_memory, self.buffers).means(self.reduction)

    def flaw(self, data: Data | None = None) -> BadValue | None:
        return first_flaw(self.network, self.data if data is None else data, self.max_memory)
