"""Conversion from and to fitted models of scikit-learn.

scikit-learn gives two classes one logistic output ``z``, here they have two softmax columns: ``z`` is the second logit
minus the first.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.validation import check_is_fitted

from xpsoftmax._arguments.host import to_host
from xpsoftmax._network.layers import Layer, Params
from xpsoftmax.sklearn.fitted import params_of
from xpsoftmax.sklearn.predicting import fitted_network
from xpsoftmax.sklearn.transfer import model_of

COUNTED = ("n_iter_", "t_", "loss_", "best_loss_", "best_validation_score_", "_no_improvement_count")
SKLEARN_ACTIVATIONS = ("identity", "logistic", "tanh", "relu")
LISTED = ("loss_curve_", "validation_scores_")


# --- from scikit-learn ------------------------------------------------------------------------------------------------


def from_sklearn(kind: Any, model: Any) -> Any:
    """Return a classifier of this class that takes over a fitted model of scikit-learn."""
    params, parameters, found = _parts_of(model)
    fitted = model_of(kind, params, model.classes_, parameters)
    for name, value in found.items():
        setattr(fitted, name, value)
    if fitted.validation_scores_ is not None:
        fitted._best = params_of(fitted)
    if hasattr(model, "feature_names_in_"):
        fitted.feature_names_in_ = model.feature_names_in_.copy()
    return fitted


def _parts_of(model: Any) -> tuple[Params, dict[str, Any], dict[str, Any]]:
    """Return the layers of a fitted model, the parameters for a classifier like it, and its counters and scores."""
    if not isinstance(model, (MLPClassifier, LogisticRegression)):
        raise TypeError(
            f"model must be a fitted MLPClassifier or LogisticRegression of scikit-learn, got {model!r:.60}."
        )
    check_is_fitted(model)
    if isinstance(model, MLPClassifier):
        return _parts_of_network(model)
    return _parts_of_regression(model)


def _parts_of_network(model: MLPClassifier) -> tuple[Params, dict[str, Any], dict[str, Any]]:
    classes, outputs = len(model.classes_), model.coefs_[-1].shape[1]
    if model.out_activation_ == "logistic" and not classes == 2 > outputs:
        problem = f"{outputs} independent labels" if outputs > 1 else "one class"
        raise ValueError(f"model must tell two or more classes apart, got one of {problem}.")
    layers = [Layer(*layer) for layer in zip(model.coefs_, model.intercepts_, strict=True)]
    if outputs == 1:
        layers[-1] = _two_columns(layers[-1])
    own = {name: value for name, value in model.get_params().items() if name != "loss"}
    found = {name: getattr(model, name) for name in COUNTED if hasattr(model, name)}
    found |= {name: _listed(getattr(model, name)) for name in LISTED if hasattr(model, name)}
    return tuple(layers), own, found


def _parts_of_regression(model: LogisticRegression) -> tuple[Params, dict[str, Any], dict[str, Any]]:
    weight, bias = (to_host("model", array) for array in (model.coef_, model.intercept_))
    layer = Layer(np.ascontiguousarray(weight.T), bias)
    way, solver = getattr(model, "multi_class", "auto"), model.solver  # `multi_class` is gone from 1.8 on
    if weight.shape[0] > 1 and (way == "ovr" or (way == "auto" and solver == "liblinear")):
        raise ValueError(
            "model must have softmax probabilities, got a LogisticRegression of one classifier for each class "
            f"(multi_class={way!r}, solver={solver!r})."
        )
    if weight.shape[0] == 1:
        layer = _two_columns(layer)
        if way == "multinomial":  # the softmax of (-z, z)
            layer = Layer(2.0 * layer.weight, 2.0 * layer.bias)
    own = {
        "hidden_layer_sizes": (),
        "solver": "lbfgs",
        "alpha": _alpha(model, weight.shape[0]),
        "max_iter": model.max_iter,
        "tol": model.tol,
        "random_state": model.random_state,
        "warm_start": getattr(model, "warm_start", False),
        "class_weight": model.class_weight,
    }
    return (layer,), own, {"n_iter_": int(np.max(model.n_iter_))}


def _alpha(model: LogisticRegression, columns: int) -> float:
    """Return the `alpha` that has the effect of the L2 penalty of a regression."""
    share = getattr(model, "l1_ratio", None) or 0.0
    ratio = {"l2": 0.0, "l1": 1.0, None: 1.0}.get(getattr(model, "penalty", "deprecated"), share)
    strength = 1.0 / float(np.mean(model.C_ if hasattr(model, "C_") else model.C))
    return (1.0 - ratio) * strength * (2.0 if columns == 1 else 1.0)


def _two_columns(layer: Layer) -> Layer:
    """Return the two columns of a single logistic output."""
    return type(layer)(np.hstack([-layer.weight / 2, layer.weight / 2]), np.hstack([-layer.bias / 2, layer.bias / 2]))


def _listed(values: Any) -> list[float] | None:
    return None if values is None else list(values)


# --- to scikit-learn --------------------------------------------------------------------------------------------------


def _network_of(model: Any, layers: Params) -> MLPClassifier:
    """Return scikit-learn's classifier with these layers, the parameters it shares with `model`, and its scores."""
    if model.activation not in SKLEARN_ACTIVATIONS:
        raise ValueError(
            f"activation must be one that scikit-learn has, {SKLEARN_ACTIVATIONS}, got {model.activation!r}."
        )
    own = model.get_params()
    fitted = MLPClassifier(**{name: own[name] for name in MLPClassifier().get_params() if name in own})
    fitted.n_layers_, fitted.n_outputs_ = len(layers) + 1, layers[-1].bias.shape[0]
    fitted.out_activation_ = "logistic" if fitted.n_outputs_ == 1 else "softmax"
    fitted.coefs_, fitted.intercepts_ = [layer.weight for layer in layers], [layer.bias for layer in layers]
    # What scikit-learn's `predict`, and a warm start with early stopping, look at beside its public attributes.
    fitted._label_binarizer = LabelBinarizer().fit(model.classes_)
    fitted._best_coefs = [weight.copy() for weight in fitted.coefs_]
    fitted._best_intercepts = [bias.copy() for bias in fitted.intercepts_]
    for name in COUNTED:
        setattr(fitted, name, getattr(model, name))
    for name in LISTED:
        setattr(fitted, name, _listed(getattr(model, name)))
    return fitted


