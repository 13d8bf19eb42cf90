"""Training: minibatches, history, early stopping, interruption and resumption."""

from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
from array_api_compat import is_dask_array

from xpsoftmax import _validate as check
from xpsoftmax._backprop import (
    Buffers,
    Network,
    Plan,
    add_rows,
    as_inputs,
    as_network,
    budget,
    finished,
    forward,
    parts_of,
    plan_chunks,
)
from xpsoftmax._finite import first_not_finite
from xpsoftmax._layers import Layer, PairsOfArrays, Params, alike, carrying, recorded
from xpsoftmax._loss import LossOptions, Problem, divided, prepare
from xpsoftmax._optim import Optimizer
from xpsoftmax._predict import NO_CLASS, labels_of
from xpsoftmax._softmax import quiet, summed
from xpsoftmax._state import History, TrainState, checked_state
from xpsoftmax._typing import Array, DType, Impl, Reduction
from xpsoftmax.kernels.generic import narrowed


class TrainResult(NamedTuple):
    """What `train` returns.

    Attributes
    ----------
    params : tuple of Layer
        With `patience` those of the epoch with the least validation loss, otherwise the last ones.
    history : dict of lists
        "loss": of each step, penalty included; nan for a batch without a row that counts. With validation data, for
        each epoch: "validation_loss", without the penalty, and "validation_accuracy".
    state : TrainState
        To go on from, by ``train(..., resume=state)``.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> X, y = np.eye(4), np.array([0, 1, 2, 0])
    >>> result = xs.train(xs.init_params((4, 3), rng=0), X, y, optimizer=xs.sgd(1.0), epochs=5, batch_size=2, rng=0)
    >>> len(result.history["loss"])  # two batches an epoch
    10
    >>> params, history, state = result
    """

    params: Params
    history: History
    state: TrainState


class TrainStep:
    """What a callback of `train` sees after each step.

    Attributes
    ----------
    epoch, step : int
        Counted from 0; `step` goes on from epoch to epoch.
    loss : array, 0-d, or float
        On a GPU it is still there: ``float(loss)`` waits for it.
    params : tuple of Layer
        A copy, made when it is asked for: in the callback, not later.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> X, y = np.eye(4), np.array([0, 1, 2, 0])
    >>> def stop(step):
    ...     return step.step == 2  # the third
    >>> options = {"optimizer": xs.sgd(1.0), "batch_size": 2, "rng": 0, "callback": stop}
    >>> result = xs.train(xs.init_params((4, 3), rng=0), X, y, epochs=5, **options)
    >>> len(result.history["loss"]), result.state.epoch, result.state.step
    (3, 1, 1)
    """

    def __init__(self, epoch: int, step: int, loss: Any, copy: Callable[[], Params]) -> None:
        self.epoch, self.step, self.loss = epoch, step, loss
        self._copy: Callable[[], Params] | None = copy

    @property
    def params(self) -> Params:
        """The parameters after the step."""
        if self._copy is None:
            raise RuntimeError("params must be asked for while the callback runs: training has gone on since.")
        return self._copy()

    def pass_by(self) -> None:
        """Training goes on: the parameters will be others."""
        self._copy = None

    def __repr__(self) -> str:
        return f"TrainStep(epoch={self.epoch}, step={self.step}, loss={self.loss})"


class DivergenceError(FloatingPointError):
    """A loss that is not finite, or parameters that are not, ended a training.

    The message names inputs that are not finite, and their first row, where they are the cause.

    Attributes
    ----------
    step : int
        The step of that loss, counted from 0; or the last one, after which the parameters or the validation loss are
        not finite.
    loss : float or None
        None where it is the parameters.
    result : TrainResult
        As it was before the step of that loss. Where a validation loss is not finite: as it was before validation.
        Where it is the parameters: as it is, with them.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> X, y, params = np.eye(4), np.array([0, 1, 2, 0]), xs.init_params((4, 8, 3), rng=0)
    >>> try:
    ...     xs.train(params, X, y, optimizer=xs.sgd(1e200), epochs=5, batch_size=4, rng=0)
    ... except xs.DivergenceError as error:
    ...     print(error.step, bool(np.isfinite(error.result.params[0].weight).all()))
    1 True
    """

    def __init__(self, step: int, loss: float | None, result: TrainResult, reason: str | None = None) -> None:
        super().__init__(reason or _diverged_by_steps(step, loss))
        self.step, self.loss, self.result = step, loss, result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.loss, self.result, str(self))


