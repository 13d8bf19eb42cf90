"""Target masses of the rows of a tile, made of soft targets or labels and the loss options.

A row's mass q[j] multiplies -log p[j] in its loss. The largest mass of a row is called hot. With labels, all rows have
the same masses, except at the label: these masses are never written out as a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xpsoftmax._typing import Array, LossSpec
from xpsoftmax.kernels.numpy.primitives import flat_index, row_starts, row_sums, wide
from xpsoftmax.kernels.numpy.tiles import groups


class Masses(NamedTuple):
    """Target masses q (R, C) of the rows of a tile."""

    hot_at: Array  # (R,): positions of the hot masses in the flat tile
    hot: Array  # (R,) of float64
    rest: Array  # (R,) of float64: sum of the other masses
    linear_term: Callable[[Array], Array]  # from t = z - largest (R, C) to -(sum of q t), (R,)
    subtract_from: Callable[[Array], None] | None  # subtracts the masses from a tile; None if all but the hot are 0
    smallest: Callable[[Array], tuple[Any, Any]]  # from a bound (R,): is the least mass, the least positive, below it?
    undefined: Array | None = None  # (R,): whether a mass is negative or nan; None if none is


class SoftTargets:
    """Masses of soft targets."""

    def __init__(self, spec: LossSpec, like: Array) -> None:
        self.factor, self.share = _factor_and_share(spec, like)

    def __call__(self, q: Array, targets: Array) -> Masses:
        """Write the masses to `q`."""
        np.copyto(q, targets)
        undefined = None if q.item(q.argmin()) >= 0.0 else ~(q.min(axis=1) >= 0.0)
        if self.factor is not None:
            np.multiply(q, self.factor, out=q)
        if self.share is not None:
            np.add(q, self.share, out=q)
        flat = q.reshape(-1)
        hot_at = flat_index(q, q.argmax(axis=1))
        hot = flat[hot_at]

        flat[hot_at] = 0.0
        rest = row_sums(q)
        flat[hot_at] = hot
        return Masses(
            hot_at,
            wide(hot),
            wide(rest),
            partial(_linear_term, q),
            lambda e: _subtract(e, q),
            lambda bound: _smallest(q, bound),
            undefined,
        )


class LabelMasses:
    """Masses of labels with any options: `share` for every class, and an addition to it at the label."""

    def __init__(self, spec: LossSpec, like: Array) -> None:
        self.share: Array | None = None  # (C,)
        self.class_weight = None if spec.class_weight is None else wide(spec.class_weight)
        if spec.label_smoothing > 0.0:
            _, share = _factor_and_share(spec, like)
            self.share = np.broadcast_to(share, like.shape[1:])
            most, shares = int(self.share.argmax()), wide(self.share)
            # The sum of the other shares, for each class: sum - share cancels for the largest only.
            self.other_shares = shares.sum() - shares
            self.other_shares[most] = shares[:most].sum() + shares[most + 1 :].sum()
            self.most = most
            self.least, self.least_positive = shares.min(), shares.min(where=shares > 0.0, initial=np.inf)

    def __call__(self, e: Array, labels: Array, added: Any) -> Masses:
        """Masses of labels; `added`, a number or (R,), is what the label's class has above its share."""
        label_at, added = flat_index(e, labels), np.broadcast_to(added, labels.shape)
        flat, share = e.reshape(-1), self.share

        def term_of_label(t: Array) -> Array:
            product = -added * t.reshape(-1)[label_at]
            return np.where(added > 0.0, product, 0.0)  # 0 * inf is 0 here

        if share is None:
            return Masses(label_at, added, np.zeros_like(added), term_of_label, None, lambda _: (True, False))
        mass, largest_share = added + share[labels], wide(share)[self.most]
        label_is_hot = mass >= largest_share
        rest = np.where(label_is_hot, self.other_shares[labels], self.other_shares[self.most] + added)

        def subtract_from(e: Array) -> None:
            at_label = flat[label_at]
            _subtract(e, share)
            flat[label_at] = at_label - mass

        return Masses(
            np.where(label_is_hot, label_at, row_starts(*e.shape) + self.most),
            np.where(label_is_hot, mass, largest_share),
            rest,
            lambda t: _linear_term(np.broadcast_to(share, t.shape), t) + term_of_label(t),
            subtract_from,
            lambda bound: (self.least < bound, self.least_positive < bound),
        )


def _factor_and_share(spec: LossSpec, like: Array) -> tuple[Any, Any]:
    """Return the factor that multiplies targets, and the share that is then added; None for what changes nothing."""
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


def _linear_term(q: Array, t: Array) -> Array:
    """Return -(sum of q t) of each row, in float64; 0 * inf is 0 here."""
    result = wide(-row_sums(q, t))
    if not result.item(result.argmax()) < np.inf:  # also where it is nan
        with_nan = np.flatnonzero(np.isnan(result))
        for group in groups(with_nan.size, t.strides[0]):
            rows = group if with_nan.size == t.shape[0] else with_nan[group]
            product = q[rows] * t[rows]
            zeros = np.zeros(q.shape[1], q.dtype)  # with the number 0.0, np.fmin takes twice as long
            result[rows] = -row_sums(np.fmin(product, zeros, out=product))
    return result


def _smallest(q: Array, bound: Array) -> tuple[Array, Array]:
    """Whether a row has a mass below its bound, and whether it has a positive one below it."""
    below = wide(q.reshape(-1)[flat_index(q, q.argmin(axis=1))]) < bound
    positive = np.zeros_like(below)
    rows = np.flatnonzero(below)
    for group in groups(rows.size, q.strides[0]):
        some = rows[group]
        part = q[some]
        positive[some] = ((part > 0.0) & (part < bound[some, None].astype(q.dtype))).any(axis=1)
    return below, positive


def _subtract(e: Array, masses: Array) -> None:
    np.subtract(e, masses, out=e)
