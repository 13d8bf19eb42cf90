"""The softmax loss (cross-entropy of the softmax) and its gradient with respect to the logits."""

from __future__ import annotations

from xpsoftmax._arguments.door import enter_loss
from xpsoftmax._arguments.layout import Layout, deliver, in_rows, rows_out, rowwise
from xpsoftmax._arguments.problem import LossOptions, mean_or_nan, weigh
from xpsoftmax._typing import Array, Impl, Reduction
from xpsoftmax.kernels import generic, select, summed


def softmax_loss(
    logits: Array,
    targets: Array,
    /,
    *,
    axis: int = -1,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool = True,
    impl: Impl = "auto",
) -> Array:
    r"""Softmax loss of logits (..., C, ...) for labels (...) or soft targets (..., C, ...).

    .. math:: L_i = -\log p_{i, y_i} = \log \sum_k e^{z_{ik}} - z_{i, y_i}, \qquad
              L = \frac{\sum_i w_i L_i}{\sum_i w_i}

    Parameters
    ----------
    logits : array, (..., C, ...)
        float16, bfloat16, float32 or float64.
    targets : array
        Labels from 0 to C - 1, of any integer dtype and of the shape of `logits` without `axis`; or soft targets:
        floating, not negative, of the shape of `logits`, with any sum along `axis`.
    axis : int
        The axis of the classes.
    class_weight : array, (C,), optional
        Multiplies the loss of the rows with this label; with soft targets, each term of the sum over classes.
    sample_weight : array, shape of `logits` without `axis`, optional
        Multiplies the loss of each row.
    ignore_index : int, optional
        Rows with this label add nothing. None: no label is ignored.
    label_smoothing : float, 0 to 1
        Take this share of the target's mass and spread it evenly over the classes.
    z_loss : float
        Adds ``z_loss * logsumexp(logits)**2``, times the weight of the row.
    reduction : {"mean", "sum", "none"}
        Weighted mean (the sum divided by the sum of the weights ``class_weight[label] * sample_weight``, for soft
        targets of ``sample_weight``), weighted sum, or one weighted loss a row.
    validate : bool
        Look at the values of labels, soft targets and weights. It costs one small reduction and, on a GPU, one
        synchronisation. Without it a bad row becomes nan, and nothing else does.
    impl : {"auto", "generic", "kernel"}
        As for `softmax`.

    Returns
    -------
    array
        The loss, 0-d, or of the shape of `logits` without `axis` for "none"; float32 for 16-bit logits, else of the
        dtype of `logits`. The mean over no row (no rows, all ignored, all weights zero) is nan.

    Raises
    ------
    TypeError
        If an array is of an unsupported kind or dtype, or of another library than `logits`.
    ValueError
        If a shape, device or option does not fit; with `validate`, if a label is out of range (the message names the
        first such row) or a weight or soft target is negative or not finite.
    NotImplementedError
        With ``impl="kernel"``, if no kernel takes these arrays.

    Notes
    -----
    For hard labels the loss of each row has a relative error of at most ``B = (4 + T/2 + log2(C)) * eps``, however
    sure the row is: no digit is lost to ``log(p)`` near p = 1. Soft targets, smoothing and z-loss: at most B times the
    sum of the absolute values of the terms (``tests/loss/test_loss.py``). ``-inf`` logits are classes that cannot be:
    without target mass they add 0, with it the loss is inf. A row with nan or +inf, or with -inf only, is nan, unless
    its weight is zero: then it adds exactly 0.

    JAX and PyTorch differentiate the result as `softmax_loss_and_grad` does, with respect to logits, soft targets and
    weights, to every order.

    References
    ----------
    Bishop (2006), section 4.3.4; label smoothing: C. Szegedy et al., "Rethinking the Inception architecture", CVPR
    2016; z-loss: A. Chowdhery et al., "PaLM", JMLR 24 (2023), section 5.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> z = np.log([[2.0, 3.0, 5.0], [1.0, 1.0, 2.0]])
    >>> xs.softmax_loss(z, np.array([1, 2]), reduction="none").round(6)
    array([1.203973, 0.693147])
    >>> print(f"{xs.softmax_loss(np.array([50.0, 0.0]), np.array(0)):.9g}")
    1.92874985e-22
    """
    loss, _, _ = _compute(
        logits,
        targets,
        None,
        LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate),
        axis=axis,
        impl=impl,
        grad=False,
    )
    return loss


