"""Check the package on a GPU in one command of at most nine minutes: tests, kernel benchmark, training.

    python scripts/gpu_check.py OUT

Needs a GPU that CuPy can use, pytest and what the tests import; no network, no nox, no installed package. PyTorch and
Liger are timed where they can be imported. It runs, in this order,

1. the test-suite with --require-backend=cupy, warnings shown;
2. loss and gradient of labels at the shapes of `SHAPES` in float32 and bfloat16: CUDA events, medians, inputs rotated
   so that the second-level cache holds none of them; every competitor is verified before it is timed. The ceiling is a
   copy from device to device of as many bytes as the logits have. "xpsoftmax kernel" is the kernel without the layers
   above it. Then the time of a small call without validation;
3. a two-layer network from the same weights on NumPy and on CuPy.

Into the folder OUT go gpu_check.json, the log of the tests and the row for docs/gpu-runs.md; a short table is printed
last. Exit status: 0; 1 if anything failed; 3, with nothing written, if there is no GPU that can be used.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree as ET

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the package of this checkout, installed or not

from _report import Parser, described, finite, surroundings  # noqa: E402

import xpsoftmax as xs  # noqa: E402
from xpsoftmax._typing import LossSpec  # noqa: E402

Array: TypeAlias = Any
Call: TypeAlias = Callable[[int], Any]  # with the number of the input to work on

NO_GPU = 3
SECONDS = 540
"""For everything."""
TEST_SECONDS = 330
TRAINING_SECONDS = 40
SHAPES = ((4096, 1000), (8192, 32000), (8192, 50257), (8192, 128256))
DTYPES = {"float32": 4, "bfloat16": 2}
SAMPLES = 30
CHECKED_ROWS = 64
ALLOWED = {"float32": 1e-4, "bfloat16": 1e-2}
"""Largest difference over largest entry: what tells a wrong formula from rounding. The tests hold the real bounds."""


@dataclass
class Report:
    """Everything that is printed and written."""

    device: dict[str, Any]
    tests: dict[str, Any] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)
    call_microseconds: float | None = None
    training: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def usable_gpu() -> dict[str, Any] | str:
    """Describe the GPU, or say why there is none that can be used."""
    try:
        cupy = importlib.import_module("cupy")
        if cupy.cuda.runtime.getDeviceCount() < 1:
            return "CuPy finds no CUDA device"
        if float((cupy.arange(4, dtype="f4") * 2).sum()) != 12.0:
            return "CuPy computes 0 + 2 + 4 + 6 wrongly"
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        return {
            "gpu": properties["name"].decode(),
            "cache_bytes": int(properties["l2CacheSize"]),
            "driver": cupy.cuda.runtime.driverGetVersion(),
            "cuda": cupy.cuda.runtime.runtimeGetVersion(),
            "cupy": cupy.__version__,
        }
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the reason
        return described(error)


# --- tests ------------------------------------------------------------------------------------------------------------


def run_tests(folder: Path, seconds: float) -> dict[str, Any]:
    """Run the suite in a process of its own, so that neither a crash nor a hang ends the rest."""
    results, log = folder / "tests.xml", folder / "tests.log"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--require-backend=cupy",
        f"--junitxml={results}",
        "-p",
        "no:cacheprovider",
    ]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(4, os.cpu_count() or 1))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    with log.open("w") as stream:
        try:
            status = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return {"status": f"not finished in {seconds:.0f} s"}
    return {"status": status, **(counted(results.read_text("utf-8")) if results.exists() else {})}


def counted(junit: str) -> dict[str, int]:
    """Count what a JUnit file tells of."""
    suite = ET.fromstring(junit).find("testsuite")
    if suite is None:
        return {}
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return {"passed": total - skipped - failed, "failed": failed, "skipped": skipped}


# --- kernels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Logits in as many copies as it takes to fill the cache several times, labels, and room for the gradient."""

    logits: list[Array]
    labels: Array
    out: Array
    host_logits: np.ndarray  # the first rows, as they were rounded
    host_labels: np.ndarray

    @property
    def bytes(self) -> int:
        """Of the logits."""
        return int(self.logits[0].nbytes)


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
    wide = inputs.logits[0].dtype.itemsize == 4
    # As bits: not every version exchanges bfloat16.
    views = [torch.from_dlpack(z if wide else z.view("i2")) for z in inputs.logits]
    logits = [(z if wide else z.view(torch.bfloat16)).requires_grad_() for z in views]
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


