"""Backpropagation: chunks of rows forward through all layers, to the loss, and back; the sums over the chunks.

a[0] = X,  z[l] = a[l-1] W[l] + b[l],  a[l] = activation(z[l]),  logits = z[L]
delta[L] = dloss/dlogits,  dW[l] = a[l-1]^T delta[l],  db[l] = 1^T delta[l],
delta[l-1] = (delta[l] W[l]^T) * activation'(z[l-1])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from array_api_compat import device, is_dask_array, is_jax_array

from xpsoftmax import _validate as check
from xpsoftmax._activations import Activation, activation_named
from xpsoftmax._loss import LossOptions, Problem, mean_or_nan, prepare
from xpsoftmax._softmax import quiet, summed
from xpsoftmax._typing import Array, DType, Impl, Namespace
from xpsoftmax.kernels import select
from xpsoftmax.kernels.generic import narrowed, scratch_arrays

DEFAULT_MAX_MEMORY = 256 * 2**20
"""Bytes of temporary memory of an mlp call if `max_memory` is None (or as many as one row needs)."""


class Layer(NamedTuple):
    """Weights (fan_in, fan_out) and bias (fan_out,) of one layer: ``X @ weight + bias``."""

    weight: Array
    bias: Array


Params = tuple[Layer, ...]


class PartialSums(NamedTuple):
    """Sums over some of the rows, as `mlp_partial_sums` returns them: those of disjoint rows add up to those of all.

    Add them with ``+`` or `sum`, then call `finish`.

    Attributes
    ----------
    loss : array, 0-d
        Sum of the weighted losses, float32 for 16-bit parameters, else of their dtype.
    weight : array, 0-d
        Sum of the counting weights.
    grads : tuple of Layer
        Sums of the weighted gradients, shaped like the parameters; in float32 or wider.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = xs.init_params((4, 3), rng=0)
    >>> X, y = np.ones((6, 4)), np.array([0, 1, 2, 2, 1, 0])
    >>> total = sum(xs.mlp_partial_sums(params, X[i : i + 2], y[i : i + 2]) for i in (0, 2, 4))
    >>> loss, grads = total.finish(params)
    """

    loss: Array  # 0-d: sum of the weighted losses
    weight: Array  # 0-d: sum of the counting weights
    grads: Params  # sums of the weighted gradients, in float32 or wider

    def __add__(self, other: object) -> PartialSums:
        """Sums over the rows of both."""
        if not isinstance(other, PartialSums):
            return NotImplemented
        _check_alike("other", other.grads, self.grads)
        grads = tuple(Layer(a.weight + b.weight, a.bias + b.bias) for a, b in zip(self.grads, other.grads, strict=True))
        return PartialSums(self.loss + other.loss, self.weight + other.weight, grads)

    def __radd__(self, other: object) -> PartialSums:
        """Let `sum` add up partial sums: it starts from 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def finish(self, params: Params, *, reg: float = 0.0) -> tuple[Array, Params]:
        """Loss and gradients of the weighted mean plus ``reg/2 * sum(W**2)``, as `mlp_loss_and_grad` returns them.

        Parameters
        ----------
        params : sequence of Layer
            The parameters that the sums were taken with.
        reg : float
            Strength of the L2 penalty on the weight matrices.

        Returns
        -------
        loss : array, 0-d
            nan if the weights add up to nothing.
        grads : tuple of Layer
            In the dtype of `params`.

        Raises
        ------
        TypeError, ValueError
            If `params` or `reg` does not fit.
        """
        net = as_network(params, "identity")
        _check_alike("params", net.layers, self.grads)
        reg = check.as_number("reg", reg)
        xp = net.xp
        with quiet(xp, net.frame.device):
            nothing = self.weight == 0.0
            weight = xp.where(nothing, 1.0, xp.where(xp.isfinite(self.weight), self.weight, float("nan")))
            loss = xp.where(nothing, float("nan"), self.loss / weight)
            grads = tuple(Layer(*(xp.where(nothing, 0.0, g / weight) for g in layer)) for layer in self.grads)
            return finished(net, loss, grads, reg)


