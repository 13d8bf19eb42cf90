"""PyTorch tensors as arrays of NumPy and CuPy that share their memory, and back. This module imports PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from xpsoftmax._typing import SIXTEEN_BIT, Array, dtype_name
from xpsoftmax.kernels.memory import numpy_of


def view_of_out(out: Array | None, logits: Array, view: Array) -> Array | None:
    """Where a kernel writes straight into `out`: the view of the logits itself if they are the same memory."""
    if out is None or not is_shared(out):
        return None
    same = out is logits or (out.data_ptr() == logits.data_ptr() and out.stride() == logits.stride())
    return view if same and out.dtype == logits.dtype else as_view(out)


def is_shared(tensor: Array) -> bool:
    """Whether `as_view` shows the memory of the tensor, not a copy."""
    return not tensor.is_neg() and (tensor.device.type != "cpu" or dtype_name(tensor.dtype) not in SIXTEEN_BIT)


def as_view(tensor: Array) -> Array:
    """A tensor as an array of NumPy or CuPy that shares its memory. On the host, 16-bit numbers become float32."""
    tensor = tensor.detach().resolve_neg()
    if tensor.device.type == "cpu":
        return numpy_of(tensor.float() if dtype_name(tensor.dtype) in SIXTEEN_BIT else tensor)
    import cupy

    if tensor.dtype != torch.bfloat16:
        return cupy.from_dlpack(tensor)
    import ml_dtypes  # tells NumPy, whose dtypes CuPy has, of bfloat16

    return cupy.from_dlpack(tensor.view(torch.int16)).view(ml_dtypes.bfloat16)


def as_tensor(array: Array) -> Array:
    """An array of NumPy or CuPy as a tensor that shares its memory."""
    if isinstance(array, np.ndarray):
        return torch.from_numpy(array)
    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view("int16")).view(torch.bfloat16)
    return torch.from_dlpack(array)


CHUNK = 2**15
"""Most numbers that PyTorch copies with one thread, whatever the number of its threads is."""


def chunks(matrix: Array) -> tuple[Array, ...]:
    """Views of the parts of a matrix, each of which PyTorch copies with the calling thread alone.

    A longer copy would be shared with threads of PyTorch, also where the caller is one of several threads.
    """
    columns = matrix.shape[1]
    if matrix.numel() <= CHUNK:
        return (matrix,)
    if columns <= CHUNK:
        return matrix.split(CHUNK // columns)  # type: ignore[no-any-return]
    return tuple(part for row in matrix for part in row.split(CHUNK))


@contextmanager
def computing_context(tensor: Array) -> Iterator[None]:
    """Where a kernel computes with views of a tensor: on its device, in PyTorch's current stream, without warnings."""
    with np.errstate(all="ignore"):
        if tensor.device.type == "cpu":
            yield
            return
        import cupy

        index = tensor.device.index
        with cupy.cuda.Device(index), cupy.cuda.ExternalStream(torch.cuda.current_stream(index).cuda_stream, index):
            yield


def working_dtype(logits: Array) -> Any:
    """The precision in which logits are computed."""
    return torch.float32 if dtype_name(logits.dtype) in SIXTEEN_BIT else logits.dtype


def working(logits: Array, *others: Array) -> list[Array]:
    """Convert all tensors to the working precision of the logits."""
    return [x.to(working_dtype(logits)) for x in (logits, *others)]
