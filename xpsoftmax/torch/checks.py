"""The checks of the arguments of cross_entropy: "{argument} must {rule}, got {value}."."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.options import as_integer, as_number, check_choice, check_flag
from xpsoftmax._arguments.problem import LossOptions, prepare
from xpsoftmax._arguments.values import BadValue
from xpsoftmax._typing import FLOATING, INTEGRAL, Array, Reduction, dtype_name
from xpsoftmax.kernels.memory import numpy_of
from xpsoftmax.kernels.torch.modes import PLAIN, is_eager


class Options(NamedTuple):
    """How a loss is computed, checked."""

    axis: int = 1  # of the classes
    ignore_index: int | None = None
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    signed: bool | None = False  # whether class weights make some target masses negative; None: nobody has looked

    def of(self, weight: Array | None, *, validate: bool = False) -> LossOptions:
        """Return these options as options of `xpsoftmax.softmax_loss`."""
        return LossOptions(weight, None, self.ignore_index, self.label_smoothing, self.z_loss, self.reduction, validate)


def checked_options(
    input: Tensor,  # noqa: A002 - PyTorch's name
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    label_smoothing: float,
    z_loss: float,
    *,
    validate: bool | None,
) -> Options:
    """Check all arguments of a loss, with `validate` also their values."""
    check_tensor("input", input, FLOATING)
    if input.ndim == 0:
        raise ValueError("input must have at least one dimension, got shape ().")
    axis = min(1, input.ndim - 1)
    if input.shape[axis] == 0:
        raise ValueError(f"input must have at least one class along axis {axis}, got shape {tuple(input.shape)}.")
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    smoothing = as_number("label_smoothing", label_smoothing, high=1.0)
    z_loss = as_number("z_loss", z_loss)
    ignored: int | None = as_integer("ignore_index", ignore_index)
    soft = _check_target(input, target, axis)
    if soft:
        if ignored is not None and ignored >= 0:
            raise ValueError(f"ignore_index must be negative for class probabilities, got {ignored}.")
        ignored = None
    if weight is not None:
        _check_weight(input, weight, axis)
    if validate is not None:
        check_flag("validate", validate)
    options = Options(axis, ignored, reduction, smoothing, z_loss)
    seen = input.device.type == "cpu" and is_eager()
    if seen if validate is None else validate:
        _check_values(input, target, weight, options)
    if weight is not None and (soft or smoothing > 0.0):
        options = options._replace(signed=_is_signed(weight, looked=seen or bool(validate)))
    return options


def _is_signed(weight: Tensor, *, looked: bool) -> bool | None:
    """Whether some class weights are negative, as they may be in PyTorch; None where that would wait for the device."""
    if not is_eager():
        return True
    return bool((weight < 0.0).any()) if looked else None


def check_tensor(name: str, value: object, kinds: tuple[str, ...]) -> None:
    """Check for a dense tensor of one of these dtypes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")
    if value.is_nested or value.layout is not torch.strided:
        kind = "a nested tensor" if value.is_nested else f"one of the layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {kind}.")
    if dtype_name(value.dtype) not in kinds:
        words = "float16, bfloat16, float32 or float64" if kinds is FLOATING else "a real floating or integer dtype"
        raise TypeError(f"{name} must be of {words}, got {value.dtype}.")


def _check_target(input: Tensor, target: Tensor, axis: int) -> bool:  # noqa: A002
    """Check the target; whether it holds class probabilities."""
    check_tensor("target", target, (*FLOATING, *INTEGRAL))
    shape, rows = tuple(input.shape), tuple(input.shape[:axis] + input.shape[axis + 1 :])
    if target.is_floating_point():
        if tuple(target.shape) != shape:
            raise ValueError(
                f"target must have the shape of input, {shape}, for class probabilities, got {tuple(target.shape)}. "
                "Labels must be of an integer dtype."
            )
    elif tuple(target.shape) != rows:
        raise ValueError(
            f"target must have shape {rows} for labels of input of shape {shape}, got {tuple(target.shape)}. "
            "Class probabilities must be of a floating dtype."
        )
    check_device("target", target, input)
    return bool(target.is_floating_point())


def _check_weight(input: Tensor, weight: Tensor, axis: int) -> None:  # noqa: A002
    check_tensor("weight", weight, (*FLOATING, *INTEGRAL))
    if tuple(weight.shape) != (input.shape[axis],):
        raise ValueError(
            f"weight must have shape ({input.shape[axis]},), one weight a class, got {tuple(weight.shape)}."
        )
    check_device("weight", weight, input)


def check_device(name: str, tensor: Tensor, input: Tensor) -> None:  # noqa: A002
    """Check for a tensor on the device of the input."""
    if tensor.device != input.device:
        raise ValueError(f"{name} must be on the device of input, {input.device}, got {tensor.device}.")


def _check_values(input: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> None:  # noqa: A002
    """Look at labels, probabilities and weights. A weight may be negative, as it may be in PyTorch."""
    _, layout = check.as_logits(input, options.axis, differentiable=True)
    try:
        prepare(target, layout, LossOptions(ignore_index=options.ignore_index, reduction="none", validate=True))
    except ValueError as error:
        bad: Any = getattr(error, "bad", None)
        raise error if bad is None else bad._replace(name="target").error() from None
    if weight is not None and not torch.isfinite(weight).all():
        i = int(torch.isfinite(weight).logical_not().nonzero()[0])
        raise BadValue("weight", "be finite", float(weight[i]), "class", (i,)).error()


_PLAIN_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def plain_labels(input: Tensor, target: Tensor, ignore_index: object, validate: object) -> np.ndarray | None:  # noqa: A002
    """The labels of plain arguments, for which no check would find an error; None for others.

    A quick look, which costs less than the checks: matrices in host memory, and int64 labels that are all classes and
    not ignored.
    """
    if (
        type(input) not in PLAIN
        or type(target) is not Tensor
        or not input.is_cpu
        or input.dtype not in _PLAIN_DTYPES
        or input.layout is not torch.strided
        or input.is_nested
        or input.is_neg()
        or target.dtype is not torch.int64
        or type(ignore_index) is not int
        or not (validate is None or validate is True or validate is False)
    ):
        return None
    try:
        labels = numpy_of(target)
    except (RuntimeError, TypeError):  # they are on another device, sparse, nested or freed
        return None
    shape = input.shape
    if len(shape) != 2 or labels.shape != shape[:1] or labels.size == 0 or 0 <= ignore_index < shape[1]:
        return None
    unsigned = labels.view(np.uint64)  # negative labels are huge
    return labels if unsigned.item(unsigned.argmax()) < shape[1] else None
