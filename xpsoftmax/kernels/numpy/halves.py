"""float32 rounded to float16: the bits of NumPy's conversion, faster.

NumPy converts number by number, and raises a flag of the processor for each that is rounded to a subnormal number. This
takes a hundred nanoseconds, for most of the probabilities of 1000 classes.
"""

from __future__ import annotations

import numpy as np

from xpsoftmax._typing import Array

# Bits of float32, as integers.
_SIZE = np.uint32(0x7FFFFFFF)  # all but the sign
_SMALLEST_NORMAL = np.uint32(113 << 23)  # 2**-14, of float16
_OVERFLOW = np.uint32(143 << 23)  # 2**16; from 65520 on, rounding ends in the bits of infinity by itself
_INFINITY = np.uint32(255 << 23)
_HALF = np.uint32(126 << 23)  # 0.5
_REBIASED = np.uint32((112 << 23) - 0xFFF)  # the difference of the exponents, less a bit under half a unit
_DROPPED = np.uint32(13)  # bits that float16 does not have
PART = 2**15
"""Numbers that are converted at a time: their temporary arrays stay in the cache."""


def to_half(x: Array, out: Array) -> None:
    """Write float32 numbers `x` (R, C) to the float16 array `out`, rounded to the nearest, ties to even."""
    step = max(1, PART // x.shape[1])
    for start in range(0, x.shape[0], step):
        part = slice(start, start + step)
        np.copyto(out[part].view(np.uint16), _bits_of_half(x[part].view(np.uint32)), casting="unsafe")


def _bits_of_half(bits: Array) -> Array:
    """The bits of float16 numbers, from those of float32 numbers.

    After F. Giesen, "float->half variants": a normal number gets another exponent, and what is added to it carries
    where it has to be rounded up. Adding 0.5 to a smaller one moves its digits to the end, and rounds them.
    """
    size = bits & _SIZE
    half = size >> _DROPPED
    half &= np.uint32(1)
    half += size
    half -= _REBIASED
    half >>= _DROPPED
    small = size < _SMALLEST_NORMAL
    sums = size.view(np.float32) + _HALF.view(np.float32)
    digits = sums.view(np.uint32)
    digits -= _HALF
    # Bitwise, since choosing by a mask takes three times as long.
    digits ^= half
    digits &= np.negative(small.astype(np.uint32))
    half ^= digits
    if size.size and size.max() >= _OVERFLOW:
        large = size >= _OVERFLOW
        half[large] = np.where(size[large] > _INFINITY, np.uint32(0x7E00), np.uint32(0x7C00))
    signs = bits >> np.uint32(16)
    signs &= np.uint32(0x8000)
    half |= signs
    return half
