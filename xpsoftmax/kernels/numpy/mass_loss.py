"""The loss and gradient of target masses on the rows of a tile: soft targets, and labels with any options.

    loss = sum of q[j] * (log(total) - t[j])          t = z - largest, total = sum of exp(t)
    dz[j] = p_factor * p[j] - q[j]                    p_factor = sum of q + slope of the z-loss
    dz[hot] = p_factor_hot * p[hot] - q[hot] * (1 - p[hot])

In the last line, for the hot class (the class of the largest mass), nothing cancels: p_factor_hot is the sum of the
other masses plus the slope. Every row is shifted by its largest logit. Numbers for whole rows (R,) are float64 for
float32 rows, too, so that none leaves the range. Where p[j] is subnormal and p_factor * p[j] is a normal number, the
product is computed anew from the logit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xpsoftmax._typing import Array, LossSpec
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.numpy.masses import LabelMasses, Masses, SoftTargets
from xpsoftmax.kernels.numpy.primitives import SHORT, by_column, flat_index, row_max, row_sums, wide, working
from xpsoftmax.kernels.numpy.ranges import RANGES, beside_largest, times_exp
from xpsoftmax.kernels.numpy.subnormal import MOST_FACTOR, restore_products
from xpsoftmax.kernels.numpy.tiles import recompute

SMALL = 1e-10
"""A larger logit than this, added to a sum of the others below the least of `RANGES`, leaves no digit of that sum."""
ROOM = 2.0**10
"""Least mass, in units of the smallest normal number, that makes the error of a subnormal probability negligible."""


def soft_target_loss(spec: LossSpec, like: Array, *, grad: bool) -> Callable[..., Array]:
    """Return the function (z, e, q, targets, weight) -> losses for these options.

    It writes the gradient to `e`; `q` is scratch.
    """
    masses_of = SoftTargets(spec, like)

    def compute(z: Array, e: Array, q: Array, targets: Array, weight: Array) -> Array:
        masses = masses_of(q, targets)
        loss, unsafe = _loss_of_masses(z, e, masses, weight, spec.z_loss, grad=grad)
        if unsafe is not None:
            loss[unsafe] = recompute(loss_by_generic, unsafe, z, e, targets, weight, cached=8, spec=spec, grad=grad)
        return loss

    return compute


def label_loss_with_options(spec: LossSpec, like: Array, *, grad: bool) -> Callable[..., Array]:
    """Return the function (z, e, labels, weight) -> losses for these options; it writes the gradient to `e`."""
    masses_of = LabelMasses(spec, like)

    def compute(z: Array, e: Array, labels: Array, weight: Array) -> Array:
        class_weight = 1.0 if masses_of.class_weight is None else masses_of.class_weight[labels]
        masses = masses_of(e, labels, (1.0 - spec.label_smoothing) * class_weight)
        loss, unsafe = _loss_of_masses(z, e, masses, weight, spec.z_loss * class_weight, grad=grad)
        if unsafe is not None:
            loss[unsafe] = recompute(loss_by_generic, unsafe, z, e, labels, weight, cached=8, spec=spec, grad=grad)
        return loss

    return compute


def loss_by_generic(z: Array, e: Array, targets: Array, weight: Array, spec: LossSpec, *, grad: bool) -> Array:
    """Losses by the generic operation, with any options; the gradient goes to `e`."""
    loss, dz = generic.softmax_loss_rows(z.astype(e.dtype, copy=False), targets, weight, spec, grad=grad)
    if dz is not None:
        np.add(dz, 0.0, out=e)  # +0.0, not -0.0, where the weight is 0
    return loss


class _Sums(NamedTuple):
    """What is known of rows that are shifted by their largest logit; (R,) of float64."""

    top: Array  # the largest logit
    hot_leads: Array  # whether it is the logit of the hot class
    rest: Array  # sum of exp(z - top) over all but the largest
    hot_times_rest: Array  # hot mass times that sum
    slope: Array | None  # of the z-loss: 2 z_loss logsumexp


def _loss_of_masses(
    z: Array, e: Array, masses: Masses, weight: Array, z_loss: Any, *, grad: bool
) -> tuple[Array, Array | None]:
    """Losses of rows, and the rows that must be computed by `generic` (None: no row); the gradient goes to `e`.

    `z_loss` is a number, or one for each row.
    """
    sums, loss = _sums_and_loss(z, e, masses, z_loss)
    p_factor, p_factor_hot = masses.hot + masses.rest, masses.rest
    undefined = ~(np.isfinite(sums.top) & np.isfinite(p_factor))
    if masses.undefined is not None:
        undefined |= masses.undefined
    if sums.slope is not None:
        loss += 0.5 * sums.slope * (sums.top + np.log1p(sums.rest))
        p_factor, p_factor_hot = p_factor + sums.slope, p_factor_hot + sums.slope
    if grad:
        overflowed = _gradient(z, e, masses, sums, p_factor, p_factor_hot, weight, undefined)
    else:
        overflowed = np.zeros_like(undefined)
    loss *= weight
    for rows, value in ((undefined & (weight != 0.0), np.nan), (weight == 0.0, 0.0)):
        if rows.any():
            loss[rows], overflowed[rows] = value, False
            if grad:
                e[rows] = value
    return loss, np.flatnonzero(overflowed) if overflowed.any() else None


def _sums_and_loss(z: Array, e: Array, masses: Masses, z_loss: Any) -> tuple[_Sums, Array]:
    """Sums of rows, and their losses without the z-loss; exp(z - largest) goes to `e`."""
    top, rest, linear_term, hot_leads = _shift(z, e, masses)
    log_total = np.log1p(rest)
    loss, hot_times_rest = (masses.hot + masses.rest) * log_total, masses.hot * rest
    slope = 2.0 * z_loss * (top + log_total) if np.any(z_loss) else None
    least = RANGES[e.itemsize].least_rest
    if not rest.item(rest.argmin()) >= least:
        # Where nothing is added to the sum of the others (no other mass, slope or logit), it must have all its digits.
        added = masses.rest if slope is None else masses.rest + np.abs(slope)
        alone = (hot_leads & (added <= masses.hot * least)) | ((np.abs(top) < SMALL) & (z_loss != 0.0))
        small = np.flatnonzero((rest < least) & alone)
        if small.size:
            total, *levels = beside_largest(z, e.dtype, small)
            rest[small] = times_exp(total, *levels)
            hot_times_rest[small] = times_exp(masses.hot[small] * total, *levels)
            loss[small] = times_exp((masses.hot[small] + masses.rest[small]) * total, *levels)
            if slope is not None:
                twice = np.broadcast_to(2.0 * z_loss, rest.shape)[small]
                slope[small] = twice * top[small] + times_exp(twice * total, *levels)
    return _Sums(top, hot_leads, rest, hot_times_rest, slope), loss + linear_term


def _shift(z: Array, e: Array, masses: Masses) -> tuple[Array, Array, Array, Array]:
    """Write exp(z - largest) to `e`.

    Return the largest logits, the sums of exp(z - largest) over the others, -(sum of q t), and where the hot class has
    the largest logit.
    """
    tile, flat = working(z, e), e.reshape(-1)
    if e.shape[1] <= SHORT:
        # Summing all entries that differ from the largest is faster than finding where the largest is.
        top = row_max(tile)
        by_column(np.subtract, tile, top, e)
        hot_leads, linear_term = flat[masses.hot_at] == 0.0, masses.linear_term(e)
        others = (e != 0.0).astype(e.dtype)
        np.exp(e, out=e)
        ties = e.shape[1] - row_sums(others)
        return wide(top), wide(row_sums(e, others)) + (ties - 1.0), linear_term, hot_leads
    top_at = flat_index(tile, tile.argmax(axis=1))
    top = tile.reshape(-1)[top_at]
    by_column(np.subtract, tile, top, e)
    linear_term = masses.linear_term(e)
    np.exp(e, out=e)
    flat[top_at] = 0.0
    rest = row_sums(e)
    flat[top_at] = 1.0
    return wide(top), wide(rest), linear_term, masses.hot_at == top_at


def _gradient(
    z: Array,
    e: Array,
    masses: Masses,
    sums: _Sums,
    p_factor: Array,
    p_factor_hot: Array,
    weight: Array,
    undefined: Array,
) -> Array:
    """Turn exp(z - largest) in `e` into the gradient; return the mask of the rows for which the factor overflowed."""
    flat, total = e.reshape(-1), 1.0 + sums.rest
    hot = wide(flat[masses.hot_at])
    of_hot = p_factor_hot * hot
    tiny = RANGES[e.itemsize].tiny
    low = np.flatnonzero((hot < tiny) & (np.abs(p_factor_hot) > MOST_FACTOR))
    if low.size:
        z_hot = wide(z[low, masses.hot_at[low] - low * e.shape[1]])
        of_hot[low] = times_exp(p_factor_hot[low], z_hot, sums.top[low])
    # A hot class that is not the largest has p < 1/2: total - hot cancels nothing.
    hot_times_rest = np.where(sums.hot_leads, sums.hot_times_rest, masses.hot * (total - hot))
    enlarged: Any = (np.abs(p_factor) > MOST_FACTOR) & ~undefined
    beside_small_masses: Any = False
    if not enlarged.any() or e.item(e.argmin()) >= tiny:
        enlarged = False
    else:
        below, beside_small_masses = masses.smallest(np.abs(p_factor) * (tiny * ROOM))
        enlarged = enlarged & below
    scale = p_factor / total
    if masses.subtract_from is None:
        scale *= weight
    factor = scale.astype(e.dtype, copy=False)
    by_column(np.multiply, e, factor, e)
    if np.any(enlarged):
        rows, beside = np.flatnonzero(enlarged), np.broadcast_to(beside_small_masses, p_factor.shape)
        restore_products(z, e, rows, sums.top, p_factor, scale, beside)
    if masses.subtract_from is not None:
        masses.subtract_from(e)
        by_column(np.multiply, e, weight, e)
    flat[masses.hot_at] = (of_hot - hot_times_rest) / total * weight
    return ~(np.isfinite(factor) | undefined)
