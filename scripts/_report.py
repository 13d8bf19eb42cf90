"""What the scripts of this folder share: how they describe where they ran, write their findings and take options."""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import xpsoftmax


class Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def output_of(script: str, *arguments: str) -> str:
    """Return what a script of this folder prints in a process of its own, which finds what the scripts share."""
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
