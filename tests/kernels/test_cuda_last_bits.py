"""The contract holds on a GPU's own exp, too: here it is as much worse than the CPU's as CUDA says it may be.

With --kernels only (nox -s kernels). CUDA documents at most 2 ulp for ex2.approx and 1 for exp, from the number rounded
correctly. The last bits that a GPU gives cannot be had on a CPU: every result is moved to its next neighbour, or to the
one after that. Random rows, many of them with one class far ahead.
"""

from __future__ import annotations

import cuda_on_cpu as cpu
import numpy as np
import pytest
import test_kernels_cuda as kernels

from xpsoftmax.kernels.cuda import sizes

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(cpu.unusable() is not None, reason=f"CUDA cannot be run on this CPU: {cpu.unusable()}"),
]

# Up or down by a bit of a product of the argument's bits; exp(0) = 1 is exact everywhere.
WORSE = {
    "float32": (
        "const float p = x * log2_e, e = exp2_approx(p);",
        """const float p = x * log2_e, exact = exp2_approx(p);
           const bool down = __float_as_uint(x) * 2654435761u >> 31;
           const float end = down ? 0.f : 2 * exact;
           const bool stays = x == 0 || !(exact > 0x1p-125f && exact < 0x1p126f);
           const float e = stays ? exact : std::nextafter(std::nextafter(exact, end), end);""",
    ),
    "float64": (
        "DEVICE double exponential_below(double x) { return exp(x); }",
        """DEVICE double exponential_below(double x) {
            const double e = exp(x);
            const bool down = on_cpu::same_bits<Word>(x) * 11400714819323198485ull >> 63;
            return x == 0 || !(e > 0x1p-1022 && e < 0x1p1022) ? e : std::nextafter(e, down ? 0. : 2 * e);
        }""",
    ),
}
LARGEST_GAP = {"float32": 110, "float64": 760}  # beyond, all probabilities but one are subnormal


def rows(rng: np.random.Generator, classes: int, dtype: str) -> np.ndarray:
    """Rows of random spread, some with one class far ahead of the others or behind them."""
    z = rng.normal(size=(16, classes)) * rng.choice([0.1, 1, 10, 30, 80, 200])
    shape = rng.integers(3)
    if shape:
        gap = rng.uniform(0, LARGEST_GAP[dtype], 16)
        z[np.arange(16), rng.integers(classes, size=16)] += gap if shape == 1 else -gap
    return (z + rng.choice([0, 0, 100, -1e4, 1e4])).astype(dtype)


@pytest.mark.parametrize(
    "kind",
    [sizes.SizeClass(4, 2), sizes.SizeClass(32, 4), sizes.SizeClass(128, 4), sizes.STREAMED],
    ids=["4 lanes", "a warp", "a block", "streamed"],
)
@pytest.mark.parametrize("dtype", WORSE)
def test_the_last_bit_of_exp_may_be_wrong(rng, dtype, kind, record_property):
    entries: list[int] = []
    for _ in range(30):
        most = (kind.capacity or 2**11) * sizes.VECTOR // sizes.ITEMSIZES[dtype]
        z = rows(rng, int(rng.integers(1, most + 1)), dtype)
        y = np.where(rng.random(16) < 0.6, z.argmax(axis=1), rng.integers(z.shape[1], size=16))
        weights = (rng.uniform(0.5, 2, 16) * 10.0 ** rng.choice([0, -5, 5])).astype(dtype)
        exact = kernels.oracle.softmax_loss(z, y, sample_weight=weights, reduction="none")
        losses, grad = kernels.loss(z, dtype, y, weights, kind=kind, change=WORSE[dtype])
        kernels.within(losses, exact.loss, 0, entries)
        kernels.within(grad, exact.grad, 1, entries)
    assert sum(entries) > 30 * 16
    record_property("compared", sum(entries))


@pytest.mark.parametrize("dtype", WORSE)
def test_the_last_bit_is_wrong_there(dtype):
    """So that the test above is about something: the change reaches the results."""
    z = np.random.default_rng(0).normal(size=(4, 50)).astype(dtype)
    y = np.zeros(4, "i8")
    assert (kernels.loss(z, dtype, y)[1] != kernels.loss(z, dtype, y, change=WORSE[dtype])[1]).mean() > 0.5
