"""Fully connected networks under the softmax loss: one layer is the softmax classifier, two are the classic network.

    a[0] = X,  z[l] = a[l-1] W[l] + b[l],  a[l] = activation(z[l]),  logits = z[L]

A call passes chunks of rows through all layers and adds up their sums, so that neither the logits nor the hidden
activations of all rows are ever held at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_dask_array, is_jax_array

from xpsoftmax import _validate as check
from xpsoftmax._activations import Activation, activation_named
from xpsoftmax._loss import LossOptions, Problem, divided, prepare
from xpsoftmax._softmax import quiet
from xpsoftmax._typing import Array, Device, DType, Impl, Namespace, Reduction
from xpsoftmax.kernels import select
from xpsoftmax.kernels.generic import scratch_arrays

DEFAULT_MAX_MEMORY = 256 * 2**20
"""Bytes of temporary memory of an mlp call if `max_memory` is None (or as many as one row needs)."""


class Layer(NamedTuple):
    """Weights (fan_in, fan_out) and bias (fan_out,) of one layer."""

    weight: Array
    bias: Array


Params = tuple[Layer, ...]


class PartialSums(NamedTuple):
    """Sums over some of the rows: those of disjoint rows add up to those of all."""

    loss: Array  # 0-d: sum of the weighted losses
    weight: Array  # 0-d: sum of the counting weights
    grads: Params  # sums of the weighted gradients, in float32 or wider

    def __add__(self, other: object) -> PartialSums:  # type: ignore[override]
        """Sums over the rows of both."""
        if not isinstance(other, PartialSums):
            return NotImplemented
        grads = tuple(Layer(a.weight + b.weight, a.bias + b.bias) for a, b in zip(self.grads, other.grads, strict=True))
        return PartialSums(self.loss + other.loss, self.weight + other.weight, grads)

    def finish(self, params: Params, *, reg: float = 0.0) -> tuple[Array, Params]:
        """Loss and gradients of the weighted mean plus ``reg/2 * sum(W**2)``, as `mlp_loss_and_grad` returns them."""
        net = _network(params, "identity")
        reg = check.as_number("reg", reg)
        xp = net.xp
        with quiet(xp):
            nothing = self.weight == 0.0
            weight = xp.where(nothing, 1.0, self.weight)
            loss = xp.where(nothing, float("nan"), self.loss / weight)
            grads = tuple(Layer(*(xp.where(nothing, 0.0, g / weight) for g in layer)) for layer in self.grads)
            return _finished(net, loss, grads, reg)


def init_params(
    sizes: Sequence[int],
    *,
    rng: Any,
    scheme: str = "he",
    std: float | None = None,
    dtype: DType | None = None,
    xp: Namespace | None = None,
    device: Device | None = None,
) -> Params:
    r"""Random weights and zero biases for a network of these layer sizes.

    .. math:: W \sim \mathcal N(0, \sigma^2), \quad \sigma^2 = 2 / n_{in} \text{ (he)},\ 2 / (n_{in} + n_{out})
              \text{ (glorot)},\ 1 / n_{in} \text{ (lecun)}

    Parameters
    ----------
    sizes : sequence of int
        (D, H, ..., C): features, hidden units, classes.
    rng : None, int, numpy.random.Generator, ...
        Anything that `numpy.random.default_rng` takes. The numbers are drawn on the host in float64 and then moved, so
        every library and dtype starts from the same weights.
    scheme : {"he", "glorot", "lecun"}
    std : float, optional
        Standard deviation of all weights, in place of the scheme's.
    dtype : dtype of `xp`, optional
        Default: the default floating dtype of `xp`.
    xp : module, optional
        Library of the arrays: numpy (default), cupy, torch, jax.numpy, ...
    device : device of `xp`, optional

    Returns
    -------
    tuple of Layer

    Raises
    ------
    TypeError, ValueError
        If an option does not fit.

    References
    ----------
    K. He et al., "Delving deep into rectifiers", ICCV 2015; X. Glorot and Y. Bengio, AISTATS 2010; Y. LeCun et al.,
    "Efficient BackProp", 1998.

    Examples
    --------
    >>> import xpsoftmax as xs
    >>> [layer.weight.shape for layer in xs.init_params((64, 32, 10), rng=0)]
    [(64, 32), (32, 10)]
    """
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Sequence):
        raise TypeError(f"sizes must be a sequence of integers, got {sizes!r}.")
    widths = [check.as_integer("sizes", size) for size in sizes]
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"sizes must hold at least two positive integers (features, ..., classes), got {sizes!r}.")
    check.check_choice("scheme", scheme, tuple(SCHEMES))
    if std is not None:
        std = check.as_number("std", std)
    generator = np.random.default_rng(rng)
    xp = array_namespace((np if xp is None else xp).asarray(0.0))
    dtype = xp.__array_namespace_info__().default_dtypes()["real floating"] if dtype is None else dtype
    options = {"dtype": dtype} if device is None else {"dtype": dtype, "device": device}
    layers = []
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
        scale = SCHEMES[scheme](fan_in, fan_out) if std is None else std
        weight = xp.asarray(scale * generator.standard_normal((fan_in, fan_out)), **options)
        check.as_floating("dtype", weight)
        layers.append(Layer(weight, xp.zeros((fan_out,), **options)))
    return tuple(layers)


SCHEMES = {
    "he": lambda fan_in, fan_out: math.sqrt(2.0 / fan_in),  # noqa: ARG005
    "glorot": lambda fan_in, fan_out: math.sqrt(2.0 / (fan_in + fan_out)),
    "lecun": lambda fan_in, fan_out: math.sqrt(1.0 / fan_in),  # noqa: ARG005
}


def mlp_logits(params: Params, X: Array, /, *, activation: str = "relu", impl: Impl = "auto") -> Array:
    r"""Logits (N, C) of a network for inputs (N, D).

    .. math:: a_0 = X, \quad z_l = a_{l-1} W_l + b_l, \quad a_l = f(z_l), \quad \text{logits} = z_L

    Parameters
    ----------
    params : sequence of Layer
        (weight (fan_in, fan_out), bias (fan_out,)) of each layer; one layer is the softmax classifier.
    X : array, (N, D)
        Of the library, device and dtype of the parameters.
    activation : {"identity", "relu", "tanh", "logistic", "silu", "gelu"}
        Of the hidden layers; gelu is its tanh form.
    impl : {"auto", "generic", "kernel"}
        As for `softmax`.

    Returns
    -------
    array, (N, C)
        In the dtype of the parameters (16-bit parameters are multiplied in float32).

    Raises
    ------
    TypeError, ValueError
        If parameters and inputs do not fit each other; the message says which.

    References
    ----------
    Bishop (2006), section 5.1; GELU: D. Hendrycks and K. Gimpel, arXiv:1606.08415; SiLU: S. Elfwing et al., Neural
    Networks 107 (2018).

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = xs.init_params((4, 10, 3), rng=0)
    >>> xs.mlp_logits(params, np.ones((5, 4))).shape
    (5, 3)
    """
    check.check_impl(impl)
    net = _network(params, activation)
    X = _inputs(net, X)
    with quiet(net.xp):
        _, _, logits = _forward(net, net.xp.astype(X, net.working, copy=False))
        return net.xp.astype(logits, net.dtype, copy=False)


def mlp_predict(params: Params, X: Array, /, *, activation: str = "relu", impl: Impl = "auto") -> Array:
    """Most probable class of each row.

    Parameters
    ----------
    params, X, activation, impl
        As for `mlp_logits`.

    Returns
    -------
    array, (N,)
        Labels from 0 to C - 1 in the library's index dtype; the first of equal ones.

    Raises
    ------
    TypeError, ValueError
        As `mlp_logits`.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = (xs.Layer(np.eye(3), np.zeros(3)),)
    >>> xs.mlp_predict(params, np.array([[0.0, 2.0, 1.0]]))
    array([1])
    """
    logits = mlp_logits(params, X, activation=activation, impl=impl)
    return array_namespace(logits).argmax(logits, axis=1)


def mlp_loss(
    params: Params,
    X: Array,
    targets: Array,
    /,
    *,
    activation: str = "relu",
    reg: float = 0.0,
    max_memory: int | None = None,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool = True,
    impl: Impl = "auto",
) -> Array:
    r"""Softmax loss of a network with L2 regularisation.

    .. math:: L = \frac{\sum_i w_i L_i}{\sum_i w_i} + \frac{\text{reg}}{2} \sum_l \lVert W_l \rVert^2

    Parameters
    ----------
    params, X, activation
        As for `mlp_logits`.
    targets : array, (N,) or (N, C)
        Labels or soft targets, as for `softmax_loss`.
    reg : float
        Strength of the L2 penalty on the weight matrices; biases are free.
    max_memory : int, optional
        Bytes of temporary memory: rows pass through all layers in chunks. Default: 256 MiB, or what one row needs.
        Dask arrays are not chunked here: their own chunks are.
    reduction : {"mean", "sum"}
    class_weight, sample_weight, ignore_index, label_smoothing, z_loss, validate, impl
        As for `softmax_loss`.

    Returns
    -------
    array, 0-d
        float32 for 16-bit parameters, else of their dtype.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `mlp_logits` and `softmax_loss`; ValueError with the least value if `max_memory` is too small.

    References
    ----------
    Bishop (2006), sections 5.2 and 5.5.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = (xs.Layer(np.zeros((4, 10)), np.zeros(10)),)
    >>> float(xs.mlp_loss(params, np.ones((5, 4)), np.arange(5))) == np.log(10)
    True
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate)
    net, sums, reg = _sums(params, X, targets, activation, reg, max_memory, options, impl, grad=False)
    with quiet(net.xp):
        return _penalised(net, sums.loss, reg)


