"""softmax, log_softmax, logsumexp and the products with the Jacobian keep the numerics contract."""

import numpy as np
import oracle as exact
import pytest
from assertions import assert_like, assert_same_bits, assert_within
from grid import (
    BATCH,
    CLASSES,
    KINDS,
    LAYOUTS,
    MANY,
    ON_ALL_CLASSES,
    ROWS,
    SOME,
    assert_contract,
    from_rows,
    lay_out,
    logits,
    near_the_top,
    sure_rows,
)

import xpsoftmax as xs

FUNCTIONS = ("softmax", "log_softmax", "logsumexp")


def check(function, z, *, backend, impl, dtype, layout="c-order"):
    actual = getattr(xs, function)(lay_out(backend, z, layout), impl=impl)
    least = {
        "softmax": near_the_top(z),
        "log_softmax": np.isfinite(z).sum() - sure_rows(z),  # it underflows only at the top of sure rows
        "logsumexp": z.shape[0],
    }[function]
    assert_contract(actual, getattr(exact, function)(z), backend=backend, dtype=dtype, least=least)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_keeps_the_bound(backend, impl, dtype, rng, kind, function):
    check(function, logits(rng, kind, SOME, dtype), backend=backend, impl=impl, dtype=dtype)


@pytest.mark.backends(*ON_ALL_CLASSES)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_classes_keeps_the_bound(backend, impl, dtype, rng, kind, classes, function):
    check(function, logits(rng, kind, classes, dtype), backend=backend, impl=impl, dtype=dtype)


@pytest.mark.backends(*ON_ALL_CLASSES)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_every_layout_keeps_the_bound(backend, impl, dtype, rng, layout, function):
    """A plain sum over rows in Fortran order is sequential: 46 eps at this C."""
    check(function, logits(rng, "scale-1", MANY, dtype), backend=backend, impl=impl, dtype=dtype, layout=layout)


def test_the_log_probability_of_a_sure_class_keeps_its_digits(backend, impl, dtype):
    z = np.array([[60.0, 0.0, 1.0]], dtype)  # p rounds to 1 in both precisions
    actual = backend.to_numpy(xs.log_softmax(backend.asarray(z), impl=impl))
    assert -4e-26 < actual[0, 0] < -3e-26  # -(e^-60 + e^-59)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shift", [1024.0, -8192.0])
def test_an_exact_shift_changes_results_within_the_bound(backend, impl, dtype, rng, shift, function):
    z = np.round(logits(rng, "scale-10", 10, dtype) * 64) / 64  # so that z + shift is exact
    check(function, z + np.dtype(dtype).type(shift), backend=backend, impl=impl, dtype=dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_rounded_shift_keeps_the_bound_of_the_shifted_logits(backend, impl, dtype, rng, function):
    z = logits(rng, "scale-10", 10, dtype) + np.dtype(dtype).type(np.pi)
    check(function, z, backend=backend, impl=impl, dtype=dtype)


@pytest.mark.parametrize("function", FUNCTIONS[:2])
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -4])
def test_any_axis_can_hold_the_classes(backend, impl, dtype, rng, axis, function):
    z = logits(rng, "scale-1", SOME, dtype)
    desired = exact.Exact(*(from_rows(x, axis) for x in getattr(exact, function)(z)))
    actual = getattr(xs, function)(backend.asarray(from_rows(z, axis)), axis=axis, impl=impl)
    assert_contract(actual, desired, backend=backend, dtype=dtype, least=z.size)


@pytest.mark.parametrize("axis", [0, 1, 3, -1])
@pytest.mark.parametrize("keepdims", [False, True])
def test_logsumexp_drops_or_keeps_its_axis(backend, impl, dtype, rng, axis, keepdims):
    z = logits(rng, "scale-1", SOME, dtype)
    desired = [x.reshape(BATCH) for x in exact.logsumexp(z)]
    desired = exact.Exact(*(np.expand_dims(x, axis) if keepdims else x for x in desired))
    actual = xs.logsumexp(backend.asarray(from_rows(z, axis)), axis=axis, keepdims=keepdims, impl=impl)
    assert_contract(actual, desired, backend=backend, dtype=dtype, least=z.shape[0])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_row_may_come_without_a_batch_axis(backend, impl, dtype, function):
    z = np.array([2.0, -1.0, 0.5], dtype)
    desired = exact.Exact(*(x[0] for x in getattr(exact, function)(z[None, :])))
    actual = getattr(xs, function)(backend.asarray(z), impl=impl)
    assert_contract(actual, desired, backend=backend, dtype=dtype, least=1)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_rows_give_no_results(backend, impl, dtype, function):
    shape = (0,) if function == "logsumexp" else (0, 3)
    assert_like(
        getattr(xs, function)(backend.asarray(np.zeros((0, 3), dtype)), impl=impl),
        backend=backend,
        dtype=dtype,
        shape=shape,
    )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_logits_are_left_as_they_were(backend, impl, dtype, rng, function):
    z = logits(rng, "scale-10", 10, dtype)
    given = backend.asarray(z.copy())
    backend.to_numpy(getattr(xs, function)(given, impl=impl))
    assert_same_bits(backend.to_numpy(given), z)


