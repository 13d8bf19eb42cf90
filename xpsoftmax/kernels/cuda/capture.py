"""Programs on the GPU: their operations one by one, or captured once as a CUDA graph and replayed.

All work is done on a non-blocking stream of the thread, in order with the stream that is current for the caller: events
let each wait for the other. The memory of a program's arrays is not reused while the program exists, because its graph
holds their addresses.
"""

from __future__ import annotations

import gc
import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import cupy
import numpy as np

from xpsoftmax._typing import Array
from xpsoftmax.kernels.cuda import table_plan
from xpsoftmax.kernels.cuda.products import PlainProducts, Products, can_be_captured
from xpsoftmax.kernels.cuda.steps import bound
from xpsoftmax.kernels.rules import Rule

RUNS_BEFORE = 1
"""How often a program runs one by one, before it is captured: kernels are compiled and loaded then."""


class CaptureError(RuntimeError):
    """A step asked for memory while it was captured."""


class Runner:
    """A program with its arrays.

    Parameters
    ----------
    program : Program
        See xpsoftmax/_train/programs.py.
    arrays : mapping of str to array
        The arrays that do not belong to the program, by name.
    """

    def __init__(self, program: Any, arrays: Mapping[str, Array]) -> None:
        device = arrays["place"].device
        with device:
            self._workplace = _workplace_on(device)
            self._arrays = dict(arrays)
            for name, buffer in program.buffers.items():
                self._arrays[name] = _view(self._arrays["memory"], *buffer)
            self._operations = [self._bound(operation) for operation in program.operations]
        self._runs = 0
        self._graph: Any = None

    @staticmethod
    def has_rule(rule: Rule) -> bool:
        """Whether there is a kernel for this update rule."""
        return rule in table_plan.RULES

    @staticmethod
    def in_order(device: Any) -> AbstractContextManager[None]:
        """Return the context in which programs are run, one or many: after the caller's work, and before what follows.

        Its stream is the current one within.
        """
        with device:
            return _workplace_on(device).in_order()

    def _bound(self, operation: Any) -> Callable[[], None]:
        arrays = tuple(None if name is None else self._arrays[name] for name in operation.arrays)
        if operation.name == "product":
            product = self._workplace.products.product
            return lambda: product(*arrays, **operation.options)
        return bound(operation.name, arrays, operation.options)

    def run(self) -> None:
        """Make the step, within `in_order`: its operations one by one the first time; later as a graph, if possible."""
        if self._graph is not None:
            self._graph.launch(self._workplace.stream)
            return
        if self._runs == RUNS_BEFORE and self._workplace.captures:
            self._graph = self._captured()
        self._runs += 1
        if self._graph is None:
            self._one_by_one()
        else:
            self._graph.launch(self._workplace.stream)

    def _one_by_one(self) -> None:
        for operation in self._operations:
            operation()

    def _captured(self) -> Any:
        """Return the graph of the program; None, with a warning, where it cannot be captured."""
        try:
            with _undisturbed():
                return _graph_of(self._workplace.stream, self._one_by_one)
        except Exception as error:  # noqa: BLE001 - whatever CUDA or cuBLAS says: the step can be made without
            warnings.warn(f"A step of training could not be captured: {error}", RuntimeWarning, stacklevel=2)
            self._runs += 1  # the capture is not tried again
            return None


def _view(memory: Array, shape: tuple[int, ...], dtype: str, offset: int) -> Array:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return memory[offset : offset + size].view(dtype).reshape(shape)


def _graph_of(stream: Any, work: Callable[[], None]) -> Any:
    stream.begin_capture()
    graph = None
    try:
        work()
    finally:
        graph = stream.end_capture()  # also after an error: the stream could not be used any more
    return graph


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Context in which no memory is allocated or freed, and Ctrl-C waits until the end.

    The graph keeps the addresses of memory that CuPy's pool hands out, but the pool may reuse this memory after the
    capture. The garbage collector may free memory, or run any code; it is one for all threads, which capture in turn.
    """
    with _one_at_a_time:
        collects = gc.isenabled()
        gc.disable()
        try:
            with cupy.cuda.using_allocator(_refuse), _interrupts_later():
                yield
        finally:
            if collects:
                gc.enable()


_one_at_a_time = threading.Lock()


def _refuse(size: int) -> Any:
    raise CaptureError(f"{size} bytes were asked for while a step was captured")


@contextmanager
def _interrupts_later() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[tuple[int, Any]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if noted and callable(before):
            before(*noted[0])


class _Workplace:
    """Stream and cuBLAS handle of a device and a thread."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._before, self._after = (cupy.cuda.Event(block=False, disable_timing=True) for _ in range(2))
        self.products: Products | PlainProducts = PlainProducts()
        self.captures = can_be_captured()
        try:
            if self.captures:
                self.products = Products(self.stream)
        except (ImportError, AttributeError) as error:
            self.captures = False
            warnings.warn(
                f"nvmath-python cannot be used, steps are not captured: {error}", RuntimeWarning, stacklevel=2
            )
        else:
            if not self.captures:
                logging.getLogger("xpsoftmax").debug("nvmath-python is not installed: steps are not captured")

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Let the stream of this thread go on after the caller's, and the caller's after it."""
        with self._device:
            caller = cupy.cuda.get_current_stream()
            self.stream.wait_event(caller.record(self._before))
            try:
                with self.stream:
                    yield
            finally:
                caller.wait_event(self.stream.record(self._after))


_of_thread = threading.local()


def _workplace_on(device: Any) -> _Workplace:
    """Return the workplace of this thread on the device, which is current; it ends with the thread."""
    workplaces = vars(_of_thread)
    if device.id not in workplaces:
        workplaces[device.id] = _Workplace(device)
    found: _Workplace = workplaces[device.id]
    return found
