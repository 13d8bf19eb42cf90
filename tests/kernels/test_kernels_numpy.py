"""The kernels for NumPy arrays: where they need no shift and where they do, layouts, and memory."""

import functools
import tracemalloc

import numpy as np
import oracle as exact
import pytest
from assertions import TINY, assert_same_bits
from backends import backend_named
from grid import assert_contract, near_the_top, sure_rows

import xpsoftmax as xs
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.numpy import label_loss, primitives, ranges, tiles
from xpsoftmax.kernels.numpy import threads as _threads

NUMPY = backend_named("numpy")
FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
CLASSES = (1, 2, 5, 64, 65, 300)
WIDTH = {"float32": 4, "float64": 8}


def window(dtype):
    return ranges.RANGES[WIDTH[dtype]]


class Watch:
    """How many rows the kernels looked at, and for how many they decided to shift."""

    def __init__(self, monkeypatch):
        self.rows = self.shifted = 0
        monkeypatch.setattr(ranges, "LARGE_TILE", 2**62)  # no short cut: each row's sums are looked at
        for module, name in ((ranges, "rows_outside"), (label_loss, "_rows_out_of_range")):
            monkeypatch.setattr(module, name, self.watched(getattr(module, name)))

    def watched(self, function):
        def outside(total, *args, **options):
            shift = function(total, *args, **options)
            self.rows += total.size
            self.shifted += 0 if shift is None else shift.size
            return shift

        return outside

    def assert_both(self):
        """Rows on both sides of the edges of the window have been there."""
        assert 0 < self.shifted < self.rows


@pytest.fixture
def watch(monkeypatch):
    return Watch(monkeypatch)


@pytest.fixture(params=[False, True], ids=["subnormal", "flushed"])
def either_exp(request, monkeypatch):
    """What is done where NumPy's exp is fast for subnormal results, and where it is not: wherever this runs."""
    monkeypatch.setattr(primitives, "_slow_where_subnormal", lambda: request.param)


# --- the bound --------------------------------------------------------------------------------------------------------


def check(function, z, *, dtype):
    """Every entry of a function of the logits keeps the bound. Returns how many were compared."""
    desired = getattr(exact, function)(z)
    compared = {
        "softmax": near_the_top(z),
        "log_softmax": int(np.isfinite(z).sum()) - sure_rows(z) if z.shape[1] > 1 else z.size,
        "logsumexp": int(desired.where.sum()),
    }[function]
    assert_contract(getattr(xs, function)(z, impl="kernel"), desired, backend=NUMPY, dtype=dtype, least=compared)
    return compared


def check_loss(z, y, *, dtype, least=None, reduction="none", **options):
    """Loss and gradient keep the bound. Returns how many entries of both were compared."""
    desired = exact.softmax_loss(z, y, reduction=reduction, **options)
    loss, grad = xs.softmax_loss_and_grad(z, y, reduction=reduction, impl="kernel", **options)
    sure = sure_rows(z) if z.shape[1] > 1 else 0
    losses, entries = (z.shape[0] - sure, near_the_top(z) - 2 * sure) if least is None else least
    assert_contract(loss, desired.loss, backend=NUMPY, dtype=dtype, least=losses if reduction == "none" else 1)
    assert_contract(grad, desired.grad, backend=NUMPY, dtype=dtype, least=entries)
    alone = xs.softmax_loss(z, y, reduction=reduction, impl="kernel", **options)
    assert_same_bits(alone, loss)
    return losses + entries


def spreads(rng, classes):
    """Rows that differ in how their classes lie to each other: all sums are to be made of every one."""
    rows = [np.zeros(classes), rng.normal(size=classes), 3 * rng.normal(size=classes), -rng.exponential(10, classes)]
    one = np.arange(classes) == classes // 2
    rows += [0.1 * rng.normal(size=classes) + lead * one for lead in (1.0, 10.0, 30.0)]
    rows.append(np.linspace(0, -110, classes))
    return np.array(rows)


def log_sum(x):
    x = np.asarray(x, np.longdouble)
    top = x.max(axis=-1, keepdims=True)
    return top + np.log(np.exp(x - top).sum(axis=-1, keepdims=True))


def with_sums(rng, logs, classes, dtype):
    """Rows whose sums of exp are these, in every spread."""
    base = spreads(rng, classes)
    rows = (base - log_sum(base))[None, :, :] + np.asarray(logs, np.longdouble)[:, None, None]
    return rows.reshape(-1, classes).astype(dtype)


def against(rng, hot, rest, classes, dtype):
    """Rows with label 0: exp of its logit is this, the sum over the others that, in every spread; and the labels."""
    rows = [
        np.concatenate([np.full((len(others), 1), h), others], axis=1)
        for h, r in zip(hot, rest, strict=True)
        for others in [with_sums(rng, [r], classes - 1, np.longdouble)]
    ]
    z = np.concatenate(rows).astype(dtype)
    order = rng.permuted(np.tile(np.arange(classes), (len(z), 1)), axis=1)  # the label at any place
    return np.take_along_axis(z, order, axis=1), order.argmin(axis=1)


NEAR = (-0.5, -1e-2, -1e-5, -1e-7, 0.0, 1e-7, 1e-5, 1e-2, 0.5)


def around(*values):
    """Logarithms just below and just above those of the values."""
    return [float(np.log(np.longdouble(value))) + step for value in values for step in NEAR]


