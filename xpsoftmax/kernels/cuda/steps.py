"""The operations of a training step on existing CuPy arrays: none allocates memory, and none waits.

Each takes the arrays and options of an `Operation` of xpsoftmax/_train/programs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy

from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.kernels.cuda import clip_plan, launches, plan, step_plan
from xpsoftmax.kernels.cuda.arrays import address_of, matrix_of
from xpsoftmax.kernels.cuda.launches import capability_of
from xpsoftmax.kernels.rules import Rule


def gather(source: Array, order: Array, place: Array, weights: Array | None, out: Array) -> None:
    """Copy the rows of a batch, in the dtype of `out`; those that weigh 0 become zeros."""
    columns = source.shape[1] if source.ndim == 2 else 1
    stride = source.strides[0] // source.itemsize
    matrix = plan.Matrix(address_of(source), source.shape[0], columns, stride, dtype_name(source.dtype))
    addresses = address_of(order), address_of(place), address_of(weights), address_of(out)
    launches.run(step_plan.gather_launch(matrix, *addresses, out.shape[0], dtype_name(out.dtype)))


def weigh(counting: Array, weights: Array | None, strength: Array | None, *, reg: float) -> None:
    """Divide the weights of a batch, and the strength of the penalty, by the sum of the counting weights."""
    addresses = address_of(counting), address_of(weights)
    dtype = dtype_name(counting.dtype)
    launches.run(step_plan.weigh_launch(*addresses, counting.size, reg, address_of(strength), dtype))


def bias_activation(z: Array, bias: Array, slopes: Array | None, *, activation: str) -> None:
    """Write f(z + bias) in the place of z, and the slopes."""
    written = None if slopes is None else matrix_of(slopes)
    launches.run(plan.bias_activation_launch(matrix_of(z), address_of(bias), written, activation))


def softmax_loss(
    logits: Array,
    targets: Array,
    weights: Array | None,
    class_weight: Array | None,
    terms: Array,
    *,
    weight_of_all: float,
    label_smoothing: float,
    z_loss: float,
) -> None:
    """Write the losses of the rows at the beginning of `terms`, and the gradient in the place of the logits."""
    matrix = matrix_of(logits)
    labels = (address_of(targets), dtype_name(targets.dtype))
    vectors = address_of(weights), address_of(terms)
    plain = targets.ndim == 1 and class_weight is None and z_loss == 0.0
    if plain and not 0.0 < label_smoothing < plan.LEAST_SMOOTHING:
        launch = plan.loss_launch(
            matrix,
            labels,
            *vectors,
            matrix,
            capability_of(logits.device.id),
            weight_of_all=weight_of_all,
            label_smoothing=label_smoothing,
        )
    else:
        launch = plan.masses_launch(
            matrix,
            matrix_of(targets) if targets.ndim == 2 else labels,
            *vectors,
            matrix,
            class_weights=address_of(class_weight),
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            weight_of_all=weight_of_all,
        )
    launches.run(launch)


def activation_backward(delta: Array, slopes: Array, *, step: bool) -> None:
    """Multiply by the slopes, in place."""
    launches.run(plan.activation_backward_launch(matrix_of(delta), matrix_of(slopes), step=step))


def penalty(weight: Array, grad: Array, strength: Array | None, terms: Array, *, reg: float, first: int) -> None:
    """Write the penalty from the entry `first` of `terms` on, and add its gradient."""
    addresses = address_of(weight), address_of(grad), address_of(strength)
    sums = address_of(terms) + first * terms.itemsize
    launches.run(plan.penalty_launch(*addresses, reg, sums, weight.size, dtype_name(weight.dtype)))


def clip(grads: Array, squares: Array, *, max_norm: float) -> None:
    """Shorten all gradients so that their norm is at most `max_norm`."""
    arguments = address_of(grads), address_of(squares)
    dtype = dtype_name(grads.dtype)
    launches.run(clip_plan.squares_launch(*arguments, grads.size, dtype))
    launches.run(clip_plan.shorten_launch(*arguments, grads.size, max_norm, dtype))


def record(loss: Array, losses: Array, finite: Array, place: Array, *, rows: int, all_rows: int) -> None:
    """Note the loss, and whether all losses are finite, and move on to the next batch."""
    addresses = address_of(loss), address_of(losses), address_of(finite), address_of(place)
    launches.run(step_plan.record_launch(*addresses, rows, all_rows, dtype_name(loss.dtype)))


def update(
    grad: Array, finite: Array, numbers: Array, place: Array, parameter: Array, *kept: Array, rule: Rule
) -> None:
    """Apply an update rule with the numbers of this update, unless a loss was not finite."""
    addresses = tuple(address_of(array) for array in (parameter, *kept))
    at = address_of(place) + step_plan.THIS_UPDATE * place.itemsize
    table = address_of(numbers), at
    dtype = dtype_name(grad.dtype)
    name = plan.RULES[rule]
    launches.run(
        plan.update_launch(name, addresses, address_of(grad), address_of(finite), grad.size, dtype, table=table)
    )


OPERATIONS: dict[str, Callable[..., None]] = {
    "gather": gather,
    "weigh": weigh,
    "bias_activation": bias_activation,
    "softmax_loss": softmax_loss,
    "activation_backward": activation_backward,
    "penalty": penalty,
    "clip": clip,
    "record": record,
    "update": update,
}
"""Those that need no memory of their own; `capture` has the others: products, and sums in several parts."""


def parts_needed(name: str, arrays: tuple[Array, ...]) -> tuple[tuple[int, ...], ...]:
    """Shapes of the intermediate sums of a sum that takes several launches."""
    shapes: list[tuple[int, ...]] = []
    if name == "total":
        size = plan.total_parts(arrays[0].size)
        while size > 1:
            shapes.append((size,))
            size = plan.total_parts(size)
    if name == "sum_of_rows":
        rows = plan.sum_parts(arrays[0].shape[0])
        while rows > 1:
            shapes.append((rows, arrays[0].shape[1]))
            rows = plan.sum_parts(rows)
    return tuple(shapes)


def total(x: Array, *sums: Array) -> None:
    """Add up parts of all entries, then the sums of the parts; the result is the last of the sums."""
    for after in sums:
        launches.run(plan.total_launch(address_of(x), address_of(after), x.size, dtype_name(x.dtype)))
        x = after


def sum_of_rows(x: Array, *sums: Array) -> None:
    """Add up the rows in the same way."""
    for after in sums:
        launches.run(plan.sum_of_rows_launch(matrix_of(x), address_of(after)))
        x = after


def bound(name: str, arrays: tuple[Array | None, ...], options: dict[str, Any]) -> Callable[[], None]:
    """Return an operation with its arrays; its temporary memory is allocated here."""
    if name in ("total", "sum_of_rows"):
        source, out = arrays
        if source is None or out is None:
            raise TypeError(f"{name} must have two arrays, got {arrays}.")
        between = [cupy.empty(shape, source.dtype) for shape in parts_needed(name, (source,))]
        function = total if name == "total" else sum_of_rows
        return lambda: function(source, *between, out)
    operation = OPERATIONS[name]
    return lambda: operation(*arrays, **options)
