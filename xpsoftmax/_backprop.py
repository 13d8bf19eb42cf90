"""Backpropagation: chunks of rows forward through all layers, to the loss, and back; the sums over the chunks.

a[0] = X,  z[l] = a[l-1] W[l] + b[l],  a[l] = activation(z[l]),  logits = z[L]
delta[L] = dloss/dlogits,  dW[l] = a[l-1]^T delta[l],  db[l] = 1^T delta[l],
delta[l-1] = (delta[l] W[l]^T) * activation'(z[l-1])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_dask_array, is_jax_array, is_torch_array

from xpsoftmax import _validate as check
from xpsoftmax._layers import KINDS, Layer, PairsOfArrays, Params, alike, chosen, kind_of, recorded
from xpsoftmax._loss import LossOptions, Problem, mean_or_nan, prepare
from xpsoftmax._softmax import on_device, quiet, summed
from xpsoftmax._typing import Array, DType, Impl, Namespace
from xpsoftmax.kernels import Operations, generic, operations, select
from xpsoftmax.kernels.generic import narrowed, scratch_arrays

DEFAULT_MAX_MEMORY = 256 * 2**20
"""Bytes of temporary memory of an mlp call if `max_memory` is None (or as many as one row needs)."""


def parts_of(vector: np.ndarray, like: Params) -> Params:
    """Layers of these shapes whose arrays are parts of a vector, one after the other: all of them at once, too."""
    start, layers = 0, []
    for layer in like:
        weight, bias = layer
        middle, stop = start + weight.size, start + weight.size + bias.size
        layers.append(type(layer)(vector[start:middle].reshape(weight.shape), vector[middle:stop]))
        start = stop
    return tuple(layers)


def vector_of(layers: Params) -> np.ndarray | None:
    """The vector that layers are the parts of, if `parts_of` has made them."""
    vector: Any = getattr(layers[0].weight, "base", None)
    if type(vector) is not np.ndarray or vector.ndim != 1:
        return None
    size = 0
    for weight, bias in layers:
        if weight.base is not vector or bias.base is not vector:
            return None
        size += weight.size + bias.size
    return vector if size == vector.size else None


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
        check_alike("other", other.grads, self.grads)
        with on_device(array_namespace(self.loss), device(self.loss)):
            pairs = zip(self.grads, other.grads, strict=True)
            grads = tuple(_kind_of_either(a, b)(a.weight + b.weight, a.bias + b.bias) for a, b in pairs)
            return PartialSums(self.loss + other.loss, self.weight + other.weight, grads)

    def __radd__(self, other: object) -> PartialSums:
        """Let `sum` add up partial sums: it starts from 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def finish(self, params: PairsOfArrays, *, reg: float = 0.0) -> tuple[Array, Params]:
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
        net = as_network(params, None)
        check_alike("params", net.layers, self.grads)
        if self.loss.dtype != net.working:
            raise TypeError(f"params must be of a dtype that is summed in {self.loss.dtype}, got {net.dtype}.")
        reg = check.as_number("reg", reg)
        with quiet(net.xp, net.frame.device):
            loss, grads = self.mean(net.xp)
            return finished(net, loss, alike(grads, net.layers), reg)

    def mean(self, xp: Namespace) -> tuple[Array, Params]:
        """Loss and gradients over the weight; nan and zero for the mean over nothing."""
        nothing = self.weight == 0.0
        weight = xp.where(nothing, 1.0, xp.where(xp.isfinite(self.weight), self.weight, float("nan")))
        loss = xp.where(nothing, float("nan"), self.loss / weight)
        return loss, tuple(type(layer)(*(xp.where(nothing, 0.0, g / weight) for g in layer)) for layer in self.grads)


def _kind_of_either(layer: Layer, other: Layer) -> type[Layer]:
    """Type of the layer that carries an activation, if one of two does."""
    return type(layer) if layer.activation is not None else type(other)


