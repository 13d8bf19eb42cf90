"""The inline PTX of kernels/cuda/ptx.cuh on a GPU: the small kernels of cuda_on_cpu/kernels, which also run on the CPU.

Whether the instructions are the right ones, only a GPU can show.
"""

from __future__ import annotations

import importlib
from typing import Any

import cuda_on_cpu as cpu
import numpy as np
import oracle as oracle
import pytest
import test_cuda_harness as harness
from assertions import assert_same_bits, assert_within
from backends import unusable

import xpsoftmax as xs
from xpsoftmax.kernels.cuda import sizes, texts

CLUSTERS = ("cluster", "ring")


@pytest.fixture(autouse=True)
def cupy(request):
    """CuPy with a GPU; a module that stands in for it has no kernels."""
    if request.config.getoption("--stand-in"):
        pytest.skip("a stand-in for CuPy runs no kernels")
    reason = unusable("cupy")
    if reason is not None:
        pytest.skip(reason)
    return importlib.import_module("cupy")


def on_gpu(case: harness.Case, *arguments: Any) -> None:
    """Run a kernel on copies of the arrays on the GPU, and bring back what became of them."""
    cupy = importlib.import_module("cupy")
    module = cupy.RawModule(code=harness.source(case), options=texts.options(case.defines), backend="nvrtc")
    there = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
    module.get_function(case.kernel)((case.grid,), (case.block,), there, shared_mem=case.shared_bytes)
    for array, result in zip(arguments, there, strict=True):
        if isinstance(array, np.ndarray):
            array[...] = result.get()


@pytest.mark.parametrize("name", harness.CASES)
def test_small_kernels_are_right_on_cupy(name, cupy):
    if name.startswith(CLUSTERS) and int(cupy.cuda.Device().compute_capability) < sizes.CLUSTERS_FROM:
        pytest.skip("clusters and bulk copies need compute capability 9.0")
    for _ in range(20):  # each time in another order
        assert harness.is_right(harness.CASES[name], on_gpu)


@pytest.mark.parametrize("classes", [50_260, 128_256])
def test_long_rows_are_the_same_again_and_again_on_cupy(cupy, classes):
    """With a ring, each cluster has more rows than the ring holds, and some of them are not read."""
    rng = np.random.default_rng(classes)
    few, again = 7, 60
    z, y = rng.normal(size=(few, classes)).astype("f4") * 5, rng.integers(classes, size=few)
    w = rng.uniform(0.5, 2, few).astype("f4")
    w[3] = 0
    exact = oracle.softmax_loss(z, y, sample_weight=w, reduction="none")
    many = (cupy.asarray(np.concatenate([array] * again)) for array in (z, y, w))
    logits, labels, weights = many
    for _ in range(3):
        losses = xs.softmax_loss(logits, labels, sample_weight=weights, reduction="none").get()
        _, grad = xs.softmax_loss_and_grad(logits, labels, sample_weight=weights, reduction="sum")
        grad = grad.get()
        assert_within(losses[:few], exact.loss.value, bound=exact.loss.bound, where=exact.loss.where)
        assert_within(grad[:few], exact.grad.value, bound=exact.grad.bound, where=exact.grad.where)
        assert_same_bits(losses, np.concatenate([losses[:few]] * again))
        assert_same_bits(grad, np.concatenate([grad[:few]] * again))


def test_exp2_approx_is_off_by_at_most_two_ulp_on_cupy():
    a, b = harness.some_floats()
    powers = harness.elementary(a, b, on_gpu)["powers"]
    with np.errstate(over="ignore", under="ignore"):
        exact = np.exp2(a.astype("f8")).astype("f4")
    normal = (np.abs(a) >= 2.0**-126) & np.isfinite(exact) & (exact >= 2.0**-126 * (1 + 2.0**-20))
    assert np.abs(powers.view("i4") - exact.view("i4"))[normal].max() <= 2
    assert (powers[np.abs(a) < 2.0**-126] == 1).all()
    assert (powers[exact < 2.0**-126] == 0).all()
    np.testing.assert_array_equal(np.isnan(powers), np.isnan(a))


@pytest.mark.parametrize("name", ["larger", "halves", "bfloats", "larger_halves", "larger_bfloats", "pairs"])
def test_elementary_functions_have_the_bits_of_the_cpu_on_cupy(name, cupy):
    if cpu.unusable() is not None:
        pytest.skip(f"CUDA cannot be run on this CPU: {cpu.unusable()}")
    if int(cupy.cuda.Device().compute_capability) < 80:
        pytest.skip("a nan has other bits below compute capability 8.0")
    a, b = harness.some_floats()
    here, there = harness.elementary(a, b), harness.elementary(a, b, on_gpu)
    bits = f"u{here[name].itemsize}"
    np.testing.assert_array_equal(here[name].view(bits), there[name].view(bits))
