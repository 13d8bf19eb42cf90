"""cross_entropy, its module, softmax and log_softmax for PyTorch tensors."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import xpsoftmax
from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.layout import in_rows, rowwise
from xpsoftmax._arguments.options import as_integer, check_flag
from xpsoftmax._arguments.problem import mean_or_nan, prepare
from xpsoftmax._loss import softmax_loss, softmax_loss_and_grad
from xpsoftmax._typing import FLOATING, Reduction
from xpsoftmax.kernels import select, smooth
from xpsoftmax.kernels import torch as rules
from xpsoftmax.kernels.tensors import as_tensor, as_view
from xpsoftmax.torch.checks import Options, are_plain_labels, check_tensor, checked_options


def cross_entropy(
    input: Tensor,  # noqa: A002 - PyTorch's name
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    inplace: bool = False,
    validate: bool | None = None,
) -> Tensor:
    r"""Softmax loss of logits (N, C, ...) for labels (N, ...) or class probabilities (N, C, ...).

    .. math:: L_i = -w_{y_i} \log \frac{e^{z_{i y_i}}}{\sum_k e^{z_{ik}}}, \qquad
              L = \frac{\sum_i L_i}{\sum_i w_{y_i}}

    It has the parameters and the values of ``torch.nn.functional.cross_entropy``, and all digits of its loss and
    gradient where that rounds them to 0: for rows that are nearly certain.

    Parameters
    ----------
    input : Tensor, (C,), (N, C) or (N, C, d1, ...)
        Logits, of float16, bfloat16, float32 or float64.
    target : Tensor
        Labels from 0 to C - 1, of the shape of `input` without its axis of classes and of any integer dtype; or class
        probabilities, floating and of the shape of `input`.
    weight : Tensor, (C,), optional
        One weight per class. It multiplies the loss of each row with that label; with probabilities, that class's term.
    ignore_index : int
        Rows with this label add nothing. With probabilities it must be negative, and has no effect.
    reduction : {"mean", "sum", "none"}
        Mean (with labels: weighted by `weight`), sum, or one loss a row.
    label_smoothing : float, 0 to 1
        Take this share of the target's mass and spread it evenly over the classes.
    z_loss : float
        Adds ``z_loss * logsumexp(input)**2``, times the weight of the row.
    inplace : bool
        Write the gradient over `input`, which must not be used after the call: no second array of its size is held.
        It has no second derivatives. Not for a leaf that requires grad, or a view of one. While compiling it does
        nothing.
    validate : bool, optional
        Look at the values of `target` and `weight`. Default: on the CPU, unless compiling; on a GPU the check would
        wait for the device. Without it a row with a bad label is nan, and no other row is.

    Returns
    -------
    Tensor
        0-d, or of the shape of `input` without its axis of classes for "none"; float32 for 16-bit logits, else of the
        dtype of `input`. The mean over no row (no rows, all ignored, all weights zero) is nan, and its gradient 0.

    Raises
    ------
    TypeError
        If an argument is not a Tensor, or of an unsupported dtype.
    ValueError
        If a shape, device or option does not fit; with `validate`, if a label is no class (the message names it), a
        probability is negative or not finite, or a weight is not finite.

    Notes
    -----
    The error of loss and gradient is that of `xpsoftmax.softmax_loss` (``tests/torch/test_cross_entropy.py``).
    Derivatives of every order, with respect to `input`, probabilities and `weight`, with ``backward``, ``torch.func``
    and forward-mode AD; under ``torch.compile`` with ``backward`` (first derivatives) and ``torch.func``. On the CPU
    the gradient of 32 and 64-bit logits is made with the loss and held; that of others in the backward pass.

    Examples
    --------
    >>> import torch
    >>> from xpsoftmax.torch import cross_entropy
    >>> z = torch.tensor([[30.0, 0.0]], requires_grad=True)
    >>> cross_entropy(z, torch.tensor([0])).backward()
    >>> z.grad
    tensor([[-9.3576e-14,  9.3576e-14]])
    """
    eager = not (torch.compiler.is_compiling() or rules.is_transformed())
    options = _PLAIN if eager and _is_plain(input, target, weight, ignore_index, validate) else None
    usual = (reduction, label_smoothing, z_loss) == _USUAL and type(label_smoothing) is float and type(z_loss) is float
    if options is None or not usual or inplace is not False:
        options = checked_options(
            input, target, weight, ignore_index, reduction, label_smoothing, z_loss, validate=validate
        )
        check_flag("inplace", inplace)
    recorded = eager and rules.is_differentiated(input, target, weight)
    inplace = inplace and recorded and input.requires_grad
    if inplace:
        _check_overwritable(input)
    if options.signed or not (eager and type(input) in _TENSORS and rules.is_held(input)):
        return by_rows(input, target, weight, options, inplace=inplace)
    if recorded and input.requires_grad:
        return _Held.apply(input, target, weight, options, inplace)
    if recorded:
        return by_rows(input, target, weight, options)
    arrays = (as_view(x) for x in (input, target))
    return as_tensor(softmax_loss(*arrays, **_named(weight, options)))


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`cross_entropy` as a module, in the place of ``torch.nn.CrossEntropyLoss``.

    Parameters
    ----------
    weight, ignore_index, reduction, label_smoothing, z_loss, inplace, validate
        As for `cross_entropy`; `weight` is a buffer of the module.

    Examples
    --------
    >>> import torch
    >>> from xpsoftmax.torch import CrossEntropyLoss
    >>> loss = CrossEntropyLoss(label_smoothing=0.1)
    >>> float(loss(torch.zeros(2, 4), torch.tensor([0, 3])))
    1.3862943649291992
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        inplace: bool = False,
        validate: bool | None = None,
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        self.z_loss, self.inplace, self.validate = z_loss, inplace, validate

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002
        """See `cross_entropy`."""
        return cross_entropy(
            input,
            target,
            self.weight,
            self.ignore_index,
            self.reduction,
            self.label_smoothing,
            z_loss=self.z_loss,
            inplace=self.inplace,
            validate=self.validate,
        )


def softmax(input: Tensor, dim: int = -1) -> Tensor:  # noqa: A002
    """Probabilities of the classes along `dim`: `xpsoftmax.softmax` with the parameters of PyTorch.

    Parameters
    ----------
    input : Tensor
        Logits, of float16, bfloat16, float32 or float64.
    dim : int
        The axis of the classes.

    Returns
    -------
    Tensor
        Of the shape and dtype of `input`.

    Raises
    ------
    TypeError, ValueError
        If `input` or `dim` does not fit.

    Examples
    --------
    >>> import torch
    >>> from xpsoftmax.torch import softmax
    >>> softmax(torch.zeros(4))
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    _check_dim(input, dim)
    return xpsoftmax.softmax(input, axis=dim)


