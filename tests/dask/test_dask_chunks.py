"""Dask arrays in any blocks, empty ones and those of one row too: the numbers are those of the undivided arrays."""

import itertools
import warnings

import numpy as np
import pytest
from assertions import EPS, assert_same_bits, assert_within

import xpsoftmax as xs

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

import xpsoftmax.dask as xd  # noqa: E402


def cut(array, chunks, unknown=()):
    """A dask array of exactly these blocks; along the axes `unknown` it does not know their sizes."""
    starts = [np.cumsum([0, *sizes]) for sizes in chunks]
    name = f"cut-{next(NUMBERS)}"
    graph = {
        (name, *block): array[tuple(slice(s[i], s[i + 1]) for s, i in zip(starts, block, strict=True))].copy()
        for block in itertools.product(*(range(len(sizes)) for sizes in chunks))
    }
    known = [tuple(np.nan for _ in sizes) if axis in unknown else sizes for axis, sizes in enumerate(chunks)]
    return da.Array(graph, name, tuple(known), meta=np.empty((0,) * array.ndim, array.dtype))


NUMBERS = itertools.count()


def any_sizes(rng, size):
    """Up to four blocks of any sizes, 0 among them."""
    ends = [0, *sorted(rng.integers(0, size + 1, rng.integers(0, 4)).tolist()), size]
    return tuple(b - a for a, b in itertools.pairwise(ends))


def in_any_blocks(rng, array):
    return cut(array, [any_sizes(rng, size) for size in array.shape])


# --- one row, as a mask leaves it -------------------------------------------------------------------------------------

MASKED = [(0, 0, 1, 0), (1, 0, 0, 0), (0, 1), (0, 0, 0, 0), (1, 0, 1, 0, 0), (1,)]


