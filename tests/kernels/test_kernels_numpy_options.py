"""The NumPy kernels with options: the bound where rows need care, and what it costs, counted rather than timed.

Of every combination below no row may be left to the generic code, and no logit may have more than a few exponentials.
"""

import itertools

import numpy as np
import oracle as exact
import pytest
from assertions import EPS, TINY, assert_like, assert_same_bits, assert_within
from backends import backend_named

import xpsoftmax as xs
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.numpy import mass_loss
from xpsoftmax.kernels.numpy.ranges import RANGES

NUMPY = backend_named("numpy")
ROWS = 24
CLASSES = (2, 10, 33)


def check(z, targets, *, dtype, **options):
    """Loss and gradient keep the bound; nothing warns. Returns how many entries of both were compared."""
    desired = exact.softmax_loss(z, targets, reduction="none", **options)
    with np.errstate(all="raise"):
        loss, grad = xs.softmax_loss_and_grad(z, targets, reduction="none", impl="kernel", **options)
        alone = xs.softmax_loss(z, targets, reduction="none", impl="kernel", **options)
    assert_same_bits(alone, loss)
    compared = 0
    for result, wanted in ((loss, desired.loss), (grad, desired.grad)):
        assert_like(result, backend=NUMPY, dtype=dtype, shape=wanted.value.shape)
        compared += assert_within(result, wanted.value, bound=wanted.bound, where=wanted.where)
    return compared


# --- logits, targets and options --------------------------------------------------------------------------------------


def with_lse(z, lse):
    """The same rows moved so that logsumexp is this."""
    wide = z.astype(np.longdouble)
    top = wide.max(axis=1, keepdims=True)
    return wide - top - np.log(np.exp(wide - top).sum(axis=1, keepdims=True)) + lse


def with_lead(z, y, lead):
    z = z.astype(np.longdouble)
    z[np.arange(len(z)), y] += lead
    return z


def masked(z, columns):
    z = z.copy()
    z[:, columns] = -np.inf
    return z


FAR = {"float32": 100.0, "float64": 800.0}
LOGITS = {
    "normal": lambda z, y: z,
    "logsumexp 0": lambda z, y: with_lse(z, 0.0),
    "logsumexp near 0": lambda z, y: with_lse(z, 1e-3 * np.arange(-12, 12)[:, None]),
    "logsumexp below 0": lambda z, y: with_lse(z, -0.9),
    "logsumexp at the least of the window": lambda z, y: with_lse(z, np.log(2.0) * np.linspace(-8, -3, ROWS)[:, None]),
    "far below 0": lambda z, y: z - 30.0,
    "far up": lambda z, y: z + 1e4,
    "far down": lambda z, y: z - 1e4,
    "scale 30": lambda z, y: 30.0 * z,
    "scale 30, up": lambda z, y: 30.0 * z + 100.0,
    "scale 80": lambda z, y: 80.0 * z,
    "equal": lambda z, y: z[:, :1] + 0.0 * z,
    "label leads": lambda z, y: with_lead(z, y, FAR[z.dtype.name]),
    "label is behind": lambda z, y: with_lead(z, y, -FAR[z.dtype.name]),
    "impossible classes": lambda z, y: masked(z, slice(1, None, 3)),
    "subnormal": lambda z, y: 8.0 * TINY[z.dtype.name] * EPS[z.dtype.name] * np.round(z),
}


def problem(rng, kind, classes, dtype):
    """Logits (ROWS, classes) and labels, of which half are at the largest logit."""
    z = rng.normal(size=(ROWS, classes)).astype(dtype)
    y = np.where(np.arange(ROWS) % 2, rng.integers(classes, size=ROWS), z.argmax(axis=1))
    return LOGITS[kind](z, y).astype(dtype), y


def sums(q, total):
    return q * (total / q.sum(axis=1, keepdims=True))


TARGETS = {
    "labels": lambda q, y: y,
    "sum 1": lambda q, y: sums(q, 1.0),
    "sum 1.001": lambda q, y: sums(q, 1.001),
    "sum 2": lambda q, y: sums(q, 2.0),
    "sum 1e9": lambda q, y: sums(q, 1e9),
    "sum 0.1": lambda q, y: sums(q, 0.1),
    "sparse": lambda q, y: np.where(q < 0.7, 0.0, q),
    "one": lambda q, y: 1.0 * (np.arange(q.shape[1]) == y[:, None]),
    "one of 5": lambda q, y: 5.0 * (np.arange(q.shape[1]) == y[:, None]),
    "beside little": lambda q, y: np.where(np.arange(q.shape[1]) == y[:, None], 1.0, 1e-33 * (q + 0.01)),
    "none": lambda q, y: 0.0 * q,
}


