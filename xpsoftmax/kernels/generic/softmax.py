"""softmax, log_softmax and logsumexp."""

from __future__ import annotations

from xpsoftmax._typing import Array, Namespace
from xpsoftmax.kernels.generic.arithmetic import (
    NAN,
    as_working,
    delivered,
    finite_row_max,
    narrowed,
    one_hot,
    row_max,
    row_sum,
)
from xpsoftmax.kernels.generic.odds import odds_of


def softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.softmax`."""
    xp, z = as_working(logits)
    top, undefined = finite_row_max(xp, z)
    z = xp.where(undefined[:, None], 0.0, z)
    e = xp.exp(z - top[:, None])
    p = e / row_sum(xp, e)[:, None]
    return delivered(xp, xp.where(undefined[:, None], NAN, p), logits.dtype, out)


def log_softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.log_softmax`."""
    xp, z = as_working(logits)
    _, undefined = finite_row_max(xp, z)
    z = xp.where(undefined[:, None], 0.0, z)
    odds = odds_of(xp, z, one_hot(xp, z, xp.argmax(z, axis=1)))
    log_p = (z - row_max(xp, z)[:, None]) - odds.loss[:, None]
    return delivered(xp, xp.where(undefined[:, None], NAN, log_p), logits.dtype, out)


def logsumexp_rows(logits: Array) -> Array:
    """See `xpsoftmax.logsumexp`."""
    xp, z = as_working(logits)
    _, undefined = finite_row_max(xp, z)
    lse = logsumexp(xp, xp.where(undefined[:, None], 0.0, z))
    # Unlike a loss, the sum itself is known for rows that hold an infinity: log(0) = -inf, log(inf) = inf.
    lse = xp.where(undefined, row_max(xp, z), lse)
    return narrowed(xp, lse, logits.dtype)


def logsumexp(xp: Namespace, z: Array) -> Array:
    """Log of the sum of exp(z) (R,), for rows that have a finite largest logit."""
    odds = odds_of(xp, z, one_hot(xp, z, xp.argmax(z, axis=1)))
    return row_max(xp, z) + odds.loss
