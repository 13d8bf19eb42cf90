"""softmax, log_softmax and logsumexp over several axes, and with classes that are left out."""

import numpy as np
import oracle as exact
import pytest
from assertions import assert_like, assert_same_bits
from grid import assert_contract

import xpsoftmax as xs

SHAPE = (3, 4, 5)
AXES = [None, (0, 2), (2, 0), (-1, -2), (1,), (0, 1, 2)]
FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
every_function = pytest.mark.parametrize("function", FUNCTIONS)


def merged(axis):
    """The axes of `SHAPE`, those of rows first, and how many these are."""
    axes = sorted(i % 3 for i in (range(3) if axis is None else axis))
    rows = [i for i in range(3) if i not in axes]
    return rows + axes, len(rows)


# --- several axes -----------------------------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("axis", AXES)
def test_several_axes_are_as_one(backend, impl, dtype, rng, function, axis):
    """The same bits as of rows in which they lie one after the other."""
    z = rng.normal(size=SHAPE).astype(dtype)
    order, rows = merged(axis)
    in_rows = np.transpose(z, order).reshape(*np.transpose(z, order).shape[:rows], -1)
    desired = backend.to_numpy(getattr(xs, function)(backend.asarray(in_rows), axis=-1, impl=impl))
    if function != "logsumexp":
        desired = desired.reshape([SHAPE[i] for i in order]).transpose(np.argsort(order))
    actual = getattr(xs, function)(backend.asarray(z), axis=axis, impl=impl)
    assert_like(actual, backend=backend, dtype=dtype, shape=desired.shape)
    assert_same_bits(backend.to_numpy(actual), desired)


@pytest.mark.parametrize("axis", AXES)
def test_keepdims_keeps_every_axis_that_is_summed_over(backend, impl, rng, axis):
    z = backend.asarray(rng.normal(size=SHAPE))
    kept = xs.logsumexp(z, axis=axis, keepdims=True, impl=impl)
    axes = merged(axis)[0][merged(axis)[1] :]
    assert_like(kept, backend=backend, dtype="float64", shape=tuple(1 if i in axes else SHAPE[i] for i in range(3)))
    flat = backend.to_numpy(xs.logsumexp(z, axis=axis, impl=impl))
    assert_same_bits(backend.to_numpy(kept).reshape(flat.shape), flat)


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
@pytest.mark.parametrize("shape", [(4, 5), SHAPE])
@pytest.mark.backends("numpy", "array_api_strict", "torch", "cupy")
def test_several_axes_in_place(backend, impl, rng, function, shape):
    z = backend.asarray(rng.normal(size=shape))
    desired = backend.to_numpy(getattr(xs, function)(z, axis=None, impl=impl)).copy()
    assert getattr(xs, function)(z, axis=None, out=z, impl=impl) is z
    assert_same_bits(backend.to_numpy(z), desired)


def test_one_axis_of_a_vector_may_be_none(backend, impl, rng):
    z = backend.asarray(rng.normal(size=5))
    assert_same_bits(
        backend.to_numpy(xs.softmax(z, axis=None, impl=impl)), backend.to_numpy(xs.softmax(z, axis=0, impl=impl))
    )


@every_function
@pytest.mark.parametrize(
    ("axis", "error", "message"),
    [
        ((), ValueError, r"axis must name at least one axis, got \(\)\."),
        ((0, -3), ValueError, r"axis must name each axis once, got \(0, -3\)\."),
        ((0, 3), ValueError, "axis must be from -3 to 2 for 3-dimensional logits, got 3"),
        ((0, 1.0), TypeError, "axis must be an integer, got 1.0"),
        ([0, 1], TypeError, r"axis must be an integer, got \[0, 1\]"),
    ],
)
def test_axes_that_do_not_fit(function, axis, error, message):
    with pytest.raises(error, match=message):
        getattr(xs, function)(np.zeros(SHAPE), axis=axis)


@every_function
def test_an_axis_of_classes_may_not_be_empty_nor_missing(function):
    with pytest.raises(ValueError, match="logits must have at least one class along axis 1, got shape"):
        getattr(xs, function)(np.zeros((2, 0, 3)), axis=(1, 2))
    with pytest.raises(ValueError, match="logits must have at least one dimension"):
        getattr(xs, function)(np.float64(1.0), axis=None)


def test_rows_of_unknown_number_are_no_class_axis():
    da = pytest.importorskip("dask.array")
    z = da.zeros((4, 3), chunks=2)
    z = z[z[:, 0] >= 0.0]
    with pytest.raises(ValueError, match="logits must be of known size, except for the rows of a matrix"):
        xs.softmax(z, axis=None)