COMPETITORS: dict[str, Callable[[Inputs], Call]] = {
    "copy": copied,
    "xpsoftmax": ours,
    "xpsoftmax kernel": kernel_alone,
    "xpsoftmax generic": functools.partial(ours, impl="generic"),
    "CuPy": plain_cupy,
    "cupyx": functools.partial(plain_cupy, special=True),
    "torch": in_torch,
    "torch.compile": functools.partial(in_torch, compiled=True),
    "Liger": functools.partial(in_torch, liger=True),
}


def off_by(result: Any, inputs: Inputs) -> float:
    """Largest difference of the first rows' gradient from NumPy in float64, over the largest entry."""
    found = result[1][: len(inputs.host_labels)]
    found = found.float().cpu().numpy() if hasattr(found, "cpu") else found.astype("f4").get()
    z = inputs.host_logits.astype("f8")
    exact = xs.softmax_loss_and_grad(z, inputs.host_labels, reduction="sum", impl="generic")[1] / len(inputs.labels)
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


def benchmark(report: Report, deadline: float) -> None:
    """Verify and time every competitor at every shape, as far as time allows."""
    for rows, classes in SHAPES:
        for dtype in DTYPES:
            if time.monotonic() > deadline:
                report.problems.append(f"no time left for {rows}x{classes} {dtype}")
                continue
            report.cases.append(timed_case(report, rows, classes, dtype))


def timed_case(report: Report, rows: int, classes: int, dtype: str) -> dict[str, Any]:
    """Medians and quartiles in milliseconds, and GB/s of the traffic that cannot be avoided."""
    inputs = drawn(rows, classes, dtype, report.device["cache_bytes"])
    traffic = 2 * inputs.bytes
    case: dict[str, Any] = {"rows": rows, "classes": classes, "dtype": dtype, "traffic_bytes": traffic, "timings": {}}
    for name, make in COMPETITORS.items():
        if name in report.missing:
            continue
        try:
            call = make(inputs)
            result = call(0)
            error = 0.0 if name == "copy" else off_by(result, inputs)
            del result
            if not error <= ALLOWED[dtype]:
                report.problems.append(f"{name} is off by {error:.2g} at {rows}x{classes} {dtype}: not timed")
                continue
            low, median, high = statistics.quantiles(milliseconds(call, len(inputs.logits)), n=4)
            speed = traffic / median / 1e6
            case["timings"][name] = {"ms": (low, median, high), "gb_per_s": speed, "off_by": error}
        except ImportError as error:
            report.missing[name] = described(error)
        except Exception as error:  # noqa: BLE001 - one that fails must not end the others
            report.problems.append(f"{name} failed at {rows}x{classes} {dtype}: {described(error)}")
    del inputs
    importlib.import_module("cupy").get_default_memory_pool().free_all_blocks()
    return case


def call_overhead() -> float:
    """Microseconds that the host spends on a small call without validation."""
    cupy = importlib.import_module("cupy")
    z, y = cupy.zeros((64, 10), "f4"), cupy.zeros(64, "i8")
    out = cupy.empty_like(z)
    times = []
    for _ in range(300):
        start = time.perf_counter()
        xs.softmax_loss_and_grad(z, y, out=out, reduction="sum", validate=False)
        times.append(time.perf_counter() - start)
        cupy.cuda.get_current_stream().synchronize()
    return 1e6 * statistics.median(times[100:])


# --- training ---------------------------------------------------------------------------------------------------------


def trained(xp: Any, steps: int, wait: Callable[[], Any]) -> dict[str, Any]:
    """Train two layers on the spirals from fixed weights; what is drawn is drawn on the host."""
    rng = np.random.default_rng(0)
    rows, classes = 3000, 3
    y = np.arange(rows) % classes
    radius = rng.uniform(0.05, 1, rows)
    angle = 4 * radius + 2 * np.pi * y / classes + rng.normal(0, 0.1, rows)
    X = xp.asarray(np.stack((radius * np.sin(angle), radius * np.cos(angle)), 1).astype("f4"))
    labels = xp.asarray(y)
    params = tuple(
        xs.Layer(xp.asarray(layer.weight), xp.asarray(layer.bias))
        for layer in xs.init_params((2, 100, classes), rng=0, dtype=np.float32)
    )
    losses, times = [], []
    for _ in range(steps):
        start = time.perf_counter()
        loss, grads = xs.mlp_loss_and_grad(params, X, labels, reg=1e-3, validate=False)
        params = tuple(xs.Layer(p.weight - g.weight, p.bias - g.bias) for p, g in zip(params, grads, strict=True))
        wait()
        times.append(time.perf_counter() - start)
        losses.append(float(loss))
    accuracy = float((xs.mlp_predict(params, X) == labels).mean())
    return {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "accuracy": accuracy,
        "step_ms": 1e3 * statistics.median(times),
    }