def options_of(names, rng, dtype, classes):
    class_weight = rng.random(classes) * (np.arange(classes) % 3 != 2)
    every = {
        "label_smoothing": 0.1,
        "class_weight": class_weight.astype(dtype),
        "z_loss": 1e-2,
        "sample_weight": (rng.random(ROWS) * (np.arange(ROWS) % 5 != 4)).astype(dtype),
    }
    return {name: every[name] for name in names}


NAMES = ("label_smoothing", "class_weight", "z_loss", "sample_weight")
COMBINATIONS = [c for n in range(len(NAMES) + 1) for c in itertools.combinations(NAMES, n)]
every_kind = pytest.mark.parametrize("kind", LOGITS)
every_target = pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)


def targets_of(make, rng, y, classes, dtype):
    targets = make(rng.random((ROWS, classes)), y)
    return targets if targets.ndim == 1 else targets.astype(dtype)


# --- the bound --------------------------------------------------------------------------------------------------------


@every_kind
@every_target
def test_every_combination_of_options_keeps_the_bound(rng, dtype, kind, make):
    compared = 0
    for classes, names in itertools.product(CLASSES, COMBINATIONS):
        z, y = problem(rng, kind, classes, dtype)
        targets = targets_of(make, rng, y, classes, dtype)
        compared += check(z, targets, dtype=dtype, **options_of(names, rng, dtype, classes))
    assert compared >= 3_000


@every_kind
@pytest.mark.parametrize("z_loss", [1e-6, 1e-4, 0.3, 0.5, 0.51, 1.0, 100.0, 1e6])
def test_a_z_loss_of_any_size_keeps_the_bound(rng, dtype, kind, z_loss):
    compared = 0
    for classes in CLASSES:
        z, y = problem(rng, kind, classes, dtype)
        compared += check(z, y, dtype=dtype, z_loss=z_loss)
        for make in ("one", "sum 2", "none"):
            compared += check(z, targets_of(TARGETS[make], rng, y, classes, dtype), dtype=dtype, z_loss=z_loss)
    assert compared >= 1_000


@every_kind
@pytest.mark.parametrize("smoothing", [1e-36, 1e-12, 9e-7, 1.1e-6, 0.9, 1.0])
def test_smoothing_of_any_size_keeps_the_bound(rng, dtype, kind, smoothing):
    compared = 0
    for classes, names in itertools.product(CLASSES, ((), ("class_weight",), ("z_loss",))):
        z, y = problem(rng, kind, classes, dtype)
        options = options_of(names, rng, dtype, classes)
        compared += check(z, y, dtype=dtype, label_smoothing=smoothing, **options)
    assert compared >= 1_000


@pytest.mark.parametrize("mass", [1e-3, 1.0, 1.5, 30.0, 1e6, 1e20])
def test_products_with_subnormal_probabilities_keep_their_digits(rng, dtype, mass):
    """From where probabilities become subnormal to where those times the mass do; and beside tiny masses."""
    lowest = -np.log(TINY[dtype])
    gaps = np.linspace(lowest - 1.0, lowest + np.log(1.0 + mass) - np.log(EPS[dtype]) + 2.0, 200)
    compared = 0
    for classes, offset in itertools.product((3, 17, 64), (0.0, 1000.0)):
        z = rng.normal(size=(200, classes)) * 1e-2 - gaps[:, None] + offset
        z[:, 0] = offset
        for beside in (0.0, TINY[dtype], 1e3 * TINY[dtype], 1e-3):
            q = np.full((200, classes), beside)
            q[:, 0] = mass
            compared += check(z.astype(dtype), q.astype(dtype), dtype=dtype)
    assert compared >= 2_000


