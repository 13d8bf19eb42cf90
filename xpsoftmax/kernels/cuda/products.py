"""Matrix products that can be captured: cuBLAS through nvmath-python. CuPy refuses its own products in a capture."""

from __future__ import annotations

import importlib
import importlib.util
import os
import weakref
from typing import Any

import cupy
import numpy as np

from xpsoftmax._typing import Array

WORKSPACE_BYTES = 32 * 2**20
"""What NVIDIA recommends for GPUs of 9.0; cuBLAS would allocate it by itself within a capture."""


def can_be_captured() -> bool:
    """Whether nvmath-python is installed."""
    return importlib.util.find_spec("nvmath") is not None


class Products:
    """A handle of cuBLAS on one stream, with a workspace of its own."""

    def __init__(self, stream: Any) -> None:
        self._cublas = importlib.import_module("nvmath.bindings.cublas")
        self._workspace = cupy.empty(WORKSPACE_BYTES, np.uint8)
        self._handle = self._cublas.create()
        weakref.finalize(self, self._cublas.destroy, self._handle).atexit = False  # CUDA may be gone before Python
        self._cublas.set_stream(self._handle, stream.ptr)
        self._cublas.set_workspace(self._handle, self._workspace.data.ptr, WORKSPACE_BYTES)
        if os.environ.get("CUPY_TF32", "0") == "1":  # as CuPy's own products
            self._cublas.set_math_mode(self._handle, self._cublas.Math.TF32_TENSOR_OP_MATH)
        # Numbers on the host, which cuBLAS reads while a product is launched or captured.
        self._one = {dtype: np.ones((), dtype) for dtype in ("f4", "f8")}
        self._zero = {dtype: np.zeros((), dtype) for dtype in ("f4", "f8")}

    def product(self, left: Array, right: Array, out: Array, *, transposed: str, spare: int | None = None) -> None:
        """Write left @ right to `out`, with one of them transposed if asked; all are contiguous.

        With `spare` the product is added to what is there. Nothing is allocated for it.
        cuBLAS reads matrices column by column: it computes out^T = right^T left^T.
        """
        rows, columns = out.shape
        inner = left.shape[0] if transposed == "left" else left.shape[1]
        kind = "f4" if out.itemsize == 4 else "f8"
        gemm = self._cublas.sgemm if kind == "f4" else self._cublas.dgemm
        gemm(
            self._handle,
            int(transposed == "right"),
            int(transposed == "left"),
            columns,
            rows,
            inner,
            self._one[kind].ctypes.data,
            right.data.ptr,
            right.shape[1],
            left.data.ptr,
            left.shape[1],
            (self._zero if spare is None else self._one)[kind].ctypes.data,
            out.data.ptr,
            columns,
        )


class PlainProducts:
    """Matrix products by CuPy, for steps that are not captured."""

    def product(self, left: Array, right: Array, out: Array, *, transposed: str, spare: int | None = None) -> None:
        """Write left @ right to `out`.

        With `spare` it is added to what is there, in parts of so many bytes, or of one column.
        """
        left, right = left.T if transposed == "left" else left, right.T if transposed == "right" else right
        if spare is None:
            cupy.matmul(left, right, out=out)
            return
        columns = max(1, spare // (out.shape[0] * out.itemsize))
        for first in range(0, out.shape[1], columns):
            part = slice(first, first + columns)
            out[:, part] += cupy.matmul(left, right[:, part])
