"""The door: it checks arguments, and caches what the checks found for later calls of the same kind.

Almost all that a check looks at is the same from call to call: types, dtypes, numbers of dimensions and classes, layout
in memory, devices, options. These make a key. The full checks run once for a key, and what they found, a `CallPlan`, is
kept under it. Whether the shapes fit each other is part of the key: the number of rows may change, and a call with
arrays that do not fit has another key. Each call checks what no key holds: memory that `out` shares with others, and
values of labels, weights, label_smoothing and z_loss.

Only calls whose arguments are good are remembered, and of those only calls with arrays of NumPy, CuPy or JAX that need
no conversion, and with options of the types in `PLAIN`. All other calls are checked in full each time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_cupy_array

from xpsoftmax import kernels
from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.axes import as_logits_over_axes, as_mask
from xpsoftmax._arguments.home import Home, computing_context
from xpsoftmax._arguments.layout import Layout, rows_out
from xpsoftmax._arguments.options import check_flag, check_impl
from xpsoftmax._arguments.out import check_memory, check_out
from xpsoftmax._arguments.problem import LossOptions, Problem, check_terms, weigh
from xpsoftmax._typing import Array, DType, Impl

Key = tuple[Any, ...]

REMEMBERED = 256
"""Entries of the memory at most. A full memory is emptied: programs have few kinds of calls."""

PLAIN = frozenset({int, float, bool, str, type(None), np.bool_, np.int64, np.float32, np.float64})
"""Types of options that may be part of a key: their values are hashable and never change."""


# --- the memory -------------------------------------------------------------------------------------------------------

_memory: dict[Key, Any] = {}
_backends = kernels.BACKENDS
"""The table from which the kernels in the memory were selected."""


def recall(key: Key | None) -> Any:
    """What is remembered under a key, or None."""
    if key is None:  # first: torch.compile cannot trace what follows
        return None
    if kernels.BACKENDS is not _backends:
        forget()
    try:
        return _memory.get(key)
    except TypeError:  # an option that is not hashable: the checks say what is wrong with it
        return None


def remember(key: Key | None, found: object, *options: object) -> None:
    """Keep what the checks found under a key that holds these options, if all of them are plain."""
    if key is None or not PLAIN.issuperset(map(type, options)):
        return
    if len(_memory) >= REMEMBERED:
        _memory.clear()
    _memory[key] = found


def forget() -> None:
    """Empty the memory."""
    global _backends
    _memory.clear()
    _backends = kernels.BACKENDS


# --- keys -------------------------------------------------------------------------------------------------------------


def _seen_of_cupy(array: Array) -> Key:
    return array.dtype, array.flags.c_contiguous, array.data.device_id, array.size > 0


SEEN: dict[type, Callable[[Any], Any]] = {np.ndarray: attrgetter("dtype")}
"""What a check may see of an array beside its shape, by its exact type. No key is made for arrays of other types."""


def register_type(array: Array) -> None:
    """Make keys for arrays of this type from now on, if it is CuPy's."""
    if type(array) not in SEEN and is_cupy_array(array):
        SEEN[type(array)] = _seen_of_cupy


def learn_views(array: Array, views: Any) -> None:
    """From now on make keys for arrays of this type, which `views` reads as NumPy arrays."""
    SEEN.setdefault(type(array), views.seen)


def _key_of_out(out: Array | None, logits: Array) -> Key | None:
    if out is None:
        return None
    flags = out.flags.num if type(out) is np.ndarray else None  # contiguous, aligned, writable
    return type(out), SEEN[type(out)](out), out.shape == logits.shape, flags


def _key_of_weight(weight: Array | None, shape: tuple[int, ...]) -> Key | None:
    return None if weight is None else (type(weight), SEEN[type(weight)](weight), weight.shape == shape)


def _key_of_terms(targets: Array, options: LossOptions, shape: tuple[int, ...], axis: int) -> Key:
    class_weight, sample_weight, ignore_index, smoothing, z_loss, reduction, validate = options
    rows = shape[:-1] if axis == -1 else shape[:axis] + shape[axis + 1 :]
    return (
        type(targets),
        SEEN[type(targets)](targets),
        targets.shape == rows,
        targets.shape == shape,
        None if class_weight is None else _key_of_weight(class_weight, (shape[axis],)),
        None if sample_weight is None else _key_of_weight(sample_weight, rows),
        ignore_index,
        type(ignore_index),
        type(smoothing),  # the values of these two are checked at each call
        type(z_loss),
        reduction,
        validate,
        type(validate),  # 1 == True == 1.0, and only True is good
    )


