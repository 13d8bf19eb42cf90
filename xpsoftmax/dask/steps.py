"""Training over blocks of rows: which rows a step takes, and whom it asks for their sums.

The loop is that of `train` (_training.py); the updates are made by the client.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import dask
import numpy as np
from array_api_compat import is_dask_array
from dask.base import get_scheduler
from dask.utils import parse_bytes

from xpsoftmax._arguments.home import quiet
from xpsoftmax._arguments.values import Bad
from xpsoftmax._network.layers import Params
from xpsoftmax._train.data import Data, as_data, check_held_out, first_flaw
from xpsoftmax._train.evaluation import Evaluation, evaluation
from xpsoftmax._train.interrupts import given_up
from xpsoftmax._train.records import TrainResult
from xpsoftmax._typing import Array, Reduction
from xpsoftmax.dask import graph as parts
from xpsoftmax.dask.blocks import (
    Block,
    Model,
    Uneven,
    finished_sums,
    look_at_block,
    look_at_inputs,
    one_thread,
    sums_of_block,
    uneven,
)
from xpsoftmax.dask.graph import Partitions

BLOCKS_PER_STEP = 8
"""Over how many blocks a minibatch goes by default. It must not depend on the workers: the batches would, too."""

LARGE_GRAPH = "distributed.admin.large-graph-warning-threshold"


class ClusterError(ConnectionError):
    """The scheduler or all workers of a cluster were lost in training.

    Parameters
    ----------
    reason : str
        What was lost.
    result : TrainResult or None
        What had been trained until then.

    Attributes
    ----------
    result : TrainResult or None
        As it was after the last step that was completed; train(..., resume=error.result.state) goes on from there.
        None where `train` has made no step yet, since it still looked at labels, and for the classifier, which is as
        it was before the call.
    """

    def __init__(self, reason: str, result: TrainResult | None = None) -> None:
        when = "" if result is None else f" after {len(result.history['loss'])} steps"
        kept = (
            "Nothing has been changed."
            if result is None
            else "The error's `result` has the parameters after the last of them, and the state to resume from."
        )
        super().__init__(f"the cluster must outlive the training, but it was lost{when}: {reason} {kept}")
        self.reason, self.result = reason, result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.result)


class Scheduler:
    """The scheduler that Dask would choose when training begins, for all of it.

    Dask goes on with threads of this process where a client is closed: not what was asked for.
    """

    def __init__(self, collection: Any, model: Model) -> None:
        # Parameters are in each graph on purpose, in float32 if they are of 16 bits: no reason for Dask to warn.
        self.parameters = 2 * sum(array.nbytes for layer in model.params for array in layer)
        self.get = get_scheduler(collections=[collection])
        client = getattr(self.get, "__self__", None)
        self.client: Any = client if type(client).__module__.partition(".")[0] == "distributed" else None

    def computed(self, array: Array, *, optimized: bool = True) -> Any:
        """The value of an array; it waits for the workers."""
        with self.watched():
            return dask.compute(array, scheduler=self.get, optimize_graph=optimized)[0]

    def persisted(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """The arrays, held in the memory of the workers."""
        with self.watched():
            return dask.persist(*arrays, scheduler=self.get)  # type: ignore[no-any-return]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise `ClusterError` where the cluster is lost meanwhile."""
        if self.client is None:
            with given_up():
                yield
            return
        if self.client.status != "running":
            raise ClusterError(f"the client is {self.client.status}.")
        limit = parse_bytes(dask.config.get(LARGE_GRAPH)) + self.parameters
        try:
            with dask.config.set({LARGE_GRAPH: limit}), given_up():
                yield
        except Exception as error:
            if not self.lost(error):
                raise
            raise ClusterError(f"{type(error).__name__}: {error}".rstrip(".") + ".") from error

    def lost(self, error: Exception) -> bool:
        """Whether an error means that the cluster is lost."""
        from distributed import CancelledError
        from distributed.comm.core import CommClosedError
        from distributed.scheduler import KilledWorker, NoWorkerError

        if isinstance(error, (CancelledError, KilledWorker, NoWorkerError, CommClosedError)):
            return True
        return bool(self.client.status != "running")


# --- data -------------------------------------------------------------------------------------------------------------


