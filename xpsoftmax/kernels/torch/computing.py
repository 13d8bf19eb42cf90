"""The row operations on tensors, computed at once and without derivatives.

Tensors of 32 and 64 bits in host memory go through the kernels for NumPy as they are, those on a GPU through the CUDA
kernels. On the host NumPy has no bfloat16, and its conversions of float16 take longer than a loss: tensors of 16 bits
are converted by PyTorch, tile by tile, so that no copy of all logits is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import torch

from xpsoftmax._typing import SIXTEEN_BIT, Array, LossSpec, dtype_name
from xpsoftmax.kernels import generic, select
from xpsoftmax.kernels.memory import numpy_of
from xpsoftmax.kernels.numpy import softmax_loss_total
from xpsoftmax.kernels.numpy.threads import allowed, share
from xpsoftmax.kernels.numpy.tiles import SHARE, slices
from xpsoftmax.kernels.torch.modes import is_transformed, refusal
from xpsoftmax.kernels.torch.tensors import as_tensor, as_view, chunks, computing_context, view_of_out

TILE = 2**19
"""Most logits of a tile: 2 MiB in float32, and as much for their gradient."""


def map_rows(operation: str, logits: Array, out: Array | None = None) -> Array:
    """One of the operations that map logits (R, C) to an array, by its name."""
    if is_transformed() or refusal(logits) is not None:
        options = {} if out is None else {"out": out}
        return getattr(generic, operation)(logits, **options)
    with computing_context(logits):
        if is_narrow(logits):
            return _map_narrow_rows(operation, logits, out)
        z = as_view(logits)
        where = view_of_out(out, logits, z)
        kernel = select(operation, z, "kernel")
        return _delivered(kernel(z) if where is None else kernel(z, out=where), out, written=where is not None)


def loss_rows(
    logits: Array,
    targets: Array,
    row_weight: Array,
    class_weight: Array | None,
    label_smoothing: float,
    z_loss: float,
    grad: bool,  # noqa: FBT001 - as the operator has it
    *,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """The losses (R,) and the gradient (R, C); without `grad` the latter is empty."""
    if is_transformed() or refusal(logits) is not None:
        spec = LossSpec(class_weight, label_smoothing, z_loss)
        losses, dlogits = generic.softmax_loss_rows(logits, targets, row_weight, spec, grad=grad, out=out)
        return losses, logits.new_empty(0) if dlogits is None else dlogits
    with computing_context(logits):
        weights = None if class_weight is None else as_view(class_weight)
        spec = LossSpec(weights, label_smoothing, z_loss)
        of_rows = as_view(targets), as_view(row_weight)
        if is_narrow(logits):
            return _loss_of_narrow_rows(logits, *of_rows, spec, grad=grad, out=out)
        z = as_view(logits)
        where = view_of_out(out, logits, z)
        losses, dlogits = select("softmax_loss_rows", z, "kernel")(z, *of_rows, spec, grad=grad, out=where)
        if not grad:
            return as_tensor(losses), logits.new_empty(0)
        return as_tensor(losses), _delivered(dlogits, out, written=where is not None)


def mean_loss(logits: Array, labels: np.ndarray, *, grad: bool) -> tuple[Array, Array | None]:
    """The mean loss of labels that are known to be classes, and with `grad` its gradient.

    The logits are a plain tensor in host memory. This is the shortest way: at 64x10, checks take longer than the loss.
    """
    weight = 1.0 / labels.shape[0]
    with np.errstate(all="ignore"):
        if logits.dtype not in _WIDE:
            losses, narrow = _loss_of_narrow_rows(logits, labels, weight, _KNOWN, grad=grad, out=None)
            return losses.sum(), narrow if grad else None
        loss, dlogits = softmax_loss_total(numpy_of(logits.detach()), labels, weight, _KNOWN, grad=grad)
        return torch.from_numpy(loss), None if dlogits is None else torch.from_numpy(dlogits)


_KNOWN = LossSpec(labels_known=True)
_WIDE = frozenset({torch.float32, torch.float64})


def _delivered(result: Array, out: Array | None, *, written: bool) -> Array:
    if out is None:
        return as_tensor(result)
    if not written:
        return out.copy_(as_tensor(result))
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)  # a graph that needs what was there raises an error
    return out


# --- 16 bits on the host ----------------------------------------------------------------------------------------------


def is_narrow(tensor: Array) -> bool:
    """Whether a tensor holds 16-bit numbers in host memory, which the kernels for NumPy get in float32."""
    return tensor.device.type == "cpu" and dtype_name(tensor.dtype) in SIXTEEN_BIT


def _map_narrow_rows(operation: str, logits: Array, out: Array | None) -> Array:
    kernel = select(operation, np.empty((0, 1), np.float32), "kernel")
    if operation == "logsumexp_rows":
        sums = logits.new_empty(logits.shape[:1], dtype=torch.float32)

        def add_up(rows: slice, z: np.ndarray) -> None:
            sums.numpy()[rows] = kernel(z)

        _for_each_tile(add_up, logits, None)
        return sums.to(logits.dtype)

    def compute(rows: slice, z: np.ndarray, result: np.ndarray) -> None:  # noqa: ARG001
        kernel(z, out=result)

    result = logits.new_empty(logits.shape) if out is None else out
    _for_each_tile(compute, logits, result)
    return result


def _loss_of_narrow_rows(
    logits: Array,
    targets: np.ndarray,
    row_weight: np.ndarray | float,
    spec: LossSpec,
    *,
    grad: bool,
    out: Array | None,
) -> tuple[Array, Array]:
    losses = logits.new_empty(logits.shape[:1], dtype=torch.float32)
    kernel = select("softmax_loss_rows", losses.numpy()[None], "kernel")

    def compute(rows: slice, z: np.ndarray, result: np.ndarray | None = None) -> None:
        weight = row_weight if isinstance(row_weight, float) else row_weight[rows]
        losses.numpy()[rows] = kernel(z, targets[rows], weight, spec, grad=grad, out=result)[0]

    result = None
    if grad:
        result = logits.new_empty(logits.shape) if out is None else out
    _for_each_tile(compute, logits, result)
    return losses, logits.new_empty(0) if result is None else result


def _for_each_tile(compute: Callable[..., None], logits: Array, result: Array | None) -> None:
    """Call `compute` with the rows of a tile, its logits in float32, and an array for its part of the result.

    The tiles are shared by threads as the kernels for NumPy share theirs. `result` may be the logits.
    """
    rows, classes = logits.shape
    logits = logits.detach()
    threads = 4 * logits.numel() // SHARE
    threads = max(1, min(threads, allowed())) if threads > 1 else 1
    tiles = slices(rows, max(-(-logits.numel() // TILE), 2 * threads if threads > 1 else 1))
    inference = torch.inference_mode if torch.is_inference_mode_enabled() else nullcontext

    def worker(tiles: Iterator[slice]) -> None:
        scratch: list[Array] = []
        with inference():  # threads do not inherit it
            for tile in tiles:
                length = tile.stop - tile.start
                if not scratch or scratch[0].shape[0] != length:
                    scratch = [
                        logits.new_empty((length, classes), dtype=torch.float32)
                        for _ in range(1 + (result is not None))
                    ]
                    arrays, parts = [x.numpy() for x in scratch], [chunks(x) for x in scratch]
                for part, source in zip(parts[0], chunks(logits[tile]), strict=True):
                    part.copy_(source)
                compute(tile, *arrays)
                if result is not None:
                    for part, target in zip(parts[1], chunks(result[tile]), strict=True):
                        target.copy_(part)

    if threads > 1:
        share(worker, tiles, threads)
    else:
        worker(iter(tiles))
