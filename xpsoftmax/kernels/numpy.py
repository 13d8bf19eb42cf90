"""Row operations on NumPy arrays: blocks of rows that stay in the cache, written into the output, shared by threads.

exp(z) is computed without a shift first, straight into the output: one pass less, and no rounding of z - max(z). The
sums of the row then tell whether that was safe; a row for which it was not is done again with a shift. That is decided
for each row by itself, and all that is done to a row is elementwise or a sum over a C-contiguous row: its bits depend
neither on its neighbours nor on blocks and threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias

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
CHUNK = 4096
"""Bytes of a row that einsum sums at once: up to here its error is below 10 eps, and neighbours do not matter."""
MANY = 2**16
"""Entries of a block from which it pays to look at its labels first."""
FEW = 64
"""Classes up to which reductions of each row are faster along the other axis."""


class _Range(NamedTuple):
    """Between which sizes a row's sums of exp(z), not shifted, give its result with all digits."""

    tiny: float  # the smallest normal number
    rest: float  # least sum of the others: so far above `tiny` that subnormal terms do not matter
    hot: float  # least exp(z) of the hot class: rest / hot must not overflow
    largest: float  # whole sum, which must also be at least 1: else a normal entry could come from a subnormal number


RANGES = {  # by the bytes of a number
    4: _Range(2.0**-126, 1e-30, 1e-20, float(np.exp(40.0))),
    8: _Range(2.0**-1022, 1e-290, 1e-170, float(np.exp(300.0))),
}

LEAST_SMOOTHING = 1e-6
"""Below, the terms of smoothing no longer cover what is lost of the smallest probabilities."""
LOWEST = np.nextafter(np.float32(np.log(RANGES[4].tiny)), np.float32(0))
"""The next number above the logarithm of the smallest normal float32."""

Rows: TypeAlias = slice


# --- the operations ---------------------------------------------------------------------------------------------------


def softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.softmax`."""

    def compute(rows: Rows, e: Array) -> None:
        z = logits[rows]
        _exp(z, e)
        total = _row_sums(e)
        _by_column(np.multiply, e, 1.0 / total, e)
        shift = _outside(total, 1.0, RANGES[e.itemsize].largest)
        if shift is not None:
            e[shift] = _softmax_with_shift(z[shift], np.empty((shift.size, z.shape[1]), e.dtype))

    result = np.empty(logits.shape, logits.dtype) if out is None else out
    _each_block(compute, logits, result)
    return result


def log_softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.log_softmax`."""

    def compute(rows: Rows, t: Array, e: Array) -> None:
        z = logits[rows]
        top, loss = _largest(z, t, e)
        _by_column(np.subtract, t, loss, t)
        t[~np.isfinite(top)] = np.nan

    result = np.empty(logits.shape, logits.dtype) if out is None else out
    _each_block(compute, logits, result, scratch=1)
    return result


def logsumexp_rows(logits: Array) -> Array:
    """See `xpsoftmax.logsumexp`."""
    result = np.empty(logits.shape[0], logits.dtype)

    def compute(rows: Rows, e: Array) -> None:
        z = logits[rows]
        _exp(z, e)
        total = _row_sums(e)
        lse = np.log(total.astype("f8", copy=False))
        # Near 1 the logarithm has no digits of what goes beyond 1.
        shift = _outside(total, np.e, RANGES[e.itemsize].largest)
        if shift is not None:
            if shift.size < e.shape[0]:
                z, e = z[shift], e[: shift.size]
            top, loss = _largest(z, e, e)
            # An infinity is the sum itself: log(0) = -inf, log(inf) = inf.
            lse[shift] = np.where(np.isfinite(top), top.astype(lse.dtype) + loss, top)
        result[rows] = lse

    _each_block(compute, logits, None, scratch=1)
    return result


def softmax_loss_rows(
    logits: Array, targets: Array, row_weight: Array, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.softmax_loss_rows`."""
    losses = np.empty(logits.shape[0], row_weight.dtype)
    result = (np.empty(logits.shape, logits.dtype) if out is None else out) if grad else None
    if targets.ndim == 2 or spec.label_smoothing != 0.0:
        _loss_of_masses(logits, targets, row_weight, spec, losses, result)
    else:
        _loss_of_labels(logits, targets, row_weight, spec, losses, result)
    return losses, result


