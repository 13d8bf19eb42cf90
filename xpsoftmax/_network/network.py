"""The parameters of a network, and its inputs, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.door import NO_KEY, SEEN, recall, register_type, remember
from xpsoftmax._arguments.home import Home, home_of, library
from xpsoftmax._arguments.shapes import same_shape
from xpsoftmax._network.layers import (
    LAYER_TYPES,
    Layer,
    PairsOfArrays,
    Params,
    layer_type_of,
    resolved_activation,
    with_types_of,
)
from xpsoftmax._network.vectors import parts_of
from xpsoftmax._typing import Array, DType, Impl, Namespace
from xpsoftmax.kernels import Operations, operations
from xpsoftmax.kernels.sparse import are_places, as_rows, is_sparse, library_of


@dataclass(slots=True)
class Network:
    xp: Namespace
    layers: Params  # in the working precision
    activation: str
    dtype: DType  # of the parameters
    working: DType  # of everything that is computed
    home: Home  # of the first weight: library and device
    kernels: Operations

    @property
    def hidden(self) -> list[int]:
        return [layer.bias.shape[0] for layer in self.layers[:-1]]


def as_network(
    params: PairsOfArrays, activation: str | None, impl: Impl = "auto", *, differentiable: bool = False
) -> Network:
    """Check the parameters: one library, device and dtype, and each layer fitting the one before.

    Without an explicit activation the network has the one that its layers carry.
    """
    if not isinstance(params, (tuple, list)) or not params:
        _refuse_whole(params)
        raise TypeError(f"params must be a non-empty sequence of (weight, bias) pairs, got {params!r:.60}.")
    key = _key_of_network(params, activation)
    found = recall(key)
    if found is not None:
        home, chosen_activation, dtype = found
        layers: Any = tuple(params)  # only layers have a key
        return Network(home.xp, layers, chosen_activation, dtype, dtype, home, operations(layers[0].weight, impl))
    net = _checked(params, activation, impl, differentiable=differentiable)
    if all(a is b for layer, given in zip(net.layers, params, strict=True) for a, b in zip(layer, given, strict=True)):
        register_type(net.layers[0].weight)
        remember(key, (net.home, net.activation, net.dtype), activation)
    return net


def _key_of_network(params: Sequence[Any], activation: str | None) -> Any:
    try:
        layers = [
            (type(layer), type(weight), SEEN[type(weight)](weight), weight.shape, SEEN[type(bias)](bias), bias.shape)
            for layer in params
            if type(layer) in LAYER_TYPES
            for weight, bias in (layer,)
        ]
    except NO_KEY:
        return None
    return ("network", activation, *layers) if len(layers) == len(params) else None


def _checked(params: PairsOfArrays, activation: str | None, impl: Impl, *, differentiable: bool) -> Network:
    pairs = []
    for i, layer in enumerate(params):
        if not isinstance(layer, (tuple, list)) or len(layer) != 2:
            _refuse_whole(params)
            raise TypeError(f"params[{i}] must be a pair (weight, bias), got {layer!r:.60}.")
        pairs.append(layer_type_of(layer)(*layer))
    activation = resolved_activation(pairs, activation)
    xp, first = check.as_floating("params[0].weight", pairs[0].weight, differentiable=differentiable)
    dtype, working = first.dtype, check.working_dtype(xp, first)
    home = Home(xp, home_of(first), "params[0].weight", differentiable)
    layers: list[Layer] = []
    for i, layer in enumerate(pairs):
        weight, bias = _layer(i, layer, home, dtype, layers[-1].bias.shape[0] if layers else None)
        layers.append(type(layer)(xp.astype(weight, working, copy=False), xp.astype(bias, working, copy=False)))
    return Network(xp, tuple(layers), activation, dtype, working, home, operations(layers[0].weight, impl))


def _refuse_whole(params: object) -> None:
    """Raise TypeError for a result, a state or a classifier: it has the parameters as an attribute."""
    for name in ("params", "params_", "grads"):
        if hasattr(params, name):
            kind = type(params).__name__
            raise TypeError(f"params must be a sequence of (weight, bias) pairs, got a {kind}. Pass its `{name}`.")


def _layer(i: int, layer: Sequence[Array], home: Home, dtype: DType, fan_in: int | None) -> tuple[Array, Array]:
    arrays = []
    for name, ndim, value in (("weight", 2, layer[0]), ("bias", 1, layer[1])):
        name = f"params[{i}].{name}"
        check.as_companion(name, value, home)
        _, array = check.as_floating(name, value, differentiable=home.differentiable)
        if array.dtype != dtype:
            raise TypeError(f"{name} must have the dtype of params[0].weight, {dtype}, got {array.dtype}.")
        if array.ndim != ndim:
            shape = "(fan_in, fan_out)" if ndim == 2 else "(fan_out,)"
            raise ValueError(f"{name} must have shape {shape}, got {tuple(array.shape)}.")
        arrays.append(array)
    weight, bias = arrays
    if fan_in is not None and weight.shape[0] != fan_in:
        raise ValueError(
            f"params[{i}].weight must have shape ({fan_in}, fan_out) to follow the layer before, "
            f"got {tuple(weight.shape)}."
        )
    if bias.shape[0] != weight.shape[1]:
        raise ValueError(f"params[{i}].bias must have shape ({weight.shape[1]},), got {tuple(bias.shape)}.")
    if weight.shape[1] == 0:
        raise ValueError(f"params[{i}].weight must have at least one column, got shape {tuple(weight.shape)}.")
    return weight, bias


def as_inputs(net: Network, X: Array, name: str = "X") -> Array:
    """Check inputs (N, D) of a network."""
    fan_in = net.layers[0].weight.shape[0]
    try:
        seen = SEEN[type(X)](X), X.shape[1:]
        key: Any = ("inputs", type(X), *seen, fan_in, net.dtype, net.home.xp, net.home.device)
    except NO_KEY:
        key = None
    if recall(key):
        return X
    array = _checked_inputs(net, X, name, fan_in)
    if array is X:
        remember(key, found=True)
    return array


def _checked_inputs(net: Network, X: Array, name: str, fan_in: int) -> Array:
    if is_sparse(X):
        array = _sparse_companion(name, X, net.home)
    else:
        check.as_companion(name, X, net.home)
        _, array = check.as_floating(name, X, differentiable=net.home.differentiable)
    if array.dtype != net.dtype:
        raise TypeError(
            f"{name} must have the dtype of the parameters, {net.dtype}, got {array.dtype}. Cast one of them."
        )
    if array.ndim != 2 or not same_shape(array.shape[1:], (fan_in,)):
        raise ValueError(f"{name} must have shape (N, {fan_in}) to fit params[0].weight, got {tuple(array.shape)}.")
    if not is_sparse(array):
        return array
    check_places(name, array)
    return as_rows(array)


def check_places(name: str, X: Any) -> None:
    """Check that all entries of a sparse matrix are within its shape."""
    if not are_places(X):
        raise ValueError(f"{name} must have entries within its shape, {tuple(X.shape)}, got an invalid matrix.")


def _sparse_companion(name: str, X: Any, home: Home) -> Any:
    """Check that a sparse matrix is multiplied with arrays of the library, and on the device, of others."""
    if library_of(X) != library(home.xp):
        raise TypeError(
            f"{name} must be an array of the same library as {home.owner} ({library(home.xp)}), "
            f"got a sparse matrix that is multiplied with {library_of(X)} arrays."
        )
    if library_of(X) == "cupy":
        check.as_companion(name, X.data, home)  # on this device
    return X


def copied(net: Network, layers: Params, dtype: DType) -> Params:
    """Copy layers of the shapes of a network; the copies carry the activation of its layers."""
    if type(layers[0].weight) is np.ndarray:
        return parts_of(np.concatenate([array.ravel() for layer in layers for array in layer], dtype=dtype), net.layers)
    asarray, options = net.xp.asarray, {"dtype": dtype, "device": net.home.device, "copy": True}
    return with_types_of([Layer(*(asarray(array, **options) for array in layer)) for layer in layers], net.layers)
