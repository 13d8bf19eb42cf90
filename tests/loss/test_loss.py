"""The softmax loss of hard labels and its gradient keep the numerics contract."""

import numpy as np
import oracle as exact
import pytest
from assertions import EPS, TINY, assert_like, assert_same_bits, assert_within
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
    labels,
    lay_out,
    logits,
    near_the_top,
    sure_rows,
)

import xpsoftmax as xs

MUTABLE = ("numpy", "array_api_strict", "array_api_strict:device1", "torch", "cupy")
SIXTEEN = ("numpy", "dask", "torch", "jax", "cupy")  # the standard has no 16-bit numbers


def check_loss(z, y, *, backend, impl, dtype):
    actual = xs.softmax_loss(backend.asarray(z), backend.asarray(y), reduction="none", impl=impl)
    desired = exact.softmax_loss(z, y, reduction="none").loss
    least = int(np.isfinite(desired.value).sum()) - sure_rows(z)
    assert_contract(actual, desired, backend=backend, dtype=dtype, least=least)


def check_grad(z, y, *, backend, impl, dtype, layout="c-order"):
    _, actual = xs.softmax_loss_and_grad(lay_out(backend, z, layout), backend.asarray(y), reduction="none", impl=impl)
    desired = exact.softmax_loss(z, y, reduction="none").grad
    least = near_the_top(z) - 2 * sure_rows(z)  # in a sure row the label's entry may underflow with the others
    assert_contract(actual, desired, backend=backend, dtype=dtype, least=least)


CHECKS = pytest.mark.parametrize("check", [check_loss, check_grad])


# --- accuracy ---------------------------------------------------------------------------------------------------------


@CHECKS
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_keep_the_bound(backend, impl, dtype, rng, kind, check):
    z = logits(rng, kind, SOME, dtype)
    check(z, labels(rng, z), backend=backend, impl=impl, dtype=dtype)


@pytest.mark.backends(*ON_ALL_CLASSES)
@CHECKS
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_classes_keeps_the_bound(backend, impl, dtype, rng, kind, classes, check):
    z = logits(rng, kind, classes, dtype)
    check(z, labels(rng, z), backend=backend, impl=impl, dtype=dtype)


@pytest.mark.backends(*ON_ALL_CLASSES)
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_every_layout_keeps_the_bound(backend, impl, dtype, rng, layout):
    """A plain sum over rows in Fortran order is sequential: 46 eps at this C."""
    z = logits(rng, "scale-1", MANY, dtype)
    check_grad(z, labels(rng, z), backend=backend, impl=impl, dtype=dtype, layout=layout)


@pytest.mark.backends(*ON_ALL_CLASSES, "jax", "array_api_strict:device1")
@CHECKS
@pytest.mark.parametrize("lead", [88.0, 95.0, 103.0])
def test_a_normal_sum_of_subnormal_terms_keeps_its_digits(backend, impl, rng, lead, check):
    """exp(-88) is subnormal in float32, and JAX makes it 0; the sum of 50256 of them is a normal number up to 98."""
    z = (rng.normal(size=(ROWS[MANY], MANY)) * 1e-3 - lead).astype(np.float32)
    y = np.array([0, 1, MANY - 2, MANY - 1])
    z[np.arange(4), y] = 0.0
    desired = exact.softmax_loss(z, y, reduction="none")
    loss, grad = xs.softmax_loss_and_grad(backend.asarray(z), backend.asarray(y), reduction="none", impl=impl)
    if check is check_loss:
        actual, value, largest = backend.to_numpy(loss), desired.loss.value, desired.loss.bound
    else:
        actual = np.take_along_axis(backend.to_numpy(grad), y[:, None], axis=1)[:, 0]
        value, largest = (np.take_along_axis(x, y[:, None], axis=1)[:, 0] for x in desired.grad[:2])
    # No other exp is normal, so T is 0: the label's logit is 0 here, and z - m is exact.
    normal = np.abs(value) >= TINY["float32"]
    compared = assert_within(actual, value, bound=largest, where=normal)
    assert compared == (0 if lead == 103.0 else 4)
    smallest = 2.0**-149  # beyond, the sum itself is subnormal: in the right place, or flushed
    assert np.all((np.abs(actual) <= np.abs(value) + 2 * smallest) | normal)


@CHECKS
def test_the_rounding_of_the_gap_to_the_label_is_not_lost(backend, impl, check):
    """All other exps are subnormal, so T is 0 and leaves no room for the rounding of this difference."""
    z = np.full((1, MANY), -88.84537506103516, np.float32)
    z[0, 7] = 0.8991356492042542
    check(z, np.array([7]), backend=backend, impl=impl, dtype="float32")


