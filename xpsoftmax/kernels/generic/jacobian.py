"""Products with the Jacobians of softmax and log_softmax, and the Jacobian of softmax.

All arrays are (R, C) in the working precision. With p = softmax(z), the Jacobian of softmax is diag(p) - p p^T; that of
log_softmax is I - 1 p^T.
"""

from __future__ import annotations

from array_api_compat import array_namespace, device

from xpsoftmax._typing import Array, Namespace
from xpsoftmax.kernels.generic.arithmetic import one_hot, row_sum
from xpsoftmax.kernels.generic.odds import Shifted, odds_of, shifted, times_hot, times_rest, times_softmax


def softmax_jvp_rows(logits: Array, tangent: Array) -> Array:
    """See `xpsoftmax.softmax_jvp`."""
    xp = array_namespace(logits)
    row = shifted(xp, logits)
    return times_softmax(xp, _minus_mean(xp, tangent, row), row)


def log_softmax_jvp_rows(logits: Array, tangent: Array) -> Array:
    """Jacobian of log_softmax times a vector: v[k] - <p, v>."""
    xp = array_namespace(logits)
    return _minus_mean(xp, tangent, shifted(xp, logits))


def log_softmax_vjp_rows(logits: Array, cotangent: Array) -> Array:
    """Vector times the Jacobian of log_softmax: u[k] - p[k] sum(u).

    It is minus the gradient of a loss with the target masses u, which may have either sign here.
    """
    xp = array_namespace(logits)
    top = one_hot(xp, logits, xp.argmax(logits, axis=1))
    odds = odds_of(xp, logits, top)
    of_top = xp.sum(xp.where(top, cotangent, 0.0), axis=1)
    of_others = row_sum(xp, xp.where(top, 0.0, cotangent))
    result = cotangent - times_softmax(xp, (of_top + of_others)[:, None], shifted(xp, logits))
    # Only the largest p can be above 1/2, where 1 - p would lose digits: u (1 - p) - p (sum of the other u) there.
    at_top = times_rest(xp, of_top, odds) - times_hot(xp, of_others, odds)
    return xp.where(top, at_top[:, None], result)


def _minus_mean(xp: Namespace, v: Array, row: Shifted) -> Array:
    """Return v[k] - <p, v>."""
    # First, the entry of v that is nearest to the mean is subtracted. A constant v then leaves exactly zero, and no
    # entry loses more digits than the sum of p[j] abs(v[k] - v[j]) has.
    mean = row_sum(xp, times_softmax(xp, v, row))
    nearest = one_hot(xp, v, xp.argmin(xp.abs(v - mean[:, None]), axis=1))
    v = v - xp.sum(xp.where(nearest, v, 0.0), axis=1)[:, None]
    return v - row_sum(xp, times_softmax(xp, v, row))[:, None]


def softmax_jacobian_rows(logits: Array) -> Array:
    """See `xpsoftmax.softmax_jacobian`; (R, C) to (R, C, C)."""
    xp = array_namespace(logits)
    p = times_softmax(xp, xp.ones_like(logits), shifted(xp, logits))
    largest = one_hot(xp, p, xp.argmax(p, axis=1))
    # 1 - p cancels only above 1/2, which only the largest p can be.
    others = xp.where(largest, row_sum(xp, xp.where(largest, 0.0, p))[:, None], 1.0 - p)
    index = xp.arange(p.shape[1], device=device(p))
    diagonal = (index[:, None] == index[None, :])[None, :, :]
    return xp.where(diagonal, (p * others)[:, :, None], -p[:, :, None] * p[:, None, :])
