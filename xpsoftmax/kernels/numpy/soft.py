"""The loss of target masses on blocks of NumPy arrays: soft targets, labels with smoothing, z-loss far from its goal.

Every row is shifted by its largest logit. What belongs to one row is computed in float64 for float32 rows, too: there,
nothing is out of range. A probability that is subnormal and multiplied by more than one is formed from its logit again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xpsoftmax._typing import Array, LossSpec
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.numpy.tiles import (
    PART,
    RANGES,
    SHORT,
    again,
    beside_largest,
    by_column,
    each_block,
    exponentials,
    places,
    put_rows,
    row_max,
    row_sums,
    slices,
    starts,
    times_exp,
    wide,
    working,
)

LEAST_SMOOTHING = 1e-6
"""Below, the terms of smoothing no longer cover what is lost of the smallest probabilities."""
SMALL = 1e-10
"""A largest logit beyond, added to less than `RANGES` has for the sum of the others, leaves no digit of it."""
ROOM = 2.0**10
"""Smallest mass over the smallest normal number beside which errors of a subnormal probability do not count."""
OF_ROW = 200
"""Bytes of what is computed once a row."""
DENSE = 0.03
"""Share of the entries from which it takes less time to form all of them again."""
ONE = 1.0 + 1e-4
"""Most that a subnormal probability may be multiplied by: a larger factor makes a normal number of it."""


def loss_of_masses(
    logits: Array, targets: Array, row_weight: Array, spec: LossSpec, losses: Array, result: Array | None
) -> None:
    """Write the losses of rows of logits and, where there is a `result`, their gradients."""
    grad = result is not None
    if targets.ndim == 2:
        compute: Callable[..., Any] = _WithSoftTargets(spec, logits, grad=grad)
        held = 4
    elif spec.class_weight is None and spec.z_loss == 0.0 and spec.label_smoothing >= LEAST_SMOOTHING:
        compute = partial(_smoothed, spec=spec, grad=grad)
        held = 1
    else:
        compute = WithLabels(spec, logits, grad=grad)
        held = 1 + OF_ROW // (logits.shape[1] * max(4, logits.itemsize))
    scratch = (targets.ndim == 2) + (not grad)
    each_block(_written(compute), logits, result, targets, row_weight, losses, scratch=scratch, held=held)


def _written(compute: Callable[..., Array]) -> Callable[..., None]:
    """The same function, but the last of its arguments is where its result goes."""

    def write(*arrays: Array) -> None:
        arrays[-1][...] = compute(*arrays[:-1])

    return write


# --- smoothing alone --------------------------------------------------------------------------------------------------


def _smoothed(z: Array, e: Array, *arrays: Array, spec: LossSpec, grad: bool) -> Array:
    """Losses of smoothed labels without class weights and z-loss; the gradient goes to `e`."""
    labels, weight = arrays[-2:]
    loss, safe = _loss_smoothed(z, e, labels, weight, smoothing=spec.label_smoothing, grad=grad)
    if not safe.all():
        unsafe = np.flatnonzero(~safe)
        loss[unsafe] = again(WithLabels(spec, z, grad=grad), unsafe, z, e, labels, weight, held=0)
    return loss


def _loss_smoothed(
    z: Array, e: Array, labels: Array, weight: Array, *, smoothing: float, grad: bool
) -> tuple[Array, Array]:
    """Losses of rows of logits, and which of them are not safe; the gradient goes to `e`.

    Q = 1, q[j] = eps/C but at the label; sum of q[j] (log(total) - t[j]) from the sum of t, none of which is positive.
    """
    classes = e.shape[1]
    share = smoothing / classes
    block = working(z, e)
    flat, hot_at = e.reshape(-1), places(e, labels)
    top = row_max(block)
    behind = top.astype("f8") - block.reshape(-1)[hot_at]
    by_column(np.subtract, block, top, e)
    away = -row_sums(e).astype("f8", copy=False)
    exponentials(e, e)
    hot = flat[hot_at]
    flat[hot_at] = 0.0
    rest = row_sums(e)
    total = wide(rest)
    log_total = np.where(behind == 0.0, np.log1p(total), np.log(total + hot))
    loss = (1.0 - smoothing) * (log_total + behind) + share * (classes * log_total + away)
    factor = weight / (rest + hot)
    if grad:
        by_column(np.multiply, e, factor, e)
        by_column(np.subtract, e, share * weight, e)
        q_hot, q_rest = 1.0 - smoothing + share, share * (classes - 1)
        flat[hot_at] = (q_rest * hot - q_hot * rest) * factor + 0.0
    known = np.isfinite(loss)
    if not known.all():  # infinite is right for a class that cannot be; not if a sum overflowed
        rows = np.flatnonzero(loss == np.inf)
        known[rows] = z[rows].min(axis=1) == -np.inf
    return np.where(weight == 0.0, 0.0, loss * weight), known & ((factor >= RANGES[e.itemsize].tiny) | (weight == 0.0))


# --- masses of any kind -----------------------------------------------------------------------------------------------


class _Masses(NamedTuple):
    """Target masses q of rows, of which the largest is called hot."""

    hot_at: Array  # (R,): places of the hot masses in a flat block
    hot: Array  # (R,) of float64
    rest: Array  # (R,) of float64: sum of the others
    behind: Callable[[Array], Array]  # from t = z - largest to -(sum of q t)
    take_from: Callable[[Array], None] | None  # takes the masses from a block; None if there are only hot ones
    smallest: Callable[[Array], tuple[Any, Any]]  # see `_smallest`
    poor: Array | None = None  # (R,): whether a mass is negative or nan; None if none is


class _WithSoftTargets:
    """Function of rows of logits, two blocks, targets and weights: losses; the gradient goes to the first block."""

    def __init__(self, spec: LossSpec, like: Array, *, grad: bool) -> None:
        self.spec, self.grad = spec, grad
        self.factor, self.share = _shares(spec, like)

    def __call__(self, z: Array, e: Array, q: Array, *arrays: Array) -> Array:
        targets, weight = arrays[-2:]
        masses = self._masses(q, targets)
        loss, safe = _loss_of_rows(z, e, masses, weight, self.spec.z_loss, grad=self.grad)
        if safe is not None:
            unsafe = np.flatnonzero(~safe)
            care = partial(loss_by_generic, spec=self.spec, grad=self.grad)
            loss[unsafe] = again(care, unsafe, z, e, targets, weight, held=8)
        return loss

    def _masses(self, q: Array, targets: Array) -> _Masses:
        np.copyto(q, targets)
        poor = None if q.item(q.argmin()) >= 0.0 else ~(q.min(axis=1) >= 0.0)
        if self.factor is not None:
            np.multiply(q, self.factor, out=q)
        if self.share is not None:
            np.add(q, self.share, out=q)
        flat = q.reshape(-1)
        hot_at = places(q, q.argmax(axis=1))
        hot = flat[hot_at]

        flat[hot_at] = 0.0
        rest = row_sums(q)
        flat[hot_at] = hot
        return _Masses(
            hot_at,
            wide(hot),
            wide(rest),
            partial(_behind, q),
            lambda e: _subtract(e, q),
            lambda limit: _smallest(q, limit),
            poor,
        )


def _smallest(q: Array, limit: Array) -> tuple[Array, Array]:
    """Whether a row has a mass below its limit, and whether it has one that is not 0."""
    below = wide(q.reshape(-1)[places(q, q.argmin(axis=1))]) < limit
    positive = np.zeros_like(below)
    rows = np.flatnonzero(below)
    for few in slices(rows.size, 1 + rows.size * q.strides[0] // PART):
        some = rows[few]
        part = q[some]
        positive[some] = ((part > 0.0) & (part < limit[some, None].astype(q.dtype))).any(axis=1)
    return below, positive


def _subtract(e: Array, masses: Array) -> None:
    np.subtract(e, masses, out=e)


def _shares(spec: LossSpec, like: Array) -> tuple[Any, Any]:
    """What masses are multiplied by and what is then added; None for what changes nothing."""
    dtype = like.dtype if like.itemsize >= 4 else np.dtype("f4")
    factor: Any = 1.0 - spec.label_smoothing
    share: Any = spec.label_smoothing / like.shape[1]
    if spec.class_weight is not None:
        weight = wide(spec.class_weight)
        factor, share = factor * weight, share * weight
    elif spec.label_smoothing == 0.0:
        factor = None
    return (
        None if factor is None else np.asarray(factor, dtype),
        None if spec.label_smoothing == 0.0 else np.asarray(share, dtype),
    )


class WithLabels:
    """The same for labels, with any options, and with one block."""

    def __init__(self, spec: LossSpec, like: Array, *, grad: bool) -> None:
        self.spec, self.grad = spec, grad
        self.share: Array | None = None  # mass of each class beside the label's
        smoothing = spec.label_smoothing
        self.of_label = None if spec.class_weight is None else wide(spec.class_weight)
        if smoothing > 0.0:
            _, share = _shares(spec, like)
            self.share = np.broadcast_to(share, like.shape[1:])
            most, masses = int(self.share.argmax()), wide(self.share)
            # The sum of the others, for each class: V - v cancels for the largest only.
            self.others = masses.sum() - masses
            self.others[most] = masses[:most].sum() + masses[most + 1 :].sum()
            self.most = most
            self.least, self.least_positive = masses.min(), masses.min(where=masses > 0.0, initial=np.inf)

    def __call__(self, z: Array, e: Array, *arrays: Array) -> Array:
        """Write the gradient of rows of logits to `e`; return their losses."""
        labels, weight = arrays[-2:]
        times = 1.0 if self.of_label is None else self.of_label[labels]
        masses = self._masses(e, labels, (1.0 - self.spec.label_smoothing) * times)
        loss, safe = _loss_of_rows(z, e, masses, weight, self.spec.z_loss * times, grad=self.grad)
        if safe is not None:
            unsafe = np.flatnonzero(~safe)
            care = partial(loss_by_generic, spec=self.spec, grad=self.grad)
            loss[unsafe] = again(care, unsafe, z, e, labels, weight, held=8)
        return loss

    def _masses(self, e: Array, labels: Array, mass: Any) -> _Masses:
        at, mass = places(e, labels), np.broadcast_to(mass, labels.shape)
        flat, share = e.reshape(-1), self.share

        def of_label(t: Array) -> Array:
            product = -mass * t.reshape(-1)[at]
            return np.where(mass > 0.0, product, 0.0)  # 0 * inf is 0 here

        if share is None:
            return _Masses(at, mass, np.zeros_like(mass), of_label, None, lambda _: (True, False))
        whole, most = mass + share[labels], wide(share)[self.most]
        leads = whole >= most
        rest = np.where(leads, self.others[labels], self.others[self.most] + mass)

        def take_from(e: Array) -> None:
            there = flat[at]
            _subtract(e, share)
            flat[at] = there - whole

        return _Masses(
            np.where(leads, at, starts(*e.shape) + self.most),
            np.where(leads, whole, most),
            rest,
            lambda t: _behind(np.broadcast_to(share, t.shape), t) + of_label(t),
            take_from,
            lambda limit: (self.least < limit, self.least_positive < limit),
        )


def _behind(q: Array, t: Array) -> Array:
    """-(sum of q t) of each row, in float64; 0 * inf is 0 here."""
    result = wide(-row_sums(q, t))
    if not result.item(result.argmax()) < np.inf:  # nan, too
        odd = np.flatnonzero(np.isnan(result))
        for few in slices(odd.size, 1 + odd.size * t.strides[0] // PART):
            rows = few if odd.size == t.shape[0] else odd[few]
            product = q[rows] * t[rows]
            zeros = np.zeros(q.shape[1], q.dtype)  # with a single number NumPy takes twice as long
            result[rows] = -row_sums(np.fmin(product, zeros, out=product))
    return result


class _Sums(NamedTuple):
    """What is known of rows that are shifted by their largest logit; (R,) of float64."""

    top: Array  # largest logit
    leads: Array  # whether it is that of the hot mass
    rest: Array  # sum of exp(z - top) over the other classes
    pull: Array  # hot mass times that sum
    slope: Array | None  # of the z-loss, 2 z_loss logsumexp


def _loss_of_rows(
    z: Array, e: Array, masses: _Masses, weight: Array, z_loss: Any, *, grad: bool
) -> tuple[Array, Array | None]:
    """Losses of rows of logits, and which rows are safe (None: all); the gradient goes to `e`.

    `z_loss` is a number, or one a row.
    """
    sums, loss = _sums(z, e, masses, z_loss)
    push, push_hot = masses.hot + masses.rest, masses.rest
    poor = ~(np.isfinite(sums.top) & np.isfinite(push))
    if masses.poor is not None:
        poor |= masses.poor
    if sums.slope is not None:
        loss += 0.5 * sums.slope * (sums.top + np.log1p(sums.rest))
        push, push_hot = push + sums.slope, push_hot + sums.slope
    lost = _gradient(z, e, masses, sums, push, push_hot, weight, poor) if grad else np.zeros_like(poor)
    loss *= weight
    for rows, value in ((poor & (weight != 0.0), np.nan), (weight == 0.0, 0.0)):
        if rows.any():
            loss[rows], lost[rows] = value, False
            if grad:
                e[rows] = value
    return loss, ~lost if lost.any() else None


def _sums(z: Array, e: Array, masses: _Masses, z_loss: Any) -> tuple[_Sums, Array]:
    """Sums of rows, and their losses without z-loss; exp(z - largest) goes to `e`."""
    top, rest, behind, leads = _shift(z, e, masses)
    log_total = np.log1p(rest)
    loss, pull = (masses.hot + masses.rest) * log_total, masses.hot * rest
    slope = 2.0 * z_loss * (top + log_total) if np.any(z_loss) else None
    least = RANGES[e.itemsize].rest
    if not rest.item(rest.argmin()) >= least:
        # The sum of the others must have all digits where nothing is added to it: no other mass or slope, nor a logit.
        added = masses.rest if slope is None else masses.rest + np.abs(slope)
        alone = (leads & (added <= masses.hot * least)) | ((np.abs(top) < SMALL) & (z_loss != 0.0))
        faint = np.flatnonzero((rest < least) & alone)
        if faint.size:
            total, *levels = beside_largest(z, e.dtype, faint)
            rest[faint] = times_exp(total, *levels)
            pull[faint] = times_exp(masses.hot[faint] * total, *levels)
            loss[faint] = times_exp((masses.hot[faint] + masses.rest[faint]) * total, *levels)
            if slope is not None:
                twice = np.broadcast_to(2.0 * z_loss, rest.shape)[faint]
                slope[faint] = twice * top[faint] + times_exp(twice * total, *levels)
    return _Sums(top, leads, rest, pull, slope), loss + behind


def _shift(z: Array, e: Array, masses: _Masses) -> tuple[Array, Array, Array, Array]:
    """Largest logits, sums of exp(z - largest) over the others, -(sum of q t), and whether the hot class leads."""
    block, flat = working(z, e), e.reshape(-1)
    if e.shape[1] <= SHORT:
        # Where the largest is takes longer to find than to sum what is not equal to it.
        top = row_max(block)
        by_column(np.subtract, block, top, e)
        leads, behind = flat[masses.hot_at] == 0.0, masses.behind(e)
        others = (e != 0.0).astype(e.dtype)
        np.exp(e, out=e)
        alike = e.shape[1] - row_sums(others)
        return wide(top), wide(row_sums(e, others)) + (alike - 1.0), behind, leads
    top_at = places(block, block.argmax(axis=1))
    top = block.reshape(-1)[top_at]
    by_column(np.subtract, block, top, e)
    behind = masses.behind(e)
    np.exp(e, out=e)
    flat[top_at] = 0.0
    rest = row_sums(e)
    flat[top_at] = 1.0
    return wide(top), wide(rest), behind, masses.hot_at == top_at


def _gradient(
    z: Array,
    e: Array,
    masses: _Masses,
    sums: _Sums,
    push: Array,
    push_hot: Array,
    weight: Array,
    poor: Array,
) -> Array:
    """Make the gradient of exp(z - largest): (push p - q) weight, for the hot class (push_hot p - q (1 - p)) weight.

    Return for which rows that was not possible.
    """
    flat, total = e.reshape(-1), 1.0 + sums.rest
    hot = wide(flat[masses.hot_at])
    of_hot = push_hot * hot
    low = np.flatnonzero((hot < RANGES[e.itemsize].tiny) & (np.abs(push_hot) > ONE))
    if low.size:
        z_hot = wide(z[low, masses.hot_at[low] - low * e.shape[1]])
        of_hot[low] = times_exp(push_hot[low], z_hot, sums.top[low])
    # A hot class that is not the largest is below half: nothing cancels.
    pull = np.where(sums.leads, sums.pull, masses.hot * (total - hot))
    lifted: Any = (np.abs(push) > ONE) & ~poor
    wider: Any = False
    if not lifted.any() or e.item(e.argmin()) >= RANGES[e.itemsize].tiny:
        lifted = False
    else:
        below, wider = masses.smallest(np.abs(push) * (RANGES[e.itemsize].tiny * ROOM))
        lifted = lifted & below
    scale = push / total
    if masses.take_from is None:
        scale *= weight
    factor = scale.astype(e.dtype, copy=False)
    by_column(np.multiply, e, factor, e)
    if np.any(lifted):
        _lift(z, e, np.flatnonzero(lifted), sums.top, push, scale, np.broadcast_to(wider, push.shape))
    if masses.take_from is not None:
        masses.take_from(e)
        by_column(np.multiply, e, weight, e)
    flat[masses.hot_at] = (of_hot - pull) / total * weight
    return ~(np.isfinite(factor) | poor)


def _lift(z: Array, e: Array, rows: Array, top: Array, push: Array, scale: Array, wider: Array) -> None:
    """Form products with subnormal probabilities again, where they are normal numbers.

    In rows that are `wider` also where they are below the smallest of those, but count beside a mass of that size.
    """
    lowest = float(np.log(RANGES[e.itemsize].tiny))
    less = np.where(wider, float(np.log(np.finfo(e.dtype).eps)) - 1.0, -0.01)
    for few in slices(rows.size, 1 + rows.size * e.strides[0] // PART):
        some = rows[few]
        whole = rows.size == e.shape[0]
        logits, part = (z[few], e[few]) if whole else (z.take(some, axis=0), e.take(some, axis=0))
        below = (top[some] + lowest + 0.01).astype(e.dtype)[:, None]
        least = (top[some] + lowest + less[some] - np.log(np.abs(push[some]))).astype(e.dtype)[:, None]
        band = (logits < below) & (logits > least)
        count = np.count_nonzero(band)
        if count > DENSE * band.size:
            np.putmask(part, band, _product(scale[some, None], wide(logits), top[some, None], e.dtype))
        elif count:
            at = np.flatnonzero(band.reshape(-1))
            row, column = np.divmod(at, e.shape[1])
            of_all = some[row]
            part[row, column] = _product(scale[of_all], wide(logits[row, column]), top[of_all], e.dtype)
        if count and not whole:
            put_rows(e, some, part)


def _product(x: Array, z: Array, top: Array, dtype: Any) -> Array:
    """Product x * exp(z - top) as a number of the dtype; float64 has the range of float32 twice over."""
    if dtype.itemsize == 8:
        return times_exp(x, z, top)
    return (np.exp(z - top) * x).astype(dtype)


def loss_by_generic(z: Array, e: Array, targets: Array, weight: Array, spec: LossSpec, *, grad: bool) -> Array:
    """Losses of rows of logits with options of any kind, by the generic text; the gradient goes to `e`."""
    loss, dz = generic.softmax_loss_rows(z.astype(e.dtype, copy=False), targets, weight, spec, grad=grad)
    if dz is not None:
        np.add(dz, 0.0, out=e)  # +0 where the weight is
    return loss
