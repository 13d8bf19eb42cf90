"""The launches of the operations of a training step, on existing CuPy arrays.

Each function takes the arrays and options of an `Operation` of xpsoftmax/_train/programs.py. The launches are planned
once, when a program gets its arrays; to make a step they only have to be run. None allocates memory, and none waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cupy

from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.kernels.cuda import clip_plan, launches, plan, step_plan, table_plan
from xpsoftmax.kernels.cuda.arrays import address_of, matrix_of
from xpsoftmax.kernels.cuda.launches import capability_of
from xpsoftmax.kernels.cuda.plan import Launch
from xpsoftmax.kernels.rules import Rule


def gather(
    inputs: Array | None,
    input_copy: Array | None,
    targets: Array | None,
    target_copy: Array | None,
    weights: Array | None,
    weight_copy: Array | None,
    counting: Array | None,
    counting_copy: Array | None,
    order: Array | None,
    place: Array,
    *,
    first: int,
    rows: int,
    zero_rows: bool,
) -> list[Launch]:
    """Copy rows of a batch, from its row `first` on, in the working precision; without an order `first` is 0.

    With `zero_rows` inputs that weigh 0 become zeros.
    """
    none = step_plan.NO_ROWS if weights is None else step_plan.NO_ROWS._replace(dtype=dtype_name(weights.dtype))
    batch = step_plan.Batch(
        none if inputs is None else matrix_of(inputs),
        address_of(input_copy),
        none if targets is None else matrix_of(targets if targets.ndim == 2 else targets[:, None]),
        address_of(target_copy),
        step_plan.Copied(address_of(weights), address_of(weight_copy)),
        step_plan.Copied(address_of(counting), address_of(counting_copy)),
        zero_rows,
    )
    numbers = 0 if order is None else address_of(order) + first * order.itemsize
    return [step_plan.gather_launch(batch, numbers, address_of(place), rows)]


def weigh(
    counting: Array, weights: Array | None, shares: Array | None, strength: Array | None, *, reg: float
) -> list[Launch]:
    """Divide the weights of a batch, and the strength of the penalty, by the sum of the counting weights."""
    return [
        step_plan.weigh_launch(
            address_of(counting),
            address_of(weights),
            address_of(shares),
            counting.size,
            reg,
            address_of(strength),
            dtype_name(counting.dtype),
        )
    ]


def bias_activation(z: Array, bias: Array, slopes: Array | None, *, activation: str) -> list[Launch]:
    """Write f(z + bias) in the place of z, and the slopes."""
    written = None if slopes is None else matrix_of(slopes)
    return [plan.bias_activation_launch(matrix_of(z), address_of(bias), written, activation)]


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
) -> list[Launch]:
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
    return [launch]


def activation_backward(delta: Array, slopes: Array, *, step: bool) -> list[Launch]:
    """Multiply by the slopes, in place."""
    return [plan.activation_backward_launch(matrix_of(delta), matrix_of(slopes), step=step)]


def sums_of_rows(*matrices_and_sums: Array, added: bool, between: Sequence[Array] = ()) -> list[Launch]:
    """Add up the rows of matrices of equally many rows: first parts of them, then the sums of the parts.

    With `added` the sums are added to what is there.

    `between` has room for the sums of parts, for one matrix after the other: see `temporary_shapes`.
    """
    count = len(matrices_and_sums) // 2
    levels = len(between) // count  # of sums of parts
    made: list[Launch] = []
    sources = matrices_and_sums[::2]
    for level in range(levels + 1):
        sums = matrices_and_sums[1::2] if level == levels else between[level::levels]
        pairs = zip(map(matrix_of, sources), map(address_of, sums), strict=True)
        made += table_plan.sum_of_rows_launches(list(pairs), added=added and level == levels)
        sources = tuple(sums)
    return made


def penalties(strength: Array | None, terms: Array, *weights_and_grads: Array, reg: float, first: int) -> list[Launch]:
    """Write the penalties of all weights from the entry `first` of `terms` on, and add their gradients."""
    pairs = zip(weights_and_grads[::2], weights_and_grads[1::2], strict=True)
    weights = [(address_of(weight), address_of(grad), weight.size) for weight, grad in pairs]
    sums = address_of(terms) + first * terms.itemsize
    return table_plan.penalty_launches(weights, sums, address_of(strength), reg, dtype_name(terms.dtype))


def clip(grads: Array, squares: Array, *, max_norm: float) -> list[Launch]:
    """Shorten all gradients so that their norm is at most `max_norm`."""
    arguments = address_of(grads), address_of(squares)
    dtype = dtype_name(grads.dtype)
    return [
        clip_plan.squares_launch(*arguments, grads.size, dtype),
        clip_plan.shorten_launch(*arguments, grads.size, max_norm, dtype),
    ]


def record(
    terms: Array,
    losses: Array,
    finite: Array,
    place: Array,
    *,
    rows: int,
    all_rows: int,
    between: Sequence[Array] = (),
) -> list[Launch]:
    """Add up the loss, note whether all losses are finite, and move on to the next batch."""
    dtype = dtype_name(terms.dtype)
    made = []
    for sums in between:
        made.append(plan.total_launch(address_of(terms), address_of(sums), terms.size, dtype))
        terms = sums
    vector = address_of(terms), terms.size
    addresses = address_of(losses), address_of(finite), address_of(place)
    return [*made, step_plan.record_launch(*vector, *addresses, rows, all_rows, dtype)]


def update(finite: Array, numbers: Array, place: Array, *arrays: Array, rule: Rule, kept: int) -> list[Launch]:
    """Apply an update rule with the numbers of this update, unless a loss was not finite.

    `arrays` are, for each parameter, its gradient, the parameter, and the arrays that are kept of it.
    """
    parameters = []
    for first in range(0, len(arrays), 2 + kept):
        grad, *changed = arrays[first : first + 2 + kept]
        addresses = tuple(map(address_of, changed))
        parameters.append((addresses, addresses, address_of(grad), grad.size))
    at = address_of(place) + step_plan.THIS_UPDATE * place.itemsize
    rows = address_of(numbers), at
    name, dtype = table_plan.RULES[rule], dtype_name(numbers.dtype)
    return table_plan.update_launches(name, parameters, address_of(finite), dtype, rows_of_numbers=rows)


OPERATIONS: dict[str, Callable[..., list[Launch]]] = {
    "gather": gather,
    "weigh": weigh,
    "bias_activation": bias_activation,
    "softmax_loss": softmax_loss,
    "activation_backward": activation_backward,
    "sums_of_rows": sums_of_rows,
    "penalties": penalties,
    "clip": clip,
    "record": record,
    "update": update,
}
"""All but products, which `capture` has."""


def temporary_shapes(name: str, arrays: Sequence[Array]) -> list[tuple[int, ...]]:
    """Shapes of the sums of parts, where a sum takes several launches one after the other."""
    shapes: list[tuple[int, ...]] = []
    if name == "record":
        size = arrays[0].size
        while size > plan.TOTAL_PART:
            size = plan.total_parts(size)
            shapes.append((size,))
    if name == "sums_of_rows":
        for x in arrays[::2]:
            rows = table_plan.sum_parts(x.shape[0])
            while rows > 1:
                shapes.append((rows, x.shape[1]))
                rows = table_plan.sum_parts(rows)
    return shapes


def bound(name: str, arrays: tuple[Any, ...], options: dict[str, Any]) -> Callable[[], None]:
    """Return an operation with its arrays; its temporary memory is allocated here."""
    between = [cupy.empty(shape, arrays[0].dtype) for shape in temporary_shapes(name, arrays)]
    more = {"between": between} if between else {}
    made = OPERATIONS[name](*arrays, **options, **more)
    return partial(_run, made, between)


def _run(made: list[Launch], between: list[Array]) -> None:  # noqa: ARG001 - the launches need its memory
    for launch in made:
        launches.run(launch)
