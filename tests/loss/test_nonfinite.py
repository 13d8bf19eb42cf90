"""Infinite, missing and masked logits, rows that do not count, and silence about all of them."""

import numpy as np
import oracle as exact
import pytest
from assertions import assert_like, assert_same_bits, assert_within
from grid import SOME, assert_contract, logits

import xpsoftmax as xs

INF, NAN = np.inf, np.nan
POOR_ROWS = {
    "all-minus-inf": [-INF, -INF, -INF],
    "plus-inf": [1.0, INF, 0.0],
    "two-plus-inf": [INF, INF, 0.0],
    "both-infinities": [-INF, INF, 0.0],
    "nan": [1.0, NAN, 0.0],
    "nan-first": [NAN, 1.0, 0.0],
    "nan-and-inf": [NAN, INF, -INF],
}
GOOD = [0.5, -1.0, 2.0]
MIXED = np.array([GOOD, *(row for poor in POOR_ROWS.values() for row in (poor, GOOD))])  # every other row is poor
CLEAN = np.array([GOOD] * len(MIXED))
SOFT = np.array([[0.25, 0.5, 0.25]])
TARGETS = pytest.mark.parametrize("targets", [np.array([0]), SOFT], ids=["label", "soft"])


def rows_of(backend, impl, z, targets, **options):
    """Loss of each row and gradient, as NumPy arrays."""
    given = {k: backend.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    pair = xs.softmax_loss_and_grad(
        backend.asarray(z), backend.asarray(targets), **{"reduction": "none"} | given, impl=impl
    )
    return tuple(backend.to_numpy(x) for x in pair)


# --- classes that cannot be -------------------------------------------------------------------------------------------


def test_a_masked_class_has_probability_zero(backend, impl, dtype):
    z = np.array([[1.0, -INF, 2.0]], dtype)
    p = backend.to_numpy(xs.softmax(backend.asarray(z), impl=impl))
    assert p[0, 1] == 0
    assert p[0, 0] > 0


def test_a_masked_class_has_log_probability_minus_inf(backend, impl, dtype):
    z = np.array([[1.0, -INF, 2.0]], dtype)
    assert backend.to_numpy(xs.log_softmax(backend.asarray(z), impl=impl))[0, 1] == -INF


def test_a_masked_class_without_mass_has_gradient_zero(backend, impl, dtype):
    loss, grad = rows_of(backend, impl, np.array([[1.0, -INF, 2.0]], dtype), np.array([0]))
    assert np.isfinite(loss).all()
    assert grad[0, 1] == 0


def test_a_soft_target_of_zero_on_a_masked_class_adds_nothing(backend, impl, dtype):
    z = np.array([[1.0, -INF, 2.0]], dtype)
    loss, grad = rows_of(backend, impl, z, np.array([[0.5, 0.0, 0.5]], dtype))
    desired = exact.softmax_loss(z[:, [0, 2]], np.array([[0.5, 0.5]], dtype), reduction="none")
    limit = exact.bound(z)
    assert assert_within(loss, desired.loss.value, bound=limit[:, 0] * desired.loss.value) == 1
    assert grad[0, 1] == 0
    assert assert_within(grad[:, [0, 2]], desired.grad.value, bound=limit * np.abs(desired.grad.value)) == 2


def test_a_masked_label_costs_infinity_and_still_has_a_gradient(backend, impl, dtype):
    z = np.array([[1.0, -INF, 2.0]], dtype)
    loss, grad = rows_of(backend, impl, z, np.array([1]))
    assert loss[0] == INF
    assert grad[0, 1] == -1
    p = exact.softmax(z)
    assert assert_within(grad[:, [0, 2]], p.value[:, [0, 2]], bound=p.bound[:, [0, 2]]) == 2


@pytest.mark.parametrize(
    ("targets", "smoothing"),
    [(np.array([[0.25, 0.5, 0.25]]), 0.0), (np.array([0]), 0.3), (np.array([[1.0, 0.0, 0.0]]), 0.3)],
    ids=["soft", "smoothed-label", "smoothed-soft"],
)
def test_mass_on_a_masked_class_costs_infinity_and_still_has_a_gradient(backend, impl, dtype, targets, smoothing):
    z = np.array([[1.0, -INF, 2.0]], dtype)
    targets = targets.astype(dtype) if targets.ndim == 2 else targets
    pair = xs.softmax_loss_and_grad(
        backend.asarray(z), backend.asarray(targets), label_smoothing=smoothing, reduction="none", impl=impl
    )
    assert backend.to_numpy(pair[0])[0] == INF
    desired = exact.softmax_loss(z, targets, label_smoothing=smoothing, reduction="none").grad
    assert_contract(pair[1], desired, backend=backend, dtype=dtype, least=3)


def test_the_only_class_left_is_certain(backend, impl, dtype):
    loss, grad = rows_of(backend, impl, np.array([[-INF, 3.0, -INF]], dtype), np.array([1]))
    assert loss[0] == 0
    assert np.count_nonzero(grad) == 0


# --- rows without a number --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [xs.softmax, xs.log_softmax], ids=["softmax", "log_softmax"])
def test_a_poor_row_is_nan_and_alone(backend, impl, dtype, function):
    mixed, clean = (backend.to_numpy(function(backend.asarray(z.astype(dtype)), impl=impl)) for z in (MIXED, CLEAN))
    assert np.isnan(mixed[1::2]).all()
    assert_same_bits(mixed[::2], clean[::2])


@pytest.mark.parametrize(
    ("row", "value"),
    [("all-minus-inf", -INF), ("plus-inf", INF), ("both-infinities", INF), ("nan", NAN), ("nan-and-inf", NAN)],
)
def test_logsumexp_of_a_poor_row_is_its_largest_logit(backend, impl, dtype, row, value):
    result = xs.logsumexp(backend.asarray(np.array([POOR_ROWS[row]], dtype)), impl=impl)
    assert_same_bits(backend.to_numpy(result), np.array([value], dtype))


@TARGETS
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}], ids=["plain", "smoothed", "z"])
def test_the_loss_and_gradient_of_a_poor_row_are_nan_and_alone(backend, impl, dtype, targets, options):
    targets = np.repeat(targets.astype(dtype) if targets.ndim == 2 else targets, len(MIXED), axis=0)
    mixed, clean = (rows_of(backend, impl, z.astype(dtype), targets, **options) for z in (MIXED, CLEAN))
    for result, wanted in zip(mixed, clean, strict=True):  # loss, gradient
        assert np.isnan(result[1::2]).all()
        assert_same_bits(result[::2], wanted[::2])


