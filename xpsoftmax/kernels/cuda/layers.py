"""Bias and activation of a layer, the backward pass of the activation, and updates of parameters, on CuPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import cupy

from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.activations import Activation
from xpsoftmax.kernels.cuda import launches, plan, table_plan
from xpsoftmax.kernels.cuda.arrays import address_of, delivered, in_rows, matrix_of, result_for
from xpsoftmax.kernels.rules import Rule


def bias_activation(
    z: Array, bias: Array, activation: Activation, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.bias_activation`; in place."""
    with z.device:
        value, shift = in_rows(z), cupy.ascontiguousarray(bias)
        slope = result_for(value, out) if grad and activation.kept == "slope" else None
        if value.size:
            written = None if slope is None else matrix_of(slope)
            launches.run(plan.bias_activation_launch(matrix_of(value), address_of(shift), written, activation.name))
        if grad and activation.kept == "value":
            return value, value
        return value, None if slope is None else delivered(slope, out)


def activation_backward(delta: Array, slope: Array | None, activation: Activation) -> Array:
    """See `xpsoftmax.kernels.generic.activation_backward`; in place."""
    if slope is None:
        return delta
    with delta.device:
        rows, slopes = in_rows(delta), in_rows(slope)
        if rows.size:
            step = activation.kept == "value"
            launches.run(plan.activation_backward_launch(matrix_of(rows), matrix_of(slopes), step=step))
        return delivered(rows, delta)


def parameter_updates(
    rule: Rule,
    groups: Sequence[Sequence[Array]],
    grads: Sequence[Array],
    numbers: tuple[float, ...],
    *,
    ok: Array | None = None,
    in_place: bool = False,
) -> list[tuple[Array, ...]]:
    """See `xpsoftmax.kernels.generic.parameter_updates`; one launch for all parameters."""
    function = table_plan.RULES.get(rule)
    if function is None:
        return generic.parameter_updates(rule, groups, grads, numbers, ok=ok)
    with grads[0].device:
        # Copies, where they are needed; they must live until the launch.
        before = [[cupy.ascontiguousarray(array) for array in arrays] for arrays in groups]
        slopes = [cupy.ascontiguousarray(grad) for grad in grads]
        after = before if in_place else [[cupy.empty(x.shape, x.dtype) for x in arrays] for arrays in before]
        parameters = [
            (tuple(map(address_of, old)), tuple(map(address_of, new)), address_of(grad), grad.size)
            for old, new, grad in zip(before, after, slopes, strict=True)
            if grad.size
        ]
        for launch in table_plan.update_launches(
            function, parameters, address_of(ok), dtype_name(slopes[0].dtype), numbers
        ):
            launches.run(launch)
        return [tuple(arrays) for arrays in after]
