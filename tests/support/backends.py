"""The array libraries that the tests run on, and whether each can be used here."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from array_api_compat import array_namespace


@dataclass(frozen=True)
class Backend:
    """A library and one of its devices."""

    name: str
    module: str  # what a user imports
    device: Any = field(default=None, compare=False)

    @property
    def library(self) -> Any:
        return importlib.import_module(self.module)

    @property
    def xp(self) -> Any:
        """The namespace that the package sees."""
        return array_namespace(self.library.asarray(0.0))

    @property
    def here(self) -> AbstractContextManager[Any]:
        """Where a test computes by itself: with the arrays' device being the current one."""
        return self.device if self.name == "cupy:device1" else nullcontext()

    @property
    def mutable(self) -> bool:
        return self.name not in ("jax", "dask")

    def flushes(self, dtype: str, impl: str = "generic") -> bool:
        """Whether what would be a subnormal number of this dtype may be 0. JAX arrays have the kernels of NumPy."""
        return (self.name == "jax" and impl == "generic") or (self.name.startswith("cupy") and dtype == "float32")

    def asarray(self, values: Any, dtype: str | None = None) -> Any:
        """An array of this library with these values, in this dtype (by its standard name) or that of `values`."""
        values = np.asarray(values)
        if dtype is None:
            dtype = values.dtype.name
        # NumPy has no bfloat16; float32 holds every one exactly.
        values = values.astype("float32" if dtype == "bfloat16" else dtype)
        if dtype == "bfloat16" and self.name.startswith("cupy"):
            importlib.import_module("ml_dtypes")  # which tells NumPy, whose dtypes CuPy has
        options = {} if self.device is None else {"device": self.device}
        return self.xp.asarray(values, dtype=getattr(self.library, dtype, dtype), **options)

    def to_numpy(self, array: Any) -> np.ndarray:
        """The values on the host; bfloat16 as float32."""
        if self.name.startswith("cupy"):
            array = array.astype("float32") if array.dtype.name == "bfloat16" else array
            return array.get()
        if self.name == "torch":
            array = array.detach().to("cpu")
            return (array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy()
        if self.name.startswith("array_api_strict"):
            cpu = self.library.Device("CPU_DEVICE")
            return np.from_dlpack(self.library.asarray(array, copy=True).to_device(cpu))
        if self.name == "jax" and array.dtype.name == "bfloat16":
            array = array.astype("float32")
        return np.asarray(array)


def _strict_device() -> Any:
    return importlib.import_module("array_api_strict").Device("device1")


def _usable_numpy() -> None:
    return None


def _usable_import(module: str) -> Callable[[], None]:
    def probe() -> None:
        importlib.import_module(module)

    return probe


def _usable_jax() -> None:
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)  # without it there is no float64 to test


def _usable_cupy() -> None:
    cupy = importlib.import_module("cupy")
    if cupy.cuda.runtime.getDeviceCount() < 1:
        raise RuntimeError("no CUDA device")
    assert float((cupy.arange(4, dtype="f4") * 2).sum()) == 12.0


def _usable_second_gpu() -> None:
    _usable_cupy()
    if importlib.import_module("cupy").cuda.runtime.getDeviceCount() < 2:
        raise RuntimeError("no second CUDA device")


_PROBES: dict[str, Callable[[], None]] = {
    "numpy": _usable_numpy,
    "array_api_strict": _usable_import("array_api_strict"),
    "array_api_strict:device1": _usable_import("array_api_strict"),
    "dask": _usable_import("dask.array"),
    "torch": _usable_import("torch"),
    "jax": _usable_jax,
    "cupy": _usable_cupy,
    "cupy:device1": _usable_second_gpu,
}

NAMES = tuple(_PROBES)


@functools.cache
def unusable(name: str) -> str | None:
    """Why a backend cannot be used here, or None."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        _PROBES[name]()
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the reason
        return f"{type(error).__name__}: {error}"
    return None


def backend_named(name: str) -> Backend:
    if name == "array_api_strict:device1":
        return Backend(name, "array_api_strict", _strict_device())
    if name == "cupy:device1":  # while the device 0 is current
        return Backend(name, "cupy", importlib.import_module("cupy").cuda.Device(1))
    modules = {"dask": "dask.array", "jax": "jax.numpy"}
    return Backend(name, modules.get(name, name))


def numpy_as_cupy(**more: Any) -> ModuleType:
    """A module of the name cupy whose functions are NumPy's, for scripts that ask for CuPy.

    Its `ndarray` is not NumPy's: what `is_cupy_array` once said of a class it says to the end of the process.
    """
    module = ModuleType("cupy")
    module.__dict__.update(ndarray=type("ndarray", (), {}), __getattr__=lambda name: getattr(np, name), **more)
    return module
