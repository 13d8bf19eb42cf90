"""The row operations on PyTorch tensors: the kernels for NumPy and CuPy, with derivative rules of their own.

A tensor in host memory is read as a NumPy array, one on an NVIDIA GPU as a CuPy array, without a copy. No single
`torch.autograd.Function` supports all that PyTorch can do with a function. Each operation therefore has three
implementations, and each call chooses one:

- Eager: a plain `Function` without `setup_context`, `vmap` and `jvp`, each of which costs more than a small loss.
- `torch.func`, forward-mode AD and second derivatives: the code of `smooth`, which PyTorch differentiates by itself.
- While compiling: the same `Function` around operators of `torch.library`, which register no autograd of their own.

This module imports PyTorch. `select` loads it for tensors only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch.autograd import forward_ad

from xpsoftmax._typing import SIXTEEN_BIT, Array, LossSpec, dtype_name
from xpsoftmax.kernels import generic, select, smooth
from xpsoftmax.kernels.activations import Activation
from xpsoftmax.kernels.tensors import as_tensor, as_view, surroundings, view_of_out

__all__ = [
    "bias_activation",
    "log_softmax_rows",
    "logsumexp_rows",
    "softmax_jacobian_rows",
    "softmax_jvp_rows",
    "softmax_loss_rows",
    "softmax_rows",
    "texts",
]

HAS_CUPY = find_spec("cupy") is not None


# --- the ways ---------------------------------------------------------------------------------------------------------


def is_differentiated(*tensors: Array | None) -> bool:
    """Whether a result of these tensors may be differentiated."""
    if is_transformed():
        return True
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD may follow what is computed now."""
    if forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return bool(torch._C._functorch.get_dynamic_layer_stack_depth() > 0)
    return bool(torch._C._are_functorch_transforms_active())


def refusal(logits: Array) -> str | None:
    """Why no kernel takes this tensor."""
    if type(logits) not in (torch.Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling():
        return "they are of a subclass of Tensor"
    if logits.device.type == "cpu":
        return None
    if logits.device.type != "cuda" or torch.version.hip:
        return f"they are on a device of the type {logits.device.type}"
    return None if HAS_CUPY else "CuPy is not installed"


# --- the operations ---------------------------------------------------------------------------------------------------


def softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `generic.softmax_rows`."""
    return _mapped(_Softmax, "softmax_rows", logits, out)


def log_softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `generic.log_softmax_rows`."""
    return _mapped(_LogSoftmax, "log_softmax_rows", logits, out)


def logsumexp_rows(logits: Array) -> Array:
    """See `generic.logsumexp_rows`."""
    return _mapped(_Logsumexp, "logsumexp_rows", logits, None)


def softmax_jvp_rows(logits: Array, tangent: Array) -> Array:
    """See `generic.softmax_jvp_rows`."""
    text = smooth if is_differentiated(logits, tangent) else generic
    return text.softmax_jvp_rows(logits, tangent)


def softmax_jacobian_rows(logits: Array) -> Array:
    """See `generic.softmax_jacobian_rows`."""
    return (smooth if is_differentiated(logits) else generic).softmax_jacobian_rows(logits)


def softmax_loss_rows(
    logits: Array, targets: Array, row_weight: Array, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `generic.softmax_loss_rows`. The losses can be differentiated; with `grad` nothing can."""
    arrays = *_plain_rows(logits, targets, row_weight), spec.class_weight
    options = spec.label_smoothing, spec.z_loss
    if grad or not is_differentiated(*arrays):
        losses, dlogits = _loss(*arrays, *options, grad=grad, out=out)
        return losses, dlogits if grad else None
    if is_transformed() or (torch.compiler.is_compiling() and any(_requires_grad(x) for x in arrays[1:])):
        return smooth.softmax_loss_rows(*arrays[:3], spec)
    return _Losses.apply(*arrays, *options, False), None  # noqa: FBT003


def _plain_rows(logits: Array, targets: Array, row_weight: Array | float) -> tuple[Array, Array, Array]:
    """Labels in the index dtype, and one weight for each row. The caller may have other dtypes, and a single number."""
    if targets.ndim == 1 and targets.dtype != torch.int64:
        targets = targets.to(torch.int64)
    if isinstance(row_weight, float):
        (z,) = _working(logits)
        row_weight = z.new_full(targets.shape[:1], row_weight)
    return logits, targets, row_weight


def losses_in_place(logits: Array, targets: Array, row_weight: Array, spec: LossSpec) -> Array:
    """The losses of `softmax_loss_rows` alone; their backward pass writes the gradient over the logits."""
    return _Losses.apply(logits, targets, row_weight, spec.class_weight, spec.label_smoothing, spec.z_loss, True)  # noqa: FBT003


def bias_activation(
    z: Array, bias: Array, activation: Activation, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `generic.bias_activation`."""
    text: Any = smooth if is_differentiated(z, bias) and not grad else generic
    return text.bias_activation(z, bias, activation, grad=grad, out=out)  # type: ignore[no-any-return]


def _text(operation: str) -> Callable[..., Any]:
    def compute(*arguments: Any, **options: Any) -> Any:
        arrays = [x.class_weight if isinstance(x, LossSpec) else x for x in arguments]
        tensors = [x for x in arrays if isinstance(x, torch.Tensor)]
        text = smooth if is_differentiated(*tensors) and not options.get("grad") else generic
        return getattr(text, operation)(*arguments, **options)

    return compute


texts = SimpleNamespace(**{operation: _text(operation) for operation in smooth.__all__})
"""The operations without kernels, for tensors that these do not take and for impl="generic"."""


def _mapped(function: Any, operation: str, logits: Array, out: Array | None) -> Array:
    if not is_differentiated(logits):
        return _map(operation, logits, out)
    return getattr(smooth, operation)(logits) if is_transformed() else function.apply(logits)


def _requires_grad(tensor: Array | None) -> bool:
    return tensor is not None and bool(tensor.requires_grad)


# --- derivatives, eagerly and while compiling -------------------------------------------------------------------------


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Array) -> Array:
        ctx.save_for_backward(logits)
        return _map("softmax_rows", logits)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Any:
        (logits,) = ctx.saved_tensors
        if _is_recorded():
            return by_autograd(smooth.softmax_rows, [logits], cotangent, [True])[0]
        return generic.softmax_jvp_rows(*_working(logits, cotangent)).to(logits.dtype)


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Array) -> Array:
        ctx.save_for_backward(logits)
        return _map("log_softmax_rows", logits)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Any:
        (logits,) = ctx.saved_tensors
        if _is_recorded():
            return by_autograd(smooth.log_softmax_rows, [logits], cotangent, [True])[0]
        return generic.log_softmax_vjp_rows(*_working(logits, cotangent)).to(logits.dtype)


