"""Every argument check and its message: "{argument} must {rule}, got {value}."."""

from __future__ import annotations

import itertools
import math
import operator
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from array_api_compat import (
    array_namespace,
    device,
    is_array_api_obj,
    is_cupy_array,
    is_dask_array,
    is_jax_array,
    is_numpy_array,
    is_pydata_sparse_array,
    is_torch_array,
)

from xpsoftmax._typing import SIXTEEN_BIT, Array, Device, DType, Namespace, dtype_name

FLOATING = ("float16", "bfloat16", "float32", "float64")
INTEGRAL = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


Rows: TypeAlias = "slice | None"


class Frame(NamedTuple):
    """What the arguments beside the logits must fit: where the logits live and what they look like."""

    xp: Namespace
    device: Device
    shape: tuple[Any, ...]  # of the logits; a size is nan where a dask array does not know it
    axis: int  # of the classes, not negative
    working: DType  # float32 or float64
    owner: str = "logits"  # the argument that brought them
    blocks: tuple[int, ...] = ()  # of a dask array: how many along each axis

    @property
    def lengthless(self) -> bool:
        """Whether the rows are blocks of a dask array that does not know how many each block has."""
        return bool(self.blocks) and any(_unknown(size) for size in self.shape)

    @property
    def classes(self) -> int:
        """C."""
        return int(self.shape[self.axis])

    @property
    def rows_shape(self) -> tuple[Any, ...]:
        """Shape of the logits without the class axis: one entry a row."""
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]


# --- arrays -----------------------------------------------------------------------------------------------------------


@cache
def numpy_namespace() -> Namespace:
    return array_namespace(np.empty(0))


def as_array(name: str, value: object) -> tuple[Namespace, Array]:
    """Check that `value` is an array; return its namespace and the array, freed of subclasses and autograd."""
    if type(value) is np.ndarray:  # nothing to ask, and short calls are felt
        return numpy_namespace(), value
    if not _is_dense(value):
        raise TypeError(f"{name} must be a plain dense array, got {_kind(value)}. Convert it first.")
    try:
        xp = array_namespace(value)
    except TypeError:
        raise TypeError(f"{name} must be an array of an Array API library, got {_kind(value)}.") from None
    if is_numpy_array(value):
        value = np.asarray(value)
    elif is_torch_array(value):
        _check_untransformed(name, value)
        value = value.detach()
    elif is_dask_array(value):
        value = without_empty_blocks(value)
    return xp, value


# Results are detached tensors: PyTorch would take them for constants, and their derivatives for zero.


def check_unrecorded(**arrays: object) -> None:
    """Refuse PyTorch tensors through which PyTorch would differentiate the result of a function."""
    for name, value in arrays.items():
        if type(value) is np.ndarray or not is_torch_array(value):
            continue
        if _is_recorded(value):
            raise ValueError(
                f"{name} must not require grad while PyTorch records gradients, got a tensor that does: they would not "
                "pass through the result. Call detach() on it, or take loss and gradient from softmax_loss_and_grad or "
                "mlp_loss_and_grad."
            )


def layers_by_name(params: object) -> dict[str, object]:
    """The arrays of layers, by the names that messages give them; nothing of what are no layers."""
    if not isinstance(params, (tuple, list)):
        return {}
    return {
        f"params[{i}].{part}": array
        for i, layer in enumerate(params)
        if isinstance(layer, (tuple, list)) and len(layer) == 2
        for part, array in zip(("weight", "bias"), layer, strict=True)
    }


def _check_untransformed(name: str, tensor: Array) -> None:
    """Refuse a tensor by which torch.func, or forward-mode AD, differentiates whatever is computed from it."""
    if _is_transformed(tensor):
        raise ValueError(
            f"{name} must not be differentiated by torch.func or forward-mode AD, got a tensor that is: its derivative "
            "would be zero. Call detach() on it, and take gradients from softmax_loss_and_grad or mlp_loss_and_grad."
        )


def _is_recorded(tensor: Array) -> bool:
    """Whether autograd records what is computed from a tensor, on any level of torch.func."""
    torch = sys.modules["torch"]
    if not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling():  # where torch.func.grad is compiled only what is made of its argument says so
        return bool(tensor.requires_grad or tensor.view_as(tensor).requires_grad)
    return any(level.requires_grad for level in _levels(tensor))