def _regression_of(model: Any, layer: Layer) -> LogisticRegression:
    """Return scikit-learn's logistic regression with this layer and the penalty of `model`."""
    columns = layer.bias.shape[0]
    strength = (2.0 if columns == 1 else 1.0) / model.alpha if model.alpha > 0.0 else math.inf
    names = ("max_iter", "tol", "random_state", "warm_start", "class_weight")
    fitted = LogisticRegression(C=strength, **{name: getattr(model, name) for name in names})
    fitted.coef_, fitted.intercept_ = np.ascontiguousarray(layer.weight.T), layer.bias
    fitted.n_iter_ = np.array([model.n_iter_], np.int32)
    return fitted


def to_sklearn(model: Any) -> MLPClassifier | LogisticRegression:
    """Return a fitted model of scikit-learn that predicts as `model` does."""
    params = fitted_network(model).layers
    if len(model.classes_) == 1:
        raise ValueError(f"classes_ must be two or more for a model of scikit-learn, got {model.classes_}.")
    layers = [Layer(*(to_host("params", array).copy() for array in layer)) for layer in params]
    if len(model.classes_) == 2:
        layers[-1] = _one_column(layers[-1])
    fitted: Any = _regression_of(model, layers[0]) if len(layers) == 1 else _network_of(model, tuple(layers))
    fitted.classes_, fitted.n_features_in_ = model.classes_.copy(), model.n_features_in_
    if hasattr(model, "feature_names_in_"):
        fitted.feature_names_in_ = model.feature_names_in_.copy()
    return fitted


def _one_column(layer: Layer) -> Layer:
    """Return the logistic output that two columns amount to."""
    return Layer(layer.weight[:, 1:] - layer.weight[:, :1], layer.bias[1:] - layer.bias[:1])
