"""As much of CuPy as the launcher uses, on NumPy arrays; kernels run on the CPU (cuda_on_cpu.py).

`only_launches` is for calls that must consist of launches alone, and says how often they wait for the GPU.
"""

from __future__ import annotations

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
IMPORT_CUPY = ("arrays", "launches", "sums", "rows", "losses", "layers", "launcher")
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


class Recorder:
    """A module of the name cupy; `launches` are those it was asked for."""

    def __init__(self, capability: int) -> None:
        self.launches: list[plan.Launch] = []
        self.compiled: list[str] = []
        self.modules: dict[str, ModuleType] = {}
        self.module = ModuleType("cupy")
        self.capturing, self.stream = False, 7
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
                get_current_stream=lambda: SimpleNamespace(ptr=self.stream),
            ),
            empty=lambda shape, dtype: np.full(shape, 123, dtype).view(Array),
            zeros=lambda shape, dtype: np.zeros(shape, dtype).view(Array),
            ascontiguousarray=lambda x: x if x.flags.c_contiguous and x.ndim else np.ascontiguousarray(x).view(Array),
            RawModule=self._raw_module,
        )

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
                self.launches.append(plan.Launch(name, defines, *grid, *block, arguments, cluster, False, shared_mem))
                cpu.run(self.launches[-1], schedule=2)

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