def _is_transformed(tensor: Array) -> bool:
    torch = sys.modules["torch"]
    if torch.compiler.is_compiling():
        if _has_tangent(tensor):
            return True
        return _is_recorded(tensor) and torch._C._functorch.maybe_current_level() is not None
    if torch._C._functorch.peek_interpreter_stack() is None:
        return _has_tangent(tensor)
    records = torch.is_grad_enabled()
    return any(level.has_tangent or (records and level.wraps and level.requires_grad) for level in _levels(tensor))


def _has_tangent(tensor: Array) -> bool:
    forward = sys.modules["torch"].autograd.forward_ad
    return forward._current_level >= 0 and forward.unpack_dual(tensor).tangent is not None


class _Level(NamedTuple):
    """A tensor on a level of torch.func, which wraps the one on the level below."""

    wraps: bool
    requires_grad: bool
    has_tangent: bool


def _levels(tensor: Array) -> list[_Level]:
    """What a tensor is on each level, from the innermost transform out; the last one is PyTorch's own."""
    functorch = sys.modules["torch"]._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return [_Level(wraps=False, requires_grad=bool(tensor.requires_grad), has_tangent=False)]
    from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

    levels = []
    with ExitStack() as outside:
        while True:
            wraps = functorch.is_functorch_wrapped_tensor(tensor)
            now = functorch.maybe_current_level()
            if now is not None and not (wraps and functorch.maybe_get_level(tensor) == now):
                # A tensor answers on its own level alone.
                outside.enter_context(temporarily_pop_interpreter_stack())
                continue
            has_tangent = not functorch.is_batchedtensor(tensor) and _has_tangent(tensor)
            levels.append(_Level(wraps, bool(tensor.requires_grad), has_tangent))
            if not wraps:
                return levels
            tensor = functorch.get_unwrapped(tensor)


def _unbatched(array: Array) -> Array:
    """A tensor within torch.func.vmap with the dimensions that vmap hides, the outermost first; others as they are."""
    if not is_torch_array(array):
        return array
    functorch = sys.modules["torch"]._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return array
    while functorch.is_functorch_wrapped_tensor(array):
        hidden = functorch.maybe_get_bdim(array) if functorch.is_batchedtensor(array) else None
        array = functorch.get_unwrapped(array)
        array = array if hidden is None else array.movedim(hidden, 0)
    return array


def without_empty_blocks(array: Array) -> Array:
    """A dask array without the blocks that are known to have no entries; one block stays where there are no others.

    Dask takes every dimension of size 1 for one that is repeated as often as others have blocks, and reshapes no empty
    blocks: both of them give wrong results, or errors about its graph, where one row lies among empty blocks.
    """
    for axis, sizes in enumerate(array.chunks):
        kept = [block for block, size in enumerate(sizes) if size != 0] or [0]
        if len(kept) < len(sizes) and not any(_unknown(size) for size in sizes):
            array = array.blocks[(*(slice(None),) * axis, kept)]
    nothing = 0 in array.shape and not any(_unknown(size) for size in array.shape)
    return array.rechunk(-1) if nothing and array.npartitions > 1 else array


def _is_dense(value: Any) -> bool:
    # np.matrix multiplies with * and a masked array hides values: both would change what every formula means.
    if isinstance(value, (np.ma.MaskedArray, np.matrix)) or is_pydata_sparse_array(value):
        return False
    if is_torch_array(value):
        return str(value.layout) == "torch.strided" and not value.is_nested
    return not is_dask_array(value) or (is_array_api_obj(value._meta) and _is_dense(value._meta))


def _is_floating(array: Array) -> bool:
    kind = dtype_name(array.dtype)
    if kind != "bfloat16":
        return kind in FLOATING
    # NumPy knows bfloat16 only as a foreign type: comparisons and reductions on it are not what they seem.
    return not (is_numpy_array(array) or is_dask_array(array))


def as_floating(name: str, value: object) -> tuple[Namespace, Array]:
    """Check for an array of float16, bfloat16, float32 or float64; return it in native byte order."""
    xp, array = as_array(name, value)
    if not _is_floating(array):
        raise TypeError(f"{name} must be of dtype float16, bfloat16, float32 or float64, got {array.dtype}.")
    if not getattr(array.dtype, "isnative", True):
        array = xp.astype(array, array.dtype.newbyteorder("="))
    return xp, array