def test_the_mean_over_a_poor_row_is_nan_but_only_its_gradient(backend, impl, dtype):
    z = np.array([[0.5, -1.0], [NAN, 0.0]], dtype)
    loss, grad = rows_of(backend, impl, z, np.array([0, 1]), reduction="mean")
    assert np.isnan(loss)
    assert np.isnan(grad).tolist() == [[False, False], [True, True]]


# --- rows that do not count -------------------------------------------------------------------------------------------

POOR = np.arange(len(MIXED)) % 2 == 1
DEAD = {
    "ignored": {"ignore_index": 2},
    "sample-weight": {"sample_weight": np.where(POOR, 0.0, 1.0)},
    "class-weight": {"class_weight": np.array([1.0, 1.0, 0.0])},
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", list(DEAD.values()), ids=list(DEAD))
def test_a_zero_row_may_hold_anything(backend, impl, options, reduction):
    options = {k: np.float32(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    y = np.where(POOR, 2, 0)
    loss, grad = rows_of(backend, impl, np.float32(MIXED), y, **options, reduction=reduction)
    clean = rows_of(backend, impl, np.float32(CLEAN), y, **options, reduction=reduction)
    assert np.count_nonzero(grad[POOR]) == 0
    assert np.count_nonzero(grad[~POOR]) == grad[~POOR].size
    assert_same_bits(loss, clean[0])
    assert_same_bits(grad, clean[1])


def test_a_zero_row_has_loss_zero(backend, impl, dtype):
    loss, _ = rows_of(backend, impl, MIXED.astype(dtype), np.where(POOR, 2, 0), ignore_index=2)
    assert np.array_equal(loss == 0, POOR)


def test_a_zero_row_of_soft_targets_may_hold_anything(backend, impl, dtype):
    q = np.repeat(SOFT, len(MIXED), axis=0).astype(dtype)
    weight = np.where(POOR, 0.0, 1.0).astype(dtype)
    loss, grad = rows_of(backend, impl, MIXED.astype(dtype), q, sample_weight=weight, label_smoothing=0.1, z_loss=0.1)
    assert np.isfinite(loss).all()
    assert np.array_equal(loss == 0, POOR)
    assert np.array_equal((grad == 0).all(axis=1), POOR)


def test_class_weight_zero_with_smoothing_is_not_a_zero_row(backend, impl, dtype):
    z = np.array([[0.5, -1.0, 2.0]], dtype)
    options = {"class_weight": np.array([0.0, 1.0, 1.0], dtype), "label_smoothing": 0.1}
    loss, _ = rows_of(backend, impl, z, np.array([0]), **options)
    desired = exact.softmax_loss(z, np.array([0]), **options, reduction="none").loss
    assert assert_within(loss, desired.value, bound=desired.bound) == 1
    assert loss[0] > 0


NOTHING = {
    "no-rows": (np.zeros((0, 3)), np.zeros(0, np.int64), {}),
    "all-ignored": (np.ones((2, 3)), np.array([1, 1]), {"ignore_index": 1}),
    "all-weights-zero": (np.ones((2, 3)), np.array([1, 1]), {"sample_weight": np.zeros(2)}),
    "class-weight-zero": (np.ones((2, 3)), np.array([1, 1]), {"class_weight": np.array([1.0, 0.0, 1.0])}),
    "soft-weights-zero": (np.ones((2, 3)), np.ones((2, 3)), {"sample_weight": np.zeros(2)}),
    "ignored-nan": (np.full((2, 3), NAN), np.array([1, 1]), {"ignore_index": 1}),
}


@pytest.mark.parametrize("case", list(NOTHING.values()), ids=list(NOTHING))
@pytest.mark.parametrize(("reduction", "value"), [("mean", NAN), ("sum", 0.0), ("none", 0.0)])
def test_the_loss_over_nothing(backend, impl, case, reduction, value):
    z, targets, options = case
    options = {k: np.float32(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    loss, _ = rows_of(backend, impl, np.float32(z), targets, **options, reduction=reduction)
    shape = (z.shape[0],) if reduction == "none" else ()
    assert_same_bits(loss, np.full(shape, value, np.float32))


@pytest.mark.parametrize("case", list(NOTHING.values()), ids=list(NOTHING))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_gradient_over_nothing_is_zero(backend, impl, case, reduction):
    z, targets, options = case
    options = {k: np.float32(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    _, grad = rows_of(backend, impl, np.float32(z), targets, **options, reduction=reduction)
    assert np.array_equal(grad, np.zeros(z.shape))


def test_the_mean_over_smoothed_rows_of_class_weight_zero_has_no_gradient(backend, impl, dtype):
    """These rows have a loss of their own, but their counting weights sum to zero."""
    z = np.array([GOOD], dtype)
    weight = np.array([0.0, 1.0, 1.0], dtype)
    loss, grad = rows_of(backend, impl, z, np.array([0]), class_weight=weight, label_smoothing=0.1, reduction="mean")
    assert np.isnan(loss)
    assert np.count_nonzero(grad) == 0


# --- bad labels without validation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [-1, 3, -(2**62), 2**62])
def test_an_unvalidated_bad_label_is_nan_in_its_row_only(backend, impl, dtype, label):
    z = np.array([[0.5, -1.0, 2.0]] * 3, dtype)
    loss, grad = rows_of(backend, impl, z, np.array([0, label, 1]), validate=False)
    clean = rows_of(backend, impl, z, np.array([0, 1, 1]))
    assert np.isnan(loss[1])
    assert np.isnan(grad[1]).all()
    assert_same_bits(loss[[0, 2]], clean[0][[0, 2]])
    assert_same_bits(grad[[0, 2]], clean[1][[0, 2]])


def test_an_unvalidated_bad_label_counts_with_class_weight_one(backend, impl, dtype):
    z = np.array([[0.5, -1.0, 2.0]] * 2, dtype)
    weight = np.array([3.0, 5.0, 7.0], dtype)
    _, grad = rows_of(backend, impl, z, np.array([0, 9]), class_weight=weight, validate=False, reduction="mean")
    desired = exact.softmax_loss(z[:1], np.array([0]), reduction="none").grad
    assert assert_within(grad[:1], desired.value * 3 / exact.LD(4), bound=desired.bound * 3 / exact.LD(4)) == 3


def test_an_unvalidated_bad_label_of_weight_zero_adds_nothing(backend, impl, dtype):
    z = np.array([[0.5, -1.0, 2.0]] * 2, dtype)
    weight = np.array([1.0, 0.0], dtype)
    loss, grad = rows_of(backend, impl, z, np.array([0, 9]), sample_weight=weight, validate=False)
    assert loss[1] == 0
    assert np.count_nonzero(grad[1]) == 0


@pytest.mark.parametrize("mass", [-1.0, INF, NAN])
def test_an_unvalidated_bad_soft_target_is_nan_in_its_row_only(backend, impl, dtype, mass):
    z = np.array([[0.5, -1.0, 2.0]] * 2, dtype)
    q = np.array([[0.2, 0.3, 0.5], [0.5, mass, 0.5]], dtype)
    loss, grad = rows_of(backend, impl, z, q, validate=False)
    assert np.isnan(loss).tolist() == [False, True]
    assert np.isnan(grad).tolist() == [[False] * 3, [True] * 3]


# --- silence ----------------------------------------------------------------------------------------------------------

NOISY = np.array(
    [[1.0, NAN, 0.0], [-INF, -INF, -INF], [INF, 0.0, 1.0], [-INF, 0.0, 1.0], [1e4, -1e4, 0.0], [3e38, -3e38, 0.0]]
)
CALLS = {
    "softmax": lambda z, y, q, impl: xs.softmax(z, impl=impl),
    "log_softmax": lambda z, y, q, impl: xs.log_softmax(z, impl=impl),
    "logsumexp": lambda z, y, q, impl: xs.logsumexp(z, impl=impl),
    "jvp": lambda z, y, q, impl: xs.softmax_jvp(z, z),
    "jacobian": lambda z, y, q, impl: xs.softmax_jacobian(z),
    "label": lambda z, y, q, impl: xs.softmax_loss_and_grad(z, y, impl=impl)[1],
    "soft": lambda z, y, q, impl: xs.softmax_loss_and_grad(z, q, impl=impl)[1],
    "options": lambda z, y, q, impl: xs.softmax_loss_and_grad(z, y, label_smoothing=0.1, z_loss=0.1, impl=impl)[1],
    "nothing": lambda z, y, q, impl: xs.softmax_loss(z[:0, :], y[:0], impl=impl),
}
CALL = pytest.mark.parametrize("call", list(CALLS.values()), ids=list(CALLS))


def noisy_arguments(backend, dtype):
    y = np.zeros(NOISY.shape[0], np.int64)
    return [backend.asarray(x) for x in (NOISY.astype(dtype), y, np.full(NOISY.shape, 0.5, dtype))]


@pytest.mark.backends("numpy", "array_api_strict", "array_api_strict:device1")
@CALL
def test_nothing_raises_where_every_floating_point_error_would(backend, impl, dtype, call):
    arguments = noisy_arguments(backend, dtype)
    with np.errstate(all="raise"):
        result = call(*arguments, impl)
    assert_like(result, backend=backend, dtype=dtype, shape=tuple(result.shape))


@CALL
def test_nothing_warns(backend, impl, dtype, call, recwarn):
    result = backend.to_numpy(call(*noisy_arguments(backend, dtype), impl))
    assert [str(warning.message) for warning in recwarn] == []
    assert result.dtype.name == dtype


@pytest.mark.backends("numpy", "array_api_strict", "array_api_strict:device1")
@CALL
def test_the_errstate_is_left_as_it_was(backend, impl, call):
    arguments = noisy_arguments(backend, "float32")
    with np.errstate(divide="raise", over="ignore", under="warn", invalid="print"):
        before = np.geterr()
        call(*arguments, impl)
        assert np.geterr() == before


@pytest.mark.backends("numpy", "array_api_strict")
@pytest.mark.parametrize("kind", ["scale-80", "minus-inf", "up-1e4"])
def test_underflow_does_not_raise(backend, impl, dtype, rng, kind):
    z = backend.asarray(logits(rng, kind, SOME, dtype))
    y = backend.asarray(np.zeros(z.shape[0], np.int64))
    with np.errstate(all="raise"):
        loss, _ = xs.softmax_loss_and_grad(z, y, reduction="none", impl=impl)
    assert not np.isnan(backend.to_numpy(loss)).any()
