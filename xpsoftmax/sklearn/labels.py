"""Labels of any container as a NumPy array that compares them exactly, and their places among known classes.

scikit-learn turns nullable integer columns, and NumPy turns int64 beside uint64, into float64, in which different
integers from 2**53 on are equal. Here integers stay integers. NumPy lets dates overflow in a finer unit; here that is
an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj, is_numpy_array

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.host import to_host
from xpsoftmax._typing import dtype_name

KINDS = "integers, booleans, strings, dates, durations, or floats of integral value"
EXACT_BITS = 53
"""Python's floats, and every array of float64, hold all integers of so many bits."""
NEVER_MISSING = {int, str, bool, *(np.dtype(code).type for code in "bBhHiIlLqQ?")}
"""Types of labels that are never missing values, and that need no conversion."""
EXACT_IN_ARRAYS = {int, float, bool, *(np.dtype(code).type for code in "bBhHiIlLqQ?efdg")}
"""Types of which NumPy converts a list exactly, if all are of one type; Python's integers only into integers."""


# --- from any container -----------------------------------------------------------------------------------------------


def is_elsewhere(array: Any) -> bool:
    """Whether this is an array of a library that is not NumPy: what scikit-learn's checks would copy, or refuse."""
    return bool(is_array_api_obj(array)) and not is_numpy_array(array)


def is_sequence(value: Any) -> bool:
    """Whether this is a list, or another sequence of Python objects that holds its items as a list does."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def refuse_masked(name: str, value: Any) -> None:
    """Refuse masked arrays, also as rows of a list or blocks of dask: np.asarray would use what the mask hides."""
    rows = value if is_sequence(value) else ()
    if any(isinstance(array, np.ma.MaskedArray) for array in (value, getattr(value, "_meta", None), *rows)):
        raise TypeError(
            f"{name} must not be a masked array, got one. Fill it in with its filled(), or leave the masked rows out."
        )


def as_raw_array(name: str, value: Any) -> Any:
    """Return labels or probabilities as an array, of objects if a dtype of NumPy could change them."""
    refuse_masked(name, value)
    if is_array_api_obj(value):
        return check.as_array(name, value)[1]
    if is_sequence(value):
        return _of_list(name, value)
    if hasattr(value, "tocsr"):
        raise TypeError(f"{name} must be dense, got a sparse {type(value).__name__}. Call its toarray().")
    if hasattr(value, "columns") and len(getattr(value, "shape", ())) == 2:
        return _of_frame(name, value)
    if hasattr(value, "isna") and not isinstance(getattr(value, "dtype", None), np.dtype):
        return _of_pandas(value)
    return np.asarray(value)


def _of_list(name: str, value: Any) -> np.ndarray:
    """Return a list as an array; mixed labels as objects: NumPy makes strings of [1, "a"] and floats of [1, 2**63]."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must have rows of one length, got {value!r:.60}.") from None
    if array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 1):
        return array
    types = set(map(type, value))
    if len(types) == 1 and types <= EXACT_IN_ARRAYS and array.dtype.kind in ("iu" if types == {int} else "biuf"):
        return array
    objects = np.fromiter((row[0] for row in value) if array.ndim == 2 else value, object, array.shape[0])
    strings = array.dtype.kind == "U" and {type(label) for label in objects} <= {str, np.str_}
    # A string of NumPy ends before its last null characters: "a" would be "a\0".
    if strings and bool((array.ravel().astype(object) == objects).all()):
        return array
    return objects.reshape(array.shape)


def _of_frame(name: str, frame: Any) -> np.ndarray:
    if frame.shape[1] == 1:
        if hasattr(frame, "iloc"):
            column = frame.iloc[:, 0]
        else:  # tables of pyarrow have column(), frames of polars to_series()
            column = (frame.column if hasattr(frame, "column") else frame.to_series)(0)
        return as_raw_array(name, column)[:, None]  # type: ignore[no-any-return]
    array = np.asarray(frame)
    if array.dtype.kind == "O":
        kinds = {getattr(dtype, "kind", "") for dtype in frame.dtypes}
        if "f" in kinds and kinds <= {"f", "i", "u"}:
            array = np.asarray(frame.astype(np.float64))  # nullable floats, or integers beside floats
    return array