def check_alike(name: str, layers: Params, own: Params, owner: str = "the sums") -> None:
    """Check that layers have the shapes, library and device of those that they meet: broadcasting hides mistakes.

    Nor may they carry another activation.
    """
    if _seen_alike(layers, own):
        return
    for layer in layers:
        for array in layer:
            check.as_array(name, array)
    for i, part in enumerate(("weights", "biases")):
        shapes, wanted = ([tuple(layer[i].shape) for layer in x] for x in (layers, own))
        if shapes != wanted:
            raise ValueError(f"{name} must have {part} of the shapes of {owner}, {wanted}, got {shapes}.")
    for layer, like in zip(layers, own, strict=True):
        xp, weight = check.as_array(owner, like.weight)
        frame = check.Frame(xp, check.home(weight), tuple(weight.shape), 0, weight.dtype, owner)
        check.as_companion(name, layer.weight, frame)
    theirs, ours = recorded(layers, name), recorded(own, owner)
    if theirs is not None and ours is not None and theirs != ours:
        raise ValueError(f"{name} must carry the activation of {owner}, {ours!r}, got {theirs!r}.")


def _seen_alike(layers: Any, own: Params) -> bool:
    if type(layers) is not tuple or len(layers) != len(own):
        return False
    for layer, like in zip(layers, own, strict=True):
        if not (
            type(layer) is type(like)
            and type(layer) in KINDS
            and type(layer.weight) is type(like.weight) is np.ndarray
            and layer.weight.shape == like.weight.shape
            and layer.bias.shape == like.bias.shape
        ):
            return False
    return True


class Sums(NamedTuple):
    """What becomes `PartialSums`, or loss and gradients."""

    loss: Array
    weight: Array | float
    grads: Params
    row_weight: Array  # (R,): all that multiplies a row; 0 where it does not count

    def partial(self, net: Network) -> PartialSums:
        """What is added to that of other rows."""
        weight = self.weight
        if type(weight) is float:
            with on_device(net.xp, net.frame.device):
                weight = net.xp.full_like(self.loss, weight)
        return PartialSums(self.loss, weight, self.grads)


# --- the network ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Network:
    xp: Namespace
    layers: Params  # in the working precision
    activation: str
    dtype: DType  # of the parameters
    working: DType  # of everything that is computed
    frame: check.Frame  # of the first weight: library and device
    kernels: Operations

    @property
    def hidden(self) -> list[int]:
        return [layer.bias.shape[0] for layer in self.layers[:-1]]


def as_network(params: PairsOfArrays, activation: str | None, impl: Impl = "auto") -> Network:
    """Check the parameters: one library, device and dtype, and each layer fitting the one before.

    Without an explicit activation the network has the one that its layers carry.
    """
    if not isinstance(params, (tuple, list)) or not params:
        raise TypeError(f"params must be a non-empty sequence of (weight, bias) pairs, got {params!r:.60}.")
    if _plain_layers(params):
        activation = chosen(params, activation)
        dtype = params[0].weight.dtype
        frame = _plain_frame(dtype)
        return Network(frame.xp, tuple(params), activation, dtype, dtype, frame, operations(params[0].weight, impl))
    pairs = []
    for i, layer in enumerate(params):
        if not isinstance(layer, (tuple, list)) or len(layer) != 2:
            raise TypeError(f"params[{i}] must be a pair (weight, bias), got {layer!r:.60}.")
        pairs.append(kind_of(layer)(*layer))
    activation = chosen(pairs, activation)
    xp, first = check.as_floating("params[0].weight", pairs[0].weight)
    dtype, working = first.dtype, check.working_dtype(xp, first)
    frame = check.Frame(xp, check.home(first), (), 0, working, "params[0].weight")
    layers: list[Layer] = []
    for i, layer in enumerate(pairs):
        weight, bias = _layer(i, layer, frame, dtype, layers[-1].bias.shape[0] if layers else None)
        layers.append(type(layer)(xp.astype(weight, working, copy=False), xp.astype(bias, working, copy=False)))
    kernels = operations(layers[0].weight, impl)
    return Network(xp, tuple(layers), activation, dtype, working, frame, kernels)


@cache
def _plain_frame(dtype: DType) -> check.Frame:
    return check.Frame(check.numpy_namespace(), "cpu", (), 0, dtype, "params[0].weight")


def _plain_layers(params: Sequence[Any]) -> bool:
    """Whether NumPy layers are seen at a glance to fit each other: all checks together take longer than a small net."""
    dtype, before = None, None
    for layer in params:
        if type(layer) not in KINDS:
            return False
        weight, bias = layer
        if type(weight) is not np.ndarray or type(bias) is not np.ndarray:
            return False
        if dtype is None:
            dtype, before = weight.dtype, weight.shape[:1]
            if not check.is_plain(weight, 1):
                return False
        if (
            weight.dtype != dtype
            or bias.dtype != dtype
            or weight.ndim != 2
            or weight.shape[:1] != before
            or weight.shape[1:] != bias.shape
            or bias.size == 0
        ):
            return False
        before = bias.shape
    return True


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


