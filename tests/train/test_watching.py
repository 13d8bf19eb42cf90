"""What a training shows: the progress bar, the accuracy of each epoch, and whether it was interrupted."""

import re
import signal

import numpy as np
import pytest

import xpsoftmax as xs

N, D, H, C = 40, 6, 5, 3


@pytest.fixture
def problem(rng):
    return xs.init_params((D, H, C), rng=0), rng.standard_normal((N, D)), rng.integers(0, C, N)


def options(**more):
    return {"optimizer": xs.adam(0.05), "epochs": 3, "batch_size": 10, "rng": 0, **more}


# --- accuracy ---------------------------------------------------------------------------------------------------------


def test_the_accuracy_after_each_epoch(problem):
    _, X, y = problem
    seen = []

    def look(step):
        if step.step % 4 == 3:  # the last of an epoch
            seen.append(float((xs.mlp_predict(step.params, X) == y).mean()))

    result = xs.train(*problem, accuracy=True, callback=look, **options())
    assert result.history["accuracy"] == pytest.approx(seen, abs=1e-12)
    assert len(seen) == 3
    plain = xs.train(*problem, **options())
    assert "accuracy" not in plain.history
    np.testing.assert_array_equal(plain.params[0].weight, result.params[0].weight)


def test_rows_that_do_not_count_are_not_counted(problem):
    params, X, y = problem
    y = y.copy()
    y[::2] = -100
    result = xs.train(params, X, y, accuracy=True, ignore_index=-100, **options())
    right = xs.mlp_predict(result.params, X[1::2]) == y[1::2]
    assert result.history["accuracy"][-1] == pytest.approx(right.mean(), abs=1e-12)


def test_accuracy_on_every_library(backend, problem):
    if backend.name == "dask":
        pytest.skip("dask arrays are trained by xpsoftmax.dask")
    params, X, y = problem
    there = [[backend.asarray(array) for array in layer] for layer in params], backend.asarray(X), backend.asarray(y)
    result, here = (xs.train(*arguments, accuracy=True, **options()) for arguments in (there, problem))
    assert result.history["accuracy"] == pytest.approx(here.history["accuracy"], abs=1.5 / N)


def test_a_training_with_accuracy_goes_on_with_it(problem, tmp_path):
    pytest.importorskip("safetensors")
    whole = xs.train(*problem, accuracy=True, **options(epochs=5))
    half = xs.train(*problem, accuracy=True, **options(epochs=5), callback=lambda step: step.step == 9)
    xs.save_state(tmp_path / "half", half.state)
    rest = xs.train(*problem, accuracy=True, resume=xs.load_state(tmp_path / "half"), **options(epochs=5))
    assert rest.history == whole.history
    for given in (True, False):
        state = xs.train(*problem, accuracy=not given, **options()).state
        with pytest.raises(
            ValueError, match=rf"^accuracy must be {not given}, as in the training that is resumed, got {given}\.$"
        ):
            xs.train(*problem, accuracy=given, resume=state, **options(epochs=5))
    with pytest.raises(TypeError, match=r"^accuracy must be True or False, got 1\.$"):
        xs.train(*problem, accuracy=1, **options())
    with pytest.raises(
        ValueError, match=r'^resume\.history\["accuracy"\] must have a number for each of 5 epochs, got 3'
    ):
        xs.train(
            *problem,
            accuracy=True,
            resume=whole.state._replace(history=whole.history | {"accuracy": [0.1] * 3}),
            **options(epochs=7),
        )


# --- interrupts -------------------------------------------------------------------------------------------------------


def test_whether_a_training_was_interrupted(problem):
    assert not xs.train(*problem, **options()).interrupted
    stopped = xs.train(*problem, callback=lambda step: step.step == 5, **options())
    assert not stopped.interrupted

    def press(step):
        if step.step == 5:
            signal.raise_signal(signal.SIGINT)

    result = xs.train(*problem, callback=press, **options())
    assert result.interrupted
    assert repr(result).endswith(", interrupted)")
    assert result.state.step + 4 * result.state.epoch == 6
    _, _, state = result  # still three
    rest = xs.train(*problem, resume=state, **options())
    assert not rest.interrupted
    whole = xs.train(*problem, **options())
    np.testing.assert_array_equal(rest.params[0].weight, whole.params[0].weight)


def test_an_interrupt_that_a_callback_raises(problem):
    def press(step):
        raise KeyboardInterrupt

    assert xs.train(*problem, callback=press, **options()).interrupted


# --- the progress bar -------------------------------------------------------------------------------------------------


def last_bar(capsys):
    return capsys.readouterr().err.rpartition("\r")[2]


def test_the_bar_shows_losses_and_accuracies(problem, capsys):
    pytest.importorskip("tqdm")
    held_out = problem[1:]
    result = xs.train(*problem, progress=True, accuracy=True, validation=held_out, **options())
    shown = last_bar(capsys)
    for name in ("loss", "validation_loss", "validation_accuracy", "accuracy"):
        assert f"{name.replace('_', ' ')} {result.history[name][-1]:.3g}" in shown, name
    assert "12/12" in shown
    xs.train(*problem, progress=True, **options())
    assert re.search(r", loss \d[\d.]*\]", last_bar(capsys))


def test_the_bar_waits_for_no_device(backend, problem, capsys, monkeypatch):
    """Losses of a device are shown when the epoch has ended."""
    pytest.importorskip("tqdm")
    if backend.name in ("dask", "numpy"):
        pytest.skip("no device")
    params, X, y = problem
    there = [[backend.asarray(array) for array in layer] for layer in params], backend.asarray(X), backend.asarray(y)
    from xpsoftmax._train import run

    written = []
    write = run._Bar._write
    monkeypatch.setattr(
        run._Bar, "_write", lambda bar, history: (written.append(len(history["loss"])), write(bar, history))
    )
    # Without views, which are on the host: tensors of a device go the same way.
    xs.train(*there, progress=True, impl="generic", **options())
    assert written == [4, 8, 12]
    assert ", loss " in last_bar(capsys)
