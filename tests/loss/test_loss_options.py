"""Every combination of the options of the loss against the oracle."""

import itertools

import numpy as np
import oracle as exact
import pytest
from assertions import assert_within
from grid import SOME, assert_contract, far_apart, labels, logits

import xpsoftmax as xs

REDUCTIONS = ("mean", "sum", "none")
OPTIONS = ("class_weight", "sample_weight", "ignore_index", "label_smoothing", "z_loss")
COMBINATIONS = [c for n in range(len(OPTIONS) + 1) for c in itertools.combinations(OPTIONS, n)]
# A dask graph is slow: it runs the corners, nothing and everything; so does JAX, which compiles each formula.
FAST = ("numpy", "array_api_strict", "torch", "cupy")
CORNERS = [(), OPTIONS]


def values_of(names, rng, dtype, rows, classes):
    """Values for the named options, with zeros among the weights."""
    every = {
        "class_weight": rng.random(classes).astype(dtype) * (np.arange(classes) != 3),
        "sample_weight": (rng.random(rows) * 3).astype(dtype) * (np.arange(rows) % 5 != 4),
        "ignore_index": 2,
        "label_smoothing": 0.1,
        "z_loss": 1e-2,
    }
    every = {k: v.astype(dtype) if isinstance(v, np.ndarray) else v for k, v in every.items()}
    return {name: every[name] for name in names}