_PLAIN = (np.dtype("f4"), np.dtype("f8"))


def is_plain(logits: Any, axis: object) -> bool:
    """Whether `as_logits` would find nothing: rows of a NumPy array, as almost always."""
    return (
        type(logits) is np.ndarray
        and logits.dtype in _PLAIN
        and logits.ndim == 2
        and logits.size > 0
        and type(axis) is int
        and (axis == -1 or axis == 1)
    )


def is_plain_on_gpu(logits: Any, axis: object) -> bool:
    """Whether `as_logits` would find nothing: rows of CuPy, contiguous."""
    return (
        type(logits) is not np.ndarray
        and is_cupy_array(logits)
        and logits.ndim == 2
        and logits.size > 0
        and type(axis) is int
        and (axis == -1 or axis == 1)
        and _is_native(logits.dtype, FLOATING)
        and logits.flags.c_contiguous
    )


def are_plain_labels_on_gpu(labels: Any, logits: Any) -> bool:
    """Whether `as_targets` would find nothing: labels of CuPy, contiguous, beside logits that are plain there."""
    return (
        type(labels) is type(logits)
        and labels.shape == logits.shape[:1]
        and logits.data.device_id == labels.data.device_id
        and _is_native(labels.dtype, INTEGRAL)
        and labels.flags.c_contiguous
    )


@cache
def _is_native(dtype: DType, names: tuple[str, ...]) -> bool:
    return dtype_name(dtype) in names and dtype.isnative


def as_logits(logits: object, axis: object) -> tuple[Array, Frame]:
    """Check the logits and the class axis."""
    xp, array = as_floating("logits", logits)
    if array.ndim == 0:
        raise ValueError("logits must have at least one dimension, got shape ().")
    position = as_axis(axis, array.ndim)
    if array.shape[position] == 0:
        raise ValueError(f"logits must have at least one class along axis {axis}, got shape {tuple(array.shape)}.")
    if _unknown(array.shape[position]) or (array.ndim != 2 and any(_unknown(size) for size in array.shape)):
        raise ValueError(
            f"logits must be of known size, except for the rows of a matrix, got shape {tuple(array.shape)}. "
            "For a dask array, call compute_chunk_sizes() first."
        )
    frame = Frame(xp, home(array), tuple(array.shape), position, working_dtype(xp, array), blocks=blocks_of(array))
    return array, frame


def working_dtype(xp: Namespace, array: Array) -> DType:
    """Return float32 for 16-bit numbers, else the array's own dtype."""
    return xp.float32 if dtype_name(array.dtype) in SIXTEEN_BIT else array.dtype


def as_axis(axis: object, ndim: int) -> int:
    """Check an axis; return it counted from the front."""
    position = as_integer("axis", axis)
    if not -ndim <= position < ndim:
        raise ValueError(f"axis must be from {-ndim} to {ndim - 1} for {ndim}-dimensional logits, got {position}.")
    return position % ndim


def as_companion(name: str, value: object, frame: Frame) -> Array:
    """Check that an array is of the library and on the device of the frame."""
    xp, array = as_array(name, value)
    if xp is frame.xp and type(array) is np.ndarray:
        return array
    if xp is not frame.xp:
        raise TypeError(
            f"{name} must be an array of the same library as {frame.owner} ({library(frame.xp)}), "
            f"got one of {library(xp)}."
        )
    where = home(array)
    # Arrays being traced by jax.jit have no device.
    if where is not None and frame.device is not None and not _same_devices(where, frame.device):
        raise ValueError(f"{name} must be on the device of {frame.owner} ({frame.device}), got {where}.")
    return array


def home(array: Array) -> Device | None:
    """Return the device of an array, or the devices that JAX has spread it over; None if the library may move it."""
    if not is_jax_array(array) or _is_traced(array):
        return device(array)
    return device(array) if getattr(array, "committed", True) else None


def placement(array: Array) -> Device | None:
    """Return where to make an array to go with this one; None if the library puts it where it is needed.

    JAX binds an array that is made on a device to that device, and then all that is computed from it.
    """
    where = home(array)
    return None if hasattr(where, "device_set") else where


