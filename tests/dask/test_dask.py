"""Loss, gradients, prediction and training over dask arrays: as in memory, whatever happens to the workers."""

import contextlib
import itertools
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections import Counter

import numpy as np
import pytest
from paths import DOCS

import xpsoftmax as xs

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

import dask_blocks as blocks  # noqa: E402

import xpsoftmax.dask as xd  # noqa: E402
from xpsoftmax._arguments import problem as loss_problem  # noqa: E402
from xpsoftmax.dask import blocks as _block_sums  # noqa: E402
from xpsoftmax.dask import steps as _partition_training  # noqa: E402
from xpsoftmax.kernels.numpy import threads as _threads  # noqa: E402

N, D, H, C = 47, 5, 7, 4
SIZES = (D, H, C)
CHUNKS = {
    "one": (N,),
    "rows": (1,) * N,
    "even": (10, 10, 10, 10, 7),
    "empty": (0, 13, 0, 0, 33, 1, 0),
    "tree": (2,) * 23 + (1,),  # more blocks than a task adds up
}


@pytest.fixture
def problem(rng):
    return xs.init_params(SIZES, rng=rng), rng.standard_normal((N, D)), rng.integers(0, C, N)


ANY_PORT = {"dashboard_address": ":0", "scheduler_kwargs": {"dashboard": False}}


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes of one thread each."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, memory_limit=0, **ANY_PORT
    ) as local:
        yield local


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as client:
        both_started(client, cluster)
        yield client


STARTING = 600.0
"""Seconds within which a worker starts on a busy machine: a new process imports distributed and this package."""


def both_started(client, cluster):
    """Wait for workers that have been replaced.

    One can be given tasks before its nanny knows that it has started; if it is killed then, it may not be replaced.
    """
    client.wait_for_workers(2, timeout=STARTING)
    deadline = time.monotonic() + STARTING
    while not all(
        nanny.process and nanny.process.status == distributed.Status.running for nanny in cluster.workers.values()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def classifier():
    pytest.importorskip("sklearn")
    from xpsoftmax.sklearn import MLPClassifier

    return MLPClassifier


MODELS = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.1, "learning_rate": "adaptive"},
    "weights": {"class_weight": "balanced", "label_smoothing": 0.1},
    "lbfgs": {"solver": "lbfgs"},
}
CLASSIFIER = {"hidden_layer_sizes": (H,), "max_iter": 5, "random_state": 0, "shuffle": False, "batch_size": 12}


@pytest.fixture
def ignore_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lazy(array, chunks):
    return da.from_array(array, chunks=(chunks, *array.shape[1:]))


def of_unknown_sizes(array, chunks):
    """The same blocks, of which dask does not know how many rows they have."""
    known = lazy(array, chunks)
    return known[da.from_array(np.ones(len(array), bool), chunks=(chunks,))]


def flat(layers):
    return np.concatenate([array.ravel() for layer in layers for array in layer])


