"""Calls with few rows, where the Python code of the package counts: beside PyTorch, with options, and checked anew.

    python benchmarks/small_calls.py

The loss and gradient of 64 rows of 10 classes on NumPy, in three tables of microseconds:

- beside PyTorch's eager cross_entropy and backward, in one thread;
- with options, beside the plain call;
- the first call of a kind, which is checked in full, beside one that is remembered, and calls whose number of rows
  changes from call to call, beside calls with the same number of rows.

Competitors are timed in turn, many times; times are medians of the time of the processor, and ratios are medians of the
ratios in each turn.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from competitors import torch_eager

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

import xpsoftmax as xs
from xpsoftmax._arguments import door

ROWS, CLASSES = 64, 10
CALLS, TURNS, WARM = 200, 60, 20


def medians(calls: Mapping[str, Callable[[], Any]]) -> dict[str, tuple[float, float]]:
    """Return microseconds of each call, and its ratio to the first one."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            for _ in range(WARM):
                call()
            start = time.process_time()
            for _ in range(CALLS):
                call()
            times[name].append((time.process_time() - start) / CALLS * 1e6)
    first = next(iter(times.values()))
    return {
        name: (statistics.median(found), statistics.median(a / b for a, b in zip(found, first, strict=True)))
        for name, found in times.items()
    }


def beside_pytorch(z: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return the calls of the first table; no PyTorch, no calls."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(1)
    return {
        "PyTorch eager": torch_eager(torch.from_numpy(z.copy()), torch.from_numpy(y)),
        "xpsoftmax": lambda: xs.softmax_loss_and_grad(z, y),
    }


def with_options(z: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return the calls of the second table."""
    sample_weight, class_weight = np.linspace(0.5, 1.5, ROWS, dtype=z.dtype), np.ones(CLASSES, z.dtype)
    narrow, out = y.astype(np.int32), np.empty_like(z)
    f = xs.softmax_loss_and_grad
    return {
        "plain": lambda: f(z, y),
        "int32 labels": lambda: f(z, narrow),
        "sample_weight": lambda: f(z, y, sample_weight=sample_weight),
        "class_weight": lambda: f(z, y, class_weight=class_weight),
        "ignore_index": lambda: f(z, y, ignore_index=-1),
        "label_smoothing": lambda: f(z, y, label_smoothing=0.1),
        "z_loss": lambda: f(z, y, z_loss=1e-3),
        "reduction sum": lambda: f(z, y, reduction="sum"),
        "reduction none": lambda: f(z, y, reduction="none"),
        "validate False": lambda: f(z, y, validate=False),
        "out": lambda: f(z, y, out=out),
    }


def remembered(z: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return the calls of the third table."""
    memory = door._memory
    rows = itertools.cycle((ROWS, ROWS - 1, ROWS + 1))
    more, labels = np.concatenate([z, z[:1]]), np.append(y, y[:1])

    def anew() -> None:
        memory.popitem()
        xs.softmax_loss_and_grad(z, y)

    def other_rows() -> None:
        count = next(rows)
        xs.softmax_loss_and_grad(more[:count], labels[:count])

    def same_rows() -> None:
        count = next(rows) and ROWS
        xs.softmax_loss_and_grad(more[:count], labels[:count])

    return {
        "remembered": lambda: xs.softmax_loss_and_grad(z, y),
        "checked in full": anew,
        "the same rows, sliced": same_rows,
        "other rows each time": other_rows,
    }


def main() -> None:
    """Print the tables."""
    rng = np.random.default_rng(0)
    y = rng.integers(CLASSES, size=ROWS)
    for dtype in (np.float64, np.float32):
        z = rng.normal(size=(ROWS, CLASSES)).astype(dtype)
        for made in (beside_pytorch, with_options, remembered):
            print(f"\n{made.__name__.replace('_', ' ')}, {np.dtype(dtype).name}")
            for name, (microseconds, ratio) in medians(made(z, y)).items():
                print(f"{name:24} {microseconds:7.1f} {ratio:6.2f}")


if __name__ == "__main__":
    main()