def compare_training(report: Report, steps: int = 500) -> None:
    """The same network on NumPy and on CuPy must learn the same."""
    cupy = importlib.import_module("cupy")
    report.training = {
        "NumPy": trained(np, steps, lambda: None),
        "CuPy": trained(cupy, steps, lambda: cupy.cuda.get_current_stream().synchronize()),
    }
    ours, reference = report.training["CuPy"], report.training["NumPy"]
    if abs(ours["first_loss"] - reference["first_loss"]) > 1e-5 or abs(ours["accuracy"] - reference["accuracy"]) > 0.02:
        report.problems.append(f"CuPy and NumPy do not learn the same: {report.training}")


# --- the report -------------------------------------------------------------------------------------------------------


def table(report: Report) -> str:
    """A few lines of text."""
    lines = [f"{report.device['gpu']}: tests {report.tests}"]
    for case in report.cases:
        title = f"{case['rows']}x{case['classes']} {case['dtype']}"
        ceiling = case["timings"].get("copy", {}).get("gb_per_s")
        for name, timing in case["timings"].items():
            share = f"{timing['gb_per_s'] / ceiling:6.0%} of copy" if ceiling else ""
            lines.append(f"{title:22} {name:18} {timing['ms'][1]:9.4f} ms {timing['gb_per_s']:8.0f} GB/s {share}")
    if report.call_microseconds is not None:
        lines.append(f"a small call without validation: {report.call_microseconds:.1f} microseconds of the host")
    lines += [f"training on {name}: {found}" for name, found in report.training.items()]
    lines += [f"not here: {name}: {reason}" for name, reason in report.missing.items()]
    return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in report.problems)])


def row(report: Report, commit: str | None, day: str) -> str:
    """The row for docs/gpu-runs.md."""
    device, tests = report.device, report.tests
    speeds = "; ".join(
        f"{case['rows']}x{case['classes']} {case['dtype']} {case['timings']['xpsoftmax']['gb_per_s']:.0f} GB/s"
        for case in report.cases
        if "xpsoftmax" in case["timings"]
    )
    counts = ", ".join(f"{tests[name]} {name}" for name in ("passed", "failed", "skipped") if name in tests)
    versions = f"{device['driver']}, {device['cuda']}, {device['cupy']}"
    result = f"tests: {counts or tests.get('status')}; {speeds or 'nothing timed'}; {len(report.problems)} problems"
    return f"| {day} | {commit} | {device['gpu']} | {versions} | scripts/gpu_check.py | {result} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print and write; return the exit status."""
    options = Parser(prog="gpu_check.py", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    options.add_argument("out", type=Path, help="folder for the findings")
    folder = options.parse_args(argv).out
    begin = time.monotonic()
    device = usable_gpu()
    if isinstance(device, str):
        print(f"gpu_check: there is no GPU that can be used here, so nothing was checked: {device}")
        return NO_GPU
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(device)
    report.tests = run_tests(folder, TEST_SECONDS)
    if report.tests["status"] != 0:
        report.problems.append(f"tests: {report.tests}; see tests.log")
    steps: tuple[Callable[[], None], ...] = (
        lambda: benchmark(report, begin + SECONDS - TRAINING_SECONDS - 60),  # the last case may take so long
        lambda: setattr(report, "call_microseconds", call_overhead()),
        lambda: compare_training(report),
    )
    for step in steps:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - what was found so far is still worth having
            report.problems.append(described(error))
    where = surroundings(("numpy", "array-api-compat"))
    day = datetime.now(UTC).date().isoformat()
    line = row(report, where["commit"], day)
    (folder / "gpu_check.json").write_text(
        json.dumps(finite({"date": day, **where, **asdict(report)}), indent=1) + "\n"
    )
    (folder / "gpu-runs-row.md").write_text(line + "\n")
    print(line, table(report), sep="\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