@pytest.mark.backends("numpy", "array_api_strict", "array_api_strict:device1", "torch", "cupy")
@pytest.mark.parametrize("function", FUNCTIONS[:2])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("in_place", [False, True])
def test_out_is_filled_and_returned(backend, impl, dtype, rng, axis, in_place, function):
    z = logits(rng, "scale-10", 10, dtype)
    given = backend.asarray(z.T if axis == 0 else z)
    out = given if in_place else backend.xp.zeros_like(given)
    actual = getattr(xs, function)(given, axis=axis, out=out, impl=impl)
    assert actual is out
    desired = getattr(exact, function)(z)
    desired = exact.Exact(*(x.T if axis == 0 else x for x in desired))
    assert_contract(actual, desired, backend=backend, dtype=dtype, least=near_the_top(z))


# --- the Jacobian -----------------------------------------------------------------------------------------------------


@pytest.mark.backends(*ON_ALL_CLASSES)
@pytest.mark.parametrize("classes", [*CLASSES[:-1], SOME])
@pytest.mark.parametrize("kind", KINDS)
def test_the_product_with_the_jacobian_keeps_the_bound(backend, dtype, rng, kind, classes):
    z = logits(rng, kind, classes, dtype)
    v = rng.normal(size=z.shape).astype(dtype)
    entries = np.arange(min(classes, 50))  # the exact value of an entry costs a sum over all classes
    product = xs.softmax_jvp(backend.asarray(z), backend.asarray(v))[:, : entries.size]
    desired = exact.softmax_jvp(z, v, entries)
    assert_contract(product, desired, backend=backend, dtype=dtype, least=near_the_top(z, entries) - sure_rows(z))


@pytest.mark.backends(*ON_ALL_CLASSES, "jax")
def test_the_product_with_the_jacobian_of_many_classes_keeps_the_bound(backend, dtype, rng):
    z = logits(rng, "scale-10", MANY, dtype)
    v = rng.normal(size=z.shape).astype(dtype)
    entries = np.unique(np.concatenate([z.argmax(axis=1), np.arange(0, MANY, 997)]))  # the tops and some others
    product = backend.to_numpy(xs.softmax_jvp(backend.asarray(z), backend.asarray(v)))[:, entries]
    desired = exact.softmax_jvp(z, v, entries)
    compared = assert_within(product, desired.value, bound=desired.bound, where=desired.where)
    assert compared == z.shape[0] * entries.size


def test_the_product_survives_an_outlier_at_the_largest_of_even_probabilities(backend, dtype, rng):
    """Taking off v at the largest p, instead of v nearest to its mean, would take 2e6 off all the others."""
    z = (rng.normal(size=(ROWS[1000], 1000)) * 1e-3).astype(dtype)
    v = rng.normal(size=z.shape).astype(dtype)
    v[np.arange(z.shape[0]), z.argmax(axis=1)] = 2e6
    entries = np.arange(0, 1000, 7)
    product = xs.softmax_jvp(backend.asarray(z), backend.asarray(v))
    desired = exact.softmax_jvp(z, v, entries)
    compared = assert_within(
        backend.to_numpy(product)[:, entries], desired.value, bound=desired.bound, where=desired.where
    )
    assert compared == z.shape[0] * entries.size


def test_the_product_keeps_its_digits_where_one_class_is_sure(backend, dtype):
    z = np.array([[50.0, 0.0, 1.0]], dtype)
    v = np.array([[1.0, 2.0, -3.0]], dtype)
    product = xs.softmax_jvp(backend.asarray(z), backend.asarray(v))
    assert_contract(product, exact.softmax_jvp(z, v), backend=backend, dtype=dtype, least=3)


def test_the_product_with_a_unit_vector_keeps_the_bound(backend, dtype):
    """Entry 1 is -p[1] p[2]: the rounding of *two* differences z - m enters, and both are rounded the same way."""
    half = np.spacing(np.dtype(dtype).type(40.0)) / 2
    z = np.array([[half * 0.998046875, -40.0, -40.0]], dtype)  # 40 + 0.998 of half a unit, rounded down
    v = np.array([[0.0, 0.0, 1.0]], dtype)
    product = xs.softmax_jvp(backend.asarray(z), backend.asarray(v))
    assert_contract(product, exact.softmax_jvp(z, v), backend=backend, dtype=dtype, least=3)


