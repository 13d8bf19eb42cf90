"""Rounding to float16: the bits of NumPy's own conversion."""

import numpy as np
import pytest
from assertions import assert_same_bits

import xpsoftmax as xs
from xpsoftmax.kernels.numpy import halves, tiles


def converted(x):
    out = np.full(x.shape, 7, np.float16)
    halves.to_half(x, out)
    return out


def by_numpy(x):
    with np.errstate(all="ignore"):
        return x.astype(np.float16)


def test_every_number_of_float16_and_what_is_around_the_middle_of_two():
    numbers = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float32)  # from 0 to infinity
    numbers[-1] = 65536.0  # where the next number would be
    middle = (numbers[1:] + numbers[:-1]) / 2
    around = [np.nextafter(middle, np.float32(to)) for to in (0, np.inf)]
    x = np.concatenate([numbers, middle, *around])
    x = np.concatenate([x, -x])[None]
    assert_same_bits(converted(x), by_numpy(x))


def test_numbers_of_every_size(rng):
    bits = rng.integers(2**32, size=(100, 10_007), dtype=np.uint32)  # more numbers than a part has
    x = bits.view(np.float32)
    known = ~np.isnan(x)
    with np.errstate(invalid="ignore"):
        half = converted(x)
    assert_same_bits(half[known], by_numpy(x)[known])
    assert np.isnan(half[~known]).all()
    assert (~known).sum() > 1000


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 2 * halves.PART), (70_000, 1)])
def test_shapes(rng, shape):
    x = rng.normal(size=shape).astype("f4")
    assert_same_bits(converted(x), by_numpy(x))


def test_every_layout_of_the_result(rng):
    x = rng.normal(size=(50, 40)).astype("f4")
    for out in (np.zeros((50, 80), "f2")[:, ::2], np.zeros((40, 50), "f2").T, np.zeros((50, 40), "f2")[::-1, ::-1]):
        tiles.deliver(x, out)
        assert_same_bits(np.ascontiguousarray(out), by_numpy(x))


def test_the_kernels_round_so(rng, monkeypatch):
    z = (5 * rng.normal(size=(30, 100))).astype(np.float16)
    desired = by_numpy(xs.softmax(z.astype(np.float32)))
    assert (desired < 2.0**-14).mean() > 0.3  # subnormal numbers of float16
    assert_same_bits(xs.softmax(z), desired)
    monkeypatch.setattr(tiles, "to_half", lambda tile, part: part.fill(7))
    assert (xs.softmax(z) == 7).all()
