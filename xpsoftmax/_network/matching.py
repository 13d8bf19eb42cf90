"""The check that layers (gradients, states, other parameters) match those of a network."""

from __future__ import annotations

from typing import Any

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.door import NO_KEY, SEEN, recall, remember
from xpsoftmax._arguments.home import Home, home_of
from xpsoftmax._network.layers import Params, recorded_activation


def check_matching(name: str, layers: Params, own: Params, owner: str = "the sums") -> None:
    """Check that layers have the shapes, library, device and activation of `own`.

    Without the check, broadcasting could turn a mistake into a wrong result.
    """
    key = _key(layers, own)
    if not recall(key):
        _check(name, layers, own, owner)
        remember(key, found=True)


def _key(layers: Params, own: Params) -> Any:
    try:
        return (
            "matching",
            len(layers),
            len(own),
            *[
                (
                    type(layer),
                    type(like),
                    type(layer.weight),
                    type(layer.bias),
                    type(like.weight),
                    SEEN[type(layer.weight)](layer.weight),
                    SEEN[type(layer.bias)](layer.bias),
                    SEEN[type(like.weight)](like.weight),
                    layer.weight.shape == like.weight.shape,
                    layer.bias.shape == like.bias.shape,
                )
                for layer, like in zip(layers, own, strict=True)
            ],
        )
    except (*NO_KEY, ValueError):  # ValueError: not as many layers
        return None


def _check(name: str, layers: Params, own: Params, owner: str) -> None:
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
    theirs, ours = recorded_activation(layers, name), recorded_activation(own, owner)
    if theirs is not None and ours is not None and theirs != ours:
        raise ValueError(f"{name} must carry the activation of {owner}, {ours!r}, got {theirs!r}.")
