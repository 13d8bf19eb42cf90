"""What rows of CuPy arrays weigh, and inputs without the rows that weigh nothing."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.cuda import launches, plan, step_plan
from xpsoftmax.kernels.cuda.arrays import address_of, in_rows, matrix_of
from xpsoftmax.kernels.cuda.counters import counter_on, flag_on, is_set
from xpsoftmax.kernels.generic import RowWeights


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
    """See `xpsoftmax.kernels.generic.weigh_rows`; one launch. With `validate` it waits for the device."""
    with labels.device:
        counter = counter_on(labels.data.device_id)
        rows = labels.size
        if counter is None or not 0 < rows <= plan.TOTAL_PART:
            return generic.weigh_rows(
                labels,
                classes,
                dtype,
                sample_weight=sample_weight,
                class_weight=class_weight,
                ignore_index=ignore_index,
                within=within,
                mean=mean,
                validate=validate,
            )
        # Copies, where they are needed; they must live until the launch.
        labels = cupy.ascontiguousarray(labels)
        of_rows = None if sample_weight is None else cupy.ascontiguousarray(sample_weight)
        of_classes = None if class_weight is None else cupy.ascontiguousarray(class_weight)
        counting, weights = (cupy.empty(rows, dtype) for _ in range(2))
        total, correction = (cupy.empty((), dtype) for _ in range(2))
        found = flag_on(labels.data.device_id) if validate else None
        info = np.iinfo(np.int64)
        ignores = ignore_index is not None and info.min <= ignore_index <= info.max
        launches.run(
            step_plan.weigh_rows_launch(
                tuple(map(address_of, (labels, of_rows, of_classes))),
                ignore_index if ignores else None,
                (address_of(counting), address_of(weights), address_of(total), address_of(correction)),
                (rows, classes),
                dtype_name(counting.dtype),
                found=address_of(found),
                counter=address_of(counter),
                within=within,
                mean=mean,
            )
        )
        sound = None if found is None else not is_set(found)
        return RowWeights(weights, counting, total, correction, sound)


def counted_rows(X: Array, row_weight: Array) -> Array:
    """See `xpsoftmax.kernels.generic.counted_rows`; one launch."""
    with X.device:
        if not X.size or X.dtype != row_weight.dtype:
            return generic.counted_rows(X, row_weight)
        rows, weights = in_rows(X), cupy.ascontiguousarray(row_weight)
        copy = cupy.empty(X.shape, X.dtype)
        batch = step_plan.Batch(
            matrix_of(rows),
            address_of(copy),
            step_plan.NO_ROWS,
            0,
            step_plan.Copied(address_of(weights)),
            step_plan.Copied(),
            zero_rows=True,
        )
        launches.run(step_plan.gather_launch(batch, 0, 0, X.shape[0]))
        return copy
