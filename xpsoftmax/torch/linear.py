"""The loss of a linear layer with many classes, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.options import as_integer
from xpsoftmax._arguments.problem import mean_or_nan, prepare
from xpsoftmax._typing import FLOATING, SIXTEEN_BIT, LossSpec, Reduction, dtype_name
from xpsoftmax.kernels import torch as rules
from xpsoftmax.kernels.torch.derivatives import by_autograd, handed_over
from xpsoftmax.kernels.torch.modes import is_batched, is_differentiated, is_eager
from xpsoftmax.torch.checks import Options, check_device, check_tensor, checked_options
from xpsoftmax.torch.losses import cross_entropy

DEFAULT_MAX_MEMORY = 256 * 2**20


def linear_cross_entropy(
    input: Tensor,  # noqa: A002 - PyTorch's name
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    z_loss: float = 0.0,
    max_memory: int | None = None,
    validate: bool | None = None,
) -> Tensor:
    r"""Softmax loss of the logits ``input @ linear_weight.T + linear_bias``, which are never held whole.

    It has the parameters of ``torch.nn.functional.linear_cross_entropy`` (PyTorch 2.13): see `cross_entropy` for the
    values. Chunks of rows pass through the layer and the loss. The forward pass computes the loss of a chunk and its
    share of all gradients; with "none", the backward pass computes the gradients.

    Parameters
    ----------
    input : Tensor, (N, D) or (D,)
        float16, bfloat16, float32 or float64.
    linear_weight : Tensor, (C, D) or (C, d1, ..., D)
        Of the dtype of `input`.
    target : Tensor, (N,), (N, C), ...
        Labels or class probabilities, as for `cross_entropy` of the logits.
    linear_bias : Tensor, shape of `linear_weight` without its last axis, optional
    weight, reduction, label_smoothing, z_loss, validate
        As for `cross_entropy`.
    ignore_index : int, optional
        As for `cross_entropy`. Default: -100 for labels; with probabilities it must be None.
    options : torch.nn.LinearCrossEntropyOptions, optional
        Its ``batch_chunk_size``, if given, is the number of rows of a chunk.
    max_memory : int, optional
        Bytes for the logits of a chunk and what is computed from them. Default: 256 MiB, or what one row needs.

    Returns
    -------
    Tensor
        As `cross_entropy` returns it.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`; if `linear_weight` or `linear_bias` does not fit `input`; if `max_memory` is less than a row
        needs (the message has the least value).

    Notes
    -----
    The memory is bounded in eager calls on matrices, for first derivatives. With ``torch.func``, forward-mode AD and
    ``torch.compile``, for second derivatives, and for the gradient of probabilities or class weights, the logits are
    held as `cross_entropy` holds them. Gradients of weights are added up in float32 or wider, and rounded once.

    Examples
    --------
    >>> import torch
    >>> from xpsoftmax.torch import linear_cross_entropy
    >>> X, W = torch.ones(4, 3), torch.zeros(8, 3, requires_grad=True)
    >>> linear_cross_entropy(X, W, torch.tensor([0, 1, 2, 3])).backward()
    >>> W.grad[0]
    tensor([-0.1250, -0.1250, -0.1250])
    """
    _check_layer(input, linear_weight, linear_bias)
    _check_limits(options, max_memory)
    if ignore_index is not None and isinstance(target, Tensor) and target.is_floating_point():
        raise ValueError(f"ignore_index must be None for class probabilities, got {ignore_index}.")
    ignored = -100 if ignore_index is None else ignore_index
    chunked = (
        input.ndim == linear_weight.ndim == 2
        and is_eager()
        and not any(x is not None and x.requires_grad for x in (target, weight))
    )
    named: dict[str, Any] = {
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "validate": validate,
    }
    if not chunked:
        return _whole(input, linear_weight, linear_bias, target, weight, ignore_index=ignored, **named)
    like = input.new_empty(1).expand(input.shape[0], linear_weight.shape[0])  # the shape of the logits, no memory
    checked = checked_options(like, target, weight, ignored, **named)
    if checked.signed is not False:
        return _whole(input, linear_weight, linear_bias, target, weight, ignore_index=ignored, **named)
    rows = _rows_of_chunk(like, options, max_memory)
    call = _Call(checked, rows)
    if is_differentiated(input, linear_weight, linear_bias):
        return _Chunked.apply(input, linear_weight, linear_bias, target, weight, call)
    return _forward(call, (input, linear_weight, linear_bias, target, weight), (False,) * 3)[0]


class _Call(NamedTuple):
    options: Options
    rows: int  # of a chunk


class _Chunked(torch.autograd.Function):
    """The gradients of a scalar loss are made in the forward pass, those of one loss a row in the backward pass."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *arrays, call = arguments
        now = call.options.reduction != "none"
        needed = tuple(ctx.needs_input_grad[:3]) if now else (False,) * 3
        loss, grads = _forward(call, arrays, needed)
        ctx.save_for_backward(*arrays, *grads)
        ctx.call = call
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        *arrays, dinput, dweight, dbias = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or is_batched(grad_output):
            text = partial(_reference, ctx.call.options)
            return *by_autograd(text, arrays, grad_output, (*needed, False, False)), None
        grads: Any = (dinput, dweight, dbias)
        if ctx.call.options.reduction == "none":
            grads = _forward(ctx.call, arrays, needed, factor=grad_output)[1]
        elif grad_output.device.type != "cpu" or grad_output.item() != 1.0:
            grads = (x if x is None else x * grad_output for x in grads)
        else:
            grads = (x if x is None else handed_over(x) for x in grads)
        return *(x if x is None else x.to(arrays[0].dtype) for x in grads), None, None, None


def _forward(
    call: _Call, arrays: Sequence[Any], needed: tuple[bool, ...], factor: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The loss, and what is `needed` of its gradients in the working precision; the rows times `factor`."""
    input, linear_weight, linear_bias, target, weight = arrays  # noqa: A001
    reduction = call.options.reduction
    like = input.new_empty(1).expand(input.shape[0], linear_weight.shape[0])
    _, layout = check.as_logits(like, 1)
    # The weights are those of the sum: 16-bit gradients of a mean would lose their small entries.
    problem = prepare(target, layout, call.options._replace(reduction="sum").of(weight))
    row_weight = problem.row_weight if factor is None else problem.row_weight * factor
    total: Any = problem.total if reduction == "mean" else 1.0
    with torch.no_grad():
        kept: dict[str, Any] = {"dtype": layout.working, "device": input.device}
        dinput, dweight, dbias = (
            torch.zeros(shape, **kept) if need else None
            for need, shape in zip(needed, (input.shape, linear_weight.shape, linear_weight.shape[:1]), strict=True)
        )
        losses = torch.empty(input.shape[0], **kept)
        for start in range(0, input.shape[0], call.rows):
            part = slice(start, start + call.rows)
            x = input[part]
            logits = torch.nn.functional.linear(x, linear_weight, linear_bias)
            losses[part], delta = _loss_of(logits, problem.targets[part], row_weight[part], problem.spec, any(needed))
            if dinput is not None:
                dinput[part] = delta @ linear_weight
            if dweight is not None:
                _add_product(dweight, delta, x)
            if dbias is not None:
                dbias += delta.sum(0, dtype=layout.working)
            del logits, delta
        loss = losses if reduction == "none" else losses.sum()
        if reduction == "mean":
            loss = mean_or_nan(layout.home.xp, loss / _divisor(total), total)
            grads = tuple(x if x is None else x.div_(_divisor(total)) for x in (dinput, dweight, dbias))
            return loss, grads
    return loss, (dinput, dweight, dbias)


def _loss_of(
    logits: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    spec: LossSpec,
    grad: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor]:
    """Return losses and gradient of a chunk; the gradient overwrites the logits."""
    losses, delta = rules.softmax_loss_rows(logits, targets, row_weight, spec, grad=grad, out=logits if grad else None)
    return losses, logits if delta is None else delta


def _add_product(total: Tensor, delta: Tensor, x: Tensor) -> None:
    if delta.dtype == total.dtype:
        total.addmm_(delta.T, x)
    else:
        total += delta.T @ x


def _divisor(total: Any) -> Any:
    """Return the divisor of a mean: 1 for a mean over no row, whose gradient is 0."""
    return torch.where(total == 0.0, 1.0, total) if isinstance(total, Tensor) else total or 1.0


def _whole(
    input: Tensor,  # noqa: A002
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    **named: Any,
) -> Tensor:
    """Return the loss, with all logits in memory."""
    flat = linear_weight.reshape(-1, linear_weight.shape[-1])
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    logits = torch.nn.functional.linear(input, flat, bias)
    return cross_entropy(logits.reshape(*input.shape[:-1], *linear_weight.shape[:-1]), target, weight, **named)


def _reference(options: Options, *arrays: Any) -> Tensor:
    named = {"ignore_index": -100 if options.ignore_index is None else options.ignore_index, "validate": False}
    for name in ("reduction", "label_smoothing", "z_loss"):
        named[name] = getattr(options, name)
    return _whole(*arrays, **named)


def _rows_of_chunk(like: Tensor, options: Any, max_memory: int | None) -> int:
    """How many rows of logits fit into the memory."""
    given = getattr(options, "batch_chunk_size", None)
    if given is not None:
        return max(1, int(given))
    size = like.element_size() if dtype_name(like.dtype) not in SIXTEEN_BIT else 12  # with copies in float32
    row: int = like.shape[1] * size
    if max_memory is None:
        return max(1, DEFAULT_MAX_MEMORY // row)
    budget = as_integer("max_memory", max_memory)
    if budget < row:
        raise ValueError(f"max_memory must be at least {row} bytes, what one row needs, got {budget}.")
    return budget // row


def _check_limits(options: Any, max_memory: int | None) -> None:
    """Check what limits a chunk, also where there are no chunks."""
    if options is not None and not hasattr(options, "batch_chunk_size"):
        raise TypeError(f"options must be None or a torch.nn.LinearCrossEntropyOptions, got {options!r:.60}.")
    if max_memory is not None:
        as_integer("max_memory", max_memory)


def _check_layer(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:  # noqa: A002
    check_tensor("input", input, FLOATING)
    check_tensor("linear_weight", linear_weight, FLOATING)
    if input.ndim not in (1, 2):
        raise ValueError(f"input must have shape (N, D) or (D,), got {tuple(input.shape)}.")
    if linear_weight.ndim < 2 or linear_weight.shape[-1] != input.shape[-1]:
        raise ValueError(
            f"linear_weight must have shape (C, ..., {input.shape[-1]}) for input of shape {tuple(input.shape)}, "
            f"got {tuple(linear_weight.shape)}."
        )
    if linear_weight.ndim > 2 and input.ndim == 1:
        raise ValueError(
            f"input must have shape (N, D) for linear_weight of shape {tuple(linear_weight.shape)}, "
            f"got {tuple(input.shape)}."
        )
    layer = {"linear_weight": linear_weight} | ({} if linear_bias is None else {"linear_bias": linear_bias})
    for name, tensor in layer.items():
        check_tensor(name, tensor, FLOATING)
        if tensor.dtype != input.dtype:
            raise TypeError(f"{name} must have the dtype of input, {input.dtype}, got {tensor.dtype}.")
        check_device(name, tensor, input)
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
        raise ValueError(
            f"linear_bias must have shape {tuple(linear_weight.shape[:-1])}, got {tuple(linear_bias.shape)}."
        )
    if math.prod(linear_weight.shape[:-1]) == 0:
        raise ValueError(f"linear_weight must have at least one class, got shape {tuple(linear_weight.shape)}.")
