"""Values of labels, soft targets and weights: what is bad, where the message points, and what happens unvalidated."""

import numpy as np
import pytest
from assertions import assert_close, assert_same_bits, assert_within

import xpsoftmax as xs

CLASSES = 5
GOOD = np.array([0, 4, 2, 1])
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
SIGNED = INTEGERS[:4]


def logits_like(labels, rng, classes=CLASSES):
    return rng.normal(size=(*np.shape(labels), classes))


# --- every integer dtype ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integer", INTEGERS)
def test_labels_of_any_integer_dtype(backend, impl, rng, integer):
    logits = backend.asarray(logits_like(GOOD, rng))
    losses = [
        backend.to_numpy(xs.softmax_loss(logits, backend.asarray(GOOD, dtype), reduction="none", impl=impl))
        for dtype in (integer, "int64")
    ]
    assert_same_bits(*losses)


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("function", [xs.softmax_loss, xs.softmax_loss_and_grad])
def test_the_first_label_beyond_the_classes(backend, function, rng, integer):
    labels = np.array([0, CLASSES - 1, CLASSES, CLASSES + 1])
    message = r"^targets must be labels from 0 to 4 \(5 classes, ignore_index=None\), got 5 at row 2\.$"
    with pytest.raises(ValueError, match=message):
        function(backend.asarray(logits_like(labels, rng)), backend.asarray(labels, integer))


@pytest.mark.parametrize("integer", SIGNED)
def test_negative_labels_never_count_from_the_end(backend, rng, integer):
    labels = backend.asarray(np.array([0, -1, 2]), integer)
    with pytest.raises(ValueError, match=r"\(5 classes, ignore_index=None\), got -1 at row 1\.$"):
        xs.softmax_loss(backend.asarray(rng.normal(size=(3, CLASSES))), labels)


@pytest.mark.parametrize("integer", INTEGERS)
def test_the_largest_value_of_the_dtype(backend, rng, integer):
    worst = np.iinfo(integer).max
    labels = backend.asarray(np.array([1, worst], dtype=integer))
    with pytest.raises(ValueError, match=rf"^targets must be labels from 0 to 4 .* got {worst} at row 1\.$"):
        xs.softmax_loss(backend.asarray(rng.normal(size=(2, CLASSES))), labels)


@pytest.mark.parametrize("integer", SIGNED)
def test_the_least_value_of_the_dtype(backend, rng, integer):
    worst = np.iinfo(integer).min
    labels = backend.asarray(np.array([1, worst], dtype=integer))
    with pytest.raises(ValueError, match=rf"^targets must be labels from 0 to 4 .* got {worst} at row 1\.$"):
        xs.softmax_loss(backend.asarray(rng.normal(size=(2, CLASSES))), labels)


# --- ignore_index -----------------------------------------------------------------------------------------------------

LOOK_ALIKES = [("uint8", 156), ("uint16", 2**16 - 100), ("uint32", 2**32 - 100), ("uint64", 2**64 - 100)]


@pytest.mark.parametrize(("integer", "value"), LOOK_ALIKES)
def test_unsigned_look_alikes_of_ignore_index_are_bad_labels(backend, rng, integer, value):
    """Reinterpreted as signed, each of these is -100."""
    labels = backend.asarray(np.array([0, value], dtype=integer))
    message = rf"\(5 classes, ignore_index=-100\), got {value} at row 1\.$"
    with pytest.raises(ValueError, match=message):
        xs.softmax_loss(backend.asarray(rng.normal(size=(2, CLASSES))), labels, ignore_index=-100)


@pytest.mark.parametrize(("integer", "value"), LOOK_ALIKES)
def test_unsigned_look_alikes_are_not_ignored_unvalidated(backend, impl, rng, integer, value):
    labels = backend.asarray(np.array([0, value], dtype=integer))
    logits = backend.asarray(rng.normal(size=(2, CLASSES)))
    losses = xs.softmax_loss(logits, labels, ignore_index=-100, validate=False, reduction="none", impl=impl)
    np.testing.assert_array_equal(np.isnan(backend.to_numpy(losses)), [False, True])


def test_a_wrapped_label_is_bad_even_if_ignore_index_is_the_number_of_classes(backend, rng):
    """The stand-in for values above 2**63 - 1 must not be the ignored label."""
    labels = backend.asarray(np.array([0, 2**63], dtype="uint64"))
    with pytest.raises(ValueError, match=rf"ignore_index=5\), got {2**63} at row 1\.$"):
        xs.softmax_loss(backend.asarray(rng.normal(size=(2, CLASSES))), labels, ignore_index=CLASSES)


