"""Prediction: the public methods, and the passes of chunks of rows through the network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_dask_array
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted

from xpsoftmax._arguments.finite import sum_is_finite
from xpsoftmax._arguments.home import quiet
from xpsoftmax._arguments.options import as_integer
from xpsoftmax._arguments.views import Entry, enter
from xpsoftmax._network.backprop import Buffers, forward
from xpsoftmax._network.chunks import DEFAULT_MAX_MEMORY, is_writable
from xpsoftmax._network.layers import Params, recorded_activation
from xpsoftmax._network.network import Network, as_network
from xpsoftmax._typing import Array, Namespace
from xpsoftmax.sklearn.checks import bad_logits, check_inputs, check_logits
from xpsoftmax.sklearn.fitted import params_of
from xpsoftmax.sklearn.inputs import checked_inputs, current_device, is_lazy
from xpsoftmax.sklearn.labels import as_labels, as_raw_array, family, in_common_dtype, shortened
from xpsoftmax.sklearn.targets import as_sample_weight, as_targets, is_probabilities, labels_of

IN_CACHE = 2**20
"""Bytes of the widest layer of a chunk of NumPy rows that are predicted."""
LEAST_ROWS = 64
"""The fewest rows of such a chunk: products of fewer rows take longer for each row."""


class Prediction:
    """The methods of a fitted classifier that predict."""

    classes_: np.ndarray
    max_memory: int | None

    def decision_function(self, X: Any) -> Array:
        """Logits, as scikit-learn's classifiers return them.

        Parameters
        ----------
        X : array or array-like, (N, D)
            Of the library of the model, and on its device. For dask arrays and data frames this holds for their blocks,
            and the result is a dask array.

        Returns
        -------
        array, (N, C), or (N,) for two classes
            For two classes the second logit minus the first: the log-odds of the second class.

        Raises
        ------
        NotFittedError, TypeError, ValueError
            If there is no model yet, if `X` does not fit it, or if the largest logit of a row is not finite: products
            overflow, or weights are not finite.
        """
        logits = _outputs(self, X, "decision_function", None)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict(self, X: Any) -> Array:
        """Most probable label of each row.

        Parameters
        ----------
        X : array or array-like, (N, D)
            As for `decision_function`.

        Returns
        -------
        array, (N,)
            Where `X` is; on the host if its library does not have these labels: strings, or numbers of 64 bits beyond
            32 in JAX without ``jax_enable_x64``, or unsigned ones of more than 8 bits in PyTorch.

        Raises
        ------
        NotFittedError, TypeError, ValueError
            As `decision_function`.
        """
        check_is_fitted(self)
        with current_device(X):
            X = checked_inputs(self, X, "predict", reset=False)
            if is_dask_array(X):
                return _lazy_outputs(fitted_network(self), X, "predict", self.classes_)
            entry, net, X = _entered(self, X)
            return labels_of(self.classes_, entry.back(codes_of(net, X, self.max_memory)))

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the classes.

        Parameters
        ----------
        X : array or array-like, (N, D)
            As for `decision_function`.

        Returns
        -------
        array, (N, C)
            In the order of `classes_`.

        Raises
        ------
        NotFittedError, TypeError, ValueError
            As `decision_function`.
        """
        return _outputs(self, X, "predict_proba", "softmax_rows")

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of the probabilities; finite also where a probability rounds to 0, unless the logarithm overflows.

        Parameters
        ----------
        X : array or array-like, (N, D)
            As for `decision_function`.

        Returns
        -------
        array, (N, C)
            In the order of `classes_`.

        Raises
        ------
        NotFittedError, TypeError, ValueError
            As `decision_function`.
        """
        return _outputs(self, X, "predict_log_proba", "log_softmax_rows")

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy: the share of the rows whose predicted label is right.

        Parameters
        ----------
        X : array or array-like, (N, D)
            As for `decision_function`.
        y : array or array-like, (N,) or (N, C)
            Labels, or probabilities as for `fit`, of which the largest counts. Of any library: it is compared on the
            host, integers as integers.
        sample_weight : array or array-like, (N,), optional
            Finite, not negative, and not all zero.

        Returns
        -------
        float

        Raises
        ------
        NotFittedError, TypeError, ValueError
            As `decision_function`, and if `y` or `sample_weight` does not fit.
        """
        predicted = self.predict(X)
        y, predicted, sample_weight = (a.compute() if is_lazy(a) else a for a in (y, predicted, sample_weight))
        predicted = as_labels("predicted", predicted)
        raw = as_raw_array("y", y)
        if is_probabilities(raw):
            targets = as_targets(raw, np.empty(0), self.classes_, complete=False)
            labels = self.classes_[np.argmax(targets.values, axis=1)]
        else:
            labels = as_labels("y", raw)
        check_consistent_length(labels, predicted)
        if family(labels) != family(predicted):
            raise ValueError(f"y must be labels like {shortened(self.classes_)}, got {shortened(labels)}.")
        labels, predicted = in_common_dtype(labels, predicted)
        weight = as_sample_weight(sample_weight, np.empty((len(labels), 0)))
        if weight is not None and not weight.any():
            raise ValueError("sample_weight must let a row count, got weights that are all zero.")
        return accuracy(array_namespace(predicted), labels == predicted, weight)


