"""Assertions on arrays of any library. There is no default tolerance, and each has a test that it fails."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from backends import Backend

EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
TINY = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}


def assert_like(actual: Any, *, backend: Backend, dtype: str, shape: tuple[int, ...]) -> None:
    """An array of this library, on its device, of this dtype and shape."""
    assert array_namespace(actual) is backend.xp, f"namespace {array_namespace(actual)}"
    if backend.device is not None:
        assert device(actual) == backend.device, f"device {device(actual)}"
    name = getattr(actual.dtype, "name", None) or str(actual.dtype).rpartition(".")[2]
    assert name == dtype, f"dtype {name}, not {dtype}"
    assert tuple(actual.shape) == tuple(shape), f"shape {tuple(actual.shape)}, not {tuple(shape)}"


def assert_close(actual: Any, desired: Any, *, backend: Backend, dtype: str, ulps: Any) -> int:
    """`actual` is `desired` to a relative error of `ulps` eps, entry by entry. Returns how many were compared."""
    desired = np.asarray(desired, dtype=np.longdouble)
    assert_like(actual, backend=backend, dtype=dtype, shape=desired.shape)
    return assert_within(backend.to_numpy(actual), desired, bound=np.asarray(ulps) * EPS[dtype] * np.abs(desired))


def assert_within(actual: np.ndarray, desired: np.ndarray, *, bound: Any, where: Any = True) -> int:
    """`actual` differs from `desired` by at most `bound`, entry by entry, where `where` holds.

    Places of nan and inf agree everywhere. Returns how many finite entries were compared. A failure names the worst
    entry and its error over its bound.
    """
    actual = np.asarray(actual, dtype=np.longdouble)
    desired = np.asarray(desired, dtype=np.longdouble)
    bound = np.broadcast_to(np.asarray(bound, dtype=np.longdouble), desired.shape)
    assert actual.shape == desired.shape, f"shape {actual.shape}, not {desired.shape}"
    assert not np.isnan(bound[np.isfinite(desired)]).any(), "a bound is nan"
    same = (np.isnan(actual) == np.isnan(desired)) & ((actual == desired) | ~(np.isinf(actual) | np.isinf(desired)))
    assert same.all(), f"nan or inf at other places: {actual[~same][:3]}, not {desired[~same][:3]}"
    compared = np.isfinite(desired) & np.broadcast_to(where, desired.shape)
    error = np.where(compared, np.abs(np.where(compared, actual, 0) - np.where(compared, desired, 0)), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error > 0, error / bound, 0)
    if ratio.size and not ratio.max() <= 1:
        at = np.unravel_index(np.argmax(ratio), ratio.shape)
        raise AssertionError(
            f"error is {float(ratio[at]):.3g} of the bound at {tuple(map(int, at))}: {actual[at]!r}, "
            f"not {desired[at]!r}; {int((ratio > 1).sum())} of {int(compared.sum())} entries fail"
        )
    return int(compared.sum())


def assert_same_bits(actual: np.ndarray, desired: np.ndarray) -> None:
    """Equal dtype, shape and bits; nan equals nan, and 0 does not equal -0."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.dtype == desired.dtype, f"dtype {actual.dtype}, not {desired.dtype}"
    assert actual.shape == desired.shape, f"shape {actual.shape}, not {desired.shape}"
    nan = np.isnan(desired)
    assert (np.isnan(actual) == nan).all(), "nan at other places"
    whole = f"u{actual.dtype.itemsize}"
    different = (np.ascontiguousarray(actual).view(whole) != np.ascontiguousarray(desired).view(whole)) & ~nan
    assert not different.any(), f"{int(different.sum())} of {different.size} entries differ in bits"
