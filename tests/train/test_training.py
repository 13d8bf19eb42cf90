"""train(): the steps that it makes, history, stopping and going on, and what is refused."""

import contextlib
import pickle
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
from assertions import assert_like

import xpsoftmax as xs
from xpsoftmax._arguments.home import quiet
from xpsoftmax._arguments.problem import LossOptions
from xpsoftmax._network.network import as_network
from xpsoftmax._train import data as train_data
from xpsoftmax._train.data import as_data
from xpsoftmax._train.evaluation import evaluation
from xpsoftmax._train.loop import Loop

N, D, H, C = 47, 5, 7, 4
BATCH = 10  # the last one has 7 rows
SIZES = (D, H, C)


@pytest.fixture
def problem(rng):
    return xs.init_params(SIZES, rng=rng), rng.standard_normal((N, D)), rng.integers(0, C, N)


def moved(backend, layers, dtype="float64"):
    return tuple(xs.Layer(*(backend.asarray(a, dtype) for a in layer)) for layer in layers)


def numbers(backend, layers):
    return np.concatenate([backend.to_numpy(a).ravel() for layer in layers for a in layer])


def flat(layers):
    return np.concatenate([a.ravel() for layer in layers for a in layer])


def batches(rng, epochs, rows=N, size=BATCH):
    """Batches as documented: every epoch all rows in a new order."""
    rng = np.random.default_rng(rng)
    return [np.split(rng.permutation(rows), range(size, rows, size)) for _ in range(epochs)]


def by_hand(params, X, y, optimizer, epochs, *, weights=None, **options):
    """The loop that a user would write."""
    state, losses = optimizer.init(params), []
    for epoch in batches(3, epochs):
        for rows in epoch:
            weight = {} if weights is None else {"sample_weight": weights[rows]}
            loss, grads = xs.mlp_loss_and_grad(params, X[rows], y[rows], **weight, **options)
            params, state = optimizer.update(params, grads, state)
            losses.append(float(loss))
    return params, losses


OPTIONS = {
    "plain": {},
    "penalty": {"reg": 0.01, "activation": "tanh"},
    "smoothing": {"label_smoothing": 0.1, "z_loss": 0.01, "class_weight": np.arange(1.0, C + 1)},
    "class weights": {"class_weight": np.arange(1.0, C + 1), "ignore_index": 2},
    "sum": {"reduction": "sum", "activation": "gelu"},
    "small memory": {"max_memory": 2500},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_the_loop_that_a_user_would_write(name, problem):
    params, X, y = problem
    optimizer = xs.sgd(0.05, momentum=0.9)
    expected, losses = by_hand(params, X, y, optimizer, 3, **OPTIONS[name])
    result = xs.train(params, X, y, optimizer=optimizer, epochs=3, batch_size=BATCH, rng=3, **OPTIONS[name])
    assert len(losses) == 3 * 5
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-13)
    np.testing.assert_allclose(flat(result.params), flat(expected), rtol=1e-11, atol=1e-300)
    assert (result.state.epoch, result.state.step) == (3, 0)


def test_plain_steps_have_the_bits_of_that_loop(problem):
    params, X, y = problem
    params = moved_to(params, "f4")
    X = X.astype("f4")
    expected, losses = by_hand(params, X, y, xs.adam(0.01), 2)
    result = xs.train(params, X, y, optimizer=xs.adam(0.01), epochs=2, batch_size=BATCH, rng=3)
    assert result.history["loss"] == losses
    np.testing.assert_array_equal(flat(result.params), flat(expected))


def moved_to(layers, dtype):
    return tuple(xs.Layer(*(a.astype(dtype) for a in layer)) for layer in layers)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_library_makes_the_same_steps(name, backend, problem):
    if backend.name == "dask":
        pytest.skip("refused")
    params, X, y = problem
    options = {k: backend.asarray(v) if isinstance(v, np.ndarray) else v for k, v in OPTIONS[name].items()}
    if "max_memory" in options:
        options["max_memory"] = 6000  # other libraries need more for a row
    shared = {"optimizer": xs.adam(0.01), "epochs": 2, "batch_size": BATCH, "rng": 3}
    expected = xs.train(params, X, y, validation=(X[:20], y[:20]), **shared, **OPTIONS[name])
    held = moved(backend, params), backend.asarray(X), backend.asarray(y)
    validation = backend.asarray(X[:20]), backend.asarray(y[:20])
    result = xs.train(*held, validation=validation, **shared, **options)
    np.testing.assert_allclose(numbers(backend, result.params), flat(expected.params), rtol=1e-9, atol=1e-12)
    assert list(result.history) == list(expected.history)
    for key, values in expected.history.items():
        assert all(type(value) is float for value in result.history[key])
        np.testing.assert_allclose(result.history[key], values, rtol=1e-9)
    for layer, like in zip(result.params, params, strict=True):
        assert_like(layer.weight, backend=backend, dtype="float64", shape=like.weight.shape)
        assert_like(layer.bias, backend=backend, dtype="float64", shape=like.bias.shape)
    np.testing.assert_array_equal(numbers(backend, held[0]), flat(params))


def test_sample_weights_follow_their_rows(problem, rng):
    params, X, y = problem
    weights = rng.uniform(size=N)
    expected, losses = by_hand(params, X, y, xs.sgd(0.1), 2, weights=weights)
    result = xs.train(params, X, y, optimizer=xs.sgd(0.1), epochs=2, batch_size=BATCH, rng=3, sample_weight=weights)
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-13)
    np.testing.assert_allclose(flat(result.params), flat(expected), rtol=1e-12)


def test_soft_targets(problem, rng):
    params, X, _ = problem
    targets = rng.dirichlet(np.ones(C), N)
    expected, losses = by_hand(params, X, targets, xs.sgd(0.1), 2)
    result = xs.train(
        params, X, targets, optimizer=xs.sgd(0.1), epochs=2, batch_size=BATCH, rng=3, validation=(X, targets)
    )
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-13)
    np.testing.assert_allclose(flat(result.params), flat(expected), rtol=1e-12)
    hits = xs.mlp_predict(result.params, X) == targets.argmax(axis=1)
    assert result.history["validation_accuracy"][-1] == hits.mean()


