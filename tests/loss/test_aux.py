"""softmax_loss_and_grad(aux=True): the logsumexp of each row, beside what is returned without it."""

import numpy as np
import oracle as exact
import pytest
from assertions import EPS, assert_like, assert_same_bits
from grid import KINDS, SOME, assert_contract, labels, logits

import xpsoftmax as xs


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_logsumexp_keeps_its_bound(backend, impl, dtype, rng, scale):
    """Also of labels far behind, of which the loss, from which it might be made, is large."""
    z = (scale * rng.normal(size=(30, 7))).astype(dtype)
    y = np.argmin(z, axis=1)
    _, _, sums = xs.softmax_loss_and_grad(backend.asarray(z), backend.asarray(y), aux=True, impl=impl)
    assert_contract(sums, exact.logsumexp(z), backend=backend, dtype=dtype, least=30)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.5}, {"reduction": "none"}])
@pytest.mark.parametrize(("shape", "axis"), [((6, 5), 1), ((6, 5), 0), ((2, 5, 3), 1), ((5,), 0)])
def test_loss_and_gradient_are_those_without_it(backend, impl, rng, options, shape, axis):
    z = backend.asarray(rng.normal(size=shape))
    rows = shape[:axis] + shape[axis + 1 :]
    y = backend.asarray(rng.integers(0, 5, rows))
    loss, dlogits, sums = xs.softmax_loss_and_grad(z, y, axis=axis, aux=True, impl=impl, **options)
    for actual, desired in zip(
        (loss, dlogits), xs.softmax_loss_and_grad(z, y, axis=axis, impl=impl, **options), strict=True
    ):
        assert_same_bits(backend.to_numpy(actual), backend.to_numpy(desired))
    assert_like(sums, backend=backend, dtype="float64", shape=rows)
    alone = backend.to_numpy(xs.logsumexp(z, axis=axis, impl=impl))
    np.testing.assert_allclose(backend.to_numpy(sums), alone, rtol=0, atol=8 * EPS["float64"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", ["labels", "z_loss", "smoothing", "masses"])
def test_logsumexp_of_rows_of_every_kind(backend, impl, dtype, rng, kind, options):
    """Whatever method computes the loss of a row: in range or not, with options, of weight zero."""
    z = logits(rng, kind, SOME, dtype)
    y = labels(rng, z)
    z[1, 3], z[2] = np.nan, np.where(np.arange(SOME) == y[2], 0.0, -120.0)
    targets = np.eye(SOME, dtype=dtype)[y] if options == "masses" else y
    more = {"z_loss": {"z_loss": 0.9}, "smoothing": {"label_smoothing": 0.1}}.get(options, {})
    weight = backend.asarray((np.arange(z.shape[0]) % 3 > 0).astype(dtype))
    _, _, sums = xs.softmax_loss_and_grad(
        backend.asarray(z), backend.asarray(targets), aux=True, impl=impl, sample_weight=weight, **more
    )
    assert_contract(sums, exact.logsumexp(z), backend=backend, dtype=dtype, least=10)


@pytest.mark.backends("numpy", "array_api_strict", "torch", "cupy")
def test_the_logits_may_be_overwritten(backend, impl, rng):
    z, y = backend.asarray(rng.normal(size=(6, 5))), backend.asarray(rng.integers(0, 5, 6))
    desired = backend.to_numpy(xs.logsumexp(z, impl=impl)).copy()
    _, dlogits, sums = xs.softmax_loss_and_grad(z, y, out=z, aux=True, impl=impl)
    assert dlogits is z
    np.testing.assert_allclose(backend.to_numpy(sums), desired, rtol=0, atol=8 * EPS["float64"])


@pytest.mark.backends("numpy", "torch", "jax", "cupy")
def test_sums_of_16_bit_logits_are_of_float32(backend, impl):
    z = backend.asarray(np.array([[1.0, 2.0, 3.0]]), "float16")
    _, _, sums = xs.softmax_loss_and_grad(z, backend.asarray(np.array([0])), aux=True, impl=impl)
    assert_like(sums, backend=backend, dtype="float32", shape=(1,))
    assert backend.to_numpy(sums)[0] == pytest.approx(3.4076059, rel=3e-7)


@pytest.mark.parametrize("aux", [1, None, "yes"])
def test_aux_is_a_flag(aux):
    with pytest.raises(TypeError, match=f"^aux must be True or False, got {aux!r}\\.$"):
        xs.softmax_loss_and_grad(np.zeros((2, 3)), np.array([0, 1]), aux=aux)


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.9}, {"label_smoothing": 0.1}])
def test_sums_of_a_row_depend_on_nothing_but_the_row(backend, dtype, rng, options):
    """Whether most rows of the tile need a shift, or few, or none."""
    z = rng.normal(size=(64, 1000)) * rng.choice([1, 10, 300], (64, 1))
    for shift in (0.0, 1e4):
        z[:40] += shift
        y = np.where(rng.uniform(size=64) < 0.5, z.argmax(axis=1), rng.integers(0, 1000, 64))
        _, _, sums = xs.softmax_loss_and_grad(z.astype(dtype), y, aux=True, impl="kernel", **options)
        for i in (0, 39, 40, 61):
            rows = slice(i, i + 3)
            part = xs.softmax_loss_and_grad(z[rows].astype(dtype), y[rows], aux=True, impl="kernel", **options)[2]
            assert_same_bits(part, sums[rows])
