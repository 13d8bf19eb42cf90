"""A module that stands in for CuPy where there is no GPU: its arrays hold NumPy's, and are as unlike them as CuPy's.

`nox -s stand_in` runs the tests on it. It shows what mixes arrays of host and device, copies implicitly, waits, uses
arrays of a device that is not current, or a function, method or bfloat16 loop that CuPy 14.2 lacks
(`test_stand_in_cupy.py` compares it with CuPy itself where that is installed). It shows nothing about the CUDA kernels:
`row_operations` has the generic code in their place, so that what is around them is run. It shows nothing about
numbers, which are NumPy's, but for subnormal ones of float32: CuPy has them become 0.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import operator
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import launch_counter
import numpy as np

from xpsoftmax import kernels
from xpsoftmax.kernels import generic


class DeviceSynchronized(RuntimeError):  # noqa: N818 - CuPy's name
    """Raised by what waits within `allow_synchronize(False)`."""


_waiting_allowed = [True]


@contextlib.contextmanager
def allow_synchronize(allow: bool) -> Iterator[None]:
    """Whether the host may wait for the device."""
    warnings.warn(
        "cupyx.allow_synchronize will be removed in future releases as it is not possible to reliably detect "
        "synchronizations.",
        stacklevel=3,
    )
    _waiting_allowed.append(allow)
    try:
        yield
    finally:
        _waiting_allowed.pop()


def wait() -> None:
    """Called by all that brings values to the host."""
    launch_counter.waited("wait")
    if not _waiting_allowed[-1]:
        raise DeviceSynchronized("Device synchronized")


class Device:
    """One of two devices; current within `with`."""

    current: ClassVar = [0]

    def __init__(self, device: Any = None) -> None:
        self.id = Device.current[-1] if device is None else int(getattr(device, "id", device))

    def __enter__(self) -> Device:
        Device.current.append(self.id)
        return self

    def __exit__(self, *exception: object) -> None:
        Device.current.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    compute_capability = "90"


class ndarray:  # noqa: N801 - CuPy's name
    """An array on a device."""

    __slots__ = ("_array", "_device")
    __array_priority__ = 100

    def __init__(self, array: Any, device: int | None = None) -> None:
        self._array = np.asarray(array)
        self._device = Device.current[-1] if device is None else device

    # --- what CuPy refuses

    def __array__(self, *more: object, **options: object) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *arguments: Any, **options: Any) -> Any:
        if method != "__call__":
            return NotImplemented
        return called(ufunc, *arguments, **options)

    def __array_function__(self, function: Any, kinds: Any, arguments: Any, options: Any) -> Any:
        return called(function, *arguments, **options)

    # --- what it has

    @property
    def device(self) -> Device:
        return Device(self._device)

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self._array.ctypes.data, device_id=self._device)

    @property
    def T(self) -> ndarray:  # noqa: N802
        return ndarray(self._array.T, self._device)

    def __dlpack__(self, *, dl_device: Any = None, **options: Any) -> Any:
        if dl_device is None or next(iter(dl_device)) != 1:
            raise BufferError("the array is on a GPU")
        return self.get().__dlpack__(**{name: value for name, value in options.items() if name != "stream"})

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device  # CUDA

    def get(self) -> np.ndarray:
        wait()
        return self._array.copy(order="K")

    def item(self, *index: int) -> Any:
        wait()
        return self._array.item(*index)

    def tolist(self) -> Any:
        wait()
        return self._array.tolist()

    def fill(self, value: Any) -> None:
        launch_counter.launched("fill")
        self._array.fill(unwrapped(value))

    def __getitem__(self, key: Any) -> Any:
        if _has_mask(key):
            wait()  # for how many there are
        if any(isinstance(part, ndarray) for part in (key if type(key) is tuple else (key,))):
            launch_counter.launched("getitem")
        return ndarray(self._array[unwrapped(key)], self._device)

    def __setitem__(self, key: Any, value: Any) -> None:
        if _has_mask(key) and np.ndim(unwrapped(value)) > 0:
            wait()  # a number goes wherever the mask holds
        launch_counter.launched("setitem")
        self._array[unwrapped(key)] = unwrapped(value)

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self._array)))

    def __repr__(self) -> str:
        return repr(self.get())

    def __format__(self, how: str) -> str:
        return format(self.get(), how)

    def __reduce__(self) -> Any:
        return array, (self.get(),)  # to the device that is current there

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()


def _has_mask(key: Any) -> bool:
    return any(isinstance(part, ndarray) and part.dtype == bool for part in (key if type(key) is tuple else (key,)))


def _attribute(name: str) -> property:
    return property(lambda self: getattr(self._array, name))


def _method(name: str) -> Any:
    def method(self: ndarray, *arguments: Any, **options: Any) -> Any:
        with Device(self._device):
            return called(getattr(self._array, name), *arguments, **options)

    return method


def _operator(name: str) -> Any:
    function = getattr(operator, f"__{name}__")

    def forward(self: ndarray, other: Any) -> Any:
        return called(function, self, other) if is_operand(other) else NotImplemented

    def reflected(self: ndarray, other: Any) -> Any:
        return called(function, other, self) if is_operand(other) else NotImplemented

    def in_place(self: ndarray, other: Any) -> Any:
        called(getattr(operator, f"__i{name}__"), self, other)
        return self

    return forward, reflected, in_place


for _name in ("shape", "dtype", "ndim", "size", "itemsize", "nbytes", "strides", "flags"):
    setattr(ndarray, _name, _attribute(_name))
for _name in (
    *("astype", "copy", "view", "sum", "max", "min", "mean", "any", "all", "argmax", "argmin", "reshape", "ravel"),
    *("transpose", "flatten", "squeeze", "round", "prod", "cumsum", "take", "nonzero", "swapaxes", "conj", "dot"),
):
    setattr(ndarray, _name, _method(_name))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift"):
    _forward, _reflected, _in_place = _operator(_name)
    setattr(ndarray, f"__{_name}__", _forward)
    setattr(ndarray, f"__r{_name}__", _reflected)
    if _name != "matmul":
        setattr(ndarray, f"__i{_name}__", _in_place)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _operator(_name)[0])
for _name in ("neg", "pos", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", _method(f"__{_name}__"))
for _name in ("bool", "int", "float", "complex"):  # and no index
    setattr(ndarray, f"__{_name}__", lambda self, _name=_name: getattr(self.get(), f"__{_name}__")())
ndarray.__module__ = "cupy"
ndarray.__hash__ = None


def is_operand(value: Any) -> bool:
    """Whether CuPy computes with it."""
    return isinstance(value, (ndarray, bool, int, float, complex, np.generic))


def unwrapped(value: Any) -> Any:
    """NumPy's array instead of ours, within tuples, lists and dicts; arrays of the host are refused."""
    if isinstance(value, ndarray):
        if value._device != Device.current[-1] and value.size > 0:
            raise ValueError(f"Array device must be same as the current device: array device = {value._device}")
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(map(unwrapped, value))
    return {key: unwrapped(item) for key, item in value.items()} if type(value) is dict else value


