"""Errors about numbers that are not finite: inputs and logits (the first row is named), and results of a solver."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from xpsoftmax._arguments.finite import sum_is_finite
from xpsoftmax._arguments.values import first_marked
from xpsoftmax._arguments.views import enter
from xpsoftmax._network.layers import Params
from xpsoftmax._network.network import Network
from xpsoftmax._train.loop import are_finite
from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.kernels import sparse
from xpsoftmax.sklearn.labels import missing_in

NOT_FINITE = (
    "Solver produced non-finite parameter weights, {}. The input data may contain large values and need to be "
    "preprocessed; a smaller learning_rate_init may help, too. The model is as it was before."
)
INTERRUPTED = "Training interrupted by user."


def bad_input(X: Array) -> tuple[int, int, float] | None:
    """Return row, column and value of the first input that is not finite; None if all are finite."""
    if sparse.is_sparse(X):
        return sparse.first_not_finite(array_namespace(X.data), X)
    (view,) = enter(X).arguments
    if type(view) is np.ndarray and sum_is_finite(view):
        return None
    xp = array_namespace(X)
    bad = ~xp.isfinite(X)
    rows = xp.any(bad, axis=1)
    if not bool(xp.any(rows)):
        return None
    row = first_marked(xp, rows)
    column = first_marked(xp, bad[row, :])
    return row, column, float(X[row, column])


def input_error(place: str, value: float, dtype: str) -> ValueError:
    """Return the error of an input that is not finite."""
    if math.isnan(value):
        return ValueError(f"X must be finite, got NaN {place}. Fill in missing values first, or leave these rows out.")
    return ValueError(f"X must be finite, got {_word(value)} {place}, or a number too large for {dtype}.")


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "infinity" if value > 0.0 else "-infinity"


def check_inputs(X: Array) -> None:
    """Raise ValueError for the first input that is not finite."""
    found = bad_input(X)
    if found is not None:
        row, column, value = found
        raise input_error(f"at row {row}, column {column}", value, dtype_name(X.dtype))


def check_no_missing(X: Any) -> None:
    """Raise ValueError for the first missing value among objects, which scikit-learn cannot convert."""
    objects = np.asarray(X, dtype=object)
    missing = missing_in(objects)
    if objects.ndim == 2 and missing.any():
        row, column = divmod(int(missing.argmax()), objects.shape[1])
        raise input_error(f"at row {row}, column {column}", math.nan, "")


def check_real(dtype: Any) -> None:
    """Raise an error that names X for complex numbers, structures, and dates, which scikit-learn would convert."""
    kind = getattr(dtype, "kind", "")
    if kind == "c":
        raise ValueError(f"X must be of real numbers, got {dtype}. Complex data not supported.")
    if getattr(dtype, "names", None):
        hint = "numpy.lib.recfunctions.structured_to_unstructured makes a matrix of fields."
        raise TypeError(f"X must be a matrix of real numbers, got a structured array of {dtype}. {hint}")
    if kind in ("M", "m"):
        raise TypeError(f"X must be of real numbers, got {dtype}. Convert dates and durations to numbers first.")


def name_no_number(X: Any, error: Exception) -> None:
    """Raise the error with the place of the first entry that is no number; scikit-learn's conversion names none."""
    objects = np.asarray(X, dtype=object)
    columns = getattr(X, "columns", None)
    for (row, column), entry in np.ndenumerate(objects) if objects.ndim == 2 else ():
        try:
            float(entry)
        except (TypeError, ValueError):
            place = column if columns is None else repr(columns[column])
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"X must hold numbers, got {entry!r:.60} at row {row}, column {place}. {error}") from None


def bad_logits(logits: Array) -> Array:
    """Return a mask of the rows whose probabilities are nan: those whose largest logit is not finite."""
    xp = array_namespace(logits)
    return ~xp.isfinite(xp.max(logits, axis=1))


def check_logits(net: Network, logits: Array, first: int | None) -> None:
    """Raise ValueError for the first row that has no probabilities; rows are counted from the first of these logits."""
    bad = bad_logits(logits)
    xp = net.xp
    if not bool(xp.any(bad)):
        return
    row = first_marked(xp, bad)
    value = float(xp.max(logits[row, :]))
    place = f"row {row} of a block" if first is None else f"row {first + row}"
    for i, layer in enumerate(net.layers):
        for name, array in (("coefs_", layer.weight), ("intercepts_", layer.bias)):
            flat = xp.reshape(array, (-1,))
            flaws = ~xp.isfinite(flat)
            if bool(xp.any(flaws)):
                found = float(flat[first_marked(xp, flaws)])
                raise overflow_error(
                    f"{name}[{i}] must be finite, got {found}: {place} of X has no most probable class."
                )
    raise overflow_error(
        f"X must have products with the weights that are finite in {dtype_name(net.dtype)}, got the largest logit "
        f"{_word(value)} at {place}. Scale X as it was scaled for fit."
    )


def overflow_error(text: str) -> ValueError:
    """Return an error of numbers that training or prediction computed; `is_overflow` is true for it."""
    return as_overflow(ValueError(text))


def as_overflow(error: ValueError) -> ValueError:
    """Mark an error for `is_overflow`."""
    error.overflow = True  # type: ignore[attr-defined]
    return error


def is_overflow(error: BaseException) -> bool:
    """Whether an error is marked: it is not about an argument alone, and `fit` may name its cause."""
    return bool(getattr(error, "overflow", False))


def diverged(what: str) -> ValueError:
    """Return the error for a solver whose numbers are no longer finite."""
    return overflow_error(NOT_FINITE.format(what))


def finite_layers(net: Network, layers: Params) -> Params:
    """Return the layers, if all their numbers are finite; raise ValueError if not."""
    if not are_finite(net, layers):
        raise diverged("by the last step")
    return layers
