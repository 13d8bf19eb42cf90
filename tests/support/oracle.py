"""What the package must compute, in extended precision, and how far it may be off: the numerics contract as code.

The formulas are written once more from the contract and share no code with the package; test_reference.py compares
them with mpmath. Every function takes logits (R, C) as a NumPy array of float32 or float64: that dtype is the one whose
eps and normal numbers the bounds speak of (16-bit logits are computed, and therefore given here, in float32).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from assertions import EPS, TINY

LD = np.longdouble
if np.finfo(LD).eps > 2e-19:
    raise RuntimeError("the oracle needs a longdouble of at least 64 bits of precision, as x86 and aarch64 Linux have")


class Exact(NamedTuple):
    """A value, the largest error that the contract allows, and where it allows to compare."""

    value: np.ndarray
    bound: np.ndarray
    where: np.ndarray  # the exact value, and weight times value, is a normal number of the tested dtype, or exactly 0


class ExactLoss(NamedTuple):
    loss: Exact
    grad: Exact


# --- the bound --------------------------------------------------------------------------------------------------------


def bound(z: np.ndarray, *, precision: type | None = None) -> np.ndarray:
    """B = (4 + T/2 + log2 C) eps of each row, (R, 1), or of another `precision`. The only place where it is written."""
    limits = np.finfo(precision or z.dtype)
    t, e = _shifted(z)
    T = np.max(np.where(e >= limits.smallest_normal, np.abs(t), 0), axis=-1, keepdims=True)
    return (4 + T / 2 + np.log2(LD(z.shape[-1]))) * LD(limits.eps)


def normal(z: np.ndarray, value: np.ndarray, weight: Any = 1) -> np.ndarray:
    """Where value and weight times value are normal numbers of the dtype of z, or exactly 0."""
    with np.errstate(invalid="ignore"):
        size = np.minimum(np.abs(value), np.abs(weight * value))
    return (size >= TINY[z.dtype.name]) | (size == 0)


# --- a row ------------------------------------------------------------------------------------------------------------


def _shifted(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """t = z - max z and e = exp(t); nan in rows without a largest number."""
    z = np.asarray(z, LD)
    m = z.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", under="ignore"):
        t = np.where(np.isfinite(m), z - m, np.nan)
        return t, np.exp(t)


def _mark(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.arange(z.shape[-1]) == np.asarray(labels)[..., None]


def _sum(x: np.ndarray) -> np.ndarray:
    return np.sum(x, axis=-1, keepdims=True)


def _without(x: np.ndarray, hot: np.ndarray) -> np.ndarray:
    """Sum of the other entries, entry by entry, `hot` being the largest: sum(x) - x would cancel there."""
    rest = _sum(np.where(hot, 0, x))
    return np.where(hot, rest, np.where(hot, 0, rest - x) + _sum(np.where(hot, x, 0)))


def _probabilities(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P and 1 - p, the second as a sum of the others."""
    t, e = _shifted(z)
    total = _sum(e)
    return e / total, _without(e, _mark(z, np.argmax(t, axis=-1))) / total


def _log_probabilities(z: np.ndarray) -> np.ndarray:
    t, e = _shifted(z)
    rest = _sum(np.where(_mark(z, np.argmax(t, axis=-1)), 0, e))
    return t - np.log1p(rest)


# --- softmax and its relatives ----------------------------------------------------------------------------------------


def softmax(z: np.ndarray) -> Exact:
    p, _ = _probabilities(z)
    return Exact(p, bound(z) * p, normal(z, p))


def log_softmax(z: np.ndarray) -> Exact:
    log_p = _log_probabilities(z)
    return Exact(log_p, bound(z) * np.abs(log_p), normal(z, log_p))


def logsumexp(z: np.ndarray) -> Exact:
    """(R,)."""
    m = np.asarray(z, LD).max(axis=-1)
    odds = -np.max(_log_probabilities(z), axis=-1)
    value = m + odds
    return Exact(value, bound(z)[:, 0] * (np.abs(m) + odds), normal(z, value))


def softmax_jvp(z: np.ndarray, v: np.ndarray, entries: Any = None) -> Exact:
    """The product at the classes `entries`, default all; each costs a sum over the classes."""
    p, _ = _probabilities(z)
    v = np.asarray(v, LD)
    entries = np.arange(z.shape[-1]) if entries is None else np.asarray(entries)
    value, terms = (np.empty((z.shape[0], entries.size), LD) for _ in range(2))
    for i, k in enumerate(entries):
        steps = p * (v[:, k, None] - v)
        value[:, i] = p[:, k] * np.sum(steps, axis=-1)
        terms[:, i] = p[:, k] * np.sum(np.abs(steps), axis=-1)
    return Exact(value, bound(z) * terms, normal(z, p[:, entries]) & normal(z, value))