def _check_alike(name: str, layers: Params, sums: Params) -> None:
    """Check that layers have the shapes, library and device of the sums that they meet: broadcasting hides mistakes."""
    shapes, wanted = ([tuple(layer.weight.shape) for layer in x] for x in (layers, sums))
    if shapes != wanted:
        raise ValueError(f"{name} must have weights of the shapes of the sums, {wanted}, got {shapes}.")
    for layer, own in zip(layers, sums, strict=True):
        xp, weight = check.as_array("sums", own.weight)
        frame = check.Frame(xp, device(weight), tuple(weight.shape), 0, weight.dtype, "the sums")
        check.as_companion(name, layer.weight, frame)


# --- the network ------------------------------------------------------------------------------------------------------


class Network(NamedTuple):
    xp: Namespace
    layers: Params  # in the working precision
    activation: Activation
    dtype: DType  # of the parameters
    working: DType  # of everything that is computed
    frame: check.Frame  # of the first weight: library and device

    @property
    def hidden(self) -> list[int]:
        return [layer.bias.shape[0] for layer in self.layers[:-1]]


def as_network(params: Params, activation: str) -> Network:
    """Check the parameters: one library, device and dtype, and each layer fitting the one before."""
    function = activation_named(activation)
    if not isinstance(params, (tuple, list)) or not params:
        raise TypeError(f"params must be a non-empty sequence of (weight, bias) pairs, got {params!r:.60}.")
    pairs = []
    for i, layer in enumerate(params):
        if not isinstance(layer, (tuple, list)) or len(layer) != 2:
            raise TypeError(f"params[{i}] must be a pair (weight, bias), got {layer!r:.60}.")
        pairs.append(Layer(*layer))
    xp, first = check.as_floating("params[0].weight", pairs[0].weight)
    dtype, working = first.dtype, check.working_dtype(xp, first)
    frame = check.Frame(xp, device(first), (), 0, working, "params[0].weight")
    layers: list[Layer] = []
    for i, layer in enumerate(pairs):
        weight, bias = _layer(i, layer, frame, dtype, layers[-1].bias.shape[0] if layers else None)
        layers.append(Layer(xp.astype(weight, working, copy=False), xp.astype(bias, working, copy=False)))
    return Network(xp, tuple(layers), function, dtype, working, frame)


def _layer(i: int, layer: Sequence[Array], frame: check.Frame, dtype: DType, fan_in: int | None) -> tuple[Array, Array]:
    arrays = []
    for name, ndim, value in (("weight", 2, layer[0]), ("bias", 1, layer[1])):
        name = f"params[{i}].{name}"
        check.as_companion(name, value, frame)
        _, array = check.as_floating(name, value)
        if array.dtype != dtype:
            raise TypeError(f"{name} must have the dtype of params[0].weight, {dtype}, got {array.dtype}.")
        if array.ndim != ndim:
            shape = "(fan_in, fan_out)" if ndim == 2 else "(fan_out,)"
            raise ValueError(f"{name} must have shape {shape}, got {tuple(array.shape)}.")
        arrays.append(array)
    weight, bias = arrays
    if fan_in is not None and weight.shape[0] != fan_in:
        raise ValueError(
            f"params[{i}].weight must have shape ({fan_in}, fan_out) to follow the layer before, "
            f"got {tuple(weight.shape)}."
        )
    if bias.shape[0] != weight.shape[1]:
        raise ValueError(f"params[{i}].bias must have shape ({weight.shape[1]},), got {tuple(bias.shape)}.")
    if weight.shape[1] == 0:
        raise ValueError(f"params[{i}].weight must have at least one column, got shape {tuple(weight.shape)}.")
    return weight, bias


