"""`fit` and `partial_fit`: check everything, run a solver, then set the fitted attributes of the model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_dask_array
from sklearn.utils import check_consistent_length

from xpsoftmax._arguments.home import quiet
from xpsoftmax._arguments.views import enter
from xpsoftmax._network.layers import Layer, Params, with_activation
from xpsoftmax._network.network import as_network
from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.sklearn.checks import is_overflow
from xpsoftmax.sklearn.fitted import Record, all_or_nothing, params_of, set_fitted, set_fitted_classes
from xpsoftmax.sklearn.inputs import block_of, checked_inputs, current_device, labels_in_memory, stand_in_for
from xpsoftmax.sklearn.labels import are_sorted, encode, shortened
from xpsoftmax.sklearn.lbfgs import minimise
from xpsoftmax.sklearn.parameters import as_random_state, check_dtype, check_parameters, check_sizes
from xpsoftmax.sklearn.preparing import class_weights, prepare_steps
from xpsoftmax.sklearn.stepping import fit_epochs
from xpsoftmax.sklearn.targets import Targets, as_classes, as_sample_weight, as_targets
from xpsoftmax.sklearn.validation import checked_validation, validation_data

HINT = " Pass weights of the rows by name: sample_weight=..."


def fit(
    model: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    classes: Any = None,
    *,
    validation: tuple[Any, Any, Any] = (None, None, None),
    incremental: bool = False,
) -> None:
    """Fit a classifier, for one epoch if `incremental`. An error at any time leaves the classifier unchanged.

    `validation` are X_val, y_val and sample_weight_val.
    """
    with all_or_nothing(model), current_device(X):
        hidden = check_parameters(model)
        first = not hasattr(model, "coefs_") or not (model.warm_start or incremental)
        if y is None:
            raise ValueError(f"{type(model).__name__} requires y to be passed, but the target y is None.")
        X = checked_inputs(model, X, "partial_fit" if incremental else "fit", reset=first)
        X, y, sample_weight = labels_in_memory(X, y, sample_weight)
        known = None if first else model.classes_
        targets = _checked_targets(X, y, classes, known, incremental=incremental)
        weight = as_sample_weight(sample_weight, stand_in_for(X))
        sizes = (X.shape[1], *hidden, len(targets.classes))
        if not first:
            check_sizes(model, sizes)
            check_dtype(model, block_of(X))
        rng = as_random_state(model.random_state)
        layers = initial_layers(rng, sizes, model.activation, block_of(X)) if first else params_of(model)
        net = as_network(with_activation(layers, model.activation), None)
        record = Record() if first else Record.of(model)
        rows = checked_validation(model, net, X, validation, targets.classes)
        probabilities = targets.values if targets.values.ndim == 2 else None
        learnt = net.layers, record._state, record._best
        impl = "generic" if model.solver == "lbfgs" else "auto"  # which refuses tensors
        entry = enter(learnt, X, probabilities, weight, rows, impl=impl)
        (layers, record._state, record._best), X, probabilities, weight, rows = entry.arguments
        if probabilities is not None:
            targets = targets._replace(values=probabilities)
        net = as_network(layers, None)
        steps, held_out = prepare_steps(model, net, X, targets, weight, rng, rows)
        watched = None if rows is None else validation_data(model, net, rows, class_weights(model, net, targets), steps)
        record.expect_validation(given=watched is not None)
        with quiet(net.xp, net.home.device), _naming_bad_inputs(X, steps):
            if model.solver == "lbfgs":
                layers = minimise(model, steps, record, watched)
            else:
                layers = fit_epochs(model, steps, held_out, rng, record, watched, incremental=incremental)
        layers, record._state, record._best = entry.back((layers, record._state, record._best))
        if first:
            set_fitted_classes(model, layers, targets.classes)
        model._activation = model.activation  # a parameter that was changed counts from this call on
        set_fitted(model, layers, record)


def _checked_targets(X: Array, y: Any, classes: Any, known: np.ndarray | None, *, incremental: bool) -> Targets:
    """Check labels or probabilities; `known` are the classes of the model, None in a first fit."""
    given = None if classes is None else as_classes(classes, HINT)
    known = _known_classes(given, known)
    targets = as_targets(y, block_of(X), known, complete=not incremental, hint=HINT if classes is not None else "")
    check_consistent_length(X, targets.values)
    if targets.values.ndim == 2 and given is not None and not are_sorted(given):
        raise ValueError(f"classes must be sorted, as the columns of probabilities are, got {classes!r:.60}.")
    if known is None and incremental and targets.values.ndim == 1:
        raise ValueError("classes must be passed on the first call to partial_fit, got None.")
    return targets


def _known_classes(given: np.ndarray | None, before: np.ndarray | None) -> np.ndarray | None:
    """Return the classes that labels are looked up in; None if they are those that the labels have."""
    if given is None:
        return before
    classes = np.sort(given)
    if before is None:
        return classes
    if classes.shape != before.shape or not np.array_equal(encode(classes, before), np.arange(before.size)):
        raise ValueError(
            f"classes must be the same as on the first call to partial_fit, {before}, got {shortened(classes)}.{HINT}"
        )
    return before


def initial_layers(rng: Any, sizes: Sequence[int], activation: str, X: Array) -> Params:
    """Draw weights and biases uniformly, as scikit-learn does: the same seed gives the same numbers."""
    xp, options = array_namespace(X), {"dtype": X.dtype, "device": device(X)}
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        bound = math.sqrt((2.0 if activation == "logistic" else 6.0) / (fan_in + fan_out))
        arrays = (rng.uniform(-bound, bound, shape) for shape in ((fan_in, fan_out), (fan_out,)))
        # Rounded on the host: the threads of other libraries wait for each other.
        layers.append(Layer(*(xp.asarray(array.astype(dtype_name(X.dtype)), **options) for array in arrays)))
    return with_activation(layers, activation)


@contextmanager
def _naming_bad_inputs(X: Array, steps: Any) -> Iterator[None]:
    """If training on dask arrays fails with numbers that are not finite, name the first input that is not finite.

    Inputs in memory were checked before.
    """
    try:
        yield
    except ValueError as error:
        if is_dask_array(X) and is_overflow(error):
            from xpsoftmax.sklearn import on_dask

            on_dask.check_inputs(steps.scheduler, X)
        raise
