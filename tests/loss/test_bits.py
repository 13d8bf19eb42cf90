"""The same call gives the same bits, and a row's bits depend on nothing but the row.

This is promised for NumPy and array-api-strict, on the generic path and by the kernels.
"""

import numpy as np
import pytest
from assertions import assert_same_bits
from backends import backend_named
from grid import LAYOUTS, MANY, labels, lay_out, logits

import xpsoftmax as xs

ON = pytest.mark.backends("numpy", "array_api_strict")
# Three: where products with matrices of ones lose it. 4097 and the vocabulary: beyond one column chunk of 4096 and of
# 8192, with a remainder. 1000: more than one SIMD register, no power of two.
SIZES = pytest.mark.parametrize("classes", [3, 10, 1000, 4097, MANY])
R = 5
NUMPY = backend_named("numpy")


def softmax(backend, z, y, impl):
    return (xs.softmax(z, impl=impl),)


def log_softmax(backend, z, y, impl):
    return (xs.log_softmax(z, impl=impl),)


def logsumexp(backend, z, y, impl):
    return (xs.logsumexp(z, impl=impl),)


def hard(backend, z, y, impl):
    return xs.softmax_loss_and_grad(z, backend.asarray(y), reduction="none", impl=impl)


def options(backend, z, y, impl):
    weight = backend.asarray(np.linspace(0.5, 2.0, z.shape[1]).astype(str(z.dtype).rpartition(".")[2]))
    return xs.softmax_loss_and_grad(
        z, backend.asarray(y), class_weight=weight, label_smoothing=0.1, z_loss=0.01, reduction="none", impl=impl
    )


CALLS = pytest.mark.parametrize("call", [softmax, log_softmax, logsumexp, hard, options])


def bits(backend, call, z, y, impl, layout="c-order"):
    return [backend.to_numpy(x) for x in call(backend, lay_out(backend, z, layout), y, impl)]


def assert_all_same(results, desired):
    for result, wanted in zip(results, desired, strict=True):
        assert_same_bits(result, wanted)


@pytest.fixture
def z(rng, dtype, classes):
    return logits(rng, "scale-10", classes, dtype, rows=R)


@pytest.fixture
def y(rng, z):
    return labels(rng, z)


@ON
@SIZES
@CALLS
def test_the_same_call_gives_the_same_bits(backend, impl, z, y, call):
    assert_all_same(bits(backend, call, z, y, impl), bits(backend, call, z.copy(), y, impl))


@ON
@SIZES
@CALLS
def test_a_row_alone_has_the_same_bits(backend, impl, z, y, call):
    whole = bits(backend, call, z, y, impl)
    for i in range(R):
        alone = bits(backend, call, z[i : i + 1], y[i : i + 1], impl)
        assert_all_same(alone, [x[i : i + 1] for x in whole])


@ON
@SIZES
@CALLS
def test_a_row_has_the_same_bits_in_any_group(backend, impl, z, y, call):
    whole = bits(backend, call, z, y, impl)
    parts = [bits(backend, call, z[s], y[s], impl) for s in (slice(0, 2), slice(2, R))]
    assert_all_same([np.concatenate(pair) for pair in zip(*parts, strict=True)], whole)


@ON
@SIZES
@CALLS
def test_a_row_has_the_same_bits_beside_any_others(backend, impl, z, y, call):
    """The others become nan, infinite, huge and masked; and the rows change places."""
    other = z.copy()
    other[0], other[1], other[2, ::2], other[3] = np.nan, np.inf, -np.inf, 1e4
    whole = bits(backend, call, z, y, impl)
    beside = bits(backend, call, other[::-1].copy(), y[::-1].copy(), impl)
    assert_all_same([x[0] for x in beside], [x[R - 1] for x in whole])


@ON
@SIZES
@CALLS
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_a_row_has_the_same_bits_in_any_layout(backend, impl, z, y, call, layout):
    assert_all_same(bits(backend, call, z, y, impl, layout), bits(backend, call, z, y, impl))


@ON
@SIZES
def test_a_row_has_the_same_bits_in_a_larger_batch(backend, impl, z, y):
    """More rows than any block of rows that a kernel may work on, for a small C."""
    times = max(1, 20_000 // z.shape[1])
    whole = bits(backend, hard, z, y, impl)
    many = bits(backend, hard, np.tile(z, (times, 1)), np.tile(y, times), impl)
    assert_all_same(many, [np.concatenate([x] * times) for x in whole])


@pytest.mark.backends("array_api_strict")
@SIZES
@CALLS
def test_the_generic_path_has_the_bits_of_numpy(backend, z, y, call):
    numpy = bits(NUMPY, call, z, y, "generic")
    assert_all_same(bits(backend, call, z, y, "generic"), numpy)
