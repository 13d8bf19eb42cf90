"""Bias and activation of a layer, the backward pass of the activation, and updates of parameters, on CuPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import cupy

from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.activations import Activation
from xpsoftmax.kernels.cuda import launches, plan
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
    function = plan.RULES.get(rule)
    if function is None:
        return generic.parameter_update(rule, arrays, grad, numbers, ok=ok)
    with grad.device:
        after = tuple(cupy.ascontiguousarray(array) if in_place else array.copy(order="C") for array in arrays)
        slopes = cupy.ascontiguousarray(grad)
        if slopes.size:
            addresses = tuple(address_of(array) for array in after)
            dtype = dtype_name(slopes.dtype)
            launches.run(
                plan.update_launch(function, addresses, address_of(slopes), address_of(ok), slopes.size, dtype, numbers)
            )
        return after
