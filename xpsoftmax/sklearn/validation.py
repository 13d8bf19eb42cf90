"""Validation data of the caller's own, beside the data to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn.utils import check_consistent_length

from xpsoftmax._arguments.problem import LossOptions
from xpsoftmax._network.network import Network
from xpsoftmax._train.data import Data, as_data
from xpsoftmax._typing import Array
from xpsoftmax.sklearn.inputs import block_of, checked_inputs, is_lazy
from xpsoftmax.sklearn.preparing import Rows
from xpsoftmax.sklearn.targets import as_sample_weight, as_targets


def checked_validation(model: Any, X: Array, given: tuple[Any, Any, Any], classes: np.ndarray) -> Rows | None:
    """Check X_val, y_val and sample_weight_val; their inputs must be like `X`, their labels of the classes of `y`."""
    X_val, y_val, sample_weight_val = given
    if X_val is None and y_val is None:
        if sample_weight_val is not None:
            raise ValueError("sample_weight_val must be None without X_val and y_val, got weights.")
        return None
    for missing, there in (("X_val", "y_val"), ("y_val", "X_val")):
        if {"X_val": X_val, "y_val": y_val}[missing] is None:
            raise ValueError(f"{missing} must be given with {there}, got None: {there} is provided, but {missing} not.")
    if any(is_lazy(array) for array in (X, *given)):
        raise TypeError("X_val must be None where X is of dask, and no dask array itself. Compute both.")
    with _about_validation():
        X_val = checked_inputs(model, X_val, "fit", reset=False, like=block_of(X))
        targets = as_targets(y_val, block_of(X_val), classes, complete=False)
        check_consistent_length(X_val, targets.values)
        weight = as_sample_weight(sample_weight_val, block_of(X_val))
    if weight is not None and not bool((weight != 0.0).any()):
        raise ValueError("sample_weight_val must let a row count, got weights that are all zero.")
    return X_val, targets.values, weight


def validation_data(model: Any, net: Network, rows: Rows, class_weight: Array | None) -> Data:
    """Return the rows as the loop evaluates them: with the class weights and the smoothing of the model."""
    X, y, weight = rows
    options = LossOptions(class_weight, weight, None, model.label_smoothing)
    with _about_validation():
        return as_data(net, "X_val", X, y, options, model.max_memory)


@contextmanager
def _about_validation() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note("It is about the validation data, X_val, y_val and sample_weight_val.")
        raise
