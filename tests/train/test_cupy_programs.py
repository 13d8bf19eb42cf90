"""Steps as programs: the same trainings as step by step on NumPy.

On the stand-in CuPy (nox -s stand_in) the programs are run by NumPy's formulas, and what is around them is tested. On a
GPU they are captured. What the CUDA backend makes of the operations: tests/kernels/test_cuda_steps.py.
"""

from __future__ import annotations

import gc
import importlib
import pickle
import signal
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from program_reference import ReferenceRunner, is_within

import xpsoftmax as xs
from xpsoftmax._train.loop import Loop
from xpsoftmax._train.optimizers import VelocitySgd
from xpsoftmax._train.programmed import ProgrammedSteps
from xpsoftmax._train.programs import ALIGNMENT
from xpsoftmax.kernels.activations import ACTIVATIONS

ROWS, FEATURES, CLASSES = 23, 6, 4
OPTIMIZERS = {
    "sgd": lambda: xs.sgd(0.3),
    "momentum": lambda: xs.sgd(0.1, 0.9),
    "nesterov": lambda: xs.sgd(0.1, 0.9, nesterov=True),
    "momentum 0": lambda: xs.sgd(0.1, 0.0, nesterov=False),
    "nesterov velocity": lambda: VelocitySgd(0.1, 0.9, nesterov=True),
    "velocity without momentum": lambda: VelocitySgd(0.1, 0.0, nesterov=True),
    "velocity": lambda: VelocitySgd(0.1, 0.9, nesterov=False),
    "adam": lambda: xs.adam(0.05),
    "adamw": lambda: xs.adamw(0.05, weight_decay=0.1),
}


@pytest.fixture
def cp():
    cupy = sys.modules.get("cupy")
    if cupy is None or not hasattr(cupy, "cuda"):
        pytest.skip("neither CuPy nor what stands in for it is here: nox -s stand_in")
    if getattr(cupy, "stands_in", False):
        ReferenceRunner.latest.clear()
        ReferenceRunner.runs = ReferenceRunner.made = ReferenceRunner.entered = 0
    elif not cupy.cuda.is_available():
        pytest.skip("no GPU")
    return cupy


def data(dtype="float64", seed=0, *, soft=False):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(ROWS, FEATURES)).astype(dtype)
    y = rng.dirichlet(np.ones(CLASSES), ROWS).astype(dtype) if soft else rng.integers(CLASSES, size=ROWS)
    return X, y


