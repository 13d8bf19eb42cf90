"""The check that layers (gradients, states, other parameters) match those of a network."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.home import Home, home_of
from xpsoftmax._network.layers import KINDS, Params, recorded


def check_alike(name: str, layers: Params, own: Params, owner: str = "the sums") -> None:
    """Check that layers have the shapes, library, device and activation of `own`.

    Without the check, broadcasting could turn a mistake into a wrong result.
    """
    if _seen_alike(layers, own):
        return
    for layer in layers:
        for array in layer:
            check.as_array(name, array)
    for i, part in enumerate(("weights", "biases")):
        shapes, wanted = ([tuple(layer[i].shape) for layer in x] for x in (layers, own))
        if shapes != wanted:
            raise ValueError(f"{name} must have {part} of the shapes of {owner}, {wanted}, got {shapes}.")
    for layer, like in zip(layers, own, strict=True):
        xp, weight = check.as_array(owner, like.weight)
        where = Home(xp, home_of(weight), owner)
        check.as_companion(name, layer.weight, where)
    theirs, ours = recorded(layers, name), recorded(own, owner)
    if theirs is not None and ours is not None and theirs != ours:
        raise ValueError(f"{name} must carry the activation of {owner}, {ours!r}, got {theirs!r}.")


def _seen_alike(layers: Any, own: Params) -> bool:
    if type(layers) is not tuple or len(layers) != len(own):
        return False
    for layer, like in zip(layers, own, strict=True):
        if not (
            type(layer) is type(like)
            and type(layer) in KINDS
            and type(layer.weight) is type(like.weight) is np.ndarray
            and layer.weight.shape == like.weight.shape
            and layer.bias.shape == like.bias.shape
        ):
            return False
    return True
