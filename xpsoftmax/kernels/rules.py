"""The formulas of the optimisers: new parameters, and what is kept of them, from parameters and gradients."""

from __future__ import annotations

from array_api_compat import array_namespace

from xpsoftmax._typing import Array


def sgd_rule(p: Array, g: Array, rate: float) -> tuple[Array]:
    """Plain gradient descent."""
    return (p - rate * g,)


def momentum_rule(p: Array, v: Array, g: Array, rate: float, momentum: float) -> tuple[Array, Array]:
    """Gradient descent with momentum."""
    v = momentum * v + g
    return p - rate * v, v


def nesterov_rule(p: Array, v: Array, g: Array, rate: float, momentum: float) -> tuple[Array, Array]:
    """Gradient descent with Nesterov's momentum."""
    v = momentum * v + g
    return p - rate * (g + momentum * v), v


def velocity_rule(p: Array, v: Array, g: Array, rate: float, momentum: float) -> tuple[Array, Array]:
    """Momentum in the form of scikit-learn: the rate is part of the velocity."""
    v = momentum * v - rate * g
    return p + v, v


def nesterov_velocity_rule(p: Array, v: Array, g: Array, rate: float, momentum: float) -> tuple[Array, Array]:
    """Nesterov's momentum in the form of scikit-learn."""
    v = momentum * v - rate * g
    return p + (momentum * v - rate * g), v


def adam_rule(
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
    """Adam; `rate` and `root` hold the corrections of the two means."""
    m = b1 * m + rest1 * g
    v = b2 * v + rest2 * (g * g)
    return p - (rate * m) / (root * array_namespace(v).sqrt(v) + eps), m, v


def adamw_rule(p: Array, m: Array, v: Array, g: Array, shrink: float, *numbers: float) -> tuple[Array, Array, Array]:
    """Adam after the weights have been multiplied by `shrink`."""
    return adam_rule(shrink * p, m, v, g, *numbers)