@pytest.mark.parametrize("ignore_index", [-100, -1, 2, CLASSES, 120])
def test_ignored_labels_may_be_any_number(backend, impl, rng, ignore_index):
    labels = np.array([0, ignore_index, 4, 1], dtype="int8")
    values = logits_like(labels, rng)
    loss = xs.softmax_loss(backend.asarray(values), backend.asarray(labels), ignore_index=ignore_index, impl=impl)
    kept = [0, 2, 3]
    desired = np.mean(xs.softmax_loss(values[kept], labels[kept], reduction="none").astype(np.longdouble))
    assert_close(loss, desired, backend=backend, dtype="float64", ulps=8)


@pytest.mark.parametrize("ignore_index", [10**30, -(10**30)])
def test_ignore_index_that_no_label_can_be(backend, impl, rng, ignore_index):
    logits, labels = backend.asarray(logits_like(GOOD, rng)), backend.asarray(GOOD)
    losses = [xs.softmax_loss(logits, labels, ignore_index=value, impl=impl) for value in (ignore_index, None)]
    assert_same_bits(*(backend.to_numpy(loss) for loss in losses))


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_other_labels_stay_bad_beside_an_ignored_one(backend, rng, label):
    labels = backend.asarray(np.array([-100, label, 0]))
    with pytest.raises(ValueError, match=rf"\(5 classes, ignore_index=-100\), got {label} at row 1\.$"):
        xs.softmax_loss(backend.asarray(rng.normal(size=(3, CLASSES))), labels, ignore_index=-100)


# --- where the message points -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_position_of_a_bad_label_in_more_dimensions(backend, rng, axis):
    labels = np.zeros((3, 4), dtype=int)
    labels[1, 2] = labels[2, 0] = 9
    logits = np.moveaxis(logits_like(labels, rng), -1, axis)
    with pytest.raises(ValueError, match=r"^targets must be labels from 0 to 4 .* got 9 at row \(1, 2\)\.$"):
        xs.softmax_loss(backend.asarray(logits), backend.asarray(labels), axis=axis)


def test_a_bad_label_of_a_vector_has_no_position(backend, rng):
    with pytest.raises(ValueError, match=r"^targets must be labels from 0 to 4 .*, got 5\.$"):
        xs.softmax_loss(backend.asarray(rng.normal(size=CLASSES)), backend.asarray(np.array(5)))


def test_one_class(backend):
    with pytest.raises(ValueError, match=r"^targets must be labels from 0 to 0 \(1 classes, .* got 1 at row 0\.$"):
        xs.softmax_loss(backend.asarray(np.zeros((1, 1))), backend.asarray(np.array([1])))


@pytest.mark.parametrize("function", [xs.mlp_loss, xs.mlp_loss_and_grad, xs.mlp_partial_sums])
def test_bad_labels_of_a_network_are_found_before_any_chunk(backend, function, rng):
    params = xs.init_params((3, CLASSES), rng=0, xp=backend.library, dtype=backend.xp.float64, device=backend.device)
    inputs = backend.asarray(rng.normal(size=(50, 3)))
    labels = np.zeros(50, dtype=int)
    labels[49] = 7
    with pytest.raises(ValueError, match=r"\(5 classes, ignore_index=None\), got 7 at row 49\.$"):
        function(params, inputs, backend.asarray(labels), max_memory=10_000)


