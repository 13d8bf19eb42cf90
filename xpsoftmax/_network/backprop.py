"""Backpropagation: a chunk of rows forward through all layers, and the gradients of its logits backward.

a[0] = X,  z[l] = a[l-1] W[l] + b[l],  a[l] = activation(z[l]),  logits = z[L]
delta[L] = dloss/dlogits,  dW[l] = a[l-1]^T delta[l],  db[l] = 1^T delta[l],
delta[l-1] = (delta[l] W[l]^T) * activation'(z[l-1])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import is_dask_array, is_jax_array

from xpsoftmax._network.chunks import is_writable, itemsize_of, slices
from xpsoftmax._network.layers import Layer, Params
from xpsoftmax._network.network import Network
from xpsoftmax._typing import Array, DType, Namespace
from xpsoftmax.kernels import generic, of_library, select, sparse
from xpsoftmax.kernels.activations import ACTIVATIONS, IDENTITY
from xpsoftmax.kernels.memory import aligned_if_large
from xpsoftmax.kernels.sparse import is_sparse


class Buffers:
    """Arrays by name that are reused by the next chunk of rows, and by the next call with the same shapes.

    The system maps new memory page by page when it is first written, which takes as long as the arithmetic.
    """

    def __init__(self) -> None:
        self._arrays: dict[Any, Array] = {}

    def take(self, name: tuple[str, int], shape: tuple[int, int], dtype: DType) -> Array:
        """An array of this shape, with any contents."""
        array = self._arrays.get(name)
        if array is not None and array.shape == shape and array.dtype == dtype:
            return array
        if array is None or array.shape[0] < shape[0] or array.shape[1] != shape[1] or array.dtype != dtype:
            self._arrays[name] = array = None  # frees the old array before the new one is made
            array = self._arrays[name] = np.empty(shape, dtype)
        return array[: shape[0]]


def _product(left: Array, right: Array, buffers: Buffers | None, name: tuple[str, int]) -> Array:
    if is_sparse(left):
        return sparse.product(left, right)
    if buffers is None:
        return of_library("product", left)(left, right)
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

    `watch` is called with the product of the inputs and the first weight. `dead` has the rows of weight 0, which may
    hold numbers that are not finite.
    """
    inputs: list[Array] = [X]
    slopes: list[Array | None] = []
    *hidden, last = net.layers
    activation = ACTIVATIONS[net.activation]
    has_slopes = grad and activation.kept == "slope"
    for i, layer in enumerate(hidden):
        z = _product(inputs[-1], layer.weight, buffers, ("z", i))
        if watch is not None and i == 0:
            watch(z)
        if dead is not None:
            z = dead.finite(z)
        out = buffers.take(("slope", i), z.shape, z.dtype) if has_slopes and buffers else None
        value, slope = net.kernels.bias_activation(z, layer.bias, activation, grad=grad, out=out)
        inputs.append(value)
        slopes.append(slope)
    z = _product(inputs[-1], last.weight, buffers, ("z", len(hidden)))
    if watch is not None and not hidden:
        watch(z)
    logits = net.kernels.bias_activation(z, last.bias, IDENTITY, grad=False)[0]
    return inputs, slopes, logits if dead is None else dead.marked(logits)


def backward(
    net: Network,
    inputs: list[Array],
    slopes: list[Array | None],
    delta: Array,
    sums: list[Layer | None],
    spare: int,
    buffers: Buffers | None,
    grads: Params | None,
) -> None:
    """Add the gradients of a chunk to `sums`, given the gradient `delta` of its logits.

    The gradients of the first chunk are written to `grads`, if given.
    """
    xp = net.xp
    deltas: list[Array] | None = None
    # A plan of memory counts the gradients of the logits and of three times the widest layer (chunks.py).
    has_room = spare == 0 or sum(net.hidden) <= 3 * max(net.hidden, default=0)
    if has_room and sums[0] is None and net.kernels.has_kernel("sums_of_rows"):
        deltas = []  # of all layers: their rows are added up at once
    for i in reversed(range(len(net.layers))):
        before, into, kind = sums[i], None if grads is None else grads[i], type(net.layers[i])
        if deltas is not None:
            deltas.insert(0, delta)
            sums[i] = kind(_gradient_of_weight(net, inputs[i], delta, net.layers[i]), net.layers[i].bias)
        elif before is None:
            sums[i] = _first_sums(net, inputs[i], delta, into, net.layers[i])
        else:
            weight = _add_product(xp, before.weight, inputs[i], delta, spare, buffers)
            sums[i] = kind(weight, before.bias + _sum_of_rows(net, delta))
        if i > 0:
            delta = _product(delta, net.layers[i].weight.T, buffers, ("delta", i))
            delta = net.kernels.activation_backward(delta, slopes[i - 1], ACTIVATIONS[net.activation])
    if deltas is not None:
        biases = net.kernels.sums_of_rows(deltas)
        sums[:] = [type(layer)(layer.weight, bias) for layer, bias in zip(sums, biases, strict=True) if layer]