def _loss_of_labels(
    logits: Array, labels: Array, row_weight: Array, spec: LossSpec, losses: Array, result: Array | None
) -> None:
    labels, row_weight = _safe(labels, row_weight, logits.shape[1])
    grad, z_loss = result is not None, spec.z_loss

    def compute(rows: Rows, e: Array) -> None:
        z, y, w = logits[rows], labels[rows], row_weight[rows]
        high = _surely_high(z, y) if e.size >= MANY and z_loss == 0.0 else None
        if high is None:
            losses[rows] = _loss_without_shift(z, e, y, w, z_loss, grad=grad)
            return
        # Most rows will need the shift: no use in trying without. The others get what they get elsewhere.
        loss = _loss_with_shift(z, e, y, w, grad=grad)
        others = np.flatnonzero(~high)
        if others.size:
            loss[others] = _again(_loss_without_shift, others, z, e, y, w, 0.0, grad=grad)
        losses[rows] = loss

    _each_block(compute, logits, result, scratch=0 if grad else 1)


def _loss_without_shift(z: Array, e: Array, labels: Array, weight: Array, z_loss: float, *, grad: bool) -> Array:
    """Losses of rows of logits; the gradient goes to `e`."""
    flat, hot_at = e.reshape(-1), np.arange(0, e.size, e.shape[1]) + labels
    _exp(z, e)
    hot = flat[hot_at]
    flat[hot_at] = 0.0
    rest = _row_sums(e)
    total = rest + hot
    factor = weight / total
    loss = np.log1p((rest / hot).astype("f8", copy=False))
    if z_loss == 0.0:
        unsafe = _outside_of_loss(total, rest, hot, factor, weight, least=1.0)
        dz_hot = 0.0 - rest * factor  # +0 where the weight is
    else:
        unsafe = _outside_of_loss(total, rest, hot, factor, weight, least=np.e)
        lse = np.log(total)
        slope = (2.0 * z_loss) * lse
        loss += 0.5 * slope * lse
        dz_hot = (slope * hot - rest) * factor + 0.0
        factor *= 1.0 + slope
    loss *= weight
    if grad:
        _by_column(np.multiply, e, factor, e)
        flat[hot_at] = dz_hot
    if unsafe is not None:
        if z_loss == 0.0:
            loss[unsafe] = _again(_loss_with_shift, unsafe, z, e, labels, weight, grad=grad)
        else:
            spec = LossSpec(z_loss=z_loss)
            loss[unsafe] = _again(_loss_with_care, unsafe, z, e, labels, weight, spec, grad=grad)
    return loss


def _loss_with_shift(z: Array, e: Array, labels: Array, weight: Array, *, grad: bool) -> Array:
    """The same, without z-loss, for rows of any kind: `generic._against` in few passes."""
    flat, hot_at = e.reshape(-1), np.arange(0, e.size, e.shape[1]) + labels
    np.copyto(e, z)
    hot = flat[hot_at].astype("f8", copy=False)
    flat[hot_at] = -np.inf
    top = _row_max(e)
    top = np.where(top == -np.inf, hot.astype(e.dtype), top)  # no other class is possible: nothing to shift
    flat[hot_at] = top
    _by_column(np.subtract, e, top, e)
    _exp_shifted(e, e)
    flat[hot_at] = 0.0
    rest = _row_sums(e).astype("f8", copy=False)

    top = top.astype("f8", copy=False)
    behind = top - hot  # negative where the hot class leads
    gap = np.exp(-np.abs(behind))
    leads = behind < 0.0
    lost: Any = 0.0
    if e.itemsize == 8:  # else the difference is exact enough
        back = behind - top
        lost = (top - (behind - back)) - (hot + back)  # by D. E. Knuth's TwoSum
        lost[~np.isfinite(behind)] = 0.0
        half = np.exp(-0.5 * np.abs(behind)) * (1.0 + 0.5 * lost)
        gap *= 1.0 + np.where(leads, lost, -lost)
        rest = np.where(leads, np.where(gap >= RANGES[8].tiny, gap * rest, half * rest * half), rest)
    else:
        rest = np.where(leads, gap * rest, rest)
    total = rest + np.where(behind > 0.0, gap, 1.0)
    # Behind: total is at least 1, and both terms are positive.
    loss = np.log1p(np.where(behind > 0.0, total - 1.0, rest)) + np.where(behind > 0.0, behind + lost, 0.0)
    loss *= weight
    if grad:
        factor = np.where(leads, gap, 1.0) / total * weight
        _by_column(np.multiply, e, factor.astype(e.dtype, copy=False), e)
        flat[hot_at] = 0.0 - rest / total * weight

    counts = weight != 0.0
    numbers = np.isfinite(top) & (hot < np.inf)
    for rows, value in ((counts & ~numbers, np.nan), (~counts, 0.0)):
        if rows.any():
            e[rows], loss[rows] = value, value
    return loss


