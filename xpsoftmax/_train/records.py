"""What `train` returns, what it passes to callbacks, and what it raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from xpsoftmax._network.layers import Params
from xpsoftmax._train.state import History, TrainState


class TrainResult(NamedTuple):
    """What `train` returns.

    Attributes
    ----------
    params : tuple of Layer
        With `patience` those of the epoch with the least validation loss, otherwise the last ones.
    history : dict of lists
        "loss": of each step, penalty included; nan for a batch without a row that counts. With validation data, for
        each epoch: "validation_loss", without the penalty, and "validation_accuracy". With ``accuracy=True``, for each
        epoch: "accuracy", on the data that is trained with.
    state : TrainState
        To continue the training, by ``train(..., resume=state)``.

    Notes
    -----
    ``result.interrupted`` says whether Ctrl-C has ended the training.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> X, y = np.eye(4), np.array([0, 1, 2, 0])
    >>> params = xs.init_params((4, 3), rng=0)
    >>> result = xs.train(params, X, y, optimizer=xs.sgd(1.0), epochs=5, batch_size=2, rng=0)
    >>> len(result.history["loss"])  # two batches an epoch
    10
    >>> result
    TrainResult(4-3, 5 epochs, loss 0.458)
    >>> params, history, state = result
    """

    params: Params
    history: History
    state: TrainState

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C has ended the training."""
        return self.state.interrupted

    def __repr__(self) -> str:
        """Sizes, epochs, last loss, and the validation accuracy of the parameters: the numbers would fill pages."""
        epoch = 0 if self.state.best is None else self.state.best[1]
        words = [*self.state.progress(), *self.state.last(epoch), *(["interrupted"] if self.interrupted else [])]
        return f"TrainResult({', '.join(words)})"


class TrainStep:
    """What a callback of `train` sees after each step.

    Attributes
    ----------
    epoch, step : int
        Counted from 0; `step` is not reset between epochs.
    loss : array, 0-d, or float
        On a GPU the loss is still on the device: ``float(loss)`` waits for it.
    params : tuple of Layer
        A copy, made when it is asked for: in the callback, not later.
    state : TrainState
        All that `train` needs to go on after this step, for `save_state`. A copy, too, and on a GPU it waits.

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

    def __init__(
        self, epoch: int, step: int, loss: Any, params: Callable[[], Params], state: Callable[[], TrainState]
    ) -> None:
        self.epoch, self.step, self.loss = epoch, step, loss
        self._copies: tuple[Callable[[], Params], Callable[[], TrainState]] | None = (params, state)

    @property
    def params(self) -> Params:
        """The parameters after the step."""
        return self._present("params")[0]()

    @property
    def state(self) -> TrainState:
        """The state after the step."""
        return self._present("state")[1]()

    def _present(self, name: str) -> tuple[Callable[[], Params], Callable[[], TrainState]]:
        if self._copies is None:
            raise RuntimeError(f"{name} must be asked for while the callback runs: training has gone on since.")
        return self._copies

    def _expire(self) -> None:
        """Refuse parameters and state from now on: training goes on, and changes them. Its memory is not held."""
        self._copies = None

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
        None if the parameters are not finite.
    result : TrainResult
        The result before the step of that loss. If a validation loss is not finite: the result before validation. If
        the parameters are not finite: the result with these parameters.

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

    __module__ = "xpsoftmax"  # tracebacks show the public name

    def __init__(self, step: int, loss: float | None, result: TrainResult, reason: str | None = None) -> None:
        super().__init__(reason or _message(step, loss))
        self.step, self.loss, self.result = step, loss, result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.loss, self.result, str(self))


BEFORE = "The error's `result` has the parameters from before it."


def _message(step: int, loss: float | None) -> str:
    """Return the message where the cause is likely a learning rate that is too large."""
    if loss is None:
        return f"params must stay finite in training, got nan or inf after step {step}. Try a smaller learning rate."
    return f"loss must be finite in training, got {loss} at step {step}. A smaller learning rate may help. {BEFORE}"