def looked_at(scheduler: Scheduler, model: Model, data: Partitions) -> tuple[int, ...]:
    """Look at all labels and weights, once; return how many rows each block has."""
    X = data.X
    if not model.options.validate and not parts.is_unknown(X):
        return sized(map(int, X.chunks[0]))
    total = scheduler.computed(parts.added_up(parts.each_block(look_at_block, data.labels, **_rules(model))))
    return _as_known(data, total)


def look_at_all(scheduler: Scheduler, model: Model, data: Partitions, called: str) -> Block:
    """Look at labels, weights and inputs, `called` so in a message."""
    rules = _rules(model) | {"called": called, "max_memory": model.max_memory}
    found: Block = scheduler.computed(parts.added_up(parts.each_block(look_at_inputs, data.pairs, **rules)))
    return found


def _rules(model: Model) -> dict[str, Any]:
    net = model.network
    return {"classes": net.layers[-1].bias.shape[0], "options": model.options, "working": net.working}


def _as_known(data: Partitions, total: Block) -> tuple[int, ...]:
    """How many rows each block has, as `X` says where it knows."""
    X, sizes = data.X, sized(total.flawless().sizes)
    if not parts.is_unknown(X):
        for block, (rows, found) in enumerate(zip(X.chunks[0], sizes, strict=True)):
            if rows != found:
                raise Uneven("targets", int(rows), found, block).error()
    return sizes


def sized(sizes: Iterable[int]) -> tuple[int, ...]:
    """The sizes of the blocks, of which one must have rows."""
    sizes = tuple(sizes)
    if sum(sizes) == 0:
        raise ValueError("X must have at least one row, got none.")
    return sizes


def as_blocks(blocks_per_step: int | None, batch_size: int | None, sizes: tuple[int, ...]) -> int:
    """How many blocks a step goes over: by default all for full batches, some for minibatches."""
    if blocks_per_step is None:
        blocks_per_step = BLOCKS_PER_STEP if batch_size is not None else len(sizes)
    return min(blocks_per_step, len(sizes))


def as_held_out(scheduler: Scheduler, model: Model, X: Any, targets: Any) -> Data | Partitions:
    """Check validation data: dask arrays, or arrays in memory, which stay with the client."""
    try:
        if not is_dask_array(X):
            held_out = as_data(model.network, "validation", X, targets, model.options, model.max_memory)
            check_held_out(model.network, held_out, model.max_memory)
            return held_out
        data = parts.as_partitions(model, X, targets, None)
        _as_known(data, look_at_all(scheduler, model, data, "validation X"))
    except (TypeError, ValueError) as error:
        error.add_note("It is about the validation data.")
        raise
    return data


# --- steps ------------------------------------------------------------------------------------------------------------


class _Batch(NamedTuple):
    blocks: list[int]
    rows: np.ndarray | None  # numbers in the rows of these blocks together; None for all of them
    size: int


class _Epoch:
    """The batches of an epoch: rows of a few blocks, then of the next, in a random order of the blocks.

    The rows of a group of blocks are drawn when it has its turn: a permutation of all rows may be large.
    """

    def __init__(self, steps: PartitionSteps, generator: Any, batch_size: int) -> None:
        self.steps, self.generator, self.batch_size = steps, generator, batch_size
        count, most = len(steps.sizes), steps.blocks_per_step
        order: Any = range(count) if generator is None or most >= count else generator.permutation(count).tolist()
        self.groups = [sorted(order[start : start + most]) for start in range(0, count, most)]

    def rows(self, group: list[int]) -> int:
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


