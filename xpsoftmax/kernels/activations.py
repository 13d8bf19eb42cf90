"""Activation functions with their slopes, as `Activation` objects; `ACTIVATIONS` finds them by name.

The slope is the derivative at the same pre-activation z. All formulas use exponentials that cannot overflow, and no
slope subtracts nearly equal numbers: the gradient of a saturated unit is small, not zero. Backends that have their own
version of an activation look it up by its object.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from xpsoftmax._typing import Array, Namespace


class Activation(NamedTuple):
    """An activation function.

    `with_slope` returns the value and what the backward pass needs, which `kept` names: nothing (None: the slope is 1),
    the value (the slope is 1 where the value is positive, else 0), or the slope itself.
    """

    name: str
    function: Callable[[Namespace, Array], Array]
    with_slope: Callable[[Namespace, Array], tuple[Array, Array | None]]  # both share their exponentials
    kept: Literal["nothing", "value", "slope"] = "slope"


def _identity(xp: Namespace, z: Array) -> Array:  # noqa: ARG001
    return z


def _identity_with_slope(xp: Namespace, z: Array) -> tuple[Array, None]:  # noqa: ARG001
    return z, None


def _relu(xp: Namespace, z: Array) -> Array:
    return xp.where(z < 0.0, 0.0, z)  # nan stays nan


def _relu_with_slope(xp: Namespace, z: Array) -> tuple[Array, Array]:
    value = _relu(xp, z)
    return value, value


def _tanh(xp: Namespace, z: Array) -> Array:
    return xp.tanh(z)


def _tanh_with_slope(xp: Namespace, z: Array) -> tuple[Array, Array]:
    e = xp.exp(-2.0 * xp.abs(z))
    return xp.tanh(z), 4.0 * e / ((1.0 + e) * (1.0 + e))  # 1 - tanh**2


def _logistic(xp: Namespace, z: Array) -> Array:
    return _logistic_with_slope(xp, z)[0]


def _logistic_with_slope(xp: Namespace, z: Array) -> tuple[Array, Array]:
    e = xp.exp(-xp.abs(z))
    above = 1.0 + e
    return xp.where(z < 0.0, e, 1.0) / above, e / (above * above)  # s, s * (1 - s)


def _silu(xp: Namespace, z: Array) -> Array:
    return z * _logistic(xp, z)


def _silu_with_slope(xp: Namespace, z: Array) -> tuple[Array, Array]:
    s, ds = _logistic_with_slope(xp, z)
    return z * s, s + z * ds


# GELU in its tanh form, z/2 (1 + tanh(u)), is z * logistic(2 u): without the 1 + tanh that cancels for negative z.
GELU_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
GELU_CUBIC = 0.044715


def _gelu(xp: Namespace, z: Array) -> Array:
    return z * _logistic(xp, GELU_SLOPE * (z + GELU_CUBIC * z * z * z))


def _gelu_with_slope(xp: Namespace, z: Array) -> tuple[Array, Array]:
    near = xp.clip(z, -100.0, 100.0)  # beyond these, s is 0 or 1; z * z must not overflow
    s, ds = _logistic_with_slope(xp, GELU_SLOPE * (near + GELU_CUBIC * near * near * near))
    return z * s, s + near * (GELU_SLOPE * (1.0 + 3.0 * GELU_CUBIC * near * near)) * ds


IDENTITY = Activation("identity", _identity, _identity_with_slope, kept="nothing")
RELU = Activation("relu", _relu, _relu_with_slope, kept="value")
TANH = Activation("tanh", _tanh, _tanh_with_slope)
LOGISTIC = Activation("logistic", _logistic, _logistic_with_slope)
SILU = Activation("silu", _silu, _silu_with_slope)
GELU = Activation("gelu", _gelu, _gelu_with_slope)

ACTIVATIONS = {f.name: f for f in (IDENTITY, RELU, TANH, LOGISTIC, SILU, GELU)}