def _again(
    compute: Callable[..., Array], rows: Array, z: Array, e: Array, labels: Array, weight: Array, *rest: Any, grad: bool
) -> Array:
    """Do some rows of a block anew."""
    if rows.size == e.shape[0]:
        return compute(z, e, labels, weight, *rest, grad=grad)
    part = np.empty((rows.size, e.shape[1]), e.dtype)
    loss = compute(z[rows], part, labels[rows], weight[rows], *rest, grad=grad)
    if grad:
        e[rows] = part
    return loss


def _loss_of_masses(
    logits: Array, targets: Array, row_weight: Array, spec: LossSpec, losses: Array, result: Array | None
) -> None:
    """Soft targets and label smoothing."""
    grad = result is not None
    if spec.z_loss != 0.0 or spec.class_weight is not None or 0.0 < spec.label_smoothing < LEAST_SMOOTHING:
        way: Callable[..., tuple[Array, Array]] | None = None
    elif targets.ndim == 1:
        way = partial(_loss_smoothed, smoothing=spec.label_smoothing)
        targets, row_weight = _safe(targets, row_weight, logits.shape[1])
    else:
        way = _loss_soft if spec.label_smoothing == 0.0 else None

    def compute(rows: Rows, e: Array, *scratch: Array) -> None:
        z, q, w = logits[rows], targets[rows], row_weight[rows]
        if way is None:
            losses[rows] = _loss_with_care(z, e, q, w, spec, grad=grad)
            return
        loss, safe = way(z, e, *scratch, q, w, grad=grad)
        if not safe.all():
            unsafe = np.flatnonzero(~safe)
            loss[unsafe] = _again(_loss_with_care, unsafe, z, e, q, w, spec, grad=grad)
        losses[rows] = loss

    scratch, held = (1, 4) if targets.ndim == 2 else (0, 1)
    _each_block(compute, logits, result, scratch=scratch + (not grad), held=8 if way is None else held)


def _loss_smoothed(
    z: Array, e: Array, labels: Array, weight: Array, *, smoothing: float, grad: bool
) -> tuple[Array, Array]:
    """Losses of rows of logits, and which of them are not safe; the gradient goes to `e`.

    Q = 1, q[j] = eps/C but at the label; sum of q[j] (log(total) - t[j]) from the sum of t, none of which is positive.
    """
    classes = e.shape[1]
    share = smoothing / classes
    block = _working(z, e)
    flat, hot_at = e.reshape(-1), np.arange(0, e.size, classes) + labels
    top = _row_max(block)
    behind = top.astype("f8") - block.reshape(-1)[hot_at]
    _by_column(np.subtract, block, top, e)
    away = -_row_sums(e).astype("f8", copy=False)
    _exp_shifted(e, e)
    hot = flat[hot_at]
    flat[hot_at] = 0.0
    rest = _row_sums(e)
    wide = rest.astype("f8", copy=False)
    log_total = np.where(behind == 0.0, np.log1p(wide), np.log(wide + hot))
    loss = (1.0 - smoothing) * (log_total + behind) + share * (classes * log_total + away)
    factor = weight / (rest + hot)
    if grad:
        _by_column(np.multiply, e, factor, e)
        _by_column(np.subtract, e, share * weight, e)
        q_hot, q_rest = 1.0 - smoothing + share, share * (classes - 1)
        flat[hot_at] = (q_rest * hot - q_hot * rest) * factor + 0.0
    return loss * weight, _counted_on(rest, factor, weight) & np.isfinite(loss)