@pytest.mark.parametrize("sizes", MASKED, ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_rows_that_a_mask_leaves(soft, sizes, rng):
    """Dask takes a dimension of size 1 for one that is repeated: the loss was multiplied by the number of blocks."""
    rows = np.repeat(np.arange(len(sizes)) * 3, sizes)
    keep = np.zeros(3 * len(sizes), bool)
    keep[rows] = True
    z, weight = rng.standard_normal((len(keep), 5)), rng.uniform(0.5, 2.0, len(keep))
    targets = rng.dirichlet(np.ones(5), len(keep)) if soft else rng.integers(0, 5, len(keep))
    lazy = [da.from_array(x, (3, *x.shape[1:]))[da.from_array(keep, 3)] for x in (z, targets, weight)]
    for known in (False, True):
        if known:
            lazy = [x.compute_chunk_sizes() for x in lazy]
            assert lazy[0].chunks[0] == sizes
        for reduction in ("mean", "sum", "none"):
            desired = xs.softmax_loss_and_grad(z[keep], targets[keep], sample_weight=weight[keep], reduction=reduction)
            actual = xs.softmax_loss_and_grad(*lazy[:2], sample_weight=lazy[2], reduction=reduction)
            assert_equal(dask.compute(*actual), desired, len(rows))


def assert_equal(actual, desired, rows):
    """Losses and gradients are positive sums over rows in another order, or products with them."""
    for a, b in zip(actual, desired, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        bound = (rows + 4) * EPS["float64"] * np.abs(b)
        assert assert_within(a, b, bound=np.where(np.isnan(bound), 0.0, bound)) == np.isfinite(b).sum()


# --- blocks drawn at random -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(8))
@pytest.mark.parametrize("ndim", [1, 2, 3, 4])
def test_any_blocks_along_any_axes(ndim, case, rng):
    """Every function, with the classes along any axis; rows of the size 0 and 1 are drawn most often."""
    axis, classes = int(rng.integers(ndim)), int(rng.integers(1, 6))
    rows = tuple(int(size) for size in rng.choice([0, 1, 1, 1, 2, 5], ndim - 1))
    shape = (*rows[:axis], classes, *rows[axis:])
    z, v = 3.0 * rng.standard_normal((2, *shape))
    unknown = (1 - axis,) if ndim == 2 and case % 3 == 0 else ()
    chunks = [any_sizes(rng, size) for size in shape]
    lazy_z = cut(z, chunks, unknown)
    for name in ("softmax", "log_softmax", "logsumexp", "softmax_jacobian"):
        assert_same_bits(getattr(xs, name)(lazy_z, axis=axis).compute(), getattr(xs, name)(z, axis=axis))
    keepdims = xs.logsumexp(lazy_z, axis=axis, keepdims=True).compute()
    assert_same_bits(keepdims, xs.logsumexp(z, axis=axis, keepdims=True))
    lazy_v = cut(v, chunks, unknown) if unknown else in_any_blocks(rng, v)
    assert_same_bits(xs.softmax_jvp(lazy_z, lazy_v, axis=axis).compute(), xs.softmax_jvp(z, v, axis=axis))

    of_rows = chunks[1 - axis] if unknown else None
    for soft, options in itertools.product((False, True), LOSS_OPTIONS):
        targets = rng.dirichlet(np.ones(classes), rows) if soft else rng.integers(0, classes, rows)
        targets = np.moveaxis(targets, -1, axis) if soft else targets
        given = {
            name: rng.uniform(0.5, 2.0, rows if name == "sample_weight" else classes) for name in options["arrays"]
        }
        more = {name: value for name, value in options.items() if name != "arrays" and not (soft and "index" in name)}
        lazy = {name: in_any_blocks(rng, value) for name, value in given.items()}
        lazy_targets = in_any_blocks(rng, targets)
        if unknown:
            sizes = [of_rows, of_rows] if soft else [of_rows]
            if soft:
                sizes[axis] = any_sizes(rng, classes)
            lazy_targets = cut(targets, sizes, unknown if soft else (0,))
            lazy |= {name: cut(value, [of_rows], (0,)) for name, value in given.items() if name == "sample_weight"}
        desired = xs.softmax_loss_and_grad(z, targets, axis=axis, **given, **more)
        actual = xs.softmax_loss_and_grad(lazy_z, lazy_targets, axis=axis, **lazy, **more)
        assert_equal(dask.compute(*actual), desired, int(np.prod(rows)))


LOSS_OPTIONS = [
    {"arrays": ()},
    {"arrays": ("sample_weight",), "reduction": "none", "validate": False},
    {"arrays": ("sample_weight", "class_weight"), "label_smoothing": 0.1, "z_loss": 0.01},
    {"arrays": ("class_weight",), "ignore_index": 0, "reduction": "sum"},
]


@pytest.mark.parametrize("case", range(10))
@pytest.mark.filterwarnings("ignore:X has its features:dask.array.core.PerformanceWarning")
@pytest.mark.filterwarnings("ignore:targets has its classes:dask.array.core.PerformanceWarning")
def test_networks_over_any_blocks(case, rng):
    """Parameters that are dask arrays, and those in memory with xpsoftmax.dask."""
    rows, features, classes = (int(rng.choice(sizes)) for sizes in ([0, 1, 1, 2, 9], [1, 3], [1, 2, 4]))
    params = xs.init_params((features, 4, classes), rng=rng)
    X = rng.standard_normal((rows, features))
    y = rng.dirichlet(np.ones(classes), rows) if case % 4 == 0 else rng.integers(0, classes, rows)
    weight = rng.uniform(0.5, 2.0, rows)
    unknown = case % 3 == 0
    of_rows = any_sizes(rng, rows)

    def of(array):
        sizes = [of_rows if unknown else any_sizes(rng, rows), *(any_sizes(rng, size) for size in array.shape[1:])]
        return cut(array, sizes, (0,) if unknown else ())

    held = of(X), of(y)
    lazy_params = tuple(xs.Layer(*(in_any_blocks(rng, array) for array in layer)) for layer in params)
    for weights in ({}, {"sample_weight": weight}):
        lazy = {name: of(value) for name, value in weights.items()}
        for options in ({"reg": 0.1}, {"reduction": "sum", "label_smoothing": 0.1}):
            desired = flat(xs.mlp_loss_and_grad(params, X, y, **weights, **options))
            for actual in (
                xs.mlp_loss_and_grad(lazy_params, *held, **lazy, **options),
                xd.mlp_loss_and_grad(params, *held, **lazy, **options),
            ):
                assert_sums(dask.compute(*flat(actual)), desired)
        sums = xs.mlp_partial_sums(lazy_params, *held, **lazy)
        desired = xs.mlp_partial_sums(params, X, y, **weights)
        assert_sums(dask.compute(*flat(sums[::2])), flat(desired[::2]))
        assert_sums(dask.compute(sums.weight), [desired.weight])
    for labels in (xs.mlp_predict(lazy_params, held[0]), xd.mlp_predict(params, held[0])):
        np.testing.assert_array_equal(labels.compute(), xs.mlp_predict(params, X))


def flat(result):
    return [result[0], *(array for layer in result[1] for array in layer)]


def assert_sums(actual, desired):
    """Each array to 1e-12 of its largest entry, as the docstring of `xpsoftmax.dask.mlp_loss_and_grad` says."""
    for a, b in zip(actual, desired, strict=True):
        bound = 1e-12 * np.abs(b).max(initial=0.0)
        assert assert_within(a, b, bound=bound if np.isfinite(bound) else 0.0) == np.isfinite(b).sum()


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("sizes", [(0, 0, 1, 0), (0, 4, 0, 1, 1, 0), (0, 0, 9)], ids=str)
@pytest.mark.parametrize("unknown", [(), (0,)], ids=["known", "unknown"])
def test_training_over_empty_blocks(unknown, sizes, batch_size, rng):
    rows = sum(sizes)
    params = xs.init_params((3, 4, 2), rng=rng)
    X, y, weight = rng.standard_normal((rows, 3)), rng.integers(0, 2, rows), rng.uniform(0.5, 2.0, rows)
    options = {"optimizer": xs.sgd(0.1), "epochs": 3, "rng": 0, "batch_size": batch_size or rows}
    desired = xs.train(params, X, y, sample_weight=weight, validation=(X, y), **options)
    lazy_X = cut(X, [sizes, (3,)], unknown)
    lazy_y, lazy_weight = (cut(value, [sizes], unknown) for value in (y, weight))
    actual = xd.train(
        params, lazy_X, lazy_y, sample_weight=lazy_weight, validation=(lazy_X, lazy_y), blocks_per_step=9, **options
    )
    assert_sums(flat((np.zeros(()), actual.params)), flat((np.zeros(()), desired.params)))
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(actual.history[name], desired.history[name], rtol=1e-12)


@pytest.mark.parametrize("unknown", [(), (0,)], ids=["known", "unknown"])
def test_the_classifier_over_empty_blocks(unknown, rng):
    pytest.importorskip("sklearn")
    from xpsoftmax.sklearn import MLPClassifier

    sizes = (0, 4, 0, 1, 0, 3)
    X, y = rng.standard_normal((8, 3)), np.arange(8) % 2
    lazy_X, lazy_y = cut(X, [sizes, (3,)], unknown), cut(y, [sizes], unknown)
    with warnings.catch_warnings(action="ignore"):  # three epochs are not many
        model = MLPClassifier((4,), batch_size=8, max_iter=3, random_state=0).fit(lazy_X, lazy_y)
        desired = MLPClassifier((4,), batch_size=8, max_iter=3, random_state=0).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(lazy_X).compute(), desired.predict_proba(X), rtol=1e-12)
    assert model.score(lazy_X, lazy_y) == desired.score(X, y)
    one = cut(X[:1], [(0, 0, 1, 0), (3,)], unknown)
    np.testing.assert_array_equal(model.predict(one).compute(), desired.predict(X[:1]))


# --- blocks that do not fit each other --------------------------------------------------------------------------------

SIZES = (2, 0, 1)


@pytest.fixture
def unknown(rng):
    """Logits, labels, soft targets and weights of three rows, in blocks of sizes that dask does not know."""
    z, weight = rng.standard_normal((3, 4)), rng.uniform(0.5, 2.0, 3)
    arrays = {"z": z, "labels": np.array([0, 3, 1]), "soft": rng.dirichlet(np.ones(4), 3), "weight": weight}
    return lambda name, sizes=SIZES: cut(arrays[name], [sizes, *((n,) for n in arrays[name].shape[1:])], (0,))


def losses(z, *targets, **options):
    return xs.softmax_loss_and_grad(z, *targets, **options)


def network(z, *targets, **options):
    return xs.mlp_loss((xs.Layer(da.ones((4, 4)), da.ones(4)),), z, *targets, **options)


BOTH = pytest.mark.parametrize("call", [losses, network])
UNEVEN = (1, 1, 1)


@BOTH
@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("targets", ["labels", "soft"])
def test_targets_of_other_rows(targets, validate, call, unknown):
    """Dask repeats the one row of a block beside the two of another."""
    owner = "logits" if call is losses else "X"
    result = call(unknown("z"), unknown(targets, UNEVEN), validate=validate)
    with pytest.raises(ValueError, match=rf"^targets must have as many rows as {owner} in every block, [02], got 1\.$"):
        dask.compute(result)


@BOTH
@pytest.mark.parametrize("targets", ["labels", "soft"])
@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}], ids=["mean", "sum"])
def test_weights_of_other_rows(options, targets, call, unknown):
    result = call(unknown("z"), unknown(targets), sample_weight=unknown("weight", UNEVEN), **options)
    message = r"^sample_weight must have as many rows as targets in every block, [02], got 1\.$"
    with pytest.raises(ValueError, match=message):
        dask.compute(result)


