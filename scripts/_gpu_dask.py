"""Run xpsoftmax.dask over CuPy blocks on one GPU and compare with the same functions on whole arrays; for gpu_check.py.

    python scripts/_gpu_dask.py dask.json

On Dask's threads, and on a worker process with the GPU: that of a `LocalCUDACluster` where dask-cuda can be imported,
as docs/guides/dask.md has it. Blocks, parameters and results are CuPy arrays. Where dask cannot be imported it says so
and ends well. Exit status 1 if a result is wrong.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

import numpy as np
from _report import described, finite

import xpsoftmax as xs

ROWS, FEATURES, HIDDEN, CLASSES = 40_000, 64, 128, 10
CHUNKS = (ROWS // 4, 0, ROWS // 2, ROWS // 4 - 1, 1)
MOST = {"gradients": 1e-12, "labels": 0.0, "training": 1e-7, "bad label": 0.0, "classifier": 1e-7}
"""Differences, relative to the largest entry, that are rounding in float64; steps make them grow."""


def off_by(actual: Any, desired: Any) -> float:
    """Largest difference, relative to the largest entry, of arrays of the same library."""
    if type(actual) is not type(desired):
        return float("inf")
    return float(abs(actual - desired).max() / abs(desired).max())


def arrays_of(layers: Any) -> list[Any]:
    """Weights and biases in turn."""
    return [array for layer in layers for array in layer]


def moved(array: np.ndarray) -> Any:
    """A dask array whose blocks are moved to the GPU by who computes them."""
    import dask.array as da

    cupy = importlib.import_module("cupy")
    lazy = da.from_array(array, chunks=(CHUNKS, *array.shape[1:]))
    return lazy.map_blocks(cupy.asarray, dtype=array.dtype, meta=cupy.zeros((0,) * array.ndim, dtype=array.dtype))


def checks() -> dict[str, Callable[[], float]]:
    """Each returns by how much it is off."""
    import dask

    import xpsoftmax.dask as xd

    cupy = importlib.import_module("cupy")
    rng = np.random.default_rng(0)
    host_X, host_y, host_w = rng.standard_normal((ROWS, FEATURES)), rng.integers(0, CLASSES, ROWS), rng.random(ROWS)
    X, y, weight = moved(host_X), moved(host_y), moved(host_w)
    there = cupy.asarray(host_X), cupy.asarray(host_y)
    params = xs.init_params((FEATURES, HIDDEN, CLASSES), rng=0, dtype=cupy.float64, xp=cupy)
    options = {"reg": 0.01, "label_smoothing": 0.1}

    def gradients() -> float:
        loss, grads = dask.compute(*xd.mlp_loss_and_grad(params, X, y, sample_weight=weight, **options))
        whole = xs.mlp_loss_and_grad(params, *there, sample_weight=cupy.asarray(host_w), **options)
        pairs = zip([loss, *arrays_of(grads)], [whole[0], *arrays_of(whole[1])], strict=True)
        return max(off_by(a, b) for a, b in pairs)

    def labels() -> float:
        found = xd.mlp_predict(params, X).compute()
        return (
            float("inf")
            if type(found) is not type(there[1])
            else float((found != xs.mlp_predict(params, there[0])).sum())
        )

    def training() -> float:
        shared = {"optimizer": xs.adam(0.01), "epochs": 2, "batch_size": 4096, "rng": 0}
        got = xd.train(params, X, y, validation=(X, y), **shared)
        whole = xs.train(params, *there, validation=there, **shared)
        losses = np.abs(np.array(got.history["loss"]) / np.array(whole.history["loss"]) - 1.0).max()
        return max(
            float(losses), *(off_by(a, b) for a, b in zip(arrays_of(got.params), arrays_of(whole.params), strict=True))
        )

    def bad_label() -> float:
        host = host_y.copy()
        host[-1] = CLASSES
        try:
            xd.mlp_loss(params, X, moved(host)).compute()
        except ValueError as error:
            return 0.0 if f"got {CLASSES} at row {ROWS - 1}." in str(error) else float("inf")
        return float("inf")

    def classifier() -> float:
        from xpsoftmax.sklearn import MLPClassifier

        model = MLPClassifier((HIDDEN,), max_iter=2, n_iter_no_change=5, shuffle=False, batch_size=4096, random_state=0)
        got, whole = (clone_of(model).fit(*data) for data in ((X, y), there))
        return max(abs(a / b - 1.0) for a, b in zip(got.loss_curve_, whole.loss_curve_, strict=True))

    found = {"gradients": gradients, "labels": labels, "training": training, "bad label": bad_label}
    if importlib.util.find_spec("sklearn"):
        found["classifier"] = classifier
    return found


def clone_of(model: Any) -> Any:
    """A model of the same parameters that does not warn of ending early."""
    import warnings

    from sklearn.base import clone

    warnings.simplefilter("ignore")
    return clone(model)


@contextmanager
def worker() -> Iterator[str]:
    """One worker process that has the GPU; says which cluster it is of."""
    from distributed import Client, LocalCluster

    if importlib.util.find_spec("dask_cuda"):
        cluster = importlib.import_module("dask_cuda").LocalCUDACluster(n_workers=1, dashboard_address=":0")
        name = "LocalCUDACluster"
    else:
        cluster, name = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0"), "LocalCluster"
    with cluster, Client(cluster):
        yield name


def main(path: str, *, processes: bool = True) -> int:
    """Check on threads and on a worker; write what was found."""
    if not importlib.util.find_spec("dask"):
        Path(path).write_text(json.dumps({"checks": {}, "not here": "dask"}) + "\n", encoding="utf-8")
        print("dask cannot be imported here: nothing was checked")
        return 0
    import dask

    found: dict[str, dict[str, Any]] = {}
    try:
        with dask.config.set(scheduler="threads", num_workers=2):
            run(checks(), "threads", found)
        if processes and importlib.util.find_spec("distributed"):
            with worker() as name:
                run(checks(), name, found)
    finally:  # what was found before a cluster that does not start, or an interrupt
        Path(path).write_text(json.dumps({"checks": finite(found)}, indent=1) + "\n", encoding="utf-8")
    wrong = [name for name, result in found.items() if not result["off_by"] <= MOST[name.partition(",")[0]]]
    for name in wrong:
        print(f"wrong: {name}: {found[name].get('failed') or 'off by {off_by:.1e}'.format(**found[name])}")
    print(f"{len(found)} checks, {len(wrong)} wrong")
    return 1 if wrong else 0


def run(checks: dict[str, Callable[[], float]], where: str, found: dict[str, dict[str, Any]]) -> None:
    """Make each check, and time it."""
    for name, check in checks.items():
        start = time.perf_counter()
        result = found[f"{name}, {where}"] = {"off_by": math.inf}
        try:
            result["off_by"] = check()
        except Exception as error:  # noqa: BLE001 - one that fails must not end the others
            result["failed"] = described(error)
        result["seconds"] = time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