def as_inputs(net: Network, X: Array) -> Array:
    check.as_companion("X", X, net.frame)
    _, array = check.as_floating("X", X)
    if array.dtype != net.dtype:
        raise TypeError(f"X must have the dtype of the parameters, {net.dtype}, got {array.dtype}. Cast one of them.")
    fan_in = net.layers[0].weight.shape[0]
    if array.ndim != 2 or not check.same_shape(array.shape[1:], (fan_in,)):
        raise ValueError(f"X must have shape (N, {fan_in}) to fit params[0].weight, got {tuple(array.shape)}.")
    return array


def forward(net: Network, X: Array) -> tuple[list[Array], list[Array], Array]:
    """Return the inputs of every layer, the pre-activations of the hidden ones, and the logits."""
    xp = net.xp
    inputs, pre = [X], []
    for layer in net.layers[:-1]:
        z = xp.matmul(inputs[-1], layer.weight) + layer.bias
        pre.append(z)
        inputs.append(net.activation.function(xp, z))
    last = net.layers[-1]
    return inputs, pre, xp.matmul(inputs[-1], last.weight) + last.bias


def _backward(
    net: Network, inputs: list[Array], pre: list[Array], delta: Array, grads: list[Layer | None], spare: int
) -> None:
    """Add the gradients of a chunk to `grads`, given the gradient of its logits."""
    xp = net.xp
    for i in reversed(range(len(net.layers))):
        before = grads[i]
        weight = _add_product(xp, None if before is None else before.weight, inputs[i], delta, spare)
        bias = xp.sum(delta, axis=0)
        grads[i] = Layer(weight, bias if before is None else before.bias + bias)
        if i > 0:
            delta = xp.matmul(delta, xp.matrix_transpose(net.layers[i].weight))
            delta = delta * net.activation.derivative(xp, pre[i - 1])


