"""The libraries that compare_backends.py compares: how numbers get into each and out of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any

DASK_ROWS = 64
"""Rows of a block: a default batch has two, so that sums over blocks are part of the comparison."""


def _as_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Backend:
    """A library, and the only ways in which numbers get into it and out of it."""

    version: str
    device: str
    asarray: Callable[[np.ndarray], Array]
    to_numpy: Callable[[Array], np.ndarray]
    finish: Callable[[Any], Any] = _as_is  # return the arrays once they are really there
    compiled: Callable[[Any], Any] = _as_is
    lazy: bool = False


def _load_numpy(_dtype: str) -> Backend:
    return Backend(np.__version__, "CPU", np.asarray, np.asarray)


def _load_cupy(_dtype: str) -> Backend:
    import cupy

    gpu = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    driver = cupy.cuda.runtime.driverGetVersion()

    def finish(value: Any) -> Any:
        cupy.cuda.get_current_stream().synchronize()
        return value

    return Backend(cupy.__version__, f"{gpu}, driver for CUDA {driver}", cupy.asarray, cupy.asnumpy, finish)


def _load_torch(_dtype: str) -> Backend:
    import torch

    version = str(torch.__version__)
    if not torch.cuda.is_available():
        return Backend(version, "CPU", torch.tensor, lambda tensor: tensor.numpy())

    def finish(value: Any) -> Any:
        torch.cuda.synchronize()
        return value

    device = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    asarray = functools.partial(torch.tensor, device="cuda")
    return Backend(version, device, asarray, lambda tensor: tensor.cpu().numpy(), finish)


def _load_jax(dtype: str) -> Backend:
    import jax

    jax.config.update("jax_enable_x64", dtype == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")  # a GPU's default for float32 is TensorFloat-32
    device = jax.devices()[0].device_kind.replace("cpu", "CPU")
    return Backend(jax.__version__, device, jax.numpy.asarray, np.asarray, jax.block_until_ready, jax.jit)


def _load_strict(_dtype: str) -> Backend:
    import array_api_strict

    return Backend(array_api_strict.__version__, "CPU", array_api_strict.asarray, np.from_dlpack)


def _load_dask(_dtype: str) -> Backend:
    import dask
    import dask.array

    dask.config.set(scheduler="synchronous")  # a task here is far too small for a thread of its own

    def asarray(values: np.ndarray) -> Array:
        return dask.array.from_array(values, chunks=(DASK_ROWS, *values.shape[1:]))

    def finish(value: Any) -> Any:
        return dask.persist(value)[0]  # or the graph of a step would hold those of all steps before

    return Backend(dask.__version__, "CPU", asarray, lambda array: np.asarray(array.compute()), finish, lazy=True)


LOADERS: dict[str, Callable[[str], Backend]] = {
    "numpy": _load_numpy,
    "cupy": _load_cupy,
    "torch": _load_torch,
    "jax": _load_jax,
    "array-api-strict": _load_strict,
    "dask": _load_dask,
}
