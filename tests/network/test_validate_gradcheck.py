"""Bad input of numerical_grad and check_grad."""

from functools import partial

import numpy as np
import pytest
from assertions import assert_close

import xpsoftmax as xs


def square(x):
    return (x * x).sum()


POINT = np.ones((2, 2))
BAD_CHECKS = {
    "list": (
        {"x": [1.0]},
        TypeError,
        r"^x must be an array of an Array API library, got list\. Make one with numpy.asarray\.$",
    ),
    "integers": ({"x": np.ones(2, dtype=int)}, TypeError, r"^x must be of dtype float32 or float64, got int64\.$"),
    "float16": ({"x": np.ones(2, dtype="f2")}, TypeError, r"^x must be of dtype float32 or float64, got float16\.$"),
    "masked": ({"x": np.ma.array(POINT)}, TypeError, r"^x must be a plain dense array"),
    "no function": ({"function": None}, TypeError, r"^function must be callable, got None\.$"),
    "array function": ({"function": np.cos}, ValueError, r"^function must return one number, got an array of shape \("),
    "no number": ({"function": lambda x: None}, TypeError, r"^function must return one real number, got None\.$"),
    "text": ({"function": lambda x: "1"}, TypeError, r"^function must return one real number, got '1'\.$"),
    "complex": ({"function": lambda x: np.complex128(1)}, TypeError, r"^function must return one real number, got "),
    "order 3": ({"order": 3}, ValueError, r"^order must be 2 or 4, got 3\.$"),
    "order text": ({"order": "4"}, TypeError, r"^order must be an integer, got '4'\.$"),
    "order list": ({"order": [4]}, TypeError, r"^order must be an integer, got \[4\]\.$"),
    "no step": ({"step": 0.0}, ValueError, r"^step must be positive, got 0\.0\.$"),
    "step back": ({"step": -1e-3}, ValueError, r"^step must be finite and at least 0, got -0\.001\.$"),
    "step nan": ({"step": np.nan}, ValueError, r"^step must be finite and at least 0, got nan\.$"),
    "step text": ({"step": "1e-3"}, TypeError, r"^step must be a real number, got '1e-3'\.$"),
    "step vanishes": (
        {"x": np.array([[1.0, 2.0], [-1e8, 3.0]], "f4"), "step": 7.0},
        ValueError,
        r"^step must be at least 8, the distance between numbers of float32 near -1e\+08, an entry of x, got 7\.0\.$",
    ),
    "step vanishes along directions": (
        {"x": np.full(1000, 2e16), "step": 4.0, "directions": 1, "rng": 0},
        ValueError,
        r"^step must be well above 4, the distance between numbers of float64 near 2e\+16, an entry of x, got 4\.0\.$",
    ),
    "no directions": ({"directions": 0}, ValueError, r"^directions must be at least 1, got 0\.$"),
    "half a direction": ({"directions": 1.5}, TypeError, r"^directions must be an integer, got 1\.5\.$"),
    "rng": ({"directions": 1, "rng": "0"}, TypeError, r"^rng must be what numpy\.random\.default_rng takes, got '0'"),
}


@pytest.mark.parametrize("function", [xs.numerical_grad, xs.check_grad])
@pytest.mark.parametrize(("options", "error", "message"), BAD_CHECKS.values(), ids=BAD_CHECKS)
def test_gradient_checks(function, options, error, message):
    options = {"function": square, "x": POINT, **options}
    f, x = options.pop("function"), options.pop("x")
    arrays = (f, x) if function is xs.numerical_grad else (f, np.ones(np.shape(x)), x)
    with pytest.raises(error, match=message):
        function(*arrays, **options)


BAD_GRADS = {
    "list": (
        [1.0],
        TypeError,
        r"^grad must be an array of an Array API library, got list\. Make one with numpy.asarray\.$",
    ),
    "masked": (np.ma.array(POINT), TypeError, r"^grad must be a plain dense array"),
    "integers": (np.ones((2, 2), dtype=int), TypeError, r"^grad must be of dtype float16, .* got int64\.$"),
    "shape": (np.ones(2), ValueError, r"^grad must have the shape of x, \(2, 2\), got \(2,\)\.$"),
}


