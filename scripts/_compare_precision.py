"""One sure row on each library that compare_backends.py compares: the textbook formula beside this package's."""

from __future__ import annotations

import math

import numpy as np
from _compare_libraries import Array, Backend
from array_api_compat import array_namespace

from xpsoftmax import softmax_loss_and_grad

LEADS = {"float32": 20.0, "float64": 40.0}
"""By how much the label's logit leads: enough for `1 + exp(-lead)` to round to 1 in this dtype."""

Numbers = dict[str, float]
"""The loss of the row, and its gradient at the logit of the label."""


def row(dtype: str) -> list[float]:
    """Return the logits; the label is class 0."""
    return [LEADS[dtype], 0.0, -1.0]


def exact(dtype: str) -> Numbers:
    """Return loss and gradient to the last digit or two of float64: the label's own term is never added."""
    others = sum(math.exp(logit - LEADS[dtype]) for logit in row(dtype)[1:])
    return {"loss": math.log1p(others), "gradient": -others / (1.0 + others)}


def bound(dtype: str) -> float:
    """Return the largest relative error that docs/numerics.md allows."""
    logits = row(dtype)
    return (4.0 + (logits[0] - min(logits)) / 2.0 + math.log2(len(logits))) * float(np.finfo(dtype).eps)


def sure_row(backend: Backend, dtype: str) -> dict[str, Numbers]:
    """Compute loss and gradient by both formulas in this library."""
    logits = backend.asarray(np.array([row(dtype)], dtype))
    label = backend.asarray(np.array([0]))
    found = {"textbook": _textbook(logits), "xpsoftmax": softmax_loss_and_grad(logits, label)}
    numbers = {}
    for formula, pair in found.items():
        loss, dlogits = (backend.to_numpy(array) for array in backend.finish(pair))
        numbers[formula] = {"loss": float(loss), "gradient": float(dlogits[0, 0])}
    return numbers


def _textbook(logits: Array) -> tuple[Array, Array]:
    """-log(p) and p - 1 at the label, as most books and libraries write them."""
    xp = array_namespace(logits)
    exponentials = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    p = exponentials / xp.sum(exponentials, axis=-1, keepdims=True)
    return -xp.log(p[0, 0]), p - 1.0


def relative_error(found: Numbers, dtype: str) -> float:
    """Return the larger error of the two numbers; nan if one is nan."""
    right = exact(dtype)
    errors = [abs(found[name] - right[name]) / abs(right[name]) for name in right]
    return math.nan if any(map(math.isnan, errors)) else max(errors)
