"""Shapes. A library may not know all sizes yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def size_hint(*shapes: Sequence[Any]) -> str:
    """Return advice for a message if a size of a dask array is not known, else nothing."""
    if any(unknown(size) for shape in shapes for size in shape):
        return " Call compute_chunk_sizes() on dask arrays of unknown sizes first."
    return ""


def same_shape(shape: Sequence[Any], other: Sequence[Any]) -> bool:
    """Compare two shapes; sizes that a library does not know yet (nan, None) fit each other."""
    return len(shape) == len(other) and all(
        a == b or (unknown(a) and unknown(b)) for a, b in zip(shape, other, strict=True)
    )


def unknown(size: Any) -> bool:
    return size is None or size != size  # nan