def assert_equal_to(actual, desired, rtol=1e-12):
    """Loss and gradients, each array to `rtol` of its largest entry; returns how many entries."""
    compared = 0
    for a, b in zip(arrays_of(actual), arrays_of(desired), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        there = ~np.isnan(b)
        assert np.abs(a[there] - b[there]).max(initial=0.0) <= rtol * np.abs(b[there]).max(initial=0.0)
        compared += a.size
    return compared


def arrays_of(result):
    loss, grads = result
    return [np.asarray(loss), *(np.asarray(array) for layer in grads for array in layer)]


def assert_same_bits(actual, desired):
    for a, b in zip(arrays_of(actual), arrays_of(desired), strict=True):
        assert a.tobytes() == b.tobytes()


OPTIONS = {
    "plain": {},
    "penalty": {"reg": 0.3, "activation": "tanh"},
    "sum": {"reduction": "sum", "reg": 0.3, "activation": "gelu"},
    "classes": {"class_weight": np.arange(4.0), "ignore_index": 2},
    "smoothing": {"label_smoothing": 0.1, "z_loss": 0.01, "class_weight": np.arange(4.0)},
    "memory": {"max_memory": 2500},
    "generic": {"impl": "generic"},
    "without_validation": {"validate": False},
}

# --- loss, gradients, labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("name", OPTIONS)
def test_equal_to_the_result_in_memory(name, chunks, known, problem, rng):
    params, X, y = problem
    weight = rng.random(N) * (rng.random(N) < 0.8)
    cut = lazy if known else of_unknown_sizes
    for options in ({}, {"sample_weight": weight}):
        more = {key: cut(value, CHUNKS[chunks]) for key, value in options.items()}
        desired = xs.mlp_loss_and_grad(params, X, y, **options, **OPTIONS[name])
        held = cut(X, CHUNKS[chunks]), cut(y, CHUNKS[chunks])
        actual = xd.mlp_loss_and_grad(params, *held, **more, **OPTIONS[name])
        for got, want in zip(actual[1], desired[1], strict=True):
            assert (got.weight.shape, got.weight.dtype) == (want.weight.shape, want.weight.dtype)
            assert (got.bias.shape, got.bias.dtype) == (want.bias.shape, want.bias.dtype)
        assert actual[0].shape == ()
        assert assert_equal_to(dask.compute(*actual), desired) == 1 + (D + 1) * H + (H + 1) * C
        alone = xd.mlp_loss(params, *held, **more, **OPTIONS[name]).compute()
        assert abs(alone - desired[0]) <= 1e-12 * abs(desired[0])


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_soft_targets(known, problem, rng):
    params, X, _ = problem
    targets, weight = rng.dirichlet(np.ones(C), N), rng.random(N)
    cut = lazy if known else of_unknown_sizes
    held = [cut(array, CHUNKS["empty"]) for array in (X, targets, weight)]
    options = {"label_smoothing": 0.1, "class_weight": np.arange(4.0), "reg": 0.1}
    actual = dask.compute(*xd.mlp_loss_and_grad(params, *held[:2], sample_weight=held[2], **options))
    assert_equal_to(actual, xs.mlp_loss_and_grad(params, X, targets, sample_weight=weight, **options))


@pytest.mark.parametrize("label_chunks", [(N,), (20, 27), (1,) * N, (0, 30, 17)])
def test_targets_and_weights_in_other_chunks_are_aligned(label_chunks, problem, rng):
    params, X, y = problem
    weight = rng.random(N)
    actual = xd.mlp_loss_and_grad(
        params, lazy(X, CHUNKS["even"]), lazy(y, label_chunks), sample_weight=lazy(weight, label_chunks[::-1])
    )
    assert_equal_to(dask.compute(*actual), xs.mlp_loss_and_grad(params, X, y, sample_weight=weight))


def test_targets_and_weights_in_memory_are_taken(problem, rng):
    params, X, y = problem
    weight = rng.random(N)
    actual = xd.mlp_loss_and_grad(params, lazy(X, CHUNKS["even"]), y, sample_weight=weight)
    assert_equal_to(dask.compute(*actual), xs.mlp_loss_and_grad(params, X, y, sample_weight=weight))


def test_columns_in_several_chunks_of_blocks_of_unknown_sizes(problem):
    params, X, y = problem
    keep = da.from_array(np.arange(N) % 3 > 0, chunks=10)
    held = da.from_array(X, chunks=(10, 2))[keep], lazy(y, 10)[keep]
    with pytest.warns(da.PerformanceWarning, match="X has its features in 3 chunks"):
        actual = dask.compute(*xd.mlp_loss_and_grad(params, *held))
    assert_equal_to(actual, xs.mlp_loss_and_grad(params, X[np.arange(N) % 3 > 0], y[np.arange(N) % 3 > 0]))


def test_the_warning_shows_the_line_of_the_call(problem):
    params, X, y = problem
    narrow = da.from_array(X, chunks=(10, 2))
    for call in (
        lambda: xd.mlp_loss(params, narrow, y),
        lambda: xd.mlp_predict(params, narrow),
        lambda: xd.train(params, narrow, y, optimizer=xs.sgd(0.1), epochs=1),
    ):
        with pytest.warns(da.PerformanceWarning) as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


def test_columns_in_several_chunks_are_put_together_with_a_warning(problem, rng):
    params, X, _ = problem
    targets = rng.dirichlet(np.ones(C), N)
    held = da.from_array(X, chunks=(10, 2)), da.from_array(targets, chunks=(10, 3))
    with pytest.warns(da.PerformanceWarning) as caught:
        actual = dask.compute(*xd.mlp_loss_and_grad(params, *held))
    assert [str(warning.message).partition(" chunks")[0] for warning in caught] == [
        "X has its features in 3", "targets has its classes in 2",
    ]  # fmt: skip
    assert_equal_to(actual, xs.mlp_loss_and_grad(params, X, targets))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_row_that_counts(reduction, problem):
    params, X, _ = problem
    y = np.full(N, -1)
    options = {"ignore_index": -1, "reduction": reduction, "reg": 0.1}
    actual = dask.compute(*xd.mlp_loss_and_grad(params, lazy(X, (40, 7)), lazy(y, (40, 7)), **options))
    desired = xs.mlp_loss_and_grad(params, X, y, **options)
    assert np.isnan(desired[0]) == (reduction == "mean")
    assert_equal_to(actual, desired)


def test_rows_that_do_not_count_may_hold_anything(problem):
    params, X, y = problem
    weight = np.ones(N)
    weight[::3] = 0.0
    desired = xs.mlp_loss_and_grad(params, X, y, sample_weight=weight)
    X[::3] = np.nan
    held = [lazy(array, CHUNKS["even"]) for array in (X, y, weight)]
    assert_equal_to(dask.compute(*xd.mlp_loss_and_grad(params, *held[:2], sample_weight=held[2])), desired)


@pytest.mark.parametrize(("dtype", "working", "rtol"), [("f4", "f4", 1e-5), ("f2", "f4", 2e-3)])
def test_other_dtypes(dtype, working, rtol, problem):
    params, X, y = problem
    params = tuple(xs.Layer(*(array.astype(dtype) for array in layer)) for layer in params)
    X = X.astype(dtype)
    loss, grads = xd.mlp_loss_and_grad(params, lazy(X, CHUNKS["even"]), lazy(y.astype("u1"), CHUNKS["even"]), reg=0.1)
    assert loss.dtype == np.dtype(working)
    assert grads[0].weight.dtype == np.dtype(dtype)
    assert_equal_to(dask.compute(loss, grads), xs.mlp_loss_and_grad(params, X, y, reg=0.1), rtol)


def test_the_values_of_the_call_are_computed_with(problem):
    params, X, y = problem
    desired = xs.mlp_loss_and_grad(params, X, y)
    actual = xd.mlp_loss_and_grad(params, lazy(X, CHUNKS["even"]), lazy(y, CHUNKS["even"]))
    for layer in params:
        layer.weight[:] = np.nan
    assert_equal_to(dask.compute(*actual), desired)


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_labels_are_those_of_memory(chunks, known, problem):
    params, X, _ = problem
    labels = xd.mlp_predict(params, (lazy if known else of_unknown_sizes)(X, CHUNKS[chunks]), activation="tanh")
    desired = xs.mlp_predict(params, X, activation="tanh")
    assert labels.dtype == desired.dtype
    np.testing.assert_array_equal(labels.compute(), desired)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_the_same_bits_from_run_to_run_on_any_scheduler(num_workers, rng):
    """Of blocks that are large enough for their order to be another one each time."""
    params = xs.init_params((30, 40, 5), rng=rng, dtype="f4")
    X, y = rng.standard_normal((20_000, 30)).astype("f4"), rng.integers(0, 5, 20_000)
    lazily = xd.mlp_loss_and_grad(params, lazy(X, 700), lazy(y, 700))
    desired = dask.compute(*lazily, scheduler="synchronous")
    for _ in range(3):
        assert_same_bits(dask.compute(*lazily, scheduler="threads", num_workers=num_workers), desired)


def test_processes(problem, rng):
    params, X, y = problem
    lazily = xd.mlp_loss_and_grad(params, lazy(X, (40, 7)), lazy(y, (40, 7)))
    assert_same_bits(dask.compute(*lazily, scheduler="processes"), dask.compute(*lazily, scheduler="threads"))


# --- blocks of CuPy ---------------------------------------------------------------------------------------------------


def held_in_blocks(backend, array, chunks):
    """A dask array of blocks of this library, which are there."""
    ends = np.cumsum((0, *chunks))
    name = f"held-{id(array)}"
    tasks = {
        (name, i, *(0 for _ in array.shape[1:])): backend.asarray(array[start:stop])
        for i, (start, stop) in enumerate(itertools.pairwise(ends))
    }
    meta = backend.asarray(array[:0].reshape((0,) * array.ndim))
    return da.Array(tasks, name, chunks=(tuple(chunks), *((n,) for n in array.shape[1:])), meta=meta)


@pytest.mark.backends("numpy", "cupy")
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("name", ["plain", "sum", "smoothing", "classes"])
def test_blocks_stay_where_they_are(name, scheduler, backend, problem, rng):
    params, X, y = problem
    weight = rng.random(N)
    options = {k: backend.asarray(v) if isinstance(v, np.ndarray) else v for k, v in OPTIONS[name].items()}
    there = tuple(xs.Layer(*map(backend.asarray, layer)) for layer in params)
    held = [held_in_blocks(backend, array, CHUNKS["even"]) for array in (X, y, weight)]
    with dask.config.set(scheduler=scheduler):
        loss, grads = dask.compute(*xd.mlp_loss_and_grad(there, *held[:2], sample_weight=held[2], **options))
        labels = xd.mlp_predict(there, held[0]).compute()
        shared = {"epochs": 2, "rng": 3, "optimizer": xs.adam(0.01), "batch_size": 8}
        got = xd.train(there, *held[:2], sample_weight=held[2], validation=held[:2], **shared, **options)
    assert type(loss) is type(grads[0].weight) is type(got.params[0].weight) is type(held[0]._meta)
    on_host = backend.to_numpy(loss), [xs.Layer(*map(backend.to_numpy, layer)) for layer in grads]
    assert_equal_to(on_host, xs.mlp_loss_and_grad(params, X, y, sample_weight=weight, **OPTIONS[name]))
    np.testing.assert_array_equal(backend.to_numpy(labels), xs.mlp_predict(params, X))
    desired = xs.train(params, X, y, sample_weight=weight, validation=(X, y), **shared, **OPTIONS[name])
    np.testing.assert_allclose(got.history["loss"], desired.history["loss"], rtol=1e-10)
    np.testing.assert_allclose(got.history["validation_loss"], desired.history["validation_loss"], rtol=1e-10)


@pytest.mark.backends("cupy")
def test_blocks_of_another_library_than_the_parameters(backend, problem):
    params, X, y = problem
    held = [held_in_blocks(backend, array, CHUNKS["even"]) for array in (X, y)]
    with pytest.raises(
        TypeError, match=r"^X must be an array of the same library as params\[0\]\.weight \(numpy\), got"
    ):
        xd.mlp_loss(params, *held)


@pytest.mark.backends("cupy")
def test_a_bad_label_on_a_device(backend, problem):
    params, X, y = problem
    y[37] = 8
    there = tuple(xs.Layer(*map(backend.asarray, layer)) for layer in params)
    held = [held_in_blocks(backend, array, CHUNKS["even"]) for array in (X, y)]
    with pytest.raises(ValueError, match=r"got 8 at row 37\.$"):
        xd.mlp_loss(there, *held).compute()


@pytest.mark.backends("cupy")
@pytest.mark.parametrize("name", MODELS)
def test_the_classifier_on_blocks_of_a_device(name, backend, classifier, problem, ignore_warnings):
    _, X, y = problem
    model = classifier(**CLASSIFIER, **MODELS[name])
    held = [held_in_blocks(backend, array, CHUNKS["even"]) for array in (X, y)]
    if name == "lbfgs":
        with pytest.raises(ValueError, match=r'^solver must be "adam" or "sgd" for'):
            model.fit(*held)
        return
    model.fit(*held)
    desired = classifier(**CLASSIFIER, **MODELS[name]).fit(X, y)
    np.testing.assert_allclose(model.loss_curve_, desired.loss_curve_, rtol=1e-9)
    assert type(model.predict_proba(held[0]).compute()) is type(held[0]._meta)
    assert backend.to_numpy(model.predict(held[0]).compute()).tolist() == desired.predict(X).tolist()
    assert model.score(*held) == desired.score(X, y)


# --- passes over the data ---------------------------------------------------------------------------------------------


def seen(array, path, chunks=(10, 10, 10, 10, 7)):
    return lazy(array, chunks).map_blocks(blocks.noted, str(path), dtype=array.dtype, meta=array[:0])


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_lazy_until_computed_and_one_pass_then(problem, tmp_path):
    params, X, y = problem
    y[33] = 3
    held = seen(X, tmp_path / "X"), seen(y, tmp_path / "y"), seen(np.ones(N), tmp_path / "weight")
    loss, grads = xd.mlp_loss_and_grad(params, *held[:2], sample_weight=held[2])
    labels = xd.mlp_predict(params, held[0])
    assert list(tmp_path.iterdir()) == []
    dask.compute(loss, grads)
    assert [len(lines(tmp_path / name)) for name in ("X", "y", "weight")] == [5, 5, 5]
    labels.compute()
    assert len(lines(tmp_path / "X")) == 10


def test_a_block_is_one_task(problem):
    """Loading and computing it: a block waits for nobody while it is in memory."""
    params, X, y = problem
    X = da.map_blocks(lambda: 1, dtype=float, chunks=((9,) * 50, (D,)), meta=np.empty((0, D)))
    y = da.map_blocks(lambda: 1, dtype=int, chunks=((9,) * 50,), meta=np.empty(0, int))
    (loss,) = dask.optimize(xd.mlp_loss(params, X + 1.0, y + 1))
    tree = 7 + 1 + 3  # 50 by 8, 7 by 8; the model, the end, and the loss of it
    assert len(dict(loss.dask)) <= 50 + tree


def test_a_task_is_one_thread(problem, monkeypatch):
    """Its kernels and products have no helping threads; afterwards all is as it was."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    params, X, y = problem

    def of_blas():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    before, within, helpers = of_blas(), [], []
    sum_over_rows = _block_sums.sum_over_rows

    def looking(*args, **kwargs):
        within.append(of_blas())
        _threads.share(lambda items: helpers.append((threading.get_ident(), list(items))), range(64), 8)
        return sum_over_rows(*args, **kwargs)

    monkeypatch.setattr(_block_sums, "sum_over_rows", looking)
    lazily = xd.mlp_loss(params, lazy(X, (10, 10, 10, 10, 7)), y)
    within.clear(), helpers.clear()
    lazily.compute(scheduler="threads", num_workers=3)
    assert len(within) == 5
    assert all(threads == [1] * len(before) for threads in within)
    assert [len(items) for _, items in helpers] == [64] * 5  # each did all itself
    assert of_blas() == before
    with threadpoolctl.threadpool_limits(1):
        assert of_blas() == [1] * len(before)  # and others may set it


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("function", ["mlp_loss_and_grad", "mlp_loss", "train"])
def test_a_bad_label_is_named_with_its_row_of_all(function, known, problem):
    params, X, y = problem
    y[[45, 31, 40]] = 9, 4, -3
    cut = lazy if known else of_unknown_sizes
    held = cut(X, CHUNKS["empty"]), cut(y, CHUNKS["empty"])
    with pytest.raises(
        ValueError, match=r"^targets must be labels from 0 to 3 \(4 classes, ignore_index=None\), got 4 at row 31\.$"
    ):
        called(function, params, *held)


def called(function, params, *held, **options):
    if function == "train":
        return xd.train(params, *held, optimizer=xs.sgd(0.1), epochs=1, rng=0, **options)
    return dask.compute(getattr(xd, function)(params, *held, **options))


@pytest.mark.parametrize("function", ["mlp_loss_and_grad", "train"])
def test_a_bad_weight_or_soft_target(function, problem, rng):
    params, X, y = problem
    weight, targets = np.ones(N), rng.dirichlet(np.ones(C), N)
    weight[7], weight[40], targets[41, 2] = np.inf, -1.0, -0.5
    X, y, weight, targets = (lazy(array, CHUNKS["even"]) for array in (X, y, weight, targets))
    with pytest.raises(ValueError, match=r"^sample_weight must be finite and not negative, got inf at row 7\.$"):
        called(function, params, X, y, sample_weight=weight)
    # As in memory, targets are looked at before weights.
    with pytest.raises(ValueError, match=r"^targets must be finite and not negative, got -0\.5 at index \(41, 2\)\.$"):
        called(function, params, X, targets, sample_weight=weight)


def test_the_error_is_that_of_memory(problem):
    params, X, y = problem
    y[17] = 12
    with pytest.raises(ValueError, match="row 17") as memory:
        xs.mlp_loss(params, X, y)
    with pytest.raises(ValueError, match="row 17") as partitions:
        xd.mlp_loss(params, lazy(X, 5), lazy(y, 5)).compute()
    assert str(partitions.value) == str(memory.value)
    assert str(pickle.loads(pickle.dumps(partitions.value))) == str(memory.value)


def test_without_validation_a_bad_row_is_nan_and_nothing_is_computed_early(problem, tmp_path):
    params, X, y = problem
    y[17] = 12
    path = tmp_path / "y"
    loss = xd.mlp_loss(params, lazy(X, CHUNKS["even"]), seen(y, path), validate=False)
    assert not path.exists()
    assert np.isnan(loss.compute())
    path.unlink()
    with pytest.raises(xs.DivergenceError, match=r"^targets must be labels .*, got 12 at row 17\. The loss became nan"):
        xd.train(params, lazy(X, CHUNKS["even"]), seen(y, path), optimizer=xs.sgd(0.1), epochs=1, validate=False)
    assert len(lines(path)) == 2 * 5  # by the step, and to find the cause


@pytest.mark.parametrize("function", ["mlp_loss_and_grad", "train"])
def test_blocks_of_unknown_sizes_that_differ(function, problem):
    params, X, y = problem
    X = of_unknown_sizes(X, CHUNKS["even"])
    with pytest.raises(
        ValueError, match=r"^targets must have as many rows as X in every block, 10, got 9 in block 3\.$"
    ):
        called(function, params, X, of_unknown_sizes(y, (10, 10, 10, 9, 8)))
    with pytest.raises(
        ValueError, match=r"^sample_weight must have as many rows as X in every block, 10, got 11 in block 1\.$"
    ):
        called(function, params, X, of_unknown_sizes(y, CHUNKS["even"]),
               sample_weight=of_unknown_sizes(np.ones(N), (10, 11, 9, 10, 7)))  # fmt: skip
    with pytest.raises(ValueError, match=r"^targets must have as many blocks of rows as X .*, 5, got 4\."):
        called(function, params, X, of_unknown_sizes(y, (10, 10, 10, 17)))


def test_known_rows_and_targets_of_unknown_sizes_that_differ(problem):
    params, X, y = problem
    held = lazy(X, CHUNKS["even"]), of_unknown_sizes(y, (10, 10, 10, 9, 8))
    for function in ("mlp_loss", "train"):
        with pytest.raises(ValueError, match=r"in every block, 10, got 9 in block 3\.$"):
            called(function, params, *held)


WRONG = {
    "X in memory": (lambda a: a | {"X": np.ones((N, D))}, TypeError, r"^X must be a dask array, got numpy\.ndarray\."),
    "X of another width": (lambda a: a | {"X": da.ones((N, 3))}, ValueError, r"^X must have shape \(N, 5\) .*47, 3"),
    "X of another dtype": (lambda a: a | {"X": a["X"].astype("f4")}, TypeError, r"^X must have the dtype of the param"),
    "X of three axes": (lambda a: a | {"X": da.ones((N, D, 1))}, ValueError, r"^X must have shape \(N, 5\)"),
    "more targets": (lambda a: a | {"y": da.zeros(48, dtype=int)}, ValueError, r"^targets must have as many .* 48"),
    "more in memory": (lambda a: a | {"y": np.zeros(48, int)}, ValueError, r"^targets must have as many rows .*48,"),
    "labels of 2 axes": (lambda a: a | {"y": da.zeros((N, C), dtype=int)}, ValueError, r"shape \(N,\) if they are lab"),
    "soft of 1 axis": (lambda a: a | {"y": da.zeros(N)}, ValueError, r"^targets must have shape \(N, 4\) if they are"),
    "floating labels": (lambda a: a | {"y": da.zeros(N)}, ValueError, r"got \(47,\)\. Labels must be of an integer d"),
    "soft of 3 classes": (lambda a: a | {"y": da.zeros((N, 3))}, ValueError, r"shape \(N, 4\) .* got \(47, 3\)"),
    "a list": (lambda a: a | {"y": [0] * N}, TypeError, r"^targets must be an array of an Array API .* got list"),
    "weights of 2 axes": (
        lambda a: a | {"sample_weight": da.ones((N, 1))}, ValueError, r"^sample_weight must have shape \(N,\), got"),
    "class weights": (lambda a: a | {"class_weight": np.ones(3)}, ValueError, r"^class_weight must have shape \(4,\)"),
    "a class weight": (lambda a: a | {"class_weight": -np.ones(4)}, ValueError, r"^class_weight .* got -1\.0 at cl"),
    "lazy class weights": (lambda a: a | {"class_weight": da.ones(4)}, TypeError, r"^class_weight must be an array of"),
    "lazy params": (
        lambda a: a | {"params": (xs.Layer(da.ones((D, C)), da.ones(C)),)}, TypeError, r"^params must be arrays of"),
    "smoothing": (lambda a: a | {"label_smoothing": 2.0}, ValueError, r"^label_smoothing must be from 0 to 1"),
    "reduction": (lambda a: a | {"reduction": "none"}, ValueError, r'^reduction must be one of "mean", "sum", got'),
    "reg": (lambda a: a | {"reg": -1.0}, ValueError, r"^reg must be finite and at least 0, got -1\.0"),
    "impl": (lambda a: a | {"impl": "fast"}, ValueError, r"^impl must be one of"),
    "activation": (lambda a: a | {"activation": "step"}, ValueError, r"^activation must be one of"),
    "max_memory": (lambda a: a | {"max_memory": 1}, ValueError, r"^max_memory must be at least"),
}  # fmt: skip


@pytest.mark.parametrize("function", ["mlp_loss_and_grad", "mlp_loss", "train"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused_before_anything_is_computed(name, function, problem, tmp_path):
    params, X, y = problem
    change, error, message = WRONG[name]
    given = change({"params": params, "X": seen(X, tmp_path / "X"), "y": seen(y, tmp_path / "y")})
    with pytest.raises(error, match=message):
        called(function, given.pop("params"), given.pop("X"), given.pop("y"), **given)
    assert list(tmp_path.iterdir()) == []


def test_the_guide_lists_every_public_name():
    page = (DOCS / "guides" / "dask.md").read_text()
    listed = re.findall(r"^   (\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(xd.__all__)


def test_a_data_frame_is_told_what_to_do(problem):
    pandas = pytest.importorskip("pandas")
    frames = pytest.importorskip("dask.dataframe")
    params, X, y = problem
    frame = frames.from_pandas(pandas.DataFrame(X), npartitions=3)
    with pytest.raises(
        TypeError, match=r"^X must be a dask array, got dask\.DataFrame\. Call its to_dask_array\(\)\.$"
    ):
        xd.mlp_loss(params, frame, y)
    with pytest.raises(
        TypeError, match=r"^targets must be a dask array, got dask\.Series\. Call its to_dask_array\(\)\.$"
    ):
        xd.mlp_loss(params, lazy(X, 10), frames.from_pandas(pandas.Series(y), npartitions=3))
    loss = xd.mlp_loss(
        params, frame.to_dask_array(), frames.from_pandas(pandas.Series(y), npartitions=3).to_dask_array()
    )
    assert abs(loss.compute() - xs.mlp_loss(params, X, y)) <= 1e-12 * abs(loss.compute())


def test_the_module_needs_dask_and_the_package_does_not():
    program = """
        import sys
        import xpsoftmax
        assert not {name.partition(".")[0] for name in sys.modules} & {"dask", "distributed", "threadpoolctl"}
        sys.modules["dask"] = None
        try:
            import xpsoftmax.dask
        except ImportError as error:
            assert error.name == "dask"
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    packages = "pip install 'dask[array,distributed]' threadpoolctl."
    assert done.stdout == f"xpsoftmax.dask needs dask, which is not installed: {packages}\n"


# --- training ---------------------------------------------------------------------------------------------------------

TRAIN = {
    "plain": {},
    "penalty": {"reg": 0.01, "activation": "tanh"},
    "smoothing": {"label_smoothing": 0.1, "z_loss": 0.01, "class_weight": np.arange(1.0, C + 1)},
    "classes": {"class_weight": np.arange(1.0, C + 1), "ignore_index": 2},
    "sum": {"reduction": "sum", "activation": "gelu", "reg": 0.1},
    "memory": {"max_memory": 2500},
}


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("batch_size", [None, 10])
@pytest.mark.parametrize("name", TRAIN)
def test_over_one_group_of_blocks_it_is_train(name, batch_size, known, problem, rng):
    params, X, y = problem
    weight = rng.random(N)
    cut = lazy if known else of_unknown_sizes
    held = [cut(array, CHUNKS["empty"]) for array in (X, y, weight)]
    shared = {"optimizer": xs.adam(0.01), "epochs": 3, "rng": 3, **TRAIN[name]}
    desired = xs.train(
        params, X, y, batch_size=batch_size or N, validation=(X[:20], y[:20]), sample_weight=weight, **shared
    )
    got = xd.train(
        params, *held[:2], sample_weight=held[2], batch_size=batch_size, validation=(held[0][:20], held[1][:20])
        if known else (X[:20], y[:20]), **shared
    )  # fmt: skip
    assert list(got.history) == list(desired.history)
    for key, values in desired.history.items():
        np.testing.assert_allclose(got.history[key], values, rtol=1e-12)
    np.testing.assert_allclose(flat(got.params), flat(desired.params), rtol=1e-9, atol=1e-12)
    assert got.state.rng == desired.state.rng
    assert (got.state.epoch, got.state.step, got.state.rows) == (3, 0, N)


def by_hand(params, X, y, optimizer, epochs, chunks, blocks_per_step, batch_size, seed):
    """The batches as documented, each made in memory."""
    generator, state = np.random.default_rng(seed), optimizer.init(params)
    starts, losses = np.cumsum([0, *chunks]), []
    for _ in range(epochs):
        order = generator.permutation(len(chunks))
        for group in np.split(order, range(blocks_per_step, len(chunks), blocks_per_step)):
            rows = np.concatenate([np.arange(starts[b], starts[b + 1]) for b in sorted(group)])
            batches = [rows]
            if batch_size is not None and batch_size < len(rows):
                drawn = rows[generator.permutation(len(rows))]
                batches = np.split(drawn, range(batch_size, len(rows), batch_size))
            for batch in batches:
                loss, grads = xs.mlp_loss_and_grad(params, X[batch], y[batch])
                params, state = optimizer.update(params, grads, state)
                losses.append(float(loss))
    return params, losses


@pytest.mark.parametrize("batch_size", [None, 6, 12])
def test_groups_of_blocks_in_a_shuffled_order(batch_size, problem):
    params, X, y = problem
    chunks, optimizer = (7, 9, 1, 12, 5, 8, 5), xs.sgd(0.1, 0.9)
    desired, losses = by_hand(params, X, y, optimizer, 3, chunks, 3, batch_size, 8)
    got = xd.train(
        params, lazy(X, chunks), lazy(y, chunks), optimizer=optimizer, epochs=3, batch_size=batch_size,
        blocks_per_step=3, rng=8,
    )  # fmt: skip
    np.testing.assert_allclose(got.history["loss"], losses, rtol=1e-12)
    np.testing.assert_allclose(flat(got.params), flat(desired), rtol=1e-10)


def test_a_minibatch_goes_over_8_blocks_if_nothing_is_said(problem):
    params, X, y = problem
    options = {"optimizer": xs.sgd(0.1), "epochs": 2, "batch_size": 6, "rng": 3}
    held = lazy(X, 4), lazy(y, 4)
    got = xd.train(params, *held, **options)
    assert got.history == xd.train(params, *held, blocks_per_step=8, **options).history
    assert got.state.blocks == ((4,) * 11 + (3,), 8)


def test_blocks_are_read_once_an_epoch_and_labels_looked_at_once(problem, tmp_path):
    params, X, y = problem
    held = seen(X, tmp_path / "X"), seen(y, tmp_path / "y")
    options = {"optimizer": xs.sgd(0.1), "epochs": 3, "rng": 3}
    xd.train(params, *held, batch_size=4, blocks_per_step=2, **options)
    assert set(Counter(lines(tmp_path / "X")).values()) == {3}
    assert len(lines(tmp_path / "y")) == 4 * 5
    (tmp_path / "X").unlink()
    xd.train(params, *held, **options)
    assert set(Counter(lines(tmp_path / "X")).values()) == {3}
    (tmp_path / "X").unlink()
    xd.train(params, *held, batch_size=4, **options)  # all five blocks stay
    assert set(Counter(lines(tmp_path / "X")).values()) == {1}


def test_labels_are_looked_at_before_the_first_step_and_never_again(problem, monkeypatch):
    params, X, y = problem
    looks = []
    are_sound = loss_problem._are_sound
    monkeypatch.setattr(loss_problem, "_are_sound", lambda *args: looks.append(1) or are_sound(*args))
    counts = []
    for epochs in (1, 4):
        looks.clear()
        held = lazy(X, CHUNKS["even"]), lazy(y, CHUNKS["even"])
        xd.train(params, *held, optimizer=xs.sgd(0.1), epochs=epochs, validation=held, ignore_index=-1)
        counts.append(len(looks))
    assert counts[0] == counts[1] == 2 * (1 + 5)  # blocks without rows, by the client; then each block


def test_16_bit_parameters_are_trained_in_float32(problem):
    params, X, y = problem
    params = tuple(xs.Layer(*(array.astype("f2") for array in layer)) for layer in params)
    X = X.astype("f2")
    options = {"optimizer": xs.adam(1e-4), "epochs": 3, "rng": 3}
    held = lazy(X, CHUNKS["even"]), lazy(y, CHUNKS["even"])
    got = xd.train(params, *held, batch_size=10, validation=held, **options)
    desired = xs.train(params, X, y, batch_size=10, validation=(X, y), **options)
    assert got.params[0].weight.dtype == np.float16
    np.testing.assert_allclose(flat(got.state.params), flat(desired.state.params), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.history["validation_loss"], desired.history["validation_loss"], rtol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_batch_in_which_no_row_counts_makes_no_update(reduction, problem):
    params, X, y = problem
    y[10:20] = -1
    options = {"optimizer": xs.adam(0.01), "epochs": 1, "ignore_index": -1, "reduction": reduction, "reg": 0.1}
    got = xd.train(params, lazy(X, CHUNKS["even"]), y, blocks_per_step=1, rng=0, **options)
    assert sum(np.isnan(got.history["loss"])) == 1
    assert len(got.history["loss"]) == 5
    assert got.state.optimizer[0] == 4


def test_smoothed_rows_of_class_weight_0_add_to_a_sum(problem):
    params, X, y = problem
    y[10:20] = 0
    options = {"class_weight": np.array([0.0, 1.0, 1.0, 1.0]), "label_smoothing": 0.2, "optimizer": xs.sgd(0.05)}
    held = lazy(X, CHUNKS["even"]), lazy(y, CHUNKS["even"])
    for reduction, updates in (("sum", 5), ("mean", 4)):
        got = xd.train(params, *held, blocks_per_step=1, rng=0, epochs=1, reduction=reduction, **options)
        assert got.state.optimizer[0] == updates


@pytest.mark.parametrize("lazily", [True, False])
def test_validation_and_patience(lazily, problem, rng):
    params, X, y = problem
    X_val, y_val = rng.standard_normal((40, D)), rng.integers(0, C, 40)
    y_val[:9] = -1
    validation = (lazy(X_val, (0, 13, 27)), lazy(y_val, 9)) if lazily else (X_val, y_val)
    options = {"optimizer": xs.adam(0.02), "epochs": 60, "rng": 3, "batch_size": 10, "patience": 4, "ignore_index": -1}
    desired = xs.train(params, X, y, validation=(X_val, y_val), **options)
    got = xd.train(params, lazy(X, (20, 27)), lazy(y, (20, 27)), validation=validation, **options)
    assert len(got.history["validation_loss"]) == len(desired.history["validation_loss"]) < 60
    for key, values in desired.history.items():
        np.testing.assert_allclose(got.history[key], values, rtol=1e-9)
    np.testing.assert_allclose(flat(got.params), flat(desired.params), rtol=1e-9, atol=1e-12)
    assert not np.array_equal(flat(got.params), flat(got.state.params))


def test_a_bad_validation_label(problem):
    params, X, y = problem
    held = lazy(X, CHUNKS["even"]), lazy(y, CHUNKS["even"])
    bad = y.copy()
    bad[44] = 7
    with pytest.raises(ValueError, match=r"^validation\[1\] must be labels from 0 to .*, got 7 at row 44\."):
        xd.train(params, *held, optimizer=xs.sgd(0.1), epochs=1, validation=(held[0], lazy(bad, 6)))


@pytest.mark.parametrize("batch_size", [None, 6])
@pytest.mark.parametrize("stop", [0, 2, 3, 4, 9, 10, 13])
def test_a_stopped_training_resumes_to_the_same_bits(stop, batch_size, problem):
    params, X, y = problem
    held = lazy(X, (7, 9, 1, 12, 5, 8, 5)), lazy(y, (7, 9, 1, 12, 5, 8, 5))
    options = {"optimizer": xs.adamw(0.05), "epochs": 6, "batch_size": batch_size, "blocks_per_step": 3,
               "validation": held}  # fmt: skip
    whole = xd.train(params, *held, rng=3, **options)
    first = xd.train(params, *held, rng=3, callback=lambda step: step.step == stop, **options)
    assert len(first.history["loss"]) == stop + 1
    second = xd.train(params, *held, rng=99, resume=pickle.loads(pickle.dumps(first.state)), **options)
    assert second.history == whole.history
    assert flat(second.params).tobytes() == flat(whole.params).tobytes()
    assert second.state.rng == whole.state.rng


def test_a_state_of_other_blocks(problem):
    params, X, y = problem
    options = {"optimizer": xs.sgd(0.1), "epochs": 1, "batch_size": 6, "rng": 3}
    state = xd.train(params, lazy(X, 10), y, **options).state
    for chunks, more in ((9, {}), (10, {"blocks_per_step": 2})):
        with pytest.raises(ValueError, match=r"^X must have the blocks of the training that is resumed"):
            xd.train(params, lazy(X, chunks), y, resume=state, **options, **more)
    with pytest.raises(ValueError, match=r"^X must have the blocks of the training that is resumed"):
        xs.train(params, X, y, resume=state, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, r"^batch_size must be at least 1, got 0"),
        ({"blocks_per_step": 0}, ValueError, r"^blocks_per_step must be at least 1, got 0"),
        ({"epochs": 0}, ValueError, r"^epochs must be at least 1, got 0"),
        ({"optimizer": "sgd"}, TypeError, r"^optimizer must be made by"),
        ({"patience": 2}, ValueError, r"^patience must be None without validation data"),
        ({"rng": "seed"}, TypeError, r"^rng must be what"),
    ],
)
def test_options_of_training(options, error, message, problem):
    params, X, y = problem
    with pytest.raises(error, match=message):
        xd.train(params, lazy(X, 10), y, **({"optimizer": xs.sgd(0.1), "epochs": 1} | options))