@BOTH
def test_logits_of_other_rows_than_both(call, unknown):
    result = call(unknown("z", UNEVEN), unknown("labels"), sample_weight=unknown("weight"))
    with pytest.raises(
        ValueError, match=r"^targets must have as many rows as (X|logits) in every block, 1, got [02]\.$"
    ):
        dask.compute(result)


def test_a_tangent_of_other_rows(unknown):
    product = xs.softmax_jvp(unknown("z"), unknown("soft", UNEVEN))
    with pytest.raises(ValueError, match=r"^tangent must have as many rows as logits in every block, [02], got 1\.$"):
        product.compute()


MANY = (
    r" must have as many blocks of rows as {} where their sizes are not known, 3, got 2\. Call compute_chunk_sizes\(\)"
)


@BOTH
def test_another_number_of_blocks(call, unknown):
    message = MANY.format("logits" if call is losses else "X")
    for targets in ("labels", "soft"):
        with pytest.raises(ValueError, match=f"^targets{message}"):
            call(unknown("z"), unknown(targets, (2, 1)))
    with pytest.raises(ValueError, match=f"^sample_weight{message}"):
        call(unknown("z"), unknown("labels"), sample_weight=unknown("weight", (2, 1)))


def test_a_tangent_in_another_number_of_blocks(unknown):
    with pytest.raises(ValueError, match=f"^tangent{MANY.format('logits')}"):
        xs.softmax_jvp(unknown("z"), unknown("soft", (2, 1)))