@pytest.mark.parametrize("size", [N, N + 5, 10**9])
def test_a_batch_of_all_rows_is_one_step(size, problem):
    params, X, y = problem
    result = xs.train(params, X, y, optimizer=xs.sgd(0.1), epochs=3, batch_size=size, rng=3)
    state, expected = (0,), params
    for _ in range(3):
        _, grads = xs.mlp_loss_and_grad(expected, X, y)
        expected, state = xs.sgd(0.1).update(expected, grads, state)
    assert len(result.history["loss"]) == 3
    np.testing.assert_allclose(flat(result.params), flat(expected), rtol=1e-13)


def test_a_memory_map_is_read_by_batches(problem, tmp_path):
    params, X, y = problem
    file = np.memmap(tmp_path / "X", np.float64, "w+", shape=X.shape)
    file[:] = X
    options = {"optimizer": xs.sgd(0.1), "epochs": 2, "batch_size": BATCH, "rng": 3}
    expected = xs.train(params, X, y, **options)
    got = xs.train(params, np.memmap(tmp_path / "X", np.float64, "r", shape=X.shape), y, **options)
    np.testing.assert_array_equal(flat(got.params), flat(expected.params))


@pytest.mark.backends("numpy", "torch", "jax", "cupy")
def test_16_bit_parameters_are_trained_in_float32(backend, problem):
    params, X, y = problem
    X = X.astype("f2")
    held = moved(backend, params, "float16"), backend.asarray(X), backend.asarray(y)
    # Steps of 1e-4 that float16 would lose next to weights of 1.
    options = {"optimizer": xs.adam(1e-4), "epochs": 4, "batch_size": BATCH, "rng": 3}
    result = xs.train(*held, **options)
    wide = moved_to(moved_to(params, "f2"), "f4")
    expected = xs.train(wide, X.astype("f4"), y, **options)
    assert_like(result.params[0].weight, backend=backend, dtype="float16", shape=(D, H))
    assert_like(result.state.params[0].weight, backend=backend, dtype="float32", shape=(D, H))
    ulp = np.spacing(np.abs(flat(expected.params)).astype("f2")).astype("f8")
    assert np.all(np.abs(numbers(backend, result.params).astype("f8") - flat(expected.params)) <= ulp)


# --- rows that do not count -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reg", [0.0, 0.1])
def test_a_batch_in_which_no_row_counts_makes_no_update(reg, backend, problem):
    if backend.name == "dask":
        pytest.skip("refused")
    params, X, y = problem
    (order,) = batches(3, 1)
    y[order[2]] = -100
    held = moved(backend, params), backend.asarray(X), backend.asarray(y)
    options = {"optimizer": xs.adam(0.01), "epochs": 1, "batch_size": BATCH, "rng": 3, "ignore_index": -100, "reg": reg}
    seen = []
    result = xs.train(*held, callback=lambda step: seen.append(numbers(backend, step.params)) and None, **options)
    assert [np.isnan(loss) for loss in result.history["loss"]] == [False, False, True, False, False]
    changed = [not np.array_equal(a, b) for a, b in zip([flat(params), *seen[:-1]], seen, strict=True)]
    assert changed == [True, True, False, True, True]
    assert result.state.optimizer[0] == 4


def test_rows_that_do_not_count_may_hold_anything(problem):
    params, X, y = problem
    weight = np.ones(N)
    weight[::3] = 0.0
    options = {"optimizer": xs.sgd(0.1), "epochs": 2, "batch_size": BATCH, "rng": 3, "sample_weight": weight}
    expected = xs.train(params, X, y, **options)
    X[::3] = np.nan
    np.testing.assert_array_equal(flat(xs.train(params, X, y, **options).params), flat(expected.params))


def test_validation_data_of_which_no_row_counts(problem):
    params, X, y = problem
    options = {"optimizer": xs.sgd(0.1), "epochs": 2, "batch_size": BATCH, "rng": 3, "ignore_index": -1, "patience": 1}
    result = xs.train(params, X, y, validation=(X[:3], np.full(3, -1)), **options)
    assert np.isnan(result.history["validation_loss"]).all()
    assert np.isnan(result.history["validation_accuracy"]).all()


SMOOTHED = {"class_weight": np.array([0.0, 0.0, 1.0, 1.0]), "label_smoothing": 0.2}


def test_smoothed_rows_of_class_weight_0_add_to_a_sum(problem):
    """They have a gradient there, but do not count in a mean."""
    params, X, y = problem
    optimizer = xs.sgd(0.05)
    options = {"epochs": 2, "batch_size": BATCH, "rng": 3, "optimizer": optimizer}
    y[batches(3, 1)[0][1]] = 1
    expected, losses = by_hand(params, X, y, optimizer, 2, reduction="sum", **SMOOTHED)
    got = xs.train(params, X, y, reduction="sum", **SMOOTHED, **options)
    np.testing.assert_allclose(got.history["loss"], losses, rtol=1e-13)
    np.testing.assert_allclose(flat(got.params), flat(expected), rtol=1e-11)
    _, losses = by_hand(params, X, y, optimizer, 2, **SMOOTHED)
    mean = xs.train(params, X, y, **SMOOTHED, **options)
    assert np.isnan(losses[1])
    np.testing.assert_allclose(mean.history["loss"], losses, rtol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accuracy_is_of_the_rows_that_count(reduction, problem):
    params, X, y = problem
    result = xs.train(params, X, y, optimizer=xs.sgd(1e-9), epochs=1, batch_size=N, rng=3, validation=(X, y),
                      reduction=reduction, **SMOOTHED)  # fmt: skip
    hits = xs.mlp_predict(result.params, X) == y
    wanted = hits[y >= 2].mean() if reduction == "mean" else hits.mean()
    assert result.history["validation_accuracy"] == [wanted]


# --- validation and early stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_memory", [None, 3000])
def test_validation_is_what_the_functions_say(max_memory, problem, rng):
    params, X, y = problem
    X_val, y_val = rng.standard_normal((33, D)), rng.integers(0, C, 33)
    y_val[:5] = -1
    loss_options = {"class_weight": np.arange(1.0, C + 1), "ignore_index": -1, "label_smoothing": 0.1}
    seen = []

    def callback(step):
        if step.step % 5 == 4:
            loss = xs.mlp_loss(step.params, X_val, y_val, **loss_options)
            seen.append((float(loss), np.mean(xs.mlp_predict(step.params, X_val)[5:] == y_val[5:])))

    result = xs.train(
        params, X, y, optimizer=xs.sgd(0.1), epochs=3, batch_size=BATCH, rng=3, reg=0.1, callback=callback,
        validation=(X_val, y_val), max_memory=max_memory, sample_weight=rng.uniform(size=N), **loss_options,
    )  # fmt: skip
    np.testing.assert_allclose(result.history["validation_loss"], [loss for loss, _ in seen], rtol=1e-13)
    np.testing.assert_allclose(result.history["validation_accuracy"], [accuracy for _, accuracy in seen], rtol=1e-13)


def test_without_patience_no_best_parameters_are_kept(problem, rng):
    params, X, y = problem
    options = {"optimizer": xs.adam(0.02), "epochs": 2, "batch_size": BATCH, "rng": 3, "validation": (X, y)}
    assert xs.train(params, X, y, **options).state.best is None
    assert xs.train(params, X, y, patience=9, **options).state.best is not None


def test_states_share_no_memory_with_each_other(problem):
    params, X, y = problem
    options = {"optimizer": xs.adam(0.02), "batch_size": BATCH, "rng": 3, "validation": (X, y), "patience": 9}
    seen = []
    first = xs.train(params, X, y, epochs=2, callback=lambda step: seen.append(step.state), **options)
    second = xs.train(params, X, y, epochs=3, resume=first.state, callback=lambda step: True, **options)
    states = [seen[-2], seen[-1], first.state, second.state]
    arrays = [array for state in states for array in flat_arrays((state.params, state.optimizer[1:], state.best[2]))]
    arrays += flat_arrays((first.params, second.params))
    for i, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in arrays[:i])