# The warning is what NumPy 2.0 makes of an axis of type bool, where it is an error; later versions raise a TypeError.
NO_KEY = (AttributeError, DeprecationWarning, IndexError, KeyError, TypeError)
"""What is raised where arguments are of a kind for which no key is made; the checks will take them or refuse them."""


# --- calls ------------------------------------------------------------------------------------------------------------


class CallPlan(NamedTuple):
    """What the checks found for calls of one kind, and what such calls run. It holds no arrays."""

    home: Home
    axis: int  # of the classes, not negative
    working: DType
    kernel: Callable[..., Any]
    context: Callable[[], AbstractContextManager[Any]]  # makes the context manager of the computation
    direct: bool  # whether the kernel takes the logits, and `out`, as they are
    terms: Any = None  # of a loss: `Terms`
    adds_up: bool = False  # whether the kernel of a loss returns the sum over the rows
    by_kernel: bool = False  # whether `kernel` is a kernel, not the generic operation
    views: Any = None  # the module that reads the arrays as NumPy arrays; the rest of a plan is then for those
    place: Any = None  # where the results become arrays of the caller's library


def enter_rows(
    operation: str, logits: Array, axis: Any, impl: Impl, out: Array | None = None, where: Array | None = None
) -> tuple[Array, Array | None, Layout, CallPlan]:
    """Check the arguments of a row operation; return logits, mask of the classes, and what is known of them."""
    key = _key_of_rows(operation, logits, axis, impl, out) if where is None else None
    plan = recall(key)
    if plan is None:
        return _check_rows(key, operation, logits, axis, impl, out, where)
    if out is not None:
        check_memory(out, logits, {})
    if plan.views is not None:
        logits = plan.views.as_numpy(logits)
    return logits, None, Layout(plan.home, logits.shape, plan.axis, plan.working), plan


def _check_rows(
    key: Key | None, operation: str, logits: Array, axis: Any, impl: Impl, out: Array | None, where: Array | None
) -> tuple[Array, Array | None, Layout, CallPlan]:
    check_impl(impl)
    array, layout = as_logits_over_axes(logits, axis, differentiable=True)
    mask = as_mask(where, layout)
    check_out(out, logits, layout, {"where": where})
    views = kernels.host_views(impl, array, mask)
    if views is not None:
        *found, plan = _check_rows(None, operation, views.as_numpy(array), axis, impl, None, views.as_numpy(where))
        plan = plan._replace(views=views, place=views.place_of(array, mask))
        learn_views(array, views)
        remember(key, plan, axis, impl)
        return (*found, plan)
    kernel, by_kernel = kernels.selected(operation, array, impl)
    direct = _is_direct(layout, out)
    context = _context(layout.home, array, switches=direct and by_kernel)
    plan = CallPlan(layout.home, layout.axis, layout.working, kernel, context, direct)
    if array is logits:
        register_type(array)
        remember(key, plan, axis, impl)
    return array, mask, layout, plan


def _key_of_rows(operation: str, logits: Array, axis: Any, impl: Impl, out: Array | None) -> Key | None:
    try:
        kind = type(logits)
        seen, shape = SEEN[kind](logits), logits.shape  # in this order: a nested tensor has no shape
        return operation, kind, seen, len(shape), shape[axis], axis, type(axis), impl, _key_of_out(out, logits)
    except NO_KEY:
        return None


def enter_loss(
    logits: Array,
    targets: Array,
    out: Array | None,
    options: LossOptions,
    axis: int,
    impl: Impl,
    *,
    grad: bool,
    aux: bool,
) -> tuple[Array, Array, LossOptions, Layout, CallPlan]:
    """Check the arguments of a loss, except values; return logits, targets, options, and what is known of them."""
    key = _key_of_loss(logits, targets, out, options, axis, impl, grad=grad, aux=aux)
    plan = recall(key)
    if plan is None:
        return _check_loss(key, logits, targets, out, options, axis, impl, grad=grad, aux=aux)
    if out is not None:
        check_memory(out, logits, _others(targets, options))
    if plan.views is not None:
        logits, targets, options = _viewed(plan.views, logits, targets, options)
    return logits, targets, options, Layout(plan.home, logits.shape, plan.axis, plan.working), plan