def wrapped(value: Any) -> Any:
    """Ours instead of NumPy's arrays and scalars."""
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(value)
    return type(value)(map(wrapped, value)) if type(value) in (tuple, list) else value


NOT_OF_BFLOAT16 = ("argmax", "argmin", "where")
"""Operations without a loop for it, or with one that makes float32 of it."""


def _is_bfloat16(value: Any) -> bool:
    return getattr(getattr(value, "dtype", None), "name", "") == "bfloat16"


def _owner(method: Any) -> tuple[Any, ...]:
    """The array whose method this is."""
    owner = getattr(method, "__self__", None)
    return (owner,) if isinstance(owner, np.ndarray) else ()


def called(function: Any, *arguments: Any, **options: Any) -> Any:
    """Call a function of NumPy with arrays of ours."""
    if function in (np.nonzero, np.flatnonzero, np.argwhere, np.unique):
        wait()
    if getattr(function, "__name__", "") in NOT_OF_BFLOAT16 and any(map(_is_bfloat16, (*arguments, *_owner(function)))):
        raise TypeError(f"Wrong type (bfloat16) of arguments for cupy_{function.__name__}")
    out, computes = options.get("out"), _computes(function)
    arguments = tuple(map(unwrapped, arguments))
    if computes:
        cast_numbers(arguments)
    with np.errstate(all="ignore"):  # a GPU has no such flags
        if computes:
            written = function.__name__ in _IN_PLACE  # to the first one, which must be the array itself
            arguments = (*arguments[:written], *map(flushed, arguments[written:]))
        result = function(*arguments, **unwrapped(options))
        if computes:
            result = flushed(result, in_place=True)
    launch_counter.computed(function, () if out is not None else arguments, result)
    return out if isinstance(out, ndarray) else wrapped(result)


