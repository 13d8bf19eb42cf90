"""Target masses and the class weight of each row, from targets and class weights."""

from __future__ import annotations

from typing import Any

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
