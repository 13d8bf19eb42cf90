"""JAX arrays in host memory as NumPy arrays that share their memory, and NumPy's results as JAX arrays.

JAX reads memory that begins at a multiple of 64 bytes without a copy, and keeps the NumPy array that owns it alive.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from xpsoftmax._typing import FLOATING, INTEGRAL, Array
from xpsoftmax.kernels.memory import aligned, aligned_if_large

# --- which arrays -----------------------------------------------------------------------------------------------------


def refusal(*arrays: Array | None) -> str | None:
    """Why arrays cannot be read as NumPy arrays, or their results cannot go back to where JAX has them; None if so."""
    for array in arrays:
        reason = None if array is None else _refusal_of(array)
        if reason is not None:
            return reason
    if jax.config.jax_debug_nans or jax.config.jax_debug_infs:
        return "JAX is set to look for nan or inf in what it computes"
    return None


def _refusal_of(array: Array) -> str | None:
    if not isinstance(array, jax.Array):
        return "not all are arrays of JAX"
    if isinstance(array, jax.core.Tracer):
        return "JAX traces them"
    return _refusal_of_kind(array.dtype, array.sharding, jax.config.jax_enable_x64)


@lru_cache(maxsize=256)
def _refusal_of_kind(dtype: Any, sharding: Any, x64: bool) -> str | None:  # noqa: FBT001
    if type(sharding) is not SingleDeviceSharding:
        return "they may be distributed over several devices"
    (device,) = sharding.device_set
    if device.platform != "cpu" or not sharding.is_fully_addressable:
        return f"they are on {device}"
    if dtype.name not in (*FLOATING, *INTEGRAL, "bool"):
        return f"NumPy has no dtype {dtype}"
    return "JAX is set to 32 bits" if dtype.name == "float64" and not x64 else None


backend = SimpleNamespace(
    refusal=lambda logits: refusal(logits) or "not all arrays of the call can be read as NumPy arrays"
)
"""For the table of backends: it has no kernels, and says why."""


def seen(array: Array) -> Any:
    """What the door may see of an array beside its shape; KeyError for arrays that `refusal` refuses."""
    sharding, config = array.sharding, jax.config
    if type(sharding) is not SingleDeviceSharding or config.jax_debug_nans or config.jax_debug_infs:
        raise KeyError
    return array.dtype, sharding, array.committed, config.jax_enable_x64


# --- there and back ---------------------------------------------------------------------------------------------------


def as_numpy(array: Array | None) -> Any:
    """A JAX array as a read-only NumPy array of the same memory, once JAX has computed it; bfloat16 as float32."""
    if array is None:
        return None
    view = np.asarray(array)
    return view.astype(np.float32) if view.dtype.kind == "V" else view  # NumPy has no bfloat16 of its own


class Place(NamedTuple):
    """Where JAX has the arrays of a call, and the dtype of its logits: results become JAX arrays there."""

    sharding: Any
    committed: bool
    dtype: Any

    def empty_like(self, rows: Array) -> Array | None:
        """New rows at an address from which JAX reads them without a copy; None where a copy takes no longer."""
        return aligned_if_large(rows.shape, rows.dtype) if rows.dtype == self.dtype else None

    def like_logits(self, result: Array) -> Array:
        """A result of NumPy as a JAX array of the dtype of the logits."""
        if result.dtype != self.dtype:
            rounded = aligned(result.shape, self.dtype)
            rounded[...] = result
            result = rounded
        return self.array(result)

    def array(self, result: Array) -> Array:
        """A result of NumPy as a JAX array. Nothing may write to its memory any more."""
        result = np.asarray(result)
        if result.itemsize == 8 and not jax.config.jax_enable_x64:
            result = result.astype(jax.dtypes.canonicalize_dtype(result.dtype))
        return _put(result, self.sharding, self.committed)


def place_of(*arrays: Array | None) -> Place:
    """The place of the results: where the caller has bound arrays to, else where the first array, the logits, is."""
    given = [x for x in arrays if x is not None]
    bound = next((x for x in given if x.committed), None)
    return Place((given[0] if bound is None else bound).sharding, bound is not None, given[0].dtype)


# --- arrays of JAX from memory of NumPy -------------------------------------------------------------------------------


def _put(array: Array, sharding: Any, committed: bool) -> Array:  # noqa: FBT001
    try:
        return _to_device()(array, sharding, committed)
    except jax.errors.JaxRuntimeError:
        # JAX's guard against transfers. Nothing leaves the host here.
        with jax.transfer_guard_host_to_device("allow"):
            return _to_device()(array, sharding, committed)


@cache
def _to_device() -> Callable[[Array, Any, bool], Array]:
    """Return what makes the arrays: the part of `jax.device_put` that does so, if it is where it is known to be.

    `jax.device_put` takes 17 microseconds, of which this part takes two: a loss of 256 rows and 1000 classes, 140.
    """
    try:
        from jaxlib.xla_client import batched_device_put

        def directly(array: Array, sharding: Any, committed: bool) -> Array:  # noqa: FBT001
            aval = _aval(array.shape, array.dtype)
            return batched_device_put(aval, sharding, [array], _devices(sharding), committed)

        one = np.ones((1, 2), np.float32)
        for example in (jax.device_put(one), jax.device_put(one, jax.devices("cpu")[0])):
            made = directly(one, example.sharding, example.committed)
            found, wanted = ((x.aval, x.sharding, x.committed, x.tolist()) for x in (made, example))
            if found != wanted:
                return _publicly
    except Exception:  # noqa: BLE001 - whatever another version of JAX raises
        return _publicly
    return directly


def _publicly(array: Array, sharding: Any, committed: bool) -> Array:  # noqa: FBT001
    return jax.device_put(array, sharding) if committed else jax.device_put(array)


@cache
def _devices(sharding: Any) -> list[Any]:
    return list(sharding.device_set)


@lru_cache(maxsize=256)
def _aval(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.core.ShapedArray(shape, dtype)
