"""Row operations on NumPy arrays: blocks of rows that stay in the cache, written into the output, shared by threads.

exp(z) is computed without a shift first, straight into the output: one pass less, and no rounding of z - max(z). The
sums of the row then tell whether that was safe; a row for which it was not is done again, shifted by its largest logit,
and where that is not enough either, as `generic` does it. All that is decided for each row by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from xpsoftmax._typing import Array, LossSpec
from xpsoftmax.kernels.numpy.soft import WithLabels, loss_of_masses
from xpsoftmax.kernels.numpy.tiles import (
    PART,
    RANGES,
    SHORT,
    again,
    beside_largest,
    by_column,
    each_block,
    exponentials,
    finite,
    places,
    row_max,
    row_sums,
    slices,
    times_exp,
    wide,
    working,
)

NEAR, FAR = -4.0, 290.0
"""Largest logits between which a row needs no shift in float64; the least of `RANGES` is a little below."""
STEEP = 0.5
"""Slope of the z-loss from which such rows of float32 are computed in float64.

There, no probability is subnormal that such a slope makes a normal number of. Short rows take less time there anyway.
"""
FEW = 32
"""Classes up to which log_softmax looks at rows from their largest logit at once: to tell where not to takes longer."""
_INT64 = np.dtype(np.int64)
MANY = 2**14
"""Entries of a block from which it pays to look at its first row first."""


# --- softmax and its logarithms ---------------------------------------------------------------------------------------


def softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.softmax`."""
    result = np.empty(logits.shape, logits.dtype) if out is None else out
    each_block(_softmax, logits, result)
    return result


def _softmax(z: Array, e: Array) -> None:
    high = _in_need_of_a_shift(z, e, RANGES[e.itemsize].least)
    if high is None:
        _softmax_without_shift(z, e)
        return
    _softmax_with_shift(z, e, high[0])
    others = np.flatnonzero(~high[1])
    if others.size:
        again(_softmax_without_shift, others, z, e)


def _softmax_without_shift(z: Array, e: Array) -> None:
    np.exp(working(z, e), out=e)
    total = row_sums(e)
    by_column(np.multiply, e, 1.0 / total, e)
    unsafe = _outside(total, RANGES[e.itemsize].least, RANGES[e.itemsize].largest)
    if unsafe is not None:
        again(_softmax_with_shift, unsafe, z, e, held=0)


def _softmax_with_shift(z: Array, e: Array, top: Array | None = None) -> None:
    block = working(z, e)
    if top is None:
        top = row_max(block)
    if not np.isfinite(top).any():
        e[...] = np.nan
        return
    by_column(np.subtract, block, top, e)
    exponentials(e, e)
    by_column(np.multiply, e, 1.0 / row_sums(e), e)
    if not finite(top):
        e[~np.isfinite(top)] = np.nan


