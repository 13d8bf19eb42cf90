"""Targets, weights and options of a loss, checked and laid out as rows.

`check_terms` looks at everything but values: what it finds depends on types, dtypes, shapes and options, so that the
door can remember it. `weigh` looks at the values and computes what multiplies each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_dask_array, is_jax_array

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.layout import Layout, reshaped, to_rows
from xpsoftmax._arguments.options import as_integer, as_number, check_choice, check_flag
from xpsoftmax._arguments.values import Rows, ValueCheck, bad_labels, bad_masses, check_values, rows_of
from xpsoftmax._typing import Array, DType, LossSpec, Namespace, Reduction, dtype_name
from xpsoftmax.kernels import kernel_for, of_library
from xpsoftmax.kernels.generic import RowWeights


class LossOptions(NamedTuple):
    """The options of a loss as the caller gave them."""

    class_weight: Array | None = None
    sample_weight: Array | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    reduction: Reduction = "mean"
    validate: bool = True


class Terms(NamedTuple):
    """What is known of targets and options before any value is looked at. It holds no arrays."""

    soft: bool  # soft targets, not labels
    labels_alone: bool  # labels without weights and ignore_index
    ignore_index: int | None
    index_dtype: DType | None  # of the library; None for soft targets
    wraps: bool  # whether labels may be too large for it
    are_classes: Callable[[Array, int], bool] | None  # kernels that look at the values of one array; None where all
    are_weights: Callable[[Array], bool] | None  # arrays share one wait for the device
    weigh_rows: Callable[..., RowWeights] | None  # a kernel that weighs rows with labels, and looks at all values


class Problem(NamedTuple):
    """Checked rows, ready for a row operation."""

    targets: Array  # (R,) labels, or (R, C) soft targets: see `weigh` for their dtype
    row_weight: Array  # (R,): all that multiplies a row; 0 where it must not count. For kernels it may be a float
    total: Array | float  # 0-d: the sum of the counting weights; a number where it is known without them
    spec: LossSpec
    counting: Array | None = None  # (R,): counting weights; None where every row counts 1
    weighted: bool = False  # whether some rows may not count
    correction: Array | None = None  # 0-d, to add to a mean: nan if no row counts, else 0. None: look at the total


_PLAIN_SPEC, _KNOWN_SPEC = LossSpec(), LossSpec(labels_known=True)


def prepare(targets: Array, layout: Layout, options: LossOptions, max_memory: int | None = None) -> Problem:
    """Check targets, weights and options; lay the targets out as rows and weigh each row. See `weigh`."""
    return weigh(*check_terms(targets, options, layout), layout, max_memory=max_memory)


def check_terms(targets: Array, options: LossOptions, layout: Layout) -> tuple[Array, LossOptions, Terms]:
    """Check types, dtypes, shapes and options, but not the values of arrays.

    Return targets and options whose arrays are of the base class of their library, and not recorded by autograd.
    """
    check_choice("reduction", options.reduction, ("mean", "sum", "none"))
    check_flag("validate", options.validate)
    as_number("label_smoothing", options.label_smoothing, high=1.0)
    as_number("z_loss", options.z_loss)
    ignore_index = None if options.ignore_index is None else as_integer("ignore_index", options.ignore_index)
    array = check.as_targets(targets, layout, ignore_index)
    sample_weight = check.as_weight(
        "sample_weight", options.sample_weight, layout, layout.rows_shape, "that of logits without the class axis"
    )
    of_classes = (layout.classes,)
    class_weight = check.as_weight("class_weight", options.class_weight, layout, of_classes, "one weight a class")
    if class_weight is not options.class_weight or sample_weight is not options.sample_weight:
        options = options._replace(class_weight=class_weight, sample_weight=sample_weight)
    soft = array.ndim == len(layout.shape)
    unweighted = class_weight is sample_weight is ignore_index is None
    index_dtype, wraps = (None, False) if soft else check.index_of(array, layout.home.xp)
    labels_alone = unweighted and not soft
    are_weights = None if labels_alone else kernel_for("are_weights", array, "auto")
    # Each of these kernels waits for the device: where they cannot look at all arrays, one wait for all is better.
    are_classes = kernel_for("are_classes", array, "auto") if labels_alone or are_weights else None
    weigh_rows = None if soft or labels_alone else kernel_for("weigh_rows", array, "auto")
    looks = are_classes, are_weights, weigh_rows
    return array, options, Terms(soft, labels_alone, ignore_index, index_dtype, wraps, *looks)


def weigh(
    targets: Array,
    options: LossOptions,
    terms: Terms,
    layout: Layout,
    *,
    max_memory: int | None = None,
    for_kernel: bool = False,
) -> Problem:
    """Look at the values of checked targets and weights, lay the targets out as rows, and weigh each row.

    Labels are in the index dtype, soft targets in the working precision. With `max_memory` soft targets are looked at
    some rows at a time, and stay in their dtype: a chunk of them is cast. A kernel (`for_kernel`) takes labels of any
    integer dtype, and a number as the weight of all rows.
    """
    # 0 is in range, whatever its type.
    smoothing = as_number("label_smoothing", options.label_smoothing, high=1.0) if options.label_smoothing else 0.0
    z_loss = as_number("z_loss", options.z_loss) if options.z_loss else 0.0
    if terms.labels_alone and (for_kernel or type(targets) is np.ndarray):
        if not options.validate or _are_classes(targets, terms, layout):
            return _weigh_equally(targets, options, terms, layout, smoothing, z_loss, for_kernel=for_kernel)
        terms = terms._replace(are_classes=None)  # some labels are bad; `_check_values` finds the first
    with layout.home.context():
        return _weigh_each(targets, options, terms, layout, smoothing, z_loss, max_memory)


def _weigh_equally(
    targets: Array,
    options: LossOptions,
    terms: Terms,
    layout: Layout,
    smoothing: float,
    z_loss: float,
    *,
    for_kernel: bool,
) -> Problem:
    """Weigh rows that all weigh the same: with one number for a kernel, else with a NumPy array of it."""
    rows = targets if targets.ndim == 1 else targets.reshape(-1)
    count = rows.shape[0]
    row_weight: Any = 1.0 / count if count and options.reduction == "mean" else 1.0
    known = for_kernel and bool(options.validate)  # where the labels are used at once
    if not for_kernel:
        rows = check.as_index(rows, terms.index_dtype, layout, None, wraps=terms.wraps)
        row_weight = filled(count, row_weight, layout.working)
    return Problem(rows, row_weight, float(count), _spec(None, smoothing, z_loss, known=known))


def filled(count: int, value: float, dtype: Any) -> Array:
    """An array of NumPy (count,) of one value."""
    array = np.empty(count, dtype)
    array.fill(value)
    return array


def _weigh_each(
    targets: Array,
    options: LossOptions,
    terms: Terms,
    layout: Layout,
    smoothing: float,
    z_loss: float,
    max_memory: int | None,
) -> Problem:
    """Weigh rows that may have different weights."""
    xp, soft, ignore_index = layout.home.xp, terms.soft, terms.ignore_index
    class_weight, sample_weight = options.class_weight, options.sample_weight
    if class_weight is not None:
        class_weight = check.as_dtype(xp, class_weight, layout.working)
    if sample_weight is not None:
        sample_weight = check.as_dtype(xp, sample_weight, layout.working)
    array, ignored = targets, None
    if not soft:
        array = check.as_index(targets, terms.index_dtype, layout, ignore_index, wraps=terms.wraps)
        problem = _weigh_by_kernel(array, class_weight, sample_weight, options, terms, layout, smoothing, z_loss)
        if problem is not None:
            return problem
        ignored = None if ignore_index is None else _equal(xp, array, ignore_index)
    sound = options.validate and _are_sound(targets, class_weight, sample_weight, terms, layout)
    if options.validate and not sound:
        weights = {"sample_weight": sample_weight, "class_weight": class_weight}
        _check_values(array, ignored, ignore_index, weights, targets, options, layout, max_memory)
    if soft and max_memory is None:
        array = check.as_dtype(xp, array, layout.working)
    rows = to_rows(xp, array, layout.axis) if soft else _flat(array)

    equal = sample_weight is None and ignored is None and (class_weight is None or soft)
    counting = _counting(xp, rows, sample_weight, ignored, layout)
    row_weight = counting
    if class_weight is not None and not soft:
        counting = counting * _weight_of_labels(xp, class_weight, rows, known=sound)
        if smoothing == 0.0:  # the class weight is a factor of the whole row
            row_weight, class_weight = counting, None
    # Arrays of unknown length have to count their rows.
    total = float(rows.shape[0]) if equal and isinstance(rows.shape[0], int) else _sum(xp, counting)
    if options.reduction == "mean":
        row_weight = divided(xp, row_weight, total)
    weighted = any(x is not None for x in (sample_weight, ignored, options.class_weight))
    spec = _spec(class_weight, smoothing, z_loss)
    return Problem(rows, row_weight, total, spec, None if equal else counting, weighted)


def _weigh_by_kernel(
    labels: Array,
    class_weight: Array | None,
    sample_weight: Array | None,
    options: LossOptions,
    terms: Terms,
    layout: Layout,
    smoothing: float,
    z_loss: float,
) -> Problem | None:
    """Weigh rows by a kernel, which looks at the values, too.

    None: there is no kernel, or some values are bad, and `_check_values` finds the first.
    """
    if terms.weigh_rows is None:
        return None
    rows, within = _flat(labels), smoothing > 0.0 and class_weight is not None
    weighed = terms.weigh_rows(
        rows,
        layout.classes,
        layout.working,
        sample_weight=None if sample_weight is None else _flat(sample_weight),
        class_weight=class_weight,
        ignore_index=terms.ignore_index,
        within=within,
        mean=options.reduction == "mean",
        validate=bool(options.validate),
    )
    if weighed.sound is False:
        return None
    spec = _spec(class_weight if within else None, smoothing, z_loss)
    return Problem(
        rows, weighed.weights, weighed.total, spec, weighed.counting, weighted=True, correction=weighed.correction
    )


def _are_classes(targets: Array, terms: Terms, layout: Layout) -> bool:
    """Whether a kernel finds all labels to be classes; if not, or if there is none, `_check_values` looks at them."""
    return terms.are_classes is not None and terms.are_classes(targets, layout.classes)


def _are_weights(weights: Array | None, terms: Terms) -> bool:
    return weights is None or (terms.are_weights is not None and terms.are_weights(weights))


def _are_sound(
    targets: Array, class_weight: Array | None, sample_weight: Array | None, terms: Terms, layout: Layout
) -> bool:
    """Whether kernels find all values good."""
    if terms.soft:
        if targets.dtype != layout.working or not _are_weights(targets, terms):
            return False
    elif not _are_classes(targets, terms, layout):
        return False
    return _are_weights(class_weight, terms) and _are_weights(sample_weight, terms)


def _spec(class_weight: Array | None, smoothing: float, z_loss: float, *, known: bool = False) -> LossSpec:
    if class_weight is None and smoothing == z_loss == 0.0:
        return _KNOWN_SPEC if known else _PLAIN_SPEC
    return LossSpec(class_weight, smoothing, z_loss, known)


def _counting(xp: Namespace, rows: Array, sample_weight: Array | None, ignored: Array | None, layout: Layout) -> Array:
    """Counting weights (R,) before class weights."""
    if sample_weight is None:
        counting = _ones(xp, rows, layout.working)
    else:
        counting = _flat(sample_weight)
        if layout.lengthless:
            from xpsoftmax.kernels.dask import with_rows_of  # imports dask, as the caller has done already

            counting = with_rows_of("sample_weight", counting, "targets", rows)
    return counting if ignored is None else xp.where(_flat(ignored), 0.0, counting)


def _weight_of_labels(xp: Namespace, class_weight: Array, labels: Array, *, known: bool) -> Array:
    """Class weight of each label (R,); 1 for labels that are no class. `known`: all are classes."""
    if known:
        return class_weight[labels]
    inside = (labels >= 0) & (labels < class_weight.shape[0])
    of_label = of_library("class_weight_at", class_weight)(class_weight, xp.where(inside, labels, 0))
    return xp.where(inside, of_label, 1.0)


def _ones(xp: Namespace, rows: Array, dtype: Any) -> Array:
    """1 for each row of targets, (R,) or (R, C)."""
    if type(rows) is np.ndarray:
        return filled(rows.shape[0], 1.0, dtype)
    if rows.ndim == 2 and is_jax_array(rows):  # in JAX the classes may be in parts, which cannot be cut
        return xp.ones(rows.shape[0], dtype=dtype)
    return xp.ones_like(rows[:, 0] if rows.ndim == 2 else rows, dtype=dtype)


def _sum(xp: Namespace, x: Array) -> Array:
    return np.add.reduce(x) if type(x) is np.ndarray else xp.sum(x)


def divided(xp: Namespace, row_weight: Array, total: Array | float) -> Array:
    """Weights of a mean: zero if the total is zero (there is no mean), nan if the total overflowed."""
    if type(total) is float:  # not a NumPy scalar, which is one too
        return row_weight / (total or 1.0)
    if type(row_weight) is np.ndarray and 0.0 < total < math.inf:
        return row_weight / total
    share = row_weight / xp.where(total == 0.0, 1.0, total)
    return xp.where(total == 0.0, 0.0, xp.where(xp.isfinite(total), share, float("nan")))


def mean_or_nan(xp: Namespace, loss: Array, total: Array | float, correction: Array | None = None) -> Array:
    """Return nan for the mean over no row."""
    if correction is not None:
        return loss + correction
    if type(total) is float:
        # `where`, not a new array: PyTorch goes on recording.
        return loss if total > 0.0 else xp.where(xp.isfinite(loss), float("nan"), loss)
    if type(loss) is np.ndarray and total != 0.0:
        return loss
    return xp.where(total == 0.0, float("nan"), loss)


def _equal(xp: Namespace, labels: Array, value: int) -> Array:
    """Compare labels, already in the index dtype, with a number that need not fit it."""
    info = xp.iinfo(labels.dtype)
    return labels == value if info.min <= value <= info.max else xp.zeros_like(labels, dtype=xp.bool)


def _flat(array: Array) -> Array:
    """Flatten to one entry a row. A 1-D array is not reshaped: dask may not know its length."""
    return array if array.ndim == 1 else reshaped(array, (math.prod(array.shape),))


def _check_values(
    array: Array,
    ignored: Array | None,
    ignore_index: int | None,
    weights: dict[str, Array | None],
    targets: Array,
    options: LossOptions,
    layout: Layout,
    max_memory: int | None,
) -> None:
    """Check the values of labels or soft targets, and of weights in the working precision, with one synchronisation.

    Messages show values as they are in `targets` and `options`, before any cast.
    """
    if array.ndim == len(layout.shape):
        parts = _parts_to_look_at(array, max_memory)
        value_checks = [_masses_check("targets", "index", array, targets, layout, parts)]
    else:
        rule = f"be labels from 0 to {layout.classes - 1} ({layout.classes} classes, ignore_index={ignore_index})"
        bad = bad_labels(array, layout, ignored)
        value_checks = [ValueCheck("targets", rule, "row", lambda _: bad, targets)]
    for (name, weight), unit in zip(weights.items(), ("row", "class"), strict=True):
        if weight is not None:
            value_checks.append(_masses_check(name, unit, weight, getattr(options, name), layout))
    check_values(layout.home.xp, value_checks)


def _parts_to_look_at(masses: Array, max_memory: int | None) -> Sequence[Rows]:
    """Parts of soft targets (R, C) that are checked within a budget; the parts of a dask array are its blocks."""
    if max_memory is None or is_dask_array(masses):
        return (None,)
    rows, classes = masses.shape
    step = max(1, max(max_memory, LEAST_LOOK) // (classes * LOOKED_AT))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


LOOKED_AT = 12
"""Most bytes of temporary arrays for each number that is checked: the number in the working precision, and masks."""


LEAST_LOOK = 2**16
"""Least bytes of rows that are checked in one step: smaller steps save no memory that matters, and take longer."""


def _masses_check(
    name: str, unit: str, masses: Array, given: Array, layout: Layout, parts: Sequence[Rows] = (None,)
) -> ValueCheck:
    rule = "be finite and not negative"
    if given.dtype != layout.working:  # a value may be finite only where it comes from
        rule += f" in {dtype_name(layout.working)}"

    def bad(rows: Rows) -> Array:
        return bad_masses(layout.home.xp, check.as_dtype(layout.home.xp, rows_of(masses, rows), layout.working))

    return ValueCheck(name, rule, unit, bad, given, parts)
