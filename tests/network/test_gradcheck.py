"""numerical_grad and check_grad: they measure, and they see what is wrong."""

import math

import mpmath
import numpy as np
import pytest
from assertions import EPS, assert_like, assert_within

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


# --- the step that is taken -------------------------------------------------------------------------------------------

LARGE = [1e4, 1e6, 1e8, -3e10, 1e30]


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("value", [0.0, 1e-30, -0.3, 7.0, *LARGE])
def test_the_difference_is_divided_by_the_step_that_was_taken(value, order, backend, dtype):
    """In float32 1e6 + 0.04 is 1e6 + 0.0625, and 1e8 + 0.04 is 1e8.

    A sum of one entry is exact. What is left are the roundings of the quotient and of the result.
    """
    x = backend.asarray(np.array([value]), dtype)
    grad = xs.numerical_grad(lambda x: backend.xp.sum(x), x, order=order)
    derivatives, vectors = xs.numerical_grad(lambda x: backend.xp.sum(x), x, order=order, directions=2, rng=0)
    quotient = EPS[dtype] ** (order / (order + 1))  # a rounding of a value near 1, over the step
    assert assert_within(backend.to_numpy(grad), np.ones(1), bound=4 * quotient) == 1
    signs = backend.to_numpy(vectors)[:, 0]
    assert assert_within(backend.to_numpy(derivatives), signs, bound=4 * quotient) == 2
    np.testing.assert_allclose(np.abs(signs), 1.0, rtol=2 * EPS[dtype])


def test_magnitudes_may_be_mixed(dtype):
    """The function is exact here, whatever the dtype of x."""
    x = np.array([1e4, 1.0, -1e8, 0.0, 1e6, 1e-30, 0.1], dtype)
    weights = np.arange(1.0, 8.0)
    exact = lambda x: math.fsum(x.astype("f8") * weights)  # noqa: E731
    # All values are near 7e8: they round by eps of float64 of that, and the steps are at least eps ** (1/5) long.
    bound = 2 * EPS["float64"] * 7e8 / float(np.finfo(dtype).eps) ** 0.2
    assert assert_within(xs.numerical_grad(exact, x), weights, bound=bound + 8 * EPS[dtype]) == 7
    assert xs.check_grad(exact, weights.astype(dtype), x, directions=3, rng=0) < 1e-6


def test_small_entries_beside_large_ones_take_steps_that_the_function_can_see():
    """A sum near 1e8 is rounded to multiples of 8 in float32: steps of 0.04 leave it as it is."""
    x = np.array([1e4, 1e6, 1e8, 1.0, 0.1, 1e-30, 0.0], "f4")
    assert assert_within(xs.numerical_grad(np.sum, x), np.ones(7), bound=1e-5) == 7


FUNCTIONS = {
    "cube": (lambda x: x * x * x, lambda x: x**3),
    "quotient": (lambda x: 1.0 / x, lambda x: 1 / x),
    "log": (np.log, mpmath.log),
    "sqrt": (np.sqrt, mpmath.sqrt),
    "power": (lambda x: x**-1.5, lambda x: x ** mpmath.mpf("-1.5")),
    "sine": (np.sin, mpmath.sin),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("cube", "quotient", "log", "sqrt", "power") for value in (3.0, 50.0, 1e4, 1e8)),
        *(("sine", value) for value in (0.0, 3.0, 50.0, 1e4, 1e6)),
        *((name, value) for name in ("log", "sqrt") for value in (1e-3, 1e-8, 1e-30)),
        *(("cube", value) for value in (1e-8, 1e-20)),
    ],
)
def test_derivatives_of_smooth_functions_at_all_magnitudes(name, value):
    """In float64 right gradients are below 1e-8, as the docstring of `check_grad` says."""
    function, exact = FUNCTIONS[name]
    with mpmath.workdps(40):
        desired = float(mpmath.diff(exact, mpmath.mpf(value), h=mpmath.mpf(value or 1) * mpmath.mpf("1e-18")))
    with np.errstate(all="ignore"):  # steps may leave where a function has values
        error = xs.check_grad(lambda x: function(x).sum(), np.array([desired]), np.array([value]))
    assert error < 1e-8


@pytest.mark.parametrize("directions", [None, 4])
@pytest.mark.parametrize("offset", [0.0, 30.0, 1e4, -1e6])
def test_large_logits_keep_steps_of_the_length_one(offset, directions, rng):
    """In proportion to the logits a step would pass from one side of the loss to the other."""
    logits, labels = rng.standard_normal((3, 5)) + offset, rng.integers(0, 5, 3)
    for options in ({}, {"label_smoothing": 0.1}):
        _, dlogits = xs.softmax_loss_and_grad(logits, labels, **options)
        error = xs.check_grad(
            lambda z, options=options: xs.softmax_loss(z, labels, **options),
            dlogits,
            logits,
            directions=directions,
            rng=0,
        )
        assert error < 1e-8


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e8])
def test_wrong_gradients_are_seen_at_large_entries(scale, rng):
    x = rng.standard_normal((3, 4)) * scale
    grad = 3 * x**2
    grad[1, 2] *= 1.01
    assert xs.check_grad(cubes, grad, x) > 1e-4
    assert xs.check_grad(cubes, grad, x, directions=4, rng=1) > 1e-6


def test_ordinary_entries_take_four_calls_each(rng):
    calls = []
    xs.numerical_grad(lambda x: calls.append(x) or np.exp(x).sum(), rng.uniform(-3.0, 3.0, (4, 5)))
    assert len(calls) == 4 * 20


@pytest.mark.parametrize("directions", [None, 1])
def test_a_step_that_is_given_is_taken_everywhere(directions):
    points = []
    x = np.array([1e6, 0.0], "f4")
    xs.numerical_grad(lambda x: points.append(x) or x.sum(), x, order=2, step=0.5, directions=directions, rng=0)
    moved = np.array([np.linalg.norm((p - x).astype("f8")) for p in points])
    assert len(points) == (4 if directions is None else 2)
    # Along a direction the first entry is rounded to a multiple of 1/16.
    np.testing.assert_allclose(moved, 0.5, atol=0.0 if directions is None else 1 / 32, rtol=0)


def test_a_step_that_is_given_is_divided_by_as_it_was_taken():
    x = np.array([1e6], "f4")
    for order in (2, 4):
        for step in (0.0626, 0.07, 0.1, 0.3):
            assert xs.numerical_grad(np.sum, x, order=order, step=step)[0] == pytest.approx(1.0, rel=2e-7)


@pytest.mark.parametrize("directions", [None, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_derivative(value, directions):
    x = np.array([1.0, value])
    with np.errstate(all="ignore"):
        found = xs.numerical_grad(lambda x: np.exp(-abs(x)).sum(), x, directions=directions, rng=0)
    assert np.isnan(found[1] if directions is None else found[0]).all()
    if directions is None:
        assert np.isnan(found[0]) == np.isnan(value)  # the function has a value for infinities


def test_nothing_overflows_at_the_largest_numbers(dtype):
    x = np.array([np.finfo(dtype).max * 0.99, -1.0], dtype)
    with np.errstate(over="ignore"):  # of the sum
        grad = xs.numerical_grad(lambda x: x[0] * 1e-30 + x[1], x)
    assert grad[0] == pytest.approx(1e-30, rel=1e-3)


def test_no_entries():
    x = np.zeros((0, 3))
    assert xs.numerical_grad(cubes, x).shape == (0, 3)
    assert xs.check_grad(cubes, x, x) == 0.0
