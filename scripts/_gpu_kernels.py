"""The kernel benchmark of gpu_check.py: the package beside CuPy, PyTorch, Liger and QuACK, each verified, then timed.

    python scripts/_gpu_kernels.py PATH SECONDS

Loss and gradient of labels and of soft targets, softmax and log_softmax. Everything is compiled first, by several
processes side by side. A time is that of a CUDA graph of many calls, each on other arrays than the one before, so that
neither the host's time nor the second-level cache counts. Where a library cannot be captured, calls are timed one after
the other by CUDA events, and the finding says so. The ceiling is a copy of as many bytes as the logits have: the faster
one of a kernel and of CUDA's own. "xpsoftmax kernel" is the kernel without the layers above it. Then the host's time
and the launches of small calls without validation. Writes JSON; cases for which the seconds do not suffice are
problems.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

from _report import described, finite

import xpsoftmax as xs
from xpsoftmax._typing import LossSpec

Array: TypeAlias = Any
Call: TypeAlias = Callable[[int], Any]  # with the number of the input to work on

SHAPES = ((4096, 1000), (8192, 4096), (8192, 8192), (8192, 16384), (8192, 32000), (8192, 50257), (8192, 128256))
SOME_SHAPES = (SHAPES[0], SHAPES[2], SHAPES[4], SHAPES[6])
SLOW_AT = 32000
"""The number of classes at which competitors of many kernels are timed."""
ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
CALLS = 8
"""Least number of calls in a graph."""
SAMPLES = 5
"""How often a graph is launched."""
CHECKED_ROWS = 64
ALLOWED = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 2e-3, "float64": 1e-12}
"""Largest difference over largest entry: what tells a wrong formula from rounding. The tests hold the real bounds."""
SMALL = (64, 10)
"""A call on such logits is launches and nothing else."""
COMPILERS = 4
"""Processes that compile side by side: each needs room for the largest case."""
OURS = "xpsoftmax"


class Case(NamedTuple):
    """What is done, and with what."""

    operation: str
    rows: int
    classes: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.operation} {self.rows}x{self.classes} {self.dtype}"


@dataclass
class Benchmark:
    """What was timed, what could not be, and what is not installed."""

    cases: list[dict[str, Any]] = field(default_factory=list)
    small_calls: dict[str, dict[str, float]] = field(default_factory=dict)
    compiled_seconds: float = 0.0
    missing: dict[str, str] = field(default_factory=dict)
    not_timed: list[str] = field(default_factory=list)  # competitors at cases that they cannot do
    problems: list[str] = field(default_factory=list)

    def note(self, name: str, what: str) -> None:
        """A failure of the package is a problem; one of a competitor is only written down."""
        (self.problems if name.startswith((OURS, "copy")) else self.not_timed).append(f"{name} {what}")


def run(found: Benchmark, cache_bytes: int, deadline: float) -> None:
    """Compile everything; verify and time every competitor at every case, as far as time allows; then small calls."""
    cases = wanted()
    start = time.monotonic()
    found.compiled_seconds = compile_side_by_side(cases) - start
    for case in cases:
        if time.monotonic() > deadline:
            found.problems.append(f"no time left for {case}")
        else:
            found.cases.append(timed_case(found, case, cache_bytes))
    found.small_calls = small_calls()


def wanted() -> list[Case]:
    """The cases, those first without which the others say little."""
    both = ("float32", "bfloat16")
    return [
        *(Case(LOSS, *shape, dtype) for shape in SHAPES for dtype in both),
        *(Case(name, *shape, dtype) for name in ("softmax", "log_softmax") for shape in SOME_SHAPES for dtype in both),
        *(Case(SOFT, *SHAPES[n], dtype) for n in (0, 4) for dtype in both),
        *(Case(OTHERS, *SHAPES[n], dtype) for dtype in ("float16", "float64") for n in (4, 6)),
    ]


def competitors(case: Case) -> dict[str, Callable[[Inputs], Call]]:
    """Who is timed at a case."""
    return {
        name: make for name, make in OPERATIONS[case.operation].items() if name not in SLOW or case.classes == SLOW_AT
    }


# --- compiling --------------------------------------------------------------------------------------------------------


def compile_side_by_side(cases: list[Case], pool: Executor | None = None) -> float:
    """Let processes make each call once, so that what they compile lies on the disk; return when they were done.

    What fails here will be told by who calls it again.
    """
    if pool is None:
        number = min(COMPILERS, os.cpu_count() or 1)
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # PyTorch would start as many for each process
        pool = ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn"))
    with pool:
        list(pool.map(call_once, cases))
    return time.monotonic()


def call_once(case: Case) -> None:
    """Compile what a case needs; only for competitors that compile."""
    with suppress(Exception):
        inputs = drawn(case, 0)
        for name, make in competitors(case).items():
            if name in COMPILED:
                with suppress(Exception):
                    make(inputs)(0)
                give_back()


# --- times ------------------------------------------------------------------------------------------------------------


def timed_case(found: Benchmark, case: Case, cache_bytes: int) -> dict[str, Any]:
    """Medians and quartiles in milliseconds, and GB/s of the traffic that cannot be avoided."""
    inputs = drawn(case, cache_bytes)
    traffic = UNITS.get(case.operation, 2) * inputs.bytes
    result: dict[str, Any] = {**case._asdict(), "traffic_bytes": traffic, "timings": {}}
    for name, make in competitors(case).items():
        if name in found.missing:
            continue
        call: Call | None
        try:
            call = make(inputs)
            error = 0.0 if name == "copy" else off_by(case.operation, call(0), inputs, SCALES.get(name))
            if not error <= ALLOWED[case.dtype]:
                found.note(name, f"is off by {error:.2g} at {case}: not timed")
                continue
            times, how = milliseconds(call, len(inputs.logits), of_torch=name in IN_TORCH)
            if name == "copy":
                by_cuda = milliseconds(copied_by_cuda(inputs), len(inputs.logits))
                times, how = min((times, how), by_cuda, key=lambda timed: statistics.median(timed[0]))
            low, median, high = statistics.quantiles(times, n=4)
            moved = 2 * inputs.bytes if name == "copy" else traffic
            speed = moved / median / 1e6
            result["timings"][name] = {"ms": (low, median, high), "gb_per_s": speed, "off_by": error, "by": how}
        except ImportError as error:
            found.missing[name] = described(error)
        except Exception as error:  # noqa: BLE001 - one that fails must not end the others
            found.note(name, f"failed at {case}: {described(error)}")
        call = None
        give_back()
    del inputs
    give_back()
    return result


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


def give_back() -> None:
    """Give the GPU the memory that CuPy and PyTorch keep at hand: neither can use what the other keeps."""
    importlib.import_module("cupy").get_default_memory_pool().free_all_blocks()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


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


# --- inputs and competitors -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Logits in as many copies as it takes to fill the cache several times, targets, and room for each gradient."""

    logits: list[Array]
    labels: Array
    outs: list[Array]
    host_logits: np.ndarray  # the first rows, as they were rounded
    host_labels: np.ndarray
    masses: list[Array] = field(default_factory=list)  # soft targets, one array for each of the logits
    host_masses: np.ndarray | None = None
    _exact: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of the logits."""
        return int(self.logits[0].nbytes)

    def exact(self, operation: str) -> np.ndarray:
        """The first rows of the result, by the package on NumPy in float64; once for all competitors."""
        if operation not in self._exact:
            z = self.host_logits.astype("f8")
            if operation in LOSSES:
                targets = self.host_labels if self.host_masses is None else self.host_masses.astype("f8")
                grad = xs.softmax_loss_and_grad(z, targets, reduction="sum", validate=False, impl="generic")[1]
                self._exact[operation] = grad / len(self.labels)
            else:
                self._exact[operation] = getattr(xs, operation)(z, impl="generic")
        return self._exact[operation]


def drawn(case: Case, cache_bytes: int) -> Inputs:
    """Draw inputs on the GPU."""
    cupy = importlib.import_module("cupy")
    dtype = case.dtype
    kind = importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    random = cupy.random.default_rng(0)
    shape = case.rows, case.classes
    copies = min(24, 1 + 3 * cache_bytes // (case.rows * case.classes * ITEMSIZES[dtype]))
    first = random.standard_normal(shape, dtype="f4").astype(kind)
    logits = [first, *(first.copy() for _ in range(copies - 1))]
    labels = random.integers(0, case.classes, case.rows)
    wide = "f8" if dtype == "float64" else "f4"
    masses, host_masses = [], None
    if case.operation == SOFT:
        shares = random.random(shape, dtype="f4")
        shares /= shares.sum(axis=1, keepdims=True)
        masses = [shares.astype(kind) for _ in range(copies)]
        host_masses = masses[0][:CHECKED_ROWS].astype(wide).get()
    head = first[:CHECKED_ROWS].astype(wide).get()
    outs = [cupy.empty_like(first) for _ in logits]
    return Inputs(logits, labels, outs, head, labels[:CHECKED_ROWS].get(), masses, host_masses)


COPY = """
struct alignas(16) Vector { unsigned words[4]; };
extern "C" __global__ void copy(const Vector* from, Vector* to, long long number) {
    const long long first = (long long)blockIdx.x * 4 * blockDim.x + threadIdx.x;
    Vector v[4];
    for (int i = 0; i < 4; ++i)
        if (first + i * blockDim.x < number) v[i] = from[first + i * blockDim.x];
    for (int i = 0; i < 4; ++i)
        if (first + i * blockDim.x < number)
            asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to + first + i * blockDim.x),
                         "r"(v[i].words[0]), "r"(v[i].words[1]), "r"(v[i].words[2]), "r"(v[i].words[3]));
}
"""


def copied(inputs: Inputs) -> Call:
    """The ceiling: as many bytes read and written, by a kernel."""
    cupy = importlib.import_module("cupy")
    kernel, threads = cupy.RawKernel(COPY, "copy"), 512
    vectors = -(-inputs.bytes // 16)
    if inputs.bytes % 16:
        return copied_by_cuda(inputs)
    grid = (-(-vectors // (4 * threads)),)
    return lambda i: kernel(grid, (threads,), (inputs.logits[i], inputs.outs[i], np.int64(vectors)))


def copied_by_cuda(inputs: Inputs) -> Call:
    """The same by CUDA, which for some sizes is the slower one."""
    return lambda i: inputs.outs[i].data.copy_from_device_async(inputs.logits[i].data, inputs.bytes)


def ours_elementwise(inputs: Inputs, *, function: str) -> Call:
    """Call softmax or log_softmax of the package."""
    return lambda i: getattr(xs, function)(inputs.logits[i], out=inputs.outs[i])


def cupyx_elementwise(inputs: Inputs, *, function: str) -> Call:
    """Call that of cupyx.scipy.special, in float32 for bfloat16, which it does not know."""
    special = getattr(importlib.import_module("cupyx.scipy.special"), function)
    return lambda i: special(inputs.logits[i].astype("f4", copy=False), axis=1).astype(inputs.outs[0].dtype, copy=False)


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
    return [tensor_of(torch, z) for z in inputs.logits]


def tensor_of(torch: Any, array: Array) -> Any:
    """A tensor on the same memory; not all versions of the libraries exchange bfloat16."""
    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view("i2")).view(torch.bfloat16)
    return torch.from_dlpack(array)


def ours(inputs: Inputs, **options: Any) -> Call:
    """Call the package; the targets are not looked at: that would wait for the GPU."""
    return lambda i: xs.softmax_loss_and_grad(
        inputs.logits[i], targets_of(inputs, i), out=inputs.outs[i], validate=False, **options
    )


def targets_of(inputs: Inputs, i: int) -> Array:
    """Masses, or the labels."""
    return inputs.masses[i] if inputs.masses else inputs.labels


def kernel_alone(inputs: Inputs) -> Call:
    """Call the row operation, with everything checked and prepared."""
    cupy = importlib.import_module("cupy")
    kernels = importlib.import_module("xpsoftmax.kernels.cuda.launcher")
    wide = "f8" if inputs.outs[0].dtype.name == "float64" else "f4"
    weights, spec = cupy.full(len(inputs.labels), 1 / len(inputs.labels), wide), LossSpec()
    return lambda i: kernels.softmax_loss_rows(
        inputs.logits[i], inputs.labels, weights, spec, grad=True, out=inputs.outs[i]
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
    targets = [tensor_of(torch, q) for q in inputs.masses] or [torch.from_dlpack(inputs.labels)] * len(logits)
    loss_of = torch.nn.functional.cross_entropy
    if liger:
        loss_of = importlib.import_module("liger_kernel.transformers.functional").liger_cross_entropy
    if compiled:
        torch._dynamo.reset()
        loss_of = torch.compile(loss_of, dynamic=False)

    def call(i: int) -> Any:
        z = logits[i]  # Liger writes the gradient over it; it comes last, and its time does not depend on the values
        z.grad = None
        loss = loss_of(z, targets[i])
        loss.backward()
        return loss.detach(), z.grad

    return call


def quack(inputs: Inputs) -> Call:
    """QuACK's fused loss and gradient, of the sum of the losses."""
    torch = importlib.import_module("torch")
    forward = importlib.import_module("quack.cross_entropy").cross_entropy_fwd
    logits, labels = as_torch(torch, inputs), torch.from_dlpack(inputs.labels)
    return lambda i: forward(logits[i], labels, return_dx=True)


