"""The state of a training in a file: every bit comes back, training goes on from it, also after kill -9."""

import json
import math
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from assertions import assert_same_bits

import xpsoftmax as xs

N, D, H, C = 23, 5, 7, 4
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.fixture
def problem(rng):
    return xs.init_params((D, H, C), rng=0), rng.standard_normal((N, D)), rng.integers(0, C, N)


def options(**more):
    rng = np.random.default_rng(7)
    held_out = rng.standard_normal((9, D)), rng.integers(0, C, 9)
    shared = {"optimizer": xs.adam(0.01), "batch_size": 10, "rng": 3, "validation": held_out, "patience": 50}
    return shared | {"activation": "tanh"} | more


def assert_same_layers(layers, desired):
    assert [type(layer) for layer in layers] == [type(layer) for layer in desired]
    for layer, expected in zip(layers, desired, strict=True):
        for array, values in zip(layer, expected, strict=True):
            assert type(array) is np.ndarray
            assert_same_bits(array, values)


def assert_same_state(state, desired):
    assert_same_layers(state.params, desired.params)
    assert state.optimizer[0] == desired.optimizer[0]
    for kept, expected in zip(state.optimizer[1:], desired.optimizer[1:], strict=True):
        assert_same_layers(kept, expected)
    np.testing.assert_equal(state.rng, desired.rng)
    np.testing.assert_equal(state.history, desired.history)
    same = ("epoch", "step", "rows", "batch_size", "blocks")
    assert [getattr(state, name) for name in same] == [getattr(desired, name) for name in same]
    assert (state.best is None) == (desired.best is None)
    if state.best is not None:
        np.testing.assert_equal(state.best[:2], desired.best[:2])
        assert_same_layers(state.best[2], desired.best[2])


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"optimizer": xs.sgd(0.1)},
        {"optimizer": xs.sgd(0.1, momentum=0.9)},
        {"validation": None, "patience": None},
        {"patience": None},
        {"callback": lambda step: step.step == 7},
        {"callback": lambda step: step.step == 0},
    ],
)
def test_every_number_comes_back(problem, path, more):
    state = xs.train(*problem, epochs=4, **options(**more)).state
    xs.save_state(path, state)
    assert_same_state(xs.load_state(path), state)


@pytest.mark.parametrize("name", BIT_GENERATORS)
def test_every_bit_generator(problem, path, name):
    """Some have integers of 128 bits, and some have arrays."""
    rng = np.random.Generator(getattr(np.random, name)(5))
    rng.integers(0, 10, dtype=np.int32)  # half of a number is left over
    chosen = options(rng=rng, callback=lambda step: step.step == 4)
    state = xs.train(*problem, epochs=4, **chosen).state
    xs.save_state(path, state)
    loaded = xs.load_state(path)
    assert_same_state(loaded, state)
    whole = xs.train(*problem, epochs=6, resume=state, **options(rng=np.random.Generator(getattr(np.random, name)(0))))
    again = xs.train(*problem, epochs=6, resume=loaded, **options(rng=np.random.Generator(getattr(np.random, name)(0))))
    assert_same_state(again.state, whole.state)


@pytest.mark.parametrize("stop", [0, 2, 3, 7])
def test_a_training_goes_on_to_the_same_bits(problem, path, dtype, stop):
    params, X, y = problem
    problem = [tuple(layer.astype(dtype) for layer in pair) for pair in params], X.astype(dtype), y
    held_out = tuple(array.astype(dtype) if i == 0 else array for i, array in enumerate(options()["validation"]))
    chosen = options(validation=held_out)
    whole = xs.train(*problem, epochs=5, **chosen)
    stopped = xs.train(*problem, epochs=5, callback=lambda step: step.step == stop, **chosen)
    xs.save_state(path, stopped.state)
    rest = xs.train(*problem, epochs=5, resume=xs.load_state(path), **chosen)
    assert_same_state(rest.state, whole.state)
    assert_same_layers(rest.params, whole.params)


def test_a_loss_that_no_row_counts_for_is_nan_in_the_file_too(problem, path):
    weights = np.zeros(N)
    weights[0] = 1.0
    state = xs.train(*problem, epochs=2, sample_weight=weights, **options()).state
    assert np.isnan(state.history["loss"]).sum() == 4
    xs.save_state(path, state)
    assert_same_state(xs.load_state(path), state)


