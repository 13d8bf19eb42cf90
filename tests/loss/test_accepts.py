"""Unusual input that is right: byte orders, views, files, nothing at all."""

import numpy as np
import pytest
from assertions import assert_close, assert_like

import xpsoftmax as xs

ROWS, CLASSES = 3, 4
Z = np.linspace(-1.0, 1.0, ROWS * CLASSES).reshape(ROWS, CLASSES)
Y = np.array([0, 3, 1])
Q = np.full((ROWS, CLASSES), 0.25)

CALLS = {
    "softmax": xs.softmax,
    "log_softmax": xs.log_softmax,
    "logsumexp": xs.logsumexp,
    "softmax_jvp": lambda z, **options: xs.softmax_jvp(z, z, **options),
    "softmax_jacobian": xs.softmax_jacobian,
    "softmax_loss": lambda z, **options: xs.softmax_loss(z, Y, **options),
    "softmax_loss_and_grad": lambda z, **options: xs.softmax_loss_and_grad(z, Y, **options),
}
every_function = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_function
def test_non_native_byte_order_of_logits(call):
    results = [call(Z.astype(Z.dtype.newbyteorder())), call(Z)]
    swapped, native = (result if isinstance(result, tuple) else (result,) for result in results)
    for a, b in zip(swapped, native, strict=True):
        assert a.dtype.isnative
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["labels", "soft", "sample_weight", "class_weight"])
def test_non_native_byte_order_beside_the_logits(rng, name):
    arguments = {"labels": Y, "soft": Q, "sample_weight": rng.random(ROWS), "class_weight": rng.random(CLASSES)}
    value = arguments[name]
    swapped = value.astype(value.dtype.newbyteorder())
    losses = []
    for given in (value, swapped):
        targets = given if name in ("labels", "soft") else Y
        weights = {} if name in ("labels", "soft") else {name: given}
        losses.append(xs.softmax_loss(Z, targets, **weights))
    assert losses[0] == losses[1]


@every_function
def test_read_only_logits(call):
    frozen = Z.copy()
    frozen.flags.writeable = False
    call(frozen)
    np.testing.assert_array_equal(frozen, Z)


@every_function
def test_memory_mapped_logits_give_plain_arrays(call, tmp_path):
    mapped = np.memmap(tmp_path / "logits", dtype="float64", mode="w+", shape=Z.shape)
    mapped[...] = Z
    result = call(mapped)
    assert all(type(array) is np.ndarray for array in (result if isinstance(result, tuple) else (result,)))


def test_broken_views_of_labels_and_weights(rng):
    """Strided, reversed and read-only views count as the values they show."""
    y, w = np.repeat(Y, 2)[::2], rng.random(ROWS)[::-1]
    w.flags.writeable = False
    assert xs.softmax_loss(Z, y, sample_weight=w) == xs.softmax_loss(Z, y.copy(), sample_weight=w.copy())


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmax_jvp"])
def test_no_rows(backend, name):
    result = CALLS[name](backend.asarray(np.ones((0, CLASSES))))
    assert_like(result, backend=backend, dtype="float64", shape=(0, CLASSES))


def test_no_rows_of_the_loss(backend, impl, dtype):
    logits, labels = backend.asarray(np.ones((0, CLASSES)), dtype), backend.asarray(Y[:0])
    loss, dlogits = xs.softmax_loss_and_grad(logits, labels, impl=impl)
    assert_close(loss, np.nan, backend=backend, dtype=dtype, ulps=0)
    assert_like(dlogits, backend=backend, dtype=dtype, shape=(0, CLASSES))


def test_a_label_of_a_vector(backend, impl):
    loss = xs.softmax_loss(backend.asarray(np.zeros(4)), backend.asarray(np.array(2)), impl=impl)
    assert_close(loss, np.log(np.longdouble(4)), backend=backend, dtype="float64", ulps=1)


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("state", ["raise", "warn", "ignore"])
def test_the_callers_errstate_changes_nothing(backend, state):
    logits = np.array([[1e4, -1e4, -np.inf], [np.nan, 0.0, 0.0], [np.inf, 0.0, 0.0]])
    with np.errstate(all=state):
        loss, dlogits = xs.softmax_loss_and_grad(logits, np.array([1, 0, 0]), reduction="none")
    assert_close(loss, [2e4, np.nan, np.nan], backend=backend, dtype="float64", ulps=1)
    np.testing.assert_array_equal(dlogits[0], [1.0, -1.0, 0.0])


@pytest.mark.backends("dask")
@pytest.mark.parametrize("axis", [0, 1])
def test_keepdims_with_an_unknown_number_of_rows(backend, axis):
    logits = backend.asarray(np.ones((ROWS, CLASSES)))[backend.asarray(np.array([True, False, True]))]
    sums = xs.logsumexp(logits if axis == 1 else logits.T, axis=axis, keepdims=True)
    assert sums.compute().shape == ((2, 1) if axis == 1 else (1, 2))