BEFORE = "The error's `result` has the parameters from before it."


def _diverged_by_steps(step: int, loss: float | None) -> str:
    """Message where steps have led there that were too long."""
    if loss is None:
        return f"params must stay finite in training, got nan or inf after step {step}. Try a smaller learning rate."
    return f"loss must be finite in training, got {loss} at step {step}. A smaller learning rate may help. {BEFORE}"


def train(
    params: PairsOfArrays,
    X: Array,
    targets: Array,
    /,
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    rng: Any,
    activation: str | None = None,
    reg: float = 0.0,
    validation: tuple[Array, Array] | None = None,
    patience: int | None = None,
    resume: TrainState | None = None,
    progress: bool = False,
    callback: Callable[[TrainStep], object] | None = None,
    max_memory: int | None = None,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool = True,
    impl: Impl = "auto",
) -> TrainResult:
    """Train a network by minibatches.

    Every epoch goes through all rows in a new random order; the last batch may be shorter. A batch of all rows is
    taken as it is.

    Parameters
    ----------
    params, X, targets
        As for `mlp_loss_and_grad`. The arguments are not modified. 16-bit parameters are trained in float32 and
        rounded at the end; layers that share an array are trained apart. `X` may be a memory map: only the rows of a
        batch are read.
    optimizer : Optimizer
        `sgd`, `adam` or `adamw`.
    epochs : int
        Epochs in all, those before `resume` included.
    batch_size : int
    rng : None, int, numpy.random.Generator, ...
        Anything that `numpy.random.default_rng` takes. Batches are drawn on the host: every library sees the same.
        With `resume` only its kind matters.
    activation, reg
        As for `mlp_loss_and_grad`. Without `activation`, plain pairs are trained on with the one that `resume` carries.
    validation : (X, targets), optional
        Data that loss (with the options of the call, but no penalty and no sample weights) and accuracy are computed
        for after each epoch. Its inputs must be finite in all rows that count; they are looked at before
        the first step.
    patience : int, optional
        Stop after so many epochs without a smaller validation loss, and return the parameters of the best epoch.
    resume : TrainState, optional
        State of an earlier call: go on from there. `params` then only has to have its shapes, and all other arguments
        must be as they were. All of the state is checked before the first step.
    progress : bool
        Show a progress bar; needs tqdm.
    callback : function, optional
        Called with a `TrainStep` after each step; if it returns something true, training stops.
    max_memory : int, optional
        As for `mlp_loss_and_grad`; the rows of a batch are held beside what it bounds.
    class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate, impl
        As for `mlp_loss_and_grad`. Labels and weights are looked at once, before the first step.

    Returns
    -------
    TrainResult
        params, history and state. The parameters, also those of `state` and of a callback, carry the activation that
        they were trained with (see `Layer`).

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `mlp_loss_and_grad`, and if an option does not fit.
    DivergenceError
        A FloatingPointError, if a loss is not finite. Where looking at each would mean waiting for a device the loss
        is looked at once an epoch; no update is made from that step on. Parameters are looked at once, at the end. The
        message names the first row of `X` that counts and is not finite, if there is one. Also for a validation loss
        that is not finite, unless no row counts.
    ImportError
        If `progress` is asked for without tqdm.

    Notes
    -----
    A batch in which no row counts makes no update; its loss is recorded as nan. An interrupt (Ctrl-C) ends the step
    that is being made, and what was learnt so far is returned; a second one is raised. A training that was stopped and
    resumed ends, on NumPy, with the same bits as one that was not (``tests/test_training.py``).

    References
    ----------
    L. Bottou, F. E. Curtis, J. Nocedal, "Optimization methods for large-scale machine learning", SIAM Review 60
    (2018); early stopping: L. Prechelt, "Early stopping - but when?", 1998.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((300, 2))
    >>> y = (X[:, 0] * X[:, 1] > 0).astype(int)  # a checkerboard: no linear classifier can tell
    >>> params = xs.init_params((2, 16, 2), rng=rng)
    >>> result = xs.train(params, X, y, optimizer=xs.adam(0.02), epochs=60, batch_size=50, rng=rng)
    >>> bool((xs.mlp_predict(result.params, X) == y).mean() > 0.95)
    True
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate)
    check.check_impl(impl)
    check.check_choice("reduction", reduction, ("mean", "sum"))
    epochs = check.as_integer("epochs", epochs, low=1)
    batch_size = check.as_integer("batch_size", batch_size, low=1)
    check.check_flag("progress", progress)
    check_parts(optimizer, callback, patience, validation)
    net = as_network(params, activation, impl)
    net = trained_network(net, activation_to_train(net, activation, resume))
    if is_dask_array(net.layers[0].weight):
        raise TypeError("params must be arrays of numbers in memory, got dask arrays.")
    reg = check.as_number("reg", reg)
    data = as_data(net, "X", X, targets, options, max_memory)
    held_out = None
    if validation is not None:
        try:
            held_out = as_data(net, "validation", *validation, options._replace(sample_weight=None), max_memory)
            check_held_out(net, held_out, max_memory)
        except (TypeError, ValueError) as error:
            error.add_note("It is about the validation data.")
            raise
    generator = check.as_generator("rng", rng)
    batch_size = min(batch_size, data.rows)
    stepper = Stepper(net, data, reg, reduction, max_memory)
    if resume is not None:
        validated, patient = validation is not None, patience is not None
        resume = checked_state(resume, stepper, optimizer, generator, batch_size, validated=validated, patient=patient)
        generator = copy.deepcopy(generator)  # it is set back: not the caller's
    with quiet(net.xp, net.frame.device):
        run = Run(stepper, optimizer, generator, batch_size, resume)
        return trained(run, epochs, held_out, patience, callback, progress=progress)


# --- data -------------------------------------------------------------------------------------------------------------


class Data(NamedTuple):
    X: Array  # (N, D), in the dtype of the parameters
    problem: Problem  # of all rows, with the weights of a sum
    counts: np.ndarray | None  # (N,) on the host: which rows count; None where all do
    given: tuple[Array, LossOptions] | None = None  # targets and options, where they have not been looked at

    @property
    def rows(self) -> int:
        return int(self.X.shape[0])


def as_data(
    net: Network, name: str, X: Array, targets: Array, options: LossOptions, max_memory: int | None = None
) -> Data:
    """Check inputs, targets and the budget for them; look at all labels and weights, once."""
    X = as_inputs(net, X, name)
    if X.shape[0] == 0:
        raise ValueError(f"{name} must have at least one row, got shape {tuple(X.shape)}.")
    frame = net.frame._replace(shape=(X.shape[0], net.layers[-1].bias.shape[0]), axis=1, owner=name)
    with quiet(net.xp, net.frame.device):
        problem = prepare(targets, frame, options._replace(reduction="sum"), budget(max_memory))
        plan_chunks(net, 1, problem, max_memory)  # too small a budget shows at once
        # A mean is divided by counting weights; a sum is not, and smoothed rows of class weight 0 add to it.
        counting = problem.counting if options.reduction == "mean" or problem.counting is None else problem.row_weight
        counts = None if counting is None else np.array(_on_host(counting != 0.0), bool)
    counts = None if counts is None or counts.all() else counts
    return Data(X, problem, counts, None if options.validate else (targets, options))


def check_held_out(net: Network, data: Data, max_memory: int | None) -> None:
    """Raise ValueError for the first row of validation inputs that counts and is not finite."""
    bad = _bad_inputs(net, data, max_memory, "validation X")
    if bad is not None:
        raise bad.error()


def _bad_inputs(net: Network, data: Data, max_memory: int | None, name: str) -> check.Bad | None:
    with quiet(net.xp, net.frame.device):
        return first_not_finite(net.xp, name, data.X, data.problem.row_weight, budget(max_memory))


def first_flaw(net: Network, data: Data, max_memory: int | None) -> check.Bad | None:
    """What would make a loss that is not finite: a label, a weight, or a row of inputs; None if they are sound."""
    if data.given is not None:
        targets, options = data.given
        try:
            as_data(net, "X", data.X, targets, options._replace(validate=True), max_memory)
        except ValueError as error:
            return getattr(error, "bad", None)
    return _bad_inputs(net, data, max_memory, "X")


def _on_host(x: Array) -> list[float]:
    """The numbers of a 1-D array; it waits for the device."""
    return list(x.tolist() if hasattr(x, "tolist") else map(float, x))


def activation_to_train(net: Network, activation: str | None, resume: object) -> str:
    """Return the activation of the network; where neither it nor the call says one, that of the training before."""
    unsaid = activation is None and recorded(net.layers) is None
    if unsaid and isinstance(resume, TrainState) and isinstance(resume.params, tuple):
        return recorded(resume.params, "resume") or net.activation
    return net.activation


def trained_network(net: Network, activation: str) -> Network:
    """Return the network with hidden layers that carry their activation: all that is made of them carries it, too."""
    return replace(net, layers=carrying(net.layers, activation), activation=activation)


def copied(net: Network, layers: Params, dtype: DType) -> Params:
    """Copy layers of the shapes of a network; the copies carry the activation of its layers."""
    if type(layers[0].weight) is np.ndarray:
        return parts_of(np.concatenate([array.ravel() for layer in layers for array in layer], dtype=dtype), net.layers)
    asarray, options = net.xp.asarray, {"dtype": dtype, "device": net.frame.device, "copy": True}
    return alike([Layer(*(asarray(array, **options) for array in layer)) for layer in layers], net.layers)


# --- a step -----------------------------------------------------------------------------------------------------------


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

    def flaw(self, data: Any = None) -> check.Bad | None:
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
        return self.given.xp.asarray(order, device=self.given.frame.device)

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

    def flaw(self, data: Data | None = None) -> check.Bad | None:
        return first_flaw(self.given, self.data if data is None else data, self.max_memory)


class Evaluation(NamedTuple):
    """Sums over rows that are not trained with: those of disjoint rows add up."""

    loss: Any  # 0-d, or a number: the sum of the weighted losses
    total: Any  # of the counting weights
    right: Any  # how many of the rows that count are told rightly
    counted: int  # how many count

    def __add__(self, other: object) -> Evaluation:
        if not isinstance(other, Evaluation):
            return NotImplemented
        return Evaluation(*(a + b for a, b in zip(self, other, strict=True)))

    def finish(self, reduction: Reduction) -> tuple[float, float]:
        """Loss and accuracy; nan where nothing counts."""
        if self.counted == 0:
            return math.nan, math.nan
        loss = float(self.loss / self.total if reduction == "mean" else self.loss)
        return loss, float(self.right) / self.counted


def evaluation(
    net: Network, data: Data, reduction: Reduction, max_memory: int | None, buffers: Buffers | None
) -> Evaluation:
    xp, problem = net.xp, data.problem
    loss, right = 0.0, 0.0
    for rows in plan_chunks(net, data.rows, problem, max_memory).chunks:
        rows = slice(0, data.rows) if rows is None else rows
        X = xp.astype(data.X[rows, :], net.working, copy=False)
        targets, row_weight = problem.targets[rows, ...], problem.row_weight[rows]
        if targets.ndim == 2:
            targets = check.as_dtype(xp, targets, net.working)
        _, _, logits = forward(net, X, buffers=buffers)
        labels = targets if targets.ndim == 1 else xp.argmax(targets, axis=1)
        found = labels_of(xp, logits)
        hits = (found == labels) & (found != NO_CLASS)  # which may be a label, too: one that is ignored
        if problem.counting is not None:
            hits = hits & ((problem.counting if reduction == "mean" else problem.row_weight)[rows] != 0.0)
        losses, _ = net.kernels.softmax_loss_rows(logits, targets, row_weight, problem.spec, grad=False)
        loss, right = loss + summed(xp, losses), right + xp.sum(xp.astype(hits, net.working))
        del X, targets, logits, losses  # before there are others
    counted = data.rows if data.counts is None else int(np.count_nonzero(data.counts))
    return Evaluation(loss, problem.total, right, counted)


# --- the loop ---------------------------------------------------------------------------------------------------------


def trained(
    run: Run,
    epochs: int,
    held_out: Any,
    patience: int | None,
    callback: Callable[[TrainStep], object] | None,
    *,
    progress: bool,
) -> TrainResult:
    """Train until the epochs are over, or something ends it before."""
    with _progress(run.steps_left(epochs), shown=progress) as tick, interrupts() as interrupted:
        going = True
        try:
            while going and run.epoch < epochs and not run.out_of_patience(patience):
                going = run.steps_of_epoch(callback, tick, interrupted)
                if run.step == run.batches:
                    run.end_epoch(held_out, keep_best=patience is not None)
        except Interrupted:
            run.settle()
        result = run.result(best=patience is not None)
        if not are_finite(run.stepper.given, result.params):
            run.diverged_params(result)
        return result


def are_finite(net: Network, layers: Params) -> bool:
    """Whether all parameters are finite; it waits for the device."""
    return all(bool(net.xp.all(net.xp.isfinite(array))) for layer in layers for array in layer)


class Run:
    """A training between two steps: all that changes."""

    def __init__(
        self,
        stepper: Steps,
        optimizer: Optimizer,
        generator: np.random.Generator,
        batch_size: int,
        resume: TrainState | None,
    ) -> None:
        net = stepper.given
        self.stepper, self.optimizer, self.generator, self.batch_size = stepper, optimizer, generator, batch_size
        self.batches = stepper.expected(batch_size)
        self.losses: list[Any] = []  # of this epoch's steps; on a device they stay there until it ends
        self.sound: Array | None = None  # 0-d: whether all of them are finite
        if resume is None:
            self.layers = copied(net, net.layers, net.working)
            self.state = optimizer.init(self.layers)
            self.epoch, self.step, self.best = 0, 0, None
            self.history: History = {"loss": []}
        else:
            self.layers = copied(net, resume.params, net.working)
            count, *kept = resume.optimizer
            self.state = (count, *(copied(net, layers, net.working) for layers in kept))
            self.epoch, self.step, self.best = resume.epoch, resume.step, resume.best
            if resume.best is not None:  # one of an older version carries no activation
                self.best = (*resume.best[:2], alike(resume.best[2], net.layers))
            self.history = {name: list(values) for name, values in resume.history.items()}
            generator.bit_generator.state = resume.rng
        self.rng = dict(generator.bit_generator.state)  # when the epoch began

    def steps_left(self, epochs: int) -> int:
        return max(0, (epochs - self.epoch) * self.batches - self.step)

    def steps_of_epoch(
        self,
        callback: Callable[[TrainStep], object] | None,
        tick: Callable[[], object],
        interrupted: Callable[[], bool],
    ) -> bool:
        """Make the steps that an epoch still lacks; whether to go on after them."""
        self.rng = dict(self.generator.bit_generator.state)
        epoch = self.stepper.batches(self.generator, self.batch_size)
        self.batches = len(epoch)
        first, updates, going = self.step, self.state[0], True
        for batch in islice(epoch, self.step, None):
            loss = self.one_step(batch)
            self.losses.append(loss)
            self.step += 1
            tick()
            if callback is not None:
                going = not self.asked_to_stop(callback, loss)
            if not going or interrupted():
                going = False
                break
        self.collect(first, updates)
        return going

    def one_step(self, batch: Any) -> Any:
        found = self.stepper.of_batch(self.layers, batch)
        if found is None:
            return math.nan
        loss, grads = found
        if self.stepper.on_host:
            loss = float(loss)
            if not math.isfinite(loss):
                self.diverged(loss)
        else:
            finite = self.stepper.given.xp.isfinite(loss)
            self.sound = finite if self.sound is None else self.sound & finite
        self.layers, self.state = self.optimizer.step(self.layers, grads, self.state, ok=self.sound, in_place=True)
        return loss

    def asked_to_stop(self, callback: Callable[[TrainStep], object], loss: Any) -> bool:
        number = len(self.history["loss"]) + len(self.losses) - 1
        step = TrainStep(self.epoch, number, loss, lambda: self.params_of(self.layers))
        try:
            return bool(callback(step))
        except KeyboardInterrupt:
            return True
        finally:
            step.pass_by()

    def collect(self, first: int, updates: int) -> None:
        """Bring the losses of an epoch, from its step `first` on, to the history."""
        if self.stepper.on_host or not self.losses:
            self.history["loss"] += self.losses
            self.losses = []
            return
        made = [i for i, loss in enumerate(self.losses) if type(loss) is not float]
        values = [math.nan] * len(self.losses)
        if made:
            for i, value in zip(
                made, _on_host(self.stepper.given.xp.stack([self.losses[i] for i in made])), strict=True
            ):
                values[i] = value
        bad = next((i for i in made if not math.isfinite(values[i])), None)
        self.losses, self.sound = values[:bad], None
        if bad is not None:
            self.step = first + bad
            self.state = (updates + made.index(bad), *self.state[1:])
            self.diverged(values[bad])
        self.history["loss"] += self.losses
        self.losses = []

    def diverged(self, loss: float) -> NoReturn:
        step = len(self.history["loss"]) + len(self.losses)
        reason = self.reason(loss, step)
        self.history["loss"] += self.losses
        raise DivergenceError(step, loss, self.result(best=False), reason)

    def reason(self, loss: float, step: int) -> str | None:
        """Message for a loss that is not finite where the steps before are not the cause; None where they may be.

        The inputs are looked at only now: a look at all of them before the first step would cost every training time.
        """
        flaw = self.stepper.flaw()
        if flaw is not None:
            return f"{flaw.text()} The loss became {loss} at step {step}. {BEFORE}"
        if self.state[0] > 0:
            return None
        if not are_finite(self.stepper.given, self.layers):
            return f"params must be finite, got nan or inf. The loss became {loss} at step {step}."
        return (
            f"loss must be finite in training, got {loss} at step {step}. There was no update before: X, weights or "
            "params hold numbers that are too large."
        )

    def diverged_params(self, result: TrainResult) -> NoReturn:
        step, flaw = len(self.history["loss"]) - 1, self.stepper.flaw()
        reason = None if flaw is None else f"{flaw.text()} The parameters are not finite after step {step}."
        raise DivergenceError(step, None, result, reason)

    def diverged_validation(self, loss: float, held_out: Any) -> NoReturn:
        result = self.result(best=False)
        if not are_finite(self.stepper.given, self.layers):
            self.diverged_params(result)
        step, flaw = len(self.history["loss"]) - 1, self.stepper.flaw(held_out)
        cause = "A smaller learning rate may help." if flaw is None else f"In the validation data {flaw.text()}"
        reason = f"validation loss must be finite in training, got {loss} after step {step}. {cause}"
        raise DivergenceError(step, loss, result, reason)

    def settle(self) -> None:
        """Go back to the last step that was completed, where something ended the one after it."""
        made = sum(type(loss) is not float for loss in self.losses)
        self.collect(self.step - len(self.losses), self.state[0] - made)

    def rescued(self) -> TrainResult:
        """What was learnt before an error."""
        self.settle()
        return self.result(best=False)

    def end_epoch(self, held_out: Any, *, keep_best: bool) -> None:
        found = None if held_out is None else self.stepper.evaluated(self.layers, held_out)
        if found is not None and not math.isfinite(found[0]) and not math.isnan(found[1]):  # and a row counts
            self.diverged_validation(found[0], held_out)
        self.epoch, self.step = self.epoch + 1, 0
        self.rng = dict(self.generator.bit_generator.state)
        if found is None:
            return
        loss, accuracy = found
        self.history.setdefault("validation_loss", []).append(loss)
        self.history.setdefault("validation_accuracy", []).append(accuracy)
        before = math.nan if self.best is None else self.best[0]
        if keep_best and (self.best is None or loss < before or (math.isnan(before) and not math.isnan(loss))):
            net = self.stepper.given
            self.best = (loss, self.epoch, copied(net, self.layers, net.working))

    def out_of_patience(self, patience: int | None) -> bool:
        return patience is not None and self.best is not None and self.epoch - self.best[1] >= patience

    def params_of(self, layers: Params) -> Params:
        """A copy in the dtype that was given."""
        net = self.stepper.given
        narrow = tuple(type(layer)(*(narrowed(net.xp, array, net.dtype) for array in layer)) for layer in layers)
        return copied(net, narrow, net.dtype)

    def result(self, *, best: bool) -> TrainResult:
        layers = self.best[2] if best and self.best is not None else self.layers
        history = {name: list(values) for name, values in self.history.items()}
        sizes = self.stepper.rows, self.batch_size, self.stepper.blocks
        state = TrainState(self.layers, self.state, self.rng, self.epoch, self.step, self.best, history, *sizes)
        return TrainResult(self.params_of(layers), self.history, state)


def check_parts(optimizer: object, callback: object, patience: object, validation: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be made by sgd, adam or adamw, got {optimizer!r:.60}.")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function, got {callback!r:.60}.")
    if validation is not None and (not isinstance(validation, (tuple, list)) or len(validation) != 2):
        raise TypeError(f"validation must be a pair (X, targets), got {validation!r:.60}.")
    if patience is not None:
        check.as_integer("patience", patience, low=1)
        if validation is None:
            raise ValueError(f"patience must be None without validation data, got {patience}.")


@contextmanager
def _progress(steps: int, *, shown: bool) -> Iterator[Callable[[], object]]:
    if not shown:
        yield lambda: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError("progress needs tqdm, which is not installed: pip install tqdm.") from None
    with tqdm(total=steps, unit="step") as bar:
        yield bar.update


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a step, or a function that calls back, before it was completed: what was before it is kept."""


class _Noting:
    """What handles Ctrl-C within `interrupts`: the first is noted, a second one raised."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Let a step be ended before Ctrl-C stops the training; a second one is raised at once.

    Only where the default handler would raise it, which Python calls between any two lines of the main thread.
    """
    noting = _Noting()
    usual = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if usual:
        signal.signal(signal.SIGINT, noting)
    try:
        yield lambda: noting.asked
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def given_up() -> Iterator[None]:
    """Within `interrupts`, let Ctrl-C raise `Interrupted` at once: for a wait that changes nothing, and may not end.

    A terminal sends it to all processes of the program: workers that were started here end, and their tasks with them.
    """
    noting = signal.getsignal(signal.SIGINT)
    if not isinstance(noting, _Noting) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: Any) -> None:
        noting(number, frame)
        raise Interrupted

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, noting)