def test_what_one_library_wrote_every_other_goes_on_from(backend, dtype, rng, path):
    if backend.name == "dask":
        pytest.skip("dask arrays are trained by xpsoftmax.dask")
    host = xs.init_params((D, H, C), rng=0, activation="tanh")
    X, y = rng.standard_normal((N, D)), rng.integers(0, C, N)
    params = [[backend.asarray(array, dtype) for array in layer] for layer in host]
    arguments = params, backend.asarray(X, dtype), backend.asarray(y)
    chosen = {"optimizer": xs.adam(0.01), "batch_size": 10, "rng": 3, "activation": "tanh"}
    state = xs.train(*arguments, epochs=3, **chosen).state
    xs.save_state(path, state)
    loaded = xs.load_state(path, xp=backend.library, device=backend.device)
    again, whole = (xs.train(*arguments, epochs=5, resume=s, **chosen) for s in (loaded, state))
    for layer, expected in zip(again.params, whole.params, strict=True):
        for array, values in zip(layer, expected, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(array), backend.to_numpy(values))
    on_host = tuple(tuple(array.astype(dtype) for array in layer) for layer in host), X.astype(dtype), y
    here = xs.train(*on_host, epochs=5, resume=xs.load_state(path), **chosen)
    assert here.state.epoch == 5
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(here.params[0].weight, backend.to_numpy(again.params[0].weight), atol=tolerance, rtol=0)


def test_other_programs_can_look_in(problem, path):
    state = xs.train(*problem, epochs=2, **options()).state
    xs.save_state(path, state)
    tensors = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(tensors["params.layers.0.weight"], state.params[0].weight)
    np.testing.assert_array_equal(tensors["optimizer.1.layers.1.bias"], state.optimizer[2][1].bias)
    np.testing.assert_array_equal(tensors["history.validation_accuracy"], state.history["validation_accuracy"])


# --- a step's state ---------------------------------------------------------------------------------------------------


def test_the_state_of_a_step_is_that_of_a_training_that_stops_there(problem):
    seen = []
    xs.train(*problem, epochs=4, callback=lambda step: seen.append(step.state), **options())
    for i in (0, 2, 5, 11):
        stopped = xs.train(*problem, epochs=4, callback=lambda step, i=i: step.step == i, **options())
        if stopped.state.step == 0:  # it has ended the epoch, which a callback has not seen yet
            assert seen[i].step == 3
            resumed = xs.train(*problem, epochs=stopped.state.epoch, resume=seen[i], **options())
            assert_same_state(resumed.state, stopped.state)
        else:
            assert_same_state(seen[i], stopped.state)


def test_states_of_steps_on_every_library(backend, rng):
    """Losses that wait on the device are looked at; the training ends as if no one had asked."""
    if backend.name == "dask":
        pytest.skip("dask arrays are trained by xpsoftmax.dask")
    params = [[backend.asarray(array) for array in layer] for layer in xs.init_params((D, H, C), rng=0)]
    arguments = params, backend.asarray(rng.standard_normal((N, D))), backend.asarray(rng.integers(0, C, N))
    chosen = {"optimizer": xs.adam(0.01), "batch_size": 5, "rng": 3, "epochs": 2}
    losses = []
    asked = xs.train(*arguments, callback=lambda step: losses.append(len(step.state.history["loss"])), **chosen)
    assert losses == list(range(1, 11))
    plain = xs.train(*arguments, **chosen)
    np.testing.assert_array_equal(asked.history["loss"], plain.history["loss"])
    np.testing.assert_array_equal(*(backend.to_numpy(result.params[0].weight) for result in (asked, plain)))


def test_it_must_be_asked_for_in_time(problem):
    steps = []
    xs.train(*problem, epochs=1, callback=steps.append, **options())
    with pytest.raises(RuntimeError, match=r"^state must be asked for while the callback runs"):
        _ = steps[0].state
    with pytest.raises(RuntimeError, match=r"^params must be asked for while the callback runs"):
        _ = steps[0].params


# --- while it trains --------------------------------------------------------------------------------------------------


def test_a_callback_saves_every_so_many_steps(problem, path):
    saved = []
    save = xs.checkpoint(path, every=4)

    def callback(step):
        save(step)
        saved.append(len(xs.load_state(path).history["loss"]) if path.exists() else 0)

    xs.train(*problem, epochs=4, callback=callback, **options())
    assert saved == [0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12]