BAD_MASSES = [(-0.5, r"-0\.5"), (np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")]


@pytest.mark.parametrize(("value", "text"), BAD_MASSES)
def test_bad_soft_targets(backend, rng, value, text):
    targets = np.full((3, CLASSES), 0.2)
    targets[1, 4] = targets[2, 0] = value
    with pytest.raises(ValueError, match=rf"^targets must be finite and not negative, got {text} at index \(1, 4\)\.$"):
        xs.softmax_loss(backend.asarray(rng.normal(size=(3, CLASSES))), backend.asarray(targets))


@pytest.mark.parametrize(("value", "text"), BAD_MASSES)
@pytest.mark.parametrize(("name", "unit", "size"), [("sample_weight", "row", 4), ("class_weight", "class", CLASSES)])
@pytest.mark.parametrize("soft", [False, True])
def test_bad_weights(backend, rng, value, text, name, unit, size, soft):
    weight = np.ones(size)
    weight[2:] = value
    targets = np.full((4, CLASSES), 0.2) if soft else GOOD
    logits = backend.asarray(logits_like(GOOD, rng))
    with pytest.raises(ValueError, match=rf"^{name} must be finite and not negative, got {text} at {unit} 2\.$"):
        xs.softmax_loss(logits, backend.asarray(targets), **{name: backend.asarray(weight)})


def test_bad_sample_weight_in_more_dimensions(backend, rng):
    weight = np.ones((2, 3))
    weight[1, 2] = -9
    labels = np.zeros((2, 3), dtype=int)
    with pytest.raises(
        ValueError, match=r"^sample_weight must be finite and not negative, got -9\.0 at row \(1, 2\)\.$"
    ):
        xs.softmax_loss(
            backend.asarray(logits_like(labels, rng)), backend.asarray(labels), sample_weight=backend.asarray(weight)
        )


def test_labels_are_reported_before_weights(rng):
    with pytest.raises(ValueError, match=r"^targets must be labels from 0 to 4"):
        xs.softmax_loss(logits_like(GOOD, rng), GOOD + 9, sample_weight=-np.ones(4))


# --- rows of weight zero ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_bad_label_in_a_row_of_weight_zero_is_reported(backend, rng, reduction):
    labels, weight = backend.asarray(np.array([0, 7, 2, 1])), backend.asarray(np.array([1.0, 0.0, 1.0, 1.0]))
    logits = backend.asarray(logits_like(GOOD, rng))
    with pytest.raises(ValueError, match=r"^targets must be labels .* got 7 at row 1\.$"):
        xs.softmax_loss(logits, labels, sample_weight=weight, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bad", [7, -1, 2**62])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1}], ids=["plain", "smoothed"])
def test_a_bad_label_in_a_row_of_weight_zero_adds_nothing_unvalidated(backend, impl, rng, reduction, bad, options):
    weight = np.array([1.0, 0.0, 2.0, 1.0])
    values = logits_like(GOOD, rng)
    results = []
    for label in (bad, GOOD[1]):
        labels = GOOD.copy()
        labels[1] = label
        arrays = [backend.asarray(x) for x in (values, labels, weight)]
        loss, dlogits = xs.softmax_loss_and_grad(
            *arrays[:2], sample_weight=arrays[2], reduction=reduction, validate=False, impl=impl, **options
        )
        results.append((backend.to_numpy(loss), backend.to_numpy(dlogits)))
    for actual, desired in zip(*results, strict=True):
        assert np.isfinite(actual).all()
        np.testing.assert_array_equal(actual, desired)  # -0 may be 0
    assert not results[0][1][1].any()


# --- validate=False ---------------------------------------------------------------------------------------------------

UNCHECKED = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.1},
    "class_weight": {"class_weight": np.array([2.0, 3.0, 5.0, 7.0, 11.0])},
    "all": {"label_smoothing": 0.1, "z_loss": 0.1, "class_weight": np.array([2.0, 3.0, 5.0, 7.0, 11.0])},
}
# Next to the classes, at the ends of the index dtype, and far outside any array.
BAD_LABELS = [CLASSES, -1, -CLASSES, 2**63 - 1, -(2**63), 10**9]


@pytest.mark.parametrize("bad", BAD_LABELS)
@pytest.mark.parametrize("options", UNCHECKED.values(), ids=UNCHECKED)
def test_a_bad_row_is_nan_and_no_other(backend, impl, rng, bad, options):
    labels = GOOD.copy()
    labels[1] = bad
    values, others = logits_like(GOOD, rng), [0, 2, 3]
    options = {name: backend.asarray(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}

    def run(values, labels, **more):
        result = xs.softmax_loss_and_grad(
            backend.asarray(values), backend.asarray(labels), reduction="none", impl=impl, **options, **more
        )
        return [backend.to_numpy(array) for array in result]

    losses, dlogits = run(values, labels, validate=False)
    if backend.name == "cupy" and impl != "generic":
        # A CUDA kernel's bits may depend on the address of a row modulo 16: the rows stay where they are.
        desired_losses, desired_dlogits = (array[others] for array in run(values, GOOD))
    else:
        desired_losses, desired_dlogits = run(values[others], GOOD[others])
    assert np.isnan(losses[1])
    assert np.isnan(dlogits[1]).all()
    assert_same_bits(losses[others], desired_losses)
    assert_same_bits(dlogits[others], desired_dlogits)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_bad_row_makes_the_loss_nan_and_leaves_other_rows_finite(backend, impl, rng, reduction):
    labels = np.array([0, CLASSES, 2, 1])
    loss, dlogits = xs.softmax_loss_and_grad(
        backend.asarray(logits_like(GOOD, rng)), backend.asarray(labels), reduction=reduction, validate=False, impl=impl
    )
    assert np.isnan(backend.to_numpy(loss))
    np.testing.assert_array_equal(np.isfinite(backend.to_numpy(dlogits)).all(axis=1), labels < CLASSES)


@pytest.mark.parametrize("bad", [CLASSES, -1])
def test_a_bad_row_counts_with_class_weight_one(backend, impl, rng, bad):
    """The denominator is 2 + 1 * 1.5 + 5 + 3 * 1: weights of the labels 0, bad, 2, 1 times the sample weights."""
    class_weight = np.array([2.0, 3.0, 5.0, 7.0, 11.0])
    sample_weight = np.array([1.0, 1.5, 1.0, 1.0])
    values, labels = logits_like(GOOD, rng), np.array([0, bad, 2, 1])
    weights = {"class_weight": backend.asarray(class_weight), "sample_weight": backend.asarray(sample_weight)}
    arrays = backend.asarray(values), backend.asarray(labels)
    dlogits = {
        reduction: backend.to_numpy(
            xs.softmax_loss_and_grad(*arrays, reduction=reduction, validate=False, impl=impl, **weights)[1]
        )
        for reduction in ("mean", "sum")
    }
    desired = dlogits["sum"].astype(np.longdouble) / (2 + 1.5 + 5 + 3)
    assert assert_within(dlogits["mean"], desired, bound=4 * 2.0**-52 * np.abs(desired)) == 3 * CLASSES


@pytest.mark.parametrize(("value", "row_is_nan"), [(-0.5, True), (np.nan, True), (np.inf, True), (0.5, False)])
def test_a_bad_soft_target_makes_its_row_nan(backend, impl, rng, value, row_is_nan):
    targets = np.full((3, CLASSES), 0.2)
    targets[1, 3] = value
    losses, dlogits = xs.softmax_loss_and_grad(
        backend.asarray(rng.normal(size=(3, CLASSES))),
        backend.asarray(targets),
        reduction="none",
        validate=False,
        impl=impl,
    )
    np.testing.assert_array_equal(np.isnan(backend.to_numpy(losses)), [False, row_is_nan, False])
    np.testing.assert_array_equal(np.isnan(backend.to_numpy(dlogits)).all(axis=1), [False, row_is_nan, False])
    assert np.isfinite(backend.to_numpy(dlogits)[[0, 2]]).all()


@pytest.mark.parametrize("validate", [True, False])
def test_an_ignored_label_outside_the_classes_reads_nothing(backend, impl, validate):
    """One class, so that any other index is out of bounds; the class weight would be read at the label."""
    labels = backend.asarray(np.array([0, 2**40]))
    loss, dlogits = xs.softmax_loss_and_grad(
        backend.asarray(np.ones((2, 1))),
        labels,
        class_weight=backend.asarray(np.array([3.0])),
        ignore_index=2**40,
        validate=validate,
        impl=impl,
    )
    assert_close(loss, 0.0, backend=backend, dtype="float64", ulps=0)
    np.testing.assert_array_equal(backend.to_numpy(dlogits), [[0.0], [0.0]])


def test_a_value_that_is_too_large_for_the_working_precision_is_shown_as_given():
    logits, weight = np.zeros((2, 3), np.float32), np.array([1.0, 1e300])
    with pytest.raises(ValueError, match=r"^sample_weight must be finite .* in float32, got 1e\+300 at row 1\.$"):
        xs.softmax_loss(logits, np.array([0, 1]), sample_weight=weight)


def test_soft_targets_whose_sum_overflows_are_nan_and_not_wrong(backend, impl):
    logits = backend.asarray(np.array([[1.0, 0.0], [1.0, 0.0]], np.float32))
    targets = backend.asarray(np.array([[3e38, 3e38], [0.5, 0.5]], np.float32))
    _, dlogits = xs.softmax_loss_and_grad(logits, targets, reduction="none", validate=False, impl=impl)
    np.testing.assert_array_equal(np.isnan(backend.to_numpy(dlogits)), [[True, True], [False, False]])