def log_softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.log_softmax`."""
    result = np.empty(logits.shape, logits.dtype) if out is None else out
    each_block(_log_softmax_of_few if logits.shape[1] <= FEW else _log_softmax, logits, result, held=3)
    return result


def _log_softmax(z: Array, t: Array) -> None:
    """Plainly z - logsumexp(z) where the largest logit is far enough below it."""
    if working(z, t) is t:  # to read it in order is worth a copy
        z = t.copy()
    top = wide(row_max(z))
    most = np.log(t.shape[1])  # that the sum can be above the largest logit
    sure = (np.abs(top) > 8.0 * most) | (top > np.log(RANGES[t.itemsize].largest) + 1e-3)
    if 2 * np.count_nonzero(sure) > sure.size:
        _log_softmax_from_largest(z, t)
        others = np.flatnonzero(~sure)
        if others.size:
            again(_log_softmax_by_sum, others, z, t, top)
    else:
        _log_softmax_by_sum(z, t, top)


def _log_softmax_by_sum(z: Array, t: Array, top: Array) -> None:
    np.exp(z, out=t)
    total = row_sums(t)
    lse = np.log(wide(total))
    by_column(np.subtract, z, lse.astype(t.dtype, copy=False), t)
    # Every entry is at least lse - top: the error of the sum (3 eps) takes 3 eps of it at most, the rounding of lse 4.
    limits = RANGES[t.itemsize]
    safe = (lse - top >= 1.0 + np.abs(lse) / 8) & (total >= limits.rest) & (total <= limits.largest)
    poor = ~np.isfinite(top)
    if not (safe | poor).all():
        again(_log_softmax_from_largest, np.flatnonzero(~(safe | poor)), z, t)
    if poor.any():
        t[poor] = np.nan


def _log_softmax_from_largest(z: Array, t: Array) -> None:
    top, loss = _largest(z, t, np.empty_like(t))
    by_column(np.subtract, t, loss, t)
    if not finite(top):
        t[~np.isfinite(top)] = np.nan


def _log_softmax_of_few(z: Array, t: Array) -> None:
    """From the largest logit, class by class: rows of few classes are too short to be worked on."""
    if z.shape[0] == 1:
        z = np.concatenate([z, z])  # else NumPy would add up the classes in another order
    columns = np.array(z.T, t.dtype, order="C")
    top = columns.max(axis=0)
    columns -= top
    e = np.empty_like(columns)
    exponentials(columns, e)
    whole = np.add.reduce(e, axis=0)
    e *= columns != 0.0
    rest = np.add.reduce(e, axis=0)
    rest += np.rint(whole - rest) - 1.0  # of the largest, if there are several, all but one are others
    columns -= _minus_log(rest, z)
    if not finite(top):
        columns[:, ~np.isfinite(top)] = np.nan
    np.copyto(t, columns.T[: t.shape[0]])


def _largest(z: Array, t: Array, e: Array) -> tuple[Array, Array]:
    """Largest logit of each row and -log of its probability.

    z minus the former goes to `t`; `e` is scratch, and may be `t` if that is of no interest.
    """
    block = working(z, t)
    at = places(block, block.argmax(axis=1))
    top = block.reshape(-1)[at]
    by_column(np.subtract, block, top, t)
    exponentials(t, e)
    e.reshape(-1)[at] = 0.0
    return top, _minus_log(row_sums(e), z)


def _minus_log(rest: Array, z: Array) -> Array:
    """Return -log of the largest probability of each row, from the sum over the others of exp(z - largest)."""
    loss = np.log1p(wide(rest))
    least = RANGES[rest.itemsize].hot  # that far above what may be missing
    if not rest.item(rest.argmin()) >= least:
        faint = np.flatnonzero(rest < least)
        loss[faint] = np.log1p(times_exp(*beside_largest(z, rest.dtype, faint)))
    return loss.astype(rest.dtype, copy=False)


def logsumexp_rows(logits: Array) -> Array:
    """See `xpsoftmax.logsumexp`."""
    result = np.empty(logits.shape[0], logits.dtype)
    each_block(_logsumexp, logits, None, result, scratch=1)
    return result


def _logsumexp(z: Array, e: Array, result: Array) -> None:
    high = _in_need_of_a_shift(z, e, RANGES[e.itemsize].rest)
    if high is None:
        result[...] = _logsumexp_without_shift(z, e)
        return
    lse = _logsumexp_from_largest(z, e)
    others = np.flatnonzero(~high[1])
    if others.size:
        lse[others] = again(_logsumexp_without_shift, others, z, e)
    result[...] = lse


def _logsumexp_without_shift(z: Array, e: Array) -> Array:
    np.exp(working(z, e), out=e)
    total = row_sums(e)
    lse = np.log(wide(total))
    _correct_near(lse, np.flatnonzero(np.abs(lse) < 1.0), z, e)
    unsafe = _outside(total, RANGES[e.itemsize].rest, RANGES[e.itemsize].largest)
    if unsafe is not None:
        lse[unsafe] = again(_logsumexp_from_largest, unsafe, z, e, held=0)
    return lse


def _correct_near(lse: Array, near: Array, z: Array, e: Array) -> None:
    """Logarithms of some sums that are about 1, from exp(z): there, the sum has no digits of what goes beyond 1."""
    if 2 * near.size <= e.shape[0]:
        for few in slices(near.size, 1 + near.size * e.strides[0] // PART):
            lse[near[few]] = _logsumexp_of_near(z, e, near[few])
        return
    result = np.empty_like(lse)  # of all rows: that takes less time than to pick most of them
    for few in slices(e.shape[0], 1 + e.nbytes // PART):
        result[few] = _logsumexp_of_near(z[few], e[few], np.arange(e[few].shape[0]))
    lse[near] = result[near]


def _logsumexp_of_near(z: Array, e: Array, rows: Array) -> Array:
    """Of some rows largest + log1p(others / exp(largest))."""
    whole = rows.size == e.shape[0]
    part = e.copy() if whole else e.take(rows, axis=0)
    if e.shape[1] <= SHORT:  # as in numpy_soft._shift
        logits = (z if whole else z.take(rows, axis=0)).astype(e.dtype, copy=False)
        top, largest = row_max(logits), wide(row_max(part))
        others = (logits != top[:, None]).astype(e.dtype)
        alike = e.shape[1] - row_sums(others)
        odds = (wide(row_sums(part, others)) + (alike - 1.0) * largest) / largest
    else:
        column = part.argmax(axis=1)
        at = places(part, column)
        top, largest = z[rows, column], wide(part.reshape(-1)[at])
        part.reshape(-1)[at] = 0.0
        odds = wide(row_sums(part)) / largest
    faint = np.flatnonzero(odds < RANGES[e.itemsize].hot)
    if faint.size:
        odds[faint] = times_exp(*beside_largest(z, e.dtype, rows[faint]))
    return wide(top) + np.log1p(odds)


def _logsumexp_from_largest(z: Array, e: Array) -> Array:
    """For sums that are far from 1: whatever is lost of the others beside the largest makes no difference."""
    block = working(z, e)
    top = row_max(block)
    by_column(np.subtract, block, top, e)
    exponentials(e, e)
    top = wide(top)
    # An infinity is the sum itself: log(0) = -inf, log(inf) = inf.
    return np.where(np.isfinite(top), top + np.log(wide(row_sums(e))), top)


# --- the loss ---------------------------------------------------------------------------------------------------------


def softmax_loss_rows(
    logits: Array, targets: Array, row_weight: Array | float, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.softmax_loss_rows`."""
    losses = np.empty(logits.shape[0], logits.dtype if logits.itemsize >= 4 else np.float32)
    result = (np.empty(logits.shape, logits.dtype) if out is None else out) if grad else None
    if type(row_weight) is float:
        weight, row_weight = row_weight, np.empty_like(losses)
        row_weight.fill(weight)
    if targets.ndim == 1 and targets.dtype is not _INT64:
        targets = targets.astype(_INT64)
    if targets.ndim == 1 and not spec.labels_known:
        targets, row_weight = _only_classes(targets, row_weight, logits.shape[1])
    if targets.ndim == 1 and spec.label_smoothing == 0.0:
        held = 4 if logits.shape[1] <= SHORT else 1  # it may be done in float64
        compute = partial(_loss, z_loss=spec.z_loss, grad=grad)
        each_block(compute, logits, result, targets, row_weight, losses, scratch=0 if grad else 1, held=held)
    else:
        loss_of_masses(logits, targets, row_weight, spec, losses, result)
    return losses, result


def softmax_loss_total(
    logits: Array, targets: Array, row_weight: Array | float, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.softmax_loss_total`."""
    losses, dlogits = softmax_loss_rows(logits, targets, row_weight, spec, grad=grad, out=out)
    return np.asarray(np.add.reduce(losses)), dlogits


