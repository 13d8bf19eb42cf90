"""Clipping of gradients by their global norm: an optimiser that wraps another one."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from xpsoftmax._arguments.options import as_number
from xpsoftmax._arguments.suggestions import CLIPPING, suggesting
from xpsoftmax._network.layers import Params
from xpsoftmax._network.vectors import vector_of
from xpsoftmax._train.optimizers import LearningRate, Optimizer, State
from xpsoftmax._typing import Array
from xpsoftmax.kernels.rules import Rule


@dataclass(frozen=True)
class Clipped(Optimizer):
    """What `clip_by_global_norm` returns: the optimiser's rule, state and rate, with shortened gradients."""

    optimizer: Optimizer
    max_norm: float

    @property
    def learning_rate(self) -> LearningRate:  # type: ignore[override]
        return self.optimizer.learning_rate

    @property
    def kept(self) -> int:
        return self.optimizer.kept

    @property
    def squares(self) -> tuple[int, ...]:
        return self.optimizer.squares

    def rule(self, rate: float, step: int) -> tuple[Rule, tuple[float, ...]]:
        return self.optimizer.rule(rate, step)

    def step(
        self, params: Params, grads: Params, state: State, *, ok: Array | None = None, in_place: bool = False
    ) -> tuple[Params, State]:
        grads = shortened(grads, self.max_norm, in_place=in_place)
        return self.optimizer.step(params, grads, state, ok=ok, in_place=in_place)


@suggesting(**dict.fromkeys((*CLIPPING, "norm", "threshold"), "max_norm="))
def clip_by_global_norm(optimizer: Optimizer, max_norm: float) -> Optimizer:
    r"""Shorten gradients whose norm, over all layers, is above a bound; then make the optimiser's update.

    .. math:: g \leftarrow g \cdot \min\Bigl(1, \frac{c}{\lVert g \rVert}\Bigr), \qquad
              \lVert g \rVert^2 = \sum_\text{layers} \sum_{ij} W_{ij}'^2 + \sum_j b_j'^2

    Parameters
    ----------
    optimizer : Optimizer
        What `sgd`, `adam` or `adamw` returned.
    max_norm : float
        :math:`c`, above 0.

    Returns
    -------
    Optimizer
        Its state is that of `optimizer`: a training can be resumed with either.

    Raises
    ------
    TypeError, ValueError
        If `optimizer` is not an optimiser, or `max_norm` not a number above 0.

    Notes
    -----
    The gradient of a penalty (`reg`) is part of the gradients; the decay of `adamw` is not. The norm stays on the
    device of the gradients: nothing waits for it. Squares neither overflow nor underflow. Gradients that are not finite
    are left as they are, and training ends as without clipping.

    References
    ----------
    R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
    arXiv:1211.5063.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = (xs.Layer(np.zeros((1, 2)), np.zeros(2)),)
    >>> grads = (xs.Layer(np.array([[30.0, 40.0]]), np.zeros(2)),)
    >>> optimizer = xs.clip_by_global_norm(xs.sgd(1.0), 5.0)
    >>> params, state = optimizer.update(params, grads, optimizer.init(params))
    >>> params[0].weight
    array([[-3., -4.]])
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be made by sgd, adam or adamw, got {optimizer!r:.60}.")
    max_norm = as_number("max_norm", max_norm)
    if max_norm == 0.0:
        raise ValueError("max_norm must be above 0, got 0.0.")
    return Clipped(optimizer, max_norm)


def shortened(grads: Params, max_norm: float, *, in_place: bool = False) -> Params:
    """Return gradients whose norm is at most `max_norm`; those of NumPy may be overwritten with `in_place`."""
    if type(grads[0].weight) is not np.ndarray:
        return _scaled(grads, _factor(grads, max_norm))
    vector = vector_of(grads)
    norm = _norm_on_host(list(_arrays(grads)) if vector is None else [vector])
    if not norm > max_norm or math.isinf(norm):
        return grads
    if in_place:
        for array in _arrays(grads) if vector is None else (vector,):
            array *= max_norm / norm
        return grads
    return _scaled(grads, max_norm / norm)


def _arrays(grads: Params) -> Iterator[Array]:
    return (array for layer in grads for array in layer if 0 not in array.shape)


def _scaled(grads: Params, factor: Any) -> Params:
    return tuple(type(layer)(*(array * factor for array in layer)) for layer in grads)


def _norm_on_host(arrays: list[np.ndarray]) -> float:
    """Return the norm of NumPy arrays; nan or infinity where their numbers are not finite."""
    with np.errstate(all="ignore"):
        total = sum(float(np.vdot(array, array)) for array in arrays)
        if 1e-30 < total < 1e30:
            return math.sqrt(total)
        largest = max(float(np.abs(array).max()) for array in arrays)
        if largest == 0.0 or not math.isfinite(largest):
            return largest
        # Squares would overflow, or lose their digits: the largest number is made 1 first.
        return largest * math.sqrt(sum(float(np.vdot(array / largest, array / largest)) for array in arrays))


def _factor(grads: Params, max_norm: float) -> Array:
    """Return what shortens the gradients, 0-d and on their device; 1 where they are short, or not finite."""
    xp = array_namespace(grads[0].weight)
    largest = functools.reduce(xp.maximum, (xp.max(xp.abs(array)) for array in _arrays(grads)))
    some = xp.isfinite(largest) & (largest > 0.0)
    unit = xp.where(some, largest, xp.ones_like(largest))
    total: Any = sum(xp.sum((array / unit) ** 2) for array in _arrays(grads))
    norm = unit * xp.sqrt(total)
    bound = xp.full_like(norm, max_norm)
    return bound / xp.where((norm > max_norm) & xp.isfinite(norm), norm, bound)