def _add_product(xp: Namespace, total: Array | None, left: Array, right: Array, spare: int) -> Array:
    """Return total + left^T right; where `total` can be written to, in place and by columns of `spare` bytes."""
    left = xp.matrix_transpose(left)
    if total is None:
        return xp.matmul(left, right)
    if is_jax_array(total) or is_dask_array(total):
        return total + xp.matmul(left, right)
    columns = right.shape[1]
    step = max(1, spare // max(1, left.shape[0] * _itemsize(xp, total.dtype)))
    for part in _slices(columns, step):
        total[:, part] += xp.matmul(left, right[:, part])
    return total


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


# --- sums over chunks of rows -----------------------------------------------------------------------------------------


def add_up(
    params: Params,
    X: Array,
    targets: Array,
    activation: str,
    reg: float,
    max_memory: int | None,
    options: LossOptions,
    impl: Impl,
    *,
    grad: bool,
) -> tuple[Network, PartialSums, float]:
    """Check everything and add up all chunks; with the reduction "mean" the sums are already divided by the weight."""
    check.check_impl(impl)
    check.check_choice("reduction", options.reduction, ("mean", "sum"))
    net = as_network(params, activation)
    reg = check.as_number("reg", reg)
    X = as_inputs(net, X)
    xp, classes = net.xp, net.layers[-1].bias.shape[0]
    with quiet(xp, net.frame.device):
        problem = prepare(targets, net.frame._replace(shape=(X.shape[0], classes), axis=1, owner="X"), options)
        weighted = any(x is not None for x in (options.class_weight, options.sample_weight, options.ignore_index))
        plan = _plan(net, X, problem, max_memory)
        loss: Any = None
        grads: list[Layer | None] = [None] * len(net.layers)
        for rows in plan.chunks:
            part = _chunk(net, X, problem, rows, grads if grad else None, plan.spare, impl, weighted=weighted)
            loss = part if loss is None else loss + part
        if options.reduction == "mean":
            loss = mean_or_nan(xp, loss, problem.total)
        total = problem.total
        if type(total) is float:
            total = xp.asarray(total, dtype=net.working, device=net.frame.device)
        result = PartialSums(xp.asarray(loss), xp.asarray(total), tuple(layer for layer in grads if layer))
    return net, result, reg


def _chunk(
    net: Network,
    X: Array,
    problem: Problem,
    rows: slice | None,
    grads: list[Layer | None] | None,
    spare: int,
    impl: Impl,
    *,
    weighted: bool,
) -> Array:
    """Return the loss of a chunk of rows, after adding its gradients to `grads`."""
    xp = net.xp
    targets, row_weight = problem.targets, problem.row_weight
    if rows is not None:
        X, targets, row_weight = X[rows, :], targets[rows, ...], row_weight[rows]
    X = xp.astype(X, net.working, copy=False)
    if weighted:  # a row that does not count may hold anything: 0 * nan must not reach the weights
        X = xp.where((row_weight != 0.0)[:, None], X, 0.0)
    inputs, pre, logits = forward(net, X)
    kernel = select("softmax_loss_rows", logits, impl)
    losses, delta = kernel(logits, targets, row_weight, problem.spec, grad=grads is not None)
    del logits
    if grads is not None:
        _backward(net, inputs, pre, delta, grads, spare)
    return summed(xp, losses)


class _Plan(NamedTuple):
    chunks: Sequence[slice | None]
    spare: int  # bytes for the product that is added to a weight gradient


def _plan(net: Network, X: Array, problem: Problem, max_memory: int | None) -> _Plan:
    """Cut the rows so that the temporaries of a chunk stay within `max_memory`."""
    if max_memory is not None:
        max_memory = check.as_integer("max_memory", max_memory)
    if is_dask_array(X):
        return _Plan([None], 0)
    features, hidden, classes = X.shape[1], net.hidden, net.layers[-1].bias.shape[0]
    held = features + 2 * sum(hidden) + classes  # numbers a row: its inputs, z and a of every layer, dlogits
    soft = problem.targets.ndim == 2 or problem.spec.label_smoothing > 0.0
    softmax = classes * scratch_arrays(soft=soft, z_loss=problem.spec.z_loss > 0.0)
    backward = 3 * max(hidden, default=0)
    itemsize = _itemsize(net.xp, net.working)
    column = max(layer.weight.shape[0] for layer in net.layers)
    least = itemsize * (held + max(softmax, backward + column))
    if max_memory is None:
        max_memory = max(DEFAULT_MAX_MEMORY, least)
    if max_memory < least:
        raise ValueError(f"max_memory must be at least {least} bytes, what one row needs, got {max_memory}.")
    rows = X.shape[0]
    step = min(
        max(rows, 1),
        max_memory // (itemsize * (held + softmax)),
        (max_memory - itemsize * column) // (itemsize * (held + backward)),
    )
    spare = max_memory - step * itemsize * (held + backward)
    if step >= rows:
        return _Plan([None], spare)
    return _Plan(_slices(rows, step), spare)


def _itemsize(xp: Namespace, dtype: DType) -> int:
    return int(xp.finfo(dtype).bits) // 8


# --- regularisation ---------------------------------------------------------------------------------------------------


def penalised(net: Network, loss: Array, reg: float) -> Array:
    if reg == 0.0:
        return loss
    for layer in net.layers:
        loss = loss + 0.5 * reg * net.xp.sum(layer.weight * layer.weight)
    return net.xp.asarray(loss)


def finished(net: Network, loss: Array, grads: Params, reg: float) -> tuple[Array, Params]:
    """Add the penalty and its gradient; return the gradients in the dtype of the parameters."""
    xp = net.xp
    finished = []
    for layer, grad in zip(net.layers, grads, strict=True):
        weight = grad.weight + reg * layer.weight if reg != 0.0 else grad.weight
        finished.append(Layer(narrowed(xp, weight, net.dtype), narrowed(xp, grad.bias, net.dtype)))
    return penalised(net, loss, reg), tuple(finished)
