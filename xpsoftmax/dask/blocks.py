"""What a task computes: the sums over a block of rows, or the sum of what other tasks returned.

These functions run on the workers and know nothing of dask. `xpsoftmax.dask.graph` makes tasks of them.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_dask_array

from xpsoftmax._arguments.finite import first_not_finite
from xpsoftmax._arguments.home import Home, home_of, placement, quiet
from xpsoftmax._arguments.layout import Layout
from xpsoftmax._arguments.options import check_impl
from xpsoftmax._arguments.problem import LossOptions, Problem, prepare
from xpsoftmax._arguments.values import BadValue
from xpsoftmax._network.chunks import DEFAULT_MAX_MEMORY, budget
from xpsoftmax._network.layers import Layer, PairsOfArrays, Params
from xpsoftmax._network.network import Network, as_network, copied
from xpsoftmax._network.passes import sum_over_rows
from xpsoftmax._network.sums import PartialSums, loss_with_penalty, with_penalty
from xpsoftmax._typing import Array, DType, Impl, Reduction
from xpsoftmax.kernels.numpy.blas import single_threaded


@dataclass(frozen=True)
class Model:
    """What the computation of a block needs beside its rows, as one object: dask searches tuples, but not this."""

    params: Params
    activation: str
    options: LossOptions  # with the reduction "sum", and without sample weights, which are rows of a block
    max_memory: int | None
    impl: Impl
    widened: bool = False  # whether 16-bit inputs are cast to the dtype of the parameters, float32, as in training

    @property
    def network(self) -> Network:
        """Return the network of these parameters, checked."""
        return as_network(self.params, self.activation, self.impl)

    def without_validation(self) -> Model:
        """Return the model for labels and weights that were checked before."""
        return replace(self, options=self.options._replace(validate=False))


def as_model(
    params: PairsOfArrays, activation: str | None, max_memory: int | None, options: LossOptions, impl: Impl
) -> Model:
    """Check the parameters, and copy them: a lazy result does not change when the caller's arrays do."""
    check_impl(impl)
    net = as_network(params, activation, impl)
    if is_dask_array(net.layers[0].weight):
        raise TypeError("params must be arrays of numbers in memory, got dask arrays.")
    layers = copied(net, tuple(Layer(*layer) for layer in params), net.dtype)
    return Model(layers, net.activation, options._replace(reduction="sum", sample_weight=None), max_memory, impl)


class UnequalRows(NamedTuple):
    """A block in which an array has other numbers of rows than `X`: found only when the block is computed."""

    name: str
    rows: int
    found: int
    block: int = 0

    def error(self) -> ValueError:
        """Return the exception for it."""
        return ValueError(
            f"{self.name} must have as many rows as X in every block, {self.rows}, got {self.found} "
            f"in block {self.block}."
        )


Flaw = UnequalRows | BadValue


@dataclass(frozen=True, slots=True)
class Block:
    """The result of consecutive blocks of rows.

    Results are added in the order of the blocks. A bad row is counted from the first row of its block; adding results
    turns this into its number among all rows.
    """

    sizes: tuple[int, ...]  # rows of each block
    flaw: Flaw | None = None  # the first that a check of all rows at once would find
    sums: Any = None  # None beside a flaw
    counts: bool = True  # whether any row counts

    def __add__(self, other: Block) -> Block:
        sizes, counts = self.sizes + other.sizes, self.counts or other.counts
        flaws = [flaw for flaw in (self.flaw, _shifted(self, other.flaw)) if flaw is not None]
        if flaws:
            return Block(sizes, min(flaws, key=_order), None, counts)
        return Block(sizes, None, None if self.sums is None else self.sums + other.sums, counts)

    def without_flaw(self) -> Block:
        """Return the result itself; raise its flaw if it has one."""
        if self.flaw is not None:
            raise self.flaw.error()
        return self


def _shifted(block: Block, flaw: Flaw | None) -> Flaw | None:
    """Return a flaw with its row and block counted from the first of the preceding result."""
    if isinstance(flaw, UnequalRows):
        return flaw._replace(block=flaw.block + len(block.sizes))
    if isinstance(flaw, BadValue):
        row, *rest = flaw.position
        return flaw._replace(position=(row + sum(block.sizes), *rest))
    return None


CHECKED_FIRST = ("targets", "sample_weight")
"""Arrays in the order in which they are checked; the inputs follow."""


def _order(flaw: Flaw) -> tuple[bool, int, int]:
    """Return a key that sorts flaws as a check of all rows finds them: by array, then by row."""
    place = CHECKED_FIRST.index(flaw.name) if flaw.name in CHECKED_FIRST else len(CHECKED_FIRST)
    if isinstance(flaw, UnequalRows):
        return False, place, flaw.block
    return True, place, flaw.position[0]


def bad_row(error: ValueError) -> BadValue:
    """Return the bad value that an error is about; raise the error if it is about something else."""
    bad: BadValue | None = getattr(error, "bad", None)
    if bad is None or bad.unit == "class":
        raise error
    return bad


