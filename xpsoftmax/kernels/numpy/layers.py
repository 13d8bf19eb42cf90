"""What is done to each unit of a layer, and to each parameter, on NumPy: in place, in parts that stay in a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from xpsoftmax._typing import Array
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.activations import ACTIVATIONS
from xpsoftmax.kernels.numpy.threads import share

PART = 2**20
"""Bytes of the first array of a part: a second pass over it still finds it in the cache, and there are few calls."""
PART_OF_EXP = 2**18
"""The same for formulas with half a dozen temporaries."""
SHARE = 2**21
"""Bytes of the first array that a thread must have to do."""


def in_parts(compute: Callable[..., None], *arrays: Array, part: int = PART) -> None:
    """Call `compute` with parts of arrays that together cover all; in threads if that pays.

    They are of equal lengths, and none is larger than the first.
    """
    size = arrays[0].nbytes
    if size <= part:
        compute(*arrays)
        return
    length = arrays[0].shape[0]
    step = max(1, length * part // size)

    def worker(starts: Iterator[int]) -> None:
        for start in starts:
            compute(*[array[start : start + step] for array in arrays])

    starts = range(0, length, step)
    threads = size // SHARE
    if threads > 1:
        share(worker, starts, threads)
    else:
        worker(iter(starts))


def bias_activation(
    z: Array, bias: Array, activation: str, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.bias_activation`."""
    if activation == "identity":
        in_parts(lambda z: np.add(z, bias, out=z), z)
        return z, None
    if activation == "relu":
        zero = np.zeros_like(bias)  # with a single number NumPy takes twice as long

        def relu(z: Array) -> None:
            np.add(z, bias, out=z)
            np.maximum(z, zero, out=z)

        in_parts(relu, z)
        return z, z if grad else None
    f = ACTIVATIONS[activation]
    if not grad:

        def value(z: Array) -> None:
            np.add(z, bias, out=z)
            z[...] = f.function(np, z)

        in_parts(value, z, part=PART_OF_EXP)
        return z, None

    def both(z: Array, slope: Array) -> None:
        np.add(z, bias, out=z)
        z[...], slope[...] = f.with_slope(np, z)

    slope = np.empty_like(z) if out is None else out
    in_parts(both, z, slope, part=PART_OF_EXP)
    return z, slope


def activation_backward(delta: Array, slope: Array | None, activation: str) -> Array:
    """See `xpsoftmax.kernels.generic.activation_backward`."""
    if slope is not None:
        in_parts(_relu_backward if activation == "relu" else _times, delta, slope)
    return delta


def _relu_backward(delta: Array, value: Array) -> None:
    np.multiply(delta, value > 0.0, out=delta)


def _times(delta: Array, slope: Array) -> None:
    np.multiply(delta, slope, out=delta)


def weight_penalty(weight: Array, grad: Array | None, reg: float | Array) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.weight_penalty`; the parts of the sum are always the same."""
    if grad is not None:
        in_parts(lambda g, w: np.add(g, reg * w, out=g), grad, weight)
    if weight.nbytes <= PART:
        return 0.5 * reg * np.add.reduce(np.square(weight), axis=None), grad
    step = max(1, weight.shape[0] * PART // weight.nbytes)
    squares = [np.square(weight[start : start + step]).sum() for start in range(0, weight.shape[0], step)]
    return 0.5 * reg * np.sum(squares), grad


def parameter_update(
    rule: Callable[..., tuple[Array, ...]],
    arrays: Sequence[Array],
    grad: Array,
    numbers: tuple[float, ...],
    *,
    ok: Array | None = None,
    in_place: bool = False,
) -> tuple[Array, ...]:
    """See `xpsoftmax.kernels.generic.parameter_update`; not with `ok`: a NumPy program can look at its numbers."""
    if ok is not None:
        return generic.parameter_update(rule, arrays, grad, numbers, ok=ok)
    in_place_rule = IN_PLACE.get(rule.__name__)
    if in_place_rule is not None and (in_place or len(arrays) > 1):  # to copy a single one would be a call more
        after = arrays if in_place else [array.copy() for array in arrays]
        in_parts(lambda *parts: in_place_rule(*parts, *numbers), *after, grad)
        return tuple(after)
    if grad.nbytes <= PART:
        return rule(*arrays, grad, *numbers)
    after = arrays if in_place else [np.empty_like(array) for array in arrays]
    count = len(arrays)

    def update(*parts: Array) -> None:
        for result, value in zip(parts[count + 1 :], rule(*parts[: count + 1], *numbers), strict=True):
            result[...] = value

    in_parts(update, *arrays, grad, *after)
    return tuple(after)


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
    """`adam_rule`, step by step, so that it has the same bits."""
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


IN_PLACE: dict[str, Callable[..., None]] = {"sgd_rule": _sgd, "adam_rule": _adam, "adamw_rule": _adamw}
"""Rules, by name, that overwrite what they are given, but for the gradient."""