def fitted_network(model: Any) -> Network:
    """Return the network of a fitted model; only another fit changes its activation."""
    return as_network(_fitted_layers(model), None)


def _entered(model: Any, X: Array) -> tuple[Entry, Network, Array]:
    """Return the network of a fitted model, and inputs; both as views if they can be viewed."""
    entry = enter(_fitted_layers(model), X)
    layers, X = entry.arguments
    return entry, as_network(layers, None), X


def _fitted_layers(model: Any) -> Params:
    layers = params_of(model)
    fitted = recorded_activation(layers)
    if fitted is not None and model.activation != fitted:
        raise ValueError(
            f"activation must be the one that the model was fitted with, {fitted!r}, got {model.activation!r}. "
            "A parameter that is changed counts from the next fit or partial_fit on."
        )
    return layers


def _outputs(model: Any, X: Any, method: str, operation: str | None) -> Array:
    """Return the logits of all rows, or what an operation on rows makes of them."""
    check_is_fitted(model)
    with current_device(X):
        X = checked_inputs(model, X, method, reset=False)
    if is_dask_array(X):
        return _lazy_outputs(fitted_network(model), X, method, model.classes_)
    entry, net, X = _entered(model, X)
    finish: Any = getattr(net.kernels, operation) if operation else None
    result = np.empty((X.shape[0], net.layers[-1].bias.shape[0]), net.dtype) if type(X) is np.ndarray else None
    parts = []
    with quiet(net.xp, net.home.device):
        for rows, logits in _passes(net, X, model.max_memory):
            if result is None:
                parts.append(finish(logits, out=logits if is_writable(logits) else None) if finish else logits)
            elif finish:
                finish(logits, out=result[rows])
            else:  # the next chunk overwrites them
                result[rows] = logits
        if result is not None:
            return entry.back(result)
        return parts[0] if len(parts) == 1 else net.xp.concat(parts)


def codes_of(net: Network, X: Array, max_memory: int | None) -> Array:
    """Return the places of the largest logits (N,), which are codes of classes."""
    if is_dask_array(X):
        return _lazy_outputs(net, X, "codes", np.arange(net.layers[-1].bias.shape[0]))
    with quiet(net.xp, net.home.device):
        parts = [net.xp.argmax(logits, axis=1) for _, logits in _passes(net, X, max_memory)]
        return parts[0] if len(parts) == 1 else net.xp.concat(parts)


def _lazy_outputs(net: Network, X: Array, method: str, classes: np.ndarray) -> Array:
    from xpsoftmax.sklearn import on_dask

    return on_dask.outputs(net.layers, net.activation, X, method, classes)


def _passes(net: Network, X: Array, max_memory: int | None) -> Iterator[tuple[slice, Array]]:
    """Yield chunks of rows and their logits, which are valid until the next chunk."""
    itemsize, widths = int(net.xp.finfo(net.dtype).bits) // 8, [*net.hidden, net.layers[-1].bias.shape[0]]
    memory = DEFAULT_MAX_MEMORY if max_memory is None else as_integer("max_memory", max_memory, low=1)
    step = max(1, memory // (2 * itemsize * sum(widths)))
    buffers = None
    watch = None
    if type(X) is np.ndarray:
        step, buffers = min(step, max(LEAST_ROWS, IN_CACHE // (itemsize * max(widths)))), Buffers()
        watch = _watched(net, X)
    chunks = [slice(*ends) for ends in itertools.pairwise([*range(0, X.shape[0], step), X.shape[0]])]
    doubtful: Any = False
    for rows in chunks:
        logits = forward(net, X[rows, :], buffers=buffers, watch=watch)[2]
        # One flag for all chunks: on a device it is waited for only once, after the last.
        if type(logits) is np.ndarray:
            doubtful = doubtful or not sum_is_finite(logits)
        else:
            doubtful = doubtful | net.xp.any(bad_logits(logits))
        yield rows, logits
    if bool(doubtful):
        for rows in chunks:
            check_logits(net, forward(net, X[rows, :], buffers=buffers)[2], rows.start)


def _watched(net: Network, X: np.ndarray) -> Callable[[Array], None] | None:
    """Return a function that looks at each first product, and reads `X` only where a column of it is not finite.

    Reading `X` each time would take a tenth of the prediction. A product with nan or infinity is not finite, unless
    the BLAS leaves out terms whose weight is 0: where the column has such weights, `X` is read now.
    """
    if not net.layers[0].weight[:, 0].all():
        check_inputs(X)
        return None
    seen = False

    def watch(z: Array) -> None:
        nonlocal seen
        if not (seen or sum_is_finite(z[:, 0])):
            check_inputs(X)  # it may be an overflow
            seen = True

    return watch


def accuracy(xp: Namespace, right: Array, weight: Array | None) -> float:
    """Return the share of the rows, or of their weights, whose labels are right."""
    if weight is None:
        return int(xp.sum(xp.astype(right, xp.int32))) / int(right.shape[0])
    with np.errstate(over="ignore"):
        total = float(xp.sum(weight))
    if not math.isfinite(total):  # it overflows
        weight = weight / xp.max(weight)
    return float(xp.sum(xp.where(right, weight, 0.0)) / xp.sum(weight))