def elementwise(function: str) -> dict[str, Callable[[Inputs], Call]]:
    """The competitors of softmax or log_softmax."""
    return {
        "copy": copied,
        OURS: functools.partial(ours_elementwise, function=function),
        "cupyx": functools.partial(cupyx_elementwise, function=function),
        "torch": functools.partial(torch_elementwise, function=function),
        "torch.compile": functools.partial(torch_elementwise, function=function, compiled=True),
    }


LOSS, SOFT, OTHERS = "loss and gradient", "loss and gradient of soft targets", "loss and gradient, other dtypes"
LOSSES = (LOSS, SOFT, OTHERS)
UNITS = {SOFT: 3}
"""How often as many bytes as the logits have must be read or written; where nothing is said, twice."""
OPERATIONS: dict[str, dict[str, Callable[[Inputs], Call]]] = {
    LOSS: {
        "copy": copied,
        OURS: ours,
        "xpsoftmax kernel": kernel_alone,
        "QuACK": quack,
        "torch.compile": functools.partial(in_torch, compiled=True),
        "torch": in_torch,
        "xpsoftmax generic": functools.partial(ours, impl="generic"),
        "CuPy": plain_cupy,
        "cupyx": functools.partial(plain_cupy, special=True),
        "Liger": functools.partial(in_torch, liger=True),  # the last: it writes over the logits
    },
    SOFT: {
        "copy": copied,
        OURS: ours,
        "torch.compile": functools.partial(in_torch, compiled=True),
        "torch": in_torch,
    },
    OTHERS: {"copy": copied, OURS: ours, "torch": in_torch},
    "softmax": elementwise("softmax"),
    "log_softmax": elementwise("log_softmax"),
}
SLOW = ("xpsoftmax generic", "CuPy", "cupyx")
COMPILED = (OURS, "torch.compile", "QuACK", "Liger")
IN_TORCH = ("torch", "torch.compile", "Liger", "QuACK")
SCALES = {"QuACK": "sum"}
"""Whose gradient is that of the sum of the losses, not of their mean."""


def off_by(operation: str, result: Any, inputs: Inputs, of: str | None = None) -> float:
    """Largest difference of the first rows from the package on NumPy in float64, over the largest entry."""
    found = (result[1] if operation in LOSSES else result)[: len(inputs.host_labels)]
    found = found.double().cpu().numpy() if hasattr(found, "cpu") else found.astype("f8").get()
    exact = inputs.exact(operation) * (len(inputs.labels) if of == "sum" else 1)
    return float(np.abs(found - exact).max() / np.abs(exact).max())


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
