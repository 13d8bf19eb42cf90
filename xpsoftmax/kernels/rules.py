"""Update rules of the optimisers: new parameters from parameters and gradients.

A `Rule` is a formula for NumPy, CuPy and every other array library. Backends that have their own
version of a rule (the NumPy kernels in place, the CUDA kernels in one launch) look it up by the `Rule` object. Other
rules are computed by their formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from array_api_compat import array_namespace

from xpsoftmax._typing import Array


class Rule(NamedTuple):
    """An update rule: its name, and its formula.

    The formula is called with a parameter, the arrays that the optimiser keeps of it (velocity, means), the gradient
    and the rule's numbers. It returns the new parameter and the new arrays.
    """

    name: str
    formula: Callable[..., tuple[Array, ...]]

    def __call__(self, *arguments: Array | float) -> tuple[Array, ...]:
        """New parameter, and the new arrays that are kept of it."""
        return self.formula(*arguments)


def _sgd(p: Array, g: Array, rate: float) -> tuple[Array]:
    return (p - rate * g,)


def _momentum(p: Array, v: Array, g: Array, rate: float, momentum: float) -> tuple[Array, Array]:
    v = momentum * v + g
    return p - rate * v, v


def _nesterov(p: Array, v: Array, g: Array, rate: float, momentum: float) -> tuple[Array, Array]:
    v = momentum * v + g
    return p - rate * (g + momentum * v), v


def _velocity(p: Array, v: Array, g: Array, rate: float, momentum: float) -> tuple[Array, Array]:
    v = momentum * v - rate * g
    return p + v, v


def _nesterov_velocity(p: Array, v: Array, g: Array, rate: float, momentum: float) -> tuple[Array, Array]:
    v = momentum * v - rate * g
    return p + (momentum * v - rate * g), v


def _adam(
    p: Array,
    m: Array,
    v: Array,
    g: Array,
    rate: float,
    root: float,
    b1: float,
    rest1: float,
    b2: float,
    rest2: float,
    eps: float,
) -> tuple[Array, Array, Array]:
    # `rate` and `root` hold the bias corrections of the two means; rest1 = 1 - b1, rest2 = 1 - b2.
    m = b1 * m + rest1 * g
    v = b2 * v + rest2 * (g * g)
    return p - (rate * m) / (root * array_namespace(v).sqrt(v) + eps), m, v


def _adamw(p: Array, m: Array, v: Array, g: Array, shrink: float, *numbers: float) -> tuple[Array, Array, Array]:
    return _adam(shrink * p, m, v, g, *numbers)


SGD = Rule("sgd", _sgd)
MOMENTUM = Rule("momentum", _momentum)
NESTEROV = Rule("nesterov", _nesterov)
ADAM = Rule("adam", _adam)
ADAMW = Rule("adamw", _adamw)

# scikit-learn's forms of momentum: the learning rate is part of the velocity, so a new rate takes effect gradually.
VELOCITY = Rule("velocity", _velocity)
NESTEROV_VELOCITY = Rule("nesterov_velocity", _nesterov_velocity)
