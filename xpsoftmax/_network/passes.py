"""The sums over all chunks of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import is_jax_array

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.door import enter_problem
from xpsoftmax._arguments.layout import Layout
from xpsoftmax._arguments.options import as_number, check_choice, check_impl
from xpsoftmax._arguments.problem import LossOptions, Problem, mean_or_nan
from xpsoftmax._network.backprop import Buffers, DeadRows, backward, forward
from xpsoftmax._network.chunks import SMALL, Plan, budget, features_of, overwrites_logits, plan_chunks
from xpsoftmax._network.layers import Layer, PairsOfArrays, Params
from xpsoftmax._network.network import Network, as_inputs, as_network
from xpsoftmax._network.sums import Sums
from xpsoftmax._typing import Array, Impl, LossSpec
from xpsoftmax.kernels import of_library, sparse, summed


def sum_over_rows(
    params: PairsOfArrays,
    X: Array,
    targets: Array,
    activation: str | None,
    reg: float,
    max_memory: int | None,
    options: LossOptions,
    impl: Impl,
    *,
    grad: bool,
) -> tuple[Network, Sums, float]:
    """Check everything and add up all chunks; with the reduction "mean" the sums are already divided by the weight."""
    check_impl(impl)
    check_choice("reduction", options.reduction, ("mean", "sum"))
    net = as_network(params, activation, impl, differentiable=not grad)
    reg = as_number("reg", reg)
    X = as_inputs(net, X)
    xp, classes = net.xp, net.layers[-1].bias.shape[0]
    with net.home.context():
        home = net.home._replace(owner="X")
        layout = Layout(home, (X.shape[0], classes), 1, net.working, check.blocks_of(X))
        problem = enter_problem(targets, layout, options, budget(max_memory), for_kernel=_adds_up(net))
        if layout.lengthless:
            problem = _with_rows_of(problem, X)
        plan = plan_chunks(net, X.shape[0], problem, max_memory, features_of(X))
        loss, grads = sum_over_chunks(net, X, problem, plan, grad=grad)
        if options.reduction == "mean":
            loss = mean_or_nan(xp, loss, problem.total, problem.correction)
    return net, Sums(loss, problem.total, grads, problem.row_weight), reg


def _with_rows_of(problem: Problem, X: Array) -> Problem:
    """Return the problem with a check, made when a block is computed, that it has as many rows as the block of X."""
    from xpsoftmax.kernels.dask import with_rows_of  # imports dask: not before the caller has

    targets, row_weight = (with_rows_of("targets", array, "X", X) for array in (problem.targets, problem.row_weight))
    return problem._replace(targets=targets, row_weight=row_weight)


def sum_over_chunks(
    net: Network,
    X: Array,
    problem: Problem,
    plan: Plan,
    *,
    grad: bool,
    buffers: Buffers | None = None,
    out: Params | None = None,
) -> tuple[Array, Params]:
    """Sums of the weighted losses of all rows and of their gradients; on NumPy in `buffers`, and `out`, if given."""
    if buffers is None and len(plan.chunks) > 1 and type(X) is np.ndarray:
        buffers = Buffers()
    loss: Any = None
    sums: list[Layer | None] = [None] * len(net.layers)
    for rows in plan.chunks:
        part, inputs, slopes, delta = _chunk(net, X, problem, rows, grad=grad, buffers=buffers)
        loss = part if loss is None else loss + part
        if grad:
            backward(net, inputs, slopes, delta, sums, plan.spare, buffers, out)
        del inputs, slopes, delta
    return loss, tuple(layer for layer in sums if layer)


def _chunk(
    net: Network,
    X: Array,
    problem: Problem,
    rows: slice | None,
    *,
    grad: bool,
    buffers: Buffers | None,
) -> tuple[Array, list[Array], list[Array | None], Array]:
    """Loss of a chunk of rows, and with `grad` what `_backward` needs."""
    xp = net.xp
    targets, row_weight = problem.targets, problem.row_weight
    if rows is not None:
        X, targets = _some_rows(X, rows), _some_rows(targets, rows)
        row_weight = row_weight if type(row_weight) is float else _some_rows(row_weight, rows)
    if X.dtype != net.working:
        X = xp.astype(X, net.working)
    if targets.ndim == 2:
        targets = check.as_dtype(xp, targets, net.working)
    dead: DeadRows | None = None
    if problem.weighted and not (type(row_weight) is np.ndarray and row_weight.all()):
        # A row that does not count may hold anything: 0 * nan must not reach the weights.
        if is_jax_array(X):
            dead = DeadRows(xp, row_weight)
            X = dead.finite(X)
        elif sparse.is_sparse(X):
            X = sparse.without_rows(xp, X, row_weight != 0.0)
        else:
            X = net.kernels.counted_rows(X, row_weight)
    inputs, slopes, logits = forward(net, X, grad=grad, buffers=buffers, dead=dead)
    loss, delta = _loss(net, logits, targets, row_weight, problem.spec, grad=grad, buffers=buffers)
    return loss, inputs, slopes, delta


def _loss(
    net: Network,
    logits: Array,
    targets: Array,
    row_weight: Array | float,
    spec: LossSpec,
    *,
    grad: bool,
    buffers: Buffers | None,
) -> tuple[Array, Array]:
    """Sum of the losses of a chunk, and with `grad` the gradient of its logits, which may be written over them."""
    out = None
    if grad and overwrites_logits(net):
        if type(logits) is not np.ndarray or logits.nbytes > SMALL:
            out = logits
        elif buffers is not None:
            out = buffers.take(("dlogits", 0), logits.shape, logits.dtype)
    if _adds_up(net):
        loss, delta = net.kernels.softmax_loss_total(logits, targets, row_weight, spec, grad=grad, out=out)
        return loss, delta
    losses, delta = net.kernels.softmax_loss_rows(logits, targets, row_weight, spec, grad=grad, out=out)
    return summed(net.xp, losses), delta


def _adds_up(net: Network) -> bool:
    """Whether a kernel on a GPU adds up the losses itself; it takes one number as the weight of all rows."""
    return type(net.layers[0].weight) is not np.ndarray and net.kernels.has_kernel("softmax_loss_total")


def _some_rows(array: Array, rows: slice) -> Array:
    return array[rows, :] if sparse.is_sparse(array) else of_library("some_rows", array)(array, rows)