def _computes(function: Any) -> bool:
    """Whether an operation makes new numbers, in arrays of its own or in what it is to write to."""
    return isinstance(function, np.ufunc) or getattr(function, "__name__", "") in (*_OPERATORS, *_IN_PLACE)


_OPERATORS = ("add", "sub", "mul", "truediv", "lt", "le", "gt", "ge", "eq", "ne", "sum")
_IN_PLACE = ("iadd", "isub", "imul", "itruediv")
TINY = np.finfo(np.float32).smallest_normal


def cast_numbers(arguments: tuple[Any, ...]) -> None:
    """CuPy casts Python's numbers on the host, where NumPy warns of those that are too large."""
    kinds = {x.dtype for x in arguments if isinstance(x, np.ndarray) and x.dtype in (np.float16, np.float32)}
    for kind in kinds if len(kinds) == 1 else ():
        np.array([x for x in arguments if type(x) is float], kind)


def flushed(value: Any, *, in_place: bool = False) -> Any:
    """Subnormal numbers of float32 become 0, as CuPy's option -ftz=true has it."""
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype != np.float32:
        return value
    subnormal = (np.abs(value) < TINY) & (value != 0)
    if not subnormal.any():
        return value
    if in_place and isinstance(value, np.ndarray):
        value[subnormal] = 0.0
        return value
    return np.where(subnormal, np.float32(0.0), value)


class Generator:
    """Random numbers on the device; it has fewer methods than NumPy's."""

    def __init__(self, seed: Any = None) -> None:
        self._generator = np.random.default_rng(seed)

    def __getattr__(self, name: str) -> Any:
        if name not in ("integers", "random", "standard_exponential", "standard_gamma", "standard_normal", "uniform"):
            raise AttributeError(f"'Generator' object has no attribute {name!r}")
        return lambda *arguments, **options: called(getattr(self._generator, name), *arguments, **options)


def _function(name: str) -> Any:
    function = getattr(np, name)

    def wrapper(*arguments: Any, **options: Any) -> Any:
        return called(function, *arguments, **options)

    wrapper.__name__ = name
    return wrapper


def array(obj: Any, dtype: Any = None, copy: bool | None = True, order: str = "K", **options: Any) -> ndarray:
    """From anything, the host's arrays too; to the current device."""
    if isinstance(obj, ndarray):
        same = obj._device == Device.current[-1] and (dtype is None or obj.dtype == dtype)
        if same and not copy:
            return obj
        launch_counter.launched("copy")
        return ndarray(np.array(obj._array, dtype, order=order))
    if isinstance(obj, (list, tuple)):
        obj = [item._array if isinstance(item, ndarray) else item for item in obj]
    launch_counter.launched("copy to the device")
    return ndarray(np.array(obj, dtype, copy=True, order=order, **options))


def asarray(obj: Any, dtype: Any = None, order: str = "K", **options: Any) -> ndarray:
    return array(obj, dtype, copy=False, order=order)


def ascontiguousarray(x: ndarray, dtype: Any = None) -> ndarray:
    if x.flags.c_contiguous and dtype in (None, x.dtype):
        return x
    launch_counter.launched("copy")
    return ndarray(np.ascontiguousarray(unwrapped(x), dtype))


# What NumPy has and CuPy 14.2 has not, or has elsewhere.
LACKING = {
    "cupy": (
        *("False_", "ScalarType", "True_", "asmatrix", "block", "bmat", "busday_count", "busday_offset"),
        *(
            "busdaycalendar",
            "bytes_",
            "character",
            "clongdouble",
            "complex256",
            "datetime64",
            "datetime_as_string",
            "datetime_data",
        ),
        *("einsum_path", "errstate", "flexible", "float128", "frompyfunc", "fromregex", "geomspace", "get_include"),
        *("getbufsize", "geterr", "geterrcall", "histogram_bin_edges", "info", "insert", "is_busday", "isnat"),
        *("little_endian", "longdouble", "matrix", "matvec", "memmap", "nanpercentile", "nanquantile", "ndenumerate"),
        *("nditer", "nested_iters", "object_", "polyder", "polydiv", "polyint", "recarray", "record", "sctypeDict"),
        *("setbufsize", "seterr", "seterrcall", "show_runtime", "spacing", "str_", "test", "timedelta64", "typecodes"),
        *("unstack", "vecdot", "vecmat", "void"),
    ),
    "cupy.linalg": (
        *("diagonal", "matrix_norm", "multi_dot", "outer", "svdvals", "tensordot", "trace", "vecdot", "vector_norm"),
    ),
}


