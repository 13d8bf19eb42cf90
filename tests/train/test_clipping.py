"""Gradients are shortened to a norm over all layers: the values, beside PyTorch, on every library, at the limits."""

import math

import numpy as np
import pytest
from assertions import assert_like

import xpsoftmax as xs


def drawn(backend, dtype, rng, scale=1.0):
    """Gradients of two layers, there and on the host."""
    shapes = ((3, 4), (4,), (4, 2), (2,))
    host = [(scale * rng.standard_normal(shape)).astype(dtype) for shape in shapes]
    there = [backend.asarray(array) for array in host]
    return (xs.Layer(*there[:2]), xs.Layer(*there[2:])), host


def zeros(backend, grads, dtype):
    return tuple(xs.Layer(*(backend.asarray(np.zeros(array.shape, dtype)) for array in layer)) for layer in grads)


def minus_step(backend, grads, max_norm, dtype="float64"):
    """The gradients that an update by sgd(1.0) makes use of, on the host, in the order of `drawn`."""
    optimizer = xs.clip_by_global_norm(xs.sgd(1.0), max_norm)
    params = zeros(backend, grads, dtype)
    after, state = optimizer.update(params, grads, optimizer.init(params))
    assert state[0] == 1
    return after, [-backend.to_numpy(array) for layer in after for array in layer]


def norm(arrays):
    return math.sqrt(sum(float(np.sum(array.astype(np.float64) ** 2)) for array in arrays))


def test_long_gradients_become_as_long_as_the_bound(backend, dtype, rng):
    grads, host = drawn(backend, dtype, rng)
    after, used = minus_step(backend, grads, 0.5, dtype)
    assert norm(host) > 0.5
    eps = np.finfo(dtype).eps
    for array, given in zip(used, host, strict=True):
        expected = given.astype(np.float64) * 0.5 / norm(host)
        np.testing.assert_allclose(array, expected, rtol=16 * eps)
    assert_like(after[0].weight, backend=backend, dtype=dtype, shape=(3, 4))


def test_short_gradients_keep_their_bits(backend, dtype, rng):
    grads, host = drawn(backend, dtype, rng)
    _, used = minus_step(backend, grads, 100.0, dtype)
    for array, given in zip(used, host, strict=True):
        np.testing.assert_array_equal(array, given)


@pytest.mark.parametrize("exponent", [-30, 30])
def test_squares_that_would_overflow_or_vanish(backend, rng, exponent):
    """In float32 the square of 1e30 is infinite, and that of 1e-30 is 0."""
    scale = 10.0**exponent
    grads, host = drawn(backend, "float32", rng, scale)
    _, used = minus_step(backend, grads, scale, "float32")
    assert norm(host) > scale
    for array, given in zip(used, host, strict=True):
        np.testing.assert_allclose(array, given.astype(np.float64) * scale / norm(host), rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_gradients_that_have_no_norm_or_none_to_speak_of(backend, rng, value):
    """They stay as they are: a training ends as it would without clipping."""
    grads, host = drawn(backend, "float64", rng, 0.0)
    host[0][1, 2] = value
    grads = (grads[0]._replace(weight=backend.asarray(host[0])), grads[1])
    _, used = minus_step(backend, grads, 0.5)
    for array, given in zip(used, host, strict=True):
        np.testing.assert_array_equal(array, given)


def test_the_numbers_of_pytorch(rng):
    torch = pytest.importorskip("torch")
    from backends import backend_named

    _, host = drawn(backend_named("numpy"), "float64", rng)
    parameters = [torch.nn.Parameter(torch.zeros(array.shape, dtype=torch.float64)) for array in host]
    for parameter, array in zip(parameters, host, strict=True):
        parameter.grad = torch.asarray(array)
    torch.nn.utils.clip_grad_norm_(parameters, 0.5)
    _, used = minus_step(backend_named("numpy"), (xs.Layer(*host[:2]), xs.Layer(*host[2:])), 0.5)
    for array, parameter in zip(used, parameters, strict=True):
        np.testing.assert_allclose(array, parameter.grad.numpy(), rtol=1e-5)  # PyTorch adds 1e-6 to the norm


def test_arguments_are_not_modified(backend, rng):
    grads, host = drawn(backend, "float64", rng)
    minus_step(backend, grads, 0.1)
    for array, given in zip((array for layer in grads for array in layer), host, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(array), given)


def test_a_training_with_clipping_is_that_of_a_loop(rng):
    """The penalty is part of what is shortened; the state is that of the optimiser within."""
    X, y = 10.0 * rng.standard_normal((20, 3)), rng.integers(0, 4, 20)
    params = xs.init_params((3, 5, 4), rng=0)
    inner = xs.adam(0.1)
    optimizer = xs.clip_by_global_norm(inner, 0.3)
    trained = xs.train(params, X, y, optimizer=optimizer, reg=0.1, epochs=7, batch_size=20, rng=1)
    state = inner.init(params)
    for _ in range(7):
        _, grads = xs.mlp_loss_and_grad(params, X, y, reg=0.1)
        arrays = [array for layer in grads for array in layer]
        factor = min(1.0, 0.3 / norm(arrays))
        grads = tuple(xs.Layer(*(factor * array for array in layer)) for layer in grads)
        params, state = inner.update(params, grads, state)
    for layer, expected in zip(trained.params, params, strict=True):
        np.testing.assert_allclose(layer.weight, expected.weight, rtol=1e-11, atol=1e-13)
    resumed = xs.train(params, X, y, optimizer=inner, reg=0.1, epochs=8, batch_size=20, rng=1, resume=trained.state)
    assert resumed.state.epoch == 8


def test_a_schedule_goes_on_within():
    optimizer = xs.clip_by_global_norm(xs.sgd(xs.cosine_schedule(0.5, steps=9)), 1.0)
    assert optimizer.learning_rate(0) == 0.5


@pytest.mark.parametrize(
    ("optimizer", "max_norm", "error", "message"),
    [
        (0.1, 1.0, TypeError, r"^optimizer must be made by sgd, adam or adamw, got 0\.1\.$"),
        (xs.sgd(0.1), 0.0, ValueError, r"^max_norm must be above 0, got 0\.0\.$"),
        (xs.sgd(0.1), -1.0, ValueError, r"^max_norm must be finite and at least 0, got -1\.0\.$"),
        (xs.sgd(0.1), None, TypeError, r"^max_norm must be a real number, got None\.$"),
    ],
)
def test_what_is_refused(optimizer, max_norm, error, message):
    with pytest.raises(error, match=message):
        xs.clip_by_global_norm(optimizer, max_norm)
