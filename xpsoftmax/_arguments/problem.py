"""Targets, weights and options of a loss, checked and laid out as rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_dask_array, is_jax_array

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.home import numpy_namespace
from xpsoftmax._arguments.layout import Layout, reshaped, to_rows
from xpsoftmax._arguments.options import as_integer, as_number, check_choice, check_flag
from xpsoftmax._arguments.values import Rows, Suspect, bad_labels, bad_masses, check_values, rows_of
from xpsoftmax._typing import Array, LossSpec, Namespace, Reduction, dtype_name
from xpsoftmax.kernels import select


class LossOptions(NamedTuple):
    """The options of a loss as the caller gave them."""

    class_weight: Array | None = None
    sample_weight: Array | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    reduction: Reduction = "mean"
    validate: bool = True

    def none_given(self) -> bool:
        """Whether every option has its default, but for `validate`."""
        return (
            self.class_weight is None
            and self.sample_weight is None
            and self.ignore_index is None
            and (type(self.label_smoothing) is float and self.label_smoothing == 0.0)
            and (type(self.z_loss) is float and self.z_loss == 0.0)
            and (type(self.reduction) is str and self.reduction == "mean")
            and (self.validate is True or self.validate is False)
        )

    def weigh_nothing(self) -> bool:
        """Whether all rows weigh the same, and every other option is plainly good."""
        return (
            self.class_weight is None
            and self.sample_weight is None
            and self.ignore_index is None
            and (type(self.label_smoothing) is float and 0.0 <= self.label_smoothing <= 1.0)
            and (type(self.z_loss) is float and 0.0 <= self.z_loss < math.inf)
            and (type(self.reduction) is str and self.reduction in ("mean", "sum", "none"))
            and type(self.validate) is bool
        )


class Problem(NamedTuple):
    """Checked rows, ready for a row operation."""

    targets: Array  # (R,) labels in the index dtype or (R, C) soft targets: see `prepare` for their dtype
    row_weight: Array  # (R,): all that multiplies a row; 0 where it must not count
    total: Array | float  # 0-d: the sum of the counting weights; a number where it is known without them
    spec: LossSpec
    counting: Array | None = None  # (R,): counting weights; None where every row counts 1
    weighted: bool = False  # whether some rows may not count


PLAIN_SPEC, _INT64 = LossSpec(), np.dtype("i8")


def plain_labels(targets: Any, shape: tuple[int, ...], options: LossOptions) -> bool:
    """Whether NumPy labels, and options, for rows of logits (R, C) are seen at a glance to be good and plain."""
    if not (
        type(targets) is np.ndarray
        and targets.dtype == _INT64
        and len(shape) == 2
        and targets.shape == shape[:1]
        and targets.size > 0
        and options.none_given()
    ):
        return False
    if not options.validate:
        return True
    unsigned = targets.view(np.uint64)  # negative ones are huge
    return bool(unsigned.item(unsigned.argmax()) < shape[1])


def filled(rows: int, value: float, dtype: Any) -> Array:
    """A NumPy array (rows,) of one value."""
    array = np.empty(rows, dtype)
    array.fill(value)
    return array


def prepare(targets: Array, layout: Layout, options: LossOptions, max_memory: int | None = None) -> Problem:
    """Check targets, weights and options; lay the targets out as rows and weigh each row.

    With `max_memory` soft targets are looked at some rows at a time, and stay in their dtype: a chunk of them is cast.
    """
    xp = layout.home.xp
    # Labels of another library are seen first: under torch.compile the other question cannot be asked.
    if layout.axis == 1 and plain_labels(targets, layout.shape, options) and xp is numpy_namespace():
        rows = layout.shape[0]
        return Problem(targets, filled(rows, 1.0 / rows, layout.working), float(rows), PLAIN_SPEC)
    check_choice("reduction", options.reduction, ("mean", "sum", "none"))
    check_flag("validate", options.validate)
    smoothing = as_number("label_smoothing", options.label_smoothing, high=1.0)
    z_loss = as_number("z_loss", options.z_loss)
    ignore_index = None if options.ignore_index is None else as_integer("ignore_index", options.ignore_index)
    array = check.as_targets(targets, layout, ignore_index)
    sample_weight = check.as_weight(
        "sample_weight", options.sample_weight, layout, layout.rows_shape, "that of logits without the class axis"
    )
    class_weight = check.as_weight(
        "class_weight", options.class_weight, layout, (layout.classes,), "one weight a class"
    )
    soft = array.ndim == len(layout.shape)
    ignored = None if soft or ignore_index is None else _equal(xp, array, ignore_index)
    if options.validate:
        weights = {"sample_weight": sample_weight, "class_weight": class_weight}
        given = {"targets": targets, "sample_weight": options.sample_weight, "class_weight": options.class_weight}
        _check_values(array, ignored, ignore_index, weights, given, layout, max_memory)
    if soft and max_memory is None:
        array = check.as_dtype(xp, array, layout.working)

    alike = sample_weight is None and ignored is None and (class_weight is None or soft)
    rows = to_rows(xp, array, layout.axis) if soft else _flat(xp, array)
    counting = _ones(xp, rows, layout.working)
    if sample_weight is not None:
        counting = _flat(xp, sample_weight)
        if layout.lengthless:
            from xpsoftmax.kernels.dask import with_rows_of  # imports dask: not before the caller has

            counting = with_rows_of("sample_weight", counting, "targets", rows)
    if ignored is not None:
        counting = xp.where(_flat(xp, ignored), 0.0, counting)
    row_weight = counting
    if class_weight is not None and not soft:
        inside = (rows >= 0) & (rows < layout.classes)
        of_label = select("class_weight_at", class_weight, "generic")(class_weight, xp.where(inside, rows, 0))
        counting = counting * xp.where(inside, of_label, 1.0)
        if smoothing == 0.0:  # the class weight is a factor of the whole row
            row_weight, class_weight = counting, None
    # Arrays of unknown length have to count their rows.
    total = float(rows.shape[0]) if alike and isinstance(rows.shape[0], int) else xp.sum(counting)
    if options.reduction == "mean":
        row_weight = divided(xp, row_weight, total)
    weighted = any(x is not None for x in (sample_weight, ignored, options.class_weight))
    return Problem(
        rows, row_weight, total, LossSpec(class_weight, smoothing, z_loss), None if alike else counting, weighted
    )


def _ones(xp: Namespace, rows: Array, dtype: Any) -> Array:
    """1 for each row of targets, (R,) or (R, C)."""
    if rows.ndim == 2 and is_jax_array(rows):  # in JAX the classes may be in parts, which cannot be cut
        return xp.ones(rows.shape[0], dtype=dtype)
    return xp.ones_like(rows[:, 0] if rows.ndim == 2 else rows, dtype=dtype)


def divided(xp: Namespace, row_weight: Array, total: Array | float) -> Array:
    """Weights of a mean: zero where there is nothing to take a mean of, nan where the sum overflowed."""
    if type(total) is float:  # not a NumPy scalar, which is one too
        return row_weight / (total or 1.0)
    share = row_weight / xp.where(total == 0.0, 1.0, total)
    return xp.where(total == 0.0, 0.0, xp.where(xp.isfinite(total), share, float("nan")))


def mean_or_nan(xp: Namespace, loss: Array, total: Array | float) -> Array:
    """Return nan for the mean over no row."""
    if type(total) is float:
        return loss if total > 0.0 else xp.full_like(loss, float("nan"))
    return xp.where(total == 0.0, float("nan"), loss)


def _equal(xp: Namespace, labels: Array, value: int) -> Array:
    """Compare labels, already in the index dtype, with a number that need not fit it."""
    info = xp.iinfo(labels.dtype)
    return labels == value if info.min <= value <= info.max else xp.zeros_like(labels, dtype=xp.bool)


def _flat(xp: Namespace, array: Array) -> Array:
    """One entry a row; a 1-D array is not reshaped: dask may not know its length."""
    return array if array.ndim == 1 else reshaped(xp, array, (math.prod(array.shape),))


def _check_values(
    targets: Array,
    ignored: Array | None,
    ignore_index: int | None,
    weights: dict[str, Array | None],
    given: dict[str, Array | None],
    layout: Layout,
    max_memory: int | None,
) -> None:
    """Look at the values of the checked arrays; a message shows them as they were given."""
    if targets.ndim == len(layout.shape):
        parts = _parts_to_look_at(targets, max_memory)
        suspects = [_suspected_masses("targets", "index", targets, given, layout, parts)]
    else:
        rule = f"be labels from 0 to {layout.classes - 1} ({layout.classes} classes, ignore_index={ignore_index})"
        bad = bad_labels(targets, layout, ignored)
        suspects = [Suspect("targets", rule, "row", lambda _: bad, given["targets"])]
    for (name, weight), unit in zip(weights.items(), ("row", "class"), strict=True):
        if weight is not None:
            suspects.append(_suspected_masses(name, unit, weight, given, layout))
    check_values(layout.home.xp, suspects)


def _parts_to_look_at(masses: Array, max_memory: int | None) -> Sequence[Rows]:
    """Rows of soft targets (R, C) that can be looked at within a budget; dask arrays are in parts already."""
    if max_memory is None or is_dask_array(masses):
        return (None,)
    rows, classes = masses.shape
    step = max(1, max(max_memory, LEAST_LOOK) // (classes * LOOKED_AT))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


LOOKED_AT = 12
"""Bytes that are held at most for a number that is looked at: the number in the working precision, and masks."""


LEAST_LOOK = 2**16
"""Bytes for a look below which there would only be more of them."""


def _suspected_masses(
    name: str,
    unit: str,
    masses: Array,
    given: dict[str, Array | None],
    layout: Layout,
    parts: Sequence[Rows] = (None,),
) -> Suspect:
    _, values = check.as_array(name, given[name])
    rule = "be finite and not negative"
    if values.dtype != layout.working:  # a value may be finite only where it comes from
        rule += f" in {dtype_name(layout.working)}"

    def bad(rows: Rows) -> Array:
        return bad_masses(layout.home.xp, check.as_dtype(layout.home.xp, rows_of(masses, rows), layout.working))

    return Suspect(name, rule, unit, bad, values, parts)