def test_the_signal_of_a_sure_row_survives_where_others_round_it_to_zero(backend, impl, dtype):
    """p[y] - 1 and log(p[y]) are zero from a gap of 17 in float32 and of 37 in float64."""
    z = np.array([[40.0, 0.0, 1.0], [18.0, 0.0, 1.0]], dtype)
    loss, grad = xs.softmax_loss_and_grad(
        backend.asarray(z), backend.asarray(np.zeros(2, np.int64)), reduction="none", impl=impl
    )
    desired = exact.softmax_loss(z, np.zeros(2, np.int64), reduction="none")
    assert_contract(loss, desired.loss, backend=backend, dtype=dtype, least=2)
    assert_contract(grad, desired.grad, backend=backend, dtype=dtype, least=6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_of_the_gradient_sum_to_zero(backend, impl, dtype, rng, kind):
    z = logits(rng, kind, SOME, dtype)
    _, grad = xs.softmax_loss_and_grad(backend.asarray(z), backend.asarray(labels(rng, z)), reduction="none", impl=impl)
    grad = backend.to_numpy(grad).astype(np.longdouble)
    # Where all of a row is subnormal nothing is promised of its digits.
    where = np.abs(grad).max(axis=1) >= TINY[dtype] / EPS[dtype]
    limit = exact.bound(z)[:, 0] * np.abs(grad).sum(axis=1)
    compared = assert_within(grad.sum(axis=1), np.zeros(z.shape[0]), bound=limit, where=where)
    assert compared >= z.shape[0] // 4, f"only {compared} rows were compared"


@CHECKS
@pytest.mark.parametrize("shift", [1024.0, -8192.0])
def test_an_exact_shift_changes_results_within_the_bound(backend, impl, dtype, rng, shift, check):
    """The exact value of the shifted logits is that of z itself."""
    z = np.round(logits(rng, "scale-10", SOME, dtype) * 64) / 64
    y = labels(rng, z)
    moved = z + np.dtype(dtype).type(shift)
    assert np.array_equal(moved.astype(np.longdouble) - z, np.full_like(z, shift))
    check(z, y, backend=backend, impl=impl, dtype=dtype)
    check(moved, y, backend=backend, impl=impl, dtype=dtype)


@CHECKS
def test_a_rounded_shift_keeps_the_bound_of_the_shifted_logits(backend, impl, dtype, rng, check):
    z = logits(rng, "scale-10", SOME, dtype)
    check(z + np.dtype(dtype).type(np.pi), labels(rng, z), backend=backend, impl=impl, dtype=dtype)


# --- worked values ----------------------------------------------------------------------------------------------------


def test_worked_values_of_three_classes(backend, impl, dtype):
    z = np.log(np.array([[0.2, 0.3, 0.5]])).astype(dtype)
    _, grad = xs.softmax_loss_and_grad(backend.asarray(z), backend.asarray(np.array([1])), impl=impl)
    compared = assert_within(
        backend.to_numpy(grad), np.array([[0.2, -0.7, 0.5]]), bound=exact.bound(z) * np.array([[0.2, 0.7, 0.5]])
    )
    assert compared == 3


def test_worked_value_of_a_sure_row(backend, impl):
    z = np.array([37.42994775023705, 0.0])
    _, grad = xs.softmax_loss_and_grad(backend.asarray(z), backend.asarray(np.array(0)), impl=impl)
    value = np.array([-5.551115123125776e-17, 5.551115123125776e-17])
    compared = assert_within(backend.to_numpy(grad), value, bound=exact.bound(z[None, :])[0] * np.abs(value))
    assert compared == 2


# --- shapes and arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -4])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_any_axis_can_hold_the_classes(backend, impl, dtype, rng, axis, reduction):
    z = logits(rng, "scale-10", SOME, dtype)
    y = labels(rng, z)
    desired = exact.softmax_loss(z, y, reduction=reduction)
    loss, grad = xs.softmax_loss_and_grad(
        backend.asarray(from_rows(z, axis)),
        backend.asarray(y.reshape(BATCH)),
        axis=axis,
        reduction=reduction,
        impl=impl,
    )
    rows = exact.Exact(*(np.reshape(x, BATCH if reduction == "none" else ()) for x in desired.loss))
    assert_contract(loss, rows, backend=backend, dtype=dtype, least=np.size(rows.value))
    entries = exact.Exact(*(from_rows(x, axis) for x in desired.grad))
    assert_contract(grad, entries, backend=backend, dtype=dtype, least=z.size)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_soft_targets_have_their_classes_on_the_same_axis(backend, impl, dtype, rng, axis):
    z = logits(rng, "scale-10", SOME, dtype)
    q = rng.random(z.shape).astype(dtype)
    desired = exact.softmax_loss(z, q, reduction="none").grad
    _, grad = xs.softmax_loss_and_grad(
        *(backend.asarray(from_rows(x, axis)) for x in (z, q)), axis=axis, reduction="none", impl=impl
    )
    entries = exact.Exact(*(from_rows(x, axis) for x in desired))
    assert_contract(grad, entries, backend=backend, dtype=dtype, least=z.size)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_one_row_may_come_without_a_batch_axis(backend, impl, dtype, reduction):
    z = np.array([2.0, -1.0, 0.5], dtype)
    desired = exact.softmax_loss(z[None, :], np.array([1]), reduction="sum")
    loss, grad = xs.softmax_loss_and_grad(
        backend.asarray(z), backend.asarray(np.array(1)), reduction=reduction, impl=impl
    )
    assert_contract(loss, desired.loss, backend=backend, dtype=dtype, least=1)
    assert_contract(grad, exact.Exact(*(x[0] for x in desired.grad)), backend=backend, dtype=dtype, least=3)


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_labels_may_be_of_any_integer_dtype(backend, impl, kind):
    z = np.array([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]], np.float32)
    y = np.array([2, 1])
    loss = xs.softmax_loss(backend.asarray(z), backend.asarray(y, kind), reduction="none", impl=impl)
    desired = exact.softmax_loss(z, y, reduction="none").loss
    assert_contract(loss, desired, backend=backend, dtype="float32", least=2)