class _Logsumexp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Array) -> Array:
        ctx.save_for_backward(logits)
        return _map("logsumexp_rows", logits)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Any:
        (logits,) = ctx.saved_tensors
        if _is_recorded():
            return by_autograd(smooth.logsumexp_rows, [logits], cotangent, [True])[0]
        z, factor = _working(logits, cotangent)
        return (_map("softmax_rows", z) * factor[:, None]).to(logits.dtype)


class _Losses(torch.autograd.Function):
    """Weighted losses (R,).

    In host memory the forward pass computes a 32 or 64-bit gradient with the loss and keeps it: the logits are read
    once. On a GPU, and for 16-bit logits, the backward pass computes the gradient, with row weights that are multiplied
    by the incoming gradient: the result is rounded only once, and no second matrix is held.
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
        held = is_held(logits) and ctx.needs_input_grad[0]
        losses, dlogits = _loss(logits, targets, row_weight, class_weight, *options, grad=held)
        ctx.save_for_backward(logits, targets, row_weight, class_weight, dlogits if held else None)
        ctx.options, ctx.inplace = options, inplace
        return losses

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> Any:
        logits, targets, row_weight, class_weight, held = ctx.saved_tensors
        arrays = [logits, targets, row_weight, class_weight]
        needed = ctx.needs_input_grad[:4]
        nothing = (None,) * 6
        if _is_recorded() or any(needed[1:]):
            return *by_autograd(partial(_smooth_losses, ctx.options), arrays, cotangent, needed), None, None, None
        if held is not None:
            return scaled(held, cotangent), *nothing
        out = logits.detach() if ctx.inplace else None
        dlogits = _loss(logits, targets, row_weight * cotangent, class_weight, *ctx.options, grad=True, out=out)[1]
        if ctx.inplace:
            torch.autograd.graph.increment_version(logits)
        return dlogits, *nothing


def is_held(logits: Array) -> bool:
    """Whether the gradient is made in the forward pass."""
    return logits.device.type == "cpu" and dtype_name(logits.dtype) not in SIXTEEN_BIT


def scaled(dlogits: Array, cotangent: Array) -> Array:
    """Multiply the gradient by the incoming gradient of the losses (R,); unchanged if that is 1 everywhere."""
    equal = not torch.compiler.is_compiling() and cotangent.stride() == (0,) and cotangent.shape[0] > 0
    if equal and cotangent[0].item() == 1.0:
        return dlogits
    return dlogits * cotangent[:, None]


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


def _working(logits: Array, *others: Array) -> list[Array]:
    """Convert all arrays to the working precision of the logits."""
    dtype = torch.float32 if dtype_name(logits.dtype) in SIXTEEN_BIT else logits.dtype
    return [x.to(dtype) for x in (logits, *others)]


# --- computing, without derivatives -----------------------------------------------------------------------------------


def _map(operation: str, logits: Array, out: Array | None = None) -> Array:
    if torch.compiler.is_compiling():
        return getattr(torch.ops.xpsoftmax, operation)(logits)
    return _map_eagerly(operation, logits, out)


def _map_eagerly(operation: str, logits: Array, out: Array | None = None) -> Array:
    options = {} if out is None else {"out": out}
    if is_transformed() or refusal(logits) is not None:
        return getattr(generic, operation)(logits, **options)
    with surroundings(logits):
        z = as_view(logits)
        where = view_of_out(out, logits, z)
        result = (
            select(operation, z, "kernel")(z, out=where) if where is not None else select(operation, z, "kernel")(z)
        )
        return _delivered(result, logits.dtype, out, written=where is not None)


def _loss(
    logits: Array,
    targets: Array,
    row_weight: Array,
    class_weight: Array | None,
    label_smoothing: float,
    z_loss: float,
    *,
    grad: bool,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """The losses (R,) and the gradient (R, C); without `grad` the latter is empty."""
    arguments = logits, targets, row_weight, class_weight, label_smoothing, z_loss, grad
    if torch.compiler.is_compiling():
        return torch.ops.xpsoftmax.softmax_loss_rows(*arguments)  # type: ignore[no-any-return]
    return _loss_eagerly(*arguments, out=out)


def _loss_eagerly(
    logits: Array,
    targets: Array,
    row_weight: Array,
    class_weight: Array | None,
    label_smoothing: float,
    z_loss: float,
    grad: bool,  # noqa: FBT001 - as the operator has it
    *,
    out: Array | None = None,
) -> tuple[Array, Array]:
    if is_transformed() or refusal(logits) is not None:
        spec = LossSpec(class_weight, label_smoothing, z_loss)
        losses, dlogits = generic.softmax_loss_rows(logits, targets, row_weight, spec, grad=grad, out=out)
        return losses, logits.new_empty(0) if dlogits is None else dlogits
    with surroundings(logits):
        spec = LossSpec(None if class_weight is None else as_view(class_weight), label_smoothing, z_loss)
        z = as_view(logits)
        where = view_of_out(out, logits, z)
        kernel = select("softmax_loss_rows", z, "kernel")
        losses, dlogits = kernel(z, as_view(targets), as_view(row_weight), spec, grad=grad, out=where)
        if not grad:
            return as_tensor(losses), logits.new_empty(0)
        return as_tensor(losses), _delivered(dlogits, logits.dtype, out, written=where is not None)


def _delivered(result: Array, dtype: Any, out: Array | None, *, written: bool) -> Array:
    if out is None:
        return as_tensor(result).to(dtype)
    return out if written else out.copy_(as_tensor(result))


# --- operators --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("xpsoftmax::softmax_rows", mutates_args=())
def _softmax_operator(logits: torch.Tensor) -> torch.Tensor:
    return _map_eagerly("softmax_rows", logits)


@torch.library.custom_op("xpsoftmax::log_softmax_rows", mutates_args=())
def _log_softmax_operator(logits: torch.Tensor) -> torch.Tensor:
    return _map_eagerly("log_softmax_rows", logits)


@torch.library.custom_op("xpsoftmax::logsumexp_rows", mutates_args=())
def _logsumexp_operator(logits: torch.Tensor) -> torch.Tensor:
    return _map_eagerly("logsumexp_rows", logits)


@torch.library.custom_op("xpsoftmax::softmax_loss_rows", mutates_args=())
def _loss_operator(
    logits: torch.Tensor,
    targets: torch.Tensor,
    row_weight: torch.Tensor,
    class_weight: torch.Tensor | None,
    label_smoothing: float,
    z_loss: float,
    grad: bool,  # noqa: FBT001
) -> tuple[torch.Tensor, torch.Tensor]:
    return _loss_eagerly(logits, targets, row_weight, class_weight, label_smoothing, z_loss, grad)


@_softmax_operator.register_fake
@_log_softmax_operator.register_fake
def _like_logits(logits: Array) -> Array:
    return logits.new_empty(logits.shape)


@_logsumexp_operator.register_fake
def _one_a_row(logits: Array) -> Array:
    return logits.new_empty(logits.shape[:1])


@_loss_operator.register_fake
def _losses_and_grads(logits: Array, targets: Array, row_weight: Array, *options: Any) -> tuple[Array, Array]:  # noqa: ARG001
    return row_weight.new_empty(row_weight.shape), logits.new_empty(logits.shape if options[-1] else 0)