def everywhere(dtype, count=30):
    """Logarithms from where exp is zero to where it overflows."""
    low, high = (-110.0, 95.0) if dtype == "float32" else (-760.0, 720.0)
    return np.linspace(low, high, count)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("classes", CLASSES)
def test_sums_at_the_edges_of_the_window_keep_the_bound(rng, watch, dtype, classes, function):
    z = with_sums(rng, around(1.0, np.e, window(dtype).most_total), classes, dtype)
    assert check(function, z, dtype=dtype) >= z.shape[0] // 2
    if function != "log_softmax":  # it always shifts
        watch.assert_both()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("classes", CLASSES)
def test_sums_of_any_size_keep_the_bound(rng, watch, dtype, classes, function):
    z = with_sums(rng, everywhere(dtype), classes, dtype)
    assert check(function, z, dtype=dtype) >= z.shape[0] // 2
    if function != "log_softmax":
        watch.assert_both()


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("classes", CLASSES)
def test_losses_with_sums_at_the_edges_of_the_window_keep_the_bound(rng, watch, dtype, classes, z_loss):
    z = with_sums(rng, around(1.0, np.e, window(dtype).most_total), classes, dtype)
    for y in (z.argmax(axis=1), z.argmin(axis=1), rng.integers(classes, size=z.shape[0])):
        check_loss(z, y, dtype=dtype, z_loss=z_loss)
    if classes > 1:  # else no other class has any sum, and all are shifted
        watch.assert_both()


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("classes", CLASSES)
def test_losses_with_sums_of_any_size_keep_the_bound(rng, watch, dtype, classes, z_loss):
    z = with_sums(rng, everywhere(dtype), classes, dtype)
    for y in (z.argmax(axis=1), z.argmin(axis=1), rng.integers(classes, size=z.shape[0])):
        check_loss(z, y, dtype=dtype, z_loss=z_loss)
    if classes > 1:
        watch.assert_both()


def grid(first, second):
    """Every pair, as two lists."""
    pairs = [(a, b) for a in first for b in second]
    return [a for a, _ in pairs], [b for _, b in pairs]


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("classes", CLASSES[1:])
def test_little_in_the_other_classes_keeps_the_bound(rng, watch, dtype, classes, z_loss):
    """Their sum at the least that needs no shift, and down to where none of them is left."""
    rest, hot = grid([*around(window(dtype).least_rest), *everywhere(dtype, 12)], [0.1, 3.0, 14.0])
    z, y = against(rng, hot, rest, classes, dtype)
    assert check_loss(z, y, dtype=dtype, z_loss=z_loss) >= z.shape[0] // 2
    watch.assert_both()


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("classes", CLASSES[1:])
def test_little_in_the_label_keeps_the_bound(rng, watch, dtype, classes, z_loss):
    """Its exponential at the least that needs no shift, and down to zero; the others up to the largest sum.

    The quotient of both is then as large as it can get, and beyond the window it would overflow.
    """
    edge = float(np.log(window(dtype).most_total))
    hot, rest = grid([*around(window(dtype).least_hot), *everywhere(dtype, 12)], [0.1, 3.0, edge - 1.0, edge - 1e-3])
    z, y = against(rng, hot, rest, classes, dtype)
    assert check_loss(z, y, dtype=dtype, z_loss=z_loss) >= z.shape[0] // 2
    watch.assert_both()


