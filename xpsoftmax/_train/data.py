"""The rows of a training or of validation, checked once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.finite import first_not_finite
from xpsoftmax._arguments.home import quiet
from xpsoftmax._arguments.layout import Layout
from xpsoftmax._arguments.problem import LossOptions, Problem, prepare
from xpsoftmax._arguments.tracing import check_concrete
from xpsoftmax._arguments.values import BadValue
from xpsoftmax._network.chunks import budget, plan_chunks
from xpsoftmax._network.network import Network, as_inputs
from xpsoftmax._typing import Array


class Data(NamedTuple):
    """Checked inputs, with the targets and weights of their rows."""

    X: Array  # (N, D), in the dtype of the parameters
    problem: Problem  # of all rows, with the weights of a sum
    counts: np.ndarray | None  # (N,) on the host: which rows count; None where all do
    unchecked: tuple[Array, LossOptions] | None = None  # targets and options, with `validate=False`

    @property
    def rows(self) -> int:
        return int(self.X.shape[0])


def as_data(net: Network, X: Array, targets: Array, options: LossOptions, max_memory: int | None = None) -> Data:
    """Check inputs, targets, all labels and weights, and that `max_memory` is enough for one row."""
    X = as_inputs(net, X, "X")
    weights = {"sample_weight": options.sample_weight, "class_weight": options.class_weight}
    check_concrete(X=X, targets=targets, **weights)
    if X.shape[0] == 0:
        raise ValueError(f"X must have at least one row, got shape {tuple(X.shape)}.")
    shape = (X.shape[0], net.layers[-1].bias.shape[0])
    layout = Layout(net.home._replace(owner="X"), shape, 1, net.working, check.blocks_of(X))
    with quiet(net.xp, net.home.device):
        problem = prepare(targets, layout, options._replace(reduction="sum"), budget(max_memory))
        plan_chunks(net, 1, problem, max_memory)  # raises if `max_memory` is too small
        # A mean is divided by counting weights; a sum is not, and smoothed rows of class weight 0 add to it.
        counting = problem.counting if options.reduction == "mean" or problem.counting is None else problem.row_weight
        counts = None if counting is None else np.array(on_host(counting != 0.0), bool)
    counts = None if counts is None or counts.all() else counts
    return Data(X, problem, counts, None if options.validate else (targets, options))


def check_held_out(net: Network, data: Data, max_memory: int | None) -> None:
    """Raise ValueError for the first row of validation inputs that counts and is not finite."""
    bad = _bad_inputs(net, data, max_memory)
    if bad is not None:
        raise bad.error()


def _bad_inputs(net: Network, data: Data, max_memory: int | None) -> BadValue | None:
    with quiet(net.xp, net.home.device):
        return first_not_finite(net.xp, "X", data.X, data.problem.row_weight, budget(max_memory))


def first_flaw(net: Network, data: Data, max_memory: int | None) -> BadValue | None:
    """Return the first label, weight or input that makes a loss not finite; None if there is none."""
    if data.unchecked is not None:
        targets, options = data.unchecked
        try:
            as_data(net, data.X, targets, options._replace(validate=True), max_memory)
        except ValueError as error:
            return getattr(error, "bad", None)
    return _bad_inputs(net, data, max_memory)


def on_host(x: Array) -> list[float]:
    """Return the numbers of a 1-D array; it waits for the device."""
    return list(x.tolist() if hasattr(x, "tolist") else map(float, x))
