"""The softmax loss and its gradient: for labels, and for target masses q (soft targets, smoothing, class weights).

    labels:  loss = -log p[y]                 dz = p - onehot(y),      formed as -(1 - p[y]) at the label
    masses:  loss = sum of q[j] * -log p[j]   dz = sum(q) * p - q,     formed from the other classes at the largest q

A z-loss adds z_loss * lse**2 to the loss, and slope * p, slope = 2 z_loss lse, to the gradient.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from xpsoftmax._typing import Array, LossSpec, Namespace
from xpsoftmax.kernels.generic.arithmetic import NAN, as_working, delivered, finite_row_max, one_hot, row_max, row_sum
from xpsoftmax.kernels.generic.arrays import total
from xpsoftmax.kernels.generic.odds import odds_of, shifted, times_hot, times_rest, times_softmax
from xpsoftmax.kernels.generic.softmax import logsumexp, logsumexp_rows
from xpsoftmax.kernels.generic.targets import class_weight_of, soft_targets


def softmax_loss_rows(
    logits: Array, targets: Array, row_weight: Array, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """Loss (R,) of each row times its weight and, with `grad`, its gradient (R, C).

    Parameters
    ----------
    logits : (R, C)
    targets : (R,) labels in the library's index dtype, or (R, C) soft targets in the working precision
    row_weight : (R,) in the working precision; a row of weight 0 adds exactly 0, whatever it holds
        Kernels also take a float, which is the weight of every row, and labels of any integer dtype.
    spec : LossSpec
    grad : whether to compute the gradient
    out : (R, C), where the gradient is written

    Returns
    -------
    losses : (R,) in the working precision
    dlogits : (R, C) in the dtype of `out`, else of `logits`; None without `grad`
    """
    xp, z = as_working(logits)
    undefined = undefined_rows(z, targets)
    # Rows that are undefined or have weight 0 are replaced by zeros before anything is computed from them: no library
    # warns then, and no nan can spread through a product with zero. The factor at the end makes them nan, or 0.
    counted = row_weight != 0.0
    usable = (counted & ~undefined)[:, None]
    factor = xp.where(counted & undefined, NAN, row_weight)
    z = xp.where(usable, z, 0.0)

    lse = logsumexp(xp, z) if spec.z_loss != 0.0 else None
    slope = None if lse is None else 2.0 * spec.z_loss * class_weight_of(xp, targets, spec) * lse
    if targets.ndim == 1 and spec.label_smoothing == 0.0:
        loss, dz = _loss_of_labels(xp, z, targets, slope, grad=grad)
    else:
        q = xp.where(usable, soft_targets(xp, z, targets, spec), 0.0)
        loss, dz = _loss_of_masses(xp, z, q, slope, grad=grad)
    if slope is not None:
        loss = loss + 0.5 * slope * lse
    if dz is None:
        return loss * factor, None
    return loss * factor, delivered(xp, dz * factor[:, None], logits.dtype, out)


def softmax_loss_total(
    logits: Array, targets: Array, row_weight: Array | float, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """Sum of the losses (0-d), and the gradient; see `softmax_loss_rows`."""
    losses, dlogits = softmax_loss_rows(logits, targets, row_weight, spec, grad=grad, out=out)
    return total(losses), dlogits


def softmax_loss_and_logsumexp_rows(
    logits: Array, targets: Array, row_weight: Array | float, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None, Array]:
    """Loss (R,) and gradient, see `softmax_loss_rows`, and the logsumexp of each row (R,) in the working precision."""
    sums = logsumexp_rows(as_working(logits)[1])  # first: `out` may be the logits
    return *softmax_loss_rows(logits, targets, row_weight, spec, grad=grad, out=out), sums


def undefined_rows(z: Array, targets: Array) -> Array:
    """Mask (R,) of the rows whose loss is nan: without a finite largest logit, a valid label or valid soft targets."""
    xp = array_namespace(z)
    _, undefined = finite_row_max(xp, z)
    if targets.ndim == 1:
        return undefined | (targets < 0) | (targets >= z.shape[1])
    # The sum of a row is not finite if an entry is not, or if the sum overflows.
    return undefined | ~xp.isfinite(row_sum(xp, targets)) | xp.any(targets < 0.0, axis=1)


def scratch_arrays(*, soft: bool, z_loss: bool) -> int:
    """How many arrays of the size of the logits (these included) the loss and gradient hold at once."""
    return 13 if soft else 12 if z_loss else 7


def _loss_of_labels(
    xp: Namespace, z: Array, labels: Array, slope: Array | None, *, grad: bool
) -> tuple[Array, Array | None]:
    """Loss -log p[y] and gradient p - onehot(y) + slope p."""
    hot = one_hot(xp, z, labels)
    odds = odds_of(xp, z, hot)
    if not grad:
        return odds.loss, None
    dz_hot = -(odds.rest / odds.total)
    if slope is None:
        dz = odds.e * (odds.scale / odds.total)[:, None]
    else:
        dz = times_softmax(xp, (1.0 + slope)[:, None], shifted(xp, z))
        dz_hot = dz_hot + times_hot(xp, slope, odds)
    return odds.loss, xp.where(hot, dz_hot[:, None], dz)


def _loss_of_masses(
    xp: Namespace, z: Array, q: Array, slope: Array | None, *, grad: bool
) -> tuple[Array, Array | None]:
    """Loss sum of q[j] * -log p[j] and gradient sum(q) p - q + slope p."""
    loss = _sum_of_minus_q_log_p(xp, z, q)
    if not grad:
        return loss, None
    hot = one_hot(xp, z, xp.argmax(q, axis=1))
    odds = odds_of(xp, z, hot)
    q_hot = xp.sum(xp.where(hot, q, 0.0), axis=1)
    q_rest = row_sum(xp, xp.where(hot, 0.0, q))
    added = 0.0 if slope is None else slope
    # sum(q) p - q at the other classes: q is at most half of the sum there, so the difference keeps its digits. At the
    # hot class, both terms are formed from the other classes: (sum(q) - q) p - q (1 - p).
    dz = times_softmax(xp, (q_hot + q_rest + added)[:, None], shifted(xp, z)) - q
    dz_hot = times_hot(xp, q_rest + added, odds) - times_rest(xp, q_hot, odds)
    return loss, xp.where(hot, dz_hot[:, None], dz)


def _sum_of_minus_q_log_p(xp: Namespace, z: Array, q: Array) -> Array:
    top = one_hot(xp, z, xp.argmax(z, axis=1))
    odds = odds_of(xp, z, top)
    minus_log_p = (row_max(xp, z)[:, None] - z) + odds.loss[:, None]
    terms = xp.where(q > 0.0, q * minus_log_p, 0.0)  # 0 * inf is 0 here
    # Where 1 - p of the largest logit is subnormal, it equals -log p. Its product with a large q is a normal number.
    subnormal = odds.rest < xp.finfo(z.dtype).smallest_normal
    of_top = times_rest(xp, xp.sum(xp.where(top, q, 0.0), axis=1), odds)
    return row_sum(xp, xp.where(top & subnormal[:, None], of_top[:, None], terms))
