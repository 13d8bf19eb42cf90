"""The assertions of the tests fail when they should."""

import numpy as np
import pytest
from assertions import assert_close, assert_like, assert_same_bits, assert_within
from backends import backend_named

NUMPY = backend_named("numpy")


def test_assert_like_passes():
    assert_like(np.zeros(3), backend=NUMPY, dtype="float64", shape=(3,))


def test_assert_like_sees_another_namespace():
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(AssertionError, match="namespace"):
        assert_like(strict.zeros(3), backend=NUMPY, dtype="float64", shape=(3,))


def test_assert_like_sees_another_device():
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(AssertionError, match="device"):
        assert_like(strict.zeros(3), backend=backend_named("array_api_strict:device1"), dtype="float64", shape=(3,))


@pytest.mark.parametrize(("dtype", "shape"), [("float32", (3,)), ("float64", (3, 1)), ("float64", ())])
def test_assert_like_sees_another_dtype_or_shape(dtype, shape):
    with pytest.raises(AssertionError, match=r"dtype|shape"):
        assert_like(np.zeros(3), backend=NUMPY, dtype=dtype, shape=shape)


def test_assert_close_counts_what_it_compared():
    values = np.array([1.0, 2.0, np.nan])
    assert assert_close(values, values, backend=NUMPY, dtype="float64", ulps=0) == 2


@pytest.mark.parametrize(("ulps", "fails"), [(0.5, True), (1, False)])
def test_assert_close_measures_in_eps(ulps, fails):
    actual, desired = np.array([1.0 + 2.0**-52]), np.array([1.0])
    if not fails:
        assert assert_close(actual, desired, backend=NUMPY, dtype="float64", ulps=ulps) == 1
        return
    with pytest.raises(AssertionError, match="error is 2 of the bound"):
        assert_close(actual, desired, backend=NUMPY, dtype="float64", ulps=ulps)


@pytest.mark.parametrize(
    ("actual", "desired"),
    [
        ([np.nan, 1.0], [1.0, 1.0]),
        ([1.0, 1.0], [np.nan, 1.0]),
        ([np.inf, 1.0], [1.0, 1.0]),
        ([np.inf, 1.0], [-np.inf, 1.0]),
        ([1.0, 1.0], [np.inf, 1.0]),
        ([0.0, 1.0], [1e-300, 1.0]),
        ([1e-300, 1.0], [0.0, 1.0]),
    ],
)
def test_assert_within_sees_a_wrong_entry(actual, desired):
    bound = 1e-15 * np.abs(desired)
    with pytest.raises(AssertionError, match=r"nan or inf|of the bound|bound is nan"):
        assert_within(np.array(actual), np.array(desired), bound=bound)


def test_assert_within_refuses_a_bound_of_nan():
    with pytest.raises(AssertionError, match="bound is nan"):
        assert_within(np.ones(2), np.ones(2), bound=np.nan)


def test_assert_within_looks_only_where_it_is_told():
    actual, desired = np.array([1.0, 5.0]), np.array([1.0, 2.0])
    assert assert_within(actual, desired, bound=0.0, where=np.array([True, False])) == 1
    with pytest.raises(AssertionError, match="1 of 2 entries fail"):
        assert_within(actual, desired, bound=0.0)


def test_assert_within_sees_another_shape():
    with pytest.raises(AssertionError, match="shape"):
        assert_within(np.ones((2, 1)), np.ones(2), bound=1.0)


@pytest.mark.parametrize(
    ("actual", "desired"),
    [
        (np.array([0.0]), np.array([-0.0])),
        (np.array([1.0]), np.array([1.0 + 2.0**-52])),
        (np.array([np.nan]), np.array([1.0])),
        (np.float32([1.0]), np.float64([1.0])),
        (np.ones((1, 2)), np.ones(2)),
    ],
)
def test_assert_same_bits_sees_a_difference(actual, desired):
    with pytest.raises(AssertionError):
        assert_same_bits(actual, desired)


def test_assert_same_bits_passes():
    assert_same_bits(np.array([1.0, np.nan, -np.inf]), np.array([1.0, np.nan, -np.inf]))
