"""Memory for results, and that of tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xpsoftmax._typing import Array

ALIGNMENT = 64
"""JAX reads memory of NumPy without a copy if it begins at a multiple of so many bytes."""
LEAST_ALIGNED = 2**16
"""Fewest bytes of a result for which that matters: a smaller one is copied in less time than it takes to align it."""


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """A new NumPy array whose memory begins at a multiple of `ALIGNMENT` bytes."""
    dtype = np.dtype(dtype)
    memory = np.empty(dtype.itemsize * math.prod(shape) + ALIGNMENT, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % ALIGNMENT)


def aligned_if_large(shape: tuple[int, ...], dtype: Any) -> Array | None:
    """Memory for a result that JAX would take longer to copy; None for a smaller one, whose address does not matter."""
    return aligned(shape, dtype) if dtype.itemsize * math.prod(shape) >= LEAST_ALIGNED else None


def numpy_of(tensor: Array) -> np.ndarray:
    """Return a PyTorch tensor in host memory, which does not require grad, as a NumPy array of the same memory.

    Storage may have been freed, as FSDP frees that of parameters. NumPy would then make memory, which holds anything.
    """
    array: np.ndarray = tensor.numpy()
    if tensor.data_ptr() == 0 and array.size:
        raise ValueError("Tensors must have memory, got one whose storage has been freed.")
    return array