def _of_pandas(column: Any) -> np.ndarray:
    """Return a pandas Series, Index or array whose dtype NumPy does not have as a NumPy array."""
    categories = getattr(getattr(column, "cat", column), "categories", None)
    if bool(np.any(column.isna())):
        return np.asarray(column.to_numpy(dtype=object) if hasattr(column, "to_numpy") else column, dtype=object)
    if categories is not None:
        return np.take(as_raw_array("y", categories), np.asarray(getattr(column, "cat", column).codes))
    dtype = getattr(column.dtype, "numpy_dtype", None)
    zone = getattr(getattr(column.dtype, "pyarrow_dtype", None), "tz", None)
    known = isinstance(dtype, np.dtype) and dtype.kind in "biufmM" and zone is None
    return np.asarray(column.to_numpy(dtype=dtype if known else object))


# --- exact dtypes -----------------------------------------------------------------------------------------------------


def as_labels(name: str, value: Any, unit: str = "row") -> np.ndarray:
    """Check labels (N,) or (N, 1); return them (N,) on the host, in a dtype that keeps different labels different.

    It is a dtype of NumPy for integers, booleans, strings, dates, durations and floats of integral value; object for
    strings that come as objects, and for Python integers that no 64-bit dtype holds together.
    """
    raw = as_raw_array(name, value)
    labels: np.ndarray = (to_host(name, raw) if is_elsewhere(raw) else raw).reshape(-1)
    if labels.dtype.kind == "T":  # strings of variable length, which may lack values
        labels = labels.astype(object)
    if labels.dtype.kind == "O":
        labels = _of_objects(name, labels, unit)
    exact = EXACT_BITS
    if dtype_name(labels.dtype) == "bfloat16":  # which NumPy cannot sort
        labels, exact = labels.astype(np.float32), 8
    kind = labels.dtype.kind
    if kind == "f":
        _check_floats(name, labels, unit, min(exact, np.finfo(labels.dtype).nmant + 1))
    elif kind in "mM":
        _refuse(name, "hold no missing values", labels, np.isnat(labels), unit)
    elif kind == "c":
        raise ValueError(f"{name} must be labels: {KINDS}, got {labels.dtype}. Complex data not supported.")
    elif kind not in "biuUO":
        hint = " Decode bytes to strings." if kind == "S" else ""
        raise TypeError(f"{name} must be labels: {KINDS}, got {labels.dtype}.{hint}")
    return labels


def _check_floats(name: str, labels: np.ndarray, unit: str, bits: int) -> None:
    _refuse(name, "hold no missing values", labels, np.isnan(labels), unit)
    with np.errstate(invalid="ignore"):
        continuous = ~(np.isfinite(labels) & (np.trunc(labels) == labels))
    _refuse(name, f"be labels: {KINDS}", labels, continuous, unit, " Unknown label type: continuous.")
    _refuse(
        name,
        f"be integers of an integer dtype from 2**{bits} on",
        labels,
        np.abs(labels) >= 2.0**bits,
        unit,
        f" {dtype_name(labels.dtype)} does not hold all of them: labels that differed may have become equal.",
    )


def _refuse(name: str, rule: str, labels: np.ndarray, bad: np.ndarray, unit: str, hint: str = "") -> None:
    """Raise ValueError for the first bad label."""
    if bad.any():
        place = int(bad.argmax())
        raise ValueError(f"{name} must {rule}, got {_shown(labels[place])} at {unit} {place}.{hint}")


def _shown(label: Any) -> str:
    if is_missing(label):
        return "NaN" if isinstance(label, (float, np.floating)) else str(label)
    return repr(label.item() if isinstance(label, np.generic) and label.dtype.kind in "biufU" else label)