def test_a_save_that_fails_is_a_warning(problem, path, monkeypatch):
    def failing(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.warns(RuntimeWarning, match=r"^The state after step \d+ is not saved: no space left\.$") as caught:
        result = xs.train(*problem, epochs=2, callback=xs.checkpoint(path, every=3), **options())
    assert len(caught) == 2
    assert result.state.epoch == 2
    assert list(path.parent.iterdir()) == []


TRAINING = """
import sys, time
import numpy as np
import xpsoftmax as xs
path, epochs = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
X, y = rng.standard_normal((400, 20)), rng.integers(0, 5, 400)
options = {"optimizer": xs.adam(1e-3), "batch_size": 20, "rng": 1, "epochs": epochs}
options |= {"validation": (X[:50], y[:50]), "patience": 1000}
try:
    state = xs.load_state(path)
except FileNotFoundError:
    state = None
print("begins", flush=True)
options |= {"resume": state, "callback": xs.checkpoint(path, every=1)}
result = xs.train(xs.init_params((20, 30, 5), rng=0), X, y, **options)
xs.save_state(path, result.state)
"""


@POSIX
def test_a_training_that_is_killed_again_and_again(path):
    """It saves each step and is killed at any moment; in the end it has the bits of one that was left alone."""
    command = [sys.executable, "-c", TRAINING, str(path), "40"]
    waits, kills = random.Random(0), 0
    for _ in range(6):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "begins\n"
        time.sleep(waits.uniform(0.02, 0.4))
        process.kill()
        _, errors = process.communicate()
        assert errors == ""
        kills += process.returncode == -signal.SIGKILL
        if path.exists():
            xs.load_state(path)
    assert kills > 0
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert list(path.parent.iterdir()) == [path]  # what killed writers left is gone
    alone = path.with_name("alone")
    subprocess.run([*command[:3], str(alone), "40"], check=True, stdout=subprocess.DEVNULL)
    assert_same_state(xs.load_state(path), xs.load_state(alone))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_no_state(problem, path):
    result = xs.train(*problem, epochs=1, **options())
    with pytest.raises(TypeError, match=r"^state must be a TrainState, got a TrainResult\. Pass its `state`\.$"):
        xs.save_state(path, result)
    with pytest.raises(TypeError, match=r"^state must be a TrainState, got 3\.$"):
        xs.save_state(path, 3)
    with pytest.raises(TypeError, match=r"^state\.rng\.state must be a number, a text or an array, got 1\.5\.$"):
        xs.save_state(path, result.state._replace(rng={"state": 1.5}))
    assert list(path.parent.iterdir()) == []


def test_what_checkpoint_refuses(path):
    with pytest.raises(FileNotFoundError, match=r"^path must be in a folder that exists, got "):
        xs.checkpoint(path.parent / "runs" / "run", every=3)
    with pytest.raises(ValueError, match=r"^every must be .*1.*, got 0\.$"):
        xs.checkpoint(path, every=0)
    with pytest.raises(TypeError, match=r"^path must be a str or an os\.PathLike of one, got 3\.$"):
        xs.checkpoint(3, every=3)


def test_a_file_of_parameters_is_no_state(problem, path):
    xs.save_params(path, problem[0])
    with pytest.raises(ValueError, match=r"^path must name a file that xpsoftmax wrote, .*not that of a state"):
        xs.load_state(path)
    xs.save_state(path, xs.train(*problem, epochs=1, **options()).state)
    with pytest.raises(ValueError, match=r"^path must name a file that xpsoftmax wrote, .*its metadata is "):
        xs.load_params(path)


def stored(problem, path):
    xs.save_state(path, xs.train(*problem, epochs=2, **options()).state)
    with safetensors.safe_open(path, framework="np") as file:
        return safetensors.numpy.load_file(path), json.loads(file.metadata()["xpsoftmax"])


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        ({"params.layers.0.bias": None}, {}, "among 3 tensors it has no layers.0.bias"),
        ({"optimizer.1.layers.0.bias": None}, {}, "among 3 tensors it has no layers.0.bias"),
        ({"history.loss": None}, {}, "it lacks a part of the state, 'history.loss'"),
        ({"more": np.zeros(2)}, {}, r"it has tensors that no state has, \['more'\]"),
        ({}, {"epoch": None}, "its epoch is None, not an integer"),
        ({}, {"epoch": 1.5}, "its epoch is 1.5, not an integer"),
        ({}, {"activation": ["tanh"]}, "its params has 2 layers, but it has the activations of 1"),
        ({}, {"activation": ["step", None]}, r"its activations are \['step', None\], not a list of"),
        ({}, {"format": 2}, "its metadata is .*'format': 2.* not that of a state"),
    ],
)
def test_files_that_are_not_whole(problem, path, tensors, metadata, reason):
    own, said = stored(problem, path)
    changed = {name: array for name, array in (own | tensors).items() if array is not None}
    safetensors.numpy.save_file(changed, path, metadata={"xpsoftmax": json.dumps(said | metadata)})
    with pytest.raises(
        ValueError, match=f"path must name a file that xpsoftmax wrote, got {re.escape(str(path))}: .*{reason}"
    ):
        xs.load_state(path)