class PartitionSteps:
    """The steps of a training over blocks (`xpsoftmax._train.steps.Steps`); `averaged` as for `Stepper`."""

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
        model = replace(model.trusting(), widened=net.dtype != net.working)
        self.network, self.model, self.data, self.sizes = net, model, data, sizes
        self.reg, self.reduction, self.blocks_per_step = reg, reduction, blocks_per_step
        self.scheduler, self.averaged = scheduler, averaged
        self.on_host = type(net.layers[0].weight) is np.ndarray
        self.rows = sum(sizes)
        self.blocks: tuple[tuple[int, ...], int] | None = (sizes, blocks_per_step)
        self.held: tuple[list[int], Partitions] | None = None  # the blocks that batches are taken from, in memory

    def expected(self, batch_size: int, generator: Any = None) -> int:
        """How many batches the epoch has that the generator draws."""
        return len(_Epoch(self, generator, batch_size))

    def span(self, batch_size: int) -> tuple[int, int]:
        """How many batches an epoch has at least and at most: it depends on the order of the blocks."""
        if self.blocks_per_step >= len(self.sizes):
            return self.expected(batch_size), self.expected(batch_size)
        return -(-self.rows // batch_size), sum(-(-size // batch_size) for size in self.sizes)

    def batches(self, generator: Any, batch_size: int) -> _Epoch:
        """Draw an epoch; without a generator blocks and rows keep their order."""
        return _Epoch(self, generator, batch_size)

    def of_batch(self, layers: Params, batch: _Batch) -> tuple[Array, Params] | None:
        """Loss and gradients of a batch; None where no row counts."""
        model = replace(self.model, params=layers)
        node = parts.as_node(model)
        if batch.rows is None:
            data = self.of(batch.blocks)
            column = parts.each_block(sums_of_block, data.pairs, model=node)
        else:
            column = parts.each_rows(self.loaded(batch.blocks), node, self.of_blocks(batch.blocks, batch.rows))
        total = parts.added_up(column)
        block: Block = self.scheduler.computed(total, optimized=batch.rows is None).flawless()
        if not block.counts or (self.reduction == "mean" and not bool(block.sums.weight != 0.0)):
            return None
        reg = self.reg / block.sums.weight if self.averaged else self.reg
        return finished_sums(model.network, block.sums, reg, self.reduction)

    def loss_and_grads(self, layers: Params, rows: None) -> tuple[Array, Params]:  # noqa: ARG002
        """Of all rows, of which one counts."""
        found = self.of_batch(layers, _Batch(list(range(len(self.sizes))), None, self.rows))
        if found is None:
            raise ValueError("sample_weight must let a row count, got none that does.")
        return found

    def of(self, blocks: list[int]) -> Partitions:
        """The partitions of these blocks."""
        return self.data if len(blocks) == len(self.sizes) else self.data.blocks(blocks)

    def loaded(self, blocks: list[int]) -> Partitions:
        """The blocks in the memory of the workers; those before are let go first."""
        if self.held is None or self.held[0] != blocks:
            self.held = None
            self.held = blocks, Partitions(*self.scheduler.persisted(self.of(blocks).arrays))
        return self.held[1]

    def of_blocks(self, blocks: list[int], rows: np.ndarray) -> list[np.ndarray]:
        """For each block the numbers of its rows in a batch."""
        ends = np.cumsum([self.sizes[block] for block in blocks])
        block_of = np.searchsorted(ends, rows, side="right")
        return [rows[block_of == i] - (end - self.sizes[blocks[i]]) for i, end in enumerate(ends)]

    def evaluated(self, layers: Params, data: Data | Partitions) -> tuple[float, float]:
        """Loss, without penalty, and accuracy of other data."""
        if isinstance(data, Data):
            net = replace(self.network, layers=layers)
            return evaluation(net, data, self.reduction, self.model.max_memory, None).finish(self.reduction)
        node = parts.as_node(replace(self.model, params=layers))
        column = parts.each_block(evaluate_block, data.pairs, model=node, reduction=self.reduction)
        sums: Evaluation = self.scheduler.computed(parts.added_up(column)).flawless().sums
        return sums.finish(self.reduction)

    def flaw(self, data: Data | Partitions | None = None) -> Bad | None:
        """See `xpsoftmax._train.steps.Steps`; None, too, where the cluster is lost while it is looked for."""
        if isinstance(data, Data):
            return first_flaw(self.network, data, self.model.max_memory)
        model = replace(self.model, options=self.model.options._replace(validate=True))
        try:
            found = look_at_all(self.scheduler, model, self.data if data is None else data, "X").flaw
        except ClusterError:
            return None
        except ValueError as error:  # of a weight of a class
            return getattr(error, "bad", None)
        return found if isinstance(found, Bad) else None


def evaluate_block(X: Array, targets: Array, *, model: Model, reduction: Reduction) -> Block:
    """Loss and hits of a block."""
    sizes, flaw = (int(X.shape[0]),), uneven(X, targets, None)
    if flaw is not None:
        return Block(sizes, flaw)
    if sizes == (0,):
        return Block(sizes, None, Evaluation(0.0, 0.0, 0.0, 0))
    net = replace(model.network, dtype=X.dtype)
    with one_thread(), quiet(net.xp, net.home.device):
        data = as_data(net, "validation", X, targets, model.options._replace(reduction=reduction))
        loss, total, right, counted = evaluation(net, data, reduction, model.max_memory, None)
        return Block(sizes, None, Evaluation(float(loss), float(total), float(right), counted))