def flat_arrays(tree):
    return [tree] if isinstance(tree, np.ndarray) else [array for part in tree for array in flat_arrays(part)]


def test_patience_ends_training_and_brings_the_best_parameters_back(problem, rng):
    params, X, y = problem
    validation = rng.standard_normal((40, D)), rng.integers(0, C, 40)  # noise: the fit to X cannot help for long
    options = {"optimizer": xs.adam(0.02), "epochs": 200, "batch_size": BATCH, "rng": 3, "validation": validation}
    ends = []

    def callback(step):
        if step.step % 5 == 4:
            ends.append(flat(step.params))

    result = xs.train(params, X, y, patience=4, callback=callback, **options)
    losses = result.history["validation_loss"]
    best = int(np.argmin(losses))
    assert len(losses) == best + 5 < 200
    np.testing.assert_array_equal(flat(result.params), ends[best])
    np.testing.assert_array_equal(flat(result.state.params), ends[-1])
    # It goes on from the last, not from the best ones.
    more = xs.train(params, X, y, patience=7, resume=result.state, **options)
    whole = xs.train(params, X, y, patience=7, **options)
    assert more.history == whole.history
    np.testing.assert_array_equal(flat(more.params), flat(whole.params))


# --- stopping and going on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [xs.sgd(0.1), xs.sgd(0.1, 0.9), xs.adamw(lambda step: 0.1 / (1 + step))],
    ids=["sgd", "momentum", "adamw"],
)
@pytest.mark.parametrize("stop", [0, 3, 4, 9, 13])
def test_a_stopped_training_resumes_to_the_same_bits(stop, optimizer, backend, problem):
    if backend.name == "dask":
        pytest.skip("refused")
    params, X, y = problem
    held = moved(backend, params, "float32"), backend.asarray(X, "float32"), backend.asarray(y)
    options = {"optimizer": optimizer, "epochs": 3, "batch_size": BATCH, "validation": held[1:]}
    whole = xs.train(*held, rng=3, **options)
    first = xs.train(*held, rng=3, callback=lambda step: step.step == stop, **options)
    assert len(first.history["loss"]) == stop + 1
    state = pickle.loads(pickle.dumps(first.state)) if backend.name == "numpy" else first.state
    before = numbers(backend, state.params).copy()
    second = xs.train(*held, rng=99, resume=state, **options)
    np.testing.assert_array_equal(numbers(backend, state.params), before)
    assert second.history == whole.history
    np.testing.assert_array_equal(numbers(backend, second.params), numbers(backend, whole.params))
    assert second.state.rng == whole.state.rng


def test_the_generator_of_the_caller_is_not_set_back(problem):
    options = {"optimizer": xs.sgd(0.1), "batch_size": BATCH}
    generator = np.random.default_rng(3)
    first = xs.train(*problem, rng=generator, epochs=1, **options)
    ahead = generator.bit_generator.state
    xs.train(*problem, rng=generator, epochs=2, resume=first.state, **options)
    assert generator.bit_generator.state == ahead
    first.history["loss"].clear()
    assert len(first.state.history["loss"]) == 5


def test_more_epochs_go_on_where_training_ended(problem):
    options = {"optimizer": xs.adam(0.01), "batch_size": BATCH}
    whole = xs.train(*problem, rng=3, epochs=5, **options)
    state = xs.train(*problem, rng=3, epochs=2, **options).state
    more = xs.train(*problem, rng=0, epochs=5, resume=state, **options)
    np.testing.assert_array_equal(flat(more.params), flat(whole.params))
    assert more.history == whole.history


