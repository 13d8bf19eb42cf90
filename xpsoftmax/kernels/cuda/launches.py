"""Launches on the current device and stream. Kernels are compiled once and cached; no launch is waited for."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

import cupy
import numpy as np

from xpsoftmax.kernels.cuda import plan, texts


def run(launch: plan.Launch) -> None:
    """Launch on the current device and stream; raises what CUDA raises, and waits for nothing."""
    device = cupy.cuda.runtime.getDevice()
    function = _function(launch.kernel, launch.defines, launch.shared_bytes, device)
    function((_grid(launch, device),), (launch.block,), launch.arguments, shared_mem=launch.shared_bytes)


def _grid(launch: plan.Launch, device: int) -> int:
    if not launch.persistent:
        return launch.grid
    at_once = _at_once(launch.kernel, launch.defines, launch.block, launch.cluster, launch.shared_bytes, device)
    return min(launch.grid, launch.cluster * at_once)


class Ready(NamedTuple):
    """A launch that lacks only its arrays. It is cached for the next call with arrays of the same layout."""

    function: Any
    grid: tuple[int]
    block: tuple[int]
    shared_bytes: int
    others: tuple[Any, ...]  # the arguments that are no addresses
    in_order: Callable[[tuple[Any, ...]], tuple[Any, ...]]  # puts arrays and others, one after the other, in order
    alignment: int  # of all addresses that are passed, in bytes
    real: Any  # dtype of the losses

    def run(self, *arrays: Any) -> None:
        """Launch on the current device and stream with these arrays, in the order of the arguments.

        CuPy passes the address of an array faster than a NumPy number. A NumPy number here stands for a missing array.
        """
        arguments = self.in_order(arrays + self.others)
        self.function(self.grid, self.block, arguments, shared_mem=self.shared_bytes)


def made_ready(launch: plan.Launch, device: int, alignment: int, real: Any) -> Ready:
    """Return a launch that lacks its addresses; those of the given launch are placeholders."""
    arguments = launch.arguments
    places = [i for i, argument in enumerate(arguments) if type(argument) is np.uint64]
    others = [i for i in range(len(arguments)) if i not in places]
    positions = {place: position for position, place in enumerate((*places, *others))}
    return Ready(
        _function(launch.kernel, launch.defines, launch.shared_bytes, device),
        (_grid(launch, device),),
        (launch.block,),
        launch.shared_bytes,
        tuple(arguments[i] for i in others),
        itemgetter(*(positions[i] for i in range(len(arguments)))),
        alignment,
        real,
    )


MOST_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory that a kernel may have without asking for more."""


@cache
def _function(
    kernel: str,
    defines: tuple[tuple[str, str], ...],
    shared_bytes: int,
    device: int,  # noqa: ARG001 - one for each
) -> Any:
    """The kernel compiled for the current device; CuPy keeps it on disk, too."""
    module = cupy.RawModule(code=texts.source(kernel), options=texts.options(defines), backend="nvrtc")
    function = module.get_function(kernel)
    if shared_bytes > MOST_SHARED_BYTES:
        function.max_dynamic_shared_size_bytes = shared_bytes
    return function


@cache
def _at_once(
    kernel: str, defines: tuple[tuple[str, str], ...], block: int, cluster: int, shared_bytes: int, device: int
) -> int:
    """Return how many clusters of thread blocks of a kernel run at once; without a limit if the driver does not say.

    If more were launched, the last ones would begin when the first ones are done with all of their rows.
    """
    address = _function(kernel, defines, shared_bytes, device).kernel.ptr
    if cluster == 1:
        blocks: int = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(address, block, shared_bytes)
        return blocks * int(cupy.cuda.Device(device).attributes["MultiProcessorCount"]) or plan.MOST_BLOCKS
    return _clusters_at_once(address, block, cluster, shared_bytes) or plan.MOST_BLOCKS


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


def _clusters_at_once(function: int, block: int, cluster: int, shared_bytes: int) -> int:
    """What cuOccupancyMaxActiveClusters says, which CuPy does not offer; 0 where it cannot be called."""
    count = ctypes.c_int(0)
    config = _LaunchConfig(cluster, 1, 1, block, 1, 1, shared_bytes, None, None, 0)
    try:
        ask = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuOccupancyMaxActiveClusters
    except (OSError, AttributeError):  # no driver of that name, or an old one
        return 0
    status = ask(ctypes.byref(count), ctypes.c_void_p(function), ctypes.byref(config))
    return count.value if status == 0 else 0


@cache
def capability_of(device: int) -> int:
    """Compute capability of a device, as 90 for 9.0."""
    return int(cupy.cuda.Device(device).compute_capability)
