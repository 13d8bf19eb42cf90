"""Loss and gradients of batches of rows in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from xpsoftmax._arguments.problem import Problem, divided
from xpsoftmax._arguments.values import Bad
from xpsoftmax._network.backprop import Buffers
from xpsoftmax._network.chunks import Plan, plan_chunks
from xpsoftmax._network.layers import Params, carrying, recorded
from xpsoftmax._network.network import Network
from xpsoftmax._network.passes import add_rows
from xpsoftmax._network.sums import finished
from xpsoftmax._network.vectors import parts_of
from xpsoftmax._train.data import Data, first_flaw
from xpsoftmax._train.evaluation import evaluation
from xpsoftmax._train.state import TrainState
from xpsoftmax._typing import Array, Reduction


def activation_to_train(net: Network, activation: str | None, resume: object) -> str:
    """Return the activation of the network; where neither it nor the call says one, that of the training before."""
    unsaid = activation is None and recorded(net.layers) is None
    if unsaid and isinstance(resume, TrainState) and isinstance(resume.params, tuple):
        return recorded(resume.params, "resume") or net.activation
    return net.activation


def trained_network(net: Network, activation: str) -> Network:
    """Return the network with hidden layers that carry their activation: all that is made of them carries it, too."""
    return replace(net, layers=carrying(net.layers, activation), activation=activation)


class Batches(Protocol):
    """The batches of an epoch in their order; what one is, only the steps know that made it."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


class Steps(Protocol):
    """What a training goes over: rows in memory (`Stepper`), or the blocks of dask arrays."""

    given: Network
    on_host: bool  # whether looking at a loss waits for nothing
    rows: int
    blocks: tuple[tuple[int, ...], int] | None

    def expected(self, batch_size: int, generator: np.random.Generator | None = None) -> int:
        """How many batches the epoch has that the generator draws; without one about how many."""

    def span(self, batch_size: int) -> tuple[int, int]:
        """How many batches an epoch has at least and at most."""

    def batches(self, generator: np.random.Generator, batch_size: int) -> Batches:
        """Draw an epoch."""

    def of_batch(self, layers: Params, batch: Any) -> tuple[Array, Params] | None:
        """Loss and gradients; None where no row counts."""

    def evaluated(self, layers: Params, data: Any) -> tuple[float, float]:
        """Loss, without penalty, and accuracy of other data."""

    def flaw(self, data: Any = None) -> Bad | None:
        """The first bad value of the data, or of other data: it is looked for where a loss is not finite."""


class _Rows:
    """Batches of rows in memory: for each which rows, None for all of them, and whether one of them counts."""

    def __init__(self, stepper: Stepper, order: np.ndarray | None, batch_size: int) -> None:
        self.stepper, self.order, self.batch_size = stepper, order, batch_size
        self.there = stepper.there(order)

    def __len__(self) -> int:
        return self.stepper.expected(self.batch_size)

    def __iter__(self) -> Iterator[tuple[Array | None, bool]]:
        for start in range(0, self.stepper.rows, self.batch_size):
            rows = slice(start, min(start + self.batch_size, self.stepper.rows))
            yield None if self.there is None else self.there[rows], self.stepper.counts(self.order, rows)