def _empty(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    return module


def _module(name: str, source: ModuleType, **more: Any) -> ModuleType:
    module = _empty(name)
    names = getattr(source, "__all__", dir(source))
    for each in names:
        if each.startswith("__") or each in LACKING.get(name, ()):
            continue
        value = getattr(source, each)
        if isinstance(value, type) or not callable(value) or each in ("dtype", "finfo", "iinfo"):
            if not isinstance(value, ModuleType):
                setattr(module, each, value)
        elif source is np:
            setattr(module, each, _function(each))
        else:
            setattr(module, each, lambda *a, f=value, **k: called(f, *a, **k))
    for each in ("result_type", "can_cast", "issubdtype", "isdtype", "promote_types", "broadcast_shapes"):
        if source is np:
            setattr(module, each, getattr(np, each))
    module.__dict__.update(more)
    module.__all__ = [each for each in vars(module) if not each.startswith("_")]
    return module


def modules() -> tuple[ModuleType, ...]:
    """CuPy, and its parts."""
    runtime = SimpleNamespace(
        is_hip=False,
        getDevice=lambda: Device.current[-1],
        getDeviceCount=lambda: 2,
        deviceSynchronize=wait,
        streamIsCapturing=lambda stream: False,
    )
    stream = SimpleNamespace(synchronize=wait, ptr=0)
    cuda, device = _empty("cupy.cuda"), _empty("cupy.cuda.device")
    device.Device = Device
    cuda.__dict__.update(runtime=runtime, Device=Device, device=device, get_current_stream=lambda: stream)
    linalg, fft = _module("cupy.linalg", np.linalg), _module("cupy.fft", np.fft)
    random = _empty("cupy.random")
    random.default_rng = random.Generator = Generator
    module = _module(
        *("cupy", np),
        ndarray=ndarray,
        array=array,
        asarray=asarray,
        ascontiguousarray=ascontiguousarray,
        RawModule=launch_counter.raw_module,
        asnumpy=lambda x: x.get(),
        cuda=cuda,
        linalg=linalg,
        fft=fft,
        random=random,
        abs=_function("absolute"),
        max=_function("max"),
        min=_function("min"),
        round=_function("round"),
    )
    module.stands_in, module.__version__ = True, "14.0"
    cupyx = _empty("cupyx")
    cupyx.__dict__.update(allow_synchronize=allow_synchronize, DeviceSynchronized=DeviceSynchronized)
    return module, linalg, fft, cuda, device, random, cupyx


def row_operations() -> SimpleNamespace:
    """A module of kernels for these arrays: each operation of the launcher, computed by the generic code.

    Steps of training are programs, as with CuPy; NumPy's formulas run them.
    """
    from program_reference import ReferenceRunner

    cuda = importlib.import_module("xpsoftmax.kernels.cuda.launcher")
    offered = [name for name in kernels.OPERATIONS if hasattr(cuda, name)]
    rows = {name: _on_its_device(getattr(generic, name)) for name in offered}
    return SimpleNamespace(refusal=cuda.refusal, Runner=ReferenceRunner, **rows)


def _on_its_device(operation: Any) -> Any:
    def kernel(first: Any, *arguments: Any, **options: Any) -> Any:
        where = next(x.device for x in (first, *arguments) for x in _flat(x) if isinstance(x, ndarray))
        with where:
            if operation in (generic.softmax_loss_rows, generic.softmax_loss_total):
                arguments = _as_generic(first, *arguments)
            return operation(first, *arguments, **options)

    return kernel


def _flat(value: Any) -> Any:
    return value if isinstance(value, (tuple, list)) else (value,)


def _as_generic(logits: ndarray, targets: ndarray, row_weight: Any, spec: Any) -> tuple[Any, ...]:
    """The CUDA kernel takes labels of every integer dtype, and one number for the weight of all rows."""
    if type(row_weight) is float:
        working = np.float32 if logits.itemsize == 2 else logits.dtype
        row_weight = ndarray(np.full(logits.shape[0], row_weight, working))
    if targets.ndim == 1:  # unsigned labels above 2**63 - 1 become negative: they stay bad ones
        targets = targets.astype(np.int64)
    return targets, row_weight, spec


def install() -> ModuleType:
    """Put it where `import cupy` finds it, and its kernels where `kernels.select` does."""
    parts = modules()
    sys.modules.update({part.__name__: part for part in parts})
    loads = functools.cache(row_operations)
    kernels.BACKENDS = tuple(
        backend._replace(load=loads) if backend.name == "cupy" else backend for backend in kernels.BACKENDS
    )
    return parts[0]
