"""numerical_grad and check_grad: they measure, and they see what is wrong."""

import math

import numpy as np
import pytest
from _assert import assert_like, assert_within

import xpsoftmax as xs


def cubes(x):
    return (x * x * x).sum()


@pytest.mark.parametrize(("order", "power"), [(2, 2), (4, 4)])
def test_error_falls_with_the_order(order, power):
    x = np.array([0.7])
    errors = [
        abs(float(xs.numerical_grad(lambda x: np.exp(x).sum(), x, order=order, step=step)[0]) - math.exp(0.7))
        for step in (0.1, 0.05)
    ]
    assert 0.9 < math.log2(errors[0] / errors[1]) / power < 1.1


def test_order_two_is_exact_for_parabolas_and_order_four_for_quartics():
    x = np.array([0.5, -2.0])
    np.testing.assert_allclose(xs.numerical_grad(lambda x: (x**2).sum(), x, order=2, step=0.25), 2 * x, rtol=1e-14)
    np.testing.assert_allclose(xs.numerical_grad(lambda x: (x**4).sum(), x, order=4, step=0.25), 4 * x**3, rtol=1e-13)


def test_gradient_is_an_array_like_x(backend, dtype, rng):
    values = rng.standard_normal((2, 3)).astype(dtype)
    x = backend.asarray(values)
    grad = xs.numerical_grad(lambda x: backend.xp.sum(x * x * x), x)
    assert_like(grad, backend=backend, dtype=dtype, shape=(2, 3))
    # Truncation is exact for a cubic; what is left is the rounding of the function over the step.
    rounding = float(np.finfo(dtype).eps) ** 0.8 * 40
    assert assert_within(backend.to_numpy(grad), 3 * values.astype("f8") ** 2, bound=rounding) == 6


def test_x_is_not_modified(backend, dtype, rng):
    values = rng.standard_normal((2, 3)).astype(dtype)
    x = backend.asarray(values)
    xs.numerical_grad(lambda x: backend.xp.sum(x), x)
    np.testing.assert_array_equal(backend.to_numpy(x), values)


def test_directions_give_derivatives_along_unit_vectors(backend, rng):
    values = rng.standard_normal((4, 5))
    x = backend.asarray(values)
    derivatives, vectors = xs.numerical_grad(lambda x: backend.xp.sum(x * x * x), x, directions=3, rng=0)
    assert_like(derivatives, backend=backend, dtype="float64", shape=(3,))
    assert_like(vectors, backend=backend, dtype="float64", shape=(3, 4, 5))
    vectors = backend.to_numpy(vectors)
    np.testing.assert_allclose((vectors**2).sum(axis=(1, 2)), 1.0, rtol=1e-14)
    expected = (vectors * 3 * values**2).sum(axis=(1, 2))
    assert assert_within(backend.to_numpy(derivatives), expected, bound=1e-10) == 3


@pytest.mark.parametrize("directions", [None, 4])
def test_check_grad_is_small_for_a_right_gradient(directions, backend, rng):
    x = backend.asarray(rng.standard_normal((3, 4)))
    with backend.here:
        grad = 3.0 * x * x
    error = xs.check_grad(lambda x: backend.xp.sum(x * x * x), grad, x, directions=directions, rng=1)
    assert isinstance(error, float)
    assert error < 1e-10


@pytest.mark.parametrize("directions", [None, 4])
def test_check_grad_sees_one_wrong_entry(directions, rng):
    x = rng.standard_normal((3, 4))
    grad = 3 * x**2
    grad[1, 2] *= 1.001
    assert xs.check_grad(cubes, grad, x, directions=directions, rng=1) > 1e-6


def test_check_grad_is_norm_wise():
    x = np.array([3.0, 4.0])  # gradient (6, 8) of x^2 with norm 10
    error = xs.check_grad(lambda x: (x**2).sum(), np.array([6.0, 8.1]), x)
    assert error == pytest.approx(0.1 / math.hypot(6.0, 8.1), rel=1e-6)


def test_check_grad_of_a_constant_is_zero():
    assert xs.check_grad(lambda x: 1.0, np.zeros(3), np.zeros(3)) == 0.0


def test_check_grad_is_nan_where_a_gradient_is():
    assert math.isnan(xs.check_grad(cubes, np.array([np.nan, 0.0]), np.zeros(2)))


def test_same_rng_gives_the_same_directions():
    x = np.zeros((3, 4))
    first = xs.numerical_grad(cubes, x, directions=2, rng=7)[1]
    np.testing.assert_array_equal(first, xs.numerical_grad(cubes, x, directions=2, rng=7)[1])
    assert (first != xs.numerical_grad(cubes, x, directions=2, rng=8)[1]).any()
