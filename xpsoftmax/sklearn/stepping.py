"""The solvers "adam" and "sgd": epochs of steps, and scikit-learn's rules of when to stop and how long a step is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from array_api_compat import is_dask_array
from sklearn.exceptions import ConvergenceWarning

from xpsoftmax._arguments.host import to_host
from xpsoftmax._network.layers import Params
from xpsoftmax._network.network import Network, as_network, copied
from xpsoftmax._train.interrupts import Interrupted, interrupts
from xpsoftmax._train.optimizers import Optimizer, State, UncorrectedAdam, VelocitySgd
from xpsoftmax._train.steps import Stepper
from xpsoftmax.sklearn.caller import warn
from xpsoftmax.sklearn.checks import INTERRUPTED, diverged, finite_layers, is_overflow
from xpsoftmax.sklearn.learnt import Record, say
from xpsoftmax.sklearn.predicting import accuracy, codes_of
from xpsoftmax.sklearn.preparing import Rows

LEAST_RATE = 1e-6
"""An adaptive learning rate is divided only while it is above this."""


def learn(model: Any, steps: Any, held_out: Rows | None, rng: Any, record: Record, *, incremental: bool) -> Params:
    """Make epochs of steps, by the rules of scikit-learn, until nothing improves; return the weights to keep."""
    net, rows = steps.given, steps.rows
    layers = copied(net, net.layers, net.dtype)
    optimizer, state = _optimizer_and_state(model, net, layers, record, incremental=incremental)
    schedule, first_rate, power = record._schedule
    record.expect(layers if held_out is not None else None)
    batch_size = _batch_size(model, rows)
    order = np.arange(rows) if model.shuffle and steps.blocks is None else None
    record.n_iter_ = 0
    with interrupts() as interrupted:
        for _ in range(1 if incremental else model.max_iter):
            if order is not None:
                order = order[rng.permutation(rows)]
            if steps.blocks is None:
                batches = _batches(steps, order, batch_size)
            else:
                batches = _batches_of_blocks(steps, rng if model.shuffle else None, batch_size)
            layers, state, loss = _epoch(steps, optimizer, layers, state, batches, interrupted)
            if interrupted():
                record.loss_ = record.loss_ if math.isnan(loss) else loss
                warn(INTERRUPTED)
                break
            record.count(loss, rows)
            say(model, f"Iteration {record.n_iter_}, loss = {loss:.8f}")
            try:
                waited = _waited(model, steps, layers, held_out, record)
            except Interrupted:
                warn(INTERRUPTED)
                break
            if schedule == "invscaling":
                optimizer = replace(optimizer, learning_rate=first_rate / (record.t_ + 1) ** power)
            if waited:
                optimizer, going = _slowed(model, optimizer, record)
                if not going:
                    break
            if record.n_iter_ == model.max_iter and not incremental:
                warn(
                    f"Stochastic Optimizer: Maximum iterations ({model.max_iter}) reached and the optimization "
                    "hasn't converged yet. Increase max_iter, or scale the data.",
                    ConvergenceWarning,
                )
    record._optimizer, record._state = optimizer, state
    return finite_layers(record._best if held_out is not None else layers)


def _optimizer_and_state(
    model: Any, net: Network, layers: Params, record: Record, *, incremental: bool
) -> tuple[Any, State]:
    """Return a new optimiser and state, or for `partial_fit` those of the steps before."""
    if not incremental or record._optimizer is None:
        optimizer = _new_optimizer(model, record)
        return optimizer, optimizer.init(layers)
    count, *kept = record._state
    shapes = [tuple(layer.weight.shape) for layer in layers]
    if any([tuple(layer.weight.shape) for layer in part] != shapes for part in kept):
        raise ValueError(
            f"coefs_ and intercepts_ must have the shapes that partial_fit has seen, got {shapes}: what the "
            "optimiser keeps of the steps before does not fit. fit with warm_start=True goes on from them."
        )
    return record._optimizer, (count, *(copied(net, arrays, net.dtype) for arrays in kept))


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
    return min(int(model.batch_size), rows)  # as a Python integer: one of few bits could not count the rows


def _waited(model: Any, steps: Any, layers: Params, held_out: Rows | None, record: Record) -> bool:
    """Compare an epoch with the best; return whether too many in a row have brought nothing."""
    if held_out is None:
        better = record.loss_ <= record.best_loss_ - float(model.tol)
        record.best_loss_ = min(record.best_loss_, record.loss_)
    else:
        score = _score_held_out(model, steps, layers, held_out, record)
        record.validation_scores_.append(score)
        say(model, f"Validation score: {score:f}")
        better = score >= record.best_validation_score_ + float(model.tol)
        if score > record.best_validation_score_:
            net = steps.given
            record.best_validation_score_, record._best = score, copied(net, layers, net.dtype)
    record._no_improvement_count = 0 if better else record._no_improvement_count + 1
    return bool(record._no_improvement_count > model.n_iter_no_change)


def _score_held_out(model: Any, steps: Any, layers: Params, held_out: Rows, record: Record) -> float:
    """Return the accuracy on the rows held out."""
    X, y, weight = held_out
    net = as_network(layers, None)
    xp = np if is_dask_array(X) else net.xp
    try:
        codes = codes_of(net, X, model.max_memory)
        codes = to_host("codes", steps.scheduler.computed(codes)) if is_dask_array(X) else codes
    except ValueError as error:
        if not is_overflow(error):
            raise
        raise diverged(f"and logits of rows held out that are not finite after epoch {record.n_iter_}") from error
    return accuracy(xp, codes == (y if y.ndim == 1 else xp.argmax(y, axis=1)), weight)


def _slowed(model: Any, optimizer: Any, record: Record) -> tuple[Any, bool]:
    """After too many epochs that brought nothing: return a smaller learning rate and True, or False to stop."""
    what = "Validation score" if model.early_stopping else "Training loss"
    said = f"{what} did not improve more than tol={model.tol:f} for {model.n_iter_no_change} consecutive epochs."
    if record._schedule[0] != "adaptive":
        say(model, f"{said} Stopping.")
        return optimizer, False
    if optimizer.learning_rate <= LEAST_RATE:
        say(model, f"{said} Learning rate too small. Stopping.")
        return optimizer, False
    rate = optimizer.learning_rate / 5.0
    say(model, f"{said} Setting learning rate to {rate:f}")
    record._no_improvement_count = 0  # else it stays, as in scikit-learn: a warm start that brings nothing stops soon
    return replace(optimizer, learning_rate=rate), True


def _batches(stepper: Stepper, order: np.ndarray | None, batch: int) -> Iterator[tuple[int, Any]]:
    """Batches in this order of the rows, each with how many rows it has."""
    there = None if batch == stepper.rows else stepper.there(order)
    for start in range(0, stepper.rows, batch):
        part = slice(start, min(start + batch, stepper.rows))
        taken: Any = None if batch == stepper.rows else part if there is None else there[part]
        yield part.stop - part.start, (taken, stepper.counts(order, part))


def _batches_of_blocks(stepper: Any, rng: Any, batch: int) -> Iterator[tuple[int, Any]]:
    epoch = stepper.batches(rng, batch)
    for drawn in epoch:
        yield epoch.size(drawn), drawn


def _epoch(
    stepper: Any,
    optimizer: Optimizer,
    layers: Params,
    state: State,
    batches: Iterator[tuple[int, Any]],
    interrupted: Callable[[], bool],
) -> tuple[Params, State, float]:
    """Make a step on each batch; also return their mean loss, nan if there is none."""
    first = state[0]
    losses: list[Any] = []
    total: Any = 0.0
    counted = 0
    for size, batch in batches:
        if interrupted():
            break
        try:
            found = stepper.of_batch(layers, batch)
        except Interrupted:
            break
        if found is None:
            continue
        loss, grads = found
        if stepper.on_host:  # elsewhere it is waited for only when the epoch ends
            loss = float(loss)
        losses.append(loss)
        total, counted = total + loss * size, counted + size
        if stepper.on_host and not math.isfinite(loss):
            break
        layers, state = optimizer.step(layers, grads, state, in_place=True)
    mean = float(total) / counted if counted else math.nan
    if counted and not math.isfinite(mean):
        bad = next((i for i, loss in enumerate(losses) if not math.isfinite(float(loss))), len(losses) - 1)
        raise diverged(f"and the loss {float(losses[bad])} at step {first + bad}")
    return layers, state, mean
