"""The kernel benchmark of gpu_check.py: the package beside CuPy, PyTorch, Liger and QuACK, each verified, then timed.

    python scripts/_gpu_kernels.py PATH SECONDS

Loss and gradient of labels and of soft targets, softmax and log_softmax. What compiles should be compiled before
(_gpu_compile.py). A time is that of a CUDA graph of many calls, each on other arrays than the one before, so that
neither the host's time nor the second-level cache counts. Where a library cannot be captured, calls are timed one after
the other by CUDA events, and the finding says so. The ceiling is a copy of as many bytes as the logits have: the faster
one of a kernel and of CUDA's own. "xpsoftmax kernel" is the kernel without the layers above it. Then the host's time
and the launches of small calls without validation. Writes JSON; cases for which the seconds do not suffice are
problems.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

from _gpu_counts import small_calls
from _gpu_process import write
from _gpu_rivals import (
    COMPILED,
    IN_TORCH,
    LOSS,
    OPERATIONS,
    OTHERS,
    OURS,
    SCALES,
    SLOW,
    SOFT,
    UNITS,
    Case,
    Inputs,
    copied_by_cuda,
    drawn,
    off_by,
)
from _gpu_timing import Call, give_back, milliseconds
from _report import described

SHAPES = ((4096, 1000), (8192, 4096), (8192, 8192), (8192, 16384), (8192, 32000), (8192, 50257), (8192, 128256))
SOME_SHAPES = (SHAPES[0], SHAPES[2], SHAPES[4], SHAPES[6])
SLOW_AT = 32000
"""The number of classes at which competitors of many kernels are timed."""
ALLOWED = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 2e-3, "float64": 1e-12}
"""Largest difference over largest entry: what tells a wrong formula from rounding. The tests hold the real bounds."""
AIMS = {"float32": (0.90, 0.92, 0.95, 0.96, 0.96, 0.92, 0.92), "bfloat16": (0.80, 0.88, 0.93, 0.94, 0.96, 0.92, 0.92)}
"""Shares of the copy to reach, for each of the shapes; the same for float16."""


@dataclass
class Benchmark:
    """What was timed, what could not be, and what is not installed."""

    cases: list[dict[str, Any]] = field(default_factory=list)
    small_calls: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    not_timed: list[str] = field(default_factory=list)  # competitors at cases that they cannot do
    problems: list[str] = field(default_factory=list)

    def note(self, name: str, what: str) -> None:
        """A failure of the package is a problem; one of a competitor is only written down."""
        (self.problems if name.startswith((OURS, "copy")) else self.not_timed).append(f"{name} {what}")


def run(found: Benchmark, cache_bytes: int, deadline: float, save: Callable[[], None]) -> None:
    """Verify and time every competitor at every case, as far as time allows; then small calls. Save after each."""
    for case in wanted():
        if time.monotonic() > deadline:
            found.problems.append(f"no time left for {case}")
        else:
            found.cases.append(timed_case(found, case, cache_bytes))
            save()
    try:
        found.small_calls = small_calls()
    except Exception as error:  # noqa: BLE001 - the shares are worth having without them
        found.problems.append(f"small calls: {described(error)}")
    save()


def wanted() -> list[Case]:
    """The cases, those first without which the others say little."""
    both = ("float32", "bfloat16")
    return [
        *(Case(LOSS, *shape, dtype) for shape in SHAPES for dtype in both),
        *(Case(name, *shape, dtype) for name in ("softmax", "log_softmax") for shape in SOME_SHAPES for dtype in both),
        *(Case(SOFT, *SHAPES[n], dtype) for n in (0, 4) for dtype in both),
        *(Case(OTHERS, *SHAPES[n], dtype) for dtype in ("float16", "float64") for n in (4,)),
    ]


def aim(case: Case) -> float | None:
    """The share of the copy's speed that the package should reach at a case."""
    if case.operation == SOFT:
        return 1 / 1.3  # at most 1.3 times a copy of logits, targets and gradient
    if case.dtype == "float64":
        return 0.60
    dtype, shape = "bfloat16" if case.dtype == "float16" else case.dtype, (case.rows, case.classes)
    return AIMS[dtype][SHAPES.index(shape)] if shape in SHAPES else None


def competitors(case: Case) -> dict[str, Callable[[Inputs], Call]]:
    """Who is timed at a case."""
    return {
        name: make for name, make in OPERATIONS[case.operation].items() if name not in SLOW or case.classes == SLOW_AT
    }


def call_once(case: Case) -> None:
    """Compile what a case needs (_gpu_compile.py); only for competitors that compile."""
    with suppress(Exception):
        inputs = drawn(case, 0)
        for name, make in competitors(case).items():
            if name in COMPILED:
                with suppress(Exception):
                    make(inputs)(0)
                give_back()


def timed_case(found: Benchmark, case: Case, cache_bytes: int) -> dict[str, Any]:
    """Medians and quartiles in milliseconds, and GB/s of the traffic that cannot be avoided."""
    inputs = drawn(case, cache_bytes)
    traffic = UNITS.get(case.operation, 2) * inputs.bytes
    result: dict[str, Any] = {**case._asdict(), "traffic_bytes": traffic, "aim": aim(case), "timings": {}}
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


def main() -> int:
    """Time everything and write it; 1 if there were problems."""
    path, seconds = Path(sys.argv[1]), float(sys.argv[2])
    cupy = importlib.import_module("cupy")
    cache = int(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["l2CacheSize"])
    found = Benchmark()
    run(found, cache, time.monotonic() + seconds, lambda: write(path, asdict(found)))
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
