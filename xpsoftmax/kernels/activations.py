"""Activation functions by name, each with its slope: the derivative at the same pre-activation.

All are written from exponentials that cannot overflow, and no slope subtracts nearly equal numbers: a saturated unit
passes on a small gradient, not zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from xpsoftmax._typing import Array, Namespace


class Activation(NamedTuple):
    """A function of the pre-activation; and both it and its slope, which share their exponentials.

    Instead of a slope there may be None (it is 1), or the value itself (it is 1 where that is positive, else 0).
    """

    function: Callable[[Namespace, Array], Array]
    with_slope: Callable[[Namespace, Array], tuple[Array, Array | None]]


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
    near = xp.clip(z, -100.0, 100.0)  # beyond, s is 0 or 1, and z * z must not overflow
    s, ds = _logistic_with_slope(xp, GELU_SLOPE * (near + GELU_CUBIC * near * near * near))
    return z * s, s + near * (GELU_SLOPE * (1.0 + 3.0 * GELU_CUBIC * near * near)) * ds


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(_identity, _identity_with_slope),
    "relu": Activation(_relu, _relu_with_slope),
    "tanh": Activation(_tanh, _tanh_with_slope),
    "logistic": Activation(_logistic, _logistic_with_slope),
    "silu": Activation(_silu, _silu_with_slope),
    "gelu": Activation(_gelu, _gelu_with_slope),
}
