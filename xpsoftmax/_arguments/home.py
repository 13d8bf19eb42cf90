"""Where arrays live: their library and device, and the context managers that a computation there needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import (
    array_namespace,
    device,
    is_cupy_namespace,
    is_jax_array,
    is_jax_namespace,
    is_torch_namespace,
)

from xpsoftmax._arguments.tracing import is_traced
from xpsoftmax._typing import Array, Device, Namespace


class Home(NamedTuple):
    """Library and device of an array. The other arrays of a call must be of this library, and on this device."""

    xp: Namespace
    device: Device
    owner: str = "logits"  # the argument that they come from, for messages
    differentiable: bool = False  # whether PyTorch may differentiate the result; if not, its tensors are detached

    def context(self) -> AbstractContextManager[Any]:
        """Return a context manager for a computation; see `computing_context`."""
        return quiet(self.xp, self.device)


@cache
def numpy_namespace() -> Namespace:
    return array_namespace(np.empty(0))


def home_of(array: Array) -> Device | None:
    """Return the device of an array, or the devices that JAX has spread it over; None if the library may move it."""
    if not is_jax_array(array) or is_traced(array):
        return device(array)
    return device(array) if getattr(array, "committed", True) else None


def placement(array: Array) -> Device | None:
    """Return where to make an array to go with this one; None if the library puts it where it is needed.

    JAX binds an array that is made on a device to that device, and then all that is computed from it.
    """
    where = home_of(array)
    return None if hasattr(where, "device_set") else where


def same_devices(one: Device, other: Device) -> bool:
    """Whether two arrays are on the same device or, in JAX, on the same devices, however they are laid out there."""
    if one == other:
        return True
    several = [getattr(x, "device_set", None) for x in (one, other)]
    if several == [None, None]:
        return False
    devices, others = (found or {x} for found, x in zip(several, (one, other), strict=True))
    return bool(devices == others)


def library(xp: Namespace) -> str:
    return str(xp.__name__).removeprefix("array_api_compat.")


def quiet(xp: Namespace, device: Device) -> AbstractContextManager[Any]:
    """Return a context manager for a computation; see `computing_context`."""
    return computing_context(xp, device)()


def computing_context(xp: Namespace, device: Device) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that makes the context manager for a computation.

    Underflow, infinities and nan are intended: NumPy must not warn of them, whatever the caller's errstate is. CuPy
    computes on its current device, which may differ from the device of the arrays, and uses NumPy to cast numbers.
    """
    if is_cupy_namespace(xp):
        return partial(_QuietOnDevice, device)
    if is_torch_namespace(xp) or is_jax_namespace(xp):
        return nullcontext
    return partial(np.errstate, all="ignore")


class _QuietOnDevice(AbstractContextManager[None]):
    def __init__(self, device: Device) -> None:
        self._device, self._errstate = device, np.errstate(all="ignore")

    def __enter__(self) -> None:
        self._device.__enter__()
        self._errstate.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._errstate.__exit__(*error)
        self._device.__exit__(*error)


def on_device(xp: Namespace, device: Device | None) -> AbstractContextManager[Any]:
    """Return a context manager in which new arrays are made on a device; None stands for the current device."""
    return nullcontext() if device is None or not is_cupy_namespace(xp) else device