def test_no_rows_at_all(problem):
    params, *_ = problem
    with pytest.raises(ValueError, match=r"^X must have at least one row, got none\."):
        xd.train(params, da.zeros((0, D)), da.zeros(0, dtype=int), optimizer=xs.sgd(0.1), epochs=1)


def test_divergence_keeps_what_was_before(problem):
    params, X, y = problem
    order = np.random.default_rng(1).permutation(5)
    bad = slice(10 * order[2], 10 * order[2] + 10)
    X[bad] = 1e308 * np.sign(X[bad])
    with np.errstate(all="raise"), pytest.raises(xs.DivergenceError, match="got nan at step 2") as caught:
        xd.train(params, lazy(X, CHUNKS["even"]), y, optimizer=xs.sgd(0.1), epochs=3, blocks_per_step=1, rng=1)
    assert caught.value.step == len(caught.value.result.history["loss"])
    assert np.isfinite(flat(caught.value.result.params)).all()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("batch_size", [None, 10])
def test_the_first_row_of_inputs_that_are_not_finite_is_named(batch_size, known, problem):
    """A row of all, also where the sizes of the blocks are not known, since they are counted."""
    params, X, y = problem
    X[[17, 44], 1] = np.nan
    chunked = lazy if known else of_unknown_sizes
    held = chunked(X, CHUNKS["empty"]), chunked(y, CHUNKS["empty"])
    options = {"optimizer": xs.sgd(0.1), "epochs": 2, "batch_size": batch_size, "rng": 3}
    with pytest.raises(xs.DivergenceError, match=r"^X must be finite, got nan at row 17\. The loss became nan at step"):
        xd.train(params, *held, **options)
    weight = np.ones(N)
    weight[17] = 0.0
    with pytest.raises(xs.DivergenceError, match=r"^X must be finite, got nan at row 44\. The loss became nan at step"):
        xd.train(params, *held, sample_weight=chunked(weight, CHUNKS["empty"]), **options)


