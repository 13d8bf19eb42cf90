"""Dask arrays: every row operation block by block, by the operation that takes the blocks."""

import numpy as np
import pytest
from assertions import assert_same_bits

import xpsoftmax as xs
from xpsoftmax import kernels
from xpsoftmax.kernels import generic

da = pytest.importorskip("dask.array")

R, C = 11, 7
FUNCTIONS = ["softmax", "log_softmax", "logsumexp", "softmax_jacobian"]


@pytest.fixture
def logits(rng):
    return rng.standard_normal((R, C)) * 10


@pytest.mark.parametrize("chunks", [(4, 7), (11, 3), (2, 2)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_chunks_give_the_bits_of_the_whole(name, chunks, logits):
    function = getattr(xs, name)
    assert_same_bits(function(da.from_array(logits, chunks)).compute(), function(logits))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.01}], ids=["plain", "all"])
@pytest.mark.parametrize("chunks", [(4, 7), (11, 3), (2, 2)], ids=str)
def test_any_chunks_give_the_bits_of_the_whole_loss(chunks, options, logits, rng):
    labels, weight = rng.integers(0, C, R), rng.uniform(size=C)
    expected = xs.softmax_loss_and_grad(logits, labels, class_weight=weight, reduction="none", **options)
    lazy = [da.from_array(x, c) for x, c in ((logits, chunks), (labels, 3), (weight, 2))]
    got = xs.softmax_loss_and_grad(*lazy[:2], class_weight=lazy[2], reduction="none", **options)
    for array, wanted in zip(got, expected, strict=True):
        assert_same_bits(array.compute(), wanted)


def test_product_with_the_jacobian(logits, rng):
    v = rng.standard_normal((R, C))
    product = xs.softmax_jvp(da.from_array(logits, (4, 2)), da.from_array(v, (3, 7)))
    assert_same_bits(product.compute(), xs.softmax_jvp(logits, v))


def test_loss_and_gradient_are_computed_in_one_task_a_block(logits, rng):
    calls = []

    class Counting:
        @staticmethod
        def softmax_loss_rows(*args, **options):
            calls.append(args[0].shape)
            return generic.softmax_loss_rows(*args, **options)

    def takes(array):
        return isinstance(array, np.ndarray)

    labels = da.from_array(rng.integers(0, C, R), 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BACKENDS", (kernels.Backend("numpy", takes, lambda: Counting),))
        results = xs.softmax_loss_and_grad(da.from_array(logits, (4, 3)), labels, validate=False, impl="kernel")
        assert calls == []
        da.compute(*results, scheduler="synchronous")
    assert sorted(calls) == [(3, C), (4, C), (4, C)]


def test_a_kernel_that_is_not_there_is_an_error_before_anything_is_computed(logits, monkeypatch):
    monkeypatch.setattr(kernels, "BACKENDS", ())
    with pytest.raises(NotImplementedError, match=r"impl must be .* for numpy arrays"):
        xs.softmax(da.from_array(logits, (4, 7)), impl="kernel")


def test_sixteen_bit_gradients_are_rounded_once(rng):
    logits, labels = rng.standard_normal((R, C)).astype(np.float16), rng.integers(0, C, R)
    loss, dlogits = xs.softmax_loss_and_grad(da.from_array(logits, (4, 3)), da.from_array(labels, 4))
    wide = xs.softmax_loss_and_grad(logits.astype(np.float32), labels)[1]
    assert_same_bits(dlogits.compute(), wide.astype(np.float16))
    assert loss.dtype == np.float32
