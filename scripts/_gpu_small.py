"""Run every kernel at every size class on small arrays; for compute-sanitizer, which gpu_check.py runs it under.

    compute-sanitizer --tool memcheck python scripts/_gpu_small.py

Each array has memory of its own, so that an access beside it is seen. The results are compared with the generic code on
NumPy in float64, roughly: the tests hold the real bounds. Exit status 1 if one is wrong.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

import xpsoftmax as xs
from xpsoftmax.kernels.cuda import sizes

ROWS = 3
DTYPES = {"float32": 1e-5, "bfloat16": 1e-2}
"""Largest difference over the largest entry that is rounding."""


def widths(dtype: str) -> list[int]:
    """The most classes that each size class covers; one class; and more than any holds: such rows are streamed."""
    size = sizes.ITEMSIZES[dtype]
    vectors = [kind.capacity for kind in sizes.size_classes("softmax_loss", dtype) if kind.vectors]
    return [1, *((most + 1) * sizes.VECTOR // size - 1 for most in vectors), (vectors[-1] + 1) * sizes.VECTOR // size]


def wrong(xp: Any, dtype: str) -> Iterator[str]:
    """Name what is wrong, of the operations on rows."""
    kind: Any = importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    rng = np.random.default_rng(0)
    for classes in widths(dtype):
        for shift in (0, 1):  # aligned, and not
            held = xp.asarray(rng.standard_normal((ROWS, classes + shift)).astype("f4")).astype(kind)
            z = held[:, shift:]
            exact = on_host(z.astype("f4")).astype("f8")
            labels = rng.integers(classes, size=ROWS)
            masses = rng.dirichlet(np.ones(min(classes, 50)), ROWS)
            masses = np.pad(masses, ((0, 0), (0, classes - masses.shape[1]))).astype("f4")
            y, q = xp.asarray(labels), xp.asarray(masses).astype(kind)
            calls = {
                "softmax": (lambda z: xs.softmax(z), z, exact),
                "log_softmax": (lambda z: xs.log_softmax(z), z, exact),
                "logsumexp": (lambda z: xs.logsumexp(z), z, exact),
            }
            for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 1e-3}):
                calls[f"loss {options}"] = (
                    lambda pair, options=options: xs.softmax_loss_and_grad(*pair, **options),
                    (z, y),
                    (exact, labels),
                )
            calls["soft targets"] = (
                lambda pair: xs.softmax_loss_and_grad(*pair, validate=False),
                (z, q),
                (exact, on_host(q.astype("f4")).astype("f8")),
            )
            for name, (call, here, there) in calls.items():
                if not close(call(here), call(there), DTYPES[dtype]):
                    yield f"{name} of {classes} classes, {shift} elements off, {dtype}"


def wrong_training(xp: Any) -> Iterator[str]:
    """Name what is wrong of the layers and the updates."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((37, 5)).astype("f4"), rng.integers(3, size=37)
    params = xs.init_params((5, 33, 3), rng=0, dtype=np.float32)
    there = tuple(xs.Layer(*map(xp.asarray, layer)) for layer in params)
    optimizers = {
        "sgd": xs.sgd(0.1),
        "momentum": xs.sgd(0.1, momentum=0.9),
        "nesterov": xs.sgd(0.1, momentum=0.9, nesterov=True),
        "adam": xs.adam(0.01),
        "adamw": xs.adamw(0.01),
    }
    for activation in ("relu", "tanh", "gelu"):
        for name, optimizer in optimizers.items():
            how = {"optimizer": optimizer, "epochs": 2, "batch_size": 10, "rng": 0, "activation": activation}
            ours = xs.train(there, xp.asarray(X), xp.asarray(y), **how).params
            exact = xs.train(params, X, y, **how).params
            pairs = zip((a for layer in ours for a in layer), (a for layer in exact for a in layer), strict=True)
            if not all(close(a, b, 1e-4) for a, b in pairs):
                yield f"training with {name} and {activation}"


def on_host(array: Any) -> np.ndarray:
    """The values in NumPy."""
    return np.asarray(array.get() if hasattr(array, "get") else array)


def close(found: Any, exact: Any, most: float) -> bool:
    """Whether arrays, or pairs of them, differ by no more than rounding."""
    if isinstance(exact, tuple):
        return all(close(a, b, most) for a, b in zip(found, exact, strict=True))
    found, exact = on_host(found).astype("f8"), np.asarray(exact)
    return bool(found.shape == exact.shape and np.abs(found - exact).max() <= most * max(1e-30, np.abs(exact).max()))


def main() -> int:
    """Run everything; say what is wrong."""
    cupy = importlib.import_module("cupy")
    cupy.cuda.set_allocator(None)  # a pool would hide what lies beside an array
    found = [problem for dtype in DTYPES for problem in wrong(cupy, dtype)] + list(wrong_training(cupy))
    print(*(f"wrong: {problem}" for problem in found), f"{len(found)} wrong", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