@pytest.mark.parametrize(("grad", "error", "message"), BAD_GRADS.values(), ids=BAD_GRADS)
def test_grad(grad, error, message):
    with pytest.raises(error, match=message):
        xs.check_grad(square, grad, POINT)


def test_grad_of_another_library():
    strict = pytest.importorskip("array_api_strict")
    message = r"^grad must be an array of the same library as x \(numpy\), got one of array_api_strict\.$"
    with pytest.raises(TypeError, match=message):
        xs.check_grad(square, strict.asarray(POINT), POINT)


def test_grad_on_another_device():
    strict = pytest.importorskip("array_api_strict")
    there = strict.asarray(POINT, device=strict.Device("device1"))
    with pytest.raises(ValueError, match=r"^grad must be on the device of x \(.*device1.*\), got .*CPU_DEVICE"):
        xs.check_grad(lambda x: strict.sum(x * x), strict.asarray(POINT), there)


@pytest.mark.parametrize("size", [1e-200, 1e200])
@pytest.mark.parametrize(("factor", "error"), [(1.0, 0.0), (3.0, 2 / 3)])
def test_gradients_whose_squares_have_no_number(size, factor, error):
    measured = xs.check_grad(lambda x: size * x.sum(), factor * size * POINT, POINT)
    assert measured == pytest.approx(error, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("directions", [None, 2])
def test_a_gradient_that_is_not_finite_is_never_right(value, directions):
    assert np.isnan(xs.check_grad(square, np.full((2, 2), value), POINT, directions=directions, rng=0))


@pytest.mark.backends("torch")
def test_a_function_of_tensors_that_require_grad(backend):
    factor = backend.library.ones(2, dtype=backend.library.float64, requires_grad=True)
    x = backend.asarray(np.ones(2))
    numerical = xs.numerical_grad(lambda x: (factor * x).sum(), x, step=0.5)
    assert_close(numerical, [1.0, 1.0], backend=backend, dtype="float64", ulps=4)


def traced_by_jax(backend, call):
    """Call a function of x where JAX traces x, in each of the ways to trace it."""
    jax = pytest.importorskip("jax")
    x = backend.asarray(np.ones(2))
    yield from (partial(transform(call), x) for transform in (jax.jit, jax.grad))
    yield partial(jax.vmap(call), backend.asarray(np.ones((3, 2))))


def batched_by_torch(backend, call):
    yield partial(backend.library.func.vmap(call), backend.asarray(np.ones((3, 2))))


WITHOUT_VALUES = {
    "jax": (traced_by_jax, r"one that JAX traces\. Call this function outside of jax\.jit, jax\.vmap and jax\.grad\."),
    "torch": (batched_by_torch, r"one inside torch\.func\.vmap\. Call this function outside of it\.$"),
}


@pytest.mark.backends("jax", "torch")
def test_arrays_without_values(backend):
    """A numerical gradient is of numbers: no transformation of functions gets through it."""
    ways, got = WITHOUT_VALUES[backend.name]
    point = backend.asarray(np.ones(2))
    for name, call in (
        ("x", lambda x: xs.numerical_grad(lambda x: (x * x).sum(), x).sum()),
        ("x", lambda x: xs.check_grad(lambda x: (x * x).sum(), point, x)),
        ("grad", lambda x: xs.check_grad(lambda x: (x * x).sum(), x, point)),
    ):
        for way in ways(backend, call):
            with pytest.raises(ValueError, match=rf"^{name} must be an array that has values, got {got}"):
                way()


@pytest.mark.backends("torch")
def test_tensors_on_the_meta_device(backend):
    x = backend.library.ones(2, device="meta")
    message = r"^x must be an array that has values, got one on the meta device\. Move it to another device\.$"
    with pytest.raises(ValueError, match=message):
        xs.numerical_grad(lambda x: x.sum(), x)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_function_that_is_not_finite_has_no_numerical_gradient(value):
    assert np.isnan(xs.numerical_grad(lambda x: value, np.ones(2))).all()
    assert np.isnan(xs.check_grad(lambda x: value, np.ones(2), np.ones(2)))
