"""What the benchmarks share: verify first, then time in turn; and the options, files and figures of scripts/_report.py.

A competitor is made as a call and what measures its error, or as None where it lacks the operation.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

from _report import (
    Parser,
    described,
    drawn,
    finite,
    installed,
    json_text,
    output_of,
    parser_of,
    run_record,
    surroundings,
)

__all__ = [
    "Call",
    "Made",
    "Parser",
    "Timing",
    "described",
    "difference",
    "drawn",
    "finite",
    "installed",
    "json_text",
    "output_of",
    "parser_of",
    "run_record",
    "sampled",
    "simd",
    "sizes",
    "surroundings",
    "timings",
    "verified",
]

Call: TypeAlias = Callable[[], Any]
Made: TypeAlias = tuple[Call, Callable[[], float] | None] | None
"""What is timed, and what returns its error; None for the error of a floor, which has none."""

PAUSE = 0.01
"""Seconds; OpenMP threads spin for some milliseconds after their work, on the cores that the next one needs."""
WARM = 0.03
"""Seconds of calls that are not counted, before each sample."""
SAMPLE = 0.004
"""Seconds that a sample lasts at least: short calls are repeated within it."""


@dataclass
class Timing:
    """Seconds of a call: quartiles of the samples."""

    low: float
    median: float
    high: float
    samples: int
    error: float  # largest difference from plain NumPy in float64 over its largest entry


def difference(result: Any, truth: Any) -> float:
    """Return the largest difference over the largest entry of each array; infinite where it is not finite."""
    if isinstance(truth, tuple):
        return max(difference(a, b) for a, b in zip(result, truth, strict=True))
    found = np.asarray(result.get() if hasattr(result, "get") else result.cpu() if hasattr(result, "cpu") else result)
    worst = float(np.abs(found - truth).max() / np.abs(truth).max())
    return worst if np.isfinite(worst) else np.inf


def verified(
    makers: Mapping[str, Callable[[], Made]], allowed: float, problems: list[str]
) -> tuple[dict[str, Call], dict[str, float]]:
    """Return the calls of the competitors that are right, and their errors; add what is wrong with the others."""
    calls: dict[str, Call] = {}
    errors: dict[str, float] = {}
    for name, make in makers.items():
        try:
            made = make()
            if made is None:
                continue
            call, error_of = made
            error = 0.0 if error_of is None else error_of()
            call()
        except Exception as error:  # noqa: BLE001 - whatever a competitor raises is the reason
            problems.append(f"{name} failed: {described(error)}")
            continue
        if error <= allowed:
            calls[name], errors[name] = call, error
        else:
            problems.append(f"{name} is off by {error:.2g} of the largest entry: not timed")
    return calls, errors


def timings(calls: Mapping[str, Call], errors: Mapping[str, float], seconds: float) -> dict[str, Timing]:
    """Time calls in turn, for about so many seconds each."""
    found = {}
    for name, samples in sampled(calls, seconds).items():
        low, median, high = np.quantile(samples, (0.25, 0.5, 0.75)).tolist()
        found[name] = Timing(low, median, high, len(samples), errors[name])
    return found


def sampled(calls: Mapping[str, Call], seconds: float) -> dict[str, list[float]]:
    """Return the seconds of a call, sample by sample: at least 5 each, at most 40."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    repeats = {name: max(1, int(SAMPLE / timed(call, 1))) for name, call in calls.items()}
    order, start = list(calls), time.perf_counter()
    for turn in range(40):
        if turn >= 5 and time.perf_counter() - start > seconds * len(calls):
            break
        for name in order[turn % len(order) :] + order[: turn % len(order)] if order else []:
            time.sleep(PAUSE)
            start_of_turn = time.perf_counter()
            while time.perf_counter() - start_of_turn < WARM:
                calls[name]()
            samples[name].append(timed(calls[name], repeats[name]))
    return samples


def timed(call: Call, repeats: int) -> float:
    """Return the seconds of one of several calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def simd() -> list[str]:
    """List the vector instructions that NumPy found: on x86 its float64 exp is vectorised with AVX-512 only."""
    config: Any = np.show_config(mode="dicts")
    found = config.get("SIMD Extensions", {})
    return sorted(found.get("baseline", []) + found.get("found", []))


def sizes(text: str, *counts: int, example: str) -> tuple[int, ...]:
    """Return the sizes that an option like 256x1000 names: as many as one of the counts."""
    words = text.split("x")
    if len(words) not in counts or not all(word.isdecimal() and int(word) for word in words):
        raise ArgumentTypeError(f"must be like {example}, got {text!r}")
    return tuple(map(int, words))
