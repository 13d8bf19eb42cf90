"""The kernel benchmark of gpu_check.py: the package beside CuPy, PyTorch and Liger, verified before they are timed.

    python scripts/_gpu_kernels.py PATH SECONDS

Loss and gradient of labels, softmax and log_softmax, in float32 and bfloat16: CUDA events, medians, inputs rotated so
that the second-level cache holds none of them. The ceiling is a copy from device to device of as many bytes as the
logits have. "xpsoftmax kernel" is the kernel without the layers above it. Then the host's time and the launches of a
small call without validation. Writes JSON; cases for which the seconds do not suffice are problems.
"""

from __future__ import annotations

import functools
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

from _report import described, finite

import xpsoftmax as xs
from xpsoftmax._typing import LossSpec

Array: TypeAlias = Any
Call: TypeAlias = Callable[[int], Any]  # with the number of the input to work on

SHAPES = ((4096, 1000), (8192, 32000), (8192, 50257), (8192, 128256))
DTYPES = {"float32": 4, "bfloat16": 2}
SAMPLES = 30
CHECKED_ROWS = 64
ALLOWED = {"float32": 1e-4, "bfloat16": 1e-2}
"""Largest difference over largest entry: what tells a wrong formula from rounding. The tests hold the real bounds."""
SMALL = (64, 10)
"""A call on such logits is launches and nothing else."""


@dataclass
class Benchmark:
    """What was timed, what could not be, and what is not installed."""

    cases: list[dict[str, Any]] = field(default_factory=list)
    small_call: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def run(found: Benchmark, cache_bytes: int, deadline: float) -> None:
    """Verify and time every competitor at every shape, as far as time allows; then a small call."""
    for operation in OPERATIONS:
        for rows, classes in SHAPES:
            for dtype in DTYPES:
                if time.monotonic() > deadline:
                    found.problems.append(f"no time left for {operation} {rows}x{classes} {dtype}")
                else:
                    found.cases.append(timed_case(found, operation, rows, classes, dtype, cache_bytes))
    found.small_call = small_call()


def timed_case(
    found: Benchmark, operation: str, rows: int, classes: int, dtype: str, cache_bytes: int
) -> dict[str, Any]:
    """Medians and quartiles in milliseconds, and GB/s of the traffic that cannot be avoided."""
    inputs = drawn(rows, classes, dtype, cache_bytes)
    traffic = 2 * inputs.bytes
    title = f"{operation} {rows}x{classes} {dtype}"
    case: dict[str, Any] = {
        "operation": operation,
        "rows": rows,
        "classes": classes,
        "dtype": dtype,
        "traffic_bytes": traffic,
        "timings": {},
    }
    for name, make in OPERATIONS[operation].items():
        if name in found.missing:
            continue
        call: Call | None
        try:
            call = make(inputs)
            error = 0.0 if name == "copy" else off_by(operation, call(0), inputs)
            if not error <= ALLOWED[dtype]:
                found.problems.append(f"{name} is off by {error:.2g} at {title}: not timed")
                continue
            low, median, high = statistics.quantiles(milliseconds(call, len(inputs.logits)), n=4)
            speed = traffic / median / 1e6
            case["timings"][name] = {"ms": (low, median, high), "gb_per_s": speed, "off_by": error}
        except ImportError as error:
            found.missing[name] = described(error)
        except Exception as error:  # noqa: BLE001 - one that fails must not end the others
            found.problems.append(f"{name} failed at {title}: {described(error)}")
        call = None
        give_back()
    del inputs
    give_back()
    return case


def give_back() -> None:
    """Give the GPU the memory that CuPy and PyTorch keep at hand: neither can use what the other keeps."""
    importlib.import_module("cupy").get_default_memory_pool().free_all_blocks()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


def small_call() -> dict[str, float]:
    """Microseconds of the host, and launches of the package, of a small call without validation."""
    cupy = importlib.import_module("cupy")
    kernels = importlib.import_module("xpsoftmax.kernels.cuda")
    z, y = cupy.zeros(SMALL, "f4"), cupy.zeros(SMALL[0], "i4")
    out = cupy.empty_like(z)

    def call() -> Any:
        return xs.softmax_loss_and_grad(z, y, out=out, validate=False)

    times = []
    for _ in range(300):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        cupy.cuda.get_current_stream().synchronize()
    run_launch, launches = kernels._run, []
    kernels._run = lambda launch: (launches.append(launch.kernel), run_launch(launch))
    try:
        call()
    finally:
        kernels._run = run_launch
    return {"microseconds": 1e6 * statistics.median(times[100:]), "launches": len(launches)}