@pytest.mark.parametrize("function", [xs.softmax_loss, lambda *a, **k: xs.softmax_loss_and_grad(*a, **k)[0]])
def test_the_loss_is_the_same_with_and_without_the_gradient(backend, impl, dtype, rng, function):
    z = logits(rng, "scale-30", SOME, dtype)
    y = labels(rng, z)
    loss = function(backend.asarray(z), backend.asarray(y), impl=impl)
    desired = exact.softmax_loss(z, y).loss
    assert_contract(loss, desired, backend=backend, dtype=dtype, least=1)


@pytest.mark.backends(*MUTABLE)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("in_place", [False, True])
def test_out_is_filled_and_returned(backend, impl, dtype, rng, axis, in_place):
    z = logits(rng, "scale-10", SOME, dtype)
    y = labels(rng, z)
    given = backend.asarray(np.ascontiguousarray(z.T if axis == 0 else z))
    out = given if in_place else backend.xp.zeros_like(given)
    _, grad = xs.softmax_loss_and_grad(given, backend.asarray(y), axis=axis, out=out, impl=impl)
    assert grad is out
    desired = exact.Exact(*(x.T if axis == 0 else x for x in exact.softmax_loss(z, y).grad))
    assert_contract(grad, desired, backend=backend, dtype=dtype, least=z.size)


def test_no_argument_is_modified(backend, impl, dtype, rng):
    z = logits(rng, "minus-inf", SOME, dtype)
    values = {
        "targets": rng.random(z.shape).astype(dtype),
        "sample_weight": np.arange(z.shape[0]).astype(dtype),
        "class_weight": np.arange(SOME).astype(dtype),
    }
    given = {name: backend.asarray(value.copy()) for name, value in values.items()}
    array = backend.asarray(z.copy())
    targets, weights = given["targets"], {name: given[name] for name in ("sample_weight", "class_weight")}
    _, grad = xs.softmax_loss_and_grad(array, targets, **weights, label_smoothing=0.1, impl=impl)
    backend.to_numpy(grad)
    assert_same_bits(backend.to_numpy(array), z)
    for name, value in values.items():
        assert_same_bits(backend.to_numpy(given[name]), value)


def test_no_rows_have_an_empty_gradient(backend, impl, dtype):
    z, y = backend.asarray(np.zeros((0, 3), dtype)), backend.asarray(np.zeros(0, np.int64))
    loss, grad = xs.softmax_loss_and_grad(z, y, reduction="none", impl=impl)
    assert_like(loss, backend=backend, dtype=dtype, shape=(0,))
    assert_like(grad, backend=backend, dtype=dtype, shape=(0, 3))


# --- 16-bit logits ----------------------------------------------------------------------------------------------------


def half_unit(value, dtype):
    """Half of the distance between numbers of a 16-bit dtype around a value."""
    exponent = np.floor(np.log2(np.maximum(np.abs(value), TINY[dtype])))
    return np.exp2(exponent) * EPS[dtype] / 2


def check_narrow_gradient(rng, narrow, *, backend, impl):
    """One rounding to the narrow dtype on top of the bound of float32."""
    z = logits(rng, "scale-10", SOME, "float32")
    given = backend.asarray(z, narrow)
    z = backend.to_numpy(given).astype(np.float32)
    y = labels(rng, z)
    _, grad = xs.softmax_loss_and_grad(given, backend.asarray(y), reduction="none", impl=impl)
    assert_like(grad, backend=backend, dtype=narrow, shape=z.shape)
    desired = exact.softmax_loss(z, y, reduction="none").grad
    where = np.abs(desired.value) >= TINY[narrow]
    limit = half_unit(desired.value, narrow) + desired.bound
    compared = assert_within(backend.to_numpy(grad), desired.value, bound=limit, where=where)
    assert compared >= z.size // 4, f"only {compared} entries were compared"  # half are below 6e-5 at this scale


