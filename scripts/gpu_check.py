"""Check the package on a GPU in one command: tests, sanitizer, kernels, training, comparison with NumPy.

    python scripts/gpu_check.py OUT
    python scripts/gpu_check.py OUT --part tests --part compare

Needs a GPU that CuPy can use, pytest, rich and what the tests import (array-api-compat, array-api-strict, hypothesis,
ml-dtypes); no network, no nox, no installed package. All parts together take at most eight minutes. Used where they
can be imported:

- nvmath-python, without which steps are not captured, and the part "steps" fails
- pytest-xdist and pytest-timeout, for tests in several processes with a limit for each
- torch; liger-kernel; QuACK, which is quack-kernels, nvidia-cutlass-dsl (with its -libs-base, -libs-core and
  -libs-cu13), apache-tvm-ffi and torch-c-dlpack-ext
- scikit-learn and matplotlib
- dask and distributed (with locket, partd, tblib, tornado and zict), dask-cuda and pynvml

docs/gpu-runs.md says how to take along those that are not there. The parts, and their seconds at most:

{parts}

Those from "tests" to "dask" run at the same time: no time is measured there. Each command of a part runs in a process
of its own, so that neither a crash nor a hang ends the others; one that takes too long is interrupted as by Ctrl-C, so
that what it has found is written, and ended with all it has started. What is compiled is kept in the folder for
temporary files, on the local disk, for the next command on this machine. Into the folder OUT go gpu_check.json, the log
of everything, plot and page of the comparison and the row for docs/gpu-runs.md; a short table is printed last. Exit
status: 0; 1 if anything failed; 3, with nothing written, if there is no GPU that can be used.
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
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

from _gpu_report import Report, row, table
from _report import Parser, described, installed, json_text, surroundings

ROOT = Path(__file__).resolve().parent.parent

NO_GPU = 3
LOG = "gpu_check.log"
PACKAGES = (
    *("numpy", "array-api-compat", "torch", "triton", "nvmath-python", "liger-kernel", "quack-kernels"),
    *("scikit-learn", "dask", "dask-cuda"),
)
"""Whose versions are written down."""
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
GRACE = 15.0
"""Seconds that a command has to write what it has found, once it is interrupted."""
MOST_FAILURES = 15
"""Failed tests that are named in the table; the log has all."""
Command = list[str]


@dataclass(frozen=True)
class Part:
    """Commands, and how their findings are read; both are told the folder for their files."""

    what: str
    seconds: float
    commands: Callable[[Path], list[Command]]
    findings: Callable[[Path], dict[str, Any]] = lambda folder: {}  # noqa: ARG005
    side_by_side: bool = False  # its commands run at the same time
    timeless: bool = False  # it runs beside the others of this kind that follow it: it measures no times


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

    pytest-benchmark, where it is installed, would warn beside xdist, and warnings are errors. Once enough tests have
    failed the others would not tell more.
    """
    command = [sys.executable, "-m", "pytest", "--backend=cupy", "--require-backend=cupy", "-k", "cupy"]
    many = ["-n", str(min(10, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    limit = ["--timeout=60"] if importlib.util.find_spec("pytest_timeout") else []
    without = ["-p", "no:cacheprovider", "-p", "no:benchmark", "--maxfail=100", "--tb=short"]
    return [[*command, f"--junitxml={folder / 'tests.xml'}", *without, *limit, *many, str(ROOT / "tests")]]


def counted(folder: Path) -> dict[str, Any]:
    """Count what the JUnit file of the tests tells of."""
    suite = ET.fromstring((folder / "tests.xml").read_text("utf-8")).find("testsuite")
    if suite is None:
        return {}
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    why = [
        f"{case.get('name')}: {next(iter((wrong.get('message') or '').splitlines()), '')}"[:200]
        for case in suite.iter("testcase")
        for wrong in case
        if wrong.tag in ("failure", "error")
    ]
    return {"passed": total - skipped - failed, "failed": failed, "skipped": skipped, "problems": why[:MOST_FAILURES]}


def sanitizer_commands(folder: Path) -> list[Command]:  # noqa: ARG001
    """Every kernel at every size class, and programs of steps, under each tool.

    Only what kernels do is reported: libraries ask CUDA for what may be missing, and go on. Python is waited for
    however long it takes to come to CUDA: a program that is given up is not looked at, and ends well.
    """
    options = ["--error-exitcode", "9", "--report-api-errors", "no", "--launch-timeout", "0"]
    return [[sanitizer(), "--tool", tool, *options, *script("_gpu_small.py")] for tool in TOOLS]


def summaries(folder: Path) -> dict[str, Any]:
    """Find the summary of each tool in the log of the part: without it nothing was looked at."""
    text = log_of("sanitizer", folder).read_text("utf-8", errors="replace")
    found: dict[str, Any] = {"problems": []}
    for section in text.split("\n$ ")[1:]:
        tool = section.partition("--tool ")[2].split()[0]
        said = re.findall(r"^=+ \w+ SUMMARY: (.*)$", section, re.MULTILINE)
        found[tool] = said[-1] if said else "said nothing"
    found["problems"] += [f"{tool} said nothing" for tool in TOOLS if found.get(tool, "said nothing") == "said nothing"]
    return found


def log_of(part: str, folder: Path) -> Path:
    """The log of a part while it runs; it becomes a part of the log of everything."""
    return folder / f"log-of-{part}.log"


def sanitizer() -> str:
    """Where compute-sanitizer is: on the path, or in CUDA's folder."""
    roots = [os.environ[name] for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    folders = [Path(root, "bin") for root in (*roots, "/usr/local/cuda")]
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *map(str, folders)))
    return shutil.which("compute-sanitizer", path=path) or "compute-sanitizer"


def read(name: str) -> Callable[[Path], dict[str, Any]]:
    """Return what reads a file of findings."""
    return lambda folder: dict(json.loads((folder / name).read_text("utf-8")))


def measuring(what: str, name: str, seconds: float) -> Part:
    """Return a part that measures times, by the script of this name: it gets its file, and most of the seconds."""
    return Part(
        f"{what} (_gpu_{name}.py)",
        seconds,
        lambda folder: [script(f"_gpu_{name}.py", folder / f"{name}.json", seconds - 5)],
        read(f"{name}.json"),
    )


PARTS = {
    "compile": Part(
        "the CUDA kernels of this GPU, by a process for each core",
        40,
        lambda folder: [script("_gpu_compile.py", folder / "compile.json", "ours", 35)],
        read("compile.json"),
    ),
    "tests": Part(
        "the tests on CuPy arrays, with --require-backend=cupy", 100, pytest_commands, counted, timeless=True
    ),
    "sanitizer": Part(
        f"every kernel and captured steps under compute-sanitizer: {', '.join(TOOLS)} (_gpu_small.py)",
        100,
        sanitizer_commands,
        summaries,
        side_by_side=True,
        timeless=True,
    ),
    "compare": Part(
        "a network trained on NumPy and on CuPy (compare_backends.py)",
        60,
        lambda folder: [
            script(
                "compare_backends.py",
                *("--backend", "cupy", "--json", folder / "compare.json", "--plot", folder / "compare.png"),
                *("--html", folder / "compare.html"),
            )
        ],
        read("compare.json"),
        timeless=True,
    ),
    "dask": Part(
        "loss, training and the classifier over dask arrays of CuPy blocks, on a worker of its own too (_gpu_dask.py)",
        80,
        lambda folder: [script("_gpu_dask.py", folder / "dask.json")],
        read("dask.json"),
        timeless=True,
    ),
    "others": Part(
        "what the competitors compile (_gpu_compile.py)",
        40,
        lambda folder: [script("_gpu_compile.py", folder / "others.json", "others", 35)],
        read("others.json"),
    ),
    "steps": measuring("training steps beside PyTorch and Liger: times, launches, waits", "steps", 85),
    "kernels": measuring("the operations on rows beside a copy and others", "kernels", 80),
    "variants": measuring("the loss with other size classes than those of sizes.py", "variants", 25),
    "torch": measuring("PyTorch tensors through the kernels: right, without waiting, how fast", "torch", 35),
    "classes": measuring("a linear layer with many classes beside Liger and PyTorch", "classes", 40),
    "estimator": measuring("the classifier on CuPy, NumPy, PyTorch and scikit-learn", "estimator", 35),
}
__doc__ = (__doc__ or "").format(
    parts="\n".join(f"- {name}, {part.seconds:.0f} s: {part.what}" for name, part in PARTS.items())
)


def most_seconds(parts: Iterable[Part]) -> float:
    """How long parts may take together: those without times run side by side."""
    parts = list(parts)
    timeless = [part.seconds for part in parts if part.timeless]
    return max(timeless, default=0.0) + sum(part.seconds for part in parts if not part.timeless)


def run_part(part: Part, folder: Path, log: Path) -> tuple[dict[str, Any], list[str]]:
    """Run the commands of a part; return what was found, and what went wrong."""
    begin = time.monotonic()
    commands = part.commands(folder)
    logs = [log.with_name(f"{log.stem}-{i}.log") for i in range(len(commands))]

    def run_one(i: int) -> int | str:
        return run(commands[i], logs[i], part.seconds - (time.monotonic() - begin))

    with ThreadPoolExecutor(len(commands) if part.side_by_side else 1) as pool:
        states = list(pool.map(run_one, range(len(commands))))
    with log.open("a", encoding="utf-8") as stream:
        for each in logs:
            stream.write(each.read_text("utf-8", errors="replace") if each.exists() else "")
            each.unlink(missing_ok=True)
    problems = [
        f"{shlex.join(command)}: {status if isinstance(status, str) else f'status {status}'}"
        for command, status in zip(commands, states, strict=True)
        if status != 0
    ]
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
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n$ {shlex.join(command)}\n")
        stream.flush()
        # A session of its own, which can be ended whole: a debugger's program, and workers, outlive who started them.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        RUNNING.add(process)
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
            RUNNING.discard(process)


RUNNING: set[subprocess.Popen[bytes]] = set()
"""Commands of the parts that run now."""
CACHES = ("CUPY_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "QUACK_CACHE_DIR")


def environment() -> dict[str, str]:
    """The environment of a command: with this package, with caches on the local disk, and with output that shows."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    here = Path(tempfile.gettempdir(), "xpsoftmax-gpu-check")
    caches = {name: str(here / name.partition("_")[0].lower()) for name in CACHES if name not in os.environ}
    return {**os.environ, **caches, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def run_parts(names: Sequence[str], folder: Path) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Run parts in their order, those without times at the same time, and yield what each found."""
    waiting = list(names)
    while waiting:
        group = [name for name in waiting if PARTS[name].timeless] if PARTS[waiting[0]].timeless else waiting[:1]
        waiting = [name for name in waiting if name not in group]
        logs = {name: log_of(name, folder) for name in group}
        with ThreadPoolExecutor(len(group)) as pool:
            try:
                runs = {pool.submit(run_part, PARTS[name], folder, logs[name]): name for name in group}
                for done in as_completed(runs):
                    name = runs[done]
                    with (folder / LOG).open("a", encoding="utf-8") as stream:
                        stream.write(f"\n--- {name} ---\n{logs[name].read_text('utf-8', errors='replace')}")
                    logs[name].unlink(missing_ok=True)
                    yield name, *done.result()
            except BaseException:  # Ctrl-C, too: the pool would wait for all commands
                for process in list(RUNNING):
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                raise


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
    names = list(dict.fromkeys(given.part or PARTS))
    report = Report(device)
    where = surroundings([name for name in PACKAGES if installed(name)])
    day = datetime.now(UTC).date().isoformat()
    command = shlex.join(["python", "scripts/gpu_check.py", "OUT", *(f"--part={name}" for name in given.part or ())])
    for name, found, problems in run_parts(names, folder):
        report.parts[name] = found
        own = found.get("problems", [])
        told = [problem for problem in problems if not (own and problem.endswith(": status 1"))]
        report.problems += [f"{name}: {problem}" for problem in (*told, *own)]
        # After each part: what was found so far is worth having when something ends this process.
        content = {"command": command, "date": day, **where, **asdict(report)}
        (folder / "gpu_check.json").write_text(json_text(content))
        print(f"{name}: {found['seconds']:.0f} s, {len(problems)} problems", flush=True)
    for name in ("tests.xml", *(f"{part}.json" for part in PARTS)):
        (folder / name).unlink(missing_ok=True)  # their content is in gpu_check.json
    line = row(report, where["commit"], day, command)
    (folder / "gpu-runs-row.md").write_text(line + "\n")
    print(line, table(report), sep="\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
