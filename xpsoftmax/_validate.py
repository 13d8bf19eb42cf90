"""Every argument check and its message: "{argument} must {rule}, got {value}."."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
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
        value = value.detach()
    return xp, value


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


def is_plain_on_gpu(logits: Any, labels: Any, axis: object) -> bool:
    """Whether `as_logits` and `as_targets` would find nothing: rows and labels of CuPy, adjacent and on one device."""
    return (
        type(logits) is not np.ndarray
        and is_cupy_array(logits)
        and type(labels) is type(logits)
        and logits.ndim == 2
        and logits.size > 0
        and type(axis) is int
        and (axis == -1 or axis == 1)
        and labels.shape == logits.shape[:1]
        and logits.data.device_id == labels.data.device_id
        and _is_native(logits.dtype, FLOATING)
        and _is_native(labels.dtype, INTEGRAL)
        and logits.flags.c_contiguous
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
    return array, Frame(xp, home(array), tuple(array.shape), position, working_dtype(xp, array))


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
    return device(array) if array.committed else None


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
                "One-hot rows must be of a floating dtype."
            )
        return _as_index(array, frame, ignore_index)
    if not _is_floating(array):
        raise TypeError(f"targets must be integer labels or floating soft targets, got dtype {array.dtype}.")
    if not same_shape(array.shape, frame.shape):
        raise ValueError(
            f"targets must have the shape of logits, {frame.shape}, if they are floating soft targets, "
            f"got {tuple(array.shape)}. Labels must be of an integer dtype."
        )
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
        raise ValueError(f"{name} must have shape {shape}, {meaning}, got {tuple(array.shape)}.")
    return as_dtype(frame.xp, array, frame.working)


def as_dtype(xp: Namespace, array: Array, dtype: DType) -> Array:
    """Cast an array if it is of another dtype."""
    return array if array.dtype == dtype else xp.astype(array, dtype)


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
            if _is_traced(bad):
                raise ValueError(
                    "validate must be False inside jax.jit, got True: while a function is traced its labels have no "
                    "values."
                )
            if is_torch_array(bad) and bad.is_meta:
                raise ValueError("validate must be False on the meta device, got True: its tensors have no values.")
            found = np.count_nonzero(bad) > 0 if type(bad) is np.ndarray else frame.xp.any(bad)
            flag = found if flag is None else flag | found
    if flag is not None and bool(flag):
        for suspect in suspects:
            _raise_first(suspect)


class Bad(NamedTuple):
    """The first bad value. Those who look at one block of rows after the other put its row of all into it."""

    name: str
    rule: str
    value: float
    unit: str
    position: tuple[int, ...]

    def error(self) -> ValueError:
        """What is raised for it, which knows it."""
        place = f" at {self.unit} {self.position[0] if len(self.position) == 1 else self.position}"
        error = ValueError(f"{self.name} must {self.rule}, got {self.value}{place if self.position else ''}.")
        error.bad = self  # type: ignore[attr-defined]
        return error


def _raise_first(suspect: Suspect) -> None:
    for rows in suspect.parts:
        bad, values = (_computed(x) for x in (suspect.bad(rows), rows_of(suspect.values, rows)))
        xp = array_namespace(bad)
        if not bool(xp.any(bad)):
            continue
        flat = int(xp.argmax(xp.reshape(xp.astype(bad, xp.int32), (-1,))))
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