@pytest.mark.parametrize("name", ["epoch", "updates", "rng", "best", "history", "blocks", "activation", "kept"])
def test_metadata_that_lacks_something(problem, path, name):
    own, said = stored(problem, path)
    del said[name]
    safetensors.numpy.save_file(own, path, metadata={"xpsoftmax": json.dumps(said)})
    with pytest.raises(ValueError, match=f"it lacks a part of the state, '{name}'"):
        xs.load_state(path)


def test_a_state_that_does_not_fit_is_refused_by_train(problem, path):
    own, said = stored(problem, path)
    own["params.layers.0.weight"][0, 0] = np.nan
    safetensors.numpy.save_file(own, path, metadata={"xpsoftmax": json.dumps(said)})
    with pytest.raises(ValueError, match=r"^resume\.params\[0\]\.weight must be finite, got nan"):
        xs.train(*problem, epochs=4, resume=xs.load_state(path), **options())


def test_nothing_in_a_file_is_executed(path, problem):
    path.write_bytes(pickle.dumps(xs.train(*problem, epochs=1, **options()).state))
    with pytest.raises(ValueError, match=r"^path must name a safetensors file that is whole"):
        xs.load_state(path)


def test_no_file(path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        xs.load_state(Path(path))


BAD_FIELDS = {
    "params": ((1,), TypeError, r"^state\.params\[0\] must be a pair \(weight, bias\), got 1\.$"),
    "optimizer": (None, TypeError, r"^state\.optimizer must be the state of an optimizer, got None\.$"),
    "optimizer's count": (("3",), TypeError, r"^state\.optimizer\[0\] must be an integer, got '3'\.$"),
    "optimizer's arrays": (
        (3, None),
        TypeError,
        r"^state\.optimizer\[1\] must be a non-empty sequence of .*, got None",
    ),
    "epoch": ("a", TypeError, r"^state\.epoch must be an integer, got 'a'\.$"),
    "step": (-1, ValueError, r"^state\.step must be at least 0, got -1\.$"),
    "rng": (3, TypeError, r"^state\.rng must be the state of a bit generator, a dict, got 3\.$"),
    "history": (3, TypeError, r"^state\.history must be a dict of lists, got 3\.$"),
    "history's lists": ({"loss": 1.0}, TypeError, r"^state\.history must be a dict of lists, got \{'loss': 1\.0\}\.$"),
    "history's numbers": (
        {"loss": [1.0, "x"]},
        TypeError,
        r'^state\.history\["loss"\]\[1\] must be a real number, got',
    ),
    "best": (
        (1.0,),
        TypeError,
        r"^state\.best must be None or \(validation loss, epoch, parameters\), got \(1\.0,\)\.$",
    ),
    "best's loss": ((math.inf, 1, ()), ValueError, r"^state\.best\[0\] must be finite, or nan .*, got inf\.$"),
    "best's parameters": (
        (1.0, 1, ()),
        TypeError,
        r"^state\.best\[2\] must be a non-empty sequence of .*, got \(\)\.$",
    ),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_state_that_could_not_be_read_again_is_not_written(name, problem, tmp_path):
    value, error, message = BAD_FIELDS[name]
    state = xs.train(*problem, epochs=1, **options()).state
    path = tmp_path / "state"
    with pytest.raises(error, match=message):
        xs.save_state(path, state._replace(**{name.partition("'")[0]: value}))
    assert not path.exists()