def as_inputs(net: Network, X: Array, name: str = "X") -> Array:
    fan_in = net.layers[0].weight.shape[0]
    seen = type(X) is np.ndarray and type(net.layers[0].weight) is np.ndarray  # at a glance
    if seen and X.dtype == net.dtype and X.ndim == 2 and X.shape[1] == fan_in:
        return X
    check.as_companion(name, X, net.frame)
    _, array = check.as_floating(name, X)
    if array.dtype != net.dtype:
        raise TypeError(
            f"{name} must have the dtype of the parameters, {net.dtype}, got {array.dtype}. Cast one of them."
        )
    if array.ndim != 2 or not check.same_shape(array.shape[1:], (fan_in,)):
        raise ValueError(f"{name} must have shape (N, {fan_in}) to fit params[0].weight, got {tuple(array.shape)}.")
    return array


class Buffers:
    """Arrays that a chunk of rows leaves to the next one, and a call to the next of the same shapes, by name.

    Memory that is new to a process has to be brought in page by page, which takes as long as the arithmetic.
    """

    def __init__(self) -> None:
        self._arrays: dict[Any, Array] = {}

    def take(self, name: tuple[str, int], shape: tuple[int, int], dtype: DType) -> Array:
        """An array of this shape, of anything."""
        array = self._arrays.get(name)
        if array is not None and array.shape == shape and array.dtype == dtype:
            return array
        if array is None or array.shape[0] < shape[0] or array.shape[1] != shape[1] or array.dtype != dtype:
            self._arrays[name] = array = None  # before there is another one
            array = self._arrays[name] = np.empty(shape, dtype)
        return array[: shape[0]]


def _product(left: Array, right: Array, buffers: Buffers | None, name: tuple[str, int]) -> Array:
    if buffers is None:
        has_own = is_jax_array(left) or is_dask_array(left)
        return select("product", left, "generic")(left, right) if has_own else left @ right
    return np.matmul(left, right, out=buffers.take(name, (left.shape[0], right.shape[1]), left.dtype))


def forward(
    net: Network,
    X: Array,
    *,
    grad: bool = False,
    buffers: Buffers | None = None,
    watch: Callable[[Array], None] | None = None,
    dead: DeadRows | None = None,
) -> tuple[list[Array], list[Array | None], Array]:
    """Return the inputs of every layer, the slopes of the hidden ones (with `grad`), and the logits.

    `watch` is called with the product of inputs and first weight. `dead` knows the rows that need not be finite.
    """
    inputs: list[Array] = [X]
    slopes: list[Array | None] = []
    *hidden, last = net.layers
    for i, layer in enumerate(hidden):
        z = _product(inputs[-1], layer.weight, buffers, ("z", i))
        if watch is not None and i == 0:
            watch(z)
        if dead is not None:
            z = dead.finite(z)
        out = buffers.take(("slope", i), z.shape, z.dtype) if grad and buffers and _has_slopes(net.activation) else None
        value, slope = net.kernels.bias_activation(z, layer.bias, net.activation, grad=grad, out=out)
        inputs.append(value)
        slopes.append(slope)
    z = _product(inputs[-1], last.weight, buffers, ("z", len(hidden)))
    if watch is not None and not hidden:
        watch(z)
    logits = net.kernels.bias_activation(z, last.bias, "identity", grad=False)[0]
    return inputs, slopes, logits if dead is None else dead.marked(logits)


def _has_slopes(activation: str) -> bool:
    return activation not in ("identity", "relu")


def _backward(
    net: Network,
    inputs: list[Array],
    slopes: list[Array | None],
    delta: Array,
    sums: list[Layer | None],
    spare: int,
    buffers: Buffers | None,
    grads: Params | None,
) -> None:
    """Add the gradients of a chunk to `sums`, given the gradient of its logits; the first go to `grads` if given."""
    xp = net.xp
    for i in reversed(range(len(net.layers))):
        before, into, kind = sums[i], None if grads is None else grads[i], type(net.layers[i])
        if before is None:
            sums[i] = _first_sums(xp, inputs[i], delta, into, net.layers[i])
        else:
            weight = _add_product(xp, before.weight, inputs[i], delta, spare, buffers)
            sums[i] = kind(weight, before.bias + _sum_of_rows(xp, delta))
        if i > 0:
            delta = _product(delta, net.layers[i].weight.T, buffers, ("delta", i))
            delta = net.kernels.activation_backward(delta, slopes[i - 1], net.activation)


