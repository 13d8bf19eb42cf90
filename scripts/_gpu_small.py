"""Run every kernel at every size class on small arrays; for compute-sanitizer, which gpu_check.py runs it under.

    compute-sanitizer --tool memcheck python scripts/_gpu_small.py

Trainings launch what a step is made of, one by one and captured, with every rule and option. Each array has memory of
its own, so that an access beside it is seen. The results are compared with the generic code on NumPy in float64,
roughly: the tests hold the real bounds. Exit status 1 if one is wrong, or if no step was captured where nvmath-python
is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

import xpsoftmax as xs
from xpsoftmax._train.optimizers import VelocitySgd
from xpsoftmax.kernels.cuda import sizes

ROWS = 3
DTYPES = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3, "float64": 1e-12}
"""Largest difference over the largest entry that is rounding."""
EVERYWHERE = ("float32", "bfloat16")
"""The dtypes of which every size class is run, aligned and not; of the others some, because each kernel takes time."""


def widths(dtype: str) -> list[int]:
    """The most classes that each size class covers; one class; and more than any holds: such rows are streamed."""
    size = sizes.ITEMSIZES[dtype]
    vectors = [kind.capacity for kind in sizes.size_classes("softmax_loss", dtype) if kind.vectors]
    return [1, *((most + 1) * sizes.VECTOR // size - 1 for most in vectors), (vectors[-1] + 1) * sizes.VECTOR // size]


def wrong(xp: Any, dtype: str) -> Iterator[str]:
    """Name what is wrong, of the operations on rows."""
    kind: Any = importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    rng = np.random.default_rng(0)
    everything = widths(dtype)
    for classes in everything if dtype in EVERYWHERE else {*everything[::4], *everything[-2:]}:
        for shift in (0, 1) if dtype in EVERYWHERE else (1,):  # aligned, and not
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


OPTIMIZERS = {
    "sgd": lambda: xs.sgd(0.1),
    "momentum": lambda: xs.sgd(0.1, momentum=0.9),
    "nesterov": lambda: xs.sgd(0.1, momentum=0.9, nesterov=True),
    "velocity": lambda: VelocitySgd(0.1, 0.9, nesterov=False),
    "nesterov's velocity": lambda: VelocitySgd(0.1, 0.9, nesterov=True),
    "adam": lambda: xs.adam(0.01),
    "adamw": lambda: xs.adamw(0.01),
}
EPOCHS, BATCH = 4, 10
"""With 37 rows: the batches of 10 and of 7 are captured in the first two epochs, and replayed."""


def trainings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Options of trainings that together launch every kernel of a step."""
    rng = np.random.default_rng(1)
    for name, optimizer in OPTIMIZERS.items():
        yield name, {"optimizer": optimizer()}
    for activation in ("tanh", "gelu"):
        yield activation, {"optimizer": xs.sgd(0.1), "activation": activation}
    weights = rng.random(37).astype("f4")
    weights[::5] = 0.0
    options: dict[str, dict[str, Any]] = {
        "penalty": {"reg": 0.01},
        "weights": {"sample_weight": weights, "reg": 0.01},
        "class weights": {"class_weight": np.array([0.5, 1.0, 2.0], "f4")},
        "ignored rows": {"ignore_index": 1},
        "smoothing": {"label_smoothing": 0.1},
        "z-loss": {"z_loss": 1e-3},
        "a sum": {"reduction": "sum"},
        "clipping": {"optimizer": xs.clip_by_global_norm(xs.sgd(0.1, momentum=0.9), 0.1)},
        "a schedule": {"optimizer": xs.sgd(xs.cosine_schedule(0.1, steps=20))},
        "chunks": {"max_memory": 2048},
        "float64": {"dtype": "f8", "reg": 0.01},
        "float16": {"dtype": "f2"},
        "soft targets": {"targets": rng.dirichlet(np.ones(3), 37).astype("f4")},
    }
    for name, more in options.items():
        yield name, {"optimizer": xs.sgd(0.01), **more}


