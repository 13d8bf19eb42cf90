"""The checks of the classifier's parameters; the dtype and the sizes of layers that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_jax_namespace
from sklearn.utils import check_random_state

from xpsoftmax._arguments.home import library
from xpsoftmax._arguments.options import as_integer, as_number, check_choice, check_flag
from xpsoftmax._network.layers import check_activation
from xpsoftmax._typing import SIXTEEN_BIT, Array, Namespace, dtype_name
from xpsoftmax.sklearn.labels import is_elsewhere

NUMBERS: dict[str, dict[str, float]] = {
    "alpha": {},
    "learning_rate_init": {},
    "power_t": {},
    "tol": {},
    "momentum": {"high": 1.0},
    "validation_fraction": {"below": 1.0},
    "beta_1": {"below": 1.0},
    "beta_2": {"below": 1.0},
    "epsilon": {},
    "label_smoothing": {"high": 1.0},
}
"""Parameters that are numbers not below 0, with their upper limits."""
CHOICES = {
    "solver": ("adam", "sgd", "lbfgs"),
    "learning_rate": ("constant", "invscaling", "adaptive"),
}
FLAGS = ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping")


def check_parameters(model: Any) -> list[int]:
    """Check all parameters of a classifier; return the sizes of the hidden layers."""
    check_activation(model.activation)
    for name, choices in CHOICES.items():
        check_choice(name, getattr(model, name), choices)
    for name, limits in NUMBERS.items():
        as_number(name, getattr(model, name), **limits)
    for name in ("learning_rate_init", "epsilon"):
        if getattr(model, name) == 0.0:
            raise ValueError(f"{name} must be positive, got {getattr(model, name)}.")
    for name in FLAGS:
        check_flag(name, getattr(model, name))
    if not isinstance(model.verbose, (bool, np.bool_)):
        as_integer("verbose", model.verbose, low=0)
    for name in ("max_iter", "max_fun"):
        as_integer(name, getattr(model, name), low=1)
    if model.n_iter_no_change != math.inf:
        as_integer("n_iter_no_change", model.n_iter_no_change, low=1)
    if not (isinstance(model.batch_size, str) and model.batch_size == "auto"):
        as_integer("batch_size", model.batch_size, low=1)
    return _hidden_sizes(model.hidden_layer_sizes)


def _hidden_sizes(sizes: Any) -> list[int]:
    """Return the sizes of the hidden layers as a list; the parameter is one integer, or a sequence of them."""
    try:
        dimensions = np.ndim(sizes)
    except ValueError:  # lists of different lengths
        dimensions = 2
    if dimensions == 1:
        return [as_integer("hidden_layer_sizes", size, low=1) for size in sizes]
    try:
        return [as_integer("hidden_layer_sizes", sizes, low=1)]
    except TypeError:
        raise TypeError(
            f"hidden_layer_sizes must be an integer or a sequence of integers, got {sizes!r:.60}. "
            "() is a network without hidden layers."
        ) from None


def has_minibatches(model: Any) -> bool:
    """Return True if the solver learns from minibatches, as `partial_fit` needs; raise AttributeError if not."""
    if model.solver == "lbfgs":
        raise AttributeError('partial_fit needs the solver "adam" or "sgd": lbfgs looks at all data at once.')
    return True


def as_random_state(seed: Any) -> np.random.RandomState:
    """Return the `RandomState` of the parameter `random_state`."""
    try:
        return check_random_state(seed)  # type: ignore[no-any-return]
    except ValueError:
        raise ValueError(f"random_state must be None, an integer from 0 or a RandomState, got {seed!r:.60}.") from None


def working_dtype(dtype: Any, xp: Namespace, X: Any) -> Any:
    """Return the dtype to compute in, given the parameter `dtype` and the inputs.

    For inputs on the host it may be a list: scikit-learn's checks take the first that fits.
    """
    name = dtype
    if name is None:
        kind = dtype_name(X.dtype) if hasattr(X, "dtype") else ""
        if not is_elsewhere(X):
            return np.float32 if kind in SIXTEEN_BIT else [np.float64, np.float32]
        wide = "float64" in xp.__array_namespace_info__().dtypes(kind="real floating")
        name = "float32" if kind in ("float32", *SIXTEEN_BIT) or not wide else "float64"
    else:
        with suppress(TypeError):  # a dtype of another library
            name = np.dtype(name)
        with suppress(TypeError):  # no dtype of any library: it has no hash
            name = dtype_name(name)
    if name not in ("float32", "float64"):
        raise ValueError(f'dtype must be "float32" or "float64", got {dtype!r}.')
    if name not in xp.__array_namespace_info__().dtypes(kind="real floating"):
        raise ValueError(f"dtype must be one that {library(xp)} has{float64_hint(xp)}, got {dtype!r}.")
    return getattr(xp, name)


def float64_hint(xp: Namespace) -> str:
    """Return the hint about float64 for a message that names a library."""
    return " (float64 only if jax_enable_x64 is set)" if is_jax_namespace(xp) else ""


def check_sizes(model: Any, sizes: Sequence[int]) -> None:
    """Raise ValueError unless a fitted model has layers of these sizes, the inputs' and the classes' included."""
    own = [model.coefs_[0].shape[0], *(bias.shape[0] for bias in model.intercepts_)]
    if own != list(sizes):
        raise ValueError(
            f"hidden_layer_sizes must make the layers of the fitted model, {own}, got {list(sizes)}. "
            "fit with warm_start=False starts from new weights."
        )


def check_dtype(model: Any, X: Array) -> None:
    """Raise ValueError if the parameter `dtype` contradicts the weights of a fitted model."""
    own = model.coefs_[0].dtype
    if model.dtype is not None and own != working_dtype(model.dtype, array_namespace(X), X):
        raise ValueError(
            f"dtype must be None or that of the fitted weights, {dtype_name(own)}, got {model.dtype!r}. "
            "fit with warm_start=False starts from new weights."
        )
