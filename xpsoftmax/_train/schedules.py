"""Learning rates that change: functions of the number of updates made, for `learning_rate` of any optimiser."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

from xpsoftmax._arguments.options import as_integer, as_number
from xpsoftmax._arguments.suggestions import RATE as NAMES_OF_RATE
from xpsoftmax._arguments.suggestions import suggesting

Schedule = Callable[[int], float]

RATE = dict.fromkeys((*NAMES_OF_RATE, "learning_rate", "init_value", "initial_learning_rate"), "rate=")
RATE.pop("rate")


@dataclass(frozen=True)
class _Constant:
    rate: float

    def __call__(self, step: int) -> float:
        _as_step(step)
        return self.rate


@dataclass(frozen=True)
class _Step:
    rate: float
    every: int
    factor: float

    def __call__(self, step: int) -> float:
        drops = min(_as_step(step) // self.every, sys.maxsize)  # Python has no power with a larger exponent
        try:
            return self.rate * self.factor**drops
        except OverflowError:  # of the power, which is then larger than any float
            return math.inf if self.rate > 0.0 else 0.0


@dataclass(frozen=True)
class _Cosine:
    rate: float
    steps: int
    final: float

    def __call__(self, step: int) -> float:
        share = min(_as_step(step), self.steps) / self.steps
        return self.final + (self.rate - self.final) * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class _WarmUp:
    schedule: Schedule
    steps: int
    start: float

    def __call__(self, step: int) -> float:
        if _as_step(step) >= self.steps:
            return self.schedule(step - self.steps)
        share = step / self.steps
        return (1.0 - share) * self.start + share * as_number("schedule(0)", self.schedule(0))


def _as_step(step: object) -> int:
    """Check the number of updates made; a negative number would give a rate that no schedule has."""
    return as_integer("step", step, low=0)


def is_of_the_package(schedule: Schedule) -> bool:
    """Whether a schedule is made by the functions below alone: its rates depend on the step and on nothing else."""
    while type(schedule) is _WarmUp:
        schedule = schedule.schedule
    return type(schedule) in (_Constant, _Step, _Cosine)


@suggesting(**RATE)
def constant_schedule(rate: float) -> Schedule:
    """Keep the learning rate constant, for example after `warm_up_schedule`.

    Parameters
    ----------
    rate : float
        The learning rate of all updates.

    Returns
    -------
    function of int
        Learning rate after so many updates. It can be pickled and compared, as those of all schedules.

    Raises
    ------
    TypeError, ValueError
        If `rate` is not a number from 0 on.

    Examples
    --------
    >>> import xpsoftmax as xs
    >>> rate = xs.warm_up_schedule(xs.constant_schedule(0.5), steps=2)
    >>> [rate(step) for step in range(4)]
    [0.0, 0.25, 0.5, 0.5]
    """
    return _Constant(as_number("rate", rate))


@suggesting(
    **(RATE | {"step_size": "every="}),
    **dict.fromkeys(("gamma", "decay_rate", "drop"), "factor="),
    **dict.fromkeys(("steps", "decay_steps", "period"), "every="),
)
def step_schedule(rate: float, *, every: int, factor: float = 0.1) -> Schedule:
    """Multiply the learning rate by a factor every so many updates.

    Parameters
    ----------
    rate : float
        Of the first updates.
    every : int
        Updates with the same rate.
    factor : float
        What the rate is multiplied by after each `every` updates.

    Returns
    -------
    function of int
        As `constant_schedule`.

    Raises
    ------
    TypeError, ValueError
        If `rate` or `factor` is not a number from 0 on, or `every` not an integer above 0.

    Examples
    --------
    >>> import xpsoftmax as xs
    >>> rate = xs.step_schedule(0.8, every=2, factor=0.5)
    >>> [rate(step) for step in range(5)]
    [0.8, 0.8, 0.4, 0.4, 0.2]
    """
    return _Step(as_number("rate", rate), as_integer("every", every, low=1), as_number("factor", factor))


@suggesting(
    **RATE,
    **dict.fromkeys(("T_max", "T", "decay_steps", "total_steps", "every", "epochs"), "steps="),
    **dict.fromkeys(("eta_min", "min_lr", "lr_min", "alpha", "end"), "final="),
)
def cosine_schedule(rate: float, *, steps: int, final: float = 0.0) -> Schedule:
    r"""Let the learning rate fall along half a cosine.

    .. math:: \eta_t = \eta_\text{final} + \tfrac12 (\eta - \eta_\text{final}) \bigl(1 + \cos(\pi t / T)\bigr)

    Parameters
    ----------
    rate : float
        :math:`\eta`, of the first update.
    steps : int
        :math:`T`, updates until the rate is `final`; it stays so.
    final : float
        The rate that is reached at the end.

    Returns
    -------
    function of int
        As `constant_schedule`.

    Raises
    ------
    TypeError, ValueError
        If `rate` or `final` is not a number from 0 on, or `steps` not an integer above 0.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, arXiv:1608.03983.

    Examples
    --------
    >>> import xpsoftmax as xs
    >>> rate = xs.cosine_schedule(0.8, steps=4)
    >>> [round(rate(step), 2) for step in range(6)]
    [0.8, 0.68, 0.4, 0.12, 0.0, 0.0]
    """
    return _Cosine(as_number("rate", rate), as_integer("steps", steps, low=1), as_number("final", final))


@suggesting(
    **dict.fromkeys(("warmup", "warmup_steps", "num_warmup_steps", "transition_steps", "total_iters"), "steps="),
    **dict.fromkeys(("start_factor", "warmup_start_lr", "init_lr"), "start="),
    **dict.fromkeys((*RATE, "rate"), "xs.constant_schedule(rate), the first argument"),
)
def warm_up_schedule(schedule: Schedule, *, steps: int, start: float = 0.0) -> Schedule:
    """Let the learning rate grow linearly to the first rate of a schedule, then follow that schedule.

    Parameters
    ----------
    schedule : function of int
        It is called with the number of updates since the warm-up.
    steps : int
        Updates of the warm-up.
    start : float
        Rate of the first update.

    Returns
    -------
    function of int
        As `constant_schedule`.

    Raises
    ------
    TypeError, ValueError
        If `schedule` is not a function, `steps` not an integer above 0, or `start` not a number from 0 on.

    References
    ----------
    P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", arXiv:1706.02677.

    Examples
    --------
    >>> import xpsoftmax as xs
    >>> rate = xs.warm_up_schedule(xs.cosine_schedule(0.8, steps=4), steps=4)
    >>> [round(rate(step), 2) for step in range(8)]
    [0.0, 0.2, 0.4, 0.6, 0.8, 0.68, 0.4, 0.12]
    >>> optimizer = xs.adam(rate)
    """
    if not callable(schedule):
        raise TypeError(
            f"schedule must be a function of the number of updates, got {schedule!r:.60}. "
            "constant_schedule makes one of a number."
        )
    return _WarmUp(schedule, as_integer("steps", steps, low=1), as_number("start", start))