@pytest.mark.parametrize("where", ["blocks", "unknown blocks", "memory"])
@pytest.mark.parametrize("validate", [True, False])
def test_validation_inputs_that_are_not_finite(validate, where, problem):
    params, X, y = problem
    bad = X.copy()
    bad[[40, 45]] = np.inf
    chunked = {"blocks": lazy, "unknown blocks": of_unknown_sizes, "memory": lambda array, _: array}[where]
    validation = chunked(bad, CHUNKS["empty"]), chunked(y, CHUNKS["empty"])
    options = {"optimizer": xs.sgd(0.1), "epochs": 1, "validate": validate, "ignore_index": -1}
    with pytest.raises(ValueError, match=r"^validation\[0\] must be finite, got inf at row 40\."):
        xd.train(params, lazy(X, 10), lazy(y, 10), validation=validation,
                 callback=lambda step: pytest.fail("a step was made"), **options)  # fmt: skip
    ignored = y.copy()
    ignored[[40, 45]] = -1
    validation = validation[0], chunked(ignored, CHUNKS["empty"])
    assert len(xd.train(params, lazy(X, 10), lazy(y, 10), validation=validation, **options).history["loss"]) == 1


@pytest.mark.parametrize("lazily", [True, False])
def test_a_validation_loss_that_is_not_finite_is_a_divergence(lazily, problem):
    params, X, y = problem
    large = np.sign(X) * 1e308
    validation = (lazy(large, 10), lazy(y, 10)) if lazily else (large, y)
    message = r"^validation loss must be finite in training, got nan after step 0\. A smaller learning rate may help\."
    with pytest.raises(xs.DivergenceError, match=message) as caught:
        xd.train(params, lazy(X, 10), lazy(y, 10), optimizer=xs.sgd(0.1), epochs=3, validation=validation, patience=1)
    assert (caught.value.result.state.epoch, caught.value.result.state.step) == (0, 1)


