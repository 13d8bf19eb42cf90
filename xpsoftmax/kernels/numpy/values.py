"""Checks of the values of labels and weights in NumPy arrays, in one or two passes and without masks."""

from __future__ import annotations

import math

import numpy as np

from xpsoftmax._typing import Array

_INT64, _UINT64 = np.dtype(np.int64), np.dtype(np.uint64)
_UNSIGNED = {
    np.dtype(f"{kind}{size}"): (np.dtype(f"u{size}"), 1 << (8 * size - (kind == "i")))
    for kind in "iu"
    for size in (1, 2, 4, 8)
}
"""The unsigned dtype of each dtype of labels, and the number of labels from 0 that the latter can hold."""


def are_classes(labels: Array, classes: int) -> bool:
    """See `xpsoftmax.kernels.generic.are_classes`. As unsigned numbers, negative labels are large."""
    if labels.size == 0:
        return True
    if labels.dtype is _INT64:  # the usual dtype needs no look-up
        labels = labels.view(_UINT64)
    elif labels.dtype.isnative:
        unsigned, labels_from_0 = _UNSIGNED[labels.dtype]
        labels, classes = labels.view(unsigned), min(classes, labels_from_0)
    else:
        return bool(labels.min() >= 0 and labels.max() < classes)
    return labels.item(labels.argmax()) < classes  # type: ignore[no-any-return]


def are_weights(weights: Array) -> bool:
    """See `xpsoftmax.kernels.generic.are_weights`. The minimum is nan if any number is nan."""
    if weights.size == 0:
        return True
    if weights.ndim == 1:  # argmin and argmax stop at the first nan, and are faster than the reductions for few numbers
        least, largest = weights.item(weights.argmin()), weights.item(weights.argmax())
    else:
        least, largest = np.minimum.reduce(weights, axis=None), np.maximum.reduce(weights, axis=None)
    return bool(least >= 0.0 and largest < math.inf)