def trained(xp, params, X, y, *, optimizer, epochs=4, batch_size=5, callback=None, resume=None, copy=True, **options):
    given = {name: xp.asarray(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}
    return xs.train(
        xs.to_namespace(params, xp) if xp is not np else params,
        xp.asarray(X.copy() if copy else X),
        xp.asarray(y),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        rng=3,
        callback=callback,
        resume=resume,
        **given,
    )


def on_host(result):
    return [np.asarray(array.get() if hasattr(array, "get") else array) for layer in result.params for array in layer]


def assert_alike(found, wanted, eps=1e-9):
    np.testing.assert_allclose(found.history["loss"], wanted.history["loss"], rtol=eps)
    for a, b in zip(on_host(found), on_host(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=eps, atol=eps)


STEPS = 4 * 5  # epochs of five batches, the last of them of three rows


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(cp, name):
    params = xs.init_params((FEATURES, 7, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    wanted = trained(np, params, X, y, optimizer=OPTIMIZERS[name]())
    found = trained(cp, params, X, y, optimizer=OPTIMIZERS[name]())
    assert_alike(found, wanted)
    assert found.state.optimizer[0] == STEPS
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == STEPS


@pytest.mark.parametrize("dtype", ["int32", "uint8", "uint64", "int64"])
def test_labels_of_every_dtype(cp, dtype):
    params = xs.init_params((FEATURES, 7, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    y = y.astype(dtype)
    options = {"optimizer": xs.sgd(0.1), "ignore_index": 1}
    assert_alike(trained(cp, params, X, y, **options), trained(np, params, X, y, **options))
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == STEPS


def test_weights_that_are_not_contiguous(cp):
    """Transposed weights, as PyTorch keeps them; the state of a training resumed has them, too."""
    params = xs.init_params((FEATURES, 7, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    wanted = trained(np, params, X, y, optimizer=xs.adam(0.1))
    transposed = [xs.Layer(cp.asarray(layer.weight.T.copy()).T, cp.asarray(layer.bias)) for layer in params]
    options = {"optimizer": xs.adam(0.1), "batch_size": 5, "rng": 3}
    first = xs.train(transposed, cp.asarray(X), cp.asarray(y), epochs=2, **options)
    kept = [tuple(xs.Layer(cp.asarray(a.weight.get().T.copy()).T, a.bias) for a in layers) for layers in
            first.state.optimizer[1:]]  # fmt: skip
    state = first.state._replace(optimizer=(first.state.optimizer[0], *kept))
    assert_alike(xs.train(transposed, cp.asarray(X), cp.asarray(y), epochs=4, resume=state, **options), wanted)
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == STEPS


def test_inputs_that_are_not_contiguous_are_left_to_the_loop(cp):
    params = xs.init_params((FEATURES, 7, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    options = {"optimizer": xs.adam(0.1), "epochs": 4, "batch_size": 5, "rng": 3}
    found = xs.train(xs.to_namespace(params, cp), cp.asarray(X.T.copy()).T, cp.asarray(y), **options)
    assert_alike(found, trained(np, params, X, y, optimizer=xs.adam(0.1)))
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == 0


def weights(n, seed=5):
    given = np.random.default_rng(seed).uniform(0.5, 2, n)
    given[::4] = 0
    return given


@pytest.mark.parametrize(
    "options",
    [
        {"reg": 0.1},
        {"reduction": "sum", "reg": 0.01},
        {"label_smoothing": 0.1},
        {"z_loss": 0.01},
        {"class_weight": np.linspace(0.5, 2, CLASSES)},
        {"class_weight": np.linspace(0.5, 2, CLASSES), "label_smoothing": 0.1},
        {"sample_weight": weights(ROWS), "reg": 0.1},
        {"sample_weight": weights(ROWS), "reduction": "sum"},
        {"ignore_index": 2},
    ],
    ids=lambda options: ", ".join(options),
)
@pytest.mark.parametrize("soft", [False, True])
def test_every_option(cp, options, soft):
    if soft and "ignore_index" in options:
        return
    params = xs.init_params((FEATURES, 7, CLASSES), rng=1, dtype=np.float64)
    X, y = data(soft=soft)
    if "sample_weight" in options:
        X[::4] = np.nan  # rows that weigh nothing may hold anything
    wanted = trained(np, params, X, y, optimizer=xs.sgd(0.02), **options)
    found = trained(cp, params, X, y, optimizer=xs.sgd(0.02), **options)
    assert_alike(found, wanted)
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == STEPS


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("hidden", [(), (5,), (5, 3), (5, 3, 5, 4, 5)])
def test_every_depth_and_activation(cp, activation, hidden):
    params = xs.init_params((FEATURES, *hidden, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    options = {"optimizer": xs.adam(0.05), "activation": activation}
    assert_alike(trained(cp, params, X, y, **options), trained(np, params, X, y, **options))


@pytest.mark.parametrize("batch_size", [1, ROWS, 100])
def test_every_batch_size(cp, batch_size):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    options = {"optimizer": xs.sgd(0.1, 0.5), "batch_size": batch_size}
    assert_alike(trained(cp, params, X, y, **options), trained(np, params, X, y, **options))


def test_parameters_of_16_bits(cp):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float16)
    X, y = data("float16")
    options = {"optimizer": xs.sgd(0.1, 0.5)}
    assert_alike(trained(cp, params, X, y, **options), trained(np, params, X, y, **options), eps=2e-3)


def test_parameters_of_bfloat16(cp):
    """NumPy has none: the same numbers in float32 are trained there."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    X, y = data("float32")
    X = X.astype(bfloat16)
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float32)
    params = [[array.astype(bfloat16) for array in layer] for layer in params]
    of_numpy = [xs.Layer(*(array.astype("float32") for array in layer)) for layer in params]
    wanted = trained(np, of_numpy, X.astype("float32"), y, optimizer=xs.adam(0.02))
    of_cupy = tuple(xs.Layer(*map(cp.asarray, layer)) for layer in params)
    options = {"optimizer": xs.adam(0.02), "epochs": 4, "batch_size": 5, "rng": 3}
    found = xs.train(of_cupy, cp.asarray(X), cp.asarray(y), **options)
    np.testing.assert_allclose(found.history["loss"], wanted.history["loss"], rtol=1e-5)
    for a, b in zip(on_host(found), on_host(wanted), strict=True):
        assert a.dtype == bfloat16
        np.testing.assert_allclose(a.astype("float32"), b, rtol=2**-8)
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == STEPS


def test_batches_in_which_no_row_counts(cp):
    """Their losses are nan, they make no update, and the others are found where they are."""
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    given = np.zeros(ROWS)
    given[[3, 11, 12]] = 1
    options = {"optimizer": xs.adam(0.05), "batch_size": 3, "sample_weight": given, "epochs": 6}
    found, wanted = trained(cp, params, X, y, **options), trained(np, params, X, y, **options)
    assert_alike(found, wanted)
    assert 0 < np.isnan(found.history["loss"]).sum() < len(found.history["loss"])
    assert found.state.optimizer[0] == wanted.state.optimizer[0]


def test_a_training_that_is_stopped_and_resumed(cp):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    options = {"optimizer": xs.adam(0.05)}
    wanted = trained(np, params, X, y, **options)
    seen = []

    def stop(step):
        seen.append(float(step.loss))
        return len(seen) == 7

    first = trained(cp, params, X, y, callback=stop, **options)
    assert len(first.history["loss"]) == 7
    np.testing.assert_allclose(seen, first.history["loss"])
    assert_alike(trained(cp, params, X, y, resume=first.state, **options), wanted)


def test_the_losses_of_a_callback_stay_what_they_are(cp):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    kept = []
    found = trained(cp, params, X, y, optimizer=xs.sgd(0.3), callback=lambda step: kept.append(step.loss))
    assert [float(loss) for loss in kept] == found.history["loss"]


def test_a_loss_that_is_not_finite_ends_the_training_without_an_update(cp):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    X[9, 2] = np.inf
    caught = {}
    for xp in (np, cp):
        with pytest.raises(xs.DivergenceError) as error:
            trained(xp, params, X, y, optimizer=xs.sgd(0.1, 0.5))
        caught[xp] = error.value
    assert caught[cp].step == caught[np].step
    assert_alike(caught[cp].result, caught[np].result)
    assert caught[cp].result.state.optimizer[0] == caught[np].result.state.optimizer[0]


@pytest.mark.parametrize("optimizer", [xs.sgd(0.3), xs.sgd(0.1, 0.9), xs.adamw(xs.cosine_schedule(0.1, steps=15))])
@pytest.mark.parametrize(("max_norm", "again"), [(1e-3, None), (0.3, None), (1e3, None), (1.0, 0.2), (0.2, 1.0)])
def test_gradients_are_clipped(cp, optimizer, max_norm, again):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    clipped = xs.clip_by_global_norm(optimizer, max_norm)
    clipped = clipped if again is None else xs.clip_by_global_norm(clipped, again)
    options = {"optimizer": clipped, "reg": 0.1}
    found, wanted = trained(cp, params, X, y, **options), trained(np, params, X, y, **options)
    assert_alike(found, wanted)
    unclipped = trained(np, params, X, y, optimizer=optimizer, reg=0.1)
    alike = all(np.array_equal(a, b) for a, b in zip(on_host(wanted), on_host(unclipped), strict=True))
    assert alike == (max_norm == 1e3)
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == STEPS


CHUNKED = {
    "plain": {},
    "penalty": {"reg": 0.1},
    "weights": {"sample_weight": np.where(np.arange(ROWS) % 4, np.linspace(0.5, 2, ROWS), 0), "reg": 0.1},
    "a sum": {"sample_weight": np.linspace(0.5, 2, ROWS), "reduction": "sum"},
    "ignored labels": {"ignore_index": 2},
    "class weights": {"class_weight": np.linspace(0.5, 2, CLASSES), "label_smoothing": 0.1},
    "clipped": {"optimizer": xs.clip_by_global_norm(xs.adam(xs.cosine_schedule(0.05, steps=9)), 0.1)},
    "slopes": {"activation": "gelu"},
}


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("batch_size", "max_memory"), [(10, 1300), (10, 1700), (23, 1900)])
@pytest.mark.parametrize("name", CHUNKED)
def test_batches_in_chunks(cp, name, batch_size, max_memory, soft):
    """A batch that does not fit in `max_memory` passes in parts; the last part may be shorter."""
    params = xs.init_params((FEATURES, 5, 3, CLASSES), rng=1, dtype=np.float64)
    X, y = data(soft=soft)
    options = {"optimizer": xs.sgd(0.02, 0.5), "batch_size": batch_size, **CHUNKED[name]}
    if soft and "ignore_index" in options:
        return
    if "sample_weight" in options:
        X[options["sample_weight"] == 0] = np.nan
    assert_alike(trained(cp, params, X, y, max_memory=max_memory, **options), trained(np, params, X, y, **options))
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == 4 * -(-ROWS // batch_size)
        (largest,) = (runner for runner in ReferenceRunner.latest if runner.rows == batch_size)
        assert 1 < largest.chunks <= batch_size


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "gelu"])
@pytest.mark.parametrize("hidden", [(), (40,), (40, 30), (30,) * 5, (60, 5, 5, 5, 5, 5, 5), (100,) * 200])
def test_programs_keep_within_the_memory_of_a_step(cp, monkeypatch, hidden, activation, soft, weighted):
    """What they need beside the gradients, and the rows of the batch that the loop holds, is at most `max_memory`."""
    if not getattr(cp, "stands_in", False):
        pytest.skip("a matter of numbers")

    def noted(self, program, arrays):
        self.program = program
        ReferenceRunner.latest.append(self)

    monkeypatch.setattr(ReferenceRunner, "__init__", noted)
    monkeypatch.setattr(ReferenceRunner, "run", lambda self: None)
    deep = len(hidden) > 9
    rows, classes, batch_size = (2000, 12, 2000) if deep else (300, 12, 200)
    limits = (300_000_000, 100_000_000) if deep else (30_000, 60_000, 120_000, 500_000)
    params = xs.init_params((20, *hidden, classes), rng=1, dtype=np.float32)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 20)).astype("f4")
    y = rng.dirichlet(np.ones(classes), rows).astype("f4") if soft else rng.integers(classes, size=rows)
    options = {"optimizer": xs.sgd(0.1), "epochs": 1, "batch_size": batch_size, "activation": activation}
    if weighted:
        options["sample_weight"] = rng.uniform(0.5, 2, rows).astype("f4")
    chunks = set()
    for max_memory in limits:
        ReferenceRunner.latest.clear()
        trained(cp, params, X, y, max_memory=max_memory, **options)
        for runner in ReferenceRunner.latest:
            held = runner.rows * (20 + (classes if soft else 2) + 1 + 3 * weighted) * 4
            gradients = sum(array.size for layer in params for array in layer) * 4
            small = ALIGNMENT * len(runner.program.buffers)
            assert runner.program.size <= max_memory + held + gradients + small
            chunks.add(runner.chunks)
    assert len(chunks) > 1


def test_batches_of_very_many_chunks_are_left_to_the_loop(cp):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = (np.concatenate([array] * 4) for array in data())
    options = {"optimizer": xs.sgd(0.1), "max_memory": 700, "batch_size": 80}
    assert_alike(trained(cp, params, X, y, **options), trained(np, params, X, y, **options))
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == 4  # of the shorter batches


def test_a_loss_of_the_loop_that_is_not_finite_ends_the_updates_of_programs(cp):
    """In one epoch the loop makes the step of a batch of very many chunks, and a program that of a shorter one."""
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = (np.concatenate([array] * 4) for array in data())
    X[np.random.default_rng(3).permutation(len(X))[7], 1] = np.inf  # in the first batch
    options = {"optimizer": xs.sgd(0.1, 0.5), "max_memory": 700, "batch_size": 80}
    caught = {}
    for xp in (np, cp):
        with pytest.raises(xs.DivergenceError) as error:
            trained(xp, params, X, y, **options)
        caught[xp] = error.value
    assert caught[cp].step == caught[np].step == 0
    assert_alike(caught[cp].result, caught[np].result)
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == 1


def test_the_place_is_sent_once_where_no_batch_is_left_out(cp, monkeypatch):
    """After the last row of an epoch the first one is the next."""
    sent = []
    send = ProgrammedSteps._on_device

    def on_device(self, array):
        sent.append(array.shape)
        return send(self, array)

    monkeypatch.setattr(ProgrammedSteps, "_on_device", on_device)
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    trained(cp, params, X, y, optimizer=xs.adam(0.1), epochs=8)
    assert sent == [(16, 8), (3,), (32, 8)]


@pytest.fixture(params=[1, 3, 5, 7])
def room(request, monkeypatch):
    """For how many updates there are numbers and losses on the device; one at first."""
    programmed = importlib.import_module("xpsoftmax._train.programmed")
    monkeypatch.setattr(programmed, "UPDATES", request.param)
    monkeypatch.setattr(programmed, "FIRST_AHEAD", 1)


SCHEDULES = {
    "constant": xs.constant_schedule(0.05),
    "steps": xs.step_schedule(0.1, every=3, factor=0.7),
    "cosine": xs.cosine_schedule(0.1, steps=15),
    "warm-up": xs.warm_up_schedule(xs.cosine_schedule(0.1, steps=10), steps=6),
}


def test_numbers_of_the_rule_are_sent_again_when_they_are_used_up(cp, room):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    kept = []
    options = {"optimizer": xs.adam(0.05)}
    wanted = trained(np, params, X, y, **options)
    assert_alike(trained(cp, params, X, y, **options), wanted)
    found = trained(cp, params, X, y, callback=lambda step: kept.append(step.loss), **options)
    assert_alike(found, wanted)
    assert [float(loss) for loss in kept] == found.history["loss"]


@pytest.mark.parametrize("optimizer", [xs.sgd, lambda rate: xs.sgd(rate, 0.9, nesterov=True), xs.adam, xs.adamw])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_of_the_package_are_sent_ahead(cp, name, optimizer):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    options = {"optimizer": optimizer(SCHEDULES[name])}
    assert_alike(trained(cp, params, X, y, **options), trained(np, params, X, y, **options))
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == STEPS


def test_a_function_of_the_user_is_called_for_each_update_when_it_is_the_next(cp, room):
    """As on NumPy: as often, with the same numbers, and after the callback of the step before."""
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    calls = {np: [], cp: []}
    given = np.ones(ROWS)
    given[:6] = 0  # with batches of two some have no row that counts
    results = {}
    for xp, seen in calls.items():

        def rate(count, seen=seen):
            seen.append(count)
            return 0.2 / (1 + len(seen) % 3)

        def callback(step, seen=seen):
            seen.append("step")

        optimizer = xs.adamw(xs.warm_up_schedule(rate, steps=5), weight_decay=0.1)
        options = {"callback": callback, "batch_size": 2, "sample_weight": given}
        results[xp] = trained(xp, params, X, y, optimizer=optimizer, **options)
    assert calls[cp] == calls[np]
    assert np.isnan(results[np].history["loss"]).any()
    assert_alike(results[cp], results[np])
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == results[cp].state.optimizer[0]


@pytest.mark.parametrize(
    ("rate", "error", "match"),
    [
        (lambda step: -1.0 if step == 14 else 0.1, ValueError, r"^learning_rate\(14\) must be"),
        (xs.step_schedule(1e-300, every=7, factor=1e200), ValueError, r"^learning_rate\(14\) must be .*, got inf\."),
    ],
    ids=["of the user", "of the package"],
)
def test_a_rate_that_is_wrong_later_is_an_error_when_it_is_the_next(cp, rate, error, match):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    for xp in (np, cp):
        losses = []
        with pytest.raises(error, match=match):
            trained(xp, params, X, y, optimizer=xs.sgd(rate), callback=lambda step, seen=losses: seen.append(step.loss))
        assert len(losses) == 14


def test_programs_begin_after_the_work_of_the_caller_once_an_epoch(cp):
    """Without a callback nobody looks at the parameters between two steps."""
    if not getattr(cp, "stands_in", False):
        pytest.skip("on a GPU the streams say it")
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    outside = []

    def callback(step):
        outside.append(not is_within())

    trained(cp, params, X, y, optimizer=xs.sgd(0.1))
    assert ReferenceRunner.entered == 4 + 1  # the last batch of the first epoch has a program of its own
    trained(cp, params, X, y, optimizer=xs.sgd(0.1), callback=callback)
    assert outside == [True] * STEPS


CLASSIFIERS = {
    "plain": {},
    "alpha": {"alpha": 0.5},
    "class weights": {"class_weight": "balanced", "alpha": 0.5},
    "in order": {"shuffle": False},
    "all rows": {"batch_size": ROWS},
    "momentum": {"momentum": 0.5, "nesterovs_momentum": False},
    "no momentum": {"momentum": 0.0},
    "no momentum, Nesterov's": {"momentum": 0.0, "nesterovs_momentum": True},
    "adaptive": {"learning_rate": "adaptive", "n_iter_no_change": 2, "tol": 0.05},
    "inverse scaling": {"learning_rate": "invscaling", "nesterovs_momentum": False},
    "stops": {"n_iter_no_change": 2, "tol": 0.05},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 2, "validation_fraction": 0.3},
    "adam": {"solver": "adam"},
    "in chunks": {"max_memory": 2000},
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_classifier_makes_the_same_steps(cp, name):
    pytest.importorskip("sklearn")
    sklearn = pytest.importorskip("xpsoftmax.sklearn")
    X, y = data()
    X[:, 0] += 2 * y
    options = {"hidden_layer_sizes": (5,), "solver": "sgd", "learning_rate_init": 0.05, "max_iter": 12}
    options |= {"batch_size": 5, "random_state": 0, **CLASSIFIERS[name]}
    fitted = {}
    for xp in (np, cp):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 12 epochs are few
            fitted[xp] = sklearn.MLPClassifier(**options).fit(xp.asarray(X), y)
    found, wanted = fitted[cp], fitted[np]
    np.testing.assert_allclose(found.loss_curve_, wanted.loss_curve_, rtol=1e-9)
    for a, b in zip((*found.coefs_, *found.intercepts_), (*wanted.coefs_, *wanted.intercepts_), strict=True):
        np.testing.assert_allclose(a.get(), b, rtol=1e-9, atol=1e-12)
    if options.get("early_stopping"):
        np.testing.assert_array_equal(found.validation_scores_, wanted.validation_scores_)
    if name in ("adaptive", "stops"):
        assert (name == "stops") == (found.n_iter_ < 12)
    if getattr(cp, "stands_in", False):
        rows = len(X) if not options.get("early_stopping") else len(X) - 7
        assert ReferenceRunner.runs == -(-rows // options["batch_size"]) * found.n_iter_
        assert ReferenceRunner.made == 1 + (rows % options["batch_size"] > 0), "another rate is no other program"


def test_a_classifier_that_learns_step_by_step(cp):
    """Each call of `partial_fit` has arrays of its own. A classifier holds no program: it is cloned and pickled."""
    base = pytest.importorskip("sklearn.base")
    sklearn = pytest.importorskip("xpsoftmax.sklearn")
    X, y = data()
    models = {}
    for xp in (np, cp):
        model = sklearn.MLPClassifier((5,), solver="sgd", learning_rate_init=0.05, batch_size=5, random_state=0)
        for _ in range(3):
            model.partial_fit(xp.asarray(X), y, classes=np.arange(CLASSES))
            model = pickle.loads(pickle.dumps(model))
        models[xp] = model.set_params(max_iter=2)
    np.testing.assert_allclose(models[cp].loss_curve_, models[np].loss_curve_, rtol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two epochs are few
        again = base.clone(models[cp]).fit(cp.asarray(X), y)
    assert base.clone(again).get_params() == models[cp].get_params()
    assert b"ReferenceRunner" not in pickle.dumps(again)
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == 5 * (3 + again.n_iter_)


def test_nothing_of_the_programs_is_left_after_a_training(cp):
    """Their memory is free at once, without a collection of garbage, also while results and steps are kept."""
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    programs, kept = [], []
    init = ProgrammedSteps.__init__

    def made(self, *arguments):
        init(self, *arguments)
        programs.append(weakref.ref(self))

    gc.collect()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProgrammedSteps, "__init__", made)
            result = trained(cp, params, X, y, optimizer=xs.adam(0.1), callback=lambda step: kept.append(step))
        assert len(kept) == STEPS
        assert [program() for program in programs] == [None]
    finally:
        gc.enable()
    assert b"Programm" not in pickle.dumps(result)
    assert_alike(pickle.loads(pickle.dumps(result)), result)


def test_trainings_in_several_threads(cp):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    optimizers = [make() for make in OPTIMIZERS.values()]
    wanted = [trained(np, params, X, y, optimizer=optimizer) for optimizer in optimizers]
    with ThreadPoolExecutor(len(optimizers)) as pool:
        found = list(pool.map(lambda optimizer: trained(cp, params, X, y, optimizer=optimizer), optimizers))
    for a, b in zip(found, wanted, strict=True):
        assert_alike(a, b)


def test_a_device_that_is_not_the_current_one(cp):
    if cp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one device")
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    wanted = trained(np, params, X, y, optimizer=xs.adam(0.05))
    with cp.cuda.Device(1):
        moved, held = xs.to_namespace(params, cp), (cp.asarray(X), cp.asarray(y))
    options = {"optimizer": xs.adam(0.05), "epochs": 4, "batch_size": 5, "rng": 3}
    found = xs.train(moved, *held, **options, callback=lambda step: step.loss.device.id != 1)
    assert cp.cuda.Device().id == 0
    with cp.cuda.Device(1):
        assert_alike(found, wanted)
    if getattr(cp, "stands_in", False):
        assert ReferenceRunner.runs == STEPS


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("batch", range(5))
def test_a_loss_that_is_not_finite_in_any_batch(cp, batch, epoch):
    """The result is that of the step before, also where the rate, or the norm of the gradients, changes."""
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    rate = xs.cosine_schedule(0.1, steps=30)
    optimizer = xs.clip_by_global_norm(xs.adam(rate), 0.5)
    caught = {}
    for xp in (np, cp):
        orders = np.random.default_rng(3)
        rows = [orders.permutation(ROWS) for _ in range(epoch + 1)][-1][5 * batch : 5 * batch + 5]
        held = xp.asarray(X.copy())
        if epoch == batch == 0:
            held[int(rows[-1]), 2] = np.inf

        def callback(step, held=held, rows=rows):
            if step.step == 5 * epoch + batch - 1:
                held[int(rows[-1]), 2] = np.inf

        with pytest.raises(xs.DivergenceError) as error:
            trained(xp, params, held, y, optimizer=optimizer, callback=callback, copy=False)
        caught[xp] = error.value
    assert caught[cp].step == caught[np].step == 5 * epoch + batch
    assert_alike(caught[cp].result, caught[np].result)
    assert caught[cp].result.state.optimizer[0] == caught[np].result.state.optimizer[0] == 5 * epoch + batch


def test_early_stopping(cp):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    other, labels = data(seed=7)
    results = []
    for xp in (np, cp):
        held_out = xp.asarray(other), xp.asarray(labels)
        options = {"validation": held_out, "patience": 3, "epochs": 40, "accuracy": True}
        results.append(trained(xp, params, X, y, optimizer=xs.sgd(0.3, 0.9), **options))
    wanted, found = results
    assert_alike(found, wanted)
    assert found.state.epoch < 40
    np.testing.assert_allclose(found.history["validation_loss"], wanted.history["validation_loss"], rtol=1e-9)
    assert found.history["accuracy"] == wanted.history["accuracy"]


@pytest.mark.parametrize("at", [0, 3, 4, 5, 11])
def test_an_interrupt_ends_the_step_and_what_was_learnt_is_gone_on_from(cp, at):
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()

    def rate(step, at=None):
        if step == at:
            signal.raise_signal(signal.SIGINT)
        return 0.1 / (1 + step)

    wanted = trained(np, params, X, y, optimizer=xs.sgd(rate, 0.9))
    first = trained(cp, params, X, y, optimizer=xs.sgd(partial(rate, at=at), 0.9))
    assert first.interrupted
    assert len(first.history["loss"]) == at + 1
    assert_alike(trained(cp, params, X, y, optimizer=xs.sgd(rate, 0.9), resume=first.state), wanted)


def test_a_progress_bar(cp):
    pytest.importorskip("tqdm")
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    found = trained(cp, params, X, y, optimizer=xs.sgd(0.1), progress=True)
    assert_alike(found, trained(np, params, X, y, optimizer=xs.sgd(0.1)))


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("max_memory", [None, 700])
@pytest.mark.parametrize("name", ["constant", "ahead", "of the user"])
def test_nothing_is_waited_for_within_an_epoch(cp, monkeypatch, room, name, max_memory, watched):
    if not getattr(cp, "stands_in", False):
        pytest.skip("on a GPU: test_nothing_waits_for_the_device_within_an_epoch")
    run = Loop.run

    def steps(self, *arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy's, of the name
            with importlib.import_module("cupyx").allow_synchronize(False):
                return run(self, *arguments)

    monkeypatch.setattr(Loop, "run", steps)
    params = xs.init_params((FEATURES, 5, CLASSES), rng=1, dtype=np.float64)
    X, y = data()
    kept = []
    given = np.ones(ROWS)
    given[:10] = 0  # in some batches of two no row counts
    rate = {"constant": 0.1, "ahead": xs.cosine_schedule(0.1, steps=9), "of the user": lambda step: 0.1 / (1 + step)}
    options = {"optimizer": xs.clip_by_global_norm(xs.adam(rate[name]), 0.1), "sample_weight": given, "batch_size": 2}
    callback = (lambda step: kept.append(step.loss)) if watched else None
    found = trained(cp, params, X, y, max_memory=max_memory, callback=callback, **options)
    losses = found.history["loss"]
    assert np.isnan(losses).any()
    assert ReferenceRunner.runs == np.isfinite(losses).sum()
    assert len(kept) == (len(losses) if watched else 0)
