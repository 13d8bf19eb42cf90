"""The derivative rules of the row operations: plain `Function`s, for eager calls and while compiling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from xpsoftmax._typing import SIXTEEN_BIT, Array, LossSpec, dtype_name
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.torch import smooth
from xpsoftmax.kernels.torch.modes import is_batched
from xpsoftmax.kernels.torch.operators import loss_rows, map_rows
from xpsoftmax.kernels.torch.tensors import working


def mapped(operation: str, logits: Array) -> Array:
    """Compute one of the operations that map logits (R, C) to an array, by its name."""
    return _RULES[operation].apply(logits)


def losses(logits: Array, targets: Array, row_weight: Array, spec: LossSpec, *, inplace: bool = False) -> Array:
    """Compute weighted losses (R,). With `inplace` the backward pass writes the gradient over the logits."""
    return _Losses.apply(logits, targets, row_weight, spec.class_weight, spec.label_smoothing, spec.z_loss, inplace)


# --- rules ------------------------------------------------------------------------------------------------------------


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Array) -> Array:
        ctx.save_for_backward(logits)
        return map_rows("softmax_rows", logits)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Any:
        (logits,) = ctx.saved_tensors
        if _is_recorded():
            return by_autograd(smooth.softmax_rows, [logits], cotangent, [True])[0]
        return generic.softmax_jvp_rows(*working(logits, cotangent)).to(logits.dtype)


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Array) -> Array:
        ctx.save_for_backward(logits)
        return map_rows("log_softmax_rows", logits)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Any:
        (logits,) = ctx.saved_tensors
        if _is_recorded():
            return by_autograd(smooth.log_softmax_rows, [logits], cotangent, [True])[0]
        return generic.log_softmax_vjp_rows(*working(logits, cotangent)).to(logits.dtype)


class _Logsumexp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Array) -> Array:
        ctx.save_for_backward(logits)
        return map_rows("logsumexp_rows", logits)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Any:
        (logits,) = ctx.saved_tensors
        if _is_recorded():
            return by_autograd(smooth.logsumexp_rows, [logits], cotangent, [True])[0]
        z, factor = working(logits, cotangent)
        return (map_rows("softmax_rows", z) * factor[:, None]).to(logits.dtype)


_RULES: dict[str, Any] = {
    "softmax_rows": _Softmax,
    "log_softmax_rows": _LogSoftmax,
    "logsumexp_rows": _Logsumexp,
}


class _Losses(torch.autograd.Function):
    """Weighted losses (R,).

    In host memory the forward pass computes the gradient with the loss and keeps it: the logits are read once. On a
    GPU, and for float16, the backward pass computes the gradient, with row weights that are multiplied by the incoming
    gradient: the result is rounded only once, and no second matrix is held. So it does for bfloat16, too, where the
    incoming gradient is not 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Array,
        targets: Array,
        row_weight: Array,
        class_weight: Array | None,
        label_smoothing: float,
        z_loss: float,
        inplace: bool,  # noqa: FBT001
    ) -> Array:
        options = label_smoothing, z_loss
        held = is_held(logits) and not inplace and ctx.needs_input_grad[0]
        losses, dlogits = loss_rows(logits, targets, row_weight, class_weight, *options, grad=held)
        ctx.save_for_backward(logits, targets, row_weight, class_weight, dlogits if held else None)
        ctx.options, ctx.inplace = options, inplace
        return losses

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Any:
        logits, targets, row_weight, class_weight, held = ctx.saved_tensors
        arrays = [logits, targets, row_weight, class_weight]
        needed = ctx.needs_input_grad[:4]
        nothing = (None,) * 6
        if _is_recorded() or any(needed[1:]) or is_batched(cotangent):
            return *by_autograd(partial(_smooth_losses, ctx.options), arrays, cotangent, needed), None, None, None
        if held is not None:
            if is_one(cotangent):
                return handed_over(held), *nothing
            if dtype_name(held.dtype) not in SIXTEEN_BIT:
                return held * cotangent[:, None], *nothing
        out = logits.detach() if ctx.inplace else None
        dlogits = loss_rows(logits, targets, row_weight * cotangent, class_weight, *ctx.options, grad=True, out=out)[1]
        if ctx.inplace:
            torch.autograd.graph.increment_version(logits)
        return dlogits, *nothing


def is_held(logits: Array) -> bool:
    """Whether the forward pass makes the gradient: where the backward pass most often returns it as it is.

    That of float16 is usually multiplied by the factor of a GradScaler. Compiled code cannot look at the factor.
    """
    if logits.device.type != "cpu":
        return False
    if logits.dtype == torch.bfloat16:
        return not torch.compiler.is_compiling()
    return bool(logits.dtype != torch.float16)


def is_one(cotangent: Array) -> bool:
    """Whether the incoming gradient of losses is known to be 1 everywhere, as that of their sum is."""
    if torch.compiler.is_compiling() or any(cotangent.stride()) or cotangent.numel() == 0:
        return False
    return bool(cotangent[(0,) * cotangent.ndim].item() == 1.0)


def handed_over(held: Array) -> Array:
    """Return a gradient that was held, in eager code: a copy if the graph is kept and may be asked for it again."""
    return held.clone() if torch._C._autograd._get_current_graph_task_keep_graph() else held


def _smooth_losses(options: tuple[float, float], *arrays: Array) -> Array:
    logits, targets, row_weight, class_weight = arrays
    return smooth.softmax_loss_rows(logits, targets, row_weight, LossSpec(class_weight, *options))[0]


def _is_recorded() -> bool:
    """Whether a backward pass is itself recorded. Compiled code has no second derivatives."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def by_autograd(
    function: Callable[..., Array], arrays: Sequence[Array | None], cotangent: Array, needed: Sequence[bool]
) -> list[Array | None]:
    """Gradients of a function that PyTorch differentiates by itself, for the arrays that are needed."""
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views cut the graph here: one of these arrays may have been computed from another.
        views: list[Any] = [
            x.view_as(x) if x is not None and need else x for x, need in zip(arrays, needed, strict=True)
        ]
        if not recorded:
            views = [x.detach().requires_grad_() if need else x for x, need in zip(views, needed, strict=True)]
        result = function(*views)
        wanted = [x for x, need in zip(views, needed, strict=True) if need]
        grads = iter(torch.autograd.grad(result, wanted, cotangent, create_graph=recorded, allow_unused=True))
    return [next(grads) if need else None for need in needed]
