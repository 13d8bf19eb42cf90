"""Layers whose arrays are views of one vector: a NumPy update of the vector updates all layers in one call."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpsoftmax._network.layers import Params


def parts_of(vector: np.ndarray, like: Params) -> Params:
    """Layers with the shapes of `like`, whose arrays are views of consecutive parts of the vector."""
    start, layers = 0, []
    for layer in like:
        weight, bias = layer
        middle, stop = start + weight.size, start + weight.size + bias.size
        layers.append(type(layer)(vector[start:middle].reshape(weight.shape), vector[middle:stop]))
        start = stop
    return tuple(layers)


def vector_of(layers: Params) -> np.ndarray | None:
    """Return the vector whose parts these layers are, if `parts_of` made them; None for other layers."""
    vector: Any = getattr(layers[0].weight, "base", None)
    if type(vector) is not np.ndarray or vector.ndim != 1:
        return None
    size = 0
    for weight, bias in layers:
        if weight.base is not vector or bias.base is not vector:
            return None
        size += weight.size + bias.size
    return vector if size == vector.size else None