def test_a_cluster_that_is_lost_while_the_cause_is_looked_for(problem, monkeypatch):
    params, X, y = problem
    X[3] = np.nan

    def lost(*args):
        raise xd.ClusterError("for the test.")

    monkeypatch.setattr(_partition_training, "check_all_blocks", lost)
    with pytest.raises(xs.DivergenceError, match=r"^loss must be finite in training, got nan at step 0\."):
        xd.train(params, lazy(X, 10), lazy(y, 10), optimizer=xs.sgd(0.1), epochs=1)


@pytest.mark.parametrize("known", [True, False])
def test_a_row_that_has_no_class(known, problem):
    params, X, _ = problem
    X[30] = np.nan
    held = (lazy if known else of_unknown_sizes)(X, CHUNKS["empty"])
    labels = xd.mlp_predict(params, held, validate=False, max_memory=1000)
    desired = xs.mlp_predict(params, X, validate=False)
    assert desired[30] == -1
    np.testing.assert_array_equal(labels.compute(), desired)
    place = "row 30" if known else "block 4, row 17"
    with pytest.raises(ValueError, match=rf"^X must have logits without nan in every row, got nan at {place}\. With"):
        xd.mlp_predict(params, held).compute()


def test_options_of_predictions(problem):
    params, X, _ = problem
    with pytest.raises(TypeError, match=r"^validate must be True or False, got 2\."):
        xd.mlp_predict(params, lazy(X, 10), validate=2)
    with pytest.raises(ValueError, match=r"^max_memory must be at least \d+ bytes, what one row needs, got 5\."):
        xd.mlp_predict(params, lazy(X, 10), max_memory=5)


