"""What must hold for any logits, found out by Hypothesis."""

import numpy as np
import oracle as exact
import pytest
from assertions import TINY, assert_same_bits, assert_within
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import xpsoftmax as xs

# Numbers whose exponentials neither all vanish nor all agree, and the shapes of small batches.
SETTINGS = settings(deadline=None, derandomize=True, max_examples=60)
DTYPES = st.sampled_from([np.float32, np.float64])


@st.composite
def batches(draw):
    """Logits (R, C) and labels (R,)."""
    dtype = draw(DTYPES)
    R, C = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    finite = st.floats(-60, 60, width=np.dtype(dtype).itemsize * 8, allow_subnormal=False)
    z = draw(arrays.arrays(dtype, (R, C), elements=finite))
    y = draw(arrays.arrays(np.int64, (R,), elements=st.integers(0, C - 1)))
    return z, y


def computed(z, targets, **options):
    return xs.softmax_loss_and_grad(z, targets, **{"reduction": "none"} | options)


def assert_both_within(results, z, y):
    """Loss and gradient are within the contract's bounds of the exact ones of z and y."""
    desired = exact.softmax_loss(z, y, reduction="none")
    for actual, wanted in zip(results, desired, strict=True):
        assert_within(actual, wanted.value, bound=wanted.bound, where=wanted.where)


@SETTINGS
@given(batches())
def test_results_are_within_the_bound(batch):
    assert_both_within(computed(*batch), *batch)


@SETTINGS
@given(batches(), st.integers(-1000, 1000))
def test_a_shift_changes_nothing_but_rounding(batch, shift):
    z, y = batch
    z = np.round(z * 16) / 16  # z + shift is exact then
    assert_both_within(computed(z + z.dtype.type(shift), y), z, y)


@SETTINGS
@given(batches())
def test_the_loss_is_never_negative(batch):
    loss, _ = computed(*batch)
    assert (loss >= 0).all()


@SETTINGS
@given(batches())
def test_the_rows_of_the_gradient_sum_to_zero(batch):
    z, y = batch
    grad = computed(z, y)[1].astype(np.longdouble)
    limit = exact.bound(z)[:, 0] * np.abs(grad).sum(axis=1)
    where = np.abs(grad).max(axis=1) >= TINY[z.dtype.name] * 1e8  # of subnormal entries nothing is promised
    assert_within(grad.sum(axis=1), np.zeros(len(z)), bound=limit, where=where)


@SETTINGS
@given(batches(), st.randoms(use_true_random=False))
def test_permuted_rows_give_permuted_bits(batch, random):
    z, y = batch
    order = random.sample(range(len(z)), len(z))
    for actual, desired in zip(computed(z[order], y[order]), computed(z, y), strict=True):
        assert_same_bits(actual, desired[order])


@SETTINGS
@given(batches(), st.randoms(use_true_random=False))
def test_permuted_classes_give_permuted_results(batch, random):
    z, y = batch
    order = np.array(random.sample(range(z.shape[1]), z.shape[1]))
    loss, grad = computed(z[:, order], np.argsort(order)[y])
    assert_both_within((loss, grad[:, np.argsort(order)]), z, y)


@SETTINGS
@given(batches())
def test_one_hot_targets_are_labels(batch):
    z, y = batch
    q = np.eye(z.shape[1], dtype=z.dtype)[y]
    assert_both_within(computed(z, q), z, y)


@SETTINGS
@given(batches())
def test_inputs_are_unchanged(batch):
    z, y = batch
    before = z.copy(), y.copy()
    computed(z, y)
    computed(z, y, reduction="mean", label_smoothing=0.1)
    assert_same_bits(z, before[0])
    assert np.array_equal(y, before[1])


@SETTINGS
@given(batches())
def test_probabilities_are_at_most_one_and_sum_to_it(batch):
    z, _ = batch
    p = xs.softmax(z)
    assert ((p >= 0) & (p <= 1)).all()
    total = p.astype(np.longdouble).sum(axis=1)
    assert assert_within(total, np.ones(len(z)), bound=exact.bound(z)[:, 0]) == len(z)


@SETTINGS
@given(batches())
def test_sums_over_batches_add(batch):
    z, y = batch
    half = len(z) // 2
    whole = xs.softmax_loss(z, y, reduction="sum")
    parts = [np.longdouble(xs.softmax_loss(z[s], y[s], reduction="sum")) for s in (slice(half), slice(half, None))]
    desired = exact.softmax_loss(z, y, reduction="sum").loss
    for total in (whole, sum(parts)):
        assert_within(np.asarray(total), desired.value, bound=desired.bound, where=desired.where)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_settings_reach_sure_rows(dtype):
    """The range of the logits above holds rows that a plain formula rounds to zero."""
    loss, grad = computed(np.array([[60, -20]], dtype), np.array([0]))
    assert 0 < loss[0] < 1e-34
    assert grad[0, 0] < 0
