"""As much of CuPy as the launcher uses, on NumPy arrays; kernels run on the CPU (cuda_on_cpu.py).

`only_launches` is for calls that must consist of launches alone, and says how often they wait for the GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cuda_on_cpu as cpu
import numpy as np

from xpsoftmax.kernels.cuda import plan, texts

MULTIPROCESSORS = 3
IMPORT_CUPY = (
    *("arrays", "launches", "counters", "sums", "rows", "losses", "layers", "weights"),
    *("steps", "products", "capture", "launcher"),
)
"""The modules of kernels/cuda/ that import CuPy, each after those that it imports."""


class Device(AbstractContextManager):
    """The device 1, current only within `with`."""

    id, current = 1, 0
    before: list[int] = []  # noqa: RUF012 - the devices that were current outside of each `with`

    def __enter__(self) -> Device:
        Device.before.append(Device.current)
        Device.current = self.id
        return self

    def __exit__(self, *exception: object) -> None:
        Device.current = Device.before.pop()


class Array(np.ndarray):
    """An array whose memory is asked for as CuPy's is."""

    device = Device()

    @cached_property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data, device_id=Device.id)


def array(values: Any) -> Array:
    return np.asarray(values).view(Array)


@contextmanager
def only_launches() -> Iterator[list[str]]:
    """Within, arrays may be made and passed to kernels, no more; what waits for the GPU is written down."""
    waits: list[str] = []

    def operation(self: Array, function: Any, *more: Any, **options: Any) -> Any:
        raise AssertionError(f"{function.__name__}: an operation of CuPy's own, which launches more")

    def item(self: Array) -> Any:
        waits.append("item")
        return np.ndarray.item(self)

    forbidden = {"__array_ufunc__": operation, "__array_function__": operation}
    kinds = {f"__{kind.__name__}__": lambda self, kind=kind: kind(item(self)) for kind in (bool, int, float)}
    changed = {**forbidden, **kinds, "item": item}
    for name, method in changed.items():
        setattr(Array, name, method)
    try:
        yield waits
    finally:
        for name in changed:
            delattr(Array, name)


class Stream(AbstractContextManager):
    """A stream: what is launched while it is captured is written down, to be run when its graph is launched."""

    def __init__(self, recorder: Recorder, ptr: int) -> None:
        self.recorder, self.ptr = recorder, ptr
        self.captured: list[Any] | None = None

    def __enter__(self) -> Stream:
        self.before, self.recorder.current_stream = self.recorder.current_stream, self
        return self

    def __exit__(self, *exception: object) -> None:
        self.recorder.current_stream = self.before

    def record(self, event: Any) -> Any:
        self.recorder.order.append(("record", self.ptr))
        return event

    def wait_event(self, event: Any) -> None:
        self.recorder.order.append(("wait", self.ptr))

    def begin_capture(self) -> None:
        self.captured = []

    def end_capture(self) -> Any:
        captured, self.captured = self.captured, None

        def launch(stream: Stream) -> None:
            self.recorder.order.append(("graph", stream.ptr))
            for work in captured:
                work()

        return SimpleNamespace(launch=launch)

    def do(self, work: Any) -> None:
        """Run, or write down."""
        work() if self.captured is None else self.captured.append(work)


