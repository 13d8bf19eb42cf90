"""The softmax loss (cross-entropy of the softmax) and its gradient with respect to the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from xpsoftmax._arguments.checks import working_dtype
from xpsoftmax._arguments.door import SEEN, enter_loss
from xpsoftmax._arguments.layout import deliver, in_rows, rows_out, rowwise
from xpsoftmax._arguments.problem import LossOptions, mean_or_nan, weigh
from xpsoftmax._arguments.views import rows_on_views
from xpsoftmax._typing import Array, Impl, LossSpec, Reduction
from xpsoftmax.kernels import generic, kernel_for, select, summed


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
        One weight per class. It multiplies the loss of each row with that label; with soft targets, that class's term.
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
        Which code computes it: the fastest that takes these arrays, the generic one, or a kernel or nothing.

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

    See Also
    --------
    softmax_loss_and_grad : the gradient as well, in the same pass
    mlp_loss : the loss of a network, in bounded memory

    Notes
    -----
    For hard labels the loss of each row has a relative error of at most ``B = (4 + T/2 + log2(C)) * eps``, however
    sure the row is: no digit is lost to ``log(p)`` near p = 1. Soft targets, smoothing and z-loss: at most B times the
    sum of the absolute values of the terms (``tests/loss/test_loss.py``). ``-inf`` is the logit of an impossible
    class: without target mass it adds 0, with it the loss is inf. A row with nan or +inf, or with -inf only, is nan.
    A row of weight zero adds exactly 0, whatever it holds.

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
    >>> labels = np.array([1, 2])
    >>> xs.softmax_loss(z, labels, reduction="none").round(6)
    array([1.203973, 0.693147])
    >>> round(float(xs.softmax_loss(z, labels)), 6)
    0.94856
    >>> round(float(xs.softmax_loss(z, labels, reduction="sum")), 6)
    1.89712

    Each option, by what it does to the two rows:

    >>> xs.softmax_loss(z, labels, class_weight=np.array([1.0, 10.0, 1.0]), reduction="none").round(6)
    array([12.039728,  0.693147])
    >>> xs.softmax_loss(z, labels, sample_weight=np.array([1.0, 0.5]), reduction="none").round(6)
    array([1.203973, 0.346574])
    >>> xs.softmax_loss(z, labels, ignore_index=2, reduction="none").round(6)
    array([1.203973, 0.      ])
    >>> xs.softmax_loss(z, labels, label_smoothing=0.3, reduction="none").round(6)
    array([1.193437, 0.831777])
    >>> xs.softmax_loss(z, labels, z_loss=0.1, reduction="none").round(6)
    array([1.734163, 0.885328])

    Soft targets, classes along another axis, and labels that are not checked:

    >>> xs.softmax_loss(z, np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]), reduction="none").round(6)
    array([1.203973, 1.039721])
    >>> float(xs.softmax_loss(z.T, labels, axis=0)) == float(xs.softmax_loss(z, labels))
    True
    >>> xs.softmax_loss(z, np.array([1, 3]), validate=False, reduction="none").round(6)
    array([1.203973,      nan])

    A sure row:

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
    logits : array, (..., C, ...)
        float16, bfloat16, float32 or float64.
    targets : array
        Labels from 0 to C - 1, of any integer dtype and of the shape of `logits` without `axis`; or soft targets:
        floating, not negative, of the shape of `logits`, with any sum along `axis`.
    axis : int
        The axis of the classes.
    class_weight : array, (C,), optional
        One weight per class. It multiplies the loss of each row with that label; with soft targets, that class's term.
    sample_weight : array, shape of `logits` without `axis`, optional
        Multiplies the loss of each row.
    ignore_index : int, optional
        Rows with this label add nothing. None: no label is ignored.
    label_smoothing : float, 0 to 1
        Take this share of the target's mass and spread it evenly over the classes.
    z_loss : float
        Adds ``z_loss * logsumexp(logits)**2``, times the weight of the row.
    reduction : {"mean", "sum", "none"}
        Weighted mean, weighted sum, or one weighted loss a row.
    validate : bool
        Check the values of labels, soft targets and weights. False: a bad row becomes nan, and nothing waits for a GPU.
    impl : {"auto", "generic", "kernel"}
        Which code computes it: the fastest that takes these arrays, the generic one, or a kernel or nothing.
    out : array, shape of `logits`, optional
        Where the gradient is written: `logits` itself, or an array that shares no memory with any argument; of the
        dtype of `logits`, or float32 for 16-bit logits (small gradients vanish in float16). After an error it is as
        it was. Not for JAX and dask arrays, which cannot be written to.
    aux : bool
        Return the logsumexp of each row as well: on NumPy out of the same pass, elsewhere by a second one.

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

    See Also
    --------
    softmax_loss : the loss alone
    mlp_loss_and_grad : loss and gradients of a network
    check_grad : compares a gradient with numerical differences

    Notes
    -----
    The gradient at the label is formed from the other classes, never as p - 1: every entry keeps its relative
    precision down to underflow (the bound is that of `softmax_loss`, ``tests/loss/test_loss.py``).

    PyTorch tensors may require grad: loss and gradient are detached. torch.func and forward-mode AD raise an error,
    because they would treat the derivatives of both as zero.

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

    In place, with options:

    >>> z = np.log([[2.0, 3.0, 5.0], [1.0, 1.0, 2.0]])
    >>> loss, dlogits = xs.softmax_loss_and_grad(z, np.array([1, 2]), label_smoothing=0.3, out=z)
    >>> dlogits is z
    True
    >>> z.round(6)
    array([[ 0.05 , -0.25 ,  0.2  ],
           [ 0.075,  0.075, -0.15 ]])

    The logsumexp of each row as well:

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
    if type(logits) in SEEN:  # the door reads them: this saves time in small calls
        return _compute_here(logits, targets, options, out, axis=axis, impl=impl, grad=grad, aux=aux)

    def compute(
        logits: Array, targets: Array, class_weight: Array | None, sample_weight: Array | None, out: Array | None
    ) -> tuple[Array, Array, Array]:
        given = options
        if class_weight is not options.class_weight or sample_weight is not options.sample_weight:
            given = options._replace(class_weight=class_weight, sample_weight=sample_weight)
        return _compute_here(logits, targets, given, out, axis=axis, impl=impl, grad=grad, aux=aux)

    arrays = logits, targets, options.class_weight, options.sample_weight
    result: tuple[Array, Array, Array] = rows_on_views(compute, *arrays, out=out, impl=impl, differentiable=not grad)
    return result


def _compute_here(
    logits: Array,
    targets: Array,
    options: LossOptions,
    out: Array | None,
    *,
    axis: int,
    impl: Impl,
    grad: bool,
    aux: bool,
) -> tuple[Array, Array, Array]:
    """See `_compute`; without views."""
    array, targets, options, layout, plan = enter_loss(logits, targets, out, options, axis, impl, grad=grad, aux=aux)
    xp = layout.home.xp
    with plan.context():
        problem = weigh(targets, options, plan.terms, layout, for_kernel=plan.by_kernel)
        rows, into = (array, out) if plan.direct else (in_rows(array, layout, out), rows_out(layout, out))
        if plan.place is not None and grad:
            into = plan.place.empty_like(rows)
        kernel = _with_logsumexp(plan.kernel, array, impl) if aux else plan.kernel
        loss, dlogits, *more = kernel(rows, problem.targets, problem.row_weight, problem.spec, grad=grad, out=into)
        sums = generic.as_0d(rowwise(more[0], layout)) if aux else None
        if options.reduction == "none":
            loss = rowwise(loss, layout)
        elif not plan.adds_up:
            loss = summed(xp, loss, impl)
        if options.reduction == "mean":
            loss = mean_or_nan(xp, loss, problem.total, problem.correction)
        if grad and not plan.direct:
            dlogits = deliver(xp, dlogits, layout, out)
    if plan.place is None:
        return loss, dlogits, sums
    return (
        plan.place.array(loss),
        plan.place.like_logits(dlogits) if grad else None,
        plan.place.array(sums) if aux else None,
    )


def _with_logsumexp(kernel: Callable[..., Any], array: Array, impl: Impl) -> Callable[..., Any]:
    """Return the kernel of loss, gradient and logsumexp; where a backend has none, one that reads the rows twice."""
    fused = kernel_for("softmax_loss_and_logsumexp_rows", array, impl) if isinstance(array, np.ndarray) else None
    if fused is not None:
        return fused

    def both(rows: Array, targets: Array, row_weight: Array, spec: LossSpec, **options: Any) -> tuple[Array, ...]:
        xp = array_namespace(rows)
        wide = xp.astype(rows, working_dtype(xp, rows), copy=False)
        sums = select("logsumexp_rows", wide, impl)(wide)  # before `out`, which may be the logits, is written
        return *kernel(rows, targets, row_weight, spec, **options), sums

    return both