def is_missing(label: Any) -> bool:
    """Whether a label is None, nan, NaT, NA of pandas, or a masked entry."""
    if label is None or label is np.ma.masked or type(label).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(label, (float, np.floating, np.datetime64, np.timedelta64)) and bool(label != label)


def missing_in(objects: np.ndarray) -> np.ndarray:
    """Return a mask of the missing values among objects."""
    if set(map(type, objects.flat)) <= NEVER_MISSING:
        return np.zeros(objects.size, bool)
    return np.fromiter((type(x) not in NEVER_MISSING and is_missing(x) for x in objects.flat), bool, objects.size)


def _of_objects(name: str, labels: np.ndarray, unit: str) -> np.ndarray:
    """Return an array of objects in the dtype that holds all of them."""
    _refuse(name, "hold no missing values", labels, missing_in(labels), unit)
    types = set(map(type, labels))
    values = labels.tolist() if types <= NEVER_MISSING else [_plain(label) for label in labels]
    kinds = {kind: _kind_of(kind) for kind in set(map(type, values))}
    found = set(kinds.values())
    if len(found) > 1 and found != {"int", "float"}:
        other = next(i for i, value in enumerate(values) if kinds[type(value)] != kinds[type(values[0])])
        first, second = (f"{kinds[type(values[i])]} {_shown(labels[i])} at {unit} {i}" for i in (0, other))
        raise TypeError(f"{name} must be labels of one kind, got {first} and {second}.")
    if found <= {"int", "float"}:
        return _of_numbers(name, values, found, unit)
    if found == {"str"}:
        # str(label) of an enumeration is its name; labels are compared by their characters.
        return labels if types == {str} else np.fromiter(map(str.__str__, values), object, len(values))
    if found == {"bool"}:
        return np.array(values, bool)
    if found <= {"datetime64", "timedelta64"}:
        return _of_times(name, values, unit)
    raise TypeError(f"{name} must be labels: {KINDS}, got {found.pop()} {labels[0]!r:.60} at {unit} 0.")


def _plain(label: Any) -> Any:
    """Return the number of a 0-d array, and the NumPy form of a duration or of a date without a time zone."""
    if isinstance(label, (int, str, np.generic)):
        return label
    if isinstance(label, date) and getattr(label, "tzinfo", None) is None:
        return label.to_datetime64() if hasattr(label, "to_datetime64") else np.datetime64(label)
    if isinstance(label, timedelta):
        return label.to_timedelta64() if hasattr(label, "to_timedelta64") else np.timedelta64(label)
    return label.item() if hasattr(label, "item") and getattr(label, "shape", None) == () else label


def _kind_of(kind: type) -> str:
    for name, types in (
        ("bool", (bool, np.bool_)),
        ("timedelta64", (np.timedelta64,)),  # before the integers: for NumPy it is one of them
        ("int", (int, np.integer)),
        ("float", (float, np.floating)),
        ("str", (str,)),
        ("datetime64", (np.datetime64,)),
    ):
        if issubclass(kind, types):
            return name
    return kind.__name__


def _of_numbers(name: str, values: list[Any], found: set[str], unit: str) -> np.ndarray:
    """Return numbers as float64 if floats are among them and hold the integers, else as int64, uint64 or Python's."""
    if found == {"float"}:
        return np.array(values)
    if found == {"int", "float"}:
        floats = np.array([value if isinstance(value, (float, np.floating)) else 0.0 for value in values])
        _check_floats(name, floats, unit, EXACT_BITS)
        if max(abs(int(value)) for value in values) < 2**EXACT_BITS:
            return np.array(values, np.float64)
    integers = list(map(int, values))
    low, high = min(integers, default=0), max(integers, default=0)
    if low >= -(2**63) and high < 2**63:
        return np.array(integers, np.int64)
    if low >= 0 and high < 2**64:
        return np.array(integers, np.uint64)
    return np.array(integers, object)


