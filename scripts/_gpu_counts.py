"""Host time of a call, and its launches, graphs, copies and waits. The parts of gpu_check.py count them here."""

from __future__ import annotations

import importlib
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

import xpsoftmax as xs

SMALL = (64, 10)
"""Rows and classes so few that the host takes longer to launch the kernels than the GPU to run them."""


def small_calls() -> dict[str, dict[str, float]]:
    """Microseconds of the host and launches of small calls without validation, and of a launch of as many arguments."""
    cupy = importlib.import_module("cupy")
    z, y = cupy.zeros(SMALL, "f4"), cupy.zeros(SMALL[0], "i4")
    out = cupy.empty_like(z)
    calls = {
        "softmax_loss_and_grad": lambda: xs.softmax_loss_and_grad(z, y, out=out, validate=False),
        "softmax": lambda: xs.softmax(z, out=out),
    }
    found = {}
    for name, call in calls.items():
        microseconds, launches = of_host(call), launches_of(call)
        bare = of_host(bare_launch(launches[0]))
        found[name] = {"microseconds": microseconds, "launches": len(launches), "bare_microseconds": bare}
    return found


def of_host(call: Callable[[], Any]) -> float:
    """Microseconds of the host in a call, when the GPU has nothing else to do."""
    stream = importlib.import_module("cupy").cuda.get_current_stream()
    times = []
    for _ in range(300):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        stream.synchronize()
    return 1e6 * statistics.median(times[100:])


def launches_of(call: Callable[[], Any]) -> list[tuple[Any, ...]]:
    """The arguments of each kernel that the package launches in a call."""
    module, found = importlib.import_module("xpsoftmax.kernels.cuda.launches"), []
    run, run_ready = module.run, module.Ready.run

    def noted(launch: Any) -> None:
        found.append(launch.arguments)
        run(launch)

    def noted_ready(ready: Any, *arrays: Any) -> None:
        found.append(ready.in_order(arrays + ready.others))
        run_ready(ready, *arrays)

    module.run, module.Ready.run = noted, noted_ready
    try:
        call()
    finally:
        module.run, module.Ready.run = run, run_ready
    return found


C_TYPES = {
    "uint64": "unsigned long long",
    "int64": "long long",
    "int32": "int",
    "float32": "float",
    "float64": "double",
}


def bare_launch(arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """A launch of a kernel that takes these arguments and does nothing."""
    cupy = importlib.import_module("cupy")
    types = [C_TYPES[value.dtype.name] if isinstance(value, np.generic) else "void*" for value in arguments]
    parameters = ", ".join(f"{name} p{i}" for i, name in enumerate(types))
    kernel = cupy.RawKernel(f'extern "C" __global__ void nothing({parameters}) {{}}', "nothing")
    return lambda: kernel((1,), (32,), arguments)


def events_of(call: Callable[[], Any]) -> dict[str, int]:
    """Count kernels and copies on the GPU, and launches, graphs and waits of the host, in a call.

    By PyTorch's profiler, which sees those of every library; less those of the profiler itself.
    """
    torch = importlib.import_module("torch")
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]

    def counted(call: Callable[[], Any]) -> Counter[str]:
        with torch.profiler.profile(activities=kinds) as profile:
            call()
            torch.cuda.synchronize()
        return Counter(kind for event in profile.events() if (kind := kind_of_event(event)))

    call()
    return dict(counted(call) - counted(lambda: None))


def kind_of_event(event: Any) -> str | None:
    """What an event counts as; None for what is none of these."""
    name = event.name
    if str(event.device_type).endswith("CUDA"):  # kernels may be called as CUDA's functions are: cupy_add, cutlass_...
        if getattr(event, "is_user_annotation", False):  # a span that PyTorch names, such as a step of an optimiser
            return None
        return "copies" if name.startswith(("Memcpy", "Memset")) else "kernels"
    if not name.startswith("cu"):
        return None
    if "GraphLaunch" in name:
        return "graphs"
    if "LaunchKernel" in name or "LaunchCooperative" in name:
        return "launches"
    return "waits" if "Synchronize" in name or name in ("cudaMemcpy", "cudaMemset") else None
