"""The solvers "adam" and "sgd": epochs of steps, and scikit-learn's rules for stopping and for the learning rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from array_api_compat import is_dask_array
from sklearn.exceptions import ConvergenceWarning

from xpsoftmax._arguments.caller import warn
from xpsoftmax._arguments.host import to_host
from xpsoftmax._network.layers import Params
from xpsoftmax._network.network import as_network
from xpsoftmax._train.interrupts import Interrupted, interrupts
from xpsoftmax._train.loop import Loop, NotFiniteError
from xpsoftmax._train.optimizers import Optimizer, UncorrectedAdam, VelocitySgd
from xpsoftmax._train.steps import Batch
from xpsoftmax.sklearn.checks import INTERRUPTED, diverged, finite_layers, is_overflow
from xpsoftmax.sklearn.fitted import Record, print_if_verbose, record_validation_loss
from xpsoftmax.sklearn.predicting import accuracy, codes_of
from xpsoftmax.sklearn.preparing import Rows

LEAST_RATE = 1e-6
"""An adaptive learning rate is divided only while it is above this."""


def fit_epochs(
    model: Any,
    steps: Any,
    held_out: Rows | None,
    rng: Any,
    record: Record,
    watched: Any = None,
    *,
    incremental: bool,
) -> Params:
    """Make epochs of steps, by the rules of scikit-learn, until nothing improves; return the weights to keep.

    The loss of `watched`, validation data, is recorded after each epoch.
    """
    loop = _begin(model, steps, record, incremental=incremental)
    schedule, first_rate, power = record._schedule
    record.expect(loop.copy() if held_out is not None else None)
    epochs = _epochs(steps, rng if model.shuffle else None, _batch_size(model, steps.rows))
    record.n_iter_ = 0
    with interrupts() as interrupted:
        for batches in itertools.islice(epochs, 1 if incremental else model.max_iter):
            loss = _mean_loss(loop, batches, interrupted)
            if interrupted():
                record.loss_ = record.loss_ if math.isnan(loss) else loss
                warn(INTERRUPTED)
                break
            record.count(loss, steps.rows)
            print_if_verbose(model, f"Iteration {record.n_iter_}, loss = {loss:.8f}")
            record_validation_loss(model, steps, loop.params, watched, record)
            try:
                stalled = _has_stalled(model, loop, held_out, record)
            except Interrupted:
                warn(INTERRUPTED)
                break
            if schedule == "invscaling":
                _set_rate(loop, first_rate / (record.t_ + 1) ** power)
            if stalled and not _reduce_rate(model, loop, record):
                break
            if record.n_iter_ == model.max_iter and not incremental:
                warn(
                    f"Stochastic Optimizer: Maximum iterations ({model.max_iter}) reached and the optimization "
                    "hasn't converged yet. Increase max_iter, or scale the data.",
                    ConvergenceWarning,
                )
    record._optimizer, record._state = loop.optimizer, loop.state
    return finite_layers(steps.network, record._best if held_out is not None else loop.params)


def _begin(model: Any, steps: Any, record: Record, *, incremental: bool) -> Loop:
    """Return a loop with a new optimiser, or for `partial_fit` with that of the steps before."""
    if not incremental or record._optimizer is None:
        return Loop(steps, _new_optimizer(model, record))
    _follow_rate(model, record)
    shapes = [tuple(layer.weight.shape) for layer in steps.network.layers]
    if any([tuple(layer.weight.shape) for layer in part] != shapes for part in record._state[1:]):
        raise ValueError(
            f"coefs_ and intercepts_ must have the shapes that partial_fit has seen, got {shapes}: what the "
            "optimiser keeps of earlier steps does not fit. fit with warm_start=True starts from these weights."
        )
    return Loop(steps, record._optimizer, state=record._state)


def _follow_rate(model: Any, record: Record) -> None:
    """Let a `learning_rate_init` that was changed between calls of `partial_fit` count from now on."""
    schedule, first_rate, power = record._schedule
    rate = float(model.learning_rate_init)
    if rate != first_rate:
        record._schedule = (schedule, rate, power)
        rate = rate if schedule != "invscaling" else rate / (record.t_ + 1) ** power
        optimizer: Any = record._optimizer
        record._optimizer = replace(optimizer, learning_rate=rate)


def _new_optimizer(model: Any, record: Record) -> Optimizer:
    """Make the optimiser of the parameters, and record its schedule: later calls of `partial_fit` keep both."""
    rate = float(model.learning_rate_init)
    record._schedule = (model.learning_rate if model.solver == "sgd" else "constant", rate, float(model.power_t))
    if model.solver == "sgd":
        return VelocitySgd(rate, float(model.momentum), model.nesterovs_momentum)
    return UncorrectedAdam(rate, (float(model.beta_1), float(model.beta_2)), float(model.epsilon), 0.0)


def _batch_size(model: Any, rows: int) -> int:
    if isinstance(model.batch_size, str):
        return min(200, rows)
    if model.batch_size > rows:
        warn(f"batch_size is {model.batch_size}, larger than the sample size, {rows}. It is going to be clipped.")
    return min(int(model.batch_size), rows)  # a Python integer: a NumPy integer of few bits could overflow


def _epochs(steps: Any, rng: Any, batch_size: int) -> Iterator[Any]:
    """Yield the batches of each epoch, in orders that scikit-learn draws; without `rng` rows keep their order."""
    if rng is None or steps.blocks is not None:
        while True:
            yield steps.batches(rng, batch_size)
    order = np.arange(steps.rows)
    while True:
        order = order[rng.permutation(steps.rows)]  # each epoch reorders the order of the one before
        yield steps.in_order(order, batch_size)


def _mean_loss(loop: Loop, batches: Iterable[Batch], interrupted: Callable[[], bool]) -> float:
    """Make the steps of an epoch; return the mean of their losses, weighted by rows: nan if no row counts.

    Of an epoch that Ctrl-C ended, the mean is over the steps that were made.
    """
    sizes: list[int] = []

    def drawn() -> Iterator[Batch]:
        for batch in batches:
            sizes.append(batch.size)
            yield batch

    try:
        loop.run(drawn(), interrupted)
        losses = loop.settle()
    except NotFiniteError as error:
        raise diverged(f"and the loss {error.loss} at step {loop.state[0]}") from None
    counted = [(loss, size) for loss, size in zip(losses, sizes, strict=False) if not math.isnan(loss)]
    if not counted:
        return math.nan
    total = 0.0
    for loss, size in counted:  # one by one: newer versions of `sum` round otherwise
        total += loss * size
    mean = total / sum(size for _, size in counted)
    if not math.isfinite(mean):
        raise diverged(f"and the loss {counted[-1][0]} at step {loop.state[0] - 1}")
    return mean


def _has_stalled(model: Any, loop: Loop, held_out: Rows | None, record: Record) -> bool:
    """Compare an epoch with the best so far; return whether too many in a row did not improve on it."""
    if held_out is None:
        better = record.loss_ <= record.best_loss_ - float(model.tol)
        record.best_loss_ = min(record.best_loss_, record.loss_)
    else:
        score = _score_held_out(model, loop, held_out, record)
        record.validation_scores_.append(score)
        print_if_verbose(model, f"Validation score: {score:f}")
        better = score >= record.best_validation_score_ + float(model.tol)
        if score > record.best_validation_score_:
            record.best_validation_score_, record._best = score, loop.copy()
    record._no_improvement_count = 0 if better else record._no_improvement_count + 1
    return bool(record._no_improvement_count > model.n_iter_no_change)


def _score_held_out(model: Any, loop: Loop, held_out: Rows, record: Record) -> float:
    """Return the accuracy on the rows held out."""
    X, y, weight = held_out
    net = as_network(loop.params, None)
    xp = np if is_dask_array(X) else net.xp
    try:
        codes = codes_of(net, X, model.max_memory)
        if is_dask_array(X):
            steps: Any = loop.steps
            codes = to_host("codes", steps.scheduler.compute(codes))
    except ValueError as error:
        if not is_overflow(error):
            raise
        raise diverged(f"and logits of rows held out that are not finite after epoch {record.n_iter_}") from error
    return accuracy(xp, codes == (y if y.ndim == 1 else xp.argmax(y, axis=1)), weight)


def _reduce_rate(model: Any, loop: Loop, record: Record) -> bool:
    """After too many epochs without improvement: divide an adaptive learning rate; return False if training stops."""
    what = "Validation score" if model.early_stopping else "Training loss"
    said = f"{what} did not improve more than tol={model.tol:f} for {model.n_iter_no_change} consecutive epochs."
    rate: Any = loop.optimizer.learning_rate
    if record._schedule[0] != "adaptive":
        print_if_verbose(model, f"{said} Stopping.")
        return False
    if rate <= LEAST_RATE:
        print_if_verbose(model, f"{said} Learning rate too small. Stopping.")
        return False
    print_if_verbose(model, f"{said} Setting learning rate to {rate / 5.0:f}")
    record._no_improvement_count = 0  # only here, as in scikit-learn: a warm start without improvement stops soon
    _set_rate(loop, rate / 5.0)
    return True


def _set_rate(loop: Loop, rate: float) -> None:
    optimizer: Any = loop.optimizer
    loop.optimizer = replace(optimizer, learning_rate=rate)
