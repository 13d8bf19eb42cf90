"""The softmax loss (cross-entropy of the softmax) and its gradient with respect to the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_dask_array, is_jax_array

from xpsoftmax import _validate as check
from xpsoftmax._out import check_out, fits_plainly, fits_plainly_on_gpu
from xpsoftmax._softmax import deliver, in_rows, quiet, reshaped, rows_out, summed, to_rows
from xpsoftmax._typing import Array, Impl, LossSpec, Namespace, Reduction, dtype_name
from xpsoftmax.kernels import kernel_for, select


def softmax_loss(
    logits: Array,
    targets: Array,
    /,
    *,
    axis: int = -1,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool = True,
    impl: Impl = "auto",
) -> Array:
    r"""Softmax loss of logits (..., C, ...) for labels (...) or soft targets (..., C, ...).

    .. math:: L_i = -\log p_{i, y_i} = \log \sum_k e^{z_{ik}} - z_{i, y_i}, \qquad
              L = \frac{\sum_i w_i L_i}{\sum_i w_i}

    Parameters
    ----------
    logits : array, (..., C, ...)
        float16, bfloat16, float32 or float64.
    targets : array
        Labels from 0 to C - 1, of any integer dtype and of the shape of `logits` without `axis`; or soft targets:
        floating, not negative, of the shape of `logits`, with any sum along `axis`.
    axis : int
        The axis of the classes.
    class_weight : array, (C,), optional
        Multiplies the loss of the rows with this label; with soft targets, each term of the sum over classes.
    sample_weight : array, shape of `logits` without `axis`, optional
        Multiplies the loss of each row.
    ignore_index : int, optional
        Rows with this label add nothing. None: no label is ignored.
    label_smoothing : float, 0 to 1
        Take this share of the target's mass and spread it evenly over the classes.
    z_loss : float
        Adds ``z_loss * logsumexp(logits)**2``, times the weight of the row.
    reduction : {"mean", "sum", "none"}
        Weighted mean (the sum divided by the sum of the weights ``class_weight[label] * sample_weight``, for soft
        targets of ``sample_weight``), weighted sum, or one weighted loss a row.
    validate : bool
        Look at the values of labels, soft targets and weights. It costs one small reduction and, on a GPU, one
        synchronisation. Without it a bad row becomes nan, and nothing else does.
    impl : {"auto", "generic", "kernel"}
        As for `softmax`.

    Returns
    -------
    array
        The loss, 0-d, or of the shape of `logits` without `axis` for "none"; float32 for 16-bit logits, else of the
        dtype of `logits`. The mean over no row (no rows, all ignored, all weights zero) is nan.

    Raises
    ------
    TypeError
        If an array is of an unsupported kind or dtype, or of another library than `logits`.
    ValueError
        If a shape, device or option does not fit; with `validate`, if a label is out of range (the message names the
        first such row) or a weight or soft target is negative or not finite; while PyTorch records gradients, if a
        tensor requires grad.
    NotImplementedError
        With ``impl="kernel"``, if no kernel takes these arrays.

    Notes
    -----
    For hard labels the loss of each row has a relative error of at most ``B = (4 + T/2 + log2(C)) * eps``, however
    sure the row is: no digit is lost to ``log(p)`` near p = 1. Soft targets, smoothing and z-loss: at most B times the
    sum of the absolute values of the terms (``tests/test_loss.py``). ``-inf`` logits are classes that cannot be:
    without target mass they add 0, with it the loss is inf. A row with nan or +inf, or with -inf only, is nan, unless
    its weight is zero: then it adds exactly 0.

    JAX differentiates the result as `softmax_loss_and_grad` does, PyTorch does not and says so as for `softmax`. The
    gradient is that of `softmax_loss_and_grad`, which takes tensors that require grad.

    References
    ----------
    Bishop (2006), section 4.3.4; label smoothing: C. Szegedy et al., "Rethinking the Inception architecture", CVPR
    2016; z-loss: A. Chowdhery et al., "PaLM", JMLR 24 (2023), section 5.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> z = np.log([[2.0, 3.0, 5.0], [1.0, 1.0, 2.0]])
    >>> xs.softmax_loss(z, np.array([1, 2]), reduction="none").round(6)
    array([1.203973, 0.693147])
    >>> print(f"{xs.softmax_loss(np.array([50.0, 0.0]), np.array(0)):.9g}")
    1.92874985e-22
    """
    loss, _ = _compute(
        logits,
        targets,
        None,
        LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate),
        axis=axis,
        impl=impl,
        grad=False,
    )
    return loss


def softmax_loss_and_grad(
    logits: Array,
    targets: Array,
    /,
    *,
    axis: int = -1,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool = True,
    impl: Impl = "auto",
    out: Array | None = None,
) -> tuple[Array, Array]:
    r"""Softmax loss and its gradient with respect to the logits.

    .. math:: \frac{\partial L_i}{\partial z_{ij}} = p_{ij} - 1\{j = y_i\}, \qquad
              \frac{\partial L_i}{\partial z_{i y_i}} = -\sum_{k \ne y_i} p_{ik}

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate, impl
        As for `softmax_loss`.
    out : array, shape of `logits`, optional
        Where the gradient is written: `logits` itself, or an array that shares no memory with any argument; of the
        dtype of `logits`, or float32 for 16-bit logits (small gradients vanish in float16). After an error it is as
        it was. Not for JAX and dask arrays, which cannot be written to.

    Returns
    -------
    loss : array
        As `softmax_loss` returns it.
    dlogits : array, shape of `logits`
        Gradient of the loss ("none": of each row's own loss), in the dtype of `logits`, or `out`. Where the loss is a
        mean over no row it is zero: nothing depends on the logits then.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `softmax_loss`, and if `out` does not fit.

    Notes
    -----
    The gradient at the label is formed from the other classes, never as p - 1: every entry keeps its relative
    precision down to underflow (the bound is that of `softmax_loss`, ``tests/test_loss.py``).

    PyTorch tensors may require grad: loss and gradient are detached. torch.func and forward-mode AD, which would take
    their derivatives for zero, are an error.

    References
    ----------
    Bishop (2006), eq. 4.109. Why it matters: L. Prieto et al., "Grokking at the edge of numerical stability", ICLR
    2025.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> loss, dlogits = xs.softmax_loss_and_grad(np.log([[2.0, 3.0, 5.0]]), np.array([1]))
    >>> dlogits.round(6)
    array([[ 0.2, -0.7,  0.5]])
    >>> xs.softmax_loss_and_grad(np.array([50.0, 0.0]), np.array(0))[1]
    array([-1.92874985e-22,  1.92874985e-22])
    """
    loss, dlogits = _compute(
        logits,
        targets,
        out,
        LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate),
        axis=axis,
        impl=impl,
        grad=True,
    )
    return loss, dlogits


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


def _compute(
    logits: Array, targets: Array, out: Array | None, options: LossOptions, *, axis: int, impl: Impl, grad: bool
) -> tuple[Array, Array]:
    check.check_impl(impl)
    if _at_a_glance(logits, targets, out, options, axis):
        return _plain_mean(logits, targets, out, impl, grad=grad)
    result = _plainly_on_gpu(logits, targets, out, options, axis, impl, grad=grad)
    if result is not None:
        return result
    if not grad and type(logits) is not np.ndarray:
        weights = {"class_weight": options.class_weight, "sample_weight": options.sample_weight}
        check.check_unrecorded(logits=logits, targets=targets, **weights)
    array, frame = check.as_logits(logits, axis)
    others = {"targets": targets, "class_weight": options.class_weight, "sample_weight": options.sample_weight}
    check_out(out, logits, frame, others)
    xp = frame.xp
    with quiet(xp, frame.device):
        problem = prepare(targets, frame, options)
        kernel = select("softmax_loss_rows", array, impl)
        losses, dlogits = kernel(
            in_rows(array, frame, out),
            problem.targets,
            problem.row_weight,
            problem.spec,
            grad=grad,
            out=rows_out(frame, out),
        )
        loss = _reduced(losses, problem, frame, options.reduction, impl)
        return loss, deliver(xp, dlogits, frame, out) if grad else None


_PLAIN, _INT64 = LossSpec(), np.dtype("i8")


def _at_a_glance(logits: Any, targets: Any, out: Any, options: LossOptions, axis: Any) -> bool:
    """Whether the arguments are as plain as almost always, so that no check would find anything.

    NumPy rows, labels that are classes, and no option: all checks together take longer than a small loss itself.
    """
    return bool(
        check.is_plain(logits, axis)
        and _plain_labels(targets, logits.shape, options)
        and (out is None or fits_plainly(out, logits, targets))
    )


def _plain_labels(targets: Any, shape: tuple[int, ...], options: LossOptions) -> bool:
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


def _plain_mean(logits: Array, labels: Array, out: Array | None, impl: Impl, *, grad: bool) -> tuple[Array, Array]:
    row_weight = filled(labels.size, 1.0 / labels.size, logits.dtype)
    kernel = select("softmax_loss_rows", logits, impl)
    with np.errstate(all="ignore"):
        losses, dlogits = kernel(logits, labels, row_weight, _PLAIN, grad=grad, out=out)
        return summed(np, losses), dlogits


def _plainly_on_gpu(
    logits: Any, labels: Any, out: Any, options: LossOptions, axis: Any, impl: Impl, *, grad: bool
) -> tuple[Array, Array] | None:
    """The same for CuPy: a launch for the rows and one for the sum of their losses; None if it is not so plain.

    Labels of any integer dtype are used as they are, and no array is made of a weight that all rows have.
    """
    if not (
        check.is_plain_on_gpu(logits, axis)
        and check.are_plain_labels_on_gpu(labels, logits)
        and options.weigh_nothing()
        and (out is None or fits_plainly_on_gpu(out, logits, labels))
    ):
        return None
    kernel = kernel_for("softmax_loss_rows" if options.reduction == "none" else "softmax_loss_total", logits, impl)
    if kernel is None:
        return None
    if options.validate and not select("are_classes", labels, "auto")(labels, logits.shape[1]):
        return None
    weight = 1.0 / logits.shape[0] if options.reduction == "mean" else 1.0
    spec = _spec(options.label_smoothing, options.z_loss)
    loss, dlogits = kernel(logits, labels, weight, spec, grad=grad, out=out)
    return loss, dlogits


@lru_cache(maxsize=64)
def _spec(label_smoothing: float, z_loss: float) -> LossSpec:
    return LossSpec(None, label_smoothing, z_loss)


def filled(rows: int, value: float, dtype: Any) -> Array:
    """A NumPy array (rows,) of one value."""
    array = np.empty(rows, dtype)
    array.fill(value)
    return array


def prepare(targets: Array, frame: check.Frame, options: LossOptions, max_memory: int | None = None) -> Problem:
    """Check targets, weights and options; lay the targets out as rows and weigh each row.

    With `max_memory` soft targets are looked at some rows at a time, and stay in their dtype: a chunk of them is cast.
    """
    xp = frame.xp
    # Labels of another library are seen first: under torch.compile the other question cannot be asked.
    if frame.axis == 1 and _plain_labels(targets, frame.shape, options) and xp is check.numpy_namespace():
        rows = frame.shape[0]
        return Problem(targets, filled(rows, 1.0 / rows, frame.working), float(rows), _PLAIN)
    check.check_choice("reduction", options.reduction, ("mean", "sum", "none"))
    check.check_flag("validate", options.validate)
    smoothing = check.as_number("label_smoothing", options.label_smoothing, high=1.0)
    z_loss = check.as_number("z_loss", options.z_loss)
    ignore_index = None if options.ignore_index is None else check.as_integer("ignore_index", options.ignore_index)
    array = check.as_targets(targets, frame, ignore_index)
    sample_weight = check.as_weight(
        "sample_weight", options.sample_weight, frame, frame.rows_shape, "that of logits without the class axis"
    )
    class_weight = check.as_weight("class_weight", options.class_weight, frame, (frame.classes,), "one weight a class")
    soft = array.ndim == len(frame.shape)
    ignored = None if soft or ignore_index is None else _equal(xp, array, ignore_index)
    if options.validate:
        weights = {"sample_weight": sample_weight, "class_weight": class_weight}
        given = {"targets": targets, "sample_weight": options.sample_weight, "class_weight": options.class_weight}
        _check_values(array, ignored, ignore_index, weights, given, frame, max_memory)
    if soft and max_memory is None:
        array = check.as_dtype(xp, array, frame.working)

    alike = sample_weight is None and ignored is None and (class_weight is None or soft)
    rows = to_rows(xp, array, frame.axis) if soft else _flat(xp, array)
    counting = _ones(xp, rows, frame.working)
    if sample_weight is not None:
        counting = _flat(xp, sample_weight)
        if frame.lengthless:
            from xpsoftmax.kernels.blocks import beside  # imports dask: not before the caller has

            counting = beside("sample_weight", counting, "targets", rows)
    if ignored is not None:
        counting = xp.where(_flat(xp, ignored), 0.0, counting)
    row_weight = counting
    if class_weight is not None and not soft:
        inside = (rows >= 0) & (rows < frame.classes)
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


def _reduced(losses: Array, problem: Problem, frame: check.Frame, reduction: Reduction, impl: Impl) -> Array:
    xp = frame.xp
    if reduction == "none":
        return losses if len(frame.shape) == 2 else reshaped(xp, losses, frame.rows_shape)
    loss = summed(xp, losses, impl)
    return mean_or_nan(xp, loss, problem.total) if reduction == "mean" else loss


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
    frame: check.Frame,
    max_memory: int | None,
) -> None:
    """Look at the values of the checked arrays; a message shows them as they were given."""
    if targets.ndim == len(frame.shape):
        parts = _parts_to_look_at(targets, max_memory)
        suspects = [_suspected_masses("targets", "index", targets, given, frame, parts)]
    else:
        rule = f"be labels from 0 to {frame.classes - 1} ({frame.classes} classes, ignore_index={ignore_index})"
        bad = check.bad_labels(targets, frame, ignored)
        suspects = [check.Suspect("targets", rule, "row", lambda _: bad, given["targets"])]
    for (name, weight), unit in zip(weights.items(), ("row", "class"), strict=True):
        if weight is not None:
            suspects.append(_suspected_masses(name, unit, weight, given, frame))
    check.check_values(frame, suspects)


def _parts_to_look_at(masses: Array, max_memory: int | None) -> Sequence[check.Rows]:
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
    frame: check.Frame,
    parts: Sequence[check.Rows] = (None,),
) -> check.Suspect:
    _, values = check.as_array(name, given[name])
    rule = "be finite and not negative"
    if values.dtype != frame.working:  # a value may be finite only where it comes from
        rule += f" in {dtype_name(frame.working)}"

    def bad(rows: check.Rows) -> Array:
        return check.bad_masses(frame, check.as_dtype(frame.xp, check.rows_of(masses, rows), frame.working))

    return check.Suspect(name, rule, unit, bad, values, parts)
