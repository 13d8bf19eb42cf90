"""The classifier on dask arrays and data frames.

Labels and weights, one number for each row, are computed on the client, where they are checked as those in memory are.
Inputs stay in their blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import dask
import dask.array as da
import numpy as np
from array_api_compat import array_namespace, is_dask_array

from xpsoftmax._arguments.host import to_host
from xpsoftmax._arguments.problem import LossOptions
from xpsoftmax._arguments.values import BadValue
from xpsoftmax._network.chunks import DEFAULT_MAX_MEMORY
from xpsoftmax._network.functions import mlp_logits
from xpsoftmax._network.layers import Params
from xpsoftmax._network.network import Network
from xpsoftmax._softmax import log_softmax, softmax
from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.dask import graph
from xpsoftmax.dask.blocks import Block, Model, as_model
from xpsoftmax.dask.cluster import Scheduler
from xpsoftmax.dask.data import BLOCKS_PER_STEP
from xpsoftmax.dask.steps import BlockSteps
from xpsoftmax.sklearn.checks import as_overflow, bad_input, check_logits, input_error
from xpsoftmax.sklearn.labels import is_elsewhere
from xpsoftmax.sklearn.targets import labels_of


def as_inputs(X: Any) -> Array:
    """Check a dask array or data frame (N, D) of real numbers; return it as a dask array."""
    if not is_dask_array(X):
        bad = [f"{name} ({kind})" for name, kind in X.dtypes.items() if not _is_number(kind)]
        if bad:
            raise ValueError(f"X must have columns of numbers, got {', '.join(bad)}.")
        if X.to_dask_array().dtype == object:  # bool beside numbers, or columns that may lack values
            kind = np.result_type(*(getattr(kind, "numpy_dtype", kind) for kind in X.dtypes))
            X = X.astype(kind if kind.kind == "f" else np.float64)  # integers may lack values, too
        X = X.to_dask_array()
    if X.ndim != 2 or X.shape[1] == 0 or X.shape[0] == 0:
        raise ValueError(f"X must have shape (N, D), both at least 1, got {X.shape}.")
    if X.dtype.kind not in "biuf":
        raise ValueError(f"X must be of real numbers, got {X.dtype}.")
    return graph.whole_rows("X", X, "features")


def _is_number(kind: Any) -> bool:
    return getattr(kind, "kind", "O") in "biuf"


def on_host(value: Any) -> Any:
    """Return a dask collection with one number for each row in memory; anything else as it is."""
    if not hasattr(value, "__dask_graph__"):
        return value
    value = value.compute()
    return to_host("y", value) if is_elsewhere(value) else value


def of_known_sizes(X: Array, y: Any) -> Array:
    """Return inputs with known numbers of rows, which are those of the blocks of the labels or are counted."""
    if not graph.is_unknown(X):
        return X
    blocks = np.ravel(y.to_delayed()) if hasattr(y, "to_delayed") else ()  # of an array, or of a column
    if len(blocks) == X.numblocks[0]:
        sizes: Iterable[Any] = dask.compute(*map(_rows, blocks))
        return da.Array(X.dask, X.name, chunks=(tuple(map(int, sizes)), X.chunks[1]), meta=X._meta)
    return X.copy().compute_chunk_sizes()


_rows = dask.delayed(len, pure=True)


def as_steps(
    net: Network,
    X: Array,
    codes: np.ndarray,
    weight: np.ndarray | None,
    class_weight: Array | None,
    label_smoothing: float,
    alpha: float,
    max_memory: int | None,
    *,
    all_blocks: bool,
) -> BlockSteps:
    """Return the steps over blocks, with the penalty and the weights of the classifier."""
    options = LossOptions(class_weight, None, None, label_smoothing, validate=False)
    model = as_model(net.layers, net.activation, max_memory, options, "auto")
    data = graph.as_partitions(model, X, _beside(codes, X), None if weight is None else _beside(weight, X))
    sizes = tuple(map(int, X.chunks[0]))
    blocks = len(sizes) if all_blocks else min(BLOCKS_PER_STEP, len(sizes))
    return BlockSteps(model, data, sizes, alpha, "mean", blocks, Scheduler(X, model), averaged=True)


def as_validation(steps: BlockSteps, X: Array, codes: np.ndarray, weight: np.ndarray | None) -> graph.Partitions:
    """Return validation data in the blocks of its inputs, all of which are looked at now."""
    check_inputs(steps.scheduler, X)
    return graph.as_partitions(steps.model, X, _beside(codes, X), None if weight is None else _beside(weight, X))


def _beside(values: np.ndarray, X: Array) -> Array:
    """Return numbers of the host as a dask array with the blocks and the device of X."""
    lazy = da.from_array(values, chunks=(X.chunks[0],))
    if isinstance(X._meta, np.ndarray):
        return lazy
    xp = array_namespace(X._meta)
    return lazy.map_blocks(xp.asarray, dtype=lazy.dtype, meta=xp.asarray(values[:0]))


class BadInput(BadValue):
    """The first input of a block that is not finite. Adding the blocks counts its row from the first of all blocks."""

    def error(self) -> ValueError:
        """Return the exception for it."""
        row, column = self.position
        return input_error(f"at row {row}, column {column}", self.value, self.rule)


def check_inputs_of_block(X: Array) -> Block:
    """Return how many rows a block has, and the first input that is not finite."""
    sizes, found = (int(X.shape[0]),), bad_input(X)
    if found is None:
        return Block(sizes)
    row, column, value = found
    return Block(sizes, BadInput("X", dtype_name(X.dtype), value, "row", (row, column)))


def check_inputs(scheduler: Scheduler, X: Array) -> None:
    """Raise ValueError for the first input that is not finite."""
    scheduler.compute(graph.tree_sum(graph.each_block(check_inputs_of_block, [X, "ij"]))).without_flaw()


def outputs(params: Params, activation: str, X: Array, method: str, classes: np.ndarray) -> Array:
    """Return what a method of the classifier predicts, as a dask array."""
    model = as_model(params, activation, None, LossOptions(), "auto")
    X = graph.as_rows(model.network, X)
    return graph.by_rows(Predictor(method, classes), model, X, numbered=True)


class Predictor:
    """A method of the classifier, applied to one block; it names rows by the number of the first, if that is known."""

    def __init__(self, method: str, classes: np.ndarray) -> None:
        self.method, self.classes = method, classes
        self.__name__ = method

    def __call__(self, X: Array, *, model: Model, first: int | None = None) -> Array:
        """Return the prediction of a block of rows."""
        found = bad_input(X)
        if found is not None:
            row, column, value = found
            place = f"row {row}, column {column} of a block" if first is None else f"row {first + row}, column {column}"
            # Marked, because `fit` calls this for rows held out; it names the first bad row of all inputs instead.
            raise as_overflow(input_error(f"at {place}", value, dtype_name(X.dtype)))
        if self.method in ("predict", "codes"):
            codes = _codes(model, X, first)
            return labels_of(self.classes, codes) if self.method == "predict" else codes
        logits = _logits(model, X, first)
        finish: dict[str, Callable[[Array], Array]] = {"predict_proba": softmax, "predict_log_proba": log_softmax}
        return finish[self.method](logits) if self.method in finish else logits


def _logits(model: Model, X: Array, first: int | None) -> Array:
    activation: Any = model.activation
    logits = mlp_logits(model.params, X, activation=activation, impl=model.impl)
    check_logits(model.network, logits, first)
    return logits


def _codes(model: Model, X: Array, first: int | None) -> Array:
    """Return the indices of the largest logits; in chunks, so that not all logits are in memory at once."""
    xp, net = array_namespace(X), model.network
    width = sum(layer.bias.shape[0] for layer in net.layers)
    step = max(1, DEFAULT_MAX_MEMORY // (2 * int(xp.finfo(net.dtype).bits) // 8 * width))
    codes = []
    for start in range(0, max(1, X.shape[0]), step):
        logits = _logits(model, X[start : start + step, :], None if first is None else first + start)
        codes.append(xp.argmax(logits, axis=1))
    return codes[0] if len(codes) == 1 else xp.concat(codes)