def _loss_soft(z: Array, e: Array, q: Array, targets: Array, weight: Array, *, grad: bool) -> tuple[Array, Array]:
    """The same for soft targets; `q` is scratch."""
    flat, first = e.reshape(-1), np.arange(0, e.size, e.shape[1])
    np.copyto(q, targets)
    positive = q.min(axis=1) >= 0.0
    hot_at = first + q.argmax(axis=1)
    q_hot = q.reshape(-1)[hot_at]
    block = _working(z, e)
    top_at = first + block.argmax(axis=1)
    top = block.reshape(-1)[top_at]
    _by_column(np.subtract, block, top, e)
    away = -_row_sums(q, e).astype("f8", copy=False)
    q.reshape(-1)[hot_at] = 0.0
    q_rest = _row_sums(q)
    np.exp(e, out=e)
    flat[top_at] = 0.0
    rest = _row_sums(e)  # beside the largest
    flat[top_at] = 1.0
    loss = (q_rest + q_hot) * np.log1p(rest.astype("f8", copy=False)) + away
    total = rest + 1.0
    factor = weight / total
    if grad:
        hot = flat[hot_at]
        beside_hot = np.where(hot_at == top_at, rest, total - hot)  # a hot class that is not the largest is below half
        _by_column(np.multiply, e, (q_rest + q_hot) * factor, e)
        _by_column(np.multiply, q, weight, q)
        np.subtract(e, q, out=e)
        flat[hot_at] = (q_rest * hot - q_hot * beside_hot) * factor + 0.0
    # Targets of a sum above 1 make normal numbers of subnormal probabilities.
    safe = positive & (q_rest + q_hot <= 1.0 + 1e-4) & np.isfinite(loss) & _counted_on(rest, factor, weight)
    return loss * weight, safe


def _counted_on(rest: Array, factor: Array, weight: Array) -> Array:
    """Which shifted rows have no nan and all digits: the others so small that their digits are lost have not."""
    tiny, least_rest, _, _ = RANGES[rest.itemsize]
    return (rest >= least_rest) & ((factor >= tiny) | (weight == 0.0))


def _loss_with_care(z: Array, e: Array, targets: Array, weight: Array, spec: LossSpec, *, grad: bool) -> Array:
    """The same for rows and options of any kind, by the generic text."""
    loss, dz = generic.softmax_loss_rows(z.astype(e.dtype, copy=False), targets, weight, spec, grad=grad)
    if dz is not None:
        np.add(dz, 0.0, out=e)  # +0 where the weight is
    return loss


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
    total: Array, rest: Array, hot: Array, factor: Array, weight: Array, *, least: float
) -> Array | None:
    """Which rows of a loss have sums, or a factor, that need a shift; None if no row has."""
    tiny, least_rest, least_hot, largest = RANGES[total.itemsize]
    # Five look-ups for what takes the masks ten passes: with few rows the calls are what costs.
    if (
        total[total.argmin()] >= least
        and total[total.argmax()] <= largest
        and rest[rest.argmin()] >= least_rest
        and hot[hot.argmin()] >= least_hot
        and factor[factor.argmin()] >= tiny
    ):
        return None
    safe = (total >= least) & (total <= largest) & (rest >= least_rest) & (hot >= least_hot)
    safe &= (factor >= tiny) | (weight == 0.0)
    return None if safe.all() else np.flatnonzero(~safe)


def _surely_high(z: Array, labels: Array) -> Array | None:
    """Which rows have a sum above the range because the label's term alone is; None unless most have."""
    limit = np.log(RANGES[4 if z.dtype == np.float16 else z.itemsize].largest) + 1e-3  # more than exp may be wrong
    if not z[0, labels[0]] > limit:
        return None
    high = z[np.arange(z.shape[0]), labels] > limit
    return high if 2 * np.count_nonzero(high) > high.size else None


def _softmax_with_shift(z: Array, e: Array) -> Array:
    block = _working(z, e)
    top = _row_max(block)
    _by_column(np.subtract, block, top, e)
    _exp_shifted(e, e)
    _by_column(np.multiply, e, 1.0 / _row_sums(e), e)
    e[~np.isfinite(top)] = np.nan
    return e


def _largest(z: Array, t: Array, e: Array) -> tuple[Array, Array]:
    """Largest logit of each row and -log of its probability.

    z minus the former goes to `t`; `e` is scratch, and may be `t` if that is of no interest.
    """
    if z.shape[1] <= FEW:
        columns = np.array(z.T, t.dtype, order="C")  # its rows are long
        top = columns.max(axis=0)
        columns -= top
        np.copyto(t, columns.T)
        largest = columns == 0.0
        _exp_shifted(columns, columns)
        columns[largest] = 0.0
        # All of the largest but one are others.
        rest = generic.row_sum(np, columns.T) + (np.count_nonzero(largest, axis=0) - 1).astype(t.dtype)
    else:
        z_block = _working(z, t)
        at = z_block.argmax(axis=1) + np.arange(0, t.size, t.shape[1])
        top = z_block.reshape(-1)[at]
        _by_column(np.subtract, z_block, top, t)
        _exp_shifted(t, e)
        e.reshape(-1)[at] = 0.0
        rest = _row_sums(e)
    loss = np.log1p(rest.astype("f8", copy=False))
    faint = np.flatnonzero(rest < RANGES[rest.itemsize].hot)  # that far above what may have been set to 0
    if faint.size:
        loss[faint] = -generic.log_softmax_rows(z[faint].astype(rest.dtype, copy=False)).max(axis=1)
    return top, loss.astype(rest.dtype, copy=False)


