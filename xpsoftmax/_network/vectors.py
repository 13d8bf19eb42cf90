"""Layers whose arrays are parts of one vector."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpsoftmax._network.layers import Params


def parts_of(vector: np.ndarray, like: Params) -> Params:
    """Layers of these shapes whose arrays are parts of a vector, one after the other: all of them at once, too."""
    start, layers = 0, []
    for layer in like:
        weight, bias = layer
        middle, stop = start + weight.size, start + weight.size + bias.size
        layers.append(type(layer)(vector[start:middle].reshape(weight.shape), vector[middle:stop]))
        start = stop
    return tuple(layers)


def vector_of(layers: Params) -> np.ndarray | None:
    """The vector that layers are the parts of, if `parts_of` has made them."""
    vector: Any = getattr(layers[0].weight, "base", None)
    if type(vector) is not np.ndarray or vector.ndim != 1:
        return None
    size = 0
    for weight, bias in layers:
        if weight.base is not vector or bias.base is not vector:
            return None
        size += weight.size + bias.size
    return vector if size == vector.size else None
