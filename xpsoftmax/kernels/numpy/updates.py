"""Updates of parameters, and the L2 penalty, on NumPy arrays: in place, tile by tile.

The rules that training uses most are repeated here in place, one ufunc call a step. The steps and their order are those
of the formula, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from xpsoftmax._typing import Array
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.numpy.elementwise import TILE, in_tiles
from xpsoftmax.kernels.rules import ADAM, ADAMW, SGD, Rule


def weight_penalty(weight: Array, grad: Array | None, reg: float | Array) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.weight_penalty`."""
    if grad is not None:
        in_tiles(lambda g, w: np.add(g, reg * w, out=g), grad, weight)
    if weight.nbytes <= TILE:
        return 0.5 * reg * np.add.reduce(np.square(weight), axis=None), grad
    # The tiles do not depend on the number of threads, so neither do the bits of the sum.
    step = max(1, weight.shape[0] * TILE // weight.nbytes)
    squares = [np.square(weight[start : start + step]).sum() for start in range(0, weight.shape[0], step)]
    return 0.5 * reg * np.sum(squares), grad


weight_penalties = partial(generic.weight_penalties, penalty=weight_penalty)


def parameter_update(
    rule: Rule,
    arrays: Sequence[Array],
    grad: Array,
    numbers: tuple[float, ...],
    *,
    ok: Array | None = None,
    in_place: bool = False,
) -> tuple[Array, ...]:
    """See `xpsoftmax.kernels.generic.parameter_update`."""
    if ok is not None:  # unusual: code for NumPy can look at the number before the update
        return generic.parameter_update(rule, arrays, grad, numbers, ok=ok)
    in_place_rule = IN_PLACE.get(rule)
    # A single array is not copied first: its formula writes a new array anyway.
    if in_place_rule is not None and (in_place or len(arrays) > 1):
        after = arrays if in_place else [array.copy() for array in arrays]
        in_tiles(lambda *tiles: in_place_rule(*tiles, *numbers), *after, grad)
        return tuple(after)
    if grad.nbytes <= TILE:
        return rule(*arrays, grad, *numbers)
    after = arrays if in_place else [np.empty_like(array) for array in arrays]
    count = len(arrays)

    def update(*tiles: Array) -> None:
        for result, value in zip(tiles[count + 1 :], rule(*tiles[: count + 1], *numbers), strict=True):
            result[...] = value

    in_tiles(update, *arrays, grad, *after)
    return tuple(after)


parameter_updates = partial(generic.parameter_updates, update=parameter_update)


def _sgd(p: Array, g: Array, rate: float) -> None:
    p -= rate * g


def _adam(
    p: Array,
    m: Array,
    v: Array,
    g: Array,
    rate: float,
    root: float,
    b1: float,
    rest1: float,
    b2: float,
    rest2: float,
    eps: float,
) -> None:
    t, u = np.multiply(g, rest1), np.multiply(g, g)
    m *= b1
    m += t
    u *= rest2
    v *= b2
    v += u
    np.sqrt(v, out=u)
    if root != 1.0:
        u *= root
    u += eps
    np.multiply(m, rate, out=t)
    t /= u
    p -= t


def _adamw(p: Array, m: Array, v: Array, g: Array, shrink: float, *numbers: float) -> None:
    p *= shrink
    _adam(p, m, v, g, *numbers)


IN_PLACE: dict[Rule, Callable[..., None]] = {SGD: _sgd, ADAM: _adam, ADAMW: _adamw}
"""Rules that overwrite the parameter and the arrays kept of it, but not the gradient."""