def _first_sums(net: Network, left: Array, delta: Array, into: Layer | None, like: Layer) -> Layer:
    kind = type(like)
    if type(delta) is np.ndarray and not is_sparse(left):  # without the wrappers of the namespace, which cost time
        weight, bias = (None, None) if into is None else into
        if weight is None:
            weight = aligned_if_large((left.shape[1], delta.shape[1]), delta.dtype)
        return kind(np.matmul(left.T, delta, out=weight), _sum_of_rows(net, delta, bias))
    return kind(_gradient_of_weight(net, left, delta, like), _sum_of_rows(net, delta))


def _gradient_of_weight(net: Network, left: Array, delta: Array, like: Layer) -> Array:
    if is_sparse(left):
        return sparse.transposed_product(left, delta)
    return _transposed_product(net.xp, left, delta, like.weight)


def _transposed_product(xp: Namespace, left: Array, right: Array, like: Array) -> Array:
    """Return left^T right; JAX distributes it over its devices as `like` is distributed."""
    transposed = xp.matrix_transpose(left)
    if is_jax_array(left):
        return select("product", left, "generic")(transposed, right, like)
    return xp.matmul(transposed, right)


def _sum_of_rows(net: Network, delta: Array, out: Array | None = None) -> Array:
    """Sum over the rows of an array (R, H), accurate for any number of rows; with NumPy, written to `out`.

    NumPy adds parts of long sums, and then the parts: adding in float64 would take five times as long.
    """
    if is_dask_array(delta):
        return generic.sum_of_rows(delta)
    if type(delta) is not np.ndarray:
        return net.kernels.sum_of_rows(delta)
    if delta.shape[0] <= generic.ROWS_OF_A_SUM:
        return np.add.reduce(delta, axis=0, out=out)
    whole = delta.shape[0] - delta.shape[0] % generic.ROWS_OF_A_SUM
    parts = np.add.reduce(delta[:whole].reshape(-1, generic.ROWS_OF_A_SUM, delta.shape[1]), axis=1)
    total = np.add.reduce(parts, axis=0, dtype=np.float64)
    total += np.add.reduce(delta[whole:], axis=0)
    if out is None:
        return total.astype(delta.dtype, copy=False)
    out[...] = total
    return out


def _add_product(xp: Namespace, total: Array, left: Array, right: Array, spare: int, buffers: Buffers | None) -> Array:
    """Return total + left^T right: in place, if `total` can be written to, and by columns of at most `spare` bytes."""
    if not is_writable(total):
        return total + _transposed_product(xp, left, right, total)
    rows, columns = total.shape
    step = max(1, spare // max(1, rows * itemsize_of(xp, total.dtype)))
    for part in slices(columns, step):
        product = _product(left.T, _columns(right, part), buffers, ("product", columns - part.start >= step))
        total[:, part] += product
    return total


def _columns(array: Array, part: slice) -> Array:
    """Return columns, all of them as they are: sparse products would copy a view."""
    return array if part == slice(0, array.shape[1]) else array[:, part]


class DeadRows:
    """Rows of weight 0 as they pass through the layers, for JAX.

    JAX may differentiate with respect to their weights, for which it needs the losses that they would have. Such a row
    is computed like other rows as long as its numbers are finite. From the first layer where they are not, the row is
    replaced by zeros, and its logits become nan.
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
        """Logits (R, C) with nan in the rows that were not finite in some layer."""
        return self._xp.where(self._lost[:, None], float("nan"), logits)