def _loss(z: Array, e: Array, labels: Array, weight: Array, losses: Array, *, z_loss: float, grad: bool) -> None:
    """Write the losses of rows of logits; the gradient goes to `e`."""
    high = _in_need_of_a_shift(z, e, RANGES[e.itemsize].least)
    if high is None:
        losses[...] = _loss_without_shift(z, e, labels, weight, z_loss=z_loss, grad=grad)
        return
    loss = _loss_in_another_way(z, e, labels, weight, z_loss=z_loss, grad=grad)
    others = np.flatnonzero(~high[1])
    if others.size:
        loss[others] = again(_loss_without_shift, others, z, e, labels, weight, z_loss=z_loss, grad=grad)
    losses[...] = loss


def _loss_in_another_way(z: Array, e: Array, labels: Array, weight: Array, *, z_loss: float, grad: bool) -> Array:
    """For rows that need a shift, or the range of float64."""
    if z_loss == 0.0:
        way: Callable[..., Array] = partial(_loss_against, grad=grad)
    else:
        way = WithLabels(LossSpec(z_loss=z_loss), e, grad=grad)
    short = e.shape[1] <= SHORT
    if e.itemsize == 8 or (z_loss == 0.0 and not short):
        return way(z, e, labels, weight)
    top = row_max(working(z, e))
    in_range = (top > NEAR) & (top < FAR)
    if not short:
        in_range &= 2.0 * z_loss * top > STEEP
    loss = np.empty(e.shape[0])
    rows = np.flatnonzero(in_range)
    if rows.size:
        loss[rows] = again(_loss_in_float64, rows, z, e, labels, weight, held=2, z_loss=z_loss, grad=grad)
    rows = np.flatnonzero(~in_range)
    if rows.size:
        loss[rows] = again(way, rows, z, e, labels, weight, held=0)
    return loss