def check(z, targets, options, reduction, *, backend, impl, dtype, share=0.9, subnormal_terms=0):
    """Loss and gradient, which one call returns; at least this share of the entries is compared."""
    desired = exact.softmax_loss(z, targets, **options, reduction=reduction)
    given = {k: backend.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    loss, grad = xs.softmax_loss_and_grad(
        backend.asarray(z), backend.asarray(targets), **given, reduction=reduction, impl=impl
    )
    how = {"backend": backend, "dtype": dtype, "subnormal_terms": subnormal_terms, "impl": impl}
    assert_contract(loss, desired.loss, least=int(np.size(desired.loss.value) * share), **how)
    assert_contract(grad, desired.grad, least=int(z.size * share), **how)


def check_hard(rng, names, reduction, *, backend, impl, dtype):
    z = logits(rng, "scale-10", SOME, dtype)
    y = labels(rng, z)
    y[:4] = [2, 3, 2, 3]  # rows that are ignored, and rows of class weight 0
    check(z, y, values_of(names, rng, dtype, *z.shape), reduction, backend=backend, impl=impl, dtype=dtype)


def check_soft(rng, names, reduction, *, backend, impl, dtype):
    z = logits(rng, "scale-10", SOME, dtype)
    q = rng.random(z.shape) ** 8 * rng.integers(0, 2, size=z.shape)  # uneven, with zeros, of any sum
    options = values_of(names, rng, dtype, *z.shape)
    check(z, q.astype(dtype), options, reduction, backend=backend, impl=impl, dtype=dtype)


@pytest.mark.backends(*FAST)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_options_of_hard_labels(backend, impl, dtype, rng, names, reduction):
    check_hard(rng, names, reduction, backend=backend, impl=impl, dtype=dtype)


@pytest.mark.backends(*FAST)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("names", [c for c in COMBINATIONS if "ignore_index" not in c], ids="+".join)
def test_options_of_soft_targets(backend, impl, dtype, rng, names, reduction):
    check_soft(rng, names, reduction, backend=backend, impl=impl, dtype=dtype)


@pytest.mark.backends("array_api_strict:device1", "dask", "jax")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("names", CORNERS, ids="+".join)
def test_no_option_and_all_options_of_hard_labels(backend, impl, dtype, rng, names, reduction):
    check_hard(rng, names, reduction, backend=backend, impl=impl, dtype=dtype)


@pytest.mark.backends("array_api_strict:device1", "dask", "jax")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("names", [(), tuple(n for n in OPTIONS if n != "ignore_index")], ids="+".join)
def test_no_option_and_all_options_of_soft_targets(backend, impl, dtype, rng, names, reduction):
    check_soft(rng, names, reduction, backend=backend, impl=impl, dtype=dtype)


# --- extremes of single options ---------------------------------------------------------------------------------------


@pytest.mark.backends(*FAST)
@pytest.mark.parametrize("names", [("class_weight",), ("label_smoothing",), ("z_loss",), OPTIONS], ids="+".join)
@pytest.mark.parametrize("kind", ["scale-1", "scale-30", "scale-80", "equal", "ties", "up-1e4", "down-1e4"])
def test_options_keep_the_bound_on_the_grid_of_logits(backend, impl, dtype, rng, kind, names):
    z = logits(rng, kind, SOME, dtype)
    options = values_of(names, rng, dtype, *z.shape)
    check(z, labels(rng, z), options, "none", backend=backend, impl=impl, dtype=dtype, share=0.25)


@pytest.mark.backends(*FAST)
@pytest.mark.parametrize("kind", ["scale-1", "scale-30", "scale-80", "equal", "ties", "up-1e4", "down-1e4"])
def test_soft_targets_keep_the_bound_on_the_grid_of_logits(backend, impl, dtype, rng, kind):
    z = logits(rng, kind, SOME, dtype)
    q = rng.random(z.shape) ** 8
    check(z, q.astype(dtype), {}, "none", backend=backend, impl=impl, dtype=dtype, share=0.25)


@pytest.mark.backends(*FAST)
@pytest.mark.parametrize("smoothing", [0.0, 1e-10, 0.5, 1.0])
def test_any_share_of_smoothing_keeps_the_bound(backend, impl, dtype, rng, smoothing):
    z = logits(rng, "scale-10", SOME, dtype)
    check(z, labels(rng, z), {"label_smoothing": smoothing}, "mean", backend=backend, impl=impl, dtype=dtype)


def test_one_hot_targets_keep_the_gradient_of_a_sure_row(backend, impl, dtype):
    """The hot class of soft targets is treated like a label: p - 1 would be 0 here."""
    z = np.array([[45.0, 0.0, 1.0]], dtype)
    q = np.array([[1.0, 0.0, 0.0]], dtype)
    _, grad = xs.softmax_loss_and_grad(backend.asarray(z), backend.asarray(q), impl=impl)
    desired = exact.softmax_loss(z, np.array([0])).grad
    assert_contract(grad, desired, backend=backend, dtype=dtype, least=3)


@pytest.mark.parametrize("total", [1e-3, 7.0])
def test_soft_targets_may_have_any_sum(backend, impl, dtype, rng, total):
    z = logits(rng, "scale-1", SOME, dtype)
    q = rng.random(z.shape)
    q = (q * total / q.sum(axis=1, keepdims=True)).astype(dtype)
    check(z, q, {}, "none", backend=backend, impl=impl, dtype=dtype)


@pytest.mark.backends(*FAST)
@pytest.mark.parametrize("z_loss", [1.0, 10.0])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_z_loss_keeps_the_digits_of_a_class_with_a_subnormal_probability(backend, impl, dtype, rng, classes, z_loss):
    """At the class with all the mass, (Q + slope) p: beside a tiny q, a large slope makes a normal number of it."""
    z, hot = far_apart(rng, classes, dtype, ahead=False)
    q = np.zeros(z.shape)
    q[np.arange(len(z)), hot] = float(np.finfo(dtype).tiny) * 10 ** rng.uniform(0, 3, len(z))
    # q (1 - p) is near the smallest normal number, too: q times exp(t), over the sum of the exp(t), may be less.
    options = {"z_loss": z_loss}
    check(z, q.astype(dtype), options, "none", backend=backend, impl=impl, dtype=dtype, subnormal_terms=classes)


@pytest.mark.backends(*FAST)
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_large_targets_keep_the_digits_of_a_sure_row(backend, impl, dtype, rng, classes):
    """Loss and gradient are q (1 - p), and 1 - p is subnormal."""
    z, hot = far_apart(rng, classes, dtype, ahead=True)
    q = np.zeros(z.shape)
    q[np.arange(len(z)), hot] = 10 ** rng.uniform(6, 20, len(z))
    check(z, q.astype(dtype), {}, "none", backend=backend, impl=impl, dtype=dtype)


@pytest.mark.backends(*FAST)
@pytest.mark.parametrize("kind", ["int8", "int32", "uint8"])
def test_weights_may_be_integers(backend, impl, dtype, rng, kind):
    z = logits(rng, "scale-1", SOME, dtype)
    y = labels(rng, z)
    weight = rng.integers(0, 4, size=z.shape[0])
    loss = xs.softmax_loss(
        backend.asarray(z), backend.asarray(y), sample_weight=backend.asarray(weight, kind), impl=impl
    )
    desired = exact.softmax_loss(z, y, sample_weight=weight).loss
    assert_contract(loss, desired, backend=backend, dtype=dtype, least=1)


@pytest.mark.parametrize("ignore_index", [-100, 2, -(2**70), 2**70])
def test_any_integer_may_be_ignored(backend, impl, dtype, rng, ignore_index):
    """2**70 fits no label dtype and is therefore no label."""
    z = logits(rng, "scale-1", SOME, dtype)
    y = labels(rng, z)
    y[::3] = max(ignore_index, -100) if abs(ignore_index) < 2**63 else 1
    loss = xs.softmax_loss(backend.asarray(z), backend.asarray(y), ignore_index=ignore_index, impl=impl)
    desired = exact.softmax_loss(z, y, ignore_index=ignore_index).loss
    assert_contract(loss, desired, backend=backend, dtype=dtype, least=1)


def test_a_small_unsigned_label_is_not_taken_for_a_negative_ignore_index(backend, impl):
    """In some libraries uint8(156) == -100."""
    z = np.zeros((2, 200), np.float32)
    y = np.array([156, 7])
    loss = xs.softmax_loss(
        backend.asarray(z), backend.asarray(y, "uint8"), ignore_index=-100, reduction="sum", impl=impl
    )
    compared = assert_within(
        backend.to_numpy(loss), 2 * np.log(exact.LD(200)), bound=exact.bound(z)[0, 0] * 2 * np.log(exact.LD(200))
    )
    assert compared == 1