def _of_times(name: str, values: list[Any], unit: str) -> np.ndarray:
    """Return dates or durations in the finest of their units; refuse those that overflow in it, as NumPy does not."""
    families = {value.dtype: family(np.empty(0, value.dtype)) for value in values}
    if len(set(families.values())) > 1:
        other = next(v for v in values if families[v.dtype] != families[values[0].dtype])
        raise TypeError(
            f"{name} must be durations of one kind, got {values[0]!r} and {other!r}: months and years differ in length."
        )
    if len(families) > 1:
        dtype = np.result_type(*families)
        changed = np.fromiter((not _holds(dtype, value) for value in values), bool, len(values))
        rule = f"be dates that {dtype}, the finest of their units, holds"
        _refuse(name, rule, np.array(values, object), changed, unit)
    return np.array(values)


def _holds(dtype: np.dtype[Any], times: Any) -> bool:
    """Whether another unit holds dates or durations; from NumPy 2.5 on the conversion raises if it does not."""
    try:
        return bool(np.all(times.astype(dtype).astype(times.dtype) == times))
    except OverflowError:
        return False


# --- indices of classes -----------------------------------------------------------------------------------------------


def family(labels: np.ndarray) -> str:
    """Return the kind of labels: only labels of one kind can be equal. Durations in months or years are a kind."""
    kind = labels.dtype.kind
    if kind == "m" and np.datetime_data(labels.dtype)[0] in ("M", "Y"):  # months differ in length
        return "months"
    if kind == "O":
        return "strings" if labels.size and isinstance(labels[0], str) else "numbers"
    return {"U": "strings", "M": "dates", "m": "durations"}.get(kind, "numbers")


def in_common_dtype(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays of labels of one family in one dtype, in which they compare exactly and sort as before."""
    if family(first) == "numbers":
        # Floats of labels are integers below 2**53.
        first, second = (a.astype(np.int64) if a.dtype.kind == "f" else a for a in (first, second))
    if first.dtype.kind in "mM":
        return _in_common_unit(first, second)
    dtypes = {first.dtype, second.dtype}
    dtype = np.dtype(object) if np.dtype(object) in dtypes else np.result_type(*dtypes)
    if dtype.kind == "f":  # int64 beside uint64
        fits = all(a.dtype.kind != "u" or a.max(initial=0) < 2**63 for a in (first, second))
        dtype = np.dtype(np.int64 if fits else object)
    return first.astype(dtype, copy=False), second.astype(dtype, copy=False)


def _in_common_unit(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return dates or durations in the finer unit, or as Python integers if that unit does not hold them."""
    dtype = np.result_type(first, second)
    if _holds(dtype, first) and _holds(dtype, second):
        return first.astype(dtype), second.astype(dtype)
    return _attoseconds(first), _attoseconds(second)


def _attoseconds(times: np.ndarray) -> np.ndarray:
    """Return dates or durations as Python integers, in the finest unit that NumPy has."""
    seconds = times.astype(f"{times.dtype.kind}8[s]")
    found: np.ndarray = seconds.astype(np.int64).astype(object) * 10**18
    if np.result_type(times, seconds) != seconds.dtype:  # the unit is finer than a second
        found += (times - seconds.astype(times.dtype)).astype("m8[as]").astype(np.int64)
    return found


def encode(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the indices of labels in sorted classes; -1 for a label that is not a class."""
    if family(labels) != family(classes):
        return np.full(labels.shape, -1)
    labels, classes = in_common_dtype(labels, classes)
    indices = np.minimum(np.searchsorted(classes, labels), classes.size - 1)
    return np.where(classes[indices] == labels, indices, -1)


def are_sorted(labels: np.ndarray) -> bool:
    """Whether labels are in strictly ascending order."""
    return bool((labels[1:] > labels[:-1]).all())


def shortened(labels: np.ndarray) -> str:
    """Return labels as a message names them."""
    return np.array2string(labels, threshold=10, edgeitems=3)
