"""What scripts, benchmarks and examples share: options, files of findings, figures, and where they ran."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import xpsoftmax


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")

    def add_files(self, name: str, **endings: str) -> None:
        """Add an option for each file that is written: json="json" adds --json, by default report/NAME.json."""
        for option, ending in endings.items():
            path = Path("report", f"{name}.{ending}")
            self.add_argument(f"--{option}", type=Path, default=path, metavar="PATH", help="default: %(default)s")

    def check_files(self, *paths: Path) -> None:
        """Exit with status 2 if a file cannot be written: better now than after the work."""
        try:
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("ab").close()
        except OSError as error:
            self.error(str(error))


def parser_of(script: str, doc: str | None) -> Parser:
    """Return the parser of a script, which is described by the first line of its docstring."""
    return Parser(prog=Path(script).name, description=(doc or "").partition("\n")[0], allow_abbrev=False)


def run_record(script: str, argv: Sequence[str], packages: Sequence[str], **content: Any) -> dict[str, Any]:
    """Put before the content of a file of findings how, when and where they were made."""
    command = shlex.join(["python", script, *argv])
    here = surroundings([name for name in packages if installed(name)])
    return {"command": command, "date": datetime.now(UTC).date().isoformat(), **here, **content}


def json_text(content: Any, indent: int | None = 1) -> str:
    """Return JSON in which numbers that are not finite are null."""
    return json.dumps(finite(content), indent=indent, allow_nan=False) + "\n"


@contextmanager
def drawn(path: Path, rows: int, columns: int, size: tuple[float, float], dpi: int = 110) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its axes (rows, columns), and write it as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    try:
        yield figure, axes
        figure.savefig(path, format="png", dpi=dpi)
    finally:
        plt.close(figure)


def installed(package: str) -> bool:
    """Return whether a distribution is installed."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def output_of(script: str, *arguments: str) -> str:
    """Return what a script prints in a process of its own, which may import what lies beside it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def described(error: Exception) -> str:
    """Return what went wrong, in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"


def finite(value: Any) -> Any:
    """Replace numbers that are not finite by None: JSON has none."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def surroundings(packages: Sequence[str]) -> dict[str, Any]:
    """Describe software and hardware, in words that name no machine."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # without them: all cores
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version(), "xpsoftmax": xpsoftmax.__version__, **versions},
        "hardware": {"cpu": _cpu_model(), "cores": os.cpu_count()},
        "threads": {name: os.environ[name] for name in threads if name in os.environ},
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        root = Path(__file__).resolve().parent
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
