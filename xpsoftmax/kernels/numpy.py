"""Row operations on NumPy arrays: blocks of rows that stay in the cache, written into the output, shared by threads.

exp(z) is computed without a shift first, straight into the output: one pass less, and no rounding of z - max(z). The
sums of the row then tell whether that was safe; a row for which it was not is done again with a shift. That is decided
for each row by itself, and all that is done to a row is elementwise or a sum over a C-contiguous row: its bits depend
neither on its neighbours nor on blocks and threads. Vectors with one entry a row are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from xpsoftmax._threads import allowed, share
from xpsoftmax._typing import Array, LossSpec
from xpsoftmax.kernels import generic

BLOCK = 2**20
"""Bytes of a block of rows at most. Measured on two CPUs: 0.5 to 2 MiB are alike, less costs calls."""
SHARE = 3 * 2**17
"""Bytes that a thread must have to do: waking one takes about a tenth of a millisecond."""
SCRATCH = 2**22
"""Bytes of scratch that all threads hold together, as far as single rows allow."""
COLUMNS = 1024
"""Columns that einsum sums at once: its error grows with them (5 eps here), and beyond 8192 neighbours matter."""
FEW = 64
"""Classes up to which reductions of each row are faster along the other axis."""

# A row whose exponentials add up to less than 1 or more than LARGEST is shifted: entries of the result that are normal
# numbers could come from subnormal ones, or overflow. Both parts of the sum must be far above subnormal terms.
LARGEST = {"float32": float(np.exp(40.0)), "float64": float(np.exp(300.0))}
LEAST = {"float32": 1e-30, "float64": 1e-290}
TINY = {"float32": 2.0**-126, "float64": 2.0**-1022}

Rows: TypeAlias = slice


# --- the operations ---------------------------------------------------------------------------------------------------


def softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.softmax`."""

    def compute(rows: Rows, e: Array) -> None:
        z = logits[rows]
        _exp(z, e)
        total = _row_sums(e)
        np.multiply(e, (1.0 / total).astype(e.dtype)[:, None], out=e)
        shift = _outside(total, 1.0, LARGEST[e.dtype.name])
        if shift is not None:
            again = _gathered(z, shift, e.dtype)
            _softmax_shifted(again)
            e[shift] = again

    result = np.empty(logits.shape, logits.dtype) if out is None else out
    _each_block(compute, logits, result)
    return result