def softmax_jacobian(z: np.ndarray) -> Exact:
    """(R, C, C): each entry is a product of two factors, p and p or 1 - p, and each factor may be off by B."""
    p, others = _probabilities(z)
    diagonal = np.eye(z.shape[-1], dtype=bool)
    value = np.where(diagonal, (p * others)[:, :, None], -p[:, :, None] * p[:, None, :])
    B = bound(z)[:, :, None]
    return Exact(value, (B + B) * np.abs(value), normal(z, value))


# --- the loss ---------------------------------------------------------------------------------------------------------


def softmax_loss(
    z: np.ndarray,
    targets: np.ndarray,
    *,
    class_weight: np.ndarray | None = None,
    sample_weight: np.ndarray | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> ExactLoss:
    """Loss and gradient of labels (R,) or soft targets (R, C), with their bounds."""
    R, C = z.shape
    hard = targets.ndim == 1
    sample = np.ones(R, LD) if sample_weight is None else np.asarray(sample_weight, LD)
    per_class = np.ones(C, LD) if class_weight is None else np.asarray(class_weight, LD)
    kept = np.ones(R, bool)
    of_label = np.ones(R, LD)
    if hard:
        kept = targets != ignore_index if ignore_index is not None else kept
        targets = np.where(kept, targets, 0)
        of_label = per_class[targets]
    counting = np.where(kept, sample * of_label, 0)

    plain = hard and label_smoothing == 0
    weight = counting if plain else np.where(kept, sample, 0)
    dead = weight == 0
    z = np.where(dead[:, None], 0, z)  # a zero row holds anything
    if plain:
        loss, grad = _hard(z, targets)
        loss_terms, grad_terms = loss, np.abs(grad)
    else:
        q = _mark(z, targets).astype(LD) if hard else np.where(dead[:, None], 0, targets).astype(LD)
        q = ((1 - LD(label_smoothing)) * q + LD(label_smoothing) / C) * per_class
        loss, grad, grad_terms = _soft(z, q)
        loss_terms = loss
    if z_loss:
        share = z_loss * (1 if plain else of_label)
        lse, size = logsumexp(z).value, np.abs(z.max(axis=-1)) - np.max(_log_probabilities(z), axis=-1)
        p, _ = _probabilities(z)
        loss, loss_terms = loss + share * lse**2, loss_terms + share * size**2
        grad = grad + (2 * share * lse)[:, None] * p
        grad_terms = grad_terms + (2 * share * size)[:, None] * p

    if reduction == "mean":
        weight = weight / counting.sum() if counting.sum() else np.zeros(R, LD)
        dead = weight == 0
    B = bound(z)
    with np.errstate(invalid="ignore"):  # weight 0 times inf: a dead row, put to 0 here
        w = weight[:, None]
        grad = Exact(*(np.where(dead[:, None], 0, x * w) for x in (grad, B * grad_terms)), normal(z, grad, w))
        loss = Exact(*(np.where(dead, 0, x * weight) for x in (loss, B[:, 0] * loss_terms)), normal(z, loss, weight))
    if reduction != "none":
        value = loss.value.sum() if reduction == "sum" or counting.sum() else LD(np.nan)
        loss = Exact(value, loss.bound.sum(), normal(z, value))
    return ExactLoss(loss, grad)


def _hard(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    t, e = _shifted(z)
    hot = _mark(z, labels)
    rest = _sum(np.where(hot, 0, e))
    t_hot, e_hot = (np.take_along_axis(x, labels[:, None], axis=-1) for x in (t, e))
    total = rest + e_hot
    loss = np.where(t_hot == 0, np.log1p(rest), np.log(total) - t_hot)
    return loss[:, 0], np.where(hot, -rest, e) / total


def _soft(z: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p, others = _probabilities(z)
    log_p = _log_probabilities(z)
    loss = np.sum(np.where(q == 0, np.where(np.isnan(log_p), np.nan, 0), q * -np.where(q == 0, 0, log_p)), axis=-1)
    pull, push = q * others, _without(q, _mark(q, np.argmax(q, axis=-1))) * p
    return loss, push - pull, push + pull


__all__ = ["EPS", "LD", "TINY", "Exact", "ExactLoss", "bound", "log_softmax", "logsumexp", "normal"]
__all__ += ["softmax", "softmax_jacobian", "softmax_jvp", "softmax_loss"]