def test_the_product_of_a_subnormal_probability_and_a_large_number_keeps_its_digits(backend, rng):
    """p is about 1e-41, of which float32 holds three digits (JAX none); p times 1e6 is a normal number."""
    z = np.array([[0.3, -94.1, -94.7]], np.float32)
    v = np.array([[0.0, 1e6, -3e6]], np.float32)
    desired = exact.softmax_jvp(z, v)
    product = backend.to_numpy(xs.softmax_jvp(backend.asarray(z), backend.asarray(v)))
    where = np.abs(desired.value) >= np.finfo(np.float32).smallest_normal
    # T is 0 by its definition, but the rounding of a subnormal p's own difference is not: it is carried.
    assert assert_within(product, desired.value, bound=desired.bound, where=where) == 3


def test_the_product_with_a_constant_is_exactly_zero(backend, dtype, rng):
    z = logits(rng, "scale-10", 10, dtype)
    product = backend.to_numpy(xs.softmax_jvp(backend.asarray(z), backend.asarray(np.full_like(z, 0.1))))
    assert np.count_nonzero(product) == 0


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_any_axis_of_the_product_can_hold_the_classes(backend, dtype, rng, axis):
    z = logits(rng, "scale-1", SOME, dtype)
    v = rng.normal(size=z.shape).astype(dtype)
    desired = exact.Exact(*(from_rows(x, axis) for x in exact.softmax_jvp(z, v)))
    product = xs.softmax_jvp(*(backend.asarray(from_rows(x, axis)) for x in (z, v)), axis=axis)
    assert_contract(product, desired, backend=backend, dtype=dtype, least=z.size)


@pytest.mark.backends(*ON_ALL_CLASSES)
@pytest.mark.parametrize("classes", [1, 2, 3, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_the_jacobian_keeps_the_bound_of_its_two_factors(backend, dtype, rng, kind, classes):
    z = logits(rng, kind, classes, dtype)
    jacobian = xs.softmax_jacobian(backend.asarray(z))
    options = {"least": ROWS[classes], "subnormal_terms": classes}
    assert_contract(jacobian, exact.softmax_jacobian(z), backend=backend, dtype=dtype, **options)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_jacobian_has_its_classes_last(backend, dtype, rng, axis):
    z = logits(rng, "scale-1", SOME, dtype)
    desired = exact.Exact(*(x.reshape(*BATCH, SOME, SOME) for x in exact.softmax_jacobian(z)))
    jacobian = xs.softmax_jacobian(backend.asarray(from_rows(z, axis)), axis=axis)
    assert_contract(jacobian, desired, backend=backend, dtype=dtype, least=z.size * SOME)


# --- 16-bit logits ----------------------------------------------------------------------------------------------------


@pytest.mark.backends("numpy", "dask", "torch", "jax", "cupy")  # the standard has no 16-bit numbers
@pytest.mark.parametrize("function", FUNCTIONS)
def test_float16_results_are_rounded_once(backend, impl, rng, function):
    z = logits(rng, "scale-10", 10, "float16")
    if impl == "kernel" and backend.name == "cupy" and function != "logsumexp":
        # A CUDA kernel adds up 16-bit numbers in another order than those of float32: it shows its own.
        out = backend.asarray(np.zeros(z.shape, np.float32))
        wide = backend.to_numpy(getattr(xs, function)(backend.asarray(z), out=out, impl=impl))
    else:
        wide = backend.to_numpy(getattr(xs, function)(backend.asarray(z.astype(np.float32)), impl=impl))
    with np.errstate(under="ignore"):
        desired = wide.astype(np.float16)
    assert_same_bits(backend.to_numpy(getattr(xs, function)(backend.asarray(z), impl=impl)), desired)


@pytest.mark.backends("numpy", "dask", "torch", "jax", "cupy")  # the standard has no 16-bit numbers
@pytest.mark.parametrize("function", FUNCTIONS)
def test_float16_logits_at_their_largest_do_not_overflow(backend, impl, function):
    z = np.array([[65504.0, 65504.0, -65504.0], [-65504.0, -65504.0, -65504.0]], np.float16)
    actual = backend.to_numpy(getattr(xs, function)(backend.asarray(z), impl=impl))
    desired = {
        "softmax": [[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]],
        "log_softmax": [[-np.log(2), -np.log(2), -np.inf], [-np.log(3), -np.log(3), -np.log(3)]],
        "logsumexp": [65504.0, -65504.0],
    }[function]
    with np.errstate(over="ignore"):
        assert_same_bits(actual, np.array(desired).astype(np.float16))
