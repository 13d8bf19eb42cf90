"""Bias and activation of a layer on NumPy arrays, and the backward pass of the activation; both in place."""

from __future__ import annotations

import numpy as np

from xpsoftmax._typing import Array
from xpsoftmax.kernels.activations import IDENTITY, RELU, Activation
from xpsoftmax.kernels.numpy.elementwise import TILE_OF_EXP, in_tiles


def bias_activation(
    z: Array, bias: Array, activation: Activation, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.bias_activation`."""
    if activation == IDENTITY:
        in_tiles(lambda z: np.add(z, bias, out=z), z)
        return z, None
    if activation == RELU:
        _relu(z, bias)
        return z, z if grad else None
    if not grad:

        def value(z: Array) -> None:
            np.add(z, bias, out=z)
            z[...] = activation.function(np, z)

        in_tiles(value, z, tile=TILE_OF_EXP)
        return z, None

    def value_and_slope(z: Array, slope: Array) -> None:
        np.add(z, bias, out=z)
        z[...], slope[...] = activation.with_slope(np, z)

    slope = np.empty_like(z) if out is None else out
    in_tiles(value_and_slope, z, slope, tile=TILE_OF_EXP)
    return z, slope


def _relu(z: Array, bias: Array) -> None:
    zero = np.zeros_like(bias)  # with the number 0.0, np.maximum takes twice as long

    def relu(z: Array) -> None:
        np.add(z, bias, out=z)
        np.maximum(z, zero, out=z)

    in_tiles(relu, z)


def activation_backward(delta: Array, slope: Array | None, activation: Activation) -> Array:
    """See `xpsoftmax.kernels.generic.activation_backward`."""
    if slope is not None:
        in_tiles(_times_sign if activation.kept == "value" else _times, delta, slope)
    return delta


def _times_sign(delta: Array, value: Array) -> None:
    np.multiply(delta, value > 0.0, out=delta)


def _times(delta: Array, slope: Array) -> None:
    np.multiply(delta, slope, out=delta)
