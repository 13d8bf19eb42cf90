"""Activations of a layer with derivative rules: value, slope (first derivative) and curvature (second derivative)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xpsoftmax._typing import Array
from xpsoftmax.kernels.activations import (
    GELU,
    GELU_CUBIC,
    GELU_SLOPE,
    IDENTITY,
    LOGISTIC,
    RELU,
    SILU,
    TANH,
    Activation,
)
from xpsoftmax.kernels.jax.rules import with_rule


def _value(z: Array, activation: Activation) -> Array:
    return activation.function(jnp, z)


def _value_and_slope(z: Array, activation: Activation) -> tuple[Array, Array | None]:
    return activation.with_slope(jnp, z)


def _slope_formula(z: Array, activation: Activation) -> Array:
    """Derivative of the activation; that of ReLU is 0 at 0."""
    kept: Array = activation.with_slope(jnp, z)[1]
    if activation.kept == "nothing":
        return jnp.ones_like(z)
    return (kept > 0.0).astype(z.dtype) if activation.kept == "value" else kept


def _activated_rule(activation: Activation, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    return activated(z, activation), _slope(z, activation) * dz


def _activated_with_slope_rule(
    activation: Activation, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Any, Any]:
    (z,), (dz,) = primals, tangents
    value, kept = activated_with_slope(z, activation)
    dvalue = _slope(z, activation) * dz
    if activation.kept == "nothing":
        return (value, None), (dvalue, None)
    return (value, kept), (dvalue, dvalue if activation.kept == "value" else _curvature(z, activation) * dz)


def _slope_rule(activation: Activation, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    return _slope(z, activation), _curvature(z, activation) * dz


_static_activation = {"nondiff_argnums": (1,)}
activated = with_rule(jax.jit(_value, static_argnums=1), _activated_rule, **_static_activation)
activated_with_slope = with_rule(
    jax.jit(_value_and_slope, static_argnums=1), _activated_with_slope_rule, **_static_activation
)
_slope = with_rule(jax.jit(_slope_formula, static_argnums=1), _slope_rule, **_static_activation)


def _curvature(z: Array, activation: Activation) -> Array:
    """Second derivative of the activation, in terms of functions that have rules."""
    return _CURVATURES[activation](z)


def _curvature_of_gelu(z: Array) -> Array:
    # GELU is z s(u), u a polynomial of z.
    z = jnp.clip(z, -100.0, 100.0)  # beyond these, the slope of s is 0; z * z must not overflow
    u = GELU_SLOPE * (z + GELU_CUBIC * z * z * z)
    du = GELU_SLOPE * (1.0 + 3.0 * GELU_CUBIC * z * z)
    ddu = GELU_SLOPE * 6.0 * GELU_CUBIC * z
    return (2.0 * du + z * ddu - z * du * du * activated(0.5 * u, TANH)) * _slope(u, LOGISTIC)


_CURVATURES: dict[Activation, Callable[[Array], Array]] = {
    IDENTITY: jnp.zeros_like,
    RELU: jnp.zeros_like,
    TANH: lambda z: -2.0 * activated(z, TANH) * _slope(z, TANH),
    LOGISTIC: lambda z: -activated(0.5 * z, TANH) * _slope(z, LOGISTIC),
    SILU: lambda z: (2.0 - z * activated(0.5 * z, TANH)) * _slope(z, LOGISTIC),
    GELU: _curvature_of_gelu,
}