def _same_devices(one: Device, other: Device) -> bool:
    """Whether two arrays are on the same device or, in JAX, on the same devices, however they are laid out there."""
    if one == other:
        return True
    several = [getattr(x, "device_set", None) for x in (one, other)]
    if several == [None, None]:
        return False
    devices, others = (found or {x} for found, x in zip(several, (one, other), strict=True))
    return bool(devices == others)


def blocks_of(array: Array) -> tuple[int, ...]:
    """How many blocks a dask array has along each axis; other arrays have none."""
    return tuple(array.numblocks) if is_dask_array(array) else ()


def check_blocks(name: str, array: Array, frame: Frame) -> None:
    """Check that a dask array of unknown length has as many blocks of rows as the logits."""
    for axis, size in enumerate(array.shape if frame.blocks else ()):
        if not _unknown(size):
            continue
        rows = next(i for i, length in enumerate(frame.shape) if _unknown(length))
        if array.numblocks[axis] != frame.blocks[rows]:
            raise ValueError(
                f"{name} must have as many blocks of rows as {frame.owner} where their sizes are not known, "
                f"{frame.blocks[rows]}, got {array.numblocks[axis]}. Call compute_chunk_sizes() on both first."
            )


def size_hint(*shapes: Sequence[Any]) -> str:
    """What to do where the shape of a dask array is not known, if it is not."""
    if any(_unknown(size) for shape in shapes for size in shape):
        return " Call compute_chunk_sizes() on dask arrays of unknown sizes first."
    return ""


def same_shape(shape: Sequence[Any], other: Sequence[Any]) -> bool:
    """Compare two shapes; sizes that a library does not know yet (nan, None) fit each other."""
    return len(shape) == len(other) and all(
        a == b or (_unknown(a) and _unknown(b)) for a, b in zip(shape, other, strict=True)
    )


def _unknown(size: Any) -> bool:
    return size is None or size != size  # nan


def _kind(value: object) -> str:
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}".removeprefix("builtins.")


def library(xp: Namespace) -> str:
    return str(xp.__name__).removeprefix("array_api_compat.")


# --- targets and weights ----------------------------------------------------------------------------------------------


def as_targets(targets: object, frame: Frame, ignore_index: int | None) -> Array:
    """Check targets; return labels in the library's index dtype, or soft targets in their own."""
    array = as_companion("targets", targets, frame)
    if dtype_name(array.dtype) in INTEGRAL:
        if not same_shape(array.shape, frame.rows_shape):
            raise ValueError(
                f"targets must have shape {frame.rows_shape} if they are integer labels for logits of shape "
                f"{frame.shape} with classes along axis {frame.axis}, got {tuple(array.shape)}. "
                f"One-hot rows must be of a floating dtype.{size_hint(array.shape, frame.shape)}"
            )
        check_blocks("targets", array, frame)
        return _as_index(array, frame, ignore_index)
    if not _is_floating(array):
        raise TypeError(f"targets must be integer labels or floating soft targets, got dtype {array.dtype}.")
    if not same_shape(array.shape, frame.shape):
        raise ValueError(
            f"targets must have the shape of logits, {frame.shape}, if they are floating soft targets, "
            f"got {tuple(array.shape)}. Labels must be of an integer dtype.{size_hint(array.shape, frame.shape)}"
        )
    check_blocks("targets", array, frame)
    if ignore_index is not None:
        raise ValueError(
            f"ignore_index must be None for soft targets, got {ignore_index}. Use sample_weight to leave rows out."
        )
    return array


def _as_index(labels: Array, frame: Frame, ignore_index: int | None) -> Array:
    """Labels in the index dtype; unsigned values beyond it become a label that is bad and not ignored."""
    xp = frame.xp
    index = xp.__array_namespace_info__().default_dtypes()["indexing"] if is_jax_array(labels) else xp.int64
    if labels.dtype == index:
        return labels
    wraps = xp.isdtype(labels.dtype, "unsigned integer") and xp.iinfo(labels.dtype).max > xp.iinfo(index).max
    labels = xp.astype(labels, index, copy=False)
    if wraps:
        bad = frame.classes + (frame.classes == ignore_index)
        labels = xp.where(labels < 0, bad, labels)
    return labels


