"""cross_entropy, its module, softmax and log_softmax for PyTorch tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import xpsoftmax
from xpsoftmax._arguments.options import as_integer, check_flag
from xpsoftmax._typing import FLOATING, Reduction
from xpsoftmax.kernels.torch.modes import PLAIN, is_differentiated, is_eager
from xpsoftmax.torch.checks import check_tensor, checked_options, plain_labels
from xpsoftmax.torch.recorded import by_rows, held_loss, is_read_by_numpy, loss_of_arrays, loss_of_plain


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
    the gradient is made with the loss and held; that of float16 logits and on a GPU in the backward pass.

    Examples
    --------
    >>> import torch
    >>> from xpsoftmax.torch import cross_entropy
    >>> z = torch.tensor([[30.0, 0.0]], requires_grad=True)
    >>> cross_entropy(z, torch.tensor([0])).backward()
    >>> z.grad
    tensor([[-9.3576e-14,  9.3576e-14]])
    """
    eager = is_eager()
    usual = weight is None and inplace is False and type(label_smoothing) is type(z_loss) is float
    if usual and eager and label_smoothing == z_loss == 0.0 and type(reduction) is str and reduction == "mean":
        labels = plain_labels(input, target, ignore_index, validate)
        if labels is not None:
            return loss_of_plain(input, target, labels)
    options = checked_options(
        input, target, weight, ignore_index, reduction, label_smoothing, z_loss, validate=validate
    )
    check_flag("inplace", inplace)
    recorded = eager and is_differentiated(input, target, weight)
    inplace = inplace and recorded and input.requires_grad
    if inplace:
        _check_overwritable(input)
    if options.signed is not False or not eager or type(input) not in PLAIN or not is_read_by_numpy(input):
        return by_rows(input, target, weight, options, inplace=inplace)
    if recorded and input.requires_grad:
        return held_loss(input, target, weight, options, inplace=inplace)
    return (by_rows if recorded else loss_of_arrays)(input, target, weight, options)


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
    return _along(xpsoftmax.softmax, input, dim)


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
    return _along(xpsoftmax.log_softmax, input, dim)


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


def _along(function: Callable[..., Tensor], input: Tensor, dim: int) -> Tensor:  # noqa: A002
    """Call a function of this package with the parameters of PyTorch, for which a number is a row of one class."""
    check_tensor("input", input, FLOATING)
    position, axes = as_integer("dim", dim), max(1, input.ndim)
    if not -axes <= position < axes:
        raise ValueError(f"dim must be from {-axes} to {axes - 1}, got {position}.")
    return function(input, axis=position) if input.ndim > 0 else function(input[None])[0]