def log_softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.log_softmax`."""
    _, classes = logits.shape

    def compute(rows: Rows, t: Array, e: Array | None = None) -> None:
        z = logits[rows]
        if classes <= FEW:
            z = np.array(z.T, t.dtype, order="C").T  # rows of the transpose are long
            top, loss = _largest(z, z, np.empty_like(z))
            np.subtract(z, loss.astype(t.dtype)[:, None], out=t)
        else:
            top, loss = _largest(_working(z, t), t, e)
            np.subtract(t, loss.astype(t.dtype)[:, None], out=t)
        t[~np.isfinite(top)] = np.nan

    result = np.empty(logits.shape, logits.dtype) if out is None else out
    _each_block(compute, logits, result, spare=classes > FEW, twice=False)
    return result


def logsumexp_rows(logits: Array) -> Array:
    """See `xpsoftmax.logsumexp`."""
    result = np.empty(logits.shape[0], logits.dtype)

    def compute(rows: Rows, e: Array) -> None:
        z = logits[rows]
        _exp(z, e)
        total = _row_sums(e)
        lse = np.log(total)
        shift = _outside(total, np.e, LARGEST[e.dtype.name])  # near 1 the log would lose what the sum has rounded away
        if shift is not None:
            again = _gathered(z, shift, e.dtype)
            top, loss = _largest(again, again, np.empty_like(again))
            # An infinity is the sum itself: log(0) = -inf, log(inf) = inf.
            lse[shift] = np.where(np.isfinite(top), top + loss, top)
        result[rows] = lse

    _each_block(compute, logits, None)
    return result


def softmax_loss_rows(
    logits: Array, targets: Array, row_weight: Array, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.softmax_loss_rows`."""
    losses = np.empty(logits.shape[0], row_weight.dtype)
    result = (np.empty(logits.shape, logits.dtype) if out is None else out) if grad else None
    if targets.ndim == 2 or spec.label_smoothing != 0.0:
        _loss_in_general(logits, targets, row_weight, spec, losses, result)
    else:
        _loss_of_labels(logits, targets, row_weight, spec, losses, result)
    return losses, result


def _loss_of_labels(
    logits: Array, labels: Array, row_weight: Array, spec: LossSpec, losses: Array, result: Array | None
) -> None:
    classes, z_loss = logits.shape[1], spec.z_loss
    labels, weight = _safe(labels, row_weight.astype("f8"), classes)

    def compute(rows: Rows, e: Array) -> None:
        z, w = logits[rows], weight[rows]
        flat, hot_at = e.reshape(-1), labels[rows] + np.arange(0, e.size, classes)
        _exp(z, e)
        hot = flat[hot_at].astype("f8")
        flat[hot_at] = 0.0
        rest = _row_sums(e)
        total = rest + hot
        factor = w / total
        loss = np.log1p(rest / hot)
        if z_loss == 0.0:
            shift = _outside_of_loss(e.dtype.name, 1.0, total, rest, hot, factor, w)
            dz_hot = 0.0 - rest * factor  # +0 where the weight is
        else:
            shift = _outside_of_loss(e.dtype.name, np.e, total, rest, hot, factor, w)
            lse = np.log(total)
            slope = (2.0 * z_loss) * lse
            loss += 0.5 * slope * lse
            dz_hot = (slope * hot - rest) * factor + 0.0
            factor *= 1.0 + slope
        loss *= w
        if result is not None:
            np.multiply(e, factor.astype(e.dtype)[:, None], out=e)
            flat[hot_at] = dz_hot
        if shift is not None:
            again = _gathered(z, shift, e.dtype)
            if z_loss == 0.0:
                loss[shift] = _loss_shifted(again, labels[rows][shift], w[shift])
            else:
                y, w = labels[rows][shift], w[shift].astype(e.dtype)
                loss[shift], _ = generic.softmax_loss_rows(again, y, w, spec, grad=True, out=again)
            if result is not None:
                e[shift] = again
        losses[rows] = loss

    _each_block(compute, logits, result)


def _loss_in_general(
    logits: Array, targets: Array, row_weight: Array, spec: LossSpec, losses: Array, result: Array | None
) -> None:
    """Soft targets and label smoothing: the generic text, on blocks that stay in the cache."""

    def compute(rows: Rows) -> None:
        target = None if result is None else result[rows]
        losses[rows], _ = generic.softmax_loss_rows(
            logits[rows], targets[rows], row_weight[rows], spec, grad=result is not None, out=target
        )

    _each_block(compute, logits, None, here=False)


def _safe(labels: Array, weight: Array, classes: int) -> tuple[Array, Array]:
    """Labels that are classes: a row with another one gets the label 0, and the weight nan if it counts."""
    unsigned = labels.view("u8")  # negative ones are huge
    if labels.size == 0 or unsigned[unsigned.argmax()] < classes:
        return labels, weight
    bad = unsigned >= classes
    return np.where(bad, 0, labels), np.where(bad & (weight != 0.0), np.nan, weight)


# --- rows that need a shift -------------------------------------------------------------------------------------------


def _outside(total: Array, least: float, largest: float) -> Array | None:
    """Which sums are not from `least` to `largest`, nan included; None if all are."""
    if total[total.argmin()] >= least and total[total.argmax()] <= largest:
        return None
    return np.flatnonzero(~((total >= least) & (total <= largest)))


def _outside_of_loss(
    dtype: str, least: float, total: Array, rest: Array, hot: Array, factor: Array, weight: Array
) -> Array | None:
    """Which rows of a loss have sums, or a factor, that need a shift; None if no row has."""
    largest, part, tiny = LARGEST[dtype], LEAST[dtype], TINY[dtype]
    # Five look-ups for what takes the masks ten passes: with few rows the calls are what costs.
    if (
        total[total.argmin()] >= least
        and total[total.argmax()] <= largest
        and rest[rest.argmin()] >= part
        and hot[hot.argmin()] >= part
        and factor[factor.argmin()] >= tiny
    ):
        return None
    safe = (total >= least) & (total <= largest) & (rest >= part) & (hot >= part)
    safe &= (factor >= tiny) | (weight == 0.0)
    return None if safe.all() else np.flatnonzero(~safe)


def _softmax_shifted(z: Array) -> None:
    """Replace rows of logits by their softmax."""
    top = _row_max(z)
    np.subtract(z, top[:, None], out=z)
    np.exp(z, out=z)
    np.multiply(z, (1.0 / _row_sums(z)).astype(z.dtype)[:, None], out=z)
    z[~np.isfinite(top)] = np.nan


def _largest(z: Array, t: Array, e: Array) -> tuple[Array, Array]:
    """Largest logit of each row and -log of its probability; z minus the former in `t`, which may be z; `e` is scratch.

    Short rows have to come as the transpose of a C-contiguous array, long ones C-contiguous.
    """
    if z.shape[1] <= FEW:
        top = z.T.max(axis=0)
        np.subtract(z, top[:, None], out=t)
        np.exp(t, out=e)
        largest = t == 0.0
        np.copyto(e, 0.0, where=largest)
        # All but one of the largest are others.
        rest = generic.row_sum(np, e).astype("f8") + (np.count_nonzero(largest, axis=1) - 1)
    else:
        at = z.argmax(axis=1) + np.arange(0, z.size, z.shape[1])
        top = z.reshape(-1)[at]
        np.subtract(z, top[:, None], out=t)
        np.exp(t, out=e)
        e.reshape(-1)[at] = 0.0
        rest = _row_sums(e)
    return top, np.log1p(rest)


def _loss_shifted(z: Array, labels: Array, weight: Array) -> Array:
    """Replace rows of logits by the gradient of their losses, which are returned; see `generic._against`."""
    flat, hot_at = z.reshape(-1), labels + np.arange(0, z.size, z.shape[1])
    hot = flat[hot_at].astype("f8")
    flat[hot_at] = -np.inf
    top = _row_max(z)
    top = np.where(top == -np.inf, hot.astype(z.dtype), top)  # no other class is possible: nothing to shift
    np.subtract(z, top[:, None], out=z)
    np.exp(z, out=z)
    rest = _row_sums(z)

    top = top.astype("f8")
    behind = top - hot
    back = behind - top
    lost = (top - (behind - back)) - (hot + back)  # by D. E. Knuth's TwoSum
    lost[~np.isfinite(behind)] = 0.0
    lead, lost_lead = np.minimum(behind, 0.0), np.where(behind < 0.0, lost, 0.0)
    scale, half = np.exp(lead) * (1.0 + lost_lead), np.exp(0.5 * lead) * (1.0 + 0.5 * lost_lead)
    rest = np.where(scale >= TINY["float64"], scale * rest, half * rest * half)
    e_hot = np.where(behind > 0.0, np.exp(-np.abs(behind)) * (1.0 - lost), 1.0)
    total = rest + e_hot
    loss = np.where(behind > 0.0, (np.log(total) + lost) + behind, np.log1p(rest)) * weight
    np.multiply(z, (scale / total * weight).astype(z.dtype)[:, None], out=z)
    flat[hot_at] = -(rest / total) * weight

    counts = weight != 0.0
    numbers = np.isfinite(top) & (hot < np.inf)
    for rows, value in ((counts & ~numbers, np.nan), (~counts, 0.0)):
        if rows.any():
            z[rows], loss[rows] = value, value
    return loss


# --- rows of a C-contiguous block -------------------------------------------------------------------------------------


def _working(z: Array, buffer: Array) -> Array:
    """Logits as a C-contiguous block in the working precision: themselves or copied to `buffer`."""
    if z.dtype == buffer.dtype and z.flags.c_contiguous and z.flags.aligned:
        return z
    np.copyto(buffer, z)
    return buffer


def _exp(z: Array, e: Array) -> None:
    np.exp(_working(z, e), out=e)


def _gathered(z: Array, rows: Array, dtype: np.dtype[Any]) -> Array:
    """Copy of some rows, C-contiguous in the working precision."""
    result = np.empty((rows.size, z.shape[1]), dtype)
    result[...] = z if rows.size == z.shape[0] else z[rows]
    return result


def _row_sums(e: Array) -> Array:
    """Sum of each row, float64."""
    rows, columns = e.shape
    if columns <= COLUMNS:
        return np.einsum("ij->i", e).astype("f8", copy=False)
    chunks = columns // COLUMNS
    whole = np.einsum("ijk->ij", e[:, : chunks * COLUMNS].reshape(rows, chunks, COLUMNS))
    left_over = np.einsum("ij->i", e[:, chunks * COLUMNS :])
    return generic.row_sum(np, whole.astype("f8", copy=False)) + left_over


def _row_max(z: Array) -> Array:
    if z.shape[1] <= FEW:
        return np.ascontiguousarray(z.T).max(axis=0)
    return z.max(axis=1)


# --- blocks and threads -----------------------------------------------------------------------------------------------


def _each_block(
    compute: Callable[..., None],
    logits: Array,
    result: Array | None,
    *,
    here: bool = True,
    spare: bool = False,
    twice: bool = True,
) -> None:
    """Call `compute` for blocks of rows that together cover all, in several threads if that pays.

    It gets the rows, with `here` a C-contiguous block in the working precision for what `result` is to hold of them, and
    with `spare` another one for its own use. The block is part of the result where that can be; with `twice` not where
    that overwrites logits, which then may be read again.
    """
    dtype = np.dtype("f4") if logits.dtype == np.float16 else logits.dtype
    direct = (
        result is not None
        and result.dtype == dtype
        and result.flags.carray
        and not (twice and np.may_share_memory(logits, result))
    )
    rows, columns = logits.shape

    def worker(blocks: Iterator[Rows]) -> None:
        buffers: list[Array] = []
        with np.errstate():  # restores the buffer size
            if 128 <= columns < 8192:
                np.setbufsize(16)  # NumPy then does not copy the column in block * column
            for block in blocks:
                count = block.stop - block.start
                if not buffers or buffers[0].shape[0] < count:
                    buffers = [np.empty((count, columns), dtype) for _ in range(here * (not direct) + spare)]
                arrays = [buffer[:count] for buffer in buffers]
                if direct and here:
                    arrays.insert(0, result[block])
                compute(block, *arrays)
                if result is not None and here and not direct:
                    result[block] = arrays[0]

    size = rows * columns * dtype.itemsize
    threads = min(rows, size // SHARE)
    if threads > 1:
        threads = min(threads, allowed())
    if threads > 1:
        block = min(BLOCK, SCRATCH // threads)
        share(worker, _slices(rows, threads * -(-size // (threads * block))), threads)
    else:
        worker(iter(_slices(rows, -(-2 * size // BLOCK))))  # one core has half the cache


def _slices(rows: int, count: int) -> list[Rows]:
    """Cut rows into about `count` equal parts."""
    step = max(1, -(-rows // max(1, count)))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