@pytest.mark.parametrize("classes", [2, 10, 300])
def test_impossible_classes_with_and_without_mass(rng, dtype, classes):
    """0 * inf is 0, in rows beside others, and a mass there makes the loss infinite and leaves the gradient finite."""
    z, y = problem(rng, "normal", classes, dtype)
    z[::2, 1:] = np.where(rng.random((ROWS // 2, classes - 1)) < 0.5, -np.inf, z[::2, 1:])
    q = rng.random(z.shape)
    q[:, 0] = 1.0
    q[np.isneginf(z) & (np.arange(ROWS) % 4 == 0)[:, None]] = 0.0
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}):
        for targets in (q.astype(dtype), y):
            assert check(z, targets, dtype=dtype, **options) >= ROWS


# --- what it costs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_generic(monkeypatch):
    """No row may be left to the generic code."""
    monkeypatch.setattr(generic, "softmax_loss_rows", None)
    monkeypatch.setattr(mass_loss, "loss_by_generic", None)


class Exponentials:
    """How many logits went through np.exp, for each that there is."""

    def __init__(self, monkeypatch):
        self.logits, exp = 0, np.exp

        def counted(x, *args, **kwargs):
            self.logits += x.size if np.ndim(x) == 2 else 0
            return exp(x, *args, **kwargs)

        monkeypatch.setattr(np, "exp", counted)

    def of(self, function, z, *args, **options):
        before = self.logits
        function(z, *args, **options)
        return (self.logits - before) / z.size


@pytest.fixture
def exponentials(monkeypatch):
    return Exponentials(monkeypatch)


@every_kind
@every_target
def test_no_row_is_left_to_the_generic_text_or_computed_more_than_three_times(
    rng, dtype, no_generic, exponentials, kind, make
):
    """The generic code takes twenty times as long, and each way of the kernels about as long as the others."""
    for classes, names in itertools.product((10, 65), COMBINATIONS):
        z, y = problem(rng, kind, classes, dtype)
        targets = targets_of(make, rng, y, classes, dtype)
        options = options_of(names, rng, dtype, classes)
        times = exponentials.of(xs.softmax_loss_and_grad, z, targets, **options)
        assert 1.0 <= times <= 3.0, (classes, names)


ONCE = ("normal", "logsumexp 0", "logsumexp near 0", "logsumexp below 0")


@pytest.mark.parametrize("kind", [*ONCE, "scale 30", "equal", "impossible classes"])
def test_soft_targets_take_one_exponential_whatever_their_sum(rng, dtype, no_generic, exponentials, kind):
    for make, names in itertools.product(TARGETS.values(), COMBINATIONS):
        z, y = problem(rng, kind, 100, dtype)
        targets = targets_of(make, rng, y, 100, dtype)
        options = options_of(names, rng, dtype, 100)
        if targets.ndim == 1 and kind == "scale 30":
            continue  # labels try without a shift first
        times = exponentials.of(xs.softmax_loss_and_grad, z, targets, **options)
        assert times <= (2.0 if kind == "scale 30" else 1.0)  # and some of the smallest once more in float64


@pytest.mark.parametrize("kind", ONCE)
@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 1.0])
@pytest.mark.parametrize("classes", [10, 300])
def test_logits_about_the_goal_of_a_z_loss_need_no_shift(rng, dtype, no_generic, exponentials, classes, z_loss, kind):
    z, y = problem(rng, kind, classes, dtype)
    assert exponentials.of(xs.softmax_loss_and_grad, z, y, z_loss=z_loss) == 1.0
    for function in (xs.softmax, xs.logsumexp):
        assert exponentials.of(function, z) == 1.0


@pytest.mark.parametrize("function", [xs.softmax, xs.log_softmax, xs.logsumexp])
@every_kind
def test_no_logit_has_more_than_three_exponentials(rng, monkeypatch, dtype, exponentials, kind, function):
    for name in ("softmax_rows", "log_softmax_rows", "logsumexp_rows"):
        monkeypatch.setattr(generic, name, None)
    for classes in (10, 33, 300):
        z, _ = problem(rng, kind, classes, dtype)
        assert 1.0 <= exponentials.of(function, z) <= 3.0
        z[::2] = -np.inf
        assert exponentials.of(function, z) <= 3.0


def test_the_window_begins_below_a_sum_of_one():
    """Where z-loss wants it, and a few below: rows about there must not need a shift."""
    assert RANGES[4].least_total <= np.exp(-2.7)
    assert RANGES[8].least_total <= np.exp(-2.7)
