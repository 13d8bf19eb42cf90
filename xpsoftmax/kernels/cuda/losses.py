"""The loss of rows of CuPy arrays."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cupy
import numpy as np

from xpsoftmax._typing import Array, LossSpec, dtype_name
from xpsoftmax.kernels.cuda import launches, plan
from xpsoftmax.kernels.cuda.arrays import address_of, delivered, in_rows, is_elsewhere, laid_out, matrix_of, result_for
from xpsoftmax.kernels.cuda.counters import counter_on, flag_on, is_set
from xpsoftmax.kernels.cuda.launches import Ready, capability_of, made_ready
from xpsoftmax.kernels.cuda.sums import total

_NOWHERE = np.uint64(0)
"""The argument that stands for no array."""


def softmax_loss_rows(
    logits: Array, targets: Array, row_weight: Array | float, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.softmax_loss_rows`.

    Labels may be of any integer dtype here, and a float is the weight of every row.
    """
    losses, result, _ = _softmax_loss(logits, targets, row_weight, spec, grad=grad, out=out, add_up=False)
    return losses, result


def softmax_loss_total(
    logits: Array, targets: Array, row_weight: Array | float, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.softmax_loss_total`; one launch for few rows and labels without options."""
    losses, result, sum_of_losses = _softmax_loss(logits, targets, row_weight, spec, grad=grad, out=out, add_up=True)
    return total(losses) if sum_of_losses is None else sum_of_losses, result


def _softmax_loss(
    logits: Array,
    targets: Array,
    row_weight: Array | float,
    spec: LossSpec,
    *,
    grad: bool,
    out: Array | None,
    add_up: bool,
) -> tuple[Array, Array | None, Array | None]:
    """Return losses, gradient and, if asked for and if the kernel computes it, the sum of the losses."""
    if type(row_weight) is float and targets.ndim == 1 and spec.class_weight is None and spec.z_loss == 0.0:
        done = _plain_loss(logits, targets, row_weight, spec.label_smoothing, grad=grad, out=out, add_up=add_up)
        if done is not None:
            return done
    with logits.device:
        # Copies, where they are needed; they must live until the launch.
        rows, weights = in_rows(logits), None if type(row_weight) is float else cupy.ascontiguousarray(row_weight)
        targets = in_rows(targets) if targets.ndim == 2 else cupy.ascontiguousarray(targets)
        class_weight = None if spec.class_weight is None else cupy.ascontiguousarray(spec.class_weight)
        losses = cupy.empty(rows.shape[0], plan.REALS[dtype_name(rows.dtype)])
        result = result_for(rows, out) if grad else None
        sum_of_losses = None
        if losses.size:
            counter = None
            if add_up and losses.size <= plan.MOST_ROWS_IN_ONE_LAUNCH and _has_one_label_a_row(targets, spec):
                counter = counter_on(cupy.cuda.runtime.getDevice())
                sum_of_losses = None if counter is None else cupy.empty((), losses.dtype)
            weight_of_all = row_weight if weights is None else 0.0
            sums = address_of(sum_of_losses), address_of(counter)
            launches.run(_loss_launch(rows, targets, weights, weight_of_all, class_weight, spec, losses, result, sums))
        return losses, None if result is None else delivered(result, out), sum_of_losses


def _plain_loss(
    logits: Array,
    labels: Array,
    weight: float,
    smoothing: float,
    *,
    grad: bool,
    out: Array | None,
    add_up: bool,
) -> tuple[Array, Array | None, Array | None] | None:
    """Losses of labels with one weight for all rows; None if an array has to be copied first."""
    if is_elsewhere(logits):
        with logits.device:
            return _plain_loss(logits, labels, weight, smoothing, grad=grad, out=out, add_up=add_up)
    device, shape, dtype = logits.data.device_id, logits.shape, logits.dtype
    result = None if not grad else cupy.empty(shape, dtype) if out is None else out
    adds_up = add_up and smoothing == 0.0 and shape[0] <= plan.MOST_ROWS_IN_ONE_LAUNCH
    counter = counter_on(device) if adds_up else None
    ready = _ready_loss(
        shape,
        logits.strides,
        dtype,
        labels.strides,
        labels.dtype,
        None if result is None else result.strides,
        None if result is None else result.dtype,
        weight,
        smoothing,
        counter is not None,
        device,
    )
    written = _NOWHERE if result is None else result
    addresses = logits.data.ptr | labels.data.ptr | address_of(result)
    if ready is None or addresses % ready.alignment:
        return None
    losses = cupy.empty(shape[0], ready.real)
    if smoothing != 0.0:
        ready.run(logits, labels, _NOWHERE, losses, written)
        return losses, result, None
    if counter is None:
        ready.run(logits, labels, _NOWHERE, losses, written, _NOWHERE, _NOWHERE)
        return losses, result, None
    sum_of_losses = cupy.empty((), ready.real)
    ready.run(logits, labels, _NOWHERE, losses, written, sum_of_losses, counter)
    return losses, result, sum_of_losses


@lru_cache(maxsize=256)
def _ready_loss(
    shape: tuple[int, int],
    strides: tuple[int, int],
    dtype: Any,
    label_strides: tuple[int],
    label_dtype: Any,
    result_strides: tuple[int, int] | None,
    result_dtype: Any,
    weight: float,
    smoothing: float,
    adds_up: bool,  # noqa: FBT001 - part of a key
    device: int,
) -> Ready | None:
    """Return the launch of a loss, still without addresses; None if an array has another layout, or has no rows."""
    logits = laid_out(shape, strides, dtype)
    result = None if result_strides is None else laid_out(shape, result_strides, result_dtype)
    if logits is None or (result is None) != (result_strides is None) or 0.0 < smoothing < plan.LEAST_SMOOTHING:
        return None
    if logits.rows == 0 or (logits.rows > 1 and label_strides[0] != label_dtype.itemsize):
        return None
    launch = plan.loss_launch(
        logits,
        (0, dtype_name(label_dtype)),
        0,
        0,
        result,
        capability_of(device),
        weight_of_all=weight,
        label_smoothing=smoothing,
        counter=int(adds_up),
    )
    sizes = (dtype.itemsize, label_dtype.itemsize, 0 if result is None else result_dtype.itemsize)
    return made_ready(launch, device, max(sizes), plan.REALS[logits.dtype])


def _has_one_label_a_row(targets: Array, spec: LossSpec) -> bool:
    return targets.ndim == 1 and spec.class_weight is None and spec.z_loss == 0.0 == spec.label_smoothing


def _loss_launch(
    rows: Array,
    targets: Array,
    weights: Array | None,
    weight_of_all: float,
    class_weight: Array | None,
    spec: LossSpec,
    losses: Array,
    result: Array | None,
    sums: tuple[int, int],
) -> plan.Launch:
    matrix, written = matrix_of(rows), None if result is None else matrix_of(result)
    vectors = address_of(weights), address_of(losses)
    labels = (address_of(targets), dtype_name(targets.dtype))
    smoothing = spec.label_smoothing
    if targets.ndim == 1 and class_weight is None and spec.z_loss == 0.0 and not 0.0 < smoothing < plan.LEAST_SMOOTHING:
        capability = capability_of(rows.device.id)
        return plan.loss_launch(
            matrix,
            labels,
            *vectors,
            written,
            capability,
            weight_of_all=weight_of_all,
            label_smoothing=smoothing,
            total=sums[0],
            counter=sums[1],
        )
    return plan.masses_launch(
        matrix,
        matrix_of(targets) if targets.ndim == 2 else labels,
        *vectors,
        written,
        class_weights=address_of(class_weight),
        label_smoothing=smoothing,
        z_loss=spec.z_loss,
        weight_of_all=weight_of_all,
    )


def are_classes(labels: Array, classes: int) -> bool:
    """Whether all labels, of any integer dtype, are from 0 to classes - 1. Waits for the answer."""
    with labels.device:
        labels = cupy.ascontiguousarray(labels)
        if not labels.size:
            return True
        found = flag_on(labels.data.device_id)
        vector = address_of(labels), dtype_name(labels.dtype)
        launches.run(plan.bad_labels_launch(vector, address_of(found), labels.size, classes))
        return not is_set(found)