@pytest.mark.backends(*SIXTEEN)
def test_a_float16_gradient_is_rounded_once(backend, impl, rng):
    check_narrow_gradient(rng, "float16", backend=backend, impl=impl)


@pytest.mark.backends("torch", "jax")
def test_a_bfloat16_gradient_is_rounded_once(backend, impl, rng):
    check_narrow_gradient(rng, "bfloat16", backend=backend, impl=impl)


@pytest.mark.backends(*SIXTEEN)
def test_the_bits_of_a_float16_gradient_are_those_of_float32_rounded(backend, impl, rng):
    z = logits(rng, "scale-10", SOME, "float16")
    y = backend.asarray(labels(rng, z))
    if impl == "kernel" and backend.name == "cupy":  # which adds up in another order: it shows its own, unrounded
        out = backend.asarray(np.zeros(z.shape, np.float32))
        _, wide = xs.softmax_loss_and_grad(backend.asarray(z), y, out=out, impl=impl)
    else:
        _, wide = xs.softmax_loss_and_grad(backend.asarray(z.astype(np.float32)), y, impl=impl)
    _, narrow = xs.softmax_loss_and_grad(backend.asarray(z), y, impl=impl)
    with np.errstate(under="ignore"):
        assert_same_bits(backend.to_numpy(narrow), backend.to_numpy(wide).astype(np.float16))


def check_narrow_loss(rng, narrow, *, backend, impl):
    given = backend.asarray(logits(rng, "scale-10", SOME, "float32"), narrow)
    z = backend.to_numpy(given).astype(np.float32)
    y = labels(rng, z)
    loss = xs.softmax_loss(given, backend.asarray(y), reduction="none", impl=impl)
    desired = exact.softmax_loss(z, y, reduction="none").loss
    assert_contract(loss, desired, backend=backend, dtype="float32", least=z.shape[0])


@pytest.mark.backends(*SIXTEEN)
def test_the_loss_of_float16_logits_is_float32(backend, impl, rng):
    check_narrow_loss(rng, "float16", backend=backend, impl=impl)


@pytest.mark.backends("torch", "jax")
def test_the_loss_of_bfloat16_logits_is_float32(backend, impl, rng):
    check_narrow_loss(rng, "bfloat16", backend=backend, impl=impl)


@pytest.mark.backends("numpy", "torch", "cupy")
def test_a_float32_out_keeps_gradients_that_float16_cannot_hold(backend, impl, rng):
    z = logits(rng, "scale-30", SOME, "float16")
    y = labels(rng, z)
    out = backend.asarray(np.zeros(z.shape, np.float32))
    _, grad = xs.softmax_loss_and_grad(backend.asarray(z), backend.asarray(y), reduction="none", out=out, impl=impl)
    assert grad is out
    wide = z.astype(np.float32)
    desired = exact.softmax_loss(wide, y, reduction="none").grad
    assert_contract(grad, desired, backend=backend, dtype="float32", least=near_the_top(wide) - 2 * sure_rows(wide))
    assert (np.abs(backend.to_numpy(grad)) < 2.0**-25).sum() > z.size // 4  # these would have vanished


@pytest.mark.backends(*SIXTEEN)
def test_float16_logits_at_their_largest_do_not_overflow(backend, impl):
    z = np.array([[65504.0, -65504.0, 0.0], [-65504.0, -65504.0, 65504.0]], np.float16)
    loss, grad = xs.softmax_loss_and_grad(
        backend.asarray(z), backend.asarray(np.array([1, 2])), reduction="none", impl=impl
    )
    assert_same_bits(backend.to_numpy(loss), np.float32([131008.0, 0.0]))
    assert np.array_equal(backend.to_numpy(grad), [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])


@pytest.mark.backends("numpy", "torch", "cupy")
def test_a_hundred_thousand_equal_float16_logits_do_not_overflow(backend, impl):
    """The sum of the exps, 100 000, is more than float16 can hold."""
    C = 100_000
    z = np.full((2, C), 65504.0, np.float16)
    loss = xs.softmax_loss(backend.asarray(z), backend.asarray(np.array([0, C - 1])), reduction="none", impl=impl)
    desired = exact.softmax_loss(z.astype(np.float32), np.array([0, C - 1]), reduction="none").loss
    assert_contract(loss, desired, backend=backend, dtype="float32", least=2)