HINT = r".* Call compute_chunk_sizes\(\) on dask arrays of unknown sizes first\.$"


def test_known_sizes_beside_unknown_ones(unknown):
    known = da.from_array(np.ones((3, 4))), da.from_array(np.array([0, 1, 2])), da.from_array(np.ones(3))
    for targets in known[:2]:
        with pytest.raises(ValueError, match=rf"^targets must have .* got \(3,.*{HINT}"):
            xs.softmax_loss(unknown("z"), targets)
    with pytest.raises(ValueError, match=rf"^targets must have shape \(3,\) .* got \(nan,\)\..*{HINT}"):
        xs.softmax_loss(known[0], unknown("labels"))
    with pytest.raises(ValueError, match=rf"^sample_weight must have shape \(nan,\), .* got \(3,\)\.{HINT}"):
        xs.softmax_loss(unknown("z"), unknown("labels"), sample_weight=known[2])
    with pytest.raises(ValueError, match=rf"^tangent must have the shape of logits, .* got \(3, 4\)\.{HINT}"):
        xs.softmax_jvp(unknown("z"), known[0])


def test_no_classes_beside_an_unknown_number_of_rows():
    with pytest.raises(ValueError, match=r"^logits must have at least one class .* got shape \(nan, 0\)\.$"):
        xs.softmax(cut(np.ones((3, 0)), [SIZES, (0, 0)], (0,)))