def as_weight(name: str, value: object, frame: Frame, shape: tuple[Any, ...], meaning: str) -> Array | None:
    """Check an optional array of weights; return it in the working precision."""
    if value is None:
        return None
    array = as_companion(name, value, frame)
    if not _is_floating(array) and dtype_name(array.dtype) not in INTEGRAL:
        raise TypeError(f"{name} must be of a real floating or integer dtype, got {array.dtype}.")
    if not same_shape(array.shape, shape):
        hint = size_hint(array.shape, shape)
        raise ValueError(f"{name} must have shape {shape}, {meaning}, got {tuple(array.shape)}.{hint}")
    check_blocks(name, array, frame)
    return as_dtype(frame.xp, array, frame.working)


def as_dtype(xp: Namespace, array: Array, dtype: DType) -> Array:
    """Cast an array if it is of another dtype."""
    return array if array.dtype == dtype else xp.astype(array, dtype)


def first_marked(xp: Namespace, marks: Array) -> int:
    """Place of the first True among marks (N,), of which one is True; it waits for the device."""
    return int(xp.argmax(xp.astype(marks, xp.int32)))


def bad_labels(labels: Array, frame: Frame, ignored: Array | None) -> Array:
    """Mark the labels that are neither a class nor ignored."""
    bad = (labels < 0) | (labels >= frame.classes)
    return bad if ignored is None else bad & ~ignored


def bad_masses(frame: Frame, values: Array) -> Array:
    """Mark the weights or soft targets that are negative or not finite."""
    return ~(frame.xp.isfinite(values) & (values >= 0.0))


class Suspect(NamedTuple):
    """Values that can be looked at only by waiting for them."""

    name: str
    rule: str
    unit: str  # what an entry is: row, class, index
    bad: Callable[[Rows], Array]  # the mask of some rows
    values: Array  # as the user gave them
    parts: Sequence[Rows] = (None,)  # that are looked at one after the other


def rows_of(array: Array, rows: Rows) -> Array:
    """Some rows of an array; all of it for None."""
    return array if rows is None else array[rows, ...]


def check_values(frame: Frame, suspects: Sequence[Suspect]) -> None:
    """Raise ValueError for the first bad value; all suspects share one synchronisation."""
    flag = None
    for suspect in suspects:
        for rows in suspect.parts:
            bad = suspect.bad(rows)
            check_has_values("labels", bad)
            found = np.count_nonzero(bad) > 0 if type(bad) is np.ndarray else frame.xp.any(_unbatched(bad))
            flag = found if flag is None else flag | found
    if flag is not None and bool(flag):
        for suspect in suspects:
            _raise_first(suspect)


def check_has_values(name: str, array: Array) -> None:
    """Raise ValueError where an array, `name` in the message, has no values that `validate=True` could look at."""
    if _is_traced(array):
        raise ValueError(
            f"validate must be False inside jax.jit, got True: while a function is traced its {name} have no values."
        )
    if is_torch_array(array) and array.is_meta:
        raise ValueError("validate must be False on the meta device, got True: its tensors have no values.")


def check_not_batched(name: str, array: Array) -> None:
    """Raise ValueError within torch.func.vmap, where a tensor, `name` in the message, has no rows of its own."""
    if is_torch_array(array) and sys.modules["torch"]._C._functorch.is_batchedtensor(array):
        raise ValueError(
            f"validate must be False inside torch.func.vmap, got True: there {name} have no values of their own."
        )


class Bad(NamedTuple):
    """The first bad value. Those who look at one block of rows after the other put its row of all into it."""

    name: str
    rule: str
    value: float
    unit: str
    position: tuple[int, ...]
    hint: str = ""

    def text(self) -> str:
        """The message."""
        place = f" at {self.unit} {self.position[0] if len(self.position) == 1 else self.position}"
        text = f"{self.name} must {self.rule}, got {self.value}{place if self.position else ''}."
        return f"{text} {self.hint}" if self.hint else text

    def error(self) -> ValueError:
        """What is raised for it, which knows it."""
        error = ValueError(self.text())
        error.bad = self  # type: ignore[attr-defined]
        return error


def starts_of(sizes: Sequence[float]) -> tuple[int, ...] | None:
    """The number of the first row of each block; None where the sizes of the blocks are not known (nan)."""
    if any(_unknown(size) for size in sizes):
        return None
    return tuple(itertools.accumulate(map(int, sizes[:-1]), initial=0))