class Recorder:
    """A module of the name cupy; `launches` are those it was asked for."""

    def __init__(self, capability: int) -> None:
        self.launches: list[plan.Launch] = []
        self.compiled: list[str] = []
        self.modules: dict[str, ModuleType] = {}
        self.module = ModuleType("cupy")
        self.capturing, self.current_stream = False, Stream(self, 7)
        self.order: list[tuple[str, int]] = []  # of events, and of graphs that are launched
        self.allocator: Any = None
        runtime = SimpleNamespace(
            is_hip=False, getDevice=lambda: Device.current, streamIsCapturing=lambda stream: self.capturing
        )
        device = lambda number: SimpleNamespace(  # noqa: E731
            compute_capability=str(capability), attributes={"MultiProcessorCount": MULTIPROCESSORS}
        )
        driver = SimpleNamespace(occupancyMaxActiveBlocksPerMultiprocessor=lambda function, block, shared: 1)
        self.module.__dict__.update(
            ndarray=Array,
            cuda=SimpleNamespace(
                runtime=runtime,
                Device=device,
                driver=driver,
                get_current_stream=lambda: self.current_stream,
                Stream=lambda non_blocking: Stream(self, 100 + non_blocking),
                Event=lambda **options: SimpleNamespace(),
                using_allocator=self._using_allocator,
            ),
            empty=lambda shape, dtype: self._allocated(np.full(shape, 123, dtype)),
            zeros=lambda shape, dtype: self._allocated(np.zeros(shape, dtype)),
            matmul=self._matmul,
            ascontiguousarray=lambda x: x if x.flags.c_contiguous and x.ndim else np.ascontiguousarray(x).view(Array),
            RawModule=self._raw_module,
        )

    @property
    def stream(self) -> int:
        return self.current_stream.ptr

    @stream.setter
    def stream(self, ptr: int) -> None:
        self.current_stream = Stream(self, ptr)

    @contextmanager
    def _using_allocator(self, allocator: Any) -> Iterator[None]:
        self.allocator = allocator
        try:
            yield
        finally:
            self.allocator = None

    def _allocated(self, values: np.ndarray) -> Array:
        if self.allocator is not None:
            self.allocator(values.nbytes)
        return values.view(Array)

    def _matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        out = self._allocated(np.empty((a.shape[0], b.shape[1]), a.dtype)) if out is None else out
        self.current_stream.do(lambda: np.matmul(a, b, out=out))
        return out

    def cublas(self) -> ModuleType:
        """nvmath.bindings.cublas: products of matrices that are read column by column, from their addresses."""
        module = ModuleType("nvmath.bindings.cublas")

        def gemm(real: Any) -> Any:
            def product(handle, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
                def matrix(address: int, rows: int, columns: int) -> np.ndarray:  # columns lie one after the other
                    return (
                        np.ctypeslib.as_array((real * (rows * columns)).from_address(address)).reshape(columns, rows).T
                    )

                left = matrix(a, lda, m if ta else k)
                right = matrix(b, ldb, k if tb else n)
                assert left.shape == ((k, m) if ta else (m, k))
                assert right.shape == ((n, k) if tb else (k, n))
                factors = [real.from_address(address).value for address in (alpha, beta)]
                assert factors in ([1, 0], [1, 1])

                def work() -> None:
                    out = matrix(c, ldc, n)
                    out[...] = (out if factors[1] else 0) + (left.T if ta else left) @ (right.T if tb else right)

                self.current_stream.do(work)

            return product

        module.__dict__.update(
            create=lambda: 1,
            destroy=lambda handle: self.order.append(("destroy", handle)),
            set_stream=lambda handle, stream: None,
            set_workspace=lambda handle, address, size: None,
            sgemm=gemm(ctypes.c_float),
            dgemm=gemm(ctypes.c_double),
        )
        return module

    def _raw_module(self, *, code: str, options: tuple[str, ...], backend: str) -> Any:
        assert backend == "nvrtc"
        assert options[: len(texts.COMPILER_OPTIONS)] == texts.COMPILER_OPTIONS
        defines = tuple(tuple(option[2:].split("=")) for option in options[len(texts.COMPILER_OPTIONS) :])

        def get_function(name: str) -> Any:
            assert code == texts.source(name)
            self.compiled.append(name)

            def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...], *, shared_mem: int) -> None:
                assert Device.current == 1, "launched while another device is current"
                assert shared_mem <= getattr(launch, "max_dynamic_shared_size_bytes", 48 * 1024)
                arguments = tuple(np.uint64(x.data.ptr) if isinstance(x, Array) else x for x in arguments)
                cluster = int(dict(defines).get("BLOCKS", "1"))
                made = plan.Launch(name, defines, *grid, *block, arguments, cluster, False, shared_mem)
                self.launches.append(made)
                self.current_stream.do(lambda: cpu.run(made, schedule=2))

            launch.kernel = SimpleNamespace(ptr=0)
            return launch

        return SimpleNamespace(get_function=get_function)

    def backend(self, monkeypatch: Any) -> ModuleType:
        """The launcher, imported with all that is below it while this module stands for CuPy."""
        monkeypatch.setitem(sys.modules, "cupy", self.module)
        for name in IMPORT_CUPY:
            path = Path(plan.__file__).with_name(f"{name}.py")
            spec = importlib.util.spec_from_file_location(f"{plan.__package__}.{name}", path)
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, spec.name, module)
            monkeypatch.setattr(sys.modules[plan.__package__], name, module, raising=False)
            spec.loader.exec_module(module)
            self.modules[name] = module
        return module
