"""How many launches the functions of networks take on CuPy arrays, and how often they wait for the GPU.

On the stand-in CuPy (nox -s stand_in), through the launcher of the package. ADR 17 has the numbers: they may fall, and
must not rise. A launch takes some 5 to 10 microseconds of the host.
"""

from __future__ import annotations

import sys

import launch_counter
import numpy as np
import pytest

import xpsoftmax as xs

ROWS, SIZES = 20, (6, 7, 4)
OPTIONS = {
    "plain": {},
    "without validation": {"validate": False},
    "penalty": {"reg": 0.1},
    "label smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.1},
    "sample weights": {"sample_weight": True},
    "class weights": {"class_weight": True},
    "ignored rows": {"ignore_index": 2},
    "both weights, penalty": {"sample_weight": True, "class_weight": True, "reg": 0.1},
}
MOST = {  # launches of mlp_loss, of mlp_loss_and_grad
    "plain": (6, 11),
    "without validation": (5, 10),
    "penalty": (7, 12),
    "label smoothing": (7, 12),
    "z-loss": (7, 12),
    "sample weights": (8, 13),
    "class weights": (8, 13),
    "ignored rows": (8, 13),
    "both weights, penalty": (9, 14),
}


@pytest.fixture
def cp(monkeypatch):
    cupy = sys.modules.get("cupy")
    if not getattr(cupy, "stands_in", False):
        pytest.skip("the module that stands in for CuPy is not installed: nox -s stand_in")
    with launch_counter.real_launcher(monkeypatch):
        yield cupy


@pytest.fixture
def params(cp):
    return xs.to_namespace(xs.init_params(SIZES, rng=0, dtype=np.float32), cp)


@pytest.fixture
def data(cp, rng):
    X = rng.normal(size=(ROWS, SIZES[0])).astype("f4")
    return cp.asarray(X), cp.asarray(rng.integers(SIZES[-1], size=ROWS))


def count(call):
    """Of a call after the first, which compiles and remembers."""
    call()
    with launch_counter.counted() as found:
        call()
    return found


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("function", ["mlp_loss", "mlp_loss_and_grad"])
def test_losses_of_two_layers(cp, params, data, rng, function, name):
    sizes = {"sample_weight": ROWS, "class_weight": SIZES[-1]}
    options = {
        key: cp.asarray(rng.uniform(0.5, 2, sizes[key]).astype("f4")) if key in sizes else value
        for key, value in OPTIONS[name].items()
    }
    found = count(lambda: getattr(xs, function)(params, *data, **options))
    most = MOST[name][function == "mlp_loss_and_grad"]
    assert len(found.launches) <= most, found.launches
    assert len(found.waits) == options.get("validate", True)


def test_predictions(params, data):
    assert len(count(lambda: xs.mlp_logits(params, data[0])).launches) == 4
    found = count(lambda: xs.mlp_predict(params, data[0]))
    assert (len(found.launches), len(found.waits)) == (10, 1)
    found = count(lambda: xs.mlp_predict(params, data[0], validate=False))
    assert (len(found.launches), len(found.waits)) == (8, 0)


@pytest.mark.parametrize("optimizer", [xs.sgd(0.1), xs.sgd(0.1, 0.9), xs.adam(), xs.adamw()], ids=str)
def test_an_update_of_all_parameters_is_one_launch(params, optimizer):
    state = optimizer.init(params)
    found = count(lambda: optimizer.update(params, params, state))
    assert found == (["kernel parameter_update"], [])


@pytest.mark.parametrize(("depth", "max_memory", "sums"), [(2, None, 1), (4, 10**8, 1), (6, None, 1), (5, 10**8, 5)])
def test_biases_of_all_layers_are_summed_at_once_where_memory_allows(cp, data, depth, max_memory, sums):
    """Deeper networks within a limit of memory do not keep the gradients of all layers."""
    sizes = (SIZES[0], *[7] * (depth - 1), SIZES[-1])
    params = xs.to_namespace(xs.init_params(sizes, rng=0, dtype=np.float32), cp)
    found = count(lambda: xs.mlp_loss_and_grad(params, *data, max_memory=max_memory))
    assert found.launches.count("kernel sum_of_rows") == sums


def test_good_labels_that_a_kernel_calls_bad_are_taken(cp, params, data, monkeypatch):
    """An interrupted call may have left its flag."""
    launcher = sys.modules["xpsoftmax.kernels.cuda.launcher"]
    monkeypatch.setattr(launcher, "are_classes", lambda labels, classes: False)
    loss, _ = xs.mlp_loss_and_grad(params, *data)
    assert loss.shape == ()
