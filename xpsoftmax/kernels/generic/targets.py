"""Target masses and the class weight of each row, from targets and class weights."""

from __future__ import annotations

from typing import Any, NamedTuple

from array_api_compat import array_namespace

from xpsoftmax._typing import Array, LossSpec, Namespace
from xpsoftmax.kernels.generic.arithmetic import one_hot


def soft_targets(xp: Namespace, z: Array, targets: Array, spec: LossSpec) -> Array:
    """Target masses (R, C): targets, or labels as one-hot rows, smoothed and multiplied by the class weights."""
    eps = spec.label_smoothing
    q = xp.astype(one_hot(xp, z, targets), z.dtype) if targets.ndim == 1 else targets
    q = (1.0 - eps) * q + eps / z.shape[1]
    return q if spec.class_weight is None else q * spec.class_weight[None, :]


def class_weight_of(xp: Namespace, targets: Array, spec: LossSpec) -> Any:
    """Class weight at each label (R,); 1 for soft targets, and without class weights."""
    if spec.class_weight is None or targets.ndim == 2:
        return 1.0
    classes = spec.class_weight.shape[0]
    return class_weight_at(spec.class_weight, xp.where((targets < 0) | (targets >= classes), 0, targets))


def class_weight_at(class_weight: Array, labels: Array) -> Array:
    """Entries of the class weights (C,) at the labels (R,)."""
    return array_namespace(labels).take(class_weight, labels, axis=0)


class RowWeights(NamedTuple):
    """What rows with labels weigh."""

    weights: Array  # (R,): divided by the total for a mean
    counting: Array  # (R,): counting weights
    total: Array  # 0-d: their sum
    correction: Array  # 0-d, to add to the loss: nan for a mean over nothing, else 0
    sound: bool | None  # whether all labels and weights are good; None where nobody asked


def weigh_rows(
    labels: Array,
    classes: int,
    dtype: Any,
    *,
    sample_weight: Array | None,
    class_weight: Array | None,
    ignore_index: int | None,
    within: bool,
    mean: bool,
    validate: bool,
) -> RowWeights:
    """Weigh rows by their labels (R,) in the index dtype, sample weights (R,) and class weights (C,), in `dtype`.

    With `within` the loss applies the class weights to each class, so that they are not part of the row's weight. With
    `validate` it waits for the device.
    """
    xp = array_namespace(labels)
    info = xp.iinfo(labels.dtype)
    ignores = ignore_index is not None and info.min <= ignore_index <= info.max
    ignored = labels == ignore_index if ignores else xp.zeros_like(labels, dtype=xp.bool)
    is_class = (labels >= 0) & (labels < classes)
    weights = xp.ones_like(labels, dtype=dtype) if sample_weight is None else sample_weight
    weights = counting = xp.where(ignored, 0.0, weights)
    if class_weight is not None:
        counting = weights * xp.where(is_class, class_weight_at(class_weight, xp.where(is_class, labels, 0)), 1.0)
        weights = weights if within else counting
    total = xp.sum(counting)
    nothing = total == 0.0
    correction = xp.zeros_like(total)
    if mean:
        share = weights / xp.where(nothing, 1.0, total)
        weights = xp.where(nothing, 0.0, xp.where(xp.isfinite(total), share, float("nan")))
        correction = xp.where(nothing, float("nan"), correction)
    if not validate:
        return RowWeights(weights, counting, total, correction, None)
    bad = xp.any(~is_class & ~ignored)
    for given in (sample_weight, class_weight):
        if given is not None:
            bad = bad | ~xp.all(xp.isfinite(given) & (given >= 0.0))
    return RowWeights(weights, counting, total, correction, not bool(bad))


def counted_rows(X: Array, row_weight: Array) -> Array:
    """Inputs (R, D) with zeros in the rows that weigh 0: these may hold anything, and 0 * nan must not be added."""
    return array_namespace(X).where((row_weight != 0.0)[:, None], X, 0.0)
