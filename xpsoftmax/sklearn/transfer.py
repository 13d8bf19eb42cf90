"""Classifiers made of weights from elsewhere, and copied to other libraries and devices."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.home import library
from xpsoftmax._arguments.host import to_host, to_library
from xpsoftmax._network.layers import PairsOfArrays, Params, recorded_activation
from xpsoftmax._network.network import as_network, copied
from xpsoftmax._typing import Device, dtype_name
from xpsoftmax.sklearn.fitted import Record, params_of, set_fitted, set_fitted_classes
from xpsoftmax.sklearn.labels import are_sorted, shortened
from xpsoftmax.sklearn.parameters import check_dtype, check_parameters, check_sizes, float64_hint
from xpsoftmax.sklearn.targets import as_classes

ONE_COLUMN = (
    "params must have a column for each class in the last layer, got one column and {}. scikit-learn has one "
    "logistic output w, b for two classes: pass the columns np.hstack([-w / 2, w / 2]) and np.hstack([-b / 2, b / 2]). "
    "For a network of one class pass classes=[label]."
)


def model_of(kind: Any, params: PairsOfArrays, classes: Any, parameters: dict[str, Any]) -> Any:
    """Return a fitted classifier of this class, made of a network and the labels of its outputs."""
    net = as_network(params, parameters.get("activation"))
    if net.dtype != net.working:
        raise TypeError(f"params must be in float32 or float64, got {net.dtype}. Cast them.")
    carried = recorded_activation(net.layers)
    if carried is not None:
        parameters["activation"] = carried
    model = kind(**{"hidden_layer_sizes": tuple(net.hidden), **parameters})
    outputs = net.layers[-1].bias.shape[0]
    labels = np.arange(outputs) if classes is None else as_classes(classes)
    if outputs == 1 and (classes is None or len(labels) == 2):
        raise ValueError(ONE_COLUMN.format("no classes" if classes is None else f"the classes {shortened(labels)}"))
    if labels.shape != (outputs,) or not are_sorted(labels):
        raise ValueError(f"classes must be {outputs} sorted and different labels, got {classes!r:.60}.")
    layers = copied(net, net.layers, net.dtype)
    set_fitted_classes(model, layers, labels)
    model._activation = model.activation
    set_fitted(model, layers, Record())
    check_sizes(model, [net.layers[0].weight.shape[0], *check_parameters(model), outputs])
    check_dtype(model, net.layers[0].weight)
    model.n_features_in_ = net.layers[0].weight.shape[0]
    return model


def moved(model: Any, xp: ModuleType, device: Device | None) -> Any:
    """Return a copy of a fitted classifier whose arrays are of another library, or on another device."""
    namespace, dtype = check.as_namespace("xp", xp), dtype_name(model.coefs_[0].dtype)
    if dtype not in namespace.__array_namespace_info__().dtypes(kind="real floating"):
        raise TypeError(
            f"xp must have the dtype of the model, {dtype}, got {library(namespace)}, which lacks it"
            f"{float64_hint(namespace)}."
        )
    check.as_placement(namespace, getattr(namespace, dtype), device)

    def moved_layers(layers: Params) -> Params:
        # Copied on the host first: libraries share memory there.
        return tuple(
            type(layer)(*(to_library(to_host("params", a).copy(), namespace, device) for a in layer))
            for layer in layers
        )

    record = Record.of(model)
    if record.validation_scores_ is not None:
        record._best = moved_layers(record._best)
    if record._optimizer is not None:
        record._state = (record._state[0], *map(moved_layers, record._state[1:]))
    moved_model = copy.copy(model)
    set_fitted(moved_model, moved_layers(params_of(model)), record)
    return moved_model