def wrong_training(xp: Any) -> Iterator[str]:
    """Name what is wrong of the steps: of the layers, the updates, and what a program has besides."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((37, 5)).astype("f4"), rng.integers(3, size=37)
    params = xs.init_params((5, 33, 3), rng=0, dtype=np.float32)
    with counted_graphs() as graphs:
        for name, options in trainings():
            how = {"epochs": EPOCHS, "batch_size": BATCH, "rng": 0, "activation": "relu", **options}
            targets, dtype = how.pop("targets", y), how.pop("dtype", "f4")
            moved = on_device(xp, how)
            first = tuple(xs.Layer(*(array.astype(dtype) for array in layer)) for layer in params)
            there = tuple(xs.Layer(*map(xp.asarray, layer)) for layer in first)
            before = graphs[0]
            ours = xs.train(there, xp.asarray(X.astype(dtype)), xp.asarray(targets), **moved).params
            exact = xs.train(first, X.astype(dtype), targets, **how).params
            pairs = zip((a for layer in ours for a in layer), (a for layer in exact for a in layer), strict=True)
            if not all(close(a, b, 1e-2 if dtype == "f2" else 1e-4) for a, b in pairs):
                yield f"training with {name}"
            if graphs[0] == before and importlib.util.find_spec("nvmath"):
                yield f"training with {name}: no step was captured"
    print(f"{graphs[0]} steps were captured")


@contextmanager
def counted_graphs() -> Iterator[list[int]]:
    """Count the steps that are captured; none where the backend cannot be imported."""
    number = [0]
    try:
        capture: Any = importlib.import_module("xpsoftmax.kernels.cuda.capture")
    except (ImportError, AttributeError):  # what stands for CuPy has less
        yield number
        return
    graph_of = capture._graph_of

    def counted(*arguments: Any) -> Any:
        number[0] += 1
        return graph_of(*arguments)

    capture._graph_of = counted
    try:
        yield number
    finally:
        capture._graph_of = graph_of


def wrong_functions(xp: Any) -> Iterator[str]:
    """Name what is wrong of the public functions of the network."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((70, 5)).astype("f4"), rng.integers(3, size=70)
    params = xs.init_params((5, 33, 3), rng=0, dtype=np.float32)
    there = tuple(xs.Layer(*map(xp.asarray, layer)) for layer in params)
    weights = {"sample_weight": rng.random(70).astype("f4"), "class_weight": np.array([0.5, 1.0, 2.0], "f4")}
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "penalty": {"reg": 0.1},
        "chunks": {"max_memory": 4096},
        "weights": {**weights, "ignore_index": 1},
        "ignored rows": {"ignore_index": 1, "reduction": "sum"},
    }
    for name, options in kinds.items():
        ours = xs.mlp_loss_and_grad(there, xp.asarray(X), xp.asarray(y), **on_device(xp, options))[1]
        exact = xs.mlp_loss_and_grad(params, X, y, **options)[1]
        pairs = zip((a for layer in ours for a in layer), (a for layer in exact for a in layer), strict=True)
        if not all(close(a, b, 1e-4) for a, b in pairs):
            yield f"mlp_loss_and_grad, {name}"
        of_rows = {key: value for key, value in options.items() if key not in ("reg", "max_memory")}
        loss = xs.softmax_loss_and_grad(xp.asarray(X[:, :3]), xp.asarray(y), **on_device(xp, of_rows))
        if not close(loss, xs.softmax_loss_and_grad(X[:, :3], y, **of_rows), 1e-5):
            yield f"softmax_loss_and_grad, {name}"
    if not close(xs.mlp_predict(there, xp.asarray(X)), xs.mlp_predict(params, X), 0.0):
        yield "mlp_predict"


def on_device(xp: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options with their arrays on the GPU."""
    return {key: xp.asarray(value) if isinstance(value, np.ndarray) else value for key, value in options.items()}


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
    found = [problem for dtype in DTYPES for problem in wrong(cupy, dtype)]
    found += [*wrong_training(cupy), *wrong_functions(cupy)]
    print(*(f"wrong: {problem}" for problem in found), f"{len(found)} wrong", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
