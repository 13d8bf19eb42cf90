"""Check the package on a GPU in one command: tests, sanitizer, kernels, training, comparison with NumPy.

    python scripts/gpu_check.py OUT
    python scripts/gpu_check.py OUT --part tests --part compare

Needs a GPU that CuPy can use, pytest, rich and what the tests import (array-api-compat, array-api-strict, hypothesis,
ml-dtypes); no network, no nox, no installed package. All parts together take at most eight minutes. Used where they
can be imported:

- pytest-xdist, for tests in several processes
- torch; liger-kernel; QuACK, which is quack-kernels, nvidia-cutlass-dsl (with its -libs-base, -libs-core and
  -libs-cu13), apache-tvm-ffi and torch-c-dlpack-ext
- scikit-learn and matplotlib
- dask and distributed (with locket, partd, tblib, tornado and zict), dask-cuda and pynvml
- nvmath-python

The parts, and their seconds at most:

{parts}

Each command of a part runs in a process of its own, so that neither a crash nor a hang ends the others; one that takes
too long is interrupted as by Ctrl-C, so that what it has found is written, and ended with all it has started. Into the
folder OUT go gpu_check.json, the log of everything, the plot of the comparison and the row for docs/gpu-runs.md; a
short table is printed last. Exit status: 0; 1 if anything failed; 3, with nothing written, if there is no GPU that can
be used.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

from _report import Parser, described, finite, surroundings

ROOT = Path(__file__).resolve().parent.parent

NO_GPU = 3
LOG = "gpu_check.log"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
GRACE = 15.0
"""Seconds that a command has to write what it has found, once it is interrupted."""
Command = list[str]


@dataclass(frozen=True)
class Part:
    """Commands, and how their findings are read; both are told the folder for their files."""

    what: str
    seconds: float
    commands: Callable[[Path], list[Command]]
    findings: Callable[[Path], dict[str, Any]] = lambda folder: {}  # noqa: ARG005


@dataclass
class Report:
    """Everything that is printed and written."""

    device: dict[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
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


# --- the parts --------------------------------------------------------------------------------------------------------


def script(name: str, *arguments: object) -> Command:
    """Return the command that runs a script of this folder, or a benchmark."""
    (path,) = (path for folder in ("scripts", "benchmarks") if (path := ROOT / folder / name).exists())
    return [sys.executable, str(path), *map(str, arguments)]


def pytest_commands(folder: Path) -> list[Command]:
    """The tests on CuPy arrays; in several processes where it can be. The others need no GPU.

    pytest-benchmark, where it is installed, would warn beside xdist, and warnings are errors.
    """
    command = [sys.executable, "-m", "pytest", "--backend=cupy", "--require-backend=cupy", "-k", "cupy"]
    many = ["-n", str(min(14, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    without = ["-p", "no:cacheprovider", "-p", "no:benchmark"]
    return [[*command, f"--junitxml={folder / 'tests.xml'}", *without, *many, str(ROOT / "tests")]]


def counted(folder: Path) -> dict[str, Any]:
    """Count what the JUnit file of the tests tells of."""
    suite = ET.fromstring((folder / "tests.xml").read_text("utf-8")).find("testsuite")
    if suite is None:
        return {}
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return {"passed": total - skipped - failed, "failed": failed, "skipped": skipped}


def sanitizer_commands(folder: Path) -> list[Command]:  # noqa: ARG001
    """Every kernel at every size class: alone, which compiles them, and under each tool.

    Only what kernels do is reported: libraries ask CUDA for what may be missing, and go on. Python is waited for
    however long it takes to come to CUDA: a program that is given up is not looked at, and ends well.
    """
    kernels = script("_gpu_small.py")
    options = ["--error-exitcode", "9", "--report-api-errors", "no", "--launch-timeout", "0"]
    return [kernels, *([sanitizer(), "--tool", tool, *options, *kernels] for tool in TOOLS)]


def summaries(folder: Path) -> dict[str, Any]:
    """Find the last line of each tool in the log: without it nothing was looked at."""
    found = re.findall(r"^=+ \w+ SUMMARY: (.*)$", (folder / LOG).read_text("utf-8"), re.MULTILINE)
    if len(found) != len(TOOLS):
        raise ValueError(f"compute-sanitizer reported {len(found)} times, not {len(TOOLS)}")
    return dict(zip(TOOLS, found, strict=True))


def sanitizer() -> str:
    """Where compute-sanitizer is: on the path, or in CUDA's folder."""
    roots = [os.environ[name] for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    folders = [Path(root, "bin") for root in (*roots, "/usr/local/cuda")]
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *map(str, folders)))
    return shutil.which("compute-sanitizer", path=path) or "compute-sanitizer"


