"""The inputs that the numerics contract names, and the assertion that a result keeps it."""

from __future__ import annotations

from typing import Any

import numpy as np
from assertions import TINY, assert_like, assert_within
from backends import Backend
from oracle import Exact

KINDS = ("scale-1", "scale-10", "scale-30", "scale-80", "equal", "ties", "up-1e4", "down-1e4", "minus-inf")
SOME = 10  # on every backend
MANY = 50257  # the vocabulary of GPT-2: odd, large, 17 halvings in a sum
CLASSES = (1, 2, 3, 1000, MANY)  # one class: nothing to choose; odd and even; three: where matmul loses its bits
# The other backends run the same text, and dask and JAX spend seconds on each new shape.
ON_ALL_CLASSES = ("numpy", "array_api_strict", "torch", "cupy")
BATCH = (4, 2, 4)  # ROWS[SOME] rows in three dimensions
ROWS = {1: 32, 2: 32, 3: 32, 10: 32, 1000: 8, MANY: 4}  # one shape per C: JAX compiles it once
LAYOUTS = ("c-order", "fortran", "strided", "reversed")

# exp(-76) / 50257 and exp(-697) / 50257 are normal numbers: what lies closer to the top must be compared.
SURELY_NORMAL = {"float32": 76, "float64": 697}


def logits(rng: np.random.Generator, kind: str, classes: int, dtype: str, rows: int | None = None) -> np.ndarray:
    """Logits (R, C) of one of KINDS."""
    rows = rows or ROWS[classes]
    name, _, size = kind.partition("-")
    z = rng.normal(size=(rows, classes)) * (float(size) if name == "scale" else 10)
    if name == "equal":
        z[:] = z[:, :1]
    if name == "ties":
        z = np.where(rng.permuted(np.arange(classes) < 2 + classes // 10 + z * 0, axis=1), z.max(axis=1)[:, None], z)
    if name in ("up", "down"):
        z = z + (1e4 if name == "up" else -1e4)
    if kind == "minus-inf":  # half of the classes, but not all
        hidden = rng.permuted(np.arange(classes) < classes // 2 + z * 0, axis=1)
        z = np.where(hidden, -np.inf, z)
    return z.astype(dtype)


def far_apart(rng: np.random.Generator, classes: int, dtype: str, *, ahead: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logits (R, C), and the class (R,) of each row that is far ahead of the others, or far behind them.

    The others' probabilities, or its own, are subnormal; times 10**6 they are normal numbers.
    """
    z = rng.normal(size=(ROWS[10], classes))
    hot = rng.integers(classes, size=len(z))
    z[np.arange(len(z)), hot] += rng.uniform(*SUBNORMAL[dtype], len(z)) * (1 if ahead else -1)
    return (z + 300).astype(dtype), hot


SUBNORMAL = {"float32": (89, 98), "float64": (710, 718)}  # exp of minus these is, and 10**6 times it is not


def labels(rng: np.random.Generator, z: np.ndarray) -> np.ndarray:
    """Labels (R,), every other one at the largest logit."""
    some = rng.integers(z.shape[1], size=z.shape[0])
    return np.where(np.arange(z.shape[0]) % 2 == 0, z.argmax(axis=1), some)


def near_the_top(z: np.ndarray, entries: Any = slice(None)) -> int:
    """How many entries are so close to the largest of their row that their probability is a normal number."""
    return int((z.max(axis=1)[:, None] - z < SURELY_NORMAL[z.dtype.name])[:, entries].sum())


def sure_rows(z: np.ndarray) -> int:
    """In how many rows one class leads so far that the sum of the others may not be a normal number."""
    return int((np.ptp(np.sort(z, axis=1)[:, -2:], axis=1) >= SURELY_NORMAL[z.dtype.name]).sum())


def lay_out(backend: Backend, z: np.ndarray, layout: str) -> Any:
    """Put z (R, C) into memory in one of LAYOUTS, as far as the library has strides."""
    if layout == "fortran":
        return backend.xp.permute_dims(backend.asarray(np.ascontiguousarray(z.T)), (1, 0))
    if layout == "strided":
        return backend.asarray(np.repeat(z, 2, axis=1))[:, ::2]
    if layout == "reversed":
        return backend.xp.flip(backend.asarray(np.ascontiguousarray(z[::-1, ::-1])))
    return backend.asarray(z)


def from_rows(rows: np.ndarray, axis: int) -> np.ndarray:
    """Rows (R, C) as an array of three batch dimensions and the classes at `axis`."""
    return np.moveaxis(rows.reshape(*BATCH, rows.shape[1]), -1, axis)


def assert_contract(
    actual: Any,
    exact: Exact,
    *,
    backend: Backend,
    dtype: str,
    least: int,
    subnormal_terms: int = 0,
    impl: str = "generic",
) -> None:
    """`actual` keeps the bound of the contract in every entry it speaks of, and these are at least `least`.

    So many terms of an entry may be subnormal, and lost where the library flushes them.
    """
    assert_like(actual, backend=backend, dtype=dtype, shape=np.shape(exact.value))
    bound = exact.bound + (subnormal_terms * TINY[dtype] if backend.flushes(dtype, impl) else 0)
    compared = assert_within(backend.to_numpy(actual), exact.value, bound=bound, where=exact.where)
    assert compared >= max(least, 1), f"only {compared} entries were compared, not {least}"
