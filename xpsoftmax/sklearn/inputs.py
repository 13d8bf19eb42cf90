"""The inputs of the classifier: arrays of any library, lists, data frames and dask collections, checked."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_cupy_array, is_dask_array
from sklearn.utils.validation import validate_data

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.finite import sum_is_finite
from xpsoftmax._arguments.home import library
from xpsoftmax._arguments.views import enter
from xpsoftmax._network.network import check_places
from xpsoftmax._typing import Array
from xpsoftmax.kernels.sparse import as_rows, is_sparse, library_of, stand_in
from xpsoftmax.sklearn.checks import check_inputs, check_no_missing, check_real, name_no_number
from xpsoftmax.sklearn.labels import is_elsewhere, refuse_masked
from xpsoftmax.sklearn.parameters import working_dtype


def is_lazy(X: Any) -> bool:
    """Whether these are dask arrays or data frames."""
    return hasattr(X, "__dask_graph__")


def block_of(X: Array) -> Array:
    """Return an array without rows like the blocks of a dask array, a dense array like a sparse matrix, or `X`."""
    if is_sparse(X):
        return stand_in(array_namespace(X.data), X)
    return X._meta if is_dask_array(X) else X


def stand_in_for(X: Array) -> Array:
    """Return a dense array in memory of the shape and dtype of a dask array or sparse matrix; others as they are."""
    return np.broadcast_to(np.zeros((), X.dtype), X.shape) if is_dask_array(X) else block_of(X)


def current_device(X: Any) -> AbstractContextManager[Any]:
    """Return a context in which CuPy makes its arrays on the device of `X`."""
    values = X.data if library_of(X) == "cupy" else X
    return values.device if is_cupy_array(values) else nullcontext()


def checked_inputs(model: Any, X: Any, method: str, *, reset: bool, like: Array | None = None) -> Array:
    """Check inputs; return them in the dtype to compute in. Without `reset` they must fit the model.

    Then they are of the library, device and dtype of `like`; by default those of the weights.
    """
    refuse_masked("X", X)
    if not reset:
        like = model.coefs_[0] if like is None else like
        _check_library(model, X, method, like)
    if is_lazy(X):
        return _checked_lazily(model, X, like)
    if library_of(X) == "cupy":
        return _checked_sparsely(model, X, like)
    fitting = method in ("fit", "partial_fit")
    if like is not None and _fits(model, X, like) and (not fitting or (type(X) is np.ndarray and sum_is_finite(X))):
        return X  # prediction looks for numbers that are not finite by itself
    if not is_elsewhere(X):
        dtype: Any = working_dtype(model.dtype, np, X) if like is None else like.dtype
        return _checked_on_host(model, X, dtype, reset=reset)
    xp, array = check.as_array("X", X)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"X must have shape (N, D), both at least 1, got {tuple(array.shape)}.")
    if xp.isdtype(array.dtype, "complex floating"):
        raise ValueError(f"X must be of real numbers, got {array.dtype}: complex data is not supported.")
    array = xp.astype(array, working_dtype(model.dtype, xp, array) if like is None else like.dtype, copy=False)
    validate_data(model, array, skip_check_array=True, reset=reset)
    check_inputs(array)
    return array


def _checked_on_host(model: Any, X: Any, dtype: Any, *, reset: bool) -> np.ndarray:
    """Check inputs on the host as scikit-learn does, but name the row of a number that is not finite."""
    if is_sparse(X):
        check_places("X", X)
    for kind in X.dtypes if hasattr(X, "columns") and hasattr(X, "dtypes") else [getattr(X, "dtype", None)]:
        check_real(kind)
    try:
        with np.errstate(over="ignore"):  # a number too large for float32 is found below
            X = validate_data(model, X, dtype=dtype, reset=reset, ensure_all_finite=False, accept_sparse="csr")
    except (TypeError, ValueError) as error:
        if not is_sparse(X):
            check_no_missing(X)
            name_no_number(X, error)
        raise
    check_inputs(X)
    return X  # type: ignore[no-any-return]


def _checked_sparsely(model: Any, X: Any, like: Array | None) -> Any:
    """Check a sparse matrix of cupyx."""
    if 0 in X.shape:
        raise ValueError(f"X must have shape (N, D), both at least 1, got {tuple(X.shape)}.")
    xp = array_namespace(X.data)
    if xp.isdtype(X.dtype, "complex floating"):
        raise ValueError(f"X must be of real numbers, got {X.dtype}: complex data is not supported.")
    X = as_rows(X).astype(working_dtype(model.dtype, xp, X.data) if like is None else like.dtype)
    validate_data(model, X, skip_check_array=True, reset=like is None)
    check_inputs(X)
    return X


def _checked_lazily(model: Any, X: Any, like: Array | None) -> Array:
    """Check dask inputs, except for numbers that are not finite: those are found when the blocks are computed."""
    from xpsoftmax.sklearn import on_dask

    array, frame = on_dask.as_inputs(X), X if is_dask_array(X) else X._meta  # which has the names of features
    block = array._meta
    dtype = working_dtype(model.dtype, array_namespace(block), block) if like is None else like.dtype
    dtype = dtype[0] if isinstance(dtype, list) and block.dtype.name not in ("float32", "float64") else dtype
    validate_data(model, frame, skip_check_array=True, reset=like is None)
    return array if isinstance(dtype, list) else array.astype(dtype)


def _fits(model: Any, X: Any, like: Array) -> bool:
    """Whether `X` needs none of scikit-learn's checks, which take longer than a small prediction."""
    return (
        type(enter(X, like).arguments[0]) is np.ndarray  # or can be viewed as one
        and X.dtype == like.dtype
        and X.ndim == 2
        and X.shape[0] > 0
        and X.shape[1] == model.n_features_in_
        and not hasattr(model, "feature_names_in_")
    )


def _check_library(model: Any, X: Any, method: str, like: Array) -> None:
    """Raise ValueError unless `X` is of the library of an array of the model, on its device."""
    own, own_device = array_namespace(like), device(like)
    block = X._meta if is_lazy(X) else X.data if library_of(X) == "cupy" else X
    xp, place = (
        (array_namespace(block), device(block)) if is_elsewhere(block) else (array_namespace(np.empty(0)), "cpu")
    )
    if xp is not own or place != own_device:
        raise ValueError(
            f"X passed to {type(model).__name__}.{method}() must use the same namespace and device as the model, "
            f"{library(own)} on {own_device}, got {library(xp)} on {place}. "
            "Move one of them; the model by its method to()."
        )


def labels_in_memory(X: Array, y: Any, weight: Any) -> tuple[Array, Any, Any]:
    """Return inputs of known length, and labels and weights in memory, which may come as dask collections with `X`."""
    if not is_dask_array(X):
        if is_lazy(y) or is_lazy(weight):
            raise TypeError("y and sample_weight must be in memory if X is, got one of dask. Call its compute().")
        return X, y, weight
    from xpsoftmax.sklearn import on_dask

    if getattr(y, "ndim", 1) == 2 and y.shape[1] > 1:
        raise TypeError(
            f"y must be labels (N,) for dask arrays, got shape {y.shape}. xpsoftmax.dask.train takes probabilities."
        )
    X = on_dask.of_known_sizes(X, y)
    return X, on_dask.on_host(y), on_dask.on_host(weight)