def read(name: str) -> Callable[[Path], dict[str, Any]]:
    """Return what reads a file of findings."""
    return lambda folder: dict(json.loads((folder / name).read_text("utf-8")))


KERNEL_SECONDS = 120
STEPS = ("128x784x256x10", "1024x512x2048x1000", "4096x512x32000")
"""Cases of bench_training.py: one that the launches take the time of, one of the products, one of many classes."""
STEPPERS = (
    "torch",
    "torch.compile",
    "linear_cross_entropy",
    "Liger",
    "xpsoftmax functions",
    "xpsoftmax train",
    "products",
)
PARTS = {
    "tests": Part("the tests on CuPy arrays, with --require-backend=cupy", 60, pytest_commands, counted),
    "sanitizer": Part(f"every kernel under compute-sanitizer: {', '.join(TOOLS)}", 120, sanitizer_commands, summaries),
    "compare": Part(
        "a network trained on NumPy and on CuPy (compare_backends.py)",
        20,
        lambda folder: [
            script(
                "compare_backends.py",
                *("--backend", "cupy", "--json", folder / "compare.json", "--plot", folder / "compare.png"),
                *("--html", folder / "compare.html"),
            )
        ],
        read("compare.json"),
    ),
    "dask": Part(
        "loss, training and the classifier over dask arrays of CuPy blocks, on a worker of its own too (_gpu_dask.py)",
        40,
        lambda folder: [script("_gpu_dask.py", folder / "dask.json")],
        read("dask.json"),
    ),
    "kernels": Part(
        "the operations on rows beside a copy and others (_gpu_kernels.py)",
        KERNEL_SECONDS + 20,  # the last case may take longer than the others
        lambda folder: [script("_gpu_kernels.py", folder / "kernels.json", KERNEL_SECONDS)],
        read("kernels.json"),
    ),
    "steps": Part(
        "training steps beside PyTorch and Liger, kernels and waits of each (bench_training.py)",
        60,
        lambda folder: [
            script(
                "bench_training.py",
                *("--device", "cuda", "--seconds", 0.2, "--json", folder / "steps.json"),
                *(word for case in STEPS for word in ("--case", case)),
                *(word for name in STEPPERS for word in ("--competitor", name)),
            )
        ],
        read("steps.json"),
    ),
    "estimator": Part(
        "the classifier fitted on CuPy arrays, beside scikit-learn and PyTorch (compare_sklearn.py)",
        40,
        lambda folder: [
            script("compare_sklearn.py", "--only", "gpu", "--rounds", "1", "--json", folder / "estimator.json")
        ],
        read("estimator.json"),
    ),
}
__doc__ = (__doc__ or "").format(
    parts="\n".join(f"- {name}, {part.seconds:.0f} s: {part.what}" for name, part in PARTS.items())
)


def run_part(part: Part, folder: Path, log: Path) -> tuple[dict[str, Any], list[str]]:
    """Run the commands of a part; return what was found, and what went wrong."""
    problems = []
    begin = time.monotonic()
    for command in part.commands(folder):
        status = run(command, log, part.seconds - (time.monotonic() - begin))
        if status != 0:
            problems.append(f"{shlex.join(command)}: {status if isinstance(status, str) else f'status {status}'}")
    found: dict[str, Any] = {"seconds": time.monotonic() - begin}
    try:
        found |= part.findings(folder)
    except Exception as error:  # noqa: BLE001 - a part that died may have left anything
        problems.append(f"its findings cannot be read: {described(error)}")
    return found, problems


def run(command: Command, log: Path, seconds: float) -> int | str:
    """Run a command, its output going to the end of the log; return its status, or why it has none."""
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not here"
    if seconds <= 0.0:
        return "no time was left"
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}  # the log shows what it hung at
    with log.open("a") as stream:
        stream.write(f"\n$ {shlex.join(command)}\n")
        stream.flush()
        # A session of its own, which can be ended whole: a debugger's program, and workers, outlive who started them.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return f"not finished in {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


# --- the report -------------------------------------------------------------------------------------------------------


