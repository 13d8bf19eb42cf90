"""Arrays brought to host memory as NumPy arrays, and from there to a library."""

from __future__ import annotations

import numpy as np
from array_api_compat import device as device_of
from array_api_compat import is_cupy_array, is_dask_array, is_jax_array, is_numpy_array, is_torch_array

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.home import on_device
from xpsoftmax._arguments.tracing import check_concrete
from xpsoftmax._typing import Array, Device, Namespace, dtype_name


def to_host(name: str, array: Array) -> np.ndarray:
    """Bring an array of any library to the host: a C-contiguous NumPy array."""
    xp, array = check.as_array(name, array)
    check_concrete(**{name: array})
    if dtype_name(array.dtype) == "bfloat16":  # no library exports it to NumPy; float32 holds all its numbers
        with on_device(xp, device_of(array)):
            return to_host(name, xp.astype(array, xp.float32)).astype("bfloat16")
    if is_cupy_array(array):
        array = array.get()
    elif is_torch_array(array):
        array = array.cpu().numpy()
    elif not (is_numpy_array(array) or is_jax_array(array) or is_dask_array(array)):
        array = np.from_dlpack(array)
    return np.asarray(array, order="C")  # safetensors writes bytes in the order of memory


def to_library(host: np.ndarray, xp: Namespace, device: Device | None) -> Array:
    """Bring an array of the host into a library, with its dtype."""
    name = host.dtype.name
    if name == "bfloat16":
        host = host.astype(np.float32)
    options = {} if device is None else {"device": device}
    return xp.asarray(host, dtype=getattr(xp, name, name), **options)
