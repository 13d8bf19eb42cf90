"""softmax_loss_and_grad(aux=True): the logsumexp of each row, beside what is returned without it."""

import numpy as np
import oracle as exact
import pytest
from assertions import assert_like, assert_same_bits
from grid import assert_contract

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
    assert_same_bits(backend.to_numpy(sums), backend.to_numpy(xs.logsumexp(z, axis=axis, impl=impl)))


@pytest.mark.backends("numpy", "array_api_strict", "torch", "cupy")
def test_the_logits_may_be_overwritten(backend, impl, rng):
    z, y = backend.asarray(rng.normal(size=(6, 5))), backend.asarray(rng.integers(0, 5, 6))
    desired = backend.to_numpy(xs.logsumexp(z, impl=impl)).copy()
    _, dlogits, sums = xs.softmax_loss_and_grad(z, y, out=z, aux=True, impl=impl)
    assert dlogits is z
    assert_same_bits(backend.to_numpy(sums), desired)


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
