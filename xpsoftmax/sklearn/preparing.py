"""Training rows and rows held out of a classifier, and the steps over the training rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np
from array_api_compat import array_namespace, is_dask_array
from sklearn.model_selection import train_test_split

from xpsoftmax._arguments.home import library
from xpsoftmax._arguments.host import to_host
from xpsoftmax._arguments.problem import LossOptions
from xpsoftmax._network.network import Network
from xpsoftmax._train.data import as_data
from xpsoftmax._train.steps import RowSteps
from xpsoftmax._typing import Array
from xpsoftmax.kernels.sparse import is_sparse
from xpsoftmax.sklearn.inputs import block_of
from xpsoftmax.sklearn.targets import Targets, as_class_weight

Rows: TypeAlias = tuple[Array, Array, Array | None]
"""Inputs, targets where the inputs are, and weights."""


def prepare_steps(
    model: Any,
    net: Network,
    X: Array,
    targets: Targets,
    weight: Array | None,
    rng: Any,
    validation: Rows | None = None,
) -> tuple[Any, Rows | None]:
    """Return the steps over the training rows, and the rows held out if the model stops early.

    Validation data, if given, take the place of rows held out.
    """
    if model.solver == "lbfgs" and type(block_of(X)) is not np.ndarray:
        raise ValueError(
            f'solver must be "adam" or "sgd" for {library(net.xp)} arrays, got "lbfgs": SciPy needs NumPy.'
        )
    class_weight = as_class_weight(model.class_weight, targets)
    parts = None
    if _holds_out(model) and validation is None:
        parts = split_rows(to_host("y", targets.values), model.validation_fraction, rng)
    prepare = _steps_over_blocks if is_dask_array(X) else _steps_in_memory
    steps, held_out = prepare(model, net, (X, targets.values, weight), class_weight, parts)
    return steps, validation if _holds_out(model) and validation is not None else held_out


def class_weights(model: Any, net: Network, targets: Targets) -> Array | None:
    """Return the weights of the classes (C,) where the network is; None if all weigh the same."""
    weights = as_class_weight(model.class_weight, targets)
    return None if weights is None else net.xp.asarray(weights, dtype=net.dtype, device=net.home.device)


def _holds_out(model: Any) -> bool:
    return bool(model.early_stopping and model.solver != "lbfgs")


def _steps_in_memory(
    model: Any, net: Network, rows: Rows, class_weight: np.ndarray | None, parts: Sequence[np.ndarray] | None
) -> tuple[Any, Rows | None]:
    """Return the steps over rows in memory, and rows held out."""
    xp, options = net.xp, {"dtype": net.dtype, "device": net.home.device}
    (X, y, weight), held_out = rows, None
    if y.ndim == 1:
        y = xp.asarray(y, device=net.home.device)
    if parts is not None:
        (X, y, weight), held_out = (_select(net, (X, y, weight), part) for part in parts)
    class_weight = None if class_weight is None else xp.asarray(class_weight, **options)
    data = as_data(net, X, y, LossOptions(class_weight, weight, None, model.label_smoothing), model.max_memory)
    if data.counts is not None and not data.counts.any():
        _refuse_weights(model, weight, "to train on")
    if held_out is not None and held_out[2] is not None and not bool(xp.any(held_out[2] != 0.0)):
        _refuse_weights(model, held_out[2], "held out")
    return RowSteps(net, data, float(model.alpha), "mean", model.max_memory, averaged=True), held_out


def _steps_over_blocks(
    model: Any, net: Network, rows: Rows, class_weight: np.ndarray | None, parts: Sequence[np.ndarray] | None
) -> tuple[Any, Rows | None]:
    """Return the steps over the blocks of dask arrays, and rows held out; rows keep their blocks and their order."""
    from xpsoftmax.sklearn import on_dask

    (X, y, weight), held_out = rows, None
    if parts is not None:
        kept, held = (np.sort(part) for part in parts)
        held_out = X[held], y[held], None if weight is None else weight[held]
        X, y, weight = X[kept], y[kept], None if weight is None else weight[kept]
        if held_out[2] is not None and not held_out[2].any():
            _refuse_weights(model, held_out[2], "held out")
    counts = np.ones(len(y)) if weight is None else weight
    if not (counts if class_weight is None else counts * class_weight[y]).any():
        _refuse_weights(model, weight, "to train on")
    if class_weight is not None:
        class_weight = net.xp.asarray(class_weight, dtype=net.dtype, device=net.home.device)
    steps = on_dask.as_steps(
        net, X, y, weight, class_weight, model.label_smoothing, float(model.alpha), model.max_memory,
        all_blocks=model.solver == "lbfgs",
    )  # fmt: skip
    return steps, held_out


def _select(net: Network, arrays: Rows, rows: np.ndarray) -> Rows:
    rows = net.xp.asarray(rows, device=net.home.device)
    X, y, weight = (None if a is None else a[rows] if is_sparse(a) else net.xp.take(a, rows, axis=0) for a in arrays)
    return X, y, weight


def _refuse_weights(model: Any, weight: Array | None, which: str) -> NoReturn:
    """Raise ValueError that names the weights because of which no row counts and, with early stopping, the rows."""
    if weight is None or bool(array_namespace(weight).any(weight != 0.0)):
        name, got = "class_weight", f"{model.class_weight!r:.60}: no row is left that weighs anything"
    else:
        name, got = "sample_weight", "weights that are all zero"
    if _holds_out(model):
        raise ValueError(
            f"{name} must let a row count of those {which}, got {got}. Another random_state holds out others."
        )
    raise ValueError(f"{name} must let a row count, got {got}.")


def _rare(y: np.ndarray) -> str:
    """Return what scikit-learn says of two classes of which one has a single row; it calls them False and True."""
    counts = np.bincount(y) if y.ndim == 1 else np.zeros(0, int)
    if len(counts) != 2 or counts.min() != 1:
        return ""
    rare = [str(bool(code)) for code in np.flatnonzero(counts == 1)]
    return (
        " The least populated classes in y have only 1 member, and a single row cannot be held out and also "
        f"trained on. Classes with too few members are: {rare}, if the first class is False and the second one True."
    )


def split_rows(y: np.ndarray, validation_fraction: float, rng: Any) -> Sequence[np.ndarray]:
    """Return training rows and rows to hold out, stratified by class if every class has enough rows."""
    held, stratify = math.ceil(validation_fraction * len(y)), None
    if not 2 <= held < len(y):
        raise ValueError(
            f"validation_fraction must hold out at least 2 rows and leave one, got {validation_fraction} of "
            f"{len(y)} rows, which is {held}. The validation set is too {'small' if held < 2 else 'large'}.{_rare(y)}"
        )
    if y.ndim == 1:
        counts = np.bincount(y)
        if counts[counts > 0].min() > 1 and min(held, len(y) - held) >= np.count_nonzero(counts):
            stratify = y
    rows = np.arange(len(y))
    return train_test_split(rows, test_size=held, stratify=stratify, random_state=rng)  # type: ignore[no-any-return]
