"""The rounding error of a difference, for arrays of every library: the one error-free transformation of the package."""

from __future__ import annotations

from xpsoftmax._typing import Array


def difference_error(a: Array, b: Array, difference: Array) -> Array:
    """Return what rounding took from `difference`, which is a - b as computed: a - b = difference + error, exactly.

    D. E. Knuth's TwoSum; it needs no order of the sizes of a and b. It is nan where a or b is not finite.
    """
    back = difference - a
    return (a - (difference - back)) - (b + back)