def _viewed(views: Any, logits: Array, targets: Array, options: LossOptions) -> tuple[Array, Array, LossOptions]:
    """The arrays of a loss as NumPy arrays."""
    if options.class_weight is not None or options.sample_weight is not None:
        options = options._replace(
            class_weight=views.as_numpy(options.class_weight), sample_weight=views.as_numpy(options.sample_weight)
        )
    return views.as_numpy(logits), views.as_numpy(targets), options


def _check_loss(
    key: Key | None,
    logits: Array,
    targets: Array,
    out: Array | None,
    options: LossOptions,
    axis: int,
    impl: Impl,
    *,
    grad: bool,
    aux: bool,
) -> tuple[Array, Array, LossOptions, Layout, CallPlan]:
    check_flag("aux", aux)
    check_impl(impl)
    array, layout = check.as_logits(logits, axis, differentiable=not grad)
    if out is not None:
        check_out(out, logits, layout, _others(targets, options))
    plain_targets, plain_options, terms = check_terms(targets, options, layout)
    given = array, plain_targets, plain_options.class_weight, plain_options.sample_weight
    views = kernels.host_views(impl, *given)
    if views is not None:
        seen = _viewed(views, array, plain_targets, plain_options)
        *found, plan = _check_loss(None, *seen[:2], None, seen[2], axis, impl, grad=grad, aux=aux)
        plan = plan._replace(views=views, place=views.place_of(*given))
        learn_views(array, views)
        remember(key, plan, aux, axis, impl, options.ignore_index, options.reduction, options.validate)
        return (*found, plan)
    kernel, adds_up, by_kernel = kernels.selected_loss(array, impl, add_up=options.reduction != "none" and not aux)
    direct = _is_direct(layout, out)
    context = _context(layout.home, array, switches=direct and by_kernel and terms.labels_alone)
    plan = CallPlan(layout.home, layout.axis, layout.working, kernel, context, direct, terms, adds_up, by_kernel)
    if array is logits and plain_targets is targets and _same_arrays(plain_options, options):
        register_type(array)
        remember(key, plan, aux, axis, impl, options.ignore_index, options.reduction, options.validate)
    return array, plain_targets, plain_options, layout, plan


def _key_of_loss(
    logits: Array,
    targets: Array,
    out: Array | None,
    options: LossOptions,
    axis: Any,
    impl: Impl,
    *,
    grad: bool,
    aux: bool,
) -> Key | None:
    try:
        kind = type(logits)
        seen, shape = SEEN[kind](logits), logits.shape
        return (
            grad,
            aux,
            type(aux),
            kind,
            seen,
            len(shape),
            shape[axis],
            axis,
            type(axis),
            impl,
            None if out is None else _key_of_out(out, logits),
            *_key_of_terms(targets, options, shape, axis),
        )
    except NO_KEY:
        return None


def enter_problem(
    targets: Array, layout: Layout, options: LossOptions, max_memory: int | None, *, for_kernel: bool = False
) -> Problem:
    """Check targets, weights and options beside logits of this layout, and weigh each row: see `weigh`."""
    home = layout.home
    try:
        terms_key = _key_of_terms(targets, options, layout.shape, layout.axis)
        key: Key | None = ("terms", home.xp, home.device, layout.working, *terms_key)
    except NO_KEY:
        key = None
    terms = recall(key)
    if terms is not None:
        return weigh(targets, options, terms, layout, max_memory=max_memory, for_kernel=for_kernel)
    plain_targets, plain_options, terms = check_terms(targets, options, layout)
    if plain_targets is targets and _same_arrays(plain_options, options):
        remember(key, terms, options.ignore_index, options.reduction, options.validate)
    return weigh(plain_targets, plain_options, terms, layout, max_memory=max_memory, for_kernel=for_kernel)


def _others(targets: Array, options: LossOptions) -> dict[str, Any]:
    """The arrays of a loss beside the logits, by their names in messages."""
    return {"targets": targets, "class_weight": options.class_weight, "sample_weight": options.sample_weight}


def _same_arrays(options: LossOptions, others: LossOptions) -> bool:
    return options.class_weight is others.class_weight and options.sample_weight is others.sample_weight


def _is_direct(layout: Layout, out: Array | None) -> bool:
    return len(layout.shape) == 2 and layout.axis == 1 and not layout.axes and rows_out(layout, out) is out


def _context(home: Home, array: Array, *, switches: bool) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes the context manager. CUDA kernels need none: they switch to the device themselves."""
    if switches and is_cupy_array(array) and array.size > 0:
        return nullcontext
    return computing_context(home.xp, home.device)