def _loss_without_shift(z: Array, e: Array, labels: Array, weight: Array, *, z_loss: float, grad: bool) -> Array:
    flat, hot_at = e.reshape(-1), places(e, labels)
    np.exp(working(z, e), out=e)
    hot = flat[hot_at]
    flat[hot_at] = 0.0
    rest = row_sums(e)
    total = rest + hot
    factor = weight / total
    unsafe = _outside_of_loss(total, rest, factor, weight)
    if unsafe is not None and unsafe.size == total.size:
        return _loss_in_another_way(z, e, labels, weight, z_loss=z_loss, grad=grad)
    loss = np.log1p(wide(rest) / hot)
    least = RANGES[e.itemsize].hot
    if not hot.item(hot.argmin()) >= least:
        behind = np.flatnonzero(hot < least)  # so far that it adds nothing to the sum
        loss[behind] = np.log(wide(rest[behind])) - z[behind, labels[behind]]
    if z_loss == 0.0:
        dz_hot = -rest * factor
    else:
        lse = np.log(wide(total))
        sure = hot > rest
        # Near 1 the logarithm has no digits of what goes beyond 1, which matters where the label has nearly all.
        np.add(wide(z[np.arange(z.shape[0]), labels]), loss, out=lse, where=sure)
        if z_loss > 0.5:  # else an error of eps in the sum is one of at most eps in the gradient
            flat[hot_at] = hot
            _correct_near(lse, np.flatnonzero((np.abs(lse) < 1.0) & ~sure), z, e)
            flat[hot_at] = 0.0
        slope = (2.0 * z_loss) * lse
        # It must not make normal numbers of subnormal ones. Below a sum of 1 the slope is negative.
        steep = np.abs(1.0 + slope) > np.where(total >= 0.99, 1.0 + total, 1.0)
        if steep.any():
            unsafe = np.flatnonzero(steep) if unsafe is None else np.union1d(unsafe, np.flatnonzero(steep))
        loss += 0.5 * slope * lse
        dz_hot = (slope * hot - rest) * factor
        factor = (factor * (1.0 + slope)).astype(e.dtype, copy=False)
    loss *= weight
    if grad:
        by_column(np.multiply, e, factor, e)
        flat[hot_at] = dz_hot
    if unsafe is not None:
        e[weight == 0.0], loss[weight == 0.0] = 0.0, 0.0  # not -0, nor nan
        if unsafe.size:
            way = partial(_loss_in_another_way, z_loss=z_loss, grad=grad)
            loss[unsafe] = again(way, unsafe, z, e, labels, weight)
    return loss


def _loss_in_float64(z: Array, e: Array, labels: Array, weight: Array, *, z_loss: float, grad: bool) -> Array:
    """For float32 rows that need more than no shift: the range of float64."""
    wider = np.empty(e.shape)
    loss = _loss_without_shift(z.astype("f8"), wider, labels, wide(weight), z_loss=z_loss, grad=grad)
    e[...] = wider
    return loss


