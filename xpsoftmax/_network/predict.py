"""The most probable class of each row. Rows pass through the network in chunks, of which only the labels are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from array_api_compat import is_dask_array

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.options import as_integer, check_flag, check_impl
from xpsoftmax._arguments.tracing import check_has_values, check_not_batched
from xpsoftmax._arguments.values import BadValue, first_marked, in_block, starts_of
from xpsoftmax._network.backprop import Buffers, forward
from xpsoftmax._network.chunks import ACTIVATION_ARRAYS, DEFAULT_MAX_MEMORY, IN_PLACE, chunks_of, itemsize_of
from xpsoftmax._network.layers import PairsOfArrays
from xpsoftmax._network.network import Network, as_inputs, as_network
from xpsoftmax._typing import Array, Impl, Namespace
from xpsoftmax.kernels.sparse import is_sparse

NO_CLASS = -1
"""The label of a row whose logits hold nan."""


LABELS = 32
"""Bytes for each row of a chunk in addition to its logits: its label, the largest logit, and masks."""


IN_CACHE = 4 * 2**20
"""Bytes of a chunk of NumPy logits above which larger chunks are no faster."""


LEAST_ROWS = 64
"""Rows of a chunk below which matrix products get slow, for any number of classes."""


def predict(
    params: PairsOfArrays, X: Array, activation: str | None, max_memory: int | None, impl: Impl, *, validate: bool
) -> Array:
    """See `xpsoftmax.mlp_predict`."""
    check_impl(impl)
    check_flag("validate", validate)
    net = as_network(params, activation, impl)
    X = as_inputs(net, X)
    with net.home.context():
        chunks = plan_prediction(net, X, max_memory)
        if is_dask_array(X):
            return _predict_blocks(net, X, validate=validate)
        labels = _predict_chunks(net, X, chunks)
        if validate:
            _check_labels(net, X, labels)
        return labels


def _predict_chunks(net: Network, X: Array, chunks: Sequence[slice | None]) -> Array:
    on_host = type(X) is np.ndarray
    buffers = Buffers() if on_host else None
    labels = np.empty(X.shape[0], np.intp) if on_host and len(chunks) > 1 else None
    parts = []
    for rows in chunks:
        part = X if rows is None else X[rows, :]
        if X.dtype != net.working:
            part = net.xp.astype(part, net.working)
        found = labels_of(net.xp, forward(net, part, buffers=buffers)[2])
        del part  # frees it before the next chunk is cast
        if labels is None:
            parts.append(found)
        else:
            labels[rows] = found
    if labels is not None:
        return labels
    return parts[0] if len(parts) == 1 else net.xp.concat(parts)


def labels_of(xp: Namespace, logits: Array) -> Array:
    """The first class of the largest logit of each row (R, C); `NO_CLASS` for a row that holds nan."""
    if type(logits) is np.ndarray:
        # NumPy's argmax finds the first nan, if there is one: a row has a nan if its largest number is nan.
        labels = logits.argmax(axis=1)
        largest = logits[np.arange(labels.size), labels]
        if math.isnan(np.add.reduce(largest)):  # also where infinities of both signs are added
            labels[np.isnan(largest)] = NO_CLASS
        return labels
    # The standard does not define argmax for rows that hold a nan.
    return xp.where(xp.any(xp.isnan(logits), axis=1), NO_CLASS, xp.argmax(logits, axis=1))


def plan_prediction(net: Network, X: Array, max_memory: int | None) -> Sequence[slice | None]:
    """Chunks of rows whose temporaries stay within `max_memory`; one chunk for dask arrays, which have blocks."""
    if max_memory is not None:
        max_memory = as_integer("max_memory", max_memory)
    if is_dask_array(X):
        return [None]
    itemsize, classes = itemsize_of(net.xp, net.working), net.layers[-1].bias.shape[0]
    cast = 0 if X.dtype == net.working else X.shape[1]
    in_place = net.kernels.has_kernel("bias_activation")
    widest = max(net.hidden, default=0)
    kept = cast + sum(net.hidden) + classes  # the last chunk's logits still exist
    numbers = kept + max(0 if in_place else classes, ACTIVATION_ARRAYS * widest)
    label_bytes = classes + LABELS  # a mask of one byte a class marks nan
    least = itemsize * numbers + label_bytes
    budget = max(DEFAULT_MAX_MEMORY, least) if max_memory is None else max_memory
    if budget < least:
        raise ValueError(f"max_memory must be at least {least} bytes, what one row needs, got {budget}.")
    step = budget // least
    if in_place:  # kernels work on large arrays tile by tile
        step = max(step, (budget - IN_PLACE) // (itemsize * kept + label_bytes))
    if type(X) is np.ndarray:
        step = min(step, max(LEAST_ROWS, IN_CACHE // (itemsize * max(classes, widest))))
    return chunks_of(X.shape[0], step)


def _predict_blocks(net: Network, X: Array, *, validate: bool) -> Array:
    from xpsoftmax.kernels import dask as blocks  # imports dask, as the caller has done already

    logits = forward(net, net.xp.astype(X, net.working, copy=False))[2]
    starts = starts_of(X.chunks[0])
    return blocks.by_rows(_labels_of_block, logits, np.intp, starts=starts, validate=validate)


def _labels_of_block(logits: Array, number: Array, *, starts: tuple[int, ...] | None, validate: bool) -> Array:
    xp, _ = check.as_array("logits", logits)
    labels = labels_of(xp, logits)
    row = _first_without_class(xp, labels) if validate else None
    if row is not None:
        raise in_block(no_class(row), int(number[0]), starts).error()
    return labels


def _check_labels(net: Network, X: Array, labels: Array) -> None:
    """Raise ValueError for the first row that has no class; it waits for the device once."""
    check_has_values("logits", labels)
    check_not_batched("logits", labels)
    row = _first_without_class(net.xp, labels)
    if row is not None:
        numbers = X[[row], :].data if is_sparse(X) else X[row, :]
        finite = bool(net.xp.all(net.xp.isfinite(numbers)))
        raise no_class(row, finite=finite).error()


def _first_without_class(xp: Namespace, labels: Array) -> int | None:
    if type(labels) is np.ndarray and (labels.size == 0 or labels.min() > NO_CLASS):  # faster than a mask
        return None
    bad = labels == NO_CLASS
    if not bool(xp.any(bad)):
        return None
    return first_marked(xp, bad)


def no_class(row: int, *, finite: bool = False) -> BadValue:
    """The error for a row whose logits hold nan; `finite` if its inputs are known to be finite."""
    cause = "The row is finite, so that params hold nan or numbers that are too large. " if finite else ""
    hint = f"{cause}With validate=False such rows get the label {NO_CLASS}."
    return BadValue("X", "have logits without nan in every row", float("nan"), "row", (row,), hint)