def in_block(bad: Bad, number: int, starts: Sequence[int] | None) -> Bad:
    """A bad row of a block, as a row of all blocks; where their sizes are not known, with the number of the block."""
    row, *rest = bad.position
    if starts is None:
        return bad._replace(unit=f"block {number}, {bad.unit}")
    return bad._replace(position=(starts[number] + row, *rest))


def _raise_first(suspect: Suspect) -> None:
    for rows in suspect.parts:
        bad, values = (_computed(_unbatched(x)) for x in (suspect.bad(rows), rows_of(suspect.values, rows)))
        xp = array_namespace(bad)
        if not bool(xp.any(bad)):
            continue
        flat = first_marked(xp, xp.reshape(bad, (-1,)))
        position = tuple(int(i) for i in np.unravel_index(flat, tuple(bad.shape)))
        if rows is not None:
            position = (rows.start + position[0], *position[1:])
        value = xp.reshape(values, (-1,))[flat]
        value = value.item() if hasattr(value, "item") else value  # PyTorch's int() has no uint64 above 2**63
        value = int(value) if dtype_name(values.dtype) in INTEGRAL else float(value)
        raise Bad(suspect.name, suspect.rule, value, suspect.unit, position).error()


def _computed(array: Array) -> Array:
    return array.compute() if is_dask_array(array) else array


def _is_traced(array: Array) -> bool:
    return is_jax_array(array) and isinstance(array, sys.modules["jax"].core.Tracer)


# --- options ----------------------------------------------------------------------------------------------------------


def as_integer(name: str, value: object, low: int | None = None) -> int:
    """Check for an integer (not a bool), at least `low`."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value}.")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}.") from None
    if low is not None and number < low:
        raise ValueError(f"{name} must be at least {low}, got {number}.")
    return number


def as_number(name: str, value: object, low: float = 0.0, high: float = math.inf, *, below: float = math.inf) -> float:
    """Check for a finite real number in [low, high] that is less than `below`."""
    if type(value) is not float and (not isinstance(value, Real) or isinstance(value, (bool, np.bool_))):
        raise TypeError(f"{name} must be a real number, got {value!r}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (low <= number <= high and number < below):
        rule = f"from {low:g} to {high:g}" if math.isfinite(high) else f"finite and at least {low:g}"
        if math.isfinite(below):
            rule = f"at least {low:g} and below {below:g}"
        raise ValueError(f"{name} must be {rule}, got {number!r}.")
    return number


def check_flag(name: str, value: object) -> None:
    """Check for True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}.")


def as_generator(name: str, rng: Any) -> np.random.Generator:
    """Make a random generator of anything that stands for one (SPEC 7)."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} must be what numpy.random.default_rng takes, got {rng!r}.") from None


def as_namespace(name: str, module: Any) -> Namespace:
    """Check for a library of arrays; return its Array API namespace."""
    try:
        return array_namespace(module.asarray(0.0))
    except (AttributeError, TypeError):
        raise TypeError(f"{name} must be an Array API library such as numpy or cupy, got {module!r}.") from None


def as_placement(xp: Namespace, dtype: DType | None, where: Device | None) -> dict[str, Any]:
    """Check dtype and device of new arrays of a library; return them as keywords."""
    failures = (TypeError, ValueError, RuntimeError, AttributeError, AssertionError)
    if dtype is None:
        dtype = xp.__array_namespace_info__().default_dtypes()["real floating"]
    try:
        probe = xp.zeros((), dtype=dtype)
    except failures:
        raise TypeError(f"dtype must be a dtype of {library(xp)}, got {dtype!r}.") from None
    if not _is_floating(probe):
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {probe.dtype}.")
    if where is None:
        return {"dtype": dtype}
    try:
        xp.zeros((), dtype=dtype, device=where)
    except failures:
        raise ValueError(f"device must be a device of {library(xp)} that can be used here, got {where!r}.") from None
    return {"dtype": dtype, "device": where}


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check for one of a few words."""
    if not isinstance(value, str) or value not in choices:
        words = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be one of {words}, got {value!r}.")


def check_impl(impl: object) -> None:
    """Check the `impl` keyword."""
    check_choice("impl", impl, ("auto", "generic", "kernel"))