def one_thread() -> AbstractContextManager[None]:
    """Return a context in which a task uses one thread: dask runs as many tasks at once as it has threads.

    A worker with a single thread keeps the number of BLAS threads that its cluster has set, by default one.
    """
    distributed = sys.modules.get("distributed")
    try:
        threads = distributed.get_worker().state.nthreads if distributed else None
    except ValueError:
        threads = None  # not a worker
    return single_threaded(blas=threads != 1)


def unequal_rows(X: Array, targets: Array, weight: Array | None) -> UnequalRows | None:
    """Return the first of targets and weights that has another number of rows than `X`, if one does."""
    for name, array in (("targets", targets), ("sample_weight", weight)):
        if array is not None and array.shape[0] != X.shape[0]:
            return UnequalRows(name, X.shape[0], array.shape[0])
    return None


def sums_of_block(X: Array, targets: Array, weight: Array | None = None, *, model: Model, grad: bool = True) -> Block:
    """Return the partial sums of a block as `mlp_partial_sums` does; without `grad` those of the loss alone."""
    return _sums(X, targets, weight, model, grad=grad)


def sums_of_rows(model: Model, rows: np.ndarray, X: Array, targets: Array, weight: Array | None = None) -> Block:
    """Return the partial sums of some rows of a block."""
    flaw = unequal_rows(X, targets, weight)
    if flaw is not None:
        return Block((int(X.shape[0]),), flaw)
    weight = None if weight is None else _select(weight, rows)
    return _sums(_select(X, rows), _select(targets, rows), weight, model, grad=True)


def _select(array: Array, rows: np.ndarray) -> Array:
    if type(array) is np.ndarray:
        return array[rows]
    xp = array_namespace(array)
    return xp.take(array, xp.asarray(rows, device=placement(array)), axis=0)


def _sums(X: Array, targets: Array, weight: Array | None, model: Model, *, grad: bool) -> Block:
    sizes, flaw = (int(X.shape[0]),), unequal_rows(X, targets, weight)
    if flaw is not None:
        return Block(sizes, flaw)
    if model.widened:
        X = array_namespace(X).astype(X, model.params[0].weight.dtype)
    options = model.options._replace(sample_weight=weight)
    try:
        with one_thread():
            net, sums, _ = sum_over_rows(
                model.params, X, targets, model.activation, 0.0, model.max_memory, options, model.impl, grad=grad
            )
    except ValueError as error:
        return Block(sizes, bad_row(error))
    return Block(sizes, None, sums.partial(net), sums.has_rows(net))


def check_labels_of_block(
    targets: Array, weight: Array | None = None, *, classes: int, options: LossOptions, working: DType
) -> Block:
    """Return how many rows a block has, and its first bad label or weight."""
    sizes, flaw = (int(targets.shape[0]),), unequal_rows(targets, targets, weight)
    if flaw is not None or not options.validate:
        return Block(sizes, flaw)
    problem = _checked_problem(targets, weight, classes, options, working)
    return Block(sizes, problem) if isinstance(problem, BadValue) else Block(sizes)


def check_block(
    X: Array,
    targets: Array,
    weight: Array | None = None,
    *,
    classes: int,
    options: LossOptions,
    working: DType,
    max_memory: int | None,
) -> Block:
    """Return how many rows a block has, and its first bad label or weight, or else its first input not finite."""
    sizes, flaw = (int(X.shape[0]),), unequal_rows(X, targets, weight)
    if flaw is not None or sizes == (0,):
        return Block(sizes, flaw)
    problem = _checked_problem(targets, weight, classes, options, working)
    if isinstance(problem, BadValue):
        return Block(sizes, problem)
    xp = array_namespace(X)
    with one_thread(), quiet(xp, home_of(X)):
        return Block(sizes, first_not_finite(xp, "X", X, problem.row_weight, budget(max_memory)))


def _checked_problem(
    targets: Array, weight: Array | None, classes: int, options: LossOptions, working: DType
) -> Problem | BadValue:
    xp = array_namespace(targets)
    layout = Layout(Home(xp, home_of(targets), "X"), (int(targets.shape[0]), classes), 1, working)
    with layout.home.context():
        try:
            return prepare(targets, layout, options._replace(sample_weight=weight), DEFAULT_MAX_MEMORY)
        except ValueError as error:
            return bad_row(error)


def sum_blocks(parts: list[Block]) -> Block:
    """Add up the results of consecutive blocks."""
    with np.errstate(all="ignore"):
        return reduce(add, parts)


def list_of_results(model: Model, total: Block, reg: float, reduction: Reduction) -> list[Array]:
    """Return the loss and then the gradients, in the order of the parameters, of the sums over all blocks."""
    net, sums = model.network, total.without_flaw().sums
    loss, grads = loss_and_grads_of(net, sums, reg, reduction)
    return [loss, *(array for layer in grads for array in layer)]


def loss_and_grads_of(
    net: Network, sums: PartialSums, reg: float | Array, reduction: Reduction
) -> tuple[Array, Params]:
    """Return loss and gradients, penalty included, of the sums over all rows."""
    with quiet(net.xp, net.home.device):
        loss, grads = sums.mean(net.xp) if reduction == "mean" else (sums.loss, sums.grads)
        return with_penalty(net, loss, grads, reg) if grads else (loss_with_penalty(net, loss, float(reg)), ())