def test_ctrl_c_returns_what_was_learnt(problem):
    params, X, y = problem

    def callback(step):
        if step.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    got = xd.train(params, lazy(X, 10), y, optimizer=xs.sgd(0.1), epochs=9, batch_size=9, callback=callback, rng=0)
    assert len(got.history["loss"]) == 5


@pytest.mark.parametrize("where", ["X", "validation"])
def test_ctrl_c_gives_up_a_step_that_is_waited_for(where, problem, tmp_path):
    """Nothing of it is kept, and going on gives the same bits."""
    params, X, y = problem
    held = lazy(X, CHUNKS["even"]), lazy(y, CHUNKS["even"])
    options = {"optimizer": xs.adam(0.01), "epochs": 4, "blocks_per_step": 2, "rng": 0}
    desired = xd.train(params, *held, validation=held, **options)
    stopping = held[0].map_blocks(
        blocks.interrupted_once, str(tmp_path / "seen"), X[10, 0], dtype=X.dtype, meta=X[:0]
    )  # fmt: skip
    data = (stopping, held[0]) if where == "X" else (held[0], stopping)
    got = xd.train(params, data[0], held[1], validation=(data[1], held[1]), **options)
    steps = len(got.history["loss"])
    draws = np.random.default_rng(0)
    order = [draws.permutation(5).tolist() for _ in range(2)][1]
    # Validation data is looked at before the first step.
    ended = 1 if where == "X" else 0
    assert steps == (3 + order.index(1) // 2 if where == "X" else 3)
    assert got.history.get("validation_loss", []) == desired.history["validation_loss"][:ended]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = xd.train(params, *held, validation=held, resume=got.state, **options)
    assert again.history == desired.history
    assert flat(again.params).tobytes() == flat(desired.params).tobytes()


def test_progress(problem, capsys):
    pytest.importorskip("tqdm")
    params, X, y = problem
    xd.train(params, lazy(X, 10), y, optimizer=xs.sgd(0.1), epochs=2, batch_size=12, rng=0, progress=True)
    assert "8/8" in capsys.readouterr().err


# --- the classifier ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_classifier_learns_what_it_learns_in_memory(
    name, weighted, known, classifier, problem, rng, ignore_warnings
):
    """In the order of the rows, over as many blocks as a step takes: the same steps."""
    _, X, y = problem
    y = np.array(["north", "east", "south", "west"])[y]
    weight = rng.random(N) if weighted else None
    cut = lazy if known else of_unknown_sizes
    held = [array if array is None else cut(array, CHUNKS["empty"]) for array in (X, y, weight)]
    desired = classifier(**CLASSIFIER, **MODELS[name]).fit(X, y, weight)
    got = classifier(**CLASSIFIER, **MODELS[name]).fit(*held)
    np.testing.assert_allclose(got.loss_curve_, desired.loss_curve_, rtol=1e-10)
    np.testing.assert_allclose(flat(got.params_), flat(desired.params_), rtol=1e-6, atol=1e-8)
    assert got.n_features_in_ == D
    assert got.classes_.tolist() == desired.classes_.tolist()
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        lazily = getattr(got, method)(held[0])
        assert isinstance(lazily, da.Array)
        in_memory = getattr(got, method)(X)
        assert lazily.dtype == in_memory.dtype
        if method == "predict":
            assert lazily.compute().tolist() == in_memory.tolist()
        else:
            np.testing.assert_allclose(lazily.compute(), in_memory, rtol=1e-12)
    assert got.score(held[0], held[1], held[2]) == pytest.approx(desired.score(X, y, weight), rel=1e-12)


def test_the_classifier_over_groups_of_shuffled_blocks(classifier, rng, ignore_warnings):
    X = rng.standard_normal((400, 2)).astype("f4")
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    held = lazy(X, 40), lazy(y, 50)
    options = {"hidden_layer_sizes": (16,), "learning_rate_init": 0.02, "batch_size": 40, "max_iter": 60}
    model = classifier(**options, random_state=0).fit(*held)
    assert model.coefs_[0].dtype == np.float32
    assert model.score(*held) > 0.9
    again = classifier(**options, random_state=0).fit(*held)
    assert flat(again.params_).tobytes() == flat(model.params_).tobytes()
    assert model.t_ == 60 * 400
    before = flat(model.params_).copy()
    model.partial_fit(*held)
    assert len(model.loss_curve_) == 61
    assert not np.array_equal(flat(model.params_), before)


def test_the_classifier_stops_early(classifier, rng, ignore_warnings):
    X, y = rng.standard_normal((300, 4)), rng.integers(0, 3, 300)
    held = lazy(X, 40), lazy(y, 40)
    model = classifier(max_iter=500, early_stopping=True, n_iter_no_change=3, random_state=0).fit(*held)
    assert model.n_iter_ < 500
    assert max(model.validation_scores_) == model.best_validation_score_
    scores = [round(score * 30) for score in model.validation_scores_]
    np.testing.assert_allclose(np.array(scores) / 30, model.validation_scores_)  # of a tenth of the rows


