"""The loss of labels without smoothing and class weights, the usual case, on the rows of a tile.

Three methods; each row gets the first that suits it, whatever the other rows need:

1. `_loss_without_shift`: from exp(z), in one pass less. It needs sums in the `Range` of the dtype.
2. `_loss_in_float64`: the first method in float64, for rows of float32.
3. `_loss_from_label`: for rows of any kind. The other classes are shifted by their own largest logit and compared with
   the label: their sum keeps its digits however far the label leads. With a z-loss, `mass_loss` takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from xpsoftmax._typing import Array, LossSpec
from xpsoftmax.kernels.numpy import ranges
from xpsoftmax.kernels.numpy.logsumexp import correct_near_zero, logsumexp_of_tile
from xpsoftmax.kernels.numpy.mass_loss import label_loss_with_options
from xpsoftmax.kernels.numpy.primitives import (
    SHORT,
    by_column,
    exponentials,
    flat_index,
    row_max,
    row_sums,
    wide,
    working,
)
from xpsoftmax.kernels.numpy.ranges import RANGES
from xpsoftmax.kernels.numpy.tiles import recompute
from xpsoftmax.kernels.two_sum import difference_error

LEAST_TOP, MOST_TOP = -4.0, 290.0
"""Largest logits between which a row needs no shift in float64; the least total of `RANGES` is a little below."""
STEEP = 0.5
"""Slope of the z-loss from which rows of float32 within these bounds are computed in float64.

