"""Bias and activation of a layer, the gradient of the bias, the L2 penalty, and updates of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from array_api_compat import array_namespace, is_jax_array, is_torch_array

from xpsoftmax._typing import Array
from xpsoftmax.kernels.activations import Activation
from xpsoftmax.kernels.rules import Rule


def bias_activation(
    z: Array,
    bias: Array,
    activation: Activation,
    *,
    grad: bool,
    out: Array | None = None,  # noqa: ARG001
) -> tuple[Array, Array | None]:
    """Activation of z + bias (R, H) and, with `grad`, what `activation_backward` needs to know of its slope.

    A kernel may overwrite z, and write the slope into `out`.
    """
    xp = array_namespace(z)
    z = z + bias
    return activation.with_slope(xp, z) if grad else (activation.function(xp, z), None)


def activation_backward(delta: Array, slope: Array | None, activation: Activation) -> Array:
    """Gradient (R, H) with respect to the pre-activation, from `delta`, the gradient with respect to the activation.

    `slope` is what `bias_activation` returned. A kernel may overwrite `delta`.
    """
    if slope is None:
        return delta
    if activation.kept == "value":
        slope = array_namespace(delta).astype(slope > 0.0, delta.dtype)
    return delta * slope


def weight_penalty(weight: Array, grad: Array | None, reg: float | Array) -> tuple[Array, Array | None]:
    """The L2 penalty ``reg/2 * sum(W**2)``, and `grad` plus the gradient of the penalty, ``reg * W``.

    A kernel may overwrite `grad`.
    """
    xp = array_namespace(weight)
    return 0.5 * reg * xp.sum(weight * weight), None if grad is None else grad + reg * weight


def weight_penalties(
    weights: Sequence[Array],
    grads: Sequence[Array] | None,
    reg: float | Array,
    loss: Array,
    penalty: Callable[..., tuple[Array, Array | None]] = weight_penalty,
) -> tuple[Array, Sequence[Array] | None]:
    """Return a loss plus the penalties of all weights, and the gradients plus those of the penalties.

    A kernel may overwrite the gradients. `penalty` is what computes the penalty of one weight.
    """
    found = [penalty(w, g, reg) for w, g in zip(weights, grads or [None] * len(weights), strict=True)]
    for value, _ in found:
        loss = loss + value
    return loss, None if grads is None else [grad for _, grad in found]


ROWS_OF_A_SUM = 256
"""Most rows that are added one after the other: a sum of a million rows would keep two digits in float32."""


def sum_of_rows(x: Array) -> Array:
    """Sum over the rows of an array (R, H), accurate for any number of rows.

    Libraries that may add one row after the other add in float64. PyTorch and JAX add parts themselves.
    """
    xp = array_namespace(x)
    if x.shape[0] <= ROWS_OF_A_SUM or is_torch_array(x) or is_jax_array(x):
        return xp.sum(x, axis=0)
    return xp.astype(xp.sum(x, axis=0, dtype=xp.float64), x.dtype)


def sums_of_rows(matrices: Sequence[Array]) -> list[Array]:
    """Sums over the rows of several arrays (R, H) with equally many rows."""
    return [sum_of_rows(x) for x in matrices]


def parameter_update(
    rule: Rule,
    arrays: Sequence[Array],
    grad: Array,
    numbers: tuple[float, ...],
    *,
    ok: Array | None = None,
    in_place: bool = False,  # noqa: ARG001
) -> tuple[Array, ...]:
    """Apply an update rule to a parameter and the arrays that the optimiser keeps of it.

    `arrays` are these, the parameter first. The result has their new values, or the old ones where `ok` (0-d) is false.
    With `in_place` a kernel may overwrite `arrays`.
    """
    after = rule(*arrays, grad, *numbers)
    if ok is None:
        return after
    xp = array_namespace(grad)
    return tuple(xp.where(ok, new, old) for new, old in zip(after, arrays, strict=True))


def parameter_updates(
    rule: Rule,
    groups: Sequence[Sequence[Array]],
    grads: Sequence[Array],
    numbers: tuple[float, ...],
    *,
    ok: Array | None = None,
    in_place: bool = False,
    update: Callable[..., tuple[Array, ...]] = parameter_update,
) -> list[tuple[Array, ...]]:
    """Apply an update rule to several parameters: `parameter_update` of each group of arrays and its gradient.

    `update` is what updates one parameter.
    """
    pairs = zip(groups, grads, strict=True)
    return [update(rule, arrays, grad, numbers, ok=ok, in_place=in_place) for arrays, grad in pairs]