def table(report: Report) -> str:
    """A few lines of text."""
    lines = [report.device["gpu"]]
    for name, found in report.parts.items():
        short = {key: value for key, value in found.items() if isinstance(value, (int, float, str))}
        lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in short.items()))
    kernels = report.parts.get("kernels", {})
    for case in kernels.get("cases", ()):
        title = f"{case['operation']} {case['rows']}x{case['classes']} {case['dtype']}"
        ceiling = case["timings"].get("copy", {}).get("gb_per_s")
        for name, timing in case["timings"].items():
            share = f"{timing['gb_per_s'] / ceiling:6.0%} of copy" if ceiling else ""
            lines.append(f"{title:40} {name:18} {timing['ms'][1]:9.4f} ms {timing['gb_per_s']:8.0f} GB/s {share}")
    lines += shares(kernels.get("cases", ()))
    for name, small in kernels.get("small_calls", {}).items():
        ratio = small["microseconds"] / small["bare_microseconds"]
        lines.append(
            f"a small {name} without validation: {small['launches']:.0f} launches, {small['microseconds']:.1f} "
            f"microseconds of the host, {ratio:.1f} bare launches"
        )
    lines += [f"not here: {name}: {reason}" for name, reason in kernels.get("missing", {}).items()]
    lines += [f"not timed: {what}" for what in kernels.get("not_timed", ())]
    for finding in report.parts.get("steps", {}).get("findings", ()):
        for name, timing in finding["timings"].items():
            ratio = finding["ratios"].get(name)
            share = "" if ratio is None else f"{ratio:6.2f} of PyTorch"
            events = finding["events"].get(name, "")
            lines.append(f"step {finding['case']:24} {name:20} {1e3 * timing['median']:9.4f} ms {share} {events}")
    for finding in report.parts.get("estimator", {}).get("gpu", ()):
        medians = {what: sorted(times)[len(times) // 2] for what, times in finding.get("seconds", {}).items()}
        result = finding.get("failed") or f"{medians} seconds, accuracy {finding['accuracy']:.4f}"
        lines.append(f"estimator {finding['case']}, {finding['kind']}: {result}")
    for name, found in report.parts.get("dask", {}).get("checks", {}).items():
        lines.append(f"dask {name}: {found}")
    return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in report.problems)])


def shares(cases: Sequence[dict[str, Any]]) -> list[str]:
    """For each operation, dtype and competitor a line: the share of a copy's speed, by number of classes."""
    lines: dict[str, list[str]] = {}
    for case in cases:
        timings = case["timings"]
        for name, timing in timings.items() if "copy" in timings else ():
            share = timing["gb_per_s"] / timings["copy"]["gb_per_s"]
            line = lines.setdefault(f"{case['operation']}, {case['dtype']}, {name}", [])
            line.append(
                f"{case['classes']} {share:.2f}" if name != "copy" else f"{case['classes']} {timing['gb_per_s']:.0f}"
            )
    return [f"share of copy: {title}: {', '.join(line)}" for title, line in lines.items()]


def row(report: Report, commit: str | None, day: str, command: str) -> str:
    """The row for docs/gpu-runs.md."""
    device, results = report.device, []
    for name, found in report.parts.items():
        counts = [f"{found[key]} {key}" for key in ("passed", "failed", "skipped") if key in found]
        results.append(f"{name} ({', '.join(counts)})" if counts else name)
    for case in report.parts.get("kernels", {}).get("cases", ()):
        if "xpsoftmax" in case["timings"]:
            speed = case["timings"]["xpsoftmax"]["gb_per_s"]
            results.append(f"{case['operation']} {case['rows']}x{case['classes']} {case['dtype']} {speed:.0f} GB/s")
    versions = f"{device['driver']}, {device['cuda']}, {device['cupy']}"
    result = "; ".join([*results, f"{len(report.problems)} problems"])
    return f"| {day} | {commit} | {device['gpu']} | {versions} | {command} | {result} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print and write; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = Parser(prog="gpu_check.py", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    options.add_argument("out", type=Path, help="folder for the findings")
    options.add_argument("--part", action="append", choices=PARTS, help="only this one (repeatable)")
    given = options.parse_args(argv)
    folder = given.out.resolve()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background jobs; commands would ignore it, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    device = usable_gpu()
    if isinstance(device, str):
        print(f"gpu_check: there is no GPU that can be used here, so nothing was checked: {device}")
        return NO_GPU
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOG).unlink(missing_ok=True)
    report = Report(device)
    where = surroundings(("numpy", "array-api-compat"))
    day = datetime.now(UTC).date().isoformat()
    command = shlex.join(["python", "scripts/gpu_check.py", "OUT", *(f"--part={name}" for name in given.part or ())])
    for name in given.part or PARTS:
        found, problems = run_part(PARTS[name], folder, folder / LOG)
        report.parts[name] = found
        report.problems += [f"{name}: {problem}" for problem in problems]
        # After each part: what was found so far is worth having when something ends this process.
        content = {"command": command, "date": day, **where, **asdict(report)}
        (folder / "gpu_check.json").write_text(json.dumps(finite(content), indent=1) + "\n")
    for name in ("tests.xml", "kernels.json", "steps.json", "compare.json", "estimator.json", "dask.json"):
        (folder / name).unlink(missing_ok=True)  # their content is in gpu_check.json
    line = row(report, where["commit"], day, command)
    (folder / "gpu-runs-row.md").write_text(line + "\n")
    print(line, table(report), sep="\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