class Stepper:
    """Loss and gradients of batches of rows, with arrays that are used again on NumPy.

    With `averaged` the penalty is one term of the sum that a mean is taken of: it is divided by the weight of the
    batch, as the losses are.
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
        self.given = net
        self.net = replace(net, dtype=net.working)
        self.data, self.reg, self.reduction, self.max_memory = data, reg, reduction, max_memory
        self.averaged = averaged
        self.rows = data.rows
        self.blocks: tuple[tuple[int, ...], int] | None = None
        self.plans: dict[int, Plan] = {}
        self.evenly: dict[int, Array] = {}
        self.on_host = type(net.layers[0].weight) is np.ndarray
        self.buffers = Buffers() if self.on_host else None
        self.grads: Params | None = None
        if self.on_host:
            size = sum(array.size for layer in net.layers for array in layer)
            self.grads = parts_of(np.empty(size, net.working), net.layers)

    def plan(self, rows: int) -> Plan:
        if rows not in self.plans:
            self.plans[rows] = plan_chunks(self.given, rows, self.data.problem, self.max_memory)
        return self.plans[rows]

    def loss_and_grads(self, layers: Params, rows: Array | slice | None) -> tuple[Array, Params]:
        """Of these rows, or of all; NumPy gradients are valid until the next call."""
        self.net.layers = layers
        X, problem = self.batch(rows)
        plan = self.plan(X.shape[0])
        loss, grads = add_rows(self.net, X, problem, plan, grad=True, buffers=self.buffers, out=self.grads)
        return finished(self.net, loss, grads, self.reg / problem.total if self.averaged else self.reg)

    def expected(self, batch_size: int, generator: np.random.Generator | None = None) -> int:  # noqa: ARG002
        return -(-self.rows // batch_size)

    def span(self, batch_size: int) -> tuple[int, int]:
        return self.expected(batch_size), self.expected(batch_size)

    def batches(self, generator: np.random.Generator, batch_size: int) -> Batches:
        return _Rows(self, generator.permutation(self.rows) if batch_size < self.rows else None, batch_size)

    def of_batch(self, layers: Params, batch: tuple[Array | None, bool]) -> tuple[Array, Params] | None:
        rows, counts = batch
        return self.loss_and_grads(layers, rows) if counts else None

    def there(self, order: np.ndarray | None) -> Array | None:
        """Numbers of rows, where the data is."""
        if order is None or self.on_host:
            return order
        return self.given.xp.asarray(order, device=self.given.home.device)

    def counts(self, order: np.ndarray | None, rows: slice) -> bool:
        """Whether a batch, a slice of this order of the rows, has a row that counts."""
        counts = self.data.counts
        return counts is None or bool((counts[rows] if order is None else counts[order[rows]]).any())

    def batch(self, rows: Array | slice | None) -> tuple[Array, Problem]:
        X, problem = self.data.X, self.data.problem
        targets, row_weight, counting = problem.targets, problem.row_weight, problem.counting
        if rows is not None:
            X, targets = self.taken(X, rows), self.taken(targets, rows)
            if counting is not None:
                counting, row_weight = self.taken(counting, rows), self.taken(row_weight, rows)
        size = X.shape[0]
        total = float(size) if counting is None else self.given.xp.sum(counting)
        if counting is None:
            share = 1.0 / size if self.reduction == "mean" else 1.0
            if size not in self.evenly:
                self.evenly[size] = self.given.xp.full_like(row_weight[:size], share)
            row_weight = self.evenly[size]
        elif self.reduction == "mean":
            row_weight = divided(self.given.xp, row_weight, total)
        return X, problem._replace(targets=targets, row_weight=row_weight, total=total)

    def taken(self, array: Array, rows: Array | slice) -> Array:
        if type(rows) is slice:
            return array[rows, ...]
        if type(array) is not np.ndarray:
            return self.given.xp.take(array, rows, axis=0)
        if not array.flags.c_contiguous:  # `take` would copy all of it
            return array[rows]
        if array.ndim == 1 or self.buffers is None:
            return array.take(rows, axis=0)
        out = self.buffers.take(("rows", id(array)), (rows.shape[0], array.shape[1]), array.dtype)
        return array.take(rows, axis=0, out=out, mode="clip")  # in its default mode NumPy fills a copy of `out` first

    def evaluated(self, layers: Params, data: Data) -> tuple[float, float]:
        net = replace(self.given, layers=layers)
        return evaluation(net, data, self.reduction, self.max_memory, self.buffers).finish(self.reduction)

    def flaw(self, data: Data | None = None) -> Bad | None:
        return first_flaw(self.given, self.data if data is None else data, self.max_memory)
