"""The checks of options that are not arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np


def as_integer(name: str, value: object, low: int | None = None) -> int:
    """Check for an integer (not a bool), at least `low`."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value}.")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}.") from None
    if low is not None and number < low:
        raise ValueError(f"{name} must be at least {low}, got {number}.")
    return number


def as_number(name: str, value: object, low: float = 0.0, high: float = math.inf, *, below: float = math.inf) -> float:
    """Check for a finite real number in [low, high] that is less than `below`."""
    if type(value) is not float and (not isinstance(value, Real) or isinstance(value, (bool, np.bool_))):
        raise TypeError(f"{name} must be a real number, got {value!r}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (low <= number <= high and number < below):
        rule = f"from {low:g} to {high:g}" if math.isfinite(high) else f"finite and at least {low:g}"
        if math.isfinite(below):
            rule = f"at least {low:g} and below {below:g}"
        raise ValueError(f"{name} must be {rule}, got {number!r}.")
    return number


def check_flag(name: str, value: object) -> None:
    """Check for True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}.")


def as_generator(name: str, rng: Any) -> np.random.Generator:
    """Make a random generator from a seed or generator (SPEC 7)."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} must be what numpy.random.default_rng takes, got {rng!r}.") from None


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check for one of the words in `choices`."""
    if not isinstance(value, str) or value not in choices:
        words = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be one of {words}, got {value!r}.")


def check_impl(impl: object) -> None:
    """Check the `impl` keyword."""
    check_choice("impl", impl, ("auto", "generic", "kernel"))
