"""Operations on arrays that some libraries need in a version of their own: products, rows, shapes, sums."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from xpsoftmax._typing import Array


def product(left: Array, right: Array, like: Array | None = None) -> Array:  # noqa: ARG001
    """Product of two matrices. `like` has its shape: on several devices, the product is distributed as `like` is."""
    return left @ right


def some_rows(array: Array, rows: slice) -> Array:
    """Some rows of an array (R, ...)."""
    return array[rows, ...]


def reshaped(array: Array, shape: tuple[int, ...]) -> Array:
    """The array in another shape: its first axes joined to one, or its first axis split into several."""
    return array_namespace(array).reshape(array, shape)


def are_classes(labels: Array, classes: int) -> bool:
    """Whether all labels are from 0 to classes - 1. It waits for the answer."""
    return not bool(array_namespace(labels).any((labels < 0) | (labels >= classes)))


def are_weights(weights: Array) -> bool:
    """Whether all weights, or soft targets, are finite and not negative. It waits for the answer."""
    xp = array_namespace(weights)
    return bool(xp.all(xp.isfinite(weights) & (weights >= 0.0)))


def as_0d(x: Array) -> Array:
    """A 0-d array in the place of a NumPy scalar; other arrays as they are."""
    return np.asarray(x) if isinstance(x, np.generic) else x


def total(x: Array) -> Array:
    """Sum of all entries, 0-d."""
    return as_0d(array_namespace(x).sum(x))