def _first_sums(xp: Namespace, left: Array, delta: Array, into: Layer | None, like: Layer) -> Layer:
    kind = type(like)
    if type(delta) is np.ndarray:  # the same without the wrappers
        weight, bias = (None, None) if into is None else into
        return kind(np.matmul(left.T, delta, out=weight), _sum_of_rows(xp, delta, bias))
    return kind(_transposed_product(xp, left, delta, like.weight), _sum_of_rows(xp, delta))


def _transposed_product(xp: Namespace, left: Array, right: Array, like: Array) -> Array:
    """Return left^T right, in JAX laid out over its devices as `like` is."""
    transposed = xp.matrix_transpose(left)
    if is_jax_array(left):
        return select("product", left, "generic")(transposed, right, like)
    return xp.matmul(transposed, right)


ROWS_OF_A_SUM = 256
"""Rows that are added up one after the other: a million of them would leave two digits of float32."""


def _sum_of_rows(xp: Namespace, delta: Array, out: Array | None = None) -> Array:
    """Sum over the rows of an array (R, H), to the last digits however many there are; NumPy writes it to `out`.

    Other libraries that may add one row after the other do it in float64: NumPy would take five times as long.
    """
    few = delta.shape[0] <= ROWS_OF_A_SUM
    if type(delta) is np.ndarray:
        if few:
            return np.add.reduce(delta, axis=0, out=out)
        whole = delta.shape[0] - delta.shape[0] % ROWS_OF_A_SUM
        parts = np.add.reduce(delta[:whole].reshape(-1, ROWS_OF_A_SUM, delta.shape[1]), axis=1)
        total = np.add.reduce(parts, axis=0, dtype=np.float64)
        total += np.add.reduce(delta[whole:], axis=0)
        if out is None:
            return total.astype(delta.dtype, copy=False)
        out[...] = total
        return out
    if few or is_torch_array(delta) or is_jax_array(delta):  # they add up in parts themselves
        return xp.sum(delta, axis=0)
    return xp.astype(xp.sum(delta, axis=0, dtype=xp.float64), delta.dtype)


