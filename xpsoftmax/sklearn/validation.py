"""Validation data that the caller gives to `fit` with `X_val`, `y_val` and `sample_weight_val`."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import is_dask_array
from sklearn.utils import check_consistent_length

from xpsoftmax._arguments.host import to_host
from xpsoftmax._arguments.naming import named
from xpsoftmax._arguments.problem import LossOptions
from xpsoftmax._network.network import Network
from xpsoftmax._train.data import as_data
from xpsoftmax._typing import Array
from xpsoftmax.sklearn.inputs import block_of, checked_inputs, is_lazy, labels_in_memory, stand_in_for
from xpsoftmax.sklearn.preparing import Rows
from xpsoftmax.sklearn.targets import as_sample_weight, as_targets

NAMES = {"X": "X_val", "y": "y_val", "sample_weight": "sample_weight_val"}


def checked_validation(
    model: Any, net: Network, X: Array, validation: tuple[Any, Any, Any], classes: np.ndarray
) -> Rows | None:
    """Check X_val, y_val and sample_weight_val; their inputs must be like `X`, their labels of the classes of `y`."""
    X_val, y_val, sample_weight_val = validation
    if X_val is None and y_val is None:
        if sample_weight_val is not None:
            raise ValueError("sample_weight_val must be None without X_val and y_val, got weights.")
        return None
    for missing, other in (("X_val", "y_val"), ("y_val", "X_val")):
        if {"X_val": X_val, "y_val": y_val}[missing] is None:
            raise ValueError(f"{missing} must be given with {other}, got None: {other} is provided, but {missing} not.")
    if is_lazy(X_val) and not is_dask_array(X):
        raise TypeError("X_val must be in memory if X is, got a dask collection. Call its compute().")
    with named(NAMES):
        X_val = checked_inputs(model, X_val, "fit", reset=False, like=block_of(X))
        X_val, y_val, sample_weight_val = labels_in_memory(X_val, y_val, sample_weight_val)
        values = as_targets(y_val, block_of(X_val), classes, complete=False).values
        check_consistent_length(X_val, values)
        weight = as_sample_weight(sample_weight_val, stand_in_for(X_val))
    if weight is not None and not bool((weight != 0.0).any()):
        raise ValueError("sample_weight_val must let a row count, got weights that are all zero.")
    # Codes of the rows of dask arrays stay on the client: they are cut into the blocks of the inputs later.
    return X_val, values if is_dask_array(X_val) else net.xp.asarray(values, device=net.home.device), weight


def validation_data(model: Any, net: Network, rows: Rows, class_weight: Array | None, steps: Any) -> Any:
    """Return the rows as the steps evaluate them: with the class weights and the smoothing of the model."""
    X, y, weight = rows
    with named(NAMES):
        if is_dask_array(X):
            from xpsoftmax.sklearn import on_dask

            counts = None if class_weight is None else to_host("class_weight", class_weight)[y] != 0.0
            data: Any = on_dask.as_validation(steps, X, y, weight)
        else:
            data = as_data(net, X, y, LossOptions(class_weight, weight, None, model.label_smoothing), model.max_memory)
            counts = data.counts
    if counts is not None and not (counts if weight is None else counts & to_host("weight", weight != 0.0)).any():
        raise ValueError(f"class_weight must let a row of X_val count, got {model.class_weight!r:.60}.")
    return data
