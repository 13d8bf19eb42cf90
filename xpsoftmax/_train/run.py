"""A run of `train`: epochs, history, validation, early stopping, and the errors for numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NoReturn

import numpy as np

from xpsoftmax._network.layers import Params, with_types_of
from xpsoftmax._network.network import copied
from xpsoftmax._train.interrupts import Interrupted, interrupts
from xpsoftmax._train.loop import Loop, NotFiniteError, are_finite
from xpsoftmax._train.losses import PendingLoss
from xpsoftmax._train.optimizers import Optimizer, State
from xpsoftmax._train.records import BEFORE, DivergenceError, TrainResult, TrainStep
from xpsoftmax._train.state import ACCURACY, History, TrainState
from xpsoftmax._train.steps import Steps
from xpsoftmax.kernels.generic import narrowed


def run_epochs(
    run: Run,
    epochs: int,
    held_out: Any,
    patience: int | None,
    callback: Callable[[TrainStep], object] | None,
    *,
    progress: bool,
    counted: Any = None,
) -> TrainResult:
    """Train until so many epochs are complete, or something ends it before.

    After each epoch `held_out` is evaluated, and the accuracy on `counted` is recorded.
    """
    with _progress(run.steps_left(epochs), shown=progress) as bar, interrupts() as interrupted:
        going = True
        try:
            while going and not interrupted() and run.epoch < epochs and not run.out_of_patience(patience):
                going = run.steps_of_epoch(callback, bar.tick if progress else None, interrupted)
                if run.step == run.batches:
                    run.end_epoch(held_out, keep_best=patience is not None, counted=counted)
                bar.show(run.history)
        except Interrupted:  # while validation data was waited for
            run.interrupted = True
        run.interrupted = run.interrupted or interrupted()
        result = run.result(best=patience is not None)
        if not are_finite(run.steps.network, result.params):
            run.diverged_params(result)
        return result


class Run:
    """A training between two steps: the loop, and all else that a `TrainState` saves."""

    def __init__(
        self,
        steps: Steps,
        optimizer: Optimizer,
        generator: np.random.Generator,
        batch_size: int,
        resume: TrainState | None,
    ) -> None:
        self.steps, self.generator, self.batch_size = steps, generator, batch_size
        self.batches = steps.batch_count(batch_size)  # of this epoch
        self.epoch, self.step = 0, 0  # completed, and of this epoch: those whose losses are in the history
        self.best: tuple[float, int, Params] | None = None
        self.history: History = {"loss": []}
        self.interrupted = False
        if resume is None:
            self.loop = Loop(steps, optimizer)
        else:
            self.loop = Loop(steps, optimizer, resume.params, resume.optimizer)
            self.epoch, self.step = resume.epoch, resume.step
            if resume.best is not None:  # one of an older version carries no activation
                self.best = (*resume.best[:2], with_types_of(resume.best[2], steps.network.layers))
            self.history = {name: list(values) for name, values in resume.history.items()}
            generator.bit_generator.state = resume.rng
        self.rng = dict(generator.bit_generator.state)  # when the epoch began

    def steps_left(self, epochs: int) -> int:
        """Return about how many steps there are until so many epochs are complete."""
        return max(0, (epochs - self.epoch) * self.batches - self.step)

    def steps_of_epoch(
        self,
        callback: Callable[[TrainStep], object] | None,
        tick: Callable[[Any], object] | None,
        interrupted: Callable[[], bool],
    ) -> bool:
        """Make the steps that an epoch still lacks; return whether to go on after them."""
        self.rng = dict(self.generator.bit_generator.state)
        epoch = self.steps.batches(self.generator, self.batch_size)
        self.batches = len(epoch)

        def after_step(loss: Any) -> bool:
            if tick is not None:
                tick(loss)
            return callback is None or not self.asked_to_stop(callback, loss)

        try:
            watched = callback is not None or tick is not None
            going = self.loop.run(islice(epoch, self.step, None), interrupted, after_step if watched else None)
        except NotFiniteError as error:
            self.diverged(error)
        self.settle()
        return going

    def asked_to_stop(self, callback: Callable[[TrainStep], object], loss: Any) -> bool:
        """Call the function of the user; return whether it asks to stop, also by an interrupt."""
        number = len(self.history["loss"]) + len(self.loop.losses) - 1
        loss = loss.copy() if type(loss) is PendingLoss else loss
        step = TrainStep(self.epoch, number, loss, lambda: self.params_of(self.loop.params), self.state_now)
        try:
            return bool(callback(step))
        except KeyboardInterrupt:
            self.interrupted = True
            return True
        finally:
            step._expire()

    def settle(self) -> None:
        """Bring the losses of the steps that were completed to the history; it waits for the device."""
        try:
            self._record(self.loop.settle())
        except NotFiniteError as error:
            self.diverged(error)

    def _record(self, losses: list[float]) -> None:
        self.history["loss"] += losses
        self.step += len(losses)

    def diverged(self, error: NotFiniteError) -> NoReturn:
        """Raise `DivergenceError` for the loss of a step, with the result before it."""
        self._record(error.before)
        step = len(self.history["loss"])
        reason = self.reason(error.loss, step)
        raise DivergenceError(step, error.loss, self.result(best=False), reason) from None

    def reason(self, loss: float, step: int) -> str | None:
        """Return the message for a loss that is not finite if the steps before are not the cause, None if they may be.

        The inputs are looked at only now: a look at all of them before the first step would cost every training time.
        """
        flaw = self.steps.flaw()
        if flaw is not None:
            return f"{flaw.text()} The loss became {loss} at step {step}. {BEFORE}"
        if self.loop.state[0] > 0:
            return None
        if not are_finite(self.steps.network, self.loop.params):
            return f"params must be finite, got nan or inf. The loss became {loss} at step {step}."
        return (
            f"loss must be finite in training, got {loss} at step {step}. There was no update before: X, weights or "
            "params hold numbers that are too large."
        )

    def diverged_params(self, result: TrainResult) -> NoReturn:
        """Raise `DivergenceError` for parameters that are not finite."""
        step, flaw = len(self.history["loss"]) - 1, self.steps.flaw()
        reason = None if flaw is None else f"{flaw.text()} The parameters are not finite after step {step}."
        raise DivergenceError(step, None, result, reason)

    def diverged_validation(self, loss: float, held_out: Any) -> NoReturn:
        """Raise `DivergenceError` for a validation loss that is not finite."""
        result = self.result(best=False)
        if not are_finite(self.steps.network, self.loop.params):
            self.diverged_params(result)
        step, flaw = len(self.history["loss"]) - 1, self.steps.flaw(held_out)
        cause = "A smaller learning rate may help." if flaw is None else f"In the validation data {flaw.text()}"
        reason = f"validation loss must be finite in training, got {loss} after step {step}. {cause}"
        raise DivergenceError(step, loss, result, reason)

    def rescued(self) -> TrainResult:
        """Return the result of the training before an error."""
        self.settle()
        return self.result(best=False)

    def end_epoch(self, held_out: Any, *, keep_best: bool, counted: Any = None) -> None:
        """Count an epoch; look at the validation data, and keep the parameters if they are the best so far."""
        found = None if held_out is None else self.steps.evaluated(self.loop.params, held_out)
        if found is not None and not math.isfinite(found[0]) and not math.isnan(found[1]):  # and a row counts
            self.diverged_validation(found[0], held_out)
        right = None if counted is None else self.steps.evaluated(self.loop.params, counted)[1]
        self.epoch, self.step = self.epoch + 1, 0
        if right is not None:
            self.history.setdefault(ACCURACY, []).append(right)
        self.rng = dict(self.generator.bit_generator.state)
        if found is None:
            return
        loss, accuracy = found
        self.history.setdefault("validation_loss", []).append(loss)
        self.history.setdefault("validation_accuracy", []).append(accuracy)
        before = math.nan if self.best is None else self.best[0]
        if keep_best and (self.best is None or loss < before or (math.isnan(before) and not math.isnan(loss))):
            self.best = (loss, self.epoch, self.loop.copy())

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether the last best epoch is `patience` epochs ago."""
        return patience is not None and self.best is not None and self.epoch - self.best[1] >= patience

    def params_of(self, params: Params) -> Params:
        """Return a copy of parameters in the dtype that they were given in."""
        net = self.steps.network
        narrow = tuple(type(layer)(*(narrowed(net.xp, array, net.dtype) for array in layer)) for layer in params)
        return copied(net, narrow, net.dtype)

    def state_now(self) -> TrainState:
        """Return a copy of all that changes; the losses of the steps before are looked at."""
        self.settle()
        return self._state_of(self.loop.copy(), self.loop.copy_of_state())

    def _state_of(self, params: Params, optimizer: State) -> TrainState:
        history = {name: list(values) for name, values in self.history.items()}
        sizes = self.steps.rows, self.batch_size, self.steps.blocks
        best = None if self.best is None else (*self.best[:2], self.loop.copy(self.best[2]))
        place = self.rng, self.epoch, self.step, best
        return TrainState(params, optimizer, *place, history, *sizes, interrupted=self.interrupted)

    def result(self, *, best: bool) -> TrainResult:
        """Return the last parameters, or those of the best epoch, with the history and the state."""
        params = self.best[2] if best and self.best is not None else self.loop.params
        return TrainResult(self.params_of(params), self.history, self._state_of(self.loop.params, self.loop.state))


class _Bar:
    """A progress bar of tqdm, or none."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar
        self._words: dict[str, str] = {}

    def tick(self, loss: Any) -> None:
        """Count a step; show its loss, unless that would wait for a device."""
        if self._bar is not None:
            if type(loss) is float:
                self._write({"loss": [loss]})
            self._bar.update()

    def show(self, history: History) -> None:
        """Show the last numbers of a history."""
        if self._bar is not None:
            self._write(history)

    def _write(self, history: History) -> None:
        for name, values in history.items():
            if values:
                self._words[name.replace("_", " ")] = f"{values[-1]:.3g}"
        self._bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in self._words.items()), refresh=False)


@contextmanager
def _progress(steps: int, *, shown: bool) -> Iterator[_Bar]:
    if not shown:
        yield _Bar()
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError("progress needs tqdm, which is not installed: pip install tqdm.") from None
    with tqdm(total=steps, unit="step") as bar:
        yield _Bar(bar)
