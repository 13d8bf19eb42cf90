"""What a task makes of a block of rows, and of what other tasks gave: sums, which know how many rows they are of.

Here nothing is of dask; which task gets which block is in _partitions.py.
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
from xpsoftmax._arguments.values import Bad
from xpsoftmax._network.chunks import DEFAULT_MAX_MEMORY, budget
from xpsoftmax._network.layers import Layer, PairsOfArrays, Params
from xpsoftmax._network.network import Network, as_network, copied
from xpsoftmax._network.passes import add_up
from xpsoftmax._network.sums import PartialSums, finished, penalised
from xpsoftmax._typing import Array, DType, Impl, Reduction
from xpsoftmax.kernels.numpy.blas import single_threaded


@dataclass(frozen=True)
class Model:
    """All that a block is computed with beside its rows. Dask looks into tuples, but not into this."""

    params: Params
    activation: str
    options: LossOptions  # those of a sum, without sample weights
    max_memory: int | None
    impl: Impl
    widened: bool = False  # whether inputs of 16 bits meet parameters in float32, as in training

    @property
    def network(self) -> Network:
        """The checked network of these parameters."""
        return as_network(self.params, self.activation, self.impl)

    def trusting(self) -> Model:
        """The same for labels and weights that have been looked at."""
        return replace(self, options=self.options._replace(validate=False))


def as_model(
    params: PairsOfArrays, activation: str | None, max_memory: int | None, options: LossOptions, impl: Impl
) -> Model:
    """Check the parameters, and copy them: what is lazy is computed with the values of now."""
    check_impl(impl)
    net = as_network(params, activation, impl)
    if is_dask_array(net.layers[0].weight):
        raise TypeError("params must be arrays of numbers in memory, got dask arrays.")
    layers = copied(net, tuple(Layer(*layer) for layer in params), net.dtype)
    return Model(layers, net.activation, options._replace(reduction="sum", sample_weight=None), max_memory, impl)


class Uneven(NamedTuple):
    """Arrays that do not have the same rows in a block, which is seen when it is computed."""

    name: str
    rows: int
    found: int
    block: int = 0

    def error(self) -> ValueError:
        """What is raised for it."""
        return ValueError(
            f"{self.name} must have as many rows as X in every block, {self.rows}, got {self.found} "
            f"in block {self.block}."
        )


Flaw = Uneven | Bad


@dataclass(frozen=True, slots=True)
class Block:
    """What consecutive blocks of rows give: added up in their order, so that a flaw is found in its row of all."""

    sizes: tuple[int, ...]  # rows of each
    flaw: Flaw | None = None  # the first that a look at all rows at once would find
    sums: Any = None  # None beside a flaw
    counts: bool = True  # whether a row counts

    def __add__(self, other: Block) -> Block:
        sizes, counts = self.sizes + other.sizes, self.counts or other.counts
        flaws = [flaw for flaw in (self.flaw, _behind(self, other.flaw)) if flaw is not None]
        if flaws:
            return Block(sizes, min(flaws, key=_order), None, counts)
        return Block(sizes, None, None if self.sums is None else self.sums + other.sums, counts)

    def flawless(self) -> Block:
        """Raise what was found."""
        if self.flaw is not None:
            raise self.flaw.error()
        return self


def _behind(block: Block, flaw: Flaw | None) -> Flaw | None:
    if isinstance(flaw, Uneven):
        return flaw._replace(block=flaw.block + len(block.sizes))
    if isinstance(flaw, Bad):
        row, *rest = flaw.position
        return flaw._replace(position=(row + sum(block.sizes), *rest))
    return None


LOOKED_AT = ("targets", "sample_weight")
"""The order in which arrays are looked at; inputs come last."""


def _order(flaw: Flaw) -> tuple[bool, int, int]:
    """The order of what a look at all rows at once would find: array by array, and the first row first."""
    place = LOOKED_AT.index(flaw.name) if flaw.name in LOOKED_AT else len(LOOKED_AT)
    if isinstance(flaw, Uneven):
        return False, place, flaw.block
    return True, place, flaw.position[0]


def bad_row(error: ValueError) -> Bad:
    """What an error says of a row; any other is raised."""
    bad: Bad | None = getattr(error, "bad", None)
    if bad is None or bad.unit == "class":
        raise error
    return bad


def one_thread() -> AbstractContextManager[None]:
    """A task is one thread of Dask's, which has as many as it thinks fit.

    A worker of a single thread keeps its BLAS as the cluster sets it: to one thread, if it is not told otherwise.
    """
    distributed = sys.modules.get("distributed")
    try:
        threads = distributed.get_worker().state.nthreads if distributed else None
    except ValueError:
        threads = None  # not a worker
    return single_threaded(blas=threads != 1)


def uneven(X: Array, targets: Array, weight: Array | None) -> Uneven | None:
    """The first companion of a block that has another number of rows than `X`."""
    for name, array in (("targets", targets), ("sample_weight", weight)):
        if array is not None and array.shape[0] != X.shape[0]:
            return Uneven(name, X.shape[0], array.shape[0])
    return None


def sums_of_block(X: Array, targets: Array, weight: Array | None = None, *, model: Model, grad: bool = True) -> Block:
    """What `mlp_partial_sums` says of a block, or without `grad` its loss alone."""
    return _sums(X, targets, weight, model, grad=grad)


def sums_of_rows(model: Model, rows: np.ndarray, X: Array, targets: Array, weight: Array | None = None) -> Block:
    """The same for some rows of a block."""
    flaw = uneven(X, targets, weight)
    if flaw is not None:
        return Block((int(X.shape[0]),), flaw)
    weight = None if weight is None else _taken(weight, rows)
    return _sums(_taken(X, rows), _taken(targets, rows), weight, model, grad=True)


def _taken(array: Array, rows: np.ndarray) -> Array:
    if type(array) is np.ndarray:
        return array[rows]
    xp = array_namespace(array)
    return xp.take(array, xp.asarray(rows, device=placement(array)), axis=0)


def _sums(X: Array, targets: Array, weight: Array | None, model: Model, *, grad: bool) -> Block:
    sizes, flaw = (int(X.shape[0]),), uneven(X, targets, weight)
    if flaw is not None:
        return Block(sizes, flaw)
    if model.widened:
        X = array_namespace(X).astype(X, model.params[0].weight.dtype)
    options = model.options._replace(sample_weight=weight)
    try:
        with one_thread():
            net, sums, _ = add_up(
                model.params, X, targets, model.activation, 0.0, model.max_memory, options, model.impl, grad=grad
            )
    except ValueError as error:
        return Block(sizes, bad_row(error))
    return Block(sizes, None, sums.partial(net), bool(net.xp.any(sums.row_weight != 0.0)))


def look_at_block(
    targets: Array, weight: Array | None = None, *, classes: int, options: LossOptions, working: DType
) -> Block:
    """How many rows a block has, and the first bad label or weight."""
    sizes, flaw = (int(targets.shape[0]),), uneven(targets, targets, weight)
    if flaw is not None or not options.validate:
        return Block(sizes, flaw)
    problem = _looked_at(targets, weight, classes, options, working)
    return Block(sizes, problem) if isinstance(problem, Bad) else Block(sizes)


def look_at_inputs(
    X: Array,
    targets: Array,
    weight: Array | None = None,
    *,
    called: str,
    classes: int,
    options: LossOptions,
    working: DType,
    max_memory: int | None,
) -> Block:
    """The same of a block with its inputs, and the first row of them that is not finite."""
    sizes, flaw = (int(X.shape[0]),), uneven(X, targets, weight)
    if flaw is not None or sizes == (0,):
        return Block(sizes, flaw)
    problem = _looked_at(targets, weight, classes, options, working)
    if isinstance(problem, Bad):
        return Block(sizes, problem)
    xp = array_namespace(X)
    with one_thread(), quiet(xp, home_of(X)):
        return Block(sizes, first_not_finite(xp, called, X, problem.row_weight, budget(max_memory)))


def _looked_at(
    targets: Array, weight: Array | None, classes: int, options: LossOptions, working: DType
) -> Problem | Bad:
    xp = array_namespace(targets)
    layout = Layout(Home(xp, home_of(targets), "X"), (int(targets.shape[0]), classes), 1, working)
    with layout.home.context():
        try:
            return prepare(targets, layout, options._replace(sample_weight=weight), DEFAULT_MAX_MEMORY)
        except ValueError as error:
            return bad_row(error)


def sum_of(parts: list[Block]) -> Block:
    """The sum of consecutive blocks."""
    with np.errstate(all="ignore"):
        return reduce(add, parts)


def finish(model: Model, total: Block, reg: float, reduction: Reduction) -> list[Array]:
    """Loss, then gradients, in the order of the parameters."""
    net, sums = model.network, total.flawless().sums
    loss, grads = finished_sums(net, sums, reg, reduction)
    return [loss, *(array for layer in grads for array in layer)]


def finished_sums(net: Network, sums: PartialSums, reg: float | Array, reduction: Reduction) -> tuple[Array, Params]:
    """Loss and gradients of sums over all rows."""
    with quiet(net.xp, net.home.device):
        loss, grads = sums.mean(net.xp) if reduction == "mean" else (sums.loss, sums.grads)
        return finished(net, loss, grads, reg) if grads else (penalised(net, loss, float(reg)), ())
