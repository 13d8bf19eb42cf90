"""What the package itself adds to a call on small CuPy arrays: the time of its Python code, without CuPy and a GPU.

    python benchmarks/call_overhead.py

The arrays are descriptions of arrays, and launches do nothing. What CuPy takes for a launch and for an output comes on
top: scripts/gpu_check.py measures the whole on a GPU.
"""

from __future__ import annotations

import itertools
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

CALLS, ROUNDS = 2000, 30


class Described:
    """An array without memory: what kernels/cuda/launcher.py asks of one."""

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.shape = shape if isinstance(shape, tuple) else (shape,)
        self.dtype = np.dtype(dtype)
        self.ndim, self.itemsize = len(self.shape), self.dtype.itemsize
        self.size = int(np.prod(self.shape))
        self.nbytes = self.size * self.itemsize
        self.strides = tuple(self.itemsize * int(np.prod(self.shape[i + 1 :])) for i in range(self.ndim))
        self.flags = SimpleNamespace(c_contiguous=True)
        self.data = SimpleNamespace(ptr=next(ADDRESSES), device_id=0)
        self.device = DEVICE


ADDRESSES = itertools.count(2**20, 2**20)


class Device(nullcontext):  # type: ignore[type-arg]
    """The only one."""

    id = 0


DEVICE = Device()


def stand_in() -> ModuleType:
    """As much of the module cupy as a call needs."""
    module = ModuleType("cupy")
    outputs: dict[Any, Described] = {}  # made once: they are not what is measured

    def empty(shape: Any, dtype: Any) -> Described:
        if (shape, dtype) not in outputs:
            outputs[shape, dtype] = Described(shape, dtype)
        return outputs[shape, dtype]

    function = lambda grid, block, arguments, *, shared_mem: None  # noqa: ARG005, E731
    runtime = SimpleNamespace(is_hip=False, getDevice=lambda: 0, streamIsCapturing=lambda stream: False)  # noqa: ARG005
    stream = SimpleNamespace(ptr=0)
    module.__dict__.update(
        ndarray=Described,
        empty=empty,
        ascontiguousarray=lambda array: array,
        zeros=empty,
        cuda=SimpleNamespace(
            runtime=runtime,
            Device=lambda number: SimpleNamespace(compute_capability="90"),  # noqa: ARG005
            get_current_stream=lambda: stream,
        ),
        RawModule=lambda **options: SimpleNamespace(get_function=lambda name: function),  # noqa: ARG005
    )
    return module


def microseconds(call: Any) -> float:
    """Least processor time of a call: whatever else runs on the machine only adds to it."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(CALLS):
            call()
        times.append((time.process_time() - start) / CALLS)
    return 1e6 * min(times)


def main() -> None:
    """Print a line for each kind of call."""
    sys.modules["cupy"] = stand_in()
    import xpsoftmax as xs
    from xpsoftmax._arguments import checks, home

    # CuPy's namespace of the standard needs more of CuPy than there is: the checks get one with its name.
    namespace = ModuleType("cupy")
    namespace.__dict__.update(float32=np.float32, int64=np.int64, isdtype=np.isdtype, iinfo=np.iinfo)
    checks.array_namespace = lambda array: namespace  # type: ignore[assignment]  # noqa: ARG005
    home.device = lambda array: DEVICE  # type: ignore[assignment]  # noqa: ARG005

    z, out, labels = Described((64, 10), "f4"), Described((64, 10), "f4"), Described(64, "i4")
    cases = {
        "softmax, out=": lambda: xs.softmax(z, out=out),
        "softmax_loss": lambda: xs.softmax_loss(z, labels, validate=False),
        "softmax_loss_and_grad": lambda: xs.softmax_loss_and_grad(z, labels, validate=False),
        "softmax_loss_and_grad, out=": lambda: xs.softmax_loss_and_grad(z, labels, out=out, validate=False),
        "softmax_loss_and_grad, smoothing": lambda: xs.softmax_loss_and_grad(
            z, labels, label_smoothing=0.1, validate=False
        ),
    }
    for name, call in cases.items():
        print(f"{name:36} {microseconds(call):6.1f} microseconds")


if __name__ == "__main__":
    main()