# --- classes that are left out ----------------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_what_is_left_out_is_as_if_it_were_not_there(backend, impl, dtype, rng, function, scale):
    """Within the bound of the classes that stay, whatever the others hold."""
    z = (scale * rng.normal(size=(40, 9))).astype(dtype)
    mask = rng.uniform(size=z.shape) < 0.6
    mask[:, 4] = True
    wild = np.where(mask, z, rng.choice([np.nan, np.inf, -np.inf, 1e30], z.shape)).astype(dtype)
    actual = getattr(xs, function)(backend.asarray(wild), where=backend.asarray(mask), impl=impl)
    desired = getattr(exact, function)(np.where(mask, z, -np.inf).astype(dtype))
    assert_contract(actual, desired, backend=backend, dtype=dtype, least=40)
    if function != "logsumexp":
        assert (backend.to_numpy(actual)[~mask] == (0.0 if function == "softmax" else -np.inf)).all()


@pytest.mark.parametrize(("function", "value"), [("softmax", 0.0), ("log_softmax", -np.inf), ("logsumexp", -np.inf)])
def test_rows_without_classes(backend, impl, function, value):
    z = np.array([[1.0, np.nan], [1.0, 1.0]])
    mask = backend.asarray(np.array([[False, False], [True, True]]))
    actual = backend.to_numpy(getattr(xs, function)(backend.asarray(z), where=mask, impl=impl))
    assert (actual[0] == value).all()
    assert np.isfinite(actual[1]).all()


@pytest.mark.parametrize("shape", [(5,), (4, 1), (3, 1, 5), (1, 1, 1), SHAPE])
def test_a_mask_is_broadcast(backend, impl, rng, shape):
    z = rng.normal(size=SHAPE)
    mask = rng.uniform(size=shape) < 0.7
    whole = np.broadcast_to(mask, SHAPE).copy()
    z, mask, whole = map(backend.asarray, (z, mask, whole))
    for function in FUNCTIONS:
        compute = getattr(xs, function)
        for axis in (1, None):
            actual = backend.to_numpy(compute(z, axis=axis, where=mask, impl=impl))
            assert_same_bits(actual, backend.to_numpy(compute(z, axis=axis, where=whole, impl=impl)))


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
@pytest.mark.backends("numpy", "array_api_strict", "torch", "cupy")
def test_a_mask_with_out(backend, impl, rng, function):
    """16-bit logits are rounded once, where out is of float32 not at all."""
    z, mask = rng.normal(size=(4, 5)), rng.uniform(size=(4, 5)) < 0.7
    mask = backend.asarray(mask)
    for dtype in ("float64", "float32"):
        logits = backend.asarray(z, dtype)
        desired = backend.to_numpy(getattr(xs, function)(logits, where=mask, impl=impl)).copy()
        assert getattr(xs, function)(logits, where=mask, out=logits, impl=impl) is logits
        assert_same_bits(backend.to_numpy(logits), desired)
    if backend.name.startswith("array_api_strict"):
        return  # it has no float16
    half = backend.asarray(z, "float16")
    out = backend.asarray(np.zeros((4, 5)), "float32")
    getattr(xs, function)(half, where=mask, out=out, impl=impl)
    single = backend.asarray(backend.to_numpy(half).astype("float32"))
    assert_same_bits(backend.to_numpy(out), backend.to_numpy(getattr(xs, function)(single, where=mask, impl=impl)))


@every_function
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones(5), TypeError, r"where must be of dtype bool, got float64\."),
        ([True] * 5, TypeError, "where must be an array of an Array API library, got list"),
        (
            np.ones(4, bool),
            ValueError,
            r"where must have a shape that broadcasts to that of logits, \(4, 5\), got \(4,\)",
        ),
        (np.ones((2, 4, 5), bool), ValueError, r"where must have a shape .* got \(2, 4, 5\)"),
        (np.ones((1, 4, 5), bool), ValueError, r"where must have a shape .* got \(1, 4, 5\)"),
    ],
)
def test_masks_that_do_not_fit(function, mask, error, message):
    with pytest.raises(error, match=message):
        getattr(xs, function)(np.zeros((4, 5)), where=mask)


def test_a_mask_of_another_library():
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match="where must be an array of the same library as logits"):
        xs.softmax(strict.ones((4, 5)), where=np.ones((4, 5), bool))


@pytest.mark.backends("numpy")
def test_out_shares_no_memory_with_the_mask(backend):
    memory = np.zeros(40, np.uint8)
    with pytest.raises(ValueError, match="out must share no memory with where"):
        xs.softmax(np.zeros((1, 5)), where=memory[:5].view(bool), out=memory.view(np.float64)[None, :])