def test_a_callback_sees_every_step_and_its_own_copy(problem):
    seen, held = [], []

    def callback(step):
        seen.append(step)
        held.append(step.params)

    result = xs.train(*problem, optimizer=xs.sgd(0.1), epochs=2, batch_size=BATCH, rng=3, callback=callback)
    assert [(step.epoch, step.step) for step in seen] == [(i // 5, i) for i in range(10)]
    assert [float(step.loss) for step in seen] == result.history["loss"]
    np.testing.assert_array_equal(flat(held[-1]), flat(result.params))
    assert not np.array_equal(flat(held[0]), flat(held[1]))
    held[-1][0].weight[...] = 0.0
    assert np.abs(result.params[0].weight).min() > 0.0
    with pytest.raises(RuntimeError, match=r"params must be asked for while the callback runs"):
        seen[0].params  # noqa: B018
    assert "TrainStep(epoch=1, step=9, loss=" in repr(seen[-1])


def test_what_a_callback_raises_is_raised(problem):
    def callback(step):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        xs.train(*problem, optimizer=xs.sgd(0.1), epochs=2, batch_size=BATCH, rng=3, callback=callback)


PRELUDE = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import numpy as np
import xpsoftmax as xs
rng = np.random.default_rng(0)
X, y = rng.standard_normal((47, 5)), rng.integers(0, 4, 47)
params = xs.init_params((5, 7, 4), rng=0)
options = {"epochs": 3, "batch_size": 10, "rng": 3}

def flat(layers):
    return np.concatenate([a.ravel() for layer in layers for a in layer])

def rate(step):  # in the middle of a step: gradients are there, no parameter is changed
    if step in interrupted:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
    return 0.1
"""


def run(code):
    process = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout.split()


def test_an_interrupt_ends_the_step_and_returns_what_was_learnt():
    out = run(
        """
        interrupted, times = {}, 1
        whole = xs.train(params, X, y, optimizer=xs.sgd(rate), **options)
        interrupted = {6}
        first = xs.train(params, X, y, optimizer=xs.sgd(rate), **options)
        print(len(first.history["loss"]), first.state.epoch, first.state.step)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        interrupted = {}
        second = xs.train(params, X, y, optimizer=xs.sgd(rate), resume=first.state, **options)
        print(np.array_equal(flat(second.params), flat(whole.params)), second.history == whole.history)
        """
    )
    assert out == ["7", "1", "2", "True", "True"]


def test_an_interrupt_while_the_result_is_made_does_not_lose_it():
    out = run(
        """
        interrupted, times = {}, 1
        whole = xs.train(params, X, y, optimizer=xs.sgd(rate), **options)
        from xpsoftmax._train.run import Run

        make = Run.result
        def result(*args, **keywords):
            signal.raise_signal(signal.SIGINT)
            return make(*args, **keywords)
        Run.result = result
        last = xs.train(params, X, y, optimizer=xs.sgd(rate), **options)
        print(np.array_equal(flat(last.params), flat(whole.params)))
        """
    )
    assert out == ["True"]


def test_a_second_interrupt_is_raised():
    out = run(
        """
        interrupted, times = {6}, 2
        try:
            xs.train(params, X, y, optimizer=xs.sgd(rate), **options)
        except KeyboardInterrupt:
            print("raised", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        """
    )
    assert out == ["raised", "True"]


def test_a_handler_of_the_user_stays():
    out = run(
        """
        interrupted, times, called = {6}, 1, []
        handler = lambda number, frame: called.append(number)
        signal.signal(signal.SIGINT, handler)
        result = xs.train(params, X, y, optimizer=xs.sgd(rate), **options)
        print(len(result.history["loss"]), len(called), signal.getsignal(signal.SIGINT) is handler)
        """
    )
    assert out == ["15", "1", "True"]


def test_a_callback_that_is_interrupted_stops(problem):
    def callback(step):
        if step.step == 3:
            raise KeyboardInterrupt

    result = xs.train(*problem, optimizer=xs.sgd(0.1), epochs=2, batch_size=BATCH, rng=3, callback=callback)
    assert len(result.history["loss"]) == 4


def test_it_trains_in_another_thread(problem):
    results = []
    options = {"optimizer": xs.sgd(0.1), "epochs": 1, "batch_size": BATCH, "rng": 3}
    thread = threading.Thread(target=lambda: results.append(xs.train(*problem, **options)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(flat(results[0].params), flat(xs.train(*problem, **options).params))


# --- large arrays, which are updated in place -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large():
    """Weights of more than a part of 1 MiB, and noise to fit: validation gets worse."""
    rng = np.random.default_rng(5)
    X, y = rng.standard_normal((60, 600), dtype="f4"), rng.integers(0, 500, 60)
    validation = rng.standard_normal((60, 600), dtype="f4"), rng.integers(0, 500, 60)
    params = xs.init_params((600, 700, 500), rng=rng, dtype=np.float32)
    for array in (X, y, *(a for layer in params for a in layer)):
        array.flags.writeable = False
    return params, X, y, validation


def test_large_parameters_of_the_caller_stay(large):
    params, X, y, _ = large
    before = flat(params).copy()
    result = xs.train(params, X, y, optimizer=xs.sgd(0.1, 0.9), epochs=2, batch_size=20, rng=3)
    np.testing.assert_array_equal(flat(params), before)
    assert not np.array_equal(flat(result.params), before)


def test_a_state_can_be_used_twice(large):
    params, X, y, _ = large
    options = {"optimizer": xs.sgd(0.1, 0.9), "batch_size": 20, "rng": 3}
    state = xs.train(params, X, y, epochs=1, **options).state
    arrays = [flat(state.params), flat(state.optimizer[1])]
    copies = [array.copy() for array in arrays]
    first, second = (xs.train(params, X, y, epochs=2, resume=state, **options) for _ in range(2))
    for layers, values in zip((state.params, state.optimizer[1]), copies, strict=True):
        np.testing.assert_array_equal(flat(layers), values)
    np.testing.assert_array_equal(flat(first.params), flat(second.params))
    np.testing.assert_array_equal(flat(first.params), flat(xs.train(params, X, y, epochs=2, **options).params))


def test_the_best_of_large_parameters_stay_the_best(large):
    params, X, y, validation = large
    ends = []

    def callback(step):
        if step.step % 3 == 2:
            ends.append(flat(step.params))

    result = xs.train(params, X, y, optimizer=xs.adam(2e-3), epochs=30, batch_size=20, rng=3, validation=validation,
                      patience=3, callback=callback)  # fmt: skip
    best = int(np.argmin(result.history["validation_loss"]))
    assert best < len(ends) - 1
    np.testing.assert_array_equal(flat(result.params), ends[best])


@pytest.mark.parametrize("layout", ["fortran", "part of a wider one", "backwards"])
def test_only_the_rows_of_a_batch_are_copied(layout):
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((20_000, 104), dtype="f4")
    narrow = wide[:, :100]
    layouts = {"fortran": np.asfortranarray(narrow), "part of a wider one": narrow, "backwards": narrow[::-1]}
    X = layouts[layout]
    y, params = rng.integers(0, 3, len(X)), xs.init_params((100, 3), rng=0, dtype=np.float32)
    options = {"optimizer": xs.sgd(0.1), "epochs": 1, "batch_size": 100, "rng": 3}
    expected = xs.train(params, np.ascontiguousarray(X), y, **options)
    peaks = []

    def callback(step):
        if step.step == 0:
            tracemalloc.start()
        elif step.step == 20:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    got = xs.train(params, X, y, callback=callback, **options)
    np.testing.assert_allclose(flat(got.params), flat(expected.params), rtol=1e-4, atol=1e-6)
    assert peaks[0] < X.nbytes / 20


# --- losses that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_loss_that_is_not_finite_ends_training_before_its_update(epoch, backend, problem):
    if backend.name == "dask":
        pytest.skip("refused")
    params, X, y = problem
    bad, steps = 3, 5  # the fourth batch of that epoch
    weight = np.ones(N)
    weight[batches(3, 1)[0][1]] = 0.0  # a batch that makes no update: steps and updates differ
    held = [moved(backend, params), backend.asarray(X), backend.asarray(y)]
    options = {"optimizer": xs.adam(0.01), "batch_size": BATCH, "sample_weight": backend.asarray(weight)}
    if epoch == 1:  # the bad row comes only with the second epoch
        state = xs.train(*held, epochs=1, rng=3, **options).state
        options["resume"] = state
    row = batches(3, 2)[epoch][bad][0]
    weight_of_row = weight[row]
    assert weight_of_row == 1.0
    X[row] = np.inf
    until = xs.train(*held, epochs=2, rng=3, callback=lambda s: s.step == epoch * steps + bad - 1, **options)
    held[1] = backend.asarray(X)
    message = rf"X must be finite, got inf at row {row}\. The loss became nan at step {epoch * 5 + 3}\."
    with pytest.raises(FloatingPointError, match=message) as e:
        xs.train(*held, epochs=2, rng=3, **options)
    error = e.value
    assert isinstance(error, xs.DivergenceError)
    assert error.step == epoch * steps + bad
    np.testing.assert_array_equal(numbers(backend, error.result.params), numbers(backend, until.params))
    assert error.result.history == until.history
    assert (error.result.state.epoch, error.result.state.step) == (epoch, bad)
    assert error.result.state.optimizer[0] == until.state.optimizer[0]
    for got, expected in zip(error.result.state.optimizer[1:], until.state.optimizer[1:], strict=True):
        np.testing.assert_array_equal(numbers(backend, got), numbers(backend, expected))


class Waiting:
    """Makes what waits for a device raise: PyTorch's ways to the host by name, CuPy's by its own switch."""

    def __init__(self, backend, monkeypatch):
        if backend.name == "cupy":
            import cupyx

            self.error, self.switch = cupyx.DeviceSynchronized, cupyx.allow_synchronize
            return
        self.error, self.switch, self.monkeypatch = AssertionError, None, monkeypatch
        names = ["__bool__", "__float__", "__int__", "__index__", "item", "tolist", "numpy", "cpu", "__array__"]
        self.tensor = backend.xp.Tensor
        self.originals = {name: getattr(self.tensor, name) for name in names}

    @contextlib.contextmanager
    def allowed(self, flag):
        if self.switch is not None:
            with contextlib.ExitStack() as stack:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # "will be removed in future releases"
                    stack.enter_context(self.switch(flag))
                yield
            return
        before = {name: getattr(self.tensor, name) for name in self.originals}
        for name, original in self.originals.items():
            self.monkeypatch.setattr(self.tensor, name, original if flag else self.forbidden)
        try:
            yield
        finally:
            for name, method in before.items():
                self.monkeypatch.setattr(self.tensor, name, method)

    def forbidden(self, *args, **kwargs):
        raise AssertionError("waits for the device")


def test_parameters_that_are_not_finite_are_not_returned(problem):
    """The last step can be too long though its loss is finite."""
    params, X, y = problem
    params, X = moved_to(params, "f4"), X.astype("f4") * np.float32(1e20)
    with pytest.raises(xs.DivergenceError, match=r"params must stay finite in training, got nan or inf after step 0\."):
        xs.train(params, X, y, optimizer=xs.sgd(1e20), epochs=1, batch_size=N, rng=3)


def test_the_error_goes_through_a_pool_of_processes(problem):
    params, X, y = problem
    X[0] = np.nan
    with pytest.raises(xs.DivergenceError) as error:
        xs.train(params, X, y, optimizer=xs.sgd(0.1), epochs=1, batch_size=N, rng=3)
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value)
    assert again.step == 0
    np.testing.assert_array_equal(flat(again.result.params), flat(params))


@pytest.mark.backends("torch", "cupy")
def test_nothing_waits_for_the_device_within_an_epoch(backend, problem, monkeypatch):
    params, X, y = problem
    y[batches(3, 1)[0][2]] = -1
    held = moved(backend, params), backend.asarray(X), backend.asarray(y)
    waiting = Waiting(backend, monkeypatch)
    run, settle = Loop.run, Loop.settle
    raised = []

    def steps(self, *args):
        with waiting.allowed(False):
            try:
                float(held[1][0, 0])
            except waiting.error:
                raised.append(True)
            return run(self, *args)

    def settled(self):
        with waiting.allowed(True):
            return settle(self)

    monkeypatch.setattr(Loop, "run", steps)
    monkeypatch.setattr(Loop, "settle", settled)
    seen = []
    result = xs.train(*held, optimizer=xs.adam(0.01), epochs=2, batch_size=BATCH, rng=3, ignore_index=-1, reg=0.1,
                      # In host memory PyTorch's kernels are NumPy's: their tensors are looked at.
                      impl="generic" if backend.name == "torch" else "auto",
                      callback=lambda step: seen.append(step.loss) and None)  # fmt: skip
    assert raised == [True, True]  # the net has no hole where it matters
    assert len(result.history["loss"]) == len(seen) == 10
    assert sum(np.isnan(result.history["loss"])) == 1 + sum(bool((y[rows] == -1).all()) for rows in batches(3, 2)[1])


# --- inputs that are not finite ---------------------------------------------------------------------------------------


def never(step):
    pytest.fail("a step was made")


@pytest.mark.parametrize("max_memory", [None, 6000])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_validation_inputs_that_are_not_finite_are_found_before_the_first_step(value, max_memory, backend, problem):
    if backend.name == "dask":
        pytest.skip("refused")
    params, X, y = problem
    X_val = X.copy()
    X_val[[30, 41], [2, 0]] = value
    held = moved(backend, params), backend.asarray(X), backend.asarray(y)
    options = {"optimizer": xs.sgd(0.1), "epochs": 3, "batch_size": BATCH, "rng": 3, "max_memory": max_memory}
    for validate in (True, False):
        with pytest.raises(ValueError, match=rf"^validation\[0\] must be finite, got {value} at row 30\."):
            xs.train(*held, validation=(backend.asarray(X_val), held[2]), callback=never, validate=validate, **options)


def test_validation_rows_that_do_not_count_may_hold_anything(problem):
    params, X, y = problem
    X_val, y_val = X[:20].copy(), y[:20].copy()
    y_val[[3, 8]] = -1
    options = {"optimizer": xs.sgd(0.1), "epochs": 3, "batch_size": BATCH, "rng": 3, "ignore_index": -1}
    expected = xs.train(params, X, y, validation=(X_val, y_val), **options)
    X_val[[3, 8]] = np.nan
    got = xs.train(params, X, y, validation=(X_val, y_val), patience=3, **options)
    assert got.history == expected.history
    # With a weight of 0 for their class, too, but not where smoothing has them add to the loss.
    weights = {"class_weight": np.array([0.0, 1.0, 1.0, 1.0])}
    y_val[[3, 8]] = 0
    options.pop("ignore_index")
    finite = xs.train(params, X, y, validation=(X_val, y_val), **weights, **options).history["validation_loss"]
    assert np.isfinite(finite).all()
    with pytest.raises(ValueError, match=r"^validation\[0\] must be finite, got nan at row 3\."):
        xs.train(params, X, y, validation=(X_val, y_val), label_smoothing=0.1, **weights, **options)


def test_rows_of_nan_do_not_end_training_early_with_accuracy_1(problem):
    """Six rows of nan with label 0 were all of the class 0, and the parameters of the first epoch the best."""
    params, X, y = problem
    X_val, y_val = np.full((6, D), np.nan), np.zeros(6, int)
    options = {"optimizer": xs.sgd(0.1), "epochs": 9, "batch_size": BATCH, "rng": 3, "patience": 2}
    with pytest.raises(ValueError, match=r"^validation\[0\] must be finite, got nan at row 0\."):
        xs.train(params, X, y, validation=(X_val, y_val), **options)


@pytest.mark.parametrize("label", [0, -1, 1])
@pytest.mark.parametrize("options", [{}, {"ignore_index": 1}])
def test_a_row_of_nan_is_never_right(label, options, backend, problem):
    """Neither of class 0 nor, as the label of no class, of -1."""
    if backend.name == "dask":
        pytest.skip("block by block")
    params, X, y = problem
    X, y = X[:6].copy(), np.array([0, label, 2, label, 3, 0])
    X[[1, 3]] = np.nan
    net = as_network(moved(backend, params), None)
    loss_options = LossOptions(validate=False, **options)
    data = as_data(net, backend.asarray(X), backend.asarray(y), loss_options)
    with quiet(net.xp, net.home.device):
        found = evaluation(net, data, "mean", None, None)
    counts = (y != options.get("ignore_index")) & np.isfinite(X).all(axis=1)
    assert float(found.correct) == np.sum((xs.mlp_predict(params, X, validate=False) == y) & counts)
    assert found.counted == np.sum(y != options.get("ignore_index"))


@pytest.mark.parametrize("patience", [None, 2])
def test_a_validation_loss_that_is_not_finite_is_a_divergence(patience, backend, problem):
    if backend.name == "dask":
        pytest.skip("refused")
    params, X, y = problem
    large = np.full((3, D), 1e308) * [[1], [-1], [1]]  # finite, but its logits are not
    held = moved(backend, params), backend.asarray(X), backend.asarray(y)
    options = {"optimizer": xs.adam(0.01), "epochs": 4, "batch_size": BATCH, "rng": 3, "patience": patience}
    with pytest.raises(
        xs.DivergenceError, match=r"^validation loss must be finite in training, got (nan|inf) after step 4\. A smaller"
    ) as caught:
        xs.train(*held, validation=(backend.asarray(large), backend.asarray(y[:3])), **options)
    result = caught.value.result
    assert (caught.value.step, len(result.history["loss"]), result.state.epoch, result.state.step) == (4, 5, 0, 5)
    again = pickle.loads(pickle.dumps(caught.value)) if backend.name == "numpy" else caught.value
    assert str(again) == str(caught.value)
    # Its state can be resumed, with validation data that is sound.
    validation = held[1:]
    whole = xs.train(*held, validation=validation, **options)
    rest = xs.train(*held, validation=validation, resume=result.state, **options)
    assert rest.history == whole.history


def test_a_bad_validation_label_that_was_not_looked_at_is_named(problem):
    params, X, y = problem
    wrong = y.copy()
    wrong[5] = C
    message = r"^validation loss must be .* after step 4\. In the validation data targets must be .*, got 4 at row 5\."
    with pytest.raises(xs.DivergenceError, match=message):
        xs.train(params, X, y, optimizer=xs.sgd(0.1), epochs=2, batch_size=BATCH, rng=3, validation=(X, wrong),
                 validate=False)  # fmt: skip


@pytest.mark.parametrize("max_memory", [None, 6000])
@pytest.mark.parametrize("validate", [True, False])
def test_the_first_row_of_inputs_that_are_not_finite_is_named(validate, max_memory, backend, problem):
    """Whichever batch meets one first; nothing is said of the learning rate."""
    if backend.name == "dask":
        pytest.skip("refused")
    params, X, y = problem
    X[[7, 40], [1, 3]] = np.nan
    weight = np.ones(N)
    weight[7] = 0.0
    held = moved(backend, params), backend.asarray(X), backend.asarray(y)
    options = {"optimizer": xs.sgd(0.1), "epochs": 2, "batch_size": BATCH, "rng": 3, "max_memory": max_memory}
    with pytest.raises(
        xs.DivergenceError, match=r"^X must be finite, got nan at row 7\. The loss became nan at"
    ) as error:
        xs.train(*held, validate=validate, **options)
    assert "learning rate" not in str(error.value)
    with pytest.raises(xs.DivergenceError, match=r"^X must be finite, got nan at row 40\. The loss became nan at step"):
        xs.train(*held, validate=validate, sample_weight=backend.asarray(weight), **options)


def test_a_memory_map_that_is_not_finite(problem, tmp_path):
    params, X, y = problem
    X[33, 2] = np.nan
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    options = {"optimizer": xs.sgd(0.1), "epochs": 2, "batch_size": BATCH, "rng": 3, "max_memory": 3000}
    with pytest.raises(xs.DivergenceError, match=r"^X must be finite, got nan at row 33\."):
        xs.train(params, mapped, y, **options)
    with pytest.raises(ValueError, match=r"^validation\[0\] must be finite, got nan at row 33\."):
        xs.train(params, X[:30], y[:30], validation=(mapped, y), **options)


def test_infinite_inputs_whose_loss_is_finite(problem):
    """Tanh of infinity is 1; the gradient of the weights is nan, and so are the parameters after the last step."""
    params, X, y = problem
    X[33, 2] = np.inf
    options = {"optimizer": xs.sgd(0.1), "epochs": 1, "batch_size": N, "rng": 3, "activation": "tanh"}
    with pytest.raises(
        xs.DivergenceError, match=r"^X must be finite, got inf at row 33\. The parameters are not finite after step 0\."
    ):
        xs.train(params, X, y, **options)


def test_a_bad_label_that_was_not_looked_at_is_named(problem):
    params, X, y = problem
    y[12] = C
    with pytest.raises(xs.DivergenceError, match=r"^targets must be labels from 0 to 3 .*, got 4 at row 12\. The loss"):
        xs.train(params, X, y, optimizer=xs.sgd(0.1), epochs=1, batch_size=N, rng=3, validate=False)


def test_params_that_are_not_finite_are_named(backend, problem):
    if backend.name == "dask":
        pytest.skip("refused")
    params, X, y = problem
    params[1].bias[2] = np.nan
    held = moved(backend, params), backend.asarray(X), backend.asarray(y)
    with pytest.raises(
        xs.DivergenceError, match=r"^params must be finite, got nan or inf\. The loss became nan at step 0"
    ):
        xs.train(*held, optimizer=xs.sgd(0.1), epochs=1, batch_size=BATCH, rng=3)


def test_numbers_that_are_too_large_for_the_first_step(problem):
    params, X, y = problem
    message = r"^loss must be finite in training, got nan at step 0\. There was no update before: X, weights or params"
    with pytest.raises(xs.DivergenceError, match=message):
        xs.train(params, np.sign(X) * 1e308, y, optimizer=xs.sgd(0.1), epochs=1, batch_size=BATCH, rng=3)


def test_inputs_are_looked_at_only_where_a_loss_is_not_finite(problem, monkeypatch):
    params, X, y = problem
    looks = []
    look = train_data.first_not_finite
    monkeypatch.setattr(train_data, "first_not_finite", lambda *args: looks.append(args[1]) or look(*args))
    options = {"optimizer": xs.sgd(0.1), "epochs": 3, "batch_size": BATCH, "rng": 3}
    xs.train(params, X, y, **options)
    assert looks == []
    xs.train(params, X, y, validation=(X, y), **options)
    assert looks == ["X"]
    X[0] = np.nan
    with pytest.raises(xs.DivergenceError):
        xs.train(params, X, y, **options)
    assert looks == ["X", "X"]


# --- memory and the job itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_steps_allocate_no_matrix_of_the_rows(activation):
    """Once the first steps have made their arrays: nothing as large as a column of 16-bit numbers times the batch."""
    rng = np.random.default_rng(0)
    n, batch, d, h, c = 8192, 2048, 64, 96, 128
    X, y = rng.standard_normal((n, d), dtype="f4"), rng.integers(0, c, n)
    params = xs.init_params((d, h, c), rng=0, dtype=np.float32)
    peaks = []

    def callback(step):
        if tracemalloc.is_tracing():
            current, peak = tracemalloc.get_traced_memory()
            peaks.append(peak - current)
        else:
            tracemalloc.start()
        tracemalloc.reset_peak()

    with xs.threads(1):
        xs.train(params, X, y, optimizer=xs.sgd(0.1), epochs=3, batch_size=batch, rng=0, callback=callback,
                 activation=activation)  # fmt: skip
    tracemalloc.stop()
    smallest = batch * d * 4
    assert len(peaks) == 11
    # What is there for a moment: row numbers, row sums, and in a part of 256 KiB the temporaries of its formulas.
    assert max(peaks[3:]) < smallest + 6 * 2**18 if activation == "tanh" else max(peaks[3:]) < smallest


def test_digits_reach_97_percent_with_adam():
    datasets = pytest.importorskip("sklearn.datasets")
    X, y = datasets.load_digits(return_X_y=True)
    X = (X / 16.0).astype("f4")
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))
    test, fit = order[:450], order[450:]
    params = xs.init_params((64, 64, 10), rng=rng, dtype=np.float32)
    result = xs.train(params, X[fit], y[fit], optimizer=xs.adam(3e-3), epochs=60, batch_size=64, rng=rng, reg=1e-4)
    assert np.mean(xs.mlp_predict(result.params, X[test]) == y[test]) >= 0.97


# --- progress, and what is refused ------------------------------------------------------------------------------------


def test_progress_counts_the_steps(problem, capsys):
    pytest.importorskip("tqdm")
    state = xs.train(*problem, optimizer=xs.sgd(0.1), epochs=1, batch_size=BATCH, rng=3).state
    xs.train(*problem, optimizer=xs.sgd(0.1), epochs=3, batch_size=BATCH, rng=3, resume=state, progress=True)
    assert "10/10" in capsys.readouterr().err


def test_progress_without_tqdm(problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"progress needs tqdm, which is not installed: pip install tqdm\."):
        xs.train(*problem, optimizer=xs.sgd(0.1), epochs=1, batch_size=BATCH, rng=3, progress=True)


BAD = {
    "optimizer": ({"optimizer": "adam"}, TypeError, r"optimizer must be made by sgd, adam or adamw, got 'adam'\."),
    "epochs": ({"epochs": 0}, ValueError, r"epochs must be at least 1, got 0\."),
    "epochs, float": ({"epochs": 1.0}, TypeError, r"epochs must be an integer, got 1\.0\."),
    "batch size": ({"batch_size": 0}, ValueError, r"batch_size must be at least 1, got 0\."),
    "rng": ({"rng": "x"}, TypeError, r"rng must be what numpy\.random\.default_rng takes, got 'x'\."),
    "reg": ({"reg": -1.0}, ValueError, r"reg must be finite and at least 0, got -1\.0\."),
    "activation": ({"activation": "swish"}, ValueError, r"activation must be one of .*, got 'swish'\."),
    "validation": ({"validation": 3}, TypeError, r"validation must be a pair \(X, targets\), got 3\."),
    "patience": ({"patience": 1}, ValueError, r"patience must be None without validation data, got 1\."),
    "resume": ({"resume": 3}, TypeError, r"resume must be the state of an earlier call, got 3\."),
    "callback": ({"callback": 3}, TypeError, r"callback must be a function, got 3\."),
    "progress": ({"progress": 1}, TypeError, r"progress must be True or False, got 1\."),
    "reduction": ({"reduction": "none"}, ValueError, r'reduction must be one of "mean", "sum", got \'none\'\.'),
    "max_memory": (
        {"max_memory": 1},
        ValueError,
        r"max_memory must be at least \d+ bytes, what one row needs, got 1\.",
    ),
    "impl": ({"impl": "fast"}, ValueError, r"impl must be one of .*, got 'fast'\."),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name, problem):
    given, error, message = BAD[name]
    options = {"optimizer": xs.sgd(0.1), "epochs": 1, "batch_size": BATCH, "rng": 3} | given
    with pytest.raises(error, match=message):
        xs.train(*problem, **options)


def test_bad_data_is_found_before_the_first_step(problem):
    params, X, y = problem
    options = {"optimizer": xs.sgd(0.1), "epochs": 1, "batch_size": BATCH, "rng": 3,
               "callback": lambda step: pytest.fail("a step was made")}  # fmt: skip
    wrong = y.copy()
    wrong[41] = C
    with pytest.raises(ValueError, match=r"targets must be labels from 0 to 3 .*, got 4 at row 41\."):
        xs.train(params, X, wrong, **options)
    with pytest.raises(ValueError, match=r"^validation\[1\] must be labels from 0 to 3 .*, got 4 at row 41\."):
        xs.train(params, X, y, validation=(X, wrong), **options)
    with pytest.raises(ValueError, match=r"^validation\[1\] must have shape .*, got \(3,\)"):
        xs.train(params, X, y, validation=(X, y[:3]), **options)
    with pytest.raises(
        TypeError, match=r"^validation\[0\] must have the dtype of the parameters, float64, got float32"
    ):
        xs.train(params, X, y, validation=(X.astype("f4"), y), **options)
    with pytest.raises(ValueError, match=r"X must have at least one row, got shape \(0, 5\)\."):
        xs.train(params, X[:0], y[:0], **options)
    with pytest.raises(ValueError, match=r"validation\[0\] must have at least one row, got shape \(0, 5\)\."):
        xs.train(params, X, y, validation=(X[:0], y[:0]), **options)
    with pytest.raises(ValueError, match=r"validation\[0\] must have shape \(N, 5\) to fit"):
        xs.train(params, X, y, validation=(X[:, :3], y), **options)
    with pytest.raises(TypeError, match=r"X must have the dtype of the parameters, float64, got float32"):
        xs.train(params, X.astype("f4"), y, **options)


def test_a_budget_too_small_for_soft_validation_targets_is_found_before_the_first_step(problem):
    """A row of soft targets needs more than one of labels: what is enough for training may not be for validation."""
    _, X, y = problem
    params = xs.init_params((D, C), rng=0)
    options = {"optimizer": xs.sgd(0.1), "epochs": 1, "batch_size": BATCH, "rng": 3,
               "callback": lambda step: pytest.fail("a step was made")}  # fmt: skip
    with pytest.raises(
        ValueError, match=r"max_memory must be at least 456 bytes, what one row needs, got 300\."
    ) as error:
        xs.train(params, X, y, validation=(X, np.eye(C)[y]), max_memory=300, **options)
    assert error.value.__notes__ == ["It is about validation[0], validation[1]."]


def test_a_state_of_another_training(problem):
    params, X, y = problem
    options = {"optimizer": xs.sgd(0.1), "epochs": 2, "batch_size": BATCH}
    state = xs.train(params, X, y, rng=3, **options).state
    with pytest.raises(ValueError, match=r"resume\.params must have weights of the shapes of params"):
        xs.train(xs.init_params((D, 3, C), rng=0), X, y, rng=3, resume=state, **options)
    with pytest.raises(ValueError, match=r"batch_size must be that of the training that is resumed, 10, got 12\."):
        xs.train(params, X, y, rng=3, resume=state, **(options | {"batch_size": 12}))
    with pytest.raises(ValueError, match=r"X must have as many rows as in the training that is resumed, 47, got 46\."):
        xs.train(params, X[1:], y[1:], rng=3, resume=state, **options)
    with pytest.raises(TypeError, match=r"resume must be of a training in float32, got one in float64\."):
        xs.train(moved_to(params, "f4"), X.astype("f4"), y, rng=3, resume=state, **options)
    with pytest.raises(ValueError, match=r"resume must be of a training by the same optimizer, got one .* Adam\("):
        xs.train(params, X, y, rng=3, resume=state, **(options | {"optimizer": xs.adam(0.1)}))
    other = np.random.Generator(np.random.MT19937(0))
    with pytest.raises(ValueError, match=r"rng must be of the kind of resume, PCG64, got MT19937\."):
        xs.train(params, X, y, rng=other, resume=state, **options)


@pytest.mark.backends("dask")
def test_dask_arrays_are_refused(backend, problem):
    params, X, y = problem
    held = moved(backend, params), backend.asarray(X), backend.asarray(y)
    with pytest.raises(TypeError, match=r"params must be arrays of numbers in memory, got dask arrays\."):
        xs.train(*held, optimizer=xs.sgd(0.1), epochs=1, batch_size=BATCH, rng=3)