def test_the_classifier_on_data_frames(classifier, problem, ignore_warnings):
    pandas = pytest.importorskip("pandas")
    frames = pytest.importorskip("dask.dataframe")
    _, X, y = problem
    columns = list("abcde")
    frame = pandas.DataFrame(X, columns=columns).assign(b=lambda f: (10 * f.b).astype(int), label=y)
    held = frames.from_pandas(frame, npartitions=5)
    desired = classifier(**CLASSIFIER).fit(frame[columns], frame.label)
    got = classifier(**CLASSIFIER).fit(held[columns], held.label)
    assert got.feature_names_in_.tolist() == columns
    np.testing.assert_allclose(flat(got.params_), flat(desired.params_), rtol=1e-6, atol=1e-8)
    assert got.predict(held[columns]).compute().tolist() == got.predict(frame[columns]).tolist()
    assert got.score(held[columns], held.label) == got.score(frame[columns], frame.label)
    with pytest.raises(ValueError, match="feature names"):
        got.predict(held[columns[::-1]])
    with pytest.raises(ValueError, match=r"^X must have columns of numbers, got b \((str|object|string).*\)\.$"):
        classifier().fit(frames.from_pandas(frame.assign(b="x"), npartitions=2)[columns], y)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_ctrl_c_while_the_classifier_waits(solver, early_stopping, classifier, rng, tmp_path, monkeypatch):
    begun, ended = [], []
    of_batch = _partition_training.BlockSteps.of_batch

    def watched(*args):
        begun.append(args)
        found = of_batch(*args)
        ended.append(found)
        return found

    monkeypatch.setattr(_partition_training.BlockSteps, "of_batch", watched)
    X, y = rng.standard_normal((N, D)), rng.integers(0, 2, N)
    stopping = lazy(X, 5).map_blocks(
        blocks.interrupted_once, str(tmp_path / "seen"), X[0, 0], dtype=X.dtype, meta=X[:0]
    )  # fmt: skip
    model = classifier(solver=solver, max_iter=50, batch_size=N // 2, early_stopping=early_stopping, random_state=0)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.fit(stopping, y)
    in_step, in_validation = len(begun) - len(ended), model.n_iter_ - len(model.validation_scores_ or [])
    assert in_step + (in_validation if model.validation_scores_ is not None else 0) == 1
    assert np.isfinite(flat(model.params_)).all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_classifier_on_columns_that_become_objects(classifier, problem, ignore_warnings):
    """Columns of bool beside others, and columns that may lack values: arrays of them have no dtype of numbers."""
    pandas = pytest.importorskip("pandas")
    frames = pytest.importorskip("dask.dataframe")
    _, X, y = problem
    plain = pandas.DataFrame(X, columns=list("abcde")).assign(b=lambda f: f.b > 0)
    for frame in (plain, plain.astype({"a": "Float64", "b": "boolean"})):
        held = frames.from_pandas(frame, npartitions=5)
        got, desired = classifier(**CLASSIFIER).fit(held, y), classifier(**CLASSIFIER).fit(frame, y)
        np.testing.assert_allclose(flat(got.params_), flat(desired.params_), rtol=1e-6, atol=1e-8)
        assert got.predict(held).compute().tolist() == desired.predict(frame).tolist()


def test_what_the_classifier_refuses(classifier, problem):
    _, X, y = problem
    held = lazy(X, 10), lazy(y, 10)
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[47, 46\]"):
        classifier().fit(held[0], held[1][:46])
    with pytest.raises(TypeError, match=r"^y must be labels \(N,\) for dask arrays, got shape \(47, 4\)"):
        classifier().fit(held[0], da.ones((N, C)))
    with pytest.raises(TypeError, match=r"^y and sample_weight must be in memory if X is, got one of dask"):
        classifier().fit(X, held[1])
    with pytest.raises(ValueError, match=r"^sample_weight must let a row count, got weights that are all zero"):
        classifier().fit(*held, da.zeros(N))
    model = classifier(hidden_layer_sizes=(), solver="lbfgs", max_iter=3)
    for options in ({}, {"early_stopping": True, "validation_fraction": 0.5}, {"solver": "lbfgs"}):
        for bad, word in ((np.nan, "NaN"), (-np.inf, "-infinity")):
            holes = X.copy()
            holes[33, 2] = bad
            with pytest.raises(ValueError, match=rf"^X must be finite, got {word} at row 33, column 2"):
                classifier(max_iter=2, **options).fit(lazy(holes, 10), y)
    with pytest.raises(ValueError, match=r"^Solver produced non-finite parameter weights, and"):
        classifier(max_iter=2, solver="sgd", learning_rate_init=1e300).fit(held[0] * 1e9, y)
    with pytest.warns(match="lbfgs failed to converge"):
        model.fit(*held)
    with pytest.raises(ValueError, match=r"X has 3 features, but MLPClassifier is expecting 5"):
        model.predict(da.ones((N, 3)))
    with pytest.raises(ValueError, match=r"^X must be of real numbers, got complex128"):
        model.fit(held[0] * 1j, held[1])
    holes = X.copy()
    holes[-1, 2] = np.nan
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        predicted = getattr(model, method)(lazy(holes, 10))
        assert predicted.blocks[0].compute().shape[0] == 10
        with pytest.raises(ValueError, match=r"^X must be finite, got NaN at row 46, column 2"):
            predicted.compute()
        some = lazy(holes, 10)
        some = some[da.ones(N, chunks=10, dtype=bool)]  # which does not know how many rows a block has
        with pytest.raises(ValueError, match=r"^X must be finite, got NaN at row 6, column 2 of a block"):
            getattr(model, method)(some).compute()
        far = X.copy()
        far[21] = 1e308
        model.coefs_ = [100.0 * np.abs(weight) for weight in model.coefs_]
        with pytest.raises(ValueError, match=r"^X must have products with the weights that are finite .* at row 21\."):
            getattr(model, method)(lazy(far, 10)).compute()


# --- a cluster --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", ["even", "empty"])
def test_a_cluster_gives_the_bits_of_threads(chunks, client, problem, rng):
    params, X, y = problem
    weight = rng.random(N)
    held = [lazy(array, CHUNKS[chunks]) for array in (X, y, weight)]
    lazily = xd.mlp_loss_and_grad(params, *held[:2], sample_weight=held[2], reg=0.1)
    actual = dask.compute(*lazily)
    assert_same_bits(actual, dask.compute(*lazily, scheduler=dask.threaded.get))
    assert_equal_to(actual, xs.mlp_loss_and_grad(params, X, y, sample_weight=weight, reg=0.1))
    np.testing.assert_array_equal(xd.mlp_predict(params, held[0]).compute(), xs.mlp_predict(params, X))


def test_parameters_reach_a_worker_once(client, problem, tmp_path):
    params, X, y = problem
    path = tmp_path / "probe"
    held = seen(X, tmp_path / "X", 1), lazy(y, 1)
    z_loss = blocks.Probe(0.25, str(path))
    loss, grads = xd.mlp_loss_and_grad(params, *held, z_loss=z_loss)
    dask.compute(loss, grads)
    workers = {line.split()[0] for line in lines(tmp_path / "X")}
    assert len(workers) == 2  # both had blocks to do
    arrived = Counter(lines(path))
    assert {arrived[worker] for worker in workers} == {1}
    assert set(arrived) - workers <= {str(os.getpid())}  # the scheduler, which is here


def test_a_bad_label_on_a_cluster(client, problem):
    params, X, y = problem
    y[33] = 9
    with pytest.raises(ValueError, match=r"^targets must be labels .* got 9 at row 33\.$"):
        xd.mlp_loss(params, lazy(X, 10), lazy(y, 10)).compute()


@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_worker_that_is_killed_changes_nothing(batch_size, client, problem, tmp_path):
    params, X, y = problem
    options = {"optimizer": xs.adam(0.01), "epochs": 3, "batch_size": batch_size, "rng": 3, "blocks_per_step": 3}
    chunks = CHUNKS["even"]
    desired = xd.train(params, lazy(X, chunks), lazy(y, chunks), **options)
    path = tmp_path / "killed"
    mortal = lazy(X, chunks).map_blocks(blocks.killing, X[30, 0], str(path), dtype=X.dtype, meta=X[:0])
    before = {worker["pid"] for worker in client.run(lambda: {"pid": os.getpid()}).values()}
    got = xd.train(params, mortal, lazy(y, chunks), **options)
    assert path.exists()
    client.wait_for_workers(2)
    after = {worker["pid"] for worker in client.run(lambda: {"pid": os.getpid()}).values()}
    assert len(before & after) == 1  # one of the two is another one now
    assert got.history == desired.history
    assert flat(got.params).tobytes() == flat(desired.params).tobytes()


def test_workers_may_come_between_steps_and_go(client, cluster, problem):
    """Blocks that are held by a worker that goes are computed again by the other."""
    params, X, y = problem
    options = {"optimizer": xs.adam(0.01), "epochs": 3, "batch_size": 8, "rng": 3}
    held = lazy(X, 10), lazy(y, 10)
    desired = xd.train(params, *held, **options)

    gone = {}

    def callback(step):
        if step.step == 5:
            # Asked of the scheduler now: what the client knows of the workers may be two seconds old.
            holding = [worker for worker, keys in client.has_what().items() if keys]
            before = client.run(os.getpid)
            gone[before[holding[0]]] = len(client.has_what()[holding[0]])
            client.restart_workers(holding[:1], timeout=STARTING)
            # It returns as soon as there are two workers, also if the old one is not known to be gone yet.
            both_started(client, cluster)

    got = xd.train(params, *held, callback=callback, **options)
    ((pid, blocks_held),) = gone.items()
    assert blocks_held > 0
    assert pid not in client.run(os.getpid).values()
    assert got.history == desired.history
    assert flat(got.params).tobytes() == flat(desired.params).tobytes()


def test_large_parameters_do_not_warn_in_training(client, rng):
    params = xs.init_params((1200, 1200, 3), rng=rng)  # 11 MiB in each graph
    X, y = rng.standard_normal((30, 1200)), rng.integers(0, 3, 30)
    got = xd.train(params, lazy(X, 10), lazy(y, 10), optimizer=xs.sgd(1e-3), epochs=2)
    assert len(got.history["loss"]) == 2


def test_large_data_in_the_graph_warns(client, rng):
    """It would be sent with each step."""
    params, X, y = xs.init_params((64, 3), rng=rng), rng.standard_normal((30_000, 64)), rng.integers(0, 3, 30_000)
    with pytest.warns(UserWarning, match="Sending large graph of size 14"):
        xd.train(params, lazy(X, 5000), y, optimizer=xs.sgd(0.1), epochs=1)


@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_scheduler_that_is_lost(batch_size, problem):
    """The error has what was learnt, and a state that goes on to the same bits on another scheduler."""
    params, X, y = problem
    held = lazy(X, 10), lazy(y, 10)
    options = {"optimizer": xs.adam(0.01), "epochs": 4, "batch_size": batch_size, "rng": 3, "validation": held}
    desired = xd.train(params, *held, **options)
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, **ANY_PORT) as local,
        distributed.Client(local),
        pytest.raises(
            xd.ClusterError, match=r"^the cluster must outlive .* after 3 steps: the client is closed\."
        ) as lost,
    ):
        xd.train(params, *held, callback=lambda step: local.close() if step.step == 2 else None, **options)
    assert isinstance(lost.value, ConnectionError)
    result = pickle.loads(pickle.dumps(lost.value)).result
    assert result.history["loss"] == desired.history["loss"][:3]
    again = xd.train(params, *held, resume=result.state, **options)
    assert again.history == desired.history
    assert flat(again.params).tobytes() == flat(desired.params).tobytes()


