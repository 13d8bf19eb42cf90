"""The targets and weights of the classifier, checked: labels become codes from 0 on, probabilities stay as they are.

Labels are encoded on the host, since only NumPy has strings. Codes, probabilities and weights go to the device of `X`.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_namespace
from sklearn.exceptions import DataConversionWarning
from sklearn.utils import check_array, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.caller import warn
from xpsoftmax._arguments.host import to_host
from xpsoftmax._arguments.options import as_number, check_choice
from xpsoftmax._arguments.values import first_marked
from xpsoftmax._typing import Array, Device, Namespace, dtype_name
from xpsoftmax.sklearn.labels import as_labels, as_raw_array, encode, is_elsewhere, missing_in, refuse_masked, shortened

SUM_TO_ONE = 1e-3
"""How far from 1 the sum of the probabilities of a row may be: sums of long float32 rows are not exact."""


class Targets(NamedTuple):
    """Classes, and the target of each row."""

    classes: np.ndarray  # (C,), sorted
    values: Array  # codes (N,) on the host, or probabilities (N, C) on the device of X


def as_targets(y: Any, X: Array, known: np.ndarray | None, *, complete: bool, hint: str = "") -> Targets:
    """Check `y`; encode labels as indices of the known classes, or of the classes that `y` has if `known` is None.

    With `complete`, `y` must have all known classes. The hint ends the error of a label that is not a known class.
    """
    y = as_raw_array("y", y)
    if y.ndim not in (1, 2) or 0 in y.shape:
        raise ValueError(f"y must have shape (N,) or (N, C), both at least 1, got {tuple(y.shape)}.")
    if is_probabilities(y):
        return as_probabilities(y, X, known)
    if y.ndim == 2:
        warn(
            "A column-vector y was passed when a 1d array was expected. Please change the shape of y to (n_samples, ), "
            "for example using ravel().",
            DataConversionWarning,
        )
    labels = as_labels("y", y)
    if known is None:
        classes, codes = np.unique(labels, return_inverse=True)
        check_classification_targets(codes)  # which warns of very many classes
        return Targets(classes, codes)
    codes = encode(labels, known)
    if complete and ((codes < 0).any() or np.unique(codes).size < known.size):
        raise ValueError(
            "y must have the classes of the earlier fit: warm_start can only be used where `y` has the "
            f"same classes as in the previous call to fit. Previously got {shortened(known)}, "
            f"`y` has {shortened(np.unique(labels))}."
        )
    if (codes < 0).any():
        raise ValueError(
            f"y must have no classes but those that are known, {shortened(known)}, "
            f"got also {shortened(np.unique(labels[codes < 0]))}.{hint}"
        )
    return Targets(known, codes)


def is_probabilities(y: Array) -> bool:
    """Whether an array has a column for each class."""
    return bool(y.ndim == 2 and y.shape[1] > 1)


def as_classes(classes: Any, hint: str = "") -> np.ndarray:
    """Check that labels of classes differ; return a copy on the host, in their order."""
    raw = as_raw_array("classes", classes)
    if raw.ndim != 1 or 0 in raw.shape:
        raise ValueError(f"classes must be labels (C,), got shape {tuple(raw.shape)}.{hint}")
    try:
        labels = as_labels("classes", raw, "place")
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error}{hint}") from None
    unique, counts = np.unique(labels, return_counts=True)
    if unique.size != labels.size:
        raise ValueError(f"classes must be different labels, got {unique[counts.argmax()]} {counts.max()} times.{hint}")
    return labels.copy()


def as_probabilities(y: Array, X: Array, known: np.ndarray | None) -> Targets:
    """Check a matrix of probabilities, a column for each class; return it on the device of X."""
    xp = array_namespace(y)
    if not xp.isdtype(y.dtype, "real floating"):
        raise ValueError(
            f"y must be labels (N,) or floating probabilities (N, C), got {y.dtype} of shape {tuple(y.shape)}. "
            "Several labels a row (multilabel, multioutput) are not supported."
        )
    classes = np.arange(y.shape[1]) if known is None else known
    if y.shape[1] != classes.shape[0]:
        raise ValueError(f"y must have a column for each of {classes.shape[0]} classes, got {y.shape[1]}.")
    y = follow("y", y, X)
    xp = array_namespace(y)
    missing = xp.any(xp.isnan(y), axis=1)
    if bool(xp.any(missing)):
        row = first_marked(xp, missing)
        raise ValueError(f"y must be probabilities without missing values, got NaN at row {row}.")
    sums = xp.sum(y, axis=1)
    bad = ~((xp.abs(sums - 1.0) <= SUM_TO_ONE) & xp.all(y >= 0.0, axis=1))
    if bool(xp.any(bad)):
        row = first_marked(xp, bad)
        raise ValueError(
            f"y must be probabilities, from 0 on, that add up to 1 in each row, got the sum {float(sums[row])} and the "
            f"least entry {float(xp.min(y[row, :]))} at row {row}."
        )
    return Targets(classes, y)


def follow(name: str, value: Any, X: Array) -> Array:
    """Return an array in the library, on the device and in the dtype of X; copy it through the host if need be."""
    xp, where = array_namespace(X), device(X)
    if is_elsewhere(value) and (array_namespace(value) is not xp or device(value) != where):
        value = to_host(name, value)
    if is_elsewhere(value):
        return xp.astype(value, X.dtype, copy=False)
    # Not bfloat16 on the host: libraries do not take arrays of it.
    return xp.asarray(np.asarray(value, dtype=dtype_name(X.dtype)), device=where)


def as_sample_weight(weight: Any, X: Array) -> Array | None:
    """Check weights of the rows, or one number for all."""
    if weight is None:
        return None
    rows = X.shape[0]
    refuse_masked("sample_weight", weight)
    if isinstance(weight, Real):
        weight = np.full(rows, as_number("sample_weight", weight))
    elif is_elsewhere(weight):
        xp, weight = check.as_array("sample_weight", weight)
        if xp.isdtype(weight.dtype, "complex floating"):
            raise TypeError(f"sample_weight must be real numbers, got {weight.dtype}.")
    else:
        weight = _weights_on_host(weight)
    if tuple(weight.shape) != (rows,):
        raise ValueError(
            f"sample_weight must have shape ({rows},), a number for each row of X, got {tuple(weight.shape)}."
        )
    weight = follow("sample_weight", weight, X)
    xp = array_namespace(weight)
    bad = ~(xp.isfinite(weight) & (weight >= 0.0))
    if bool(xp.any(bad)):
        row = first_marked(xp, bad)
        raise ValueError(f"sample_weight must be finite and not negative, got {float(weight[row])} at row {row}.")
    return weight


def _weights_on_host(weight: Any) -> np.ndarray:
    array = np.asarray(weight)
    if array.dtype.kind == "c":
        raise TypeError(f"sample_weight must be real numbers, got {array.dtype}.")
    if array.dtype.kind in "SU":
        raise TypeError(f"sample_weight must be numbers, got {array.ravel()[:1].tolist()[0]!r:.60}.")
    if array.ndim == 0:
        raise TypeError(f"sample_weight must be an array (N,), a number or None, got {weight!r:.60}.")
    missing = missing_in(array) if array.dtype.kind == "O" else np.zeros(0, bool)
    if missing.any():
        row = int(missing.argmax())
        raise ValueError(f"sample_weight must be finite and not negative, got {array.ravel()[row]} at row {row}.")
    return check_array(  # type: ignore[no-any-return]
        weight,
        input_name="sample_weight",
        ensure_2d=False,
        ensure_all_finite=False,
        dtype=[np.float64, np.float32],
        allow_nd=True,
        ensure_min_samples=0,
    )


def as_class_weight(weight: Any, targets: Targets) -> np.ndarray | None:
    """Return a weight for each class, from a dict of labels, or "balanced": inversely proportional to its frequency."""
    classes, values = targets
    if weight is None:
        return None
    if isinstance(weight, str):
        check_choice("class_weight", weight, ("balanced",))
        if values.ndim == 2:
            mass = to_host("y", array_namespace(values).sum(values, axis=0)).astype(np.float64)
            return np.where(mass > 0.0, mass.sum() / (len(classes) * np.maximum(mass, 1e-300)), 0.0)
        return np.asarray(compute_class_weight("balanced", classes=np.arange(len(classes)), y=values))
    if not isinstance(weight, dict):
        raise TypeError(f'class_weight must be None, a dict or "balanced", got {weight!r:.60}.')
    weights = np.ones(len(classes))
    if not weight:
        return weights
    codes = encode(as_labels("class_weight", np.fromiter(weight, object, len(weight)), "key"), classes)
    known = codes >= 0
    # As in scikit-learn, a dict with all labels and others is accepted: a part of the data may lack a label.
    if not known.all() and np.unique(codes[known]).size < len(classes):
        label = list(weight)[int((~known).argmax())]
        raise ValueError(f"class_weight must be of the labels of y, {shortened(classes)}, got one of {label!r}.")
    for code, (label, value) in zip(codes, weight.items(), strict=True):
        if code >= 0:
            weights[code] = as_number(f"class_weight[{label!r}]", value)
    return weights


def labels_of(classes: np.ndarray, codes: Array) -> Array:
    """Return the labels of codes, in the library of the codes if it has such labels, else on the host."""
    xp: Namespace = array_namespace(codes)
    labels = None if is_numpy_array(codes) else _labels_in(classes, xp, device(codes))
    return classes[to_host("codes", codes)] if labels is None else xp.take(labels, codes, axis=0)


def _labels_in(classes: np.ndarray, xp: Namespace, where: Device) -> Array | None:
    """Return labels in a library; None if the library lacks the dtype or changes them, as JAX does with 64 bits."""
    if classes.dtype.kind not in "biuf" or classes.dtype.itemsize > 8:
        return None
    if is_torch_namespace(xp) and classes.dtype.kind == "u" and classes.dtype.itemsize > 1:  # no `take` for these
        return None
    classes = classes.astype(classes.dtype.newbyteorder("="), copy=False)
    labels = xp.asarray(classes, device=where)
    return labels if np.array_equal(classes.astype(dtype_name(labels.dtype)), classes) else None