def _add_product(xp: Namespace, total: Array, left: Array, right: Array, spare: int, buffers: Buffers | None) -> Array:
    """Return total + left^T right; where `total` can be written to, in place and by columns of `spare` bytes."""
    if not is_writable(total):
        return total + _transposed_product(xp, left, right, total)
    rows, columns = total.shape
    step = max(1, spare // max(1, rows * itemsize_of(xp, total.dtype)))
    for part in _slices(columns, step):
        product = _product(left.T, right[:, part], buffers, ("product", columns - part.start >= step))
        total[:, part] += product
    return total


def is_writable(array: Array) -> bool:
    """Whether arrays of this library can be written to."""
    return not (is_jax_array(array) or is_dask_array(array))


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


# --- sums over chunks of rows -----------------------------------------------------------------------------------------


def add_up(
    params: PairsOfArrays,
    X: Array,
    targets: Array,
    activation: str | None,
    reg: float,
    max_memory: int | None,
    options: LossOptions,
    impl: Impl,
    *,
    grad: bool,
) -> tuple[Network, Sums, float]:
    """Check everything and add up all chunks; with the reduction "mean" the sums are already divided by the weight."""
    check.check_impl(impl)
    check.check_choice("reduction", options.reduction, ("mean", "sum"))
    net = as_network(params, activation, impl)
    reg = check.as_number("reg", reg)
    X = as_inputs(net, X)
    xp, classes = net.xp, net.layers[-1].bias.shape[0]
    with quiet(xp, net.frame.device):
        blocks = check.blocks_of(X)
        frame = check.Frame(xp, net.frame.device, (X.shape[0], classes), 1, net.working, "X", blocks)
        problem = prepare(targets, frame, options, budget(max_memory))
        if frame.lengthless:
            problem = _beside(problem, X)
        plan = plan_chunks(net, X.shape[0], problem, max_memory)
        loss, grads = add_rows(net, X, problem, plan, grad=grad)
        if options.reduction == "mean":
            loss = mean_or_nan(xp, loss, problem.total)
    return net, Sums(loss, problem.total, grads, problem.row_weight), reg


def _beside(problem: Problem, X: Array) -> Problem:
    """The same problem, in which a block that has not the rows of that of X is an error when it is computed."""
    from xpsoftmax.kernels.blocks import beside  # imports dask: not before the caller has

    targets, row_weight = (beside("targets", array, "X", X) for array in (problem.targets, problem.row_weight))
    return problem._replace(targets=targets, row_weight=row_weight)


def add_rows(
    net: Network,
    X: Array,
    problem: Problem,
    plan: Plan,
    *,
    grad: bool,
    buffers: Buffers | None = None,
    out: Params | None = None,
) -> tuple[Array, Params]:
    """Sums of the weighted losses of all rows and of their gradients; on NumPy in `buffers`, and `out`, if given."""
    if buffers is None and len(plan.chunks) > 1 and type(X) is np.ndarray:
        buffers = Buffers()
    loss: Any = None
    sums: list[Layer | None] = [None] * len(net.layers)
    for rows in plan.chunks:
        part, inputs, slopes, delta = _chunk(net, X, problem, rows, grad=grad, buffers=buffers)
        loss = part if loss is None else loss + part
        if grad:
            _backward(net, inputs, slopes, delta, sums, plan.spare, buffers, out)
        del inputs, slopes, delta
    return loss, tuple(layer for layer in sums if layer)


def _chunk(
    net: Network,
    X: Array,
    problem: Problem,
    rows: slice | None,
    *,
    grad: bool,
    buffers: Buffers | None,
) -> tuple[Array, list[Array], list[Array | None], Array]:
    """Loss of a chunk of rows, and with `grad` what `_backward` needs."""
    xp = net.xp
    targets, row_weight = problem.targets, problem.row_weight
    if rows is not None:
        X, targets, row_weight = (_some_rows(array, rows) for array in (X, targets, row_weight))
    if X.dtype != net.working:
        X = xp.astype(X, net.working)
    if targets.ndim == 2:
        targets = check.as_dtype(xp, targets, net.working)
    dead: DeadRows | None = None
    if problem.weighted and not (type(row_weight) is np.ndarray and row_weight.all()):
        # A row that does not count may hold anything: 0 * nan must not reach the weights.
        if is_jax_array(X):
            dead = DeadRows(xp, row_weight)
            X = dead.finite(X)
        else:
            X = xp.where((row_weight != 0.0)[:, None], X, 0.0)
    inputs, slopes, logits = forward(net, X, grad=grad, buffers=buffers, dead=dead)
    kernel = net.kernels.softmax_loss_rows
    out = None
    if grad and _overwrites_logits(net):
        if type(logits) is not np.ndarray or logits.nbytes > SMALL:
            out = logits
        elif buffers is not None:
            out = buffers.take(("dlogits", 0), logits.shape, logits.dtype)
    losses, delta = kernel(logits, targets, row_weight, problem.spec, grad=grad, out=out)
    return summed(xp, losses), inputs, slopes, delta


def _some_rows(array: Array, rows: slice) -> Array:
    return select("some_rows", array, "generic")(array, rows) if is_jax_array(array) else array[rows, ...]


class DeadRows:
    """Rows of weight 0 on their way through the layers, for JAX.

    JAX may differentiate with respect to their weights, which asks for the losses that they would have. They are
    computed like other rows as long as what they hold is finite. From there on they are zeros, and their logits nan.
    """

    def __init__(self, xp: Namespace, row_weight: Array) -> None:
        self._xp, self._dead = xp, row_weight == 0.0
        self._lost = xp.zeros_like(self._dead)

    def finite(self, x: Array) -> Array:
        """Rows (R, H) with zeros in place of those of weight 0 that are not finite."""
        lost = self._dead & ~self._xp.all(self._xp.isfinite(x), axis=1)
        self._lost = self._lost | lost
        return self._xp.where(lost[:, None], 0.0, x)

    def marked(self, logits: Array) -> Array:
        """Logits (R, C) with nan in the rows that were not finite somewhere."""
        return self._xp.where(self._lost[:, None], float("nan"), logits)


def _overwrites_logits(net: Network) -> bool:
    """Whether a kernel computes the loss, and writes the gradient over the logits."""
    return net.kernels.softmax_loss_rows is not generic.softmax_loss_rows and is_writable(net.layers[0].weight)


class Plan(NamedTuple):
    chunks: Sequence[slice | None]
    spare: int  # bytes for the product that is added to a weight gradient


ACTIVATION_ARRAYS = 8
"""Arrays of the size of a hidden layer that an activation holds at most: temporaries, and masks of a byte a number."""
SMALL = 2**20
"""Bytes of NumPy logits up to which their gradient gets an array of its own: the kernel is faster then."""
IN_PLACE = 8 * 2**20
"""Bytes that the kernels hold at most beside what they overwrite."""
MOST_HELD = 16
"""Numbers that are held for a unit of a row at most, in any layer."""


def plan_chunks(net: Network, rows: int, problem: Problem, max_memory: int | None) -> Plan:
    """Cut the rows so that the temporaries of a chunk stay within `max_memory`; small problems are seen at a glance."""
    if max_memory is not None:
        max_memory = check.as_integer("max_memory", max_memory)
    widths = net.layers[0].weight.shape[0] + sum(net.hidden) + net.layers[-1].bias.shape[0]
    if is_dask_array(net.layers[0].weight) or (
        max_memory is None and rows * widths * MOST_HELD * 8 <= DEFAULT_MAX_MEMORY
    ):
        return Plan([None], 0)
    itemsize = itemsize_of(net.xp, net.working)
    soft = problem.targets.ndim == 2 or problem.spec.label_smoothing > 0.0
    hidden, classes = net.hidden, net.layers[-1].bias.shape[0]
    features = net.layers[0].weight.shape[0] if problem.weighted or net.dtype != net.working else 0
    column = itemsize * max(layer.weight.shape[0] for layer in net.layers)

    cast = classes if problem.targets.ndim == 2 and problem.targets.dtype != net.working else 0

    # Numbers a row, forward and back: what is cast, activations and slopes, then the logits with what the loss takes.
    in_place = net.kernels.bias_activation is not generic.bias_activation
    held = features + cast + 2 * sum(hidden)
    if not in_place:  # products stay beside what is made of them
        held += 2 * sum(hidden) + classes
    widest = max(hidden, default=0)
    loss = classes * scratch_arrays(soft=soft, z_loss=problem.spec.z_loss > 0.0)
    forward = held + max(loss, classes + ACTIVATION_ARRAYS * widest)  # the logits of the chunk before may be there
    backward = held + classes + 3 * widest
    least = itemsize * max(forward, backward) + column
    if max_memory is None:
        max_memory = max(DEFAULT_MAX_MEMORY, least)
    if max_memory < least:
        raise ValueError(f"max_memory must be at least {least} bytes, what one row needs, got {max_memory}.")
    spare = max(column, max_memory // 8)
    step = (max_memory - spare) // (itemsize * max(forward, backward))
    if _overwrites_logits(net):
        step = max(step, (max_memory - spare - IN_PLACE) // (itemsize * backward))
    return Plan(chunks_of(rows, max(1, step)), spare)


def chunks_of(rows: int, step: int) -> Sequence[slice | None]:
    """Chunks of `step` rows; None stands for all of them."""
    return [None] if step >= rows else _slices(rows, step)


def budget(max_memory: int | None) -> int:
    """Bytes of temporary memory; `plan_chunks` sees whether they are enough."""
    return DEFAULT_MAX_MEMORY if max_memory is None else check.as_integer("max_memory", max_memory)


def itemsize_of(xp: Namespace, dtype: DType) -> int:
    """Bytes of a number."""
    if isinstance(dtype, np.dtype):
        return dtype.itemsize
    return int(xp.finfo(dtype).bits) // 8


# --- regularisation ---------------------------------------------------------------------------------------------------


def penalised(net: Network, loss: Array, reg: float) -> Array:
    if reg == 0.0:
        return loss
    for layer in net.layers:
        loss = loss + net.kernels.weight_penalty(layer.weight, None, reg)[0]
    return net.xp.asarray(loss)


def finished(net: Network, loss: Array, grads: Params, reg: float | Array) -> tuple[Array, Params]:
    """Add the penalty and its gradient; return the gradients, which may be overwritten, in the parameters' dtype."""
    if not (type(reg) is float and reg == 0.0):  # an array is not looked at: it may be on a device
        complete = []
        for layer, grad in zip(net.layers, grads, strict=True):
            penalty, weight = net.kernels.weight_penalty(layer.weight, grad.weight, reg)
            loss = loss + penalty
            complete.append(type(grad)(weight, grad.bias))
        loss, grads = net.xp.asarray(loss), tuple(complete)
    if net.dtype != net.working:
        grads = tuple(type(layer)(*(narrowed(net.xp, array, net.dtype) for array in layer)) for layer in grads)
    return loss, grads