def check_masses(z, targets, *, dtype, **options):
    """Loss and gradient of soft targets, or of smoothed labels, keep the bound wherever it speaks of them."""
    desired = exact.softmax_loss(z, targets, reduction="none", **options)
    least = int(desired.loss.where.sum()), int(desired.grad.where.sum())
    assert least >= (z.shape[0] // 2, z.shape[0])
    return check_loss(z, targets, dtype=dtype, least=least, **options)


@pytest.mark.parametrize("smoothing", [1e-36, 9e-7, 1.1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("classes", CLASSES)
def test_smoothed_losses_of_any_sums_keep_the_bound(rng, dtype, classes, smoothing):
    z = with_sums(rng, [*everywhere(dtype, 8), 0.0, 1.0], classes, dtype)
    for y in (z.argmax(axis=1), z.argmin(axis=1)):
        check_masses(z, y, dtype=dtype, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [1.1e-6, 0.1])
@pytest.mark.parametrize("classes", CLASSES[1:])
def test_smoothed_losses_beside_little_or_much_keep_the_bound(rng, dtype, classes, smoothing):
    """The other classes from where they are nothing to where the label is nothing."""
    rest = [*around(window(dtype).least_rest), *everywhere(dtype, 12)]
    z, y = against(rng, [0.0] * len(rest), rest, classes, dtype)
    check_masses(z, y, dtype=dtype, label_smoothing=smoothing)


SOFT = {
    "any": lambda q: q,
    "sparse": lambda q: np.where(q < 0.7, 0, q),
    "one": lambda q: np.where(q == q.max(axis=1, keepdims=True), 1, 0),
    "two alike": lambda q: np.where(q >= np.sort(q, axis=1)[:, -2:][:, :1], 0.5, 0),
    "all alike": lambda q: np.full_like(q, 1 / q.shape[1]),
    "small sum": lambda q: 1e-9 * q,
    "large sum": lambda q: 1e9 * q,
    "large one": lambda q: np.where(q == q.max(axis=1, keepdims=True), 1e9, 0),
    "nearly one": lambda q: q / q.sum(axis=1, keepdims=True) * 1.0001,
}


@pytest.mark.parametrize("kind", SOFT.values(), ids=SOFT)
@pytest.mark.parametrize("classes", [2, 5, 65, 300])
def test_losses_of_soft_targets_of_any_sums_keep_the_bound(rng, dtype, classes, kind):
    z = with_sums(rng, [*everywhere(dtype, 6), 0.0, 1.0, 50.0], classes, dtype)
    check_masses(z, kind(rng.random(z.shape)).astype(dtype), dtype=dtype)


@pytest.mark.parametrize("kind", SOFT.values(), ids=SOFT)
@pytest.mark.parametrize("classes", [2, 5, 65, 300])
def test_losses_of_soft_targets_at_the_top_or_elsewhere_keep_the_bound(rng, dtype, classes, kind):
    """The class of the largest mass leads by far, or is far behind; a sum above 1 lifts what is subnormal."""
    gaps = [*around(window(dtype).least_rest, window(dtype).least_hot), *everywhere(dtype, 8)]
    z, y = against(rng, [0.0] * len(gaps), gaps, classes, dtype)
    q = kind(rng.random(z.shape)).astype(dtype)
    first = q.argmax(axis=1)[:, None]
    largest = np.take_along_axis(q, first, axis=1)
    np.put_along_axis(q, first, np.take_along_axis(q, y[:, None], axis=1), axis=1)
    np.put_along_axis(q, y[:, None], largest, axis=1)
    check_masses(z, q, dtype=dtype)


def least_weights(rng, dtype, shift):
    """Logits, and weights that are normal numbers; weight over sum is one too, or not."""
    z = with_sums(rng, np.linspace(1.1, 30, 12), 300, dtype)
    top = z.max(axis=1, keepdims=True) if shift else 0.0
    total = np.exp(np.asarray(z, np.longdouble) - top).sum(axis=1)
    weight = TINY[dtype] * total * rng.choice([0.006, 0.02, 0.1, 0.5, 0.99, 1.0, 1.01, 1e3], size=total.size)
    return z + np.dtype(dtype).type(shift), np.maximum(weight, 1.5 * TINY[dtype]).astype(dtype)


def where_of(z, targets, **options):
    """How many entries of loss and gradient the bound speaks of."""
    desired = exact.softmax_loss(z, targets, reduction="none", **options)
    return int(desired.loss.where.sum()), int(desired.grad.where.sum())


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_weights_at_the_least_normal_quotient_keep_the_bound(rng, watch, dtype, shift, z_loss, reduction):
    z, weight = least_weights(rng, dtype, shift)
    for y in (z.argmax(axis=1), z.argmin(axis=1)):
        least = where_of(z, y, sample_weight=weight, z_loss=z_loss)
        assert least[1] >= z.shape[0] // 10
        check_loss(z, y, dtype=dtype, sample_weight=weight, z_loss=z_loss, reduction=reduction, least=least)
    assert watch.shifted > 0


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_weights_of_masses_at_the_least_normal_quotient_keep_the_bound(rng, dtype, shift):
    z, weight = least_weights(rng, dtype, shift)
    one = (z == z.max(axis=1, keepdims=True)).astype(dtype)
    for targets, smoothing in ((z.argmax(axis=1), 0.1), (z.argmin(axis=1), 1e-4), (one / one.sum(axis=1)[:, None], 0)):
        least = where_of(z, targets, sample_weight=weight, label_smoothing=smoothing)
        assert least[1] >= z.shape[0] // 10
        check_loss(z, targets, dtype=dtype, sample_weight=weight, label_smoothing=smoothing, least=least)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_weights_of_any_size_keep_the_bound(rng, dtype, scale):
    z = (10 * rng.normal(size=(300, 20))).astype(dtype)
    y = np.where(rng.random(300) < 0.5, z.argmax(axis=1), rng.integers(20, size=300))
    weight = (scale * rng.random(300)).astype(dtype)
    desired = exact.softmax_loss(z, y, sample_weight=weight, reduction="none")
    least = int(desired.loss.where.sum()), int(desired.grad.where.sum())
    assert least >= ((100, 1000) if scale < 1.0 else (300, 5000))
    check_loss(z, y, dtype=dtype, sample_weight=weight, least=least)
    check_loss(z, y, dtype=dtype, sample_weight=weight, least=least, reduction="sum")
    check_loss(z, y, dtype=dtype, sample_weight=weight, least=(1, 3000), reduction="mean")


@pytest.mark.usefixtures("either_exp")
@pytest.mark.parametrize("lead", np.arange(60.0, 111.0, 2.5))
@pytest.mark.parametrize("classes", [2, 5, 64, 65, 1000])
def test_the_largest_keeps_its_digits_where_it_leads_by_far(rng, classes, lead):
    """Its log_softmax is the sum of all others alone, each of which is near or below the least normal number."""
    z = np.concatenate([with_sums(rng, [offset - lead], classes - 1, np.float32) for offset in (0.0, 1.0, -7.0)])
    top = np.repeat([0.0, 1.0, -7.0], len(z) // 3)
    z = np.concatenate([z, top[:, None]], axis=1).astype(np.float32)[:, rng.permutation(classes)]
    desired = exact.log_softmax(z)
    at = z.argmax(axis=1)
    largest = exact.Exact(*(np.take_along_axis(np.broadcast_to(x, z.shape), at[:, None], axis=1) for x in desired))
    actual = xs.log_softmax(z, impl="kernel")
    least = len(z) if lead < 85 else 0
    if largest.where.any():
        found = np.take_along_axis(actual, at[:, None], axis=1)
        assert_contract(found, largest, backend=NUMPY, dtype="float32", least=least)
    assert_contract(actual, desired, backend=NUMPY, dtype="float32", least=z.size - len(z) + least)
    least = len(z) if lead < 85 else len(z) * 2 // 3  # where the largest is 0, this is that sum too
    assert_contract(xs.logsumexp(z, impl="kernel"), exact.logsumexp(z), backend=NUMPY, dtype="float32", least=least)


@pytest.mark.usefixtures("either_exp")
@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("second", [-60.0, -68.9, -69.0, -69.2, -75.0])
@pytest.mark.parametrize("classes", [300, 1000, 5000, 50257])
def test_many_subnormal_terms_count_in_a_normal_sum(classes, second, shift):
    """One class that is next keeps the sum of the others normal; the rest of them together still are more than B of it.

    Each exp(-87.4) is subnormal in float32.
    """
    z = np.full((1, classes), -87.4)
    z[0, :2] = 0.0, second
    z = (z + shift).astype(np.float32)
    for function in ("log_softmax", "logsumexp"):
        check(function, z, dtype="float32")
    for smoothing in (0.0, 1e-36):
        check_loss(z, np.array([0]), dtype="float32", label_smoothing=smoothing, least=(1, 2))


@pytest.mark.usefixtures("either_exp")
@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("lead", [93.0, 95.0])
@pytest.mark.parametrize("classes", [5000, 50257])
def test_a_normal_sum_of_equal_subnormal_terms_keeps_its_digits(classes, lead, shift):
    """Each term has four digits or less, and is rounded as all others are."""
    z = np.full((1, classes), shift - lead, np.float32)
    z[0, 7] = shift
    for function in FUNCTIONS:
        check(function, z, dtype="float32")
    check_loss(z, np.array([7]), dtype="float32", least=(1, 1))
    check_loss(z, (z == shift).astype(np.float32), dtype="float32", least=(1, 1))


@pytest.mark.parametrize("lead", [711.0, 716.0])
def test_the_rounding_of_the_gap_to_the_label_is_not_lost_in_float64(rng, lead):
    """As in test_loss.py for float32: each other exp is subnormal, T is zero, and their sum a normal number."""
    classes = 50257
    z = np.repeat(-lead - rng.random((6, 1)), classes, axis=1)
    z[:, 7] = rng.random(6)
    check_loss(z, np.full(6, 7), dtype="float64", least=(6, 6))


SEARCHED = (1, 2, 3, 5, 10, 33, 64, 65, 100, 500, 1000, 1025, 3000)


@pytest.mark.usefixtures("either_exp")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", SEARCHED)
def test_random_logits_keep_the_bound(dtype, classes, seed):
    rng = np.random.default_rng([classes, seed])
    rows = max(6, 4000 // classes)
    scale = 10 ** rng.uniform(-3, 2.2, size=(rows, 1))
    offset = rng.choice([0.0, 1.0, 10.0, 100.0, 1e4], size=(rows, 1)) * rng.uniform(-1, 1, size=(rows, 1))
    z = (scale * rng.normal(size=(rows, classes)) + offset).astype(dtype)
    for function in FUNCTIONS:
        check(function, z, dtype=dtype)
    some = rng.integers(classes, size=rows)
    y = np.choose(rng.integers(3, size=rows), [z.argmax(axis=1), z.argmin(axis=1), some])
    for z_loss in (0.0, 10 ** rng.uniform(-4, 0)):
        check_loss(z, y, dtype=dtype, z_loss=z_loss)
    smoothing = rng.choice([1e-5, 0.1, 1.0])
    for targets, share in ((y, smoothing), (rng.dirichlet(np.ones(classes), size=rows).astype(dtype), 0.0)):
        desired = exact.softmax_loss(z, targets, label_smoothing=share, reduction="none")
        least = int(desired.loss.where.sum()), int(desired.grad.where.sum())
        check_loss(z, targets, dtype=dtype, label_smoothing=share, least=least)


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_logits_whose_exponentials_are_least_accurate_keep_the_bound(rng, dtype, classes):
    """One whose exp is most too large against some whose exp is most too small, and the reverse: the worst of both."""
    tried = rng.uniform(-20, 20, 200_000).astype(dtype)
    true = np.exp(tried.astype(np.longdouble))
    order = np.argsort((np.exp(tried) - true) / true)
    low, high = np.sort(tried[order[:2000]]), np.sort(tried[order[-2000:]])
    for lead, others in ((low, high), (high, low)):
        gaps = rng.uniform(0, 8, size=(lead.size, classes - 1))
        places = np.searchsorted(others, lead[:, None] - gaps).clip(0, others.size - 1)
        z = np.concatenate([lead[:, None], others[places]], axis=1)
        for function in FUNCTIONS:
            check(function, z, dtype=dtype)
        for label in (0, 1):
            for z_loss in (0.0, 0.1):
                check_loss(z, np.full(lead.size, label), dtype=dtype, z_loss=z_loss)


@pytest.mark.parametrize("classes", [64, 65, 511, 512, 513, 1000, 1023, 1024, 1025, 2047])
def test_sums_of_equal_terms_keep_the_bound(rng, dtype, classes):
    """T is zero, which leaves the least room, and each addition may round the same way."""
    z = np.repeat(rng.uniform(0, 20, size=(50, 1)), classes, axis=1).astype(dtype)
    for function in FUNCTIONS:
        check(function, z, dtype=dtype)
    check_loss(z, rng.integers(classes, size=50), dtype=dtype)


LEVELS = pytest.mark.parametrize("classes", [64, 100, 256, 257, 400, 500, 512, 513, 900, 1000, 1024, 1025, 2000])


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@LEVELS
def test_sums_of_few_levels_keep_the_bound(rng, dtype, classes, offset):
    """As equal terms, and more of them in a row are rounded the same way."""
    rows = 300
    z = np.repeat(rng.uniform(20, 40, size=(rows, 1)) + offset, classes, axis=1)
    for _ in range(2):
        below = np.arange(classes) >= rng.integers(1, classes, size=(rows, 1))
        z -= np.where(below, rng.uniform(0, 2.5, size=(rows, 1)), 0)
    z = z.astype(dtype)
    for function in FUNCTIONS:
        check(function, z, dtype=dtype)
    for y in (np.zeros(rows, int), rng.integers(classes, size=rows)):
        check_loss(z, y, dtype=dtype)


@pytest.mark.parametrize("limit", [np.e, float(np.exp(40.0))])
@pytest.mark.parametrize("together", [False, True])
def test_sums_that_are_a_limit_rounded_to_float32(limit, together):
    """Where a limit compares with a sum as a number of float64, and rounded to float32, is not the same."""
    tops = np.arange(np.log(limit) - 1.5, np.log(limit), 2e-4)
    found = []
    for top in tops.astype(np.float32):
        rest = np.float32(np.log(limit - np.exp(float(top))))
        for second in (np.nextafter(rest, np.float32(-np.inf)), rest, np.nextafter(rest, np.float32(np.inf))):
            row = np.array([top, second], np.float32)
            if np.einsum("i->", np.exp(row)) == np.float32(limit):
                found.append(row)
    assert len(found) > 20
    for z in [np.array(found)] if together else [row[None] for row in found]:
        for function in FUNCTIONS:
            check(function, z, dtype="float32")


def test_a_steep_z_loss_keeps_the_digits_of_subnormal_exponentials(dtype):
    low = np.linspace(*((-87.0, -102.0) if dtype == "float32" else (-708.0, -740.0)), 40)
    z = np.stack([np.full(40, 2.0), np.full(40, 1.0), low], axis=1).astype(dtype)
    for z_loss in (2.0, 40.0, 200.0, 1e4):
        desired = exact.softmax_loss(z, np.zeros(40, int), z_loss=z_loss, reduction="none")
        least = int(desired.loss.where.sum()), int(desired.grad.where.sum())
        assert least[1] > 80  # all of two columns, and some whose exponential is subnormal
        check_loss(z, np.zeros(40, int), dtype=dtype, z_loss=z_loss, least=least)


def test_a_huge_z_loss_does_not_overflow_on_the_way(dtype):
    z = np.array([[39.0, 0.0, 1.0]], dtype)
    check_loss(z, np.array([0]), dtype=dtype, z_loss=1e20, least=(1, 3))


def test_no_probability_is_above_one(rng, dtype):
    z = np.concatenate([rng.uniform(-30, 30, (20_000, 1)), np.full((20_000, 2), -80.0)], axis=1).astype(dtype)
    assert xs.softmax(z[:, :1], impl="kernel").max() <= 1.0
    assert xs.softmax(z, impl="kernel").max() <= 1.0


# --- rows by themselves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 33, 64, 65, 127, 128, 333, 1000, 1023, 1024, 1025, 2500])
def test_the_bits_of_a_row_do_not_depend_on_its_place(rng, dtype, classes):
    """Where a row lies in its block, and how that is cut, must not show, whatever NumPy's loops and buffers do."""
    rows = max(20, 30_000 // classes)
    z, y = mixed(rng, (rows, classes), dtype)
    order = rng.permutation(rows)
    for call in (softmax, log_softmax, logsumexp, hard, with_z_loss, smoothing, soft, soft_options, weighed_smoothing):
        whole, parts = call(z, y), call(z[order], y[order])
        assert_all_same(parts, [x[order] for x in whole])
        few = [call(z[i : i + 3], y[i : i + 3]) for i in range(0, rows, max(1, rows // 5))]
        for i, part in zip(range(0, rows, max(1, rows // 5)), few, strict=True):
            assert_all_same(part, [x[i : i + 3] for x in whole])


@pytest.mark.parametrize("offset", [1e3, -1e3])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("shape", [(10_007, 9), (307, 333)], ids=str)
def test_the_bits_of_a_row_do_not_depend_on_how_many_need_a_shift(rng, monkeypatch, dtype, shape, share, offset):
    """A kernel may look at one row of a large block first, and begin with what suits most rows."""
    z, y = rng.normal(size=shape).astype(dtype), rng.integers(shape[1], size=shape[0])
    outside = rng.random(shape[0]) < share
    outside[0] = True
    z[outside] += offset
    z[rng.random(shape[0]) < 0.05] *= 100
    found, function = [], ranges.most_need_a_shift
    monkeypatch.setattr(ranges, "most_need_a_shift", lambda *args: found.append(function(*args)) or found[-1])
    for call in (softmax, hard):
        whole = call(z, y)
        assert (found[-1] is None) == (share < 0.5)
        for i in range(0, shape[0], shape[0] // 40):
            part = slice(i, i + 3)
            assert_all_same(call(z[part], y[part]), [x[part] for x in whole])
            assert found[-1] is None


def test_blocks_that_are_shifted_at_once_keep_the_bound(rng, dtype):
    """Blocks of 100 000 entries, most of whose rows have sums out of the window for one logit alone."""
    for logs in ([*np.linspace(30, 60, 20), *np.linspace(290, 330, 20)], [*np.linspace(-60, 3, 40)]):
        z = with_sums(rng, logs[::-1], 313, dtype)
        for y in (z.argmax(axis=1), z.argmin(axis=1)):
            check_loss(z, y, dtype=dtype)
        for function in FUNCTIONS:
            check(function, z, dtype=dtype)


# --- weight zero ------------------------------------------------------------------------------------------------------

ZERO = {
    "in the window": [1.0, -2.0, 0.5],
    "hot class leads by far": [60.0, -60.0, 0.0],
    "hot class is far behind": [-200.0, 60.0, 0.0],
    "large": [1e4, 9e3, 0.0],
    "small": [-300.0, -301.0, -302.0],
    "nan": [np.nan, 0.0, 1.0],
    "inf": [np.inf, 0.0, 1.0],
    "minus inf": [-np.inf, -np.inf, -np.inf],
    "impossible label": [-np.inf, 0.0, 1.0],
    "only the label": [0.0, -np.inf, -np.inf],
}


WAYS = pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}, {"label_smoothing": 0.1}], ids=str)
every_row = pytest.mark.parametrize("row", ZERO.values(), ids=ZERO)


@WAYS
@every_row
def test_a_row_of_weight_zero_adds_nothing_and_has_a_gradient_of_plus_zero(dtype, row, options):
    """Minus zero would be equal, but not the same bits in and out of the window."""
    z, weight = np.array([row, [0.0, 1.0, 2.0]], dtype), np.array([0, 1], dtype)
    loss, grad = xs.softmax_loss_and_grad(
        z, np.zeros(2, int), sample_weight=weight, reduction="none", impl="kernel", **options
    )
    assert_same_bits(loss[0], np.zeros((), dtype))
    assert_same_bits(grad[0], np.zeros(3, dtype))
    assert loss[1] != 0.0


@every_row
def test_a_row_of_soft_targets_of_weight_zero_adds_nothing_and_has_a_gradient_of_plus_zero(dtype, row):
    z, weight = np.array([row, [0.0, 1.0, 2.0]], dtype), np.array([0, 1], dtype)
    q = np.array([[0.5, 0.2, 0.3], [0.0, 0.0, 1.0]], dtype)
    loss, grad = xs.softmax_loss_and_grad(z, q, sample_weight=weight, reduction="none", impl="kernel")
    assert_same_bits(loss[0], np.zeros((), dtype))
    assert_same_bits(grad[0], np.zeros(3, dtype))
    assert loss[1] != 0.0


@WAYS
@every_row
def test_an_ignored_row_adds_nothing_and_has_a_gradient_of_plus_zero(dtype, row, options):
    z = np.array([row, [0.0, 1.0, 2.0]], dtype)
    loss, grad = xs.softmax_loss_and_grad(z, np.array([-1, 1]), ignore_index=-1, impl="kernel", **options)
    assert_same_bits(grad[0], np.zeros(3, dtype))
    assert grad[1].all()
    assert np.isfinite(loss)


# --- memory layouts ---------------------------------------------------------------------------------------------------

ROWS = 24


def unaligned(z):
    result = np.ndarray(z.shape, z.dtype, buffer=bytearray(z.nbytes + 1), offset=1)
    result[...] = z
    assert not result.flags.aligned
    return result


def other_order(z):
    return z.astype(z.dtype.newbyteorder())


def strided(z):
    result = np.zeros((2 * z.shape[0], 3 * z.shape[1]), z.dtype)[1::2, ::3]
    result[...] = z
    return result


def reversed_(z):
    return np.ascontiguousarray(z[::-1, ::-1])[::-1, ::-1]


def wide_rows(z):
    """Rows that are contiguous, with room between them."""
    result = np.zeros((z.shape[0], z.shape[1] + 3), z.dtype)[:, : z.shape[1]]
    result[...] = z
    return result


LAYOUTS = {
    "C": np.copy,
    "Fortran": lambda z: np.array(z, order="F"),
    "strided": strided,
    "reversed": reversed_,
    "wide rows": wide_rows,
    "unaligned": unaligned,
    "other byte order": other_order,
    "other byte order, unaligned": lambda z: unaligned(other_order(z)),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def mixed(rng, shape, dtype):
    """Logits in the window and out of it in no order, some without a result; and labels."""
    z = rng.normal(size=shape)
    kind = rng.integers(20, size=shape[0])
    z[kind < 6] *= 40
    z[kind == 6] += 300
    z[kind == 7] -= 900
    z[kind == 8, 0] = np.nan
    z[kind == 9] = -np.inf
    z[kind == 10, -1] = np.inf
    z[kind == 11, 0] = -np.inf
    return z.astype(dtype), rng.integers(shape[1], size=shape[0])


def softmax(z, y, **options):
    return (xs.softmax(z, **options),)


def log_softmax(z, y, **options):
    return (xs.log_softmax(z, **options),)


def logsumexp(z, y):
    return (xs.logsumexp(z),)


def mean(z, y, **options):
    return xs.softmax_loss_and_grad(z, y, **options)


def hard(z, y, **options):
    weight = (y + 1) % 5  # every fifth label has a weight of zero
    return xs.softmax_loss_and_grad(z, y, sample_weight=weight, reduction="none", **options)


def with_z_loss(z, y, **options):
    return xs.softmax_loss_and_grad(z, y, z_loss=0.01, reduction="none", **options)


def smoothing(z, y, **options):
    return xs.softmax_loss_and_grad(z, y, label_smoothing=0.1, reduction="none", **options)


def all_options(z, y, **options):
    return xs.softmax_loss_and_grad(
        z,
        y,
        class_weight=np.linspace(0.0, 2.0, z.shape[1]),
        sample_weight=np.arange(z.shape[0]) % 5,
        label_smoothing=0.1,
        z_loss=0.01,
        ignore_index=1,
        **options,
    )


def soft(z, y, **options):
    q = 1.0 + np.sin(7.3 * y[:, None] + 1.7 * np.arange(z.shape[1]))  # that depend on nothing but the label
    q = (q / q.sum(axis=1, keepdims=True)).astype("f4")
    return xs.softmax_loss_and_grad(z, q, reduction="none", **options)


def soft_options(z, y, **options):
    """Masses of any sum, of which some are 0, also at classes that cannot be; and a z-loss that is steep for some."""
    q = np.maximum(np.sin(7.3 * y[:, None] + 1.7 * np.arange(z.shape[1])), 0.0).astype("f4")
    weight = np.linspace(0.5, 2.0, z.shape[1]) * (np.arange(z.shape[1]) % 4 != 3)
    return xs.softmax_loss_and_grad(z, q, class_weight=weight, z_loss=0.3, reduction="none", **options)


def weighed_smoothing(z, y, **options):
    weight = np.linspace(0.5, 2.0, z.shape[1]) * (np.arange(z.shape[1]) % 4 != 0)
    return xs.softmax_loss_and_grad(
        z, y, class_weight=weight, label_smoothing=0.1, z_loss=1e-3, reduction="none", **options
    )


WRITING = (softmax, log_softmax, mean, hard, with_z_loss, smoothing, soft, all_options, soft_options, weighed_smoothing)
every_dtype = pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
every_call = pytest.mark.parametrize("call", [*WRITING, logsumexp])
every_writing_call = pytest.mark.parametrize("call", WRITING)
FEW, MORE = 5, 70  # classes: there are two ways to find the largest


@pytest.fixture
def cut(monkeypatch):
    """Arrays as small as those below, cut into blocks that two threads share; test_bits.py has them in one."""
    monkeypatch.setattr(tiles, "TILE", 2**12)
    monkeypatch.setattr(tiles, "SHARE", 2**7)


def assert_all_same(results, desired):
    for result, wanted in zip(results, desired, strict=True):
        assert_same_bits(native(result), native(wanted))


def native(x):
    x = np.asarray(x)
    return x.astype(x.dtype.newbyteorder("="))


@every_dtype
@every_layout
@every_call
def test_logits_may_lie_in_any_way(rng, cut, dtype, layout, call):
    """And may be read-only."""
    for classes in (FEW, MORE):
        z, y = mixed(rng, (ROWS, classes), dtype)
        given = layout(z)
        given.flags.writeable = False
        assert_all_same(call(given, y), call(z, y))


@every_dtype
@every_layout
@every_writing_call
def test_out_may_lie_in_any_way(rng, cut, dtype, layout, call):
    z, y = mixed(rng, (ROWS, FEW), dtype)
    out = layout(np.full_like(z, 7.0))
    results = call(z, y, out=out)
    assert results[-1] is out
    assert_all_same(results, call(z, y))


@every_dtype
@every_layout
@every_writing_call
def test_a_result_in_place_has_the_bits_of_a_new_one(rng, cut, dtype, layout, call):
    z, y = mixed(rng, (ROWS, MORE), dtype)
    given = layout(z)
    results = call(given, y, out=given)
    assert results[-1] is given
    assert_all_same(results, call(z, y))


@every_layout
@every_writing_call
def test_a_wide_out_has_the_bits_of_float32(rng, cut, layout, call):
    z, y = mixed(rng, (ROWS, MORE), "float16")
    out = layout(np.full(z.shape, 7.0, np.float32))
    assert_all_same(call(z, y, out=out), call(z.astype(np.float32), y))


@every_dtype
@every_call
def test_the_same_row_again_and_again(rng, dtype, call):
    """A broadcast array, of which no byte may be written."""
    z, y = mixed(rng, (1, MORE), dtype)
    many = np.broadcast_to(z, (ROWS, MORE))
    assert_all_same(call(many, np.repeat(y, ROWS)), call(many.copy(), np.repeat(y, ROWS)))


@pytest.mark.parametrize("layout", [strided, reversed_, unaligned], ids=["strided", "reversed", "unaligned"])
@pytest.mark.parametrize("call", [mean, hard, with_z_loss, all_options])
def test_labels_may_lie_in_any_way(rng, cut, dtype, layout, call):
    z, y = mixed(rng, (ROWS, 7), dtype)
    assert_all_same(call(z, layout(y[:, None])[:, 0]), call(z, y))


@every_dtype
@every_call
def test_logits_are_not_modified(rng, cut, dtype, call):
    z, y = mixed(rng, (ROWS, MORE), dtype)
    kept = z.copy()
    call(z, y)
    assert_same_bits(z, kept)


@every_dtype
@every_writing_call
def test_logits_are_not_modified_with_another_out(rng, cut, dtype, call):
    z, y = mixed(rng, (ROWS, MORE), dtype)
    kept = z.copy()
    call(z, y, out=np.empty_like(z))
    assert_same_bits(z, kept)


# --- memory -----------------------------------------------------------------------------------------------------------

MIB = 2**20
LIMIT = 8 * MIB
SHAPE = (1024, 32000)  # 125 MiB in float32


@pytest.fixture(scope="module")
def plenty():
    return np.tile(np.random.default_rng(0).standard_normal((64, SHAPE[1]), dtype=np.float32), (SHAPE[0] // 64, 1))


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """Threads that run at once hold blocks at once."""
    monkeypatch.setattr(_threads, "_cores", lambda: 2)


def peak(function):
    """Bytes that were held at most, beside those from before; a small call made all that is made only once."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    function()
    held = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return held


WHERE = pytest.mark.parametrize("where", ["window", "shift", "both"])


@pytest.mark.parametrize("impossible", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"z_loss": 1.0}, {"label_smoothing": 0.1, "class_weight": np.arange(32000) % 3 * np.ones(32000, "f4")}],
    ids=["plain", "z-loss", "smoothing and class weights"],
)
@pytest.mark.parametrize("kind", ["labels", "soft"])
def test_options_in_place_take_little_memory(plenty, kind, options, impossible):
    """Logits so far apart that many probabilities are subnormal; masses that add up to more than 1, or are 0."""
    z = 30 * plenty[:300]
    targets = np.arange(300)
    if kind == "soft":
        targets = np.maximum(plenty[:300] - 1.0, 0.0)
    if impossible:
        z[:, 2::3] = -np.inf
    call = functools.partial(xs.softmax_loss_and_grad, impl="kernel", validate=False, **options)
    call(z[:2].copy(), targets[:2])
    assert peak(lambda: call(z, targets, out=z)) < LIMIT


@pytest.mark.parametrize(
    "options", [{}, {"z_loss": 1e-4}, {"label_smoothing": 0.1}], ids=["plain", "z-loss", "smoothing"]
)
@pytest.mark.parametrize("spared", [0, 64], ids=["all", "nearly all"])
def test_rows_that_need_care_take_little_memory(plenty, options, spared):
    """The label leads by so far that no row, or only one in 64, is served by a shift; and one class is impossible."""
    z, y = plenty[:300].copy(), np.arange(300)
    rows = y % spared != 0 if spared else slice(None)
    z[rows, y[rows]] += 100
    z[rows, 31_999] = -np.inf
    call = functools.partial(xs.softmax_loss_and_grad, impl="kernel", **options)
    call(z[:2].copy(), y[:2])
    assert peak(lambda: call(z, y, out=z)) < LIMIT


def placed(z, where):
    """Logits in the window, out of it, or of both kinds in each block, mostly out of it."""
    z = z.copy()
    if where != "window":
        rows = slice(None) if where == "shift" else np.arange(len(z)) % 8 != 0
        z[rows] = z[rows] * 30 + 100
    return z


def measured(call, z, *more, **options):
    """`peak` of a call, after a small one."""
    y = np.arange(len(z))
    call(z[:64].copy(), y[:64])
    return peak(lambda: call(z, y, **options))


@WHERE
def test_loss_and_gradient_in_place_take_little_memory(plenty, where):
    z = placed(plenty, where)
    assert measured(mean, z, out=z) < LIMIT


@WHERE
@pytest.mark.parametrize("call", [softmax, log_softmax])
def test_a_result_in_place_takes_little_memory(plenty, where, call):
    """Of fewer rows: blocks do not grow with their number."""
    z = placed(plenty[:300], where)
    assert z.nbytes > 4 * LIMIT
    assert measured(call, z, out=z) < LIMIT


@pytest.mark.parametrize("where", ["window", "shift"])
@pytest.mark.parametrize("call", [softmax, log_softmax, mean])
def test_a_new_result_takes_little_memory_beside_its_own(plenty, where, call):
    z = placed(plenty[:300], where)
    assert z.nbytes <= measured(call, z) < z.nbytes + LIMIT


@WHERE
def test_a_loss_alone_takes_little_memory(plenty, where):
    z = placed(plenty[:300], where)
    assert measured(lambda z, y: xs.softmax_loss(z, y), z) < LIMIT


@WHERE
def test_logsumexp_takes_little_memory(plenty, where):
    z = placed(plenty[:300], where)
    assert measured(logsumexp, z) < LIMIT


@WHERE
@pytest.mark.parametrize("call", [softmax, log_softmax, mean])
def test_a_narrow_result_in_place_takes_little_memory(plenty, where, call):
    z = placed(plenty[:150], where).astype(np.float16)  # fewer still: NumPy's casts to it take long
    assert z.size * 4 > 2 * LIMIT
    assert measured(call, z, out=z) < LIMIT


# --- the tests themselves ---------------------------------------------------------------------------------------------


def test_the_kernels_are_those_under_test(monkeypatch, rng):
    """A test above that compares a kernel with itself would show nothing if it were the generic code."""
    for name in ("softmax_rows", "log_softmax_rows", "logsumexp_rows", "softmax_loss_rows"):
        monkeypatch.setattr(generic, name, None)
    z, y = mixed(rng, (3, 5), "float64")
    for call in (softmax, log_softmax, logsumexp, hard):
        call(z / 1e6, y)
