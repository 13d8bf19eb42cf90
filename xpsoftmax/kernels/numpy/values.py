"""Looks at the values of NumPy arrays in one or two passes, without masks: whether labels and weights are good."""

from __future__ import annotations

import math

import numpy as np

from xpsoftmax._typing import Array

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
    unsigned, labels_from_0 = _UNSIGNED.get(labels.dtype, (None, 0))
    if unsigned is None:  # of another byte order
        return bool(labels.min() >= 0 and labels.max() < classes)
    labels = labels.view(unsigned)
    return labels.item(labels.argmax()) < min(classes, labels_from_0)  # type: ignore[no-any-return]


def are_weights(weights: Array) -> bool:
    """See `xpsoftmax.kernels.generic.are_weights`. The least of numbers and nan is nan."""
    if weights.size == 0:
        return True
    if weights.ndim == 1:  # argmin and argmax stop at the first nan, and are faster than the reductions for few numbers
        least, largest = weights.item(weights.argmin()), weights.item(weights.argmax())
    else:
        least, largest = np.minimum.reduce(weights, axis=None), np.maximum.reduce(weights, axis=None)
    return bool(least >= 0.0 and largest < math.inf)