def log_softmax(input: Tensor, dim: int = -1) -> Tensor:  # noqa: A002
    """Logarithms of the probabilities of the classes along `dim`: `xpsoftmax.log_softmax` for PyTorch.

    Parameters, result and errors are those of `softmax`.

    Examples
    --------
    >>> import torch
    >>> from xpsoftmax.torch import log_softmax
    >>> log_softmax(torch.tensor([40.0, 0.0]))
    tensor([-4.2484e-18, -4.0000e+01])
    """
    _check_dim(input, dim)
    return xpsoftmax.log_softmax(input, axis=dim)


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
    if options.signed:
        losses, _ = smooth.softmax_loss_rows(rows, *problem[:2], problem.spec)
    elif inplace:
        losses = rules.losses_in_place(rows, *problem[:2], problem.spec)
    else:
        losses, _ = select("softmax_loss_rows", array, "auto")(rows, *problem[:2], problem.spec, grad=False)
    if options.reduction == "none":
        return rowwise(losses, layout)
    loss = losses.sum()
    return mean_or_nan(xp, loss, problem.total) if options.reduction == "mean" else loss


class _Held(torch.autograd.Function):
    """A loss whose gradient is made in the forward pass and held: in host memory the logits are read once."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,  # noqa: A002
        target: Tensor,
        weight: Tensor | None,
        options: Options,
        inplace: bool,  # noqa: FBT001
    ) -> Tensor:
        z = as_view(input)
        out = z if inplace else None
        loss, dlogits = softmax_loss_and_grad(z, as_view(target), **_named(weight, options), out=out)
        if inplace:
            torch.autograd.graph.increment_version(input)
        held = input.detach() if inplace else as_tensor(dlogits)
        ctx.save_for_backward(None if inplace else input, target, weight, held)
        ctx.options, ctx.inplace = options, inplace
        return as_tensor(loss)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        input, target, weight, held = ctx.saved_tensors  # noqa: A001
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or any(needed[1:]):
            if ctx.inplace:
                raise ValueError("inplace must be False for these derivatives, got True: input has been overwritten.")
            return *_by_autograd(input, target, weight, ctx.options, grad_output, needed), None, None
        if grad_output.ndim == 0:
            if grad_output.item() == 1.0:
                return held, None, None, None, None
        else:
            grad_output = grad_output.unsqueeze(ctx.options.axis)
        return (held.mul_(grad_output) if ctx.inplace else held * grad_output), None, None, None, None


def _by_autograd(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None,
    options: Options,
    grad_output: Tensor,
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    options = options._replace(signed=True)  # the code that PyTorch differentiates by itself
    loss = partial(by_rows, options=options)
    return rules.by_autograd(loss, [input, target, weight], grad_output, needed)


_TENSORS = (Tensor, torch.nn.Parameter)
_PLAIN = Options()
_USUAL = ("mean", 0.0, 0.0)


def _is_plain(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    validate: bool | None,  # noqa: FBT001
) -> bool:
    """Whether labels and logits are of the usual kind, for which no check would find an error."""
    return (
        weight is None
        and type(input) in _TENSORS
        and type(target) is Tensor
        and input.ndim == 2
        and target.shape == input.shape[:1]
        and target.dtype == torch.int64
        and input.dtype in (torch.float32, torch.float64)
        and input.device.type == "cpu"
        and target.device.type == "cpu"
        and (validate is None or type(validate) is bool)
        and are_plain_labels(target.numpy(), input.shape[1], ignore_index)
    )


def _named(weight: Tensor | None, options: Options) -> dict[str, Any]:
    """The keywords of `softmax_loss` on arrays of NumPy."""
    if options is _PLAIN:
        return {"validate": False}
    given = options.of(None if weight is None else as_view(weight))
    return {"axis": options.axis, **given._asdict()}


def _check_overwritable(input: Tensor) -> None:  # noqa: A002
    base = input if input._base is None else input._base  # what a view is of
    if base.is_leaf or not _is_dense(input):
        got = f"strides {input.stride()}"
        if base.is_leaf:
            got = "a leaf that requires grad" if base is input else "a view of a leaf that requires grad"
        raise ValueError(f"input must be a dense result of a computation with inplace=True, got {got}.")


def _is_dense(input: Tensor) -> bool:  # noqa: A002
    """Whether no two entries share memory."""
    return all(step > 0 for step, size in zip(input.stride(), input.shape, strict=True) if size > 1)


def _check_dim(input: Tensor, dim: int) -> None:  # noqa: A002
    check_tensor("input", input, FLOATING)
    position = as_integer("dim", dim)
    if not -input.ndim <= position < input.ndim:
        raise ValueError(f"dim must be from {-input.ndim} to {input.ndim - 1}, got {position}.")
