"""Arithmetic on rows (R, C) that gives the same bits in every library: sums and maxima by halving, casts, masks."""

from __future__ import annotations

from array_api_compat import array_namespace, device

from xpsoftmax._typing import SIXTEEN_BIT, Array, DType, Namespace, dtype_name

NAN = float("nan")
INF = float("inf")


def row_sum(xp: Namespace, x: Array) -> Array:  # noqa: ARG001
    """Sum of each row of x (R, C) by halving: log2(C) elementwise additions.

    The additions and their order are the same in every library and for every memory layout, and the sum is as accurate
    as pairwise summation. The bits of a row's sum depend on nothing but the row.
    """
    odd: Array | None = None  # sum of the entries left over where a length is odd, at most log2(C) of them
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        if x.shape[1] % 2:
            odd = x[:, -1] if odd is None else odd + x[:, -1]
        x = x[:, :half] + x[:, half : 2 * half]
    return x[:, 0] if odd is None else x[:, 0] + odd


def row_max(xp: Namespace, x: Array) -> Array:
    """Largest entry of each row of x (R, C), nan if one is nan; by halving, as `row_sum`.

    The libraries' own maxima differ where it matters: dask's fails on an empty block, CuPy's has failed on infinities.
    """
    columns = x.shape[1]
    while columns > 1:
        half = (columns + 1) // 2
        x = xp.maximum(x[:, :half], x[:, columns - half : columns])  # with an odd length, the middle entry counts twice
        columns = half
    return x[:, 0]


def finite_row_max(xp: Namespace, z: Array) -> tuple[Array, Array]:
    """Largest logit of each row, or 0 if it is not finite; and the mask of the rows where it is not finite.

    Those rows are undefined: they hold a nan or +inf, or nothing but -inf.
    """
    top = row_max(xp, z)
    undefined = ~xp.isfinite(top)
    return xp.where(undefined, 0.0, top), undefined


def one_hot(xp: Namespace, z: Array, labels: Array) -> Array:
    """Mask (R, C) of one class for each row; all false where the label is no class."""
    return xp.arange(z.shape[1], dtype=labels.dtype, device=device(z))[None, :] == labels[:, None]


def as_working(logits: Array) -> tuple[Namespace, Array]:
    """The namespace, and the logits in the working precision: float32 for 16-bit logits."""
    xp = array_namespace(logits)
    dtype = xp.float32 if dtype_name(logits.dtype) in SIXTEEN_BIT else logits.dtype
    return xp, xp.astype(logits, dtype, copy=False)


def delivered(xp: Namespace, result: Array, dtype: DType, out: Array | None) -> Array:
    """Return the result in a dtype, or write it to `out` in that of `out`."""
    if out is None:
        return narrowed(xp, result, dtype)
    out[...] = narrowed(xp, result, out.dtype)
    return out


def narrowed(xp: Namespace, x: Array, dtype: DType) -> Array:
    """Round to a dtype.

    Numbers too large for float16 become infinite before the cast: a cast of them would warn in the threads of dask.
    """
    if dtype_name(dtype) == "float16" and dtype != x.dtype:
        x = xp.where(x >= 65520.0, INF, xp.where(x <= -65520.0, -INF, x))
    return xp.astype(x, dtype, copy=False)
