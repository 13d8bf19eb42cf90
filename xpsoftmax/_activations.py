"""Activation functions by name, each with its derivative.

Both are written from exponentials that cannot overflow, and no derivative subtracts nearly equal numbers: a saturated
unit passes on a small gradient, not zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from xpsoftmax import _validate as check
from xpsoftmax._typing import Array, Namespace


class Activation(NamedTuple):
    """A function of the pre-activation and its derivative, both called with the namespace first."""

    function: Callable[[Namespace, Array], Array]
    derivative: Callable[[Namespace, Array], Array]


def activation_named(name: str) -> Activation:
    """Look up an activation; ValueError with the names there are."""
    check.check_choice("activation", name, tuple(ACTIVATIONS))
    return ACTIVATIONS[name]


def _identity(xp: Namespace, z: Array) -> Array:  # noqa: ARG001
    return z


def _one(xp: Namespace, z: Array) -> Array:
    return xp.ones_like(z)


def _relu(xp: Namespace, z: Array) -> Array:
    return xp.where(z < 0.0, 0.0, z)  # nan stays nan


def _step(xp: Namespace, z: Array) -> Array:
    return xp.astype(z > 0.0, z.dtype)  # 0 at the kink


def _tanh(xp: Namespace, z: Array) -> Array:
    return xp.tanh(z)


def _tanh_derivative(xp: Namespace, z: Array) -> Array:
    e = xp.exp(-2.0 * xp.abs(z))
    return 4.0 * e / ((1.0 + e) * (1.0 + e))  # 1 - tanh**2


def _logistic(xp: Namespace, z: Array) -> Array:
    e = xp.exp(-xp.abs(z))
    return xp.where(z < 0.0, e, 1.0) / (1.0 + e)


def _logistic_derivative(xp: Namespace, z: Array) -> Array:
    e = xp.exp(-xp.abs(z))
    return e / ((1.0 + e) * (1.0 + e))  # s * (1 - s)


def _silu(xp: Namespace, z: Array) -> Array:
    return z * _logistic(xp, z)


def _silu_derivative(xp: Namespace, z: Array) -> Array:
    return _logistic(xp, z) + z * _logistic_derivative(xp, z)


# GELU in its tanh form, z/2 (1 + tanh(u)), is z * logistic(2 u): without the 1 + tanh that cancels for negative z.
_GELU_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715


def _gelu(xp: Namespace, z: Array) -> Array:
    return z * _logistic(xp, _GELU_SLOPE * (z + _GELU_CUBIC * z * z * z))


def _gelu_derivative(xp: Namespace, z: Array) -> Array:
    z = xp.clip(z, -100.0, 100.0)  # beyond, it is 0 or 1, and z * z must not overflow
    u = _GELU_SLOPE * (z + _GELU_CUBIC * z * z * z)
    slope = _GELU_SLOPE * (1.0 + 3.0 * _GELU_CUBIC * z * z)
    return _logistic(xp, u) + z * slope * _logistic_derivative(xp, u)


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(_identity, _one),
    "relu": Activation(_relu, _step),
    "tanh": Activation(_tanh, _tanh_derivative),
    "logistic": Activation(_logistic, _logistic_derivative),
    "silu": Activation(_silu, _silu_derivative),
    "gelu": Activation(_gelu, _gelu_derivative),
}
