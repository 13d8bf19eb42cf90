"""The loop over minibatches, which `train`, its counterpart over dask blocks and the classifier share.

It makes steps, keeps the losses on the device until they are asked for, and finds the first that is not finite. The
callers decide when an epoch begins and ends, the order of its rows, and when training stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from xpsoftmax._network.layers import Params
from xpsoftmax._network.network import Network, copied
from xpsoftmax._train.interrupts import Interrupted
from xpsoftmax._train.losses import values_of
from xpsoftmax._train.optimizers import Optimizer, State
from xpsoftmax._train.steps import Batch, Steps
from xpsoftmax._typing import Array


class NotFiniteError(ArithmeticError):
    """The loss of a step is not finite. The loop is as it was before this step.

    Attributes
    ----------
    loss : float
    before : list of float
        What `Loop.settle` would have returned for the steps before.
    """

    def __init__(self, loss: float, before: list[float]) -> None:
        super().__init__(loss)
        self.loss, self.before = loss, before


class Loop:
    """Parameters and optimiser state in training, and the losses of the latest steps.

    Parameters
    ----------
    steps : Steps
        Loss and gradients of batches. Training starts from the parameters of its network.
    optimizer : Optimizer
        It may be replaced between two steps.
    params : tuple of Layer, optional
        Parameters to start from instead.
    state : tuple, optional
        State of the optimiser to start from. Like the parameters it is copied.
    """

    def __init__(
        self, steps: Steps, optimizer: Optimizer, params: Params | None = None, state: State | None = None
    ) -> None:
        self.steps, self.optimizer = steps, optimizer
        self.params = self.copy(steps.network.layers if params is None else params)
        self.state = optimizer.init(self.params) if state is None else self.copy_of_state(state)
        self.losses: list[Any] = []  # of the steps since the last `settle`; not copied to the host before
        self.finite: Array | None = None  # 0-d, on a device: whether all so far are finite; None: they are

    def run(
        self,
        batches: Iterable[Batch],
        interrupted: Callable[[], bool],
        after_step: Callable[[Any], bool] | None = None,
    ) -> bool:
        """Make a step on each batch; return False if Ctrl-C, or `after_step` given a loss, ended it early.

        A step on a batch in which no row counts changes nothing, and its loss is nan.
        """
        programs = self.steps.programs
        try:
            for batch in batches:
                if interrupted():
                    return False
                try:
                    loss = self._step(batch)
                except Interrupted:
                    return False
                self.losses.append(loss)
                if after_step is not None:
                    if programs is not None:
                        programs.leave()
                    if not after_step(loss):
                        return False
        finally:
            if programs is not None:
                programs.leave()
        return True

    def step(self, batch: Any) -> Any:
        """Update the parameters by one batch; return its loss, or nan if no row of it counts."""
        try:
            return self._step(batch)
        finally:
            if self.steps.programs is not None:
                self.steps.programs.leave()

    def _step(self, batch: Any) -> Any:
        """Make a step, after which programs may still be within their order."""
        programs = self.steps.programs
        if programs is not None:
            loss = programs.step(self, batch)
            if loss is not None:
                return loss
            programs.leave()
        found = self.steps.of_batch(self.params, batch)
        if found is None:
            return math.nan
        loss, grads = found
        if self.steps.on_host:
            loss = float(loss)
            if not math.isfinite(loss):
                raise NotFiniteError(loss, self.settle())
        else:
            # Looking at the loss would wait for the device. Instead, a loss that is not finite stops all later updates.
            finite = self.steps.network.xp.isfinite(loss)
            self.finite = finite if self.finite is None else self.finite & finite
        self.params, self.state = self.optimizer.step(self.params, grads, self.state, ok=self.finite, in_place=True)
        return loss

    def settle(self) -> list[float]:
        """Return the losses of the steps since the last call; it waits for the device.

        Raises
        ------
        NotFiniteError
            For the first loss that is not finite.
        """
        losses, self.losses = self.losses, []
        if self.steps.on_host:
            return losses
        updates = [i for i, loss in enumerate(losses) if type(loss) is not float]
        values = values_of(self.steps.network.xp, losses)
        bad = next((i for i in updates if not math.isfinite(values[i])), None)
        if bad is not None:
            self.finite = None
            count, *kept = self.state  # it counts the updates that were not made, too
            self.state = (count - len(updates) + updates.index(bad), *kept)
            raise NotFiniteError(values[bad], values[:bad])
        return values

    def copy(self, params: Params | None = None) -> Params:
        """Return a copy of the parameters, or of others of their shapes."""
        net = self.steps.network
        return copied(net, self.params if params is None else params, net.working)

    def copy_of_state(self, state: State | None = None) -> State:
        """Return a copy of the optimiser's state, or of another one."""
        count, *kept = self.state if state is None else state
        return (count, *map(self.copy, kept))


def are_finite(net: Network, layers: Params) -> bool:
    """Whether all parameters are finite; it waits for the device."""
    return all(bool(net.xp.all(net.xp.isfinite(array))) for layer in layers for array in layer)