def test_no_worker_is_left(problem):
    params, X, y = problem
    options = {"optimizer": xs.adam(0.01), "epochs": 3, "batch_size": 8, "rng": 3}
    held = lazy(X, 10), lazy(y, 10)

    def callback(step):
        if step.step == 2:
            local.scale(0)

    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": "1s"}),
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, **ANY_PORT) as local,
        distributed.Client(local),
        pytest.raises(xd.ClusterError, match=r"lost after \d+ steps: NoWorkerError: ") as lost,
    ):
        xd.train(params, *held, callback=callback, **options)
    desired = xd.train(params, *held, **options)
    again = xd.train(params, *held, resume=lost.value.result.state, **options)
    assert again.history == desired.history
    assert flat(again.params).tobytes() == flat(desired.params).tobytes()


def test_workers_that_are_lost_before_the_first_step_or_by_the_classifier(classifier, problem):
    params, X, y = problem
    y[20] = C - 1
    y[[0, 10, 30, 40]] = 0
    mortal_X = lazy(X, 10).map_blocks(blocks.killing, X[20, 0], dtype=X.dtype, meta=X[:0])
    mortal_y = lazy(y, 10).map_blocks(blocks.killing, C - 1, dtype=y.dtype, meta=y[:0])
    message = r"^the cluster must outlive the training, but it was lost: KilledWorker: .* Nothing has been changed\.$"
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),  # the scheduler reads it when it starts
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, **ANY_PORT) as local,
        distributed.Client(local) as client,
    ):
        both_started(client, local)
        with pytest.raises(xd.ClusterError, match=message) as lost:
            xd.train(params, lazy(X, 10), mortal_y, optimizer=xs.sgd(0.1), epochs=1)
        assert pickle.loads(pickle.dumps(lost.value)).result is None
        both_started(client, local)
        with pytest.raises(xd.ClusterError, match=message):
            classifier().fit(mortal_X, y)
        both_started(client, local)


INTERRUPTED = """
    import pathlib
    import dask.array as da, numpy as np
    import xpsoftmax as xs, xpsoftmax.dask as xd
    from dask_blocks import interrupting
    from distributed import Client, LocalCluster

    path = pathlib.Path(__file__).with_name("now")

    def ctrl_c(step):
        if step.step == 3:
            path.touch()

    if __name__ == "__main__":
        rng = np.random.default_rng(0)
        X = da.from_array(rng.standard_normal((80, 3)), chunks=(10, 3))
        y, params = rng.integers(0, 3, 80), xs.init_params((3, 5, 3), rng=0)
        options = {"optimizer": xs.adam(0.01), "epochs": 8, "rng": 0}
        waited = X.map_blocks(interrupting, str(path), dtype=X.dtype, meta=X._meta)
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster):
            result = xd.train(params, waited, y, callback=ctrl_c, **options)
        whole = xd.train(params, X, y, **options)
        again = xd.train(params, X, y, resume=result.state, **options)
        same = all(a.weight.tobytes() == b.weight.tobytes() for a, b in zip(again.params, whole.params))
        print(len(result.history["loss"]), again.history == whole.history, same)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a terminal")
def test_ctrl_c_of_a_terminal_which_ends_the_workers_too(tmp_path):
    """No step would ever end: the one that is waited for is given up, and what was before it is returned."""
    path = tmp_path / "interrupted.py"
    path.write_text(textwrap.dedent(INTERRUPTED))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    running = subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        stdout, _ = running.communicate(timeout=90)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert stdout.split() == ["4", "True", "True"]


def test_a_scheduler_process_that_is_killed(problem, tmp_path):
    params, X, y = problem
    file = tmp_path / "scheduler.json"
    shared = ["--scheduler-file", str(file), "--no-dashboard"]
    commands = [
        ["dask_scheduler", "--port", "0", "--host", "127.0.0.1"],
        ["dask_worker", "--nthreads", "1", "--no-nanny"],
    ]
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    running = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{name}", *options, *shared],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path,
        )
        for name, *options in commands
    ]  # fmt: skip

    def callback(step):
        if step.step == 2:
            running[0].kill()
            running[0].wait()

    try:
        with distributed.Client(scheduler_file=str(file), timeout=30) as client:
            client.wait_for_workers(1)
            with pytest.raises(xd.ClusterError) as lost:
                xd.train(
                    params, lazy(X, 10), y, optimizer=xs.sgd(0.1), epochs=9, batch_size=8, callback=callback, rng=0
                )
        assert len(lost.value.result.history["loss"]) >= 3
    finally:
        for process in running:
            process.kill()
            process.wait()


# --- more data than memory --------------------------------------------------------------------------------------------

STREAMED = """
    import resource, sys
    import dask, dask.array as da, numpy as np
    import xpsoftmax as xs, xpsoftmax.dask as xd
    from dask_blocks import from_file

    def data(path, rows, width, step):
        load = dask.delayed(from_file)
        parts = [load(path, start, start + step) for start in range(0, rows, step)]
        arrays = [da.from_delayed(part, (step, width), "f4", meta=np.empty((0, width), "f4")) for part in parts]
        return da.concatenate(arrays), da.arange(rows, chunks=step) % 10

    def work(X, y):
        params = xs.init_params((X.shape[1], 32, 10), rng=0, dtype="f4")
        loss, grads = dask.compute(*xd.mlp_loss_and_grad(params, X, y))
        labels = (xd.mlp_predict(params, X) == y).sum().compute()
        options = {"optimizer": xs.sgd(0.1), "epochs": 1, "batch_size": 8000, "rng": 0, "blocks_per_step": 4}
        result = xd.train(params, X, y, validation=(X, y), **options)
        full = xd.train(params, X, y, optimizer=xs.sgd(0.1), epochs=2)
        print(float(loss), int(labels), *result.history["validation_loss"], *full.history["loss"])
"""
ROWS, WIDTH, STEP = 160_000, 1024, 4000  # 625 MiB in blocks of 16 MiB


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "X.npy"
    file = np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, WIDTH))
    part = np.random.default_rng(0).standard_normal((STEP, WIDTH)).astype("f4")
    for start in range(0, ROWS, STEP):
        file[start : start + STEP] = np.roll(part, start // STEP, axis=1)
    file.flush()
    del file
    yield path
    path.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_threads_stream_data_within_a_limit_on_memory(large_file):
    """Within 400 MiB beside what imports and threads take; the file has 625."""
    program = textwrap.dedent(STREAMED) + textwrap.dedent(f"""
        X, y = data({str(large_file)!r}, {ROWS}, {WIDTH}, {STEP})
        with open("/proc/self/status") as file:
            used = next(int(line.split()[1]) for line in file if line.startswith("VmData")) * 1024
        limit = used + 400 * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # a file that is mapped does not count
        with dask.config.set(scheduler="threads", num_workers=2):
            try:
                np.array(np.load({str(large_file)!r}, mmap_mode="r"))
            except MemoryError:
                work(X, y)
    """)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert_streamed(done.stdout)


def assert_streamed(text):
    loss, right, *losses = map(float, text.split())
    assert 1.0 < loss < 5.0
    assert 0 < right < ROWS
    assert losses[1] == loss  # of the first full step
    assert losses[2] < losses[1]
    assert len(losses) == 3


def test_workers_stream_data_within_their_limit_on_memory(large_file):
    """A nanny kills a worker beyond its limit, 400 MiB here, of which 150 are taken by the process itself."""
    program = textwrap.dedent(STREAMED) + textwrap.dedent(f"""
        from distributed import Client, LocalCluster
        if __name__ == "__main__":
            with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="400 MiB", **{ANY_PORT}) as cluster:
                with Client(cluster) as client:
                    pids = lambda dask_worker: dask_worker.nanny and __import__("os").getpid()
                    before = client.run(pids)
                    work(*data({str(large_file)!r}, {ROWS}, {WIDTH}, {STEP}))
                    assert client.run(pids) == before, "a worker was killed"
    """)
    path = large_file.with_name("stream.py")
    path.write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env=environment, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert_streamed(done.stdout)