# --- inputs and competitors -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Logits in as many copies as it takes to fill the cache several times, labels, and room for the gradient."""

    logits: list[Array]
    labels: Array
    out: Array
    host_logits: np.ndarray  # the first rows, as they were rounded
    host_labels: np.ndarray
    _exact: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of the logits."""
        return int(self.logits[0].nbytes)

    def exact(self, operation: str) -> np.ndarray:
        """The first rows of the result, by the package on NumPy in float64; once for all competitors."""
        if operation not in self._exact:
            z = self.host_logits.astype("f8")
            if operation == LOSS:
                grad = xs.softmax_loss_and_grad(z, self.host_labels, reduction="sum", impl="generic")[1]
                self._exact[operation] = grad / len(self.labels)
            else:
                self._exact[operation] = getattr(xs, operation)(z, impl="generic")
        return self._exact[operation]


def drawn(rows: int, classes: int, dtype: str, cache_bytes: int) -> Inputs:
    """Draw inputs on the GPU."""
    cupy = importlib.import_module("cupy")
    kind = importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    random = cupy.random.default_rng(0)
    copies = min(64, 1 + 4 * cache_bytes // (rows * classes * DTYPES[dtype]))
    logits = [random.standard_normal((rows, classes), dtype="f4").astype(kind) for _ in range(copies)]
    labels = random.integers(0, classes, rows)
    head = logits[0][:CHECKED_ROWS].astype("f4").get()
    return Inputs(logits, labels, cupy.empty_like(logits[0]), head, labels[:CHECKED_ROWS].get())


def copied(inputs: Inputs) -> Call:
    """The ceiling: as many bytes read and written."""
    return lambda i: inputs.out.data.copy_from_device_async(inputs.logits[i].data, inputs.bytes)


def ours_elementwise(inputs: Inputs, *, function: str) -> Call:
    """Call softmax or log_softmax of the package."""
    return lambda i: getattr(xs, function)(inputs.logits[i], out=inputs.out)


def cupyx_elementwise(inputs: Inputs, *, function: str) -> Call:
    """Call that of cupyx.scipy.special, in float32 for bfloat16, which it does not know."""
    special = getattr(importlib.import_module("cupyx.scipy.special"), function)
    return lambda i: special(inputs.logits[i].astype("f4", copy=False), axis=1).astype(inputs.out.dtype, copy=False)


def torch_elementwise(inputs: Inputs, *, function: str, compiled: bool = False) -> Call:
    """Call PyTorch's on the same memory."""
    torch = importlib.import_module("torch")
    logits = as_torch(torch, inputs)
    of = functools.partial(getattr(torch, function), dim=1)
    if compiled:
        torch._dynamo.reset()
        of = torch.compile(of, dynamic=False)
    return lambda i: of(logits[i])


def as_torch(torch: Any, inputs: Inputs) -> list[Any]:
    """The logits as tensors, on the same memory."""
    if inputs.logits[0].dtype.itemsize == 4:
        return [torch.from_dlpack(z) for z in inputs.logits]
    return [torch.from_dlpack(z.view("i2")).view(torch.bfloat16) for z in inputs.logits]  # not all exchange bfloat16


def ours(inputs: Inputs, **options: Any) -> Call:
    """Call the package; the labels are not looked at: that would wait for the GPU."""
    return lambda i: xs.softmax_loss_and_grad(
        inputs.logits[i], inputs.labels, out=inputs.out, validate=False, **options
    )


def kernel_alone(inputs: Inputs) -> Call:
    """Call the row operation, with everything checked and prepared."""
    cupy = importlib.import_module("cupy")
    kernels = importlib.import_module("xpsoftmax.kernels.cuda")
    weights, spec = cupy.full(len(inputs.labels), 1 / len(inputs.labels), "f4"), LossSpec()
    return lambda i: kernels.softmax_loss_rows(
        inputs.logits[i], inputs.labels, weights, spec, grad=True, out=inputs.out
    )


