"""How cross_entropy is computed: by the row operations, or with a gradient that is made with the loss and held."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.layout import in_rows, rowwise
from xpsoftmax._arguments.problem import mean_or_nan, prepare
from xpsoftmax._loss import softmax_loss, softmax_loss_and_grad
from xpsoftmax._typing import LossSpec
from xpsoftmax.kernels import select
from xpsoftmax.kernels.torch import smooth
from xpsoftmax.kernels.torch.computing import mean_loss
from xpsoftmax.kernels.torch.derivatives import by_autograd, handed_over, is_one
from xpsoftmax.kernels.torch.derivatives import losses as losses_of
from xpsoftmax.kernels.torch.modes import is_batched
from xpsoftmax.kernels.torch.operators import loss_rows
from xpsoftmax.kernels.torch.tensors import as_tensor, as_view
from xpsoftmax.torch.checks import Options

Gradients = tuple[Tensor | None, ...]


def by_rows(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None,
    options: Options,
    *,
    inplace: bool = False,
) -> Tensor:
    """The loss by the row operations on tensors, which have derivative rules of their own."""
    array, layout = check.as_logits(input, options.axis, differentiable=True)
    problem = prepare(target, layout, options.of(weight))
    rows, xp = in_rows(array, layout, None), layout.home.xp
    signed = options.signed
    if signed is None and not weight.requires_grad:  # type: ignore[union-attr]
        losses = _losses_of_any_sign(rows, *problem[:2], problem.spec)
    elif signed or signed is None:
        losses, _ = smooth.softmax_loss_rows(rows, *problem[:2], problem.spec)
    elif inplace:
        losses = losses_of(rows, *problem[:2], problem.spec, inplace=True)
    else:
        losses, _ = select("softmax_loss_rows", array, "auto")(rows, *problem[:2], problem.spec, grad=False)
    if options.reduction == "none":
        return rowwise(losses, layout)
    loss = losses.sum()
    return mean_or_nan(xp, loss, problem.total) if options.reduction == "mean" else loss


def _losses_of_any_sign(logits: Tensor, targets: Tensor, row_weight: Tensor, spec: LossSpec) -> Tensor:
    """The losses of masses whose class weights may be negative: the kernels take the positive and the negative apart.

    The loss is linear in the class weights. To look at their signs would wait for the device.
    """
    weight: Any = spec.class_weight
    parts = [replace(spec, class_weight=x.clamp(min=0.0)) for x in (weight, -weight)]
    if targets.ndim == 2:  # a z-loss does not depend on the class weights
        parts[1] = replace(parts[1], z_loss=0.0)
    kernel = select("softmax_loss_rows", logits, "auto")
    up, down = (kernel(logits, targets, row_weight, part, grad=False)[0] for part in parts)
    return up - down


# --- plain arguments --------------------------------------------------------------------------------------------------


def loss_of_plain(input: Tensor, target: Tensor, labels: np.ndarray) -> Tensor:  # noqa: A002
    """The mean loss of plain arguments; `labels` are those of `target`."""
    if not (input.requires_grad and torch.is_grad_enabled()):
        return mean_loss(input, labels, grad=False)[0]
    # A float16 gradient is made in the backward pass: see `derivatives.is_held`.
    return _Mean.apply(input, target, mean_loss(input, labels, grad=input.dtype is not torch.float16))


class _Mean(torch.autograd.Function):
    """The mean loss of plain arguments. A gradient that has been made with it is held."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, made: tuple[Tensor, Tensor | None]) -> Tensor:  # noqa: A002
        loss, dlogits = made
        ctx.save_for_backward(input, target, dlogits)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        input, target, held = ctx.saved_tensors  # noqa: A001
        if torch.is_grad_enabled() or is_batched(grad_output):
            return _by_autograd(input, target, None, _PLAIN, grad_output, (True, False, False))
        if held is not None and grad_output.item() == 1.0:
            return handed_over(held), None, None
        if input.dtype in _WIDE:
            return held * grad_output, None, None
        # A gradient of 16 bits is rounded after the multiplication.
        row_weight = input.new_full(target.shape, 1.0 / target.shape[0], dtype=torch.float32) * grad_output
        return loss_rows(input, target, row_weight, None, 0.0, 0.0, grad=True)[1], None, None


_PLAIN = Options()
_WIDE = frozenset({torch.float32, torch.float64})


# --- logits that NumPy reads ------------------------------------------------------------------------------------------


class _Made(NamedTuple):
    """A loss and its gradient."""

    loss: Tensor
    dlogits: Tensor
    inplace: bool  # whether the gradient has overwritten the logits


def is_read_by_numpy(input: Tensor) -> bool:  # noqa: A002
    """Whether the logits are of a dtype that the kernels for NumPy take, in host memory."""
    return input.dtype in _WIDE and input.is_cpu


def loss_of_arrays(input: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> Tensor:  # noqa: A002
    """The loss of tensors that NumPy reads, without derivatives."""
    return as_tensor(softmax_loss(as_view(input), as_view(target), **_named(weight, options)))


def held_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None,
    options: Options,
    *,
    inplace: bool,
) -> Tensor:
    """The loss of tensors that NumPy reads; its gradient is made now."""
    z = as_view(input)
    loss, dlogits = softmax_loss_and_grad(z, as_view(target), **_named(weight, options), out=z if inplace else None)
    if inplace:
        torch.autograd.graph.increment_version(input)
    made = _Made(as_tensor(loss), input.detach() if inplace else as_tensor(dlogits), inplace)
    return _Held.apply(input, target, weight, options, made)


class _Held(torch.autograd.Function):
    """A loss whose gradient has been made with it: in host memory the logits are read once."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,  # noqa: A002
        target: Tensor,
        weight: Tensor | None,
        options: Options,
        made: _Made,
    ) -> Tensor:
        ctx.save_for_backward(None if made.inplace else input, target, weight, made.dlogits)
        ctx.options, ctx.inplace = options, made.inplace
        return made.loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        input, target, weight, held = ctx.saved_tensors  # noqa: A001
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or any(needed[1:]) or is_batched(grad_output):
            if ctx.inplace:
                raise ValueError("inplace must be False for these derivatives, got True: input has been overwritten.")
            return *_by_autograd(input, target, weight, ctx.options, grad_output, needed), None, None
        if is_one(grad_output):
            return handed_over(held), None, None, None, None
        if grad_output.ndim > 0:
            grad_output = grad_output.unsqueeze(ctx.options.axis)
        return (held.mul_(grad_output) if ctx.inplace else held * grad_output), None, None, None, None


def _by_autograd(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None,
    options: Options,
    grad_output: Tensor,
    needed: tuple[bool, ...],
) -> Gradients:
    options = options._replace(signed=True)  # the code that PyTorch differentiates by itself
    loss = partial(by_rows, options=options)
    return tuple(by_autograd(loss, [input, target, weight], grad_output, needed))


def _named(weight: Tensor | None, options: Options) -> dict[str, Any]:
    """The keywords of `softmax_loss` on arrays of NumPy."""
    given = options.of(None if weight is None else as_view(weight))
    return {"axis": options.axis, **given._asdict()}