There, no probability is subnormal of which such a slope makes a normal number. Short rows are faster in float64 anyway.
"""


def label_loss(
    z: Array,
    e: Array,
    labels: Array,
    weight: Array,
    losses: Array,
    sums: Array | None = None,
    *,
    z_loss: float,
    grad: bool,
) -> None:
    """Write the losses of rows to `losses`, their logsumexp to `sums`, if it is wanted, and the gradient to `e`."""
    found = ranges.most_need_a_shift(z, e, RANGES[e.itemsize].least_total)
    if found is None:
        losses[...] = _loss_without_shift(z, e, labels, weight, sums, z_loss=z_loss, grad=grad)
        return
    if sums is not None:
        logsumexp_of_tile(z, e, sums)
    _, shifted = found
    loss = _loss_out_of_range(z, e, labels, weight, z_loss=z_loss, grad=grad)
    others = np.flatnonzero(~shifted)
    if others.size:
        parts: list[Array] = []

        def compute(z: Array, e: Array, labels: Array, weight: Array) -> Array:
            parts.append(np.empty(e.shape[0]))
            part = None if sums is None else parts[-1]
            return _loss_without_shift(z, e, labels, weight, part, z_loss=z_loss, grad=grad)

        loss[others] = recompute(compute, others, z, e, labels, weight)
        if sums is not None:  # not as above: the bits of a row depend on nothing but the row
            sums[others] = np.concatenate(parts)
    losses[...] = loss


# --- without a shift --------------------------------------------------------------------------------------------------


def _loss_without_shift(
    z: Array, e: Array, labels: Array, weight: Array, sums: Array | None = None, *, z_loss: float, grad: bool
) -> Array:
    """Losses from exp(z), which gives `sums`, too; rows out of range are then computed anew, with a shift."""
    flat, hot_at = e.reshape(-1), flat_index(e, labels)
    np.exp(working(z, e), out=e)
    hot = flat[hot_at]
    flat[hot_at] = 0.0
    rest = row_sums(e)
    total = rest + hot
    factor = weight / total
    unsafe = _rows_out_of_range(total, rest, factor, weight)
    if unsafe is not None and unsafe.size == total.size:
        if sums is not None:
            logsumexp_of_tile(z, e, sums)
        return _loss_out_of_range(z, e, labels, weight, z_loss=z_loss, grad=grad)
    loss = np.log1p(wide(rest) / hot)
    least = RANGES[e.itemsize].least_hot
    if not hot.item(hot.argmin()) >= least:
        behind = np.flatnonzero(hot < least)  # so small that it adds nothing to the sum
        loss[behind] = np.log(wide(rest[behind])) - z[behind, labels[behind]]
    if sums is not None:
        sums[...] = _logsumexp_beside_loss(z, e, labels, loss, hot, rest, correct=True)
    if z_loss == 0.0:
        dz_hot = -rest * factor
    else:
        lse = _logsumexp_beside_loss(z, e, labels, loss, hot, rest, correct=z_loss > 0.5)
        slope = (2.0 * z_loss) * lse
        unsafe = _with_steep_rows(unsafe, slope, total)
        loss += 0.5 * slope * lse
        dz_hot = (slope * hot - rest) * factor
        factor = (factor * (1.0 + slope)).astype(e.dtype, copy=False)
    loss *= weight
    if grad:
        by_column(np.multiply, e, factor, e)
        flat[hot_at] = dz_hot
    if unsafe is not None:
        e[weight == 0.0], loss[weight == 0.0] = 0.0, 0.0  # not -0.0, nor nan
        if unsafe.size:
            if sums is not None:
                sums[unsafe] = recompute(_logsumexp, unsafe, z, e)
            compute = partial(_loss_out_of_range, z_loss=z_loss, grad=grad)
            loss[unsafe] = recompute(compute, unsafe, z, e, labels, weight)
    return loss


def _rows_out_of_range(total: Array, rest: Array, factor: Array, weight: Array) -> Array | None:
    """Return the rows with a sum, or weight / total, out of range. None if there is none, and no weight is 0."""
    bounds = RANGES[total.itemsize]
    # Four look-ups in place of ten passes for the masks: with few rows, the number of calls is what costs time.
    if (
        total.item(total.argmin()) >= bounds.least_total
        and total.item(total.argmax()) <= bounds.most_total
        and rest.item(rest.argmin()) >= bounds.least_rest
        and factor.item(factor.argmin()) >= bounds.tiny
    ):
        return None
    safe = (total >= bounds.least_total) & (total <= bounds.most_total) & (rest >= bounds.least_rest)
    return np.flatnonzero(~(safe & ((factor >= bounds.tiny) | (weight == 0.0))))


def _logsumexp_beside_loss(
    z: Array, e: Array, labels: Array, loss: Array, hot: Array, rest: Array, *, correct: bool
) -> Array:
    """Logarithms of the sums of rows whose loss is known; `e` is exp(z), but 0 at the labels.

    Near a sum of 1, the logarithm of the sum has no digits of what exceeds 1. Where the label has nearly all of the
    sum, these digits matter: there, the logarithm is z[label] + loss. With `correct`, other rows near 1 are computed
    anew, too. A small z-loss does not need it: an error of eps in the sum is one of at most eps in the gradient.
    """
    lse = np.log(wide(rest + hot))
    leads = hot > rest
    np.add(wide(z[np.arange(z.shape[0]), labels]), loss, out=lse, where=leads)
    if correct:
        flat, hot_at = e.reshape(-1), flat_index(e, labels)
        flat[hot_at] = hot
        correct_near_zero(lse, np.flatnonzero((np.abs(lse) < 1.0) & ~leads), z, e)
        flat[hot_at] = 0.0
    return lse


def _logsumexp(z: Array, e: Array) -> Array:
    sums = np.empty(e.shape[0])
    logsumexp_of_tile(z, e, sums)
    return sums


def _with_steep_rows(unsafe: Array | None, slope: Array, total: Array) -> Array | None:
    """Add to the unsafe rows those whose z-loss is so steep that it makes normal numbers of subnormal ones."""
    # Below a sum of 1 the slope is negative.
    steep = np.abs(1.0 + slope) > np.where(total >= 0.99, 1.0 + total, 1.0)
    if not steep.any():
        return unsafe
    return np.flatnonzero(steep) if unsafe is None else np.union1d(unsafe, np.flatnonzero(steep))


# --- out of range -----------------------------------------------------------------------------------------------------


def _loss_out_of_range(z: Array, e: Array, labels: Array, weight: Array, *, z_loss: float, grad: bool) -> Array:
    """Losses of rows that need a shift, or the range of float64."""
    compute: Callable[..., Array]
    if z_loss == 0.0:
        compute = partial(_loss_from_label, grad=grad)
    else:
        compute = label_loss_with_options(LossSpec(z_loss=z_loss), e, grad=grad)
    short = e.shape[1] <= SHORT
    if e.itemsize == 8 or (z_loss == 0.0 and not short):
        return compute(z, e, labels, weight)
    top = row_max(working(z, e))
    in_range = (top > LEAST_TOP) & (top < MOST_TOP)
    if not short:
        in_range &= 2.0 * z_loss * top > STEEP
    loss = np.empty(e.shape[0])
    rows = np.flatnonzero(in_range)
    if rows.size:
        loss[rows] = recompute(_loss_in_float64, rows, z, e, labels, weight, cached=2, z_loss=z_loss, grad=grad)
    rows = np.flatnonzero(~in_range)
    if rows.size:
        loss[rows] = recompute(compute, rows, z, e, labels, weight, cached=0)
    return loss


def _loss_in_float64(z: Array, e: Array, labels: Array, weight: Array, *, z_loss: float, grad: bool) -> Array:
    """Losses of float32 rows from exp(z) in float64."""
    wide_e = np.empty(e.shape)
    loss = _loss_without_shift(z.astype("f8"), wide_e, labels, wide(weight), z_loss=z_loss, grad=grad)
    e[...] = wide_e
    return loss


def _loss_from_label(z: Array, e: Array, labels: Array, weight: Array, *, grad: bool) -> Array:
    """Losses without z-loss, for rows of any kind, by the formula of `generic.odds`.

    Numbers for whole rows (R,) are float64.
    """
    flat, hot_at = e.reshape(-1), flat_index(e, labels)
    np.copyto(e, z)
    hot = wide(flat[hot_at])
    flat[hot_at] = -np.inf
    top = row_max(e)
    alone = top == -np.inf  # all other classes are impossible: nothing to shift
    top[alone] = hot[alone]
    flat[hot_at] = top
    by_column(np.subtract, e, top, e)
    exponentials(e, e)
    flat[hot_at] = 0.0
    rest, top = wide(row_sums(e)), wide(top)

    behind = top - hot  # by how much the hot class is behind the largest other; negative where it leads
    error = difference_error(top, hot, behind)
    error[~np.isfinite(behind)] = 0.0
    leads = behind < 0.0
    gap = np.exp(-np.abs(behind)) * (1.0 + np.where(leads, error, -error))
    half = np.exp(-0.5 * np.abs(behind)) * (1.0 + 0.5 * error)
    rest = np.where(leads, np.where(gap >= RANGES[8].tiny, gap * rest, half * rest * half), rest)
    total = rest + np.where(behind > 0.0, gap, 1.0)
    # Where the hot class is behind, the total is at least 1, and both terms are positive.
    loss = np.log1p(np.where(behind > 0.0, total - 1.0, rest)) + np.where(behind > 0.0, behind + error, 0.0)
    loss *= weight
    if grad:
        factor = np.where(leads, gap, 1.0) / total * weight
        by_column(np.multiply, e, factor.astype(e.dtype, copy=False), e)
        flat[hot_at] = 0.0 - rest / total * weight

    counted = weight != 0.0
    defined = np.isfinite(top) & (hot < np.inf)
    for rows, value in ((counted & ~defined, np.nan), (~counted, 0.0)):
        if rows.any():
            e[rows], loss[rows] = value, value
    return loss
