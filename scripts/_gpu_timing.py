"""Times of the parts of gpu_check.py: CUDA graphs of many calls, loops of calls with one wait, and the host's share."""

from __future__ import annotations

import functools
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from _report import described

Call: TypeAlias = Callable[[int], Any]  # with the number of the input to work on

CALLS = 8
"""Least number of calls in a graph."""
SAMPLES = 5
"""How often a graph is launched."""
SLOW_EPOCH = 0.1
"""Seconds of an epoch from which there are fewer samples."""


def milliseconds(call: Call, copies: int, *, of_torch: bool = False) -> tuple[list[float], str]:
    """Times of one call, each on another input than the one before, and how they were taken."""
    numbers = [i % copies for i in range(max(CALLS, copies))]
    calls = [functools.partial(call, i) for i in numbers]
    try:
        start, stream = (torch_graph if of_torch else cupy_graph)(calls)
    except Exception as error:  # noqa: BLE001 - libraries refuse capture in many ways
        return in_series(calls, of_torch=of_torch), f"events around {len(calls)} calls: {described(error)}"
    start()  # the first launch of a graph takes longer
    return [time_of(start, stream) / len(calls) for _ in range(SAMPLES)], f"graph of {len(calls)} calls"


def cupy_graph(calls: list[Callable[[], Any]]) -> tuple[Callable[[], Any], Any]:
    """A CUDA graph of these calls, as a function that launches it, and the stream on which it does."""
    cupy = importlib.import_module("cupy")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for call in calls[:3]:
            call()  # so that memory is at hand
        stream.synchronize()
        stream.begin_capture()
        try:
            for call in calls:
                call()
        finally:
            graph = stream.end_capture()
    return lambda: graph.launch(stream), stream


def torch_graph(calls: list[Callable[[], Any]]) -> tuple[Callable[[], Any], Any]:
    """The same for calls that launch on PyTorch's stream."""
    torch = importlib.import_module("torch")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:3]:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()

    def launch() -> None:
        with torch.cuda.stream(stream):
            graph.replay()

    return launch, stream


def in_series(calls: list[Callable[[], Any]], *, of_torch: bool) -> list[float]:
    """The time of calls one after the other, by events: the host's time is in it where it is the longer one."""
    library = importlib.import_module("torch" if of_torch else "cupy")
    stream = library.cuda.current_stream() if of_torch else library.cuda.get_current_stream()

    def all_calls() -> None:
        for call in calls:
            call()

    all_calls()
    return [time_of(all_calls, stream) / len(calls) for _ in range(SAMPLES)]


def time_of(start: Callable[[], Any], stream: Any) -> float:
    """Milliseconds that a stream of CuPy or PyTorch takes for what is started."""
    if hasattr(stream, "cuda_stream"):  # PyTorch's
        kind = importlib.import_module("torch").cuda.Event
        first, last = kind(enable_timing=True), kind(enable_timing=True)
    else:
        kind = importlib.import_module("cupy").cuda.Event
        first, last = kind(), kind()
    first.record(stream)
    start()
    last.record(stream)
    last.synchronize()
    if hasattr(stream, "cuda_stream"):
        return float(first.elapsed_time(last))
    return float(importlib.import_module("cupy").cuda.get_elapsed_time(first, last))


def wait() -> None:
    """Until the GPU has done everything."""
    importlib.import_module("cupy").cuda.runtime.deviceSynchronize()


def seconds_of(run: Callable[[], Any]) -> float:
    """Seconds from an idle GPU until everything that is started has been done."""
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def each_more(run: Callable[[int], Any], seconds: float) -> tuple[list[float], float]:
    """Seconds of one more epoch of a training, and those of the shortest training beside its epoch.

    `run` makes a number of epochs. Each sample compares many with one, so that what a training does before and after
    its epochs does not count.
    """
    run(1)
    once = statistics.median(seconds_of(lambda: run(1)) for _ in range(3))
    estimate = max((seconds_of(lambda: run(3)) - once) / 2, 1e-4)
    more = max(1, min(200, int(seconds / SAMPLES / estimate)))
    samples = SAMPLES if estimate < SLOW_EPOCH else 3
    each = [(seconds_of(lambda: run(1 + more)) - once) / more for _ in range(samples)]
    return each, max(0.0, once - statistics.median(each))


def give_back() -> None:
    """Give the GPU the memory that CuPy and PyTorch keep at hand: neither can use what the other keeps."""
    importlib.import_module("cupy").get_default_memory_pool().free_all_blocks()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()
