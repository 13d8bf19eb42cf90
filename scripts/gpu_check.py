"""Check the package on a GPU in one command of at most nine minutes: tests, kernel benchmark, training.

    python scripts/gpu_check.py OUT

Needs a GPU that CuPy can use, pytest and what the tests import; no network, no nox, no installed package. PyTorch and
Liger are timed where they can be imported. It runs, in this order,

1. the test-suite with --require-backend=cupy, warnings shown;
2. loss and gradient of labels in float32 and bfloat16 (_gpu_kernels.py): CUDA events, medians, inputs rotated so that
   the second-level cache holds none of them; every competitor is verified before it is timed. The ceiling is a copy
   from device to device of as many bytes as the logits have. "xpsoftmax kernel" is the kernel without the layers above
   it. Then the host's time and the launches of a small call without validation;
3. a two-layer network, trained from the same weights on NumPy and on CuPy.

Into the folder OUT go gpu_check.json, the log of the tests and the row for docs/gpu-runs.md; a short table is printed
last. Exit status: 0; 1 if anything failed; 3, with nothing written, if there is no GPU that can be used.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the package of this checkout, installed or not

import _gpu_kernels  # noqa: E402
from _gpu_kernels import Benchmark  # noqa: E402
from _report import Parser, described, finite, surroundings  # noqa: E402

import xpsoftmax as xs  # noqa: E402

NO_GPU = 3
SECONDS = 540
"""For everything."""
TEST_SECONDS = 330
TRAINING_SECONDS = 40
EPOCHS, BATCH = 20, 300


@dataclass
class Report:
    """Everything that is printed and written."""

    device: dict[str, Any]
    tests: dict[str, Any] = field(default_factory=dict)
    kernels: Benchmark = field(default_factory=Benchmark)
    training: dict[str, Any] = field(default_factory=dict)
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


# --- training ---------------------------------------------------------------------------------------------------------


def trained(xp: Any) -> dict[str, Any]:
    """Train two layers on the spirals from fixed weights: what is drawn is drawn on the host."""
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
    how = {"optimizer": xs.adam(0.01), "batch_size": BATCH, "rng": 0, "activation": "tanh", "reg": 1e-4}
    xs.train(params, X, labels, epochs=1, **how)  # compiles the kernels
    start = time.perf_counter()
    result = xs.train(params, X, labels, epochs=EPOCHS, **how)
    losses = [float(loss) for loss in result.history["loss"]]
    seconds = time.perf_counter() - start
    accuracy = float((xs.mlp_predict(result.params, X, activation="tanh") == labels).mean())
    return {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "accuracy": accuracy,
        "step_ms": 1e3 * seconds / (EPOCHS * -(-rows // BATCH)),
    }


def compare_training(report: Report) -> None:
    """The same network on NumPy and on CuPy must learn the same."""
    report.training = {"NumPy": trained(np), "CuPy": trained(importlib.import_module("cupy"))}
    ours, reference = report.training["CuPy"], report.training["NumPy"]
    if abs(ours["first_loss"] - reference["first_loss"]) > 1e-5 or abs(ours["accuracy"] - reference["accuracy"]) > 0.02:
        report.problems.append(f"CuPy and NumPy do not learn the same: {report.training}")


# --- the report -------------------------------------------------------------------------------------------------------


def table(report: Report) -> str:
    """A few lines of text."""
    lines = [f"{report.device['gpu']}: tests {report.tests}"]
    for case in report.kernels.cases:
        title = f"{case['rows']}x{case['classes']} {case['dtype']}"
        ceiling = case["timings"].get("copy", {}).get("gb_per_s")
        for name, timing in case["timings"].items():
            share = f"{timing['gb_per_s'] / ceiling:6.0%} of copy" if ceiling else ""
            lines.append(f"{title:22} {name:18} {timing['ms'][1]:9.4f} ms {timing['gb_per_s']:8.0f} GB/s {share}")
    if small := report.kernels.small_call:
        lines.append(
            f"a small call without validation: {small['launches']:.0f} launches, {small['microseconds']:.1f} "
            "microseconds of the host"
        )
    lines += [f"training on {name}: {found}" for name, found in report.training.items()]
    lines += [f"not here: {name}: {reason}" for name, reason in report.kernels.missing.items()]
    return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in problems(report))])


def problems(report: Report) -> list[str]:
    """All that went wrong."""
    return [*report.problems, *report.kernels.problems]


def row(report: Report, commit: str | None, day: str) -> str:
    """The row for docs/gpu-runs.md."""
    device, tests = report.device, report.tests
    speeds = "; ".join(
        f"{case['rows']}x{case['classes']} {case['dtype']} {case['timings']['xpsoftmax']['gb_per_s']:.0f} GB/s"
        for case in report.kernels.cases
        if "xpsoftmax" in case["timings"]
    )
    counts = ", ".join(f"{tests[name]} {name}" for name in ("passed", "failed", "skipped") if name in tests)
    versions = f"{device['driver']}, {device['cuda']}, {device['cupy']}"
    result = f"tests: {counts or tests.get('status')}; {speeds or 'nothing timed'}; {len(problems(report))} problems"
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
        # The last case may take a minute.
        lambda: _gpu_kernels.run(report.kernels, device["cache_bytes"], begin + SECONDS - TRAINING_SECONDS - 60),
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
    return 1 if problems(report) else 0


if __name__ == "__main__":
    sys.exit(main())