def plain_cupy(inputs: Inputs, *, special: bool = False) -> Call:
    """The usual lines; with the log_softmax of cupyx.scipy.special if asked for."""
    cupy = importlib.import_module("cupy")
    rows = cupy.arange(len(inputs.labels))

    def usual(z: Array) -> Array:
        t = z - z.max(axis=1, keepdims=True)
        return t - cupy.log(cupy.exp(t).sum(axis=1, keepdims=True))

    log_softmax = (
        functools.partial(importlib.import_module("cupyx.scipy.special").log_softmax, axis=1) if special else usual
    )

    def call(i: int) -> Any:
        z = inputs.logits[i]
        log_p = log_softmax(z.astype("f4", copy=False))
        dz = cupy.exp(log_p)
        dz[rows, inputs.labels] -= 1
        dz /= len(rows)
        return -log_p[rows, inputs.labels].mean(), dz.astype(z.dtype, copy=False)

    return call


def in_torch(inputs: Inputs, *, compiled: bool = False, liger: bool = False) -> Call:
    """PyTorch, forward and backward through autograd, on the same memory."""
    torch = importlib.import_module("torch")
    logits = [z.requires_grad_() for z in as_torch(torch, inputs)]
    labels = torch.from_dlpack(inputs.labels)
    loss_of = torch.nn.functional.cross_entropy
    if liger:
        loss_of = importlib.import_module("liger_kernel.transformers.functional").liger_cross_entropy
    if compiled:
        torch._dynamo.reset()
        loss_of = torch.compile(loss_of, dynamic=False)

    def call(i: int) -> Any:
        z = logits[i]  # Liger writes the gradient over it; it comes last, and its time does not depend on the values
        z.grad = None
        loss = loss_of(z, labels)
        loss.backward()
        return loss.detach(), z.grad

    return call


def elementwise(function: str) -> dict[str, Callable[[Inputs], Call]]:
    """The competitors of softmax or log_softmax."""
    return {
        "copy": copied,
        "xpsoftmax": functools.partial(ours_elementwise, function=function),
        "cupyx": functools.partial(cupyx_elementwise, function=function),
        "torch": functools.partial(torch_elementwise, function=function),
        "torch.compile": functools.partial(torch_elementwise, function=function, compiled=True),
    }


LOSS = "loss and gradient"
OPERATIONS: dict[str, dict[str, Callable[[Inputs], Call]]] = {
    LOSS: {
        "copy": copied,
        "xpsoftmax": ours,
        "xpsoftmax kernel": kernel_alone,
        "xpsoftmax generic": functools.partial(ours, impl="generic"),
        "CuPy": plain_cupy,
        "cupyx": functools.partial(plain_cupy, special=True),
        "torch": in_torch,
        "torch.compile": functools.partial(in_torch, compiled=True),
        "Liger": functools.partial(in_torch, liger=True),
    },
    "softmax": elementwise("softmax"),
    "log_softmax": elementwise("log_softmax"),
}


def off_by(operation: str, result: Any, inputs: Inputs) -> float:
    """Largest difference of the first rows from the package on NumPy in float64, over the largest entry."""
    found = (result[1] if operation == LOSS else result)[: len(inputs.host_labels)]
    found = found.float().cpu().numpy() if hasattr(found, "cpu") else found.astype("f4").get()
    exact = inputs.exact(operation)
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def milliseconds(call: Call, copies: int) -> list[float]:
    """Time calls by CUDA events, each on another input than the one before."""
    cupy = importlib.import_module("cupy")
    for i in range(3):
        call(i % copies)
    pairs = []
    for n in range(SAMPLES):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        call(n % copies)
        end.record()
        pairs.append((start, end))
    pairs[-1][1].synchronize()
    return [cupy.cuda.get_elapsed_time(start, end) for start, end in pairs]


def main() -> int:
    """Time everything and write it; 1 if there were problems."""
    path, seconds = Path(sys.argv[1]), float(sys.argv[2])
    cupy = importlib.import_module("cupy")
    cache = int(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["l2CacheSize"])
    found = Benchmark()
    try:
        run(found, cache, time.monotonic() + seconds)
    finally:
        path.write_text(json.dumps(finite(asdict(found)), indent=1) + "\n")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