def softmax_loss_and_grad(
    logits: Array,
    targets: Array,
    /,
    *,
    axis: int = -1,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool = True,
    impl: Impl = "auto",
    out: Array | None = None,
    aux: bool = False,
) -> tuple[Array, ...]:
    r"""Softmax loss and its gradient with respect to the logits.

    .. math:: \frac{\partial L_i}{\partial z_{ij}} = p_{ij} - 1\{j = y_i\}, \qquad
              \frac{\partial L_i}{\partial z_{i y_i}} = -\sum_{k \ne y_i} p_{ik}

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate, impl
        As for `softmax_loss`.
    out : array, shape of `logits`, optional
        Where the gradient is written: `logits` itself, or an array that shares no memory with any argument; of the
        dtype of `logits`, or float32 for 16-bit logits (small gradients vanish in float16). After an error it is as
        it was. Not for JAX and dask arrays, which cannot be written to.
    aux : bool
        Return the logsumexp of each row as well.

    Returns
    -------
    loss : array
        As `softmax_loss` returns it.
    dlogits : array, shape of `logits`
        Gradient of the loss ("none": of each row's own loss), in the dtype of `logits`, or `out`. Where the loss is a
        mean over no row it is zero: nothing depends on the logits then.
    logsumexp : array, shape of `logits` without `axis`
        With `aux` only: what `logsumexp` returns for these logits, in the dtype of the loss.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `softmax_loss`, and if `out` does not fit.

    Notes
    -----
    The gradient at the label is formed from the other classes, never as p - 1: every entry keeps its relative
    precision down to underflow (the bound is that of `softmax_loss`, ``tests/loss/test_loss.py``).

    PyTorch tensors may require grad: loss and gradient are detached. torch.func and forward-mode AD, which would take
    their derivatives for zero, are an error.

    References
    ----------
    Bishop (2006), eq. 4.109. Why it matters: L. Prieto et al., "Grokking at the edge of numerical stability", ICLR
    2025.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> loss, dlogits = xs.softmax_loss_and_grad(np.log([[2.0, 3.0, 5.0]]), np.array([1]))
    >>> dlogits.round(6)
    array([[ 0.2, -0.7,  0.5]])
    >>> xs.softmax_loss_and_grad(np.array([50.0, 0.0]), np.array(0))[1]
    array([-1.92874985e-22,  1.92874985e-22])

    The logarithm of the sum, as for a z-loss of one's own or to compare rows:

    >>> z = np.log([[2.0, 3.0, 5.0], [1.0, 1.0, 2.0]])
    >>> loss, dlogits, sums = xs.softmax_loss_and_grad(z, np.array([1, 2]), aux=True)
    >>> np.exp(sums).round(6)
    array([10.,  4.])
    """
    loss, dlogits, sums = _compute(
        logits,
        targets,
        out,
        LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate),
        axis=axis,
        impl=impl,
        grad=True,
        aux=aux,
    )
    return (loss, dlogits, sums) if aux else (loss, dlogits)


def _compute(
    logits: Array,
    targets: Array,
    out: Array | None,
    options: LossOptions,
    *,
    axis: int,
    impl: Impl,
    grad: bool,
    aux: bool = False,
) -> tuple[Array, Array, Array]:
    """Loss, gradient with `grad`, and logsumexp of each row with `aux`."""
    array, targets, options, layout, way = enter_loss(logits, targets, out, options, axis, impl, grad=grad, aux=aux)
    xp = layout.home.xp
    with way.context():
        problem = weigh(targets, options, way.terms, layout, for_kernel=way.by_kernel)
        sums = _logsumexp(array, layout, impl) if aux else None  # before `out`, which may be the logits, is written
        rows, into = (array, out) if way.direct else (in_rows(array, layout, out), rows_out(layout, out))
        loss, dlogits = way.kernel(rows, problem.targets, problem.row_weight, problem.spec, grad=grad, out=into)
        if options.reduction == "none":
            loss = rowwise(loss, layout)
        elif not way.adds_up:
            loss = summed(xp, loss, impl)
        if options.reduction == "mean":
            loss = mean_or_nan(xp, loss, problem.total)
        return loss, dlogits if way.direct or not grad else deliver(xp, dlogits, layout, out), sums


def _logsumexp(array: Array, layout: Layout, impl: Impl) -> Array:
    """Of each row, in the working precision."""
    xp = layout.home.xp
    rows = xp.astype(in_rows(array, layout, None), layout.working, copy=False)
    return generic.as_0d(rowwise(select("logsumexp_rows", rows, impl)(rows), layout))