def _loss_against(z: Array, e: Array, labels: Array, weight: Array, *, grad: bool) -> Array:
    """Without z-loss, for rows of any kind: `generic._against` in few passes. What is one number a row is float64."""
    flat, hot_at = e.reshape(-1), places(e, labels)
    np.copyto(e, z)
    hot = wide(flat[hot_at])
    flat[hot_at] = -np.inf
    top = row_max(e)
    alone = top == -np.inf  # no other class is possible: nothing to shift
    top[alone] = hot[alone]
    flat[hot_at] = top
    by_column(np.subtract, e, top, e)
    exponentials(e, e)
    flat[hot_at] = 0.0
    rest, top = wide(row_sums(e)), wide(top)

    behind = top - hot  # negative where the hot class leads
    back = behind - top
    lost = (top - (behind - back)) - (hot + back)  # by D. E. Knuth's TwoSum
    lost[~np.isfinite(behind)] = 0.0
    leads = behind < 0.0
    gap = np.exp(-np.abs(behind)) * (1.0 + np.where(leads, lost, -lost))
    half = np.exp(-0.5 * np.abs(behind)) * (1.0 + 0.5 * lost)
    rest = np.where(leads, np.where(gap >= RANGES[8].tiny, gap * rest, half * rest * half), rest)
    total = rest + np.where(behind > 0.0, gap, 1.0)
    # Behind: total is at least 1, and both terms are positive.
    loss = np.log1p(np.where(behind > 0.0, total - 1.0, rest)) + np.where(behind > 0.0, behind + lost, 0.0)
    loss *= weight
    if grad:
        factor = np.where(leads, gap, 1.0) / total * weight
        by_column(np.multiply, e, factor.astype(e.dtype, copy=False), e)
        flat[hot_at] = 0.0 - rest / total * weight

    counts = weight != 0.0
    numbers = np.isfinite(top) & (hot < np.inf)
    for rows, value in ((counts & ~numbers, np.nan), (~counts, 0.0)):
        if rows.any():
            e[rows], loss[rows] = value, value
    return loss


def _only_classes(labels: Array, weight: Array, classes: int) -> tuple[Array, Array]:
    """Labels that are classes: a row with another one gets the label 0, and the weight nan if it counts."""
    unsigned = labels.view(np.uint64)  # negative ones are huge
    if labels.size == 0 or unsigned[unsigned.argmax()] < classes:
        return labels, weight
    bad = unsigned >= classes
    return np.where(bad, 0, labels), np.where(bad & (weight != 0.0), np.nan, weight)


# --- which rows need a shift ------------------------------------------------------------------------------------------


def _in_need_of_a_shift(z: Array, e: Array, least: float) -> tuple[Array, Array] | None:
    """Largest logits, and which rows have a sum below `least` or too large by that alone; None unless most have.

    It saves what would be computed in vain; the result of a row does not depend on it. One row is looked at first.
    """
    if e.size < MANY:
        return None
    high = np.log(RANGES[e.itemsize].largest) + 1e-3  # more than exp and the sum may be wrong
    low = np.log(least / e.shape[1]) - 1e-3
    first: Any = z[0]
    if low <= first[first.argmax()] <= high:
        return None
    top = row_max(z) if z.flags.c_contiguous else z.max(axis=1)
    sure = (top < low) | (top > high)
    return (top.astype(e.dtype, copy=False), sure) if 2 * np.count_nonzero(sure) > sure.size else None


def _outside(total: Array, least: float, largest: float) -> Array | None:
    """Which sums are not from `least` to `largest`, nan included; None if all are."""
    if total.item(total.argmin()) >= least and total.item(total.argmax()) <= largest:
        return None
    # The masks compare with the limits rounded to the dtype: there may be none after all.
    rows = np.flatnonzero(~((total >= least) & (total <= largest)))
    return rows if rows.size else None


def _outside_of_loss(total: Array, rest: Array, factor: Array, weight: Array) -> Array | None:
    """Which rows of a loss have sums, or a factor, that need a shift; None if none has, nor the weight 0."""
    limits = RANGES[total.itemsize]
    # Four look-ups for what takes the masks ten passes: with few rows the calls are what costs.
    if (
        total.item(total.argmin()) >= limits.least
        and total.item(total.argmax()) <= limits.largest
        and rest.item(rest.argmin()) >= limits.rest
        and factor.item(factor.argmin()) >= limits.tiny
    ):
        return None
    safe = (total >= limits.least) & (total <= limits.largest) & (rest >= limits.rest)
    return np.flatnonzero(~(safe & ((factor >= limits.tiny) | (weight == 0.0))))
