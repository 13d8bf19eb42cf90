"""What a call launches on a GPU, counted without one: the launcher of the package on the CuPy that stands in.

Kernels are noted and compute nothing. CuPy's own operations are noted where they would launch something: whatever is
computed, filled or copied is one launch, also a product by cuBLAS; views, and arrays with any contents, are none.
Reading a value on the host is a wait.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

MAKE_NO_NUMBERS = ("empty", "empty_like", "shape", "ndim", "size", "can_cast", "result_type", "broadcast_shapes")


class Count(NamedTuple):
    launches: list[str]  # the name of each kernel, and of each operation of CuPy's own
    waits: list[str]


_counts: list[Count] = []


@contextlib.contextmanager
def counted() -> Iterator[Count]:
    """Note what is launched, and waited for, within."""
    count = Count([], [])
    _counts.append(count)
    try:
        yield count
    finally:
        _counts.pop()


def launched(name: str) -> None:
    for count in _counts:
        count.launches.append(name)


def waited(name: str) -> None:
    for count in _counts:
        count.waits.append(name)


def computed(function: Any, operands: Any, result: Any) -> None:
    """Note an operation, unless it only looks at its operands in another way."""
    name = getattr(function, "__name__", str(function))
    if not _counts or name in MAKE_NO_NUMBERS:
        return
    results = result if isinstance(result, (tuple, list)) else (result,)
    made = [x for x in results if isinstance(x, (np.ndarray, np.generic))]
    owner = getattr(function, "__self__", None)
    given = [x for x in (owner, *_arrays(operands)) if isinstance(x, np.ndarray)]
    views = all(isinstance(x, np.ndarray) and any(np.may_share_memory(x, y) for y in given) for x in made)
    if made and not (views and name not in _IN_PLACE):
        launched(name)


_IN_PLACE = ("iadd", "isub", "imul", "itruediv")


def _arrays(operands: Any) -> Iterator[Any]:
    for operand in operands:
        if isinstance(operand, (tuple, list)):
            yield from _arrays(operand)
        else:
            yield operand


def raw_module(*, code: str, options: tuple[str, ...], backend: str) -> Any:
    """As cupy.RawModule, of kernels that compute nothing."""

    def get_function(name: str) -> Any:
        def launch(grid: Any, block: Any, arguments: Any, *, shared_mem: int) -> None:
            launched(f"kernel {name}")

        launch.kernel = SimpleNamespace(ptr=0)
        return launch

    return SimpleNamespace(get_function=get_function)


@contextlib.contextmanager
def real_launcher(monkeypatch: Any) -> Iterator[None]:
    """Within, arrays of the stand-in go through the launcher of the package."""
    kernels = importlib.import_module("xpsoftmax.kernels")
    launcher = importlib.import_module("xpsoftmax.kernels.cuda.launcher")
    replaced = tuple(
        backend._replace(load=lambda: launcher) if backend.name == "cupy" else backend for backend in kernels.BACKENDS
    )
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "BACKENDS", replaced)
        yield
