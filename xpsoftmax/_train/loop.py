"""The loop of a training: epochs, history, early stopping, divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NoReturn

import numpy as np

from xpsoftmax._network.layers import Params, alike
from xpsoftmax._network.network import Network, copied
from xpsoftmax._train.data import on_host
from xpsoftmax._train.interrupts import Interrupted, interrupts
from xpsoftmax._train.optimizers import Optimizer, State
from xpsoftmax._train.records import BEFORE, DivergenceError, TrainResult, TrainStep
from xpsoftmax._train.state import History, TrainState
from xpsoftmax._train.steps import Steps
from xpsoftmax._typing import Array
from xpsoftmax.kernels.generic import narrowed


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
        going = True
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
        self.settle()
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
        step = TrainStep(self.epoch, number, loss, lambda: self.params_of(self.layers), self.state_now)
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
                made, on_host(self.stepper.given.xp.stack([self.losses[i] for i in made])), strict=True
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
        """Bring the losses of the steps that were completed to the history."""
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

    def state_now(self) -> TrainState:
        """A copy of all that changes; the losses of the steps before are looked at."""
        self.settle()
        net = self.stepper.given
        layers = copied(net, self.layers, net.working)
        updates, *kept = self.state
        return self._state_of(layers, (updates, *(copied(net, arrays, net.working) for arrays in kept)))

    def _state_of(self, layers: Params, optimizer: State) -> TrainState:
        history = {name: list(values) for name, values in self.history.items()}
        sizes = self.stepper.rows, self.batch_size, self.stepper.blocks
        return TrainState(layers, optimizer, self.rng, self.epoch, self.step, self.best, history, *sizes)

    def result(self, *, best: bool) -> TrainResult:
        layers = self.best[2] if best and self.best is not None else self.layers
        return TrainResult(self.params_of(layers), self.history, self._state_of(self.layers, self.state))


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
