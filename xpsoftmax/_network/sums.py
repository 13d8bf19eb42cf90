"""Sums of losses and gradients over rows, and the means that the public functions return."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from xpsoftmax._arguments.home import on_device
from xpsoftmax._arguments.options import as_number
from xpsoftmax._arguments.views import on_views
from xpsoftmax._network.layers import Layer, PairsOfArrays, Params, sizes_of, with_types_of
from xpsoftmax._network.matching import check_matching
from xpsoftmax._network.network import Network, as_network
from xpsoftmax._typing import Array, Namespace
from xpsoftmax.kernels.generic import narrowed


class PartialSums(NamedTuple):
    """Sums over some of the rows, as `mlp_partial_sums` returns them.

    The sums of disjoint sets of rows add up to the sums of all rows: add them with ``+`` or `sum`, then call `finish`.

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

    def __repr__(self) -> str:
        return f"PartialSums({sizes_of(self.grads)}, loss {self.loss}, weight {self.weight})"

    @on_views()
    def __add__(self, other: object) -> PartialSums:
        """Sums over the rows of both."""
        if not isinstance(other, PartialSums):
            return NotImplemented
        check_matching("other", other.grads, self.grads)
        with on_device(array_namespace(self.loss), device(self.loss)):
            pairs = zip(self.grads, other.grads, strict=True)
            grads = tuple(_kind_of_either(a, b)(a.weight + b.weight, a.bias + b.bias) for a, b in pairs)
            return PartialSums(self.loss + other.loss, self.weight + other.weight, grads)

    def __radd__(self, other: object) -> PartialSums:
        """Make `sum` work, which starts from 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    @on_views()
    def finish(self, params: PairsOfArrays, *, reg: float = 0.0) -> tuple[Array, Params]:
        """Loss and gradients of the weighted mean plus ``reg/2 * sum(W**2)``, as `mlp_loss_and_grad` returns them.

        Parameters
        ----------
        params : sequence of Layer
            The parameters with which the sums were computed.
        reg : float
            Strength of the L2 penalty on the weight matrices.

        Returns
        -------
        loss : array, 0-d
            nan if the sum of the weights is 0.
        grads : tuple of Layer
            In the dtype of `params`; 0 if the sum of the weights is 0.

        Raises
        ------
        TypeError, ValueError
            If `params` or `reg` does not fit.
        """
        net = as_network(params, None)
        check_matching("params", net.layers, self.grads)
        if self.loss.dtype != net.working:
            raise TypeError(f"params must be of a dtype that is summed in {self.loss.dtype}, got {net.dtype}.")
        reg = as_number("reg", reg)
        with net.home.context():
            loss, grads = self.mean(net.xp)
            return with_penalty(net, loss, with_types_of(grads, net.layers), reg)

    def mean(self, xp: Namespace) -> tuple[Array, Params]:
        """Loss and gradients divided by the weight; nan and 0 where the weight is 0."""
        nothing = self.weight == 0.0
        weight = xp.where(nothing, 1.0, xp.where(xp.isfinite(self.weight), self.weight, float("nan")))
        loss = xp.where(nothing, float("nan"), self.loss / weight)
        return loss, tuple(type(layer)(*(xp.where(nothing, 0.0, g / weight) for g in layer)) for layer in self.grads)


def _kind_of_either(layer: Layer, other: Layer) -> type[Layer]:
    """Type of the one of two layers that carries an activation, if either does."""
    return type(layer) if layer.activation is not None else type(other)


class Sums(NamedTuple):
    """Sums over all rows of a call, from which `PartialSums` or loss and gradients are made."""

    loss: Array
    weight: Array | float
    grads: Params
    row_weight: Array | float  # (R,): product of all that multiplies a row, 0 where it does not count; or that of all

    def has_rows(self, net: Network) -> bool:
        """Whether a row counts; it waits for the device where rows have different weights."""
        if type(self.row_weight) is float:
            return self.weight != 0.0
        return bool(net.xp.any(self.row_weight != 0.0))

    def partial(self, net: Network) -> PartialSums:
        """The sums in the public form, with an array for the weight."""
        weight = self.weight
        if type(weight) is float:
            with on_device(net.xp, net.home.device):
                weight = net.xp.full_like(self.loss, weight)
        return PartialSums(self.loss, weight, self.grads)


def loss_with_penalty(net: Network, loss: Array, reg: float) -> Array:
    """Add the L2 penalty to a loss."""
    if reg == 0.0:
        return loss
    loss = net.kernels.weight_penalties([layer.weight for layer in net.layers], None, reg, loss)[0]
    return net.xp.asarray(loss) if isinstance(loss, np.generic) else loss


def with_penalty(net: Network, loss: Array, grads: Params, reg: float | Array) -> tuple[Array, Params]:
    """Add the L2 penalty and its gradient; return the gradients in the dtype of the parameters.

    The gradients that are given may be overwritten.
    """
    if not (type(reg) is float and reg == 0.0):  # reading an array would wait for its device
        weights, of_weights = [layer.weight for layer in net.layers], [grad.weight for grad in grads]
        loss, of_weights = net.kernels.weight_penalties(weights, of_weights, reg, loss)
        loss = net.xp.asarray(loss)
        grads = tuple(type(grad)(weight, grad.bias) for grad, weight in zip(grads, of_weights, strict=True))
    if net.dtype != net.working:
        grads = tuple(type(layer)(*(narrowed(net.xp, array, net.dtype) for array in layer)) for layer in grads)
    return loss, grads