def mlp_loss_and_grad(
    params: Params,
    X: Array,
    targets: Array,
    /,
    *,
    activation: str = "relu",
    reg: float = 0.0,
    max_memory: int | None = None,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool = True,
    impl: Impl = "auto",
) -> tuple[Array, Params]:
    r"""Softmax loss of a network and its gradients with respect to all parameters.

    .. math:: \delta_L = \frac{\partial L}{\partial \text{logits}}, \quad
              \frac{\partial L}{\partial W_l} = a_{l-1}^T \delta_l + \text{reg}\, W_l, \quad
              \frac{\partial L}{\partial b_l} = 1^T \delta_l, \quad
              \delta_{l-1} = (\delta_l W_l^T) \odot f'(z_{l-1})

    Parameters
    ----------
    params, X, targets, activation, reg, max_memory, reduction
        As for `mlp_loss`.
    class_weight, sample_weight, ignore_index, label_smoothing, z_loss, validate, impl
        As for `softmax_loss`.

    Returns
    -------
    loss : array, 0-d
        As `mlp_loss` returns it.
    grads : tuple of Layer
        Shaped like `params` and of their dtype; summed in float32 or wider.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `mlp_loss`.

    Notes
    -----
    Rows of weight zero add nothing, whatever they hold, also where their inputs are nan. ReLU has derivative 0 at 0.
    Checked against numerical gradients, the two-loop textbook forms and PyTorch's autograd (``tests/test_mlp.py``).

    References
    ----------
    D. E. Rumelhart, G. E. Hinton, R. J. Williams, "Learning representations by back-propagating errors", Nature 323
    (1986), doi:10.1038/323533a0; Bishop (2006), section 5.3.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = xs.init_params((4, 10, 3), rng=0)
    >>> loss, grads = xs.mlp_loss_and_grad(params, np.ones((5, 4)), np.array([0, 1, 2, 2, 1]), reg=1e-3)
    >>> grads[1].weight.shape, grads[1].bias.shape
    ((10, 3), (3,))
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate)
    net, sums, reg = _sums(params, X, targets, activation, reg, max_memory, options, impl, grad=True)
    with quiet(net.xp):
        return _finished(net, sums.loss, sums.grads, reg)


def mlp_partial_sums(
    params: Params,
    X: Array,
    targets: Array,
    /,
    *,
    activation: str = "relu",
    max_memory: int | None = None,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    validate: bool = True,
    impl: Impl = "auto",
) -> PartialSums:
    """Sums over some of the rows of what makes up the loss and its gradients.

    Batches, memory-mapped files and workers each give partial sums; they are added with ``+``, and ``finish`` makes
    the mean of them.

    Parameters
    ----------
    params, X, targets, activation, max_memory
        As for `mlp_loss`.
    class_weight, sample_weight, ignore_index, label_smoothing, z_loss, validate, impl
        As for `softmax_loss`.

    Returns
    -------
    PartialSums
        ``loss`` and ``weight``, 0-d: sums of the weighted losses and of the counting weights; ``grads``: sums of the
        weighted gradients in float32 or wider. ``finish(params, reg=0.0)`` returns what `mlp_loss_and_grad` does.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `mlp_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = xs.init_params((4, 10, 3), rng=0)
    >>> X, y = np.ones((6, 4)), np.array([0, 1, 2, 2, 1, 0])
    >>> halves = xs.mlp_partial_sums(params, X[:3], y[:3]) + xs.mlp_partial_sums(params, X[3:], y[3:])
    >>> loss, grads = halves.finish(params, reg=1e-3)
    >>> bool(np.isclose(loss, xs.mlp_loss(params, X, y, reg=1e-3), rtol=1e-15))
    True
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, "sum", validate)
    _, sums, _ = _sums(params, X, targets, activation, 0.0, max_memory, options, impl, grad=True)
    return sums


# --- the network ------------------------------------------------------------------------------------------------------


class _Network(NamedTuple):
    xp: Namespace
    layers: Params  # in the working precision
    activation: Activation
    dtype: DType  # of the parameters
    working: DType  # of everything that is computed
    frame: check.Frame  # of the first weight: library and device

    @property
    def hidden(self) -> list[int]:
        return [layer.bias.shape[0] for layer in self.layers[:-1]]


def _network(params: Params, activation: str) -> _Network:
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
    frame = check.Frame(xp, check.device(first), (), 0, working, "params[0].weight")
    layers: list[Layer] = []
    for i, layer in enumerate(pairs):
        weight, bias = _layer(i, layer, frame, dtype, layers[-1].bias.shape[0] if layers else None)
        layers.append(Layer(xp.astype(weight, working, copy=False), xp.astype(bias, working, copy=False)))
    return _Network(xp, tuple(layers), function, dtype, working, frame)


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
            f"params[{i}].weight must have {fan_in} rows, the outputs of the layer before, got shape {tuple(weight.shape)}."
        )
    if bias.shape[0] != weight.shape[1]:
        raise ValueError(f"params[{i}].bias must have shape ({weight.shape[1]},), got {tuple(bias.shape)}.")
    if weight.shape[1] == 0:
        raise ValueError(f"params[{i}].weight must have at least one column, got shape {tuple(weight.shape)}.")
    return weight, bias


def _inputs(net: _Network, X: Array) -> Array:
    check.as_companion("X", X, net.frame)
    _, array = check.as_floating("X", X)
    if array.dtype != net.dtype:
        raise TypeError(f"X must have the dtype of the parameters, {net.dtype}, got {array.dtype}. Cast one of them.")
    fan_in = net.layers[0].weight.shape[0]
    if array.ndim != 2 or not check.same_shape(array.shape[1:], (fan_in,)):
        raise ValueError(f"X must have shape (N, {fan_in}) to fit params[0].weight, got {tuple(array.shape)}.")
    return array


def _forward(net: _Network, X: Array) -> tuple[list[Array], list[Array], Array]:
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
    net: _Network, inputs: list[Array], pre: list[Array], delta: Array, grads: list[Layer | None], spare: int
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
    """Return total + left^T right; in place, by slices of columns of `spare` bytes, where an array can be written to."""
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


def _sums(
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
) -> tuple[_Network, PartialSums, float]:
    """Check everything and add up all chunks; with the reduction "mean" the sums are already divided by the weight."""
    check.check_impl(impl)
    check.check_choice("reduction", options.reduction, ("mean", "sum"))
    net = _network(params, activation)
    reg = check.as_number("reg", reg)
    X = _inputs(net, X)
    xp, classes = net.xp, net.layers[-1].bias.shape[0]
    with quiet(xp):
        problem = prepare(targets, net.frame._replace(shape=(X.shape[0], classes), axis=1, owner="X"), options)
        if options.reduction == "mean":
            problem = problem._replace(row_weight=divided(xp, problem.row_weight, problem.total))
        weighted = any(x is not None for x in (options.class_weight, options.sample_weight, options.ignore_index))
        plan = _plan(net, X, problem, max_memory)
        loss: Any = None
        grads: list[Layer | None] = [None] * len(net.layers)
        for rows in plan.chunks:
            part = _chunk(net, X, problem, rows, grads if grad else None, plan.spare, impl, weighted=weighted)
            loss = part if loss is None else loss + part
        if options.reduction == "mean":
            loss = xp.where(problem.total == 0.0, float("nan"), loss)
        sums = PartialSums(xp.asarray(loss), xp.asarray(problem.total), tuple(layer for layer in grads if layer))
    return net, sums, reg


def _chunk(
    net: _Network,
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
    inputs, pre, logits = _forward(net, X)
    kernel = select("softmax_loss_rows", logits, impl)
    losses, delta = kernel(logits, targets, row_weight, problem.spec, grad=grads is not None)
    del logits
    if grads is not None:
        _backward(net, inputs, pre, delta, grads, spare)
    return xp.sum(losses)


class _Plan(NamedTuple):
    chunks: Sequence[slice | None]
    spare: int  # bytes for the product that is added to a weight gradient


def _plan(net: _Network, X: Array, problem: Problem, max_memory: int | None) -> _Plan:
    """Cut the rows so that the temporaries of a chunk stay within `max_memory`."""
    if max_memory is not None:
        max_memory = check.as_integer("max_memory", max_memory)
    if is_dask_array(X):
        return _Plan([None], 0)
    features, hidden, classes = X.shape[1], net.hidden, net.layers[-1].bias.shape[0]
    held = features + 2 * sum(hidden) + classes  # numbers a row: its inputs, z and a of every layer, dlogits
    softmax = classes * scratch_arrays(soft=problem.targets.ndim == 2 or problem.spec.label_smoothing > 0.0)
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


def _penalised(net: _Network, loss: Array, reg: float) -> Array:
    if reg == 0.0:
        return loss
    for layer in net.layers:
        loss = loss + 0.5 * reg * net.xp.sum(layer.weight * layer.weight)
    return net.xp.asarray(loss)


def _finished(net: _Network, loss: Array, grads: Params, reg: float) -> tuple[Array, Params]:
    """Add the penalty and its gradient; return the gradients in the dtype of the parameters."""
    xp = net.xp
    finished = []
    for layer, grad in zip(net.layers, grads, strict=True):
        weight = grad.weight + reg * layer.weight if reg != 0.0 else grad.weight
        finished.append(Layer(xp.astype(weight, net.dtype, copy=False), xp.astype(grad.bias, net.dtype, copy=False)))
    return _penalised(net, loss, reg), tuple(finished)