# --- rows of a C-contiguous block -------------------------------------------------------------------------------------


def _working(z: Array, buffer: Array) -> Array:
    """Logits as a C-contiguous block in the working precision: themselves or copied to `buffer`."""
    if z.dtype == buffer.dtype and z.flags.c_contiguous and z.flags.aligned:
        return z
    np.copyto(buffer, z)
    return buffer


def _exp(z: Array, e: Array) -> None:
    np.exp(_working(z, e), out=e)


def _exp_shifted(t: Array, e: Array) -> None:
    """Exponentials of numbers that are not positive; 0 for subnormal ones: NumPy takes three times as long for them."""
    if e.itemsize == 8 or t.min() >= LOWEST:
        np.exp(t, out=e)
        return
    normal = t >= LOWEST
    np.maximum(t, LOWEST, out=e)
    np.exp(e, out=e)
    np.multiply(e, normal, out=e)


def _row_sums(*factors: Array) -> Array:
    """Sum of each row, or of each row of a product."""
    rows, columns = factors[0].shape
    width = CHUNK // factors[0].itemsize
    if columns <= width:
        return np.einsum(",".join(["ij"] * len(factors)) + "->i", *factors)
    chunks = columns // width
    whole = [x[:, : chunks * width].reshape(rows, chunks, width) for x in factors]
    sums = np.einsum(",".join(["ijk"] * len(factors)) + "->ij", *whole)
    return generic.row_sum(np, sums) + _row_sums(*(x[:, chunks * width :] for x in factors))


def _by_column(operation: np.ufunc, block: Array, column: Array, out: Array) -> None:
    """Combine each row of a block with its number."""
    if 128 <= block.shape[1] < 8192:
        with np.errstate():  # restores the buffer size; with the usual one NumPy copies the column again and again
            np.setbufsize(16)
            operation(block, column[:, None], out=out)
    else:
        operation(block, column[:, None], out=out)


def _row_max(z: Array) -> Array:
    if z.shape[1] <= FEW:
        return np.ascontiguousarray(z.T).max(axis=0)
    return z.max(axis=1)


# --- blocks and threads -----------------------------------------------------------------------------------------------


def _each_block(
    compute: Callable[..., None], logits: Array, result: Array | None, *, scratch: int = 0, held: int = 1
) -> None:
    """Call `compute` for blocks of rows that together cover all, in several threads if that pays.

    It gets the rows and C-contiguous blocks in the working precision: one for what `result` (if there is one) is to
    hold of these rows, and so many for its own use. The first is part of the result where it can be: not where it
    overwrites logits, which may be read again. `held` is how many such blocks `compute` needs in the cache.
    """
    dtype = np.dtype("f4") if logits.dtype == np.float16 else logits.dtype
    direct = (
        result is not None and result.dtype == dtype and result.flags.carray and not np.may_share_memory(logits, result)
    )
    rows, columns = logits.shape
    count = scratch + (result is not None and not direct)

    def worker(blocks: Iterator[Rows]) -> None:
        buffers: list[Array] = []
        for block in blocks:
            size = block.stop - block.start
            if not buffers or buffers[0].shape[0] < size:
                buffers = [np.empty((size, columns), dtype) for _ in range(count)]
            arrays = [buffer[:size] for buffer in buffers]
            if direct:
                compute(block, result[block], *arrays)  # type: ignore[index]
            else:
                compute(block, *arrays)
                if result is not None:
                    result[block] = arrays[0]

    size = rows * columns * dtype.itemsize
    threads = min(rows, size // SHARE)
    if threads > 1:
        threads = min(threads, allowed())
    if threads > 1:
        block = min(BLOCK, SCRATCH // threads) // held
        # At least two blocks a thread: one that wakes late does less.
        share(worker, _slices(rows, threads * max(2, -(-size // (threads * block)))), threads)
    else:
        worker(iter(_slices(rows, -(-2 * held * size // BLOCK))))  # one core has half the cache


def _slices(rows: int, count: int) -> list[Rows]:
    """Cut rows into about `count` equal parts."""
    step = max(1, -(-rows // max(1, count)))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
