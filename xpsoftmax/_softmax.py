"""softmax, log_softmax, logsumexp and the products with the Jacobian of the softmax."""

from __future__ import annotations

from functools import partial

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.axes import INF, Axes, masked
from xpsoftmax._arguments.door import SEEN, CallPlan, enter_rows
from xpsoftmax._arguments.layout import Layout, copied, deliver, from_rows, in_rows, reshaped, rows_out, to_rows
from xpsoftmax._arguments.options import check_flag
from xpsoftmax._arguments.shapes import same_shape, size_hint
from xpsoftmax._arguments.views import rows_on_views
from xpsoftmax._typing import Array, Impl
from xpsoftmax.kernels import generic, select


def softmax(
    logits: Array, /, *, axis: Axes = -1, where: Array | None = None, out: Array | None = None, impl: Impl = "auto"
) -> Array:
    r"""Probabilities of the classes from their logits.

    .. math:: p_j = \frac{e^{z_j}}{\sum_k e^{z_k}}

    Parameters
    ----------
    logits : array, (..., C, ...)
        float16, bfloat16, float32 or float64; C at least 1.
    axis : int, tuple of int or None
        The axis of the classes; several axes are taken together as one, None takes all.
    where : array of bool, optional
        False leaves a class out, whatever its logit holds: its probability is 0, also where all classes are left out.
        Of a shape that broadcasts to that of `logits`, and of its library.
    out : array, shape of `logits`, optional
        Where the result is written: `logits` itself, or an array that shares no memory with it; of the dtype of
        `logits`, or float32 for 16-bit logits.
    impl : {"auto", "generic", "kernel"}
        "auto": the fastest code for these arrays; "generic": the generic code; "kernel": a kernel, or an error.

    Returns
    -------
    array
        Shape, dtype, namespace and device of `logits` (or `out`). A row that holds nan or +inf, or only -inf, is nan.

    Raises
    ------
    TypeError
        If an array is of an unsupported kind or dtype.
    ValueError
        If `axis`, `where`, `out` or `impl` does not fit; if `out` is given where PyTorch differentiates the result.
    NotImplementedError
        With ``impl="kernel"``, if no kernel takes these arrays.

    See Also
    --------
    log_softmax : the logarithms, which do not underflow
    softmax_loss_and_grad : the loss that is taken of probabilities, from logits

    Notes
    -----
    Every entry has a relative error of at most ``(4 + T/2 + log2(C)) * eps``, T the distance from the largest logit to
    the smallest that still counts (``tests/loss/test_softmax.py``). 16-bit logits are computed in float32.

    JAX differentiates the result as `softmax_jvp` does, to every order (``tests/jax/test_jax_derivatives.py``).
    So does PyTorch, with ``backward``, ``torch.func``, forward-mode AD and ``torch.compile``
    (``tests/torch/test_torch_derivatives.py``).

    References
    ----------
    J. S. Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> xs.softmax(np.log([2.0, 3.0, 5.0])).round(6)
    array([0.2, 0.3, 0.5])
    >>> xs.softmax(np.log([2.0, 3.0, 5.0]), where=np.array([True, True, False])).round(6)
    array([0.4, 0.6, 0. ])
    >>> xs.softmax(np.zeros((2, 2)), axis=None)
    array([[0.25, 0.25],
           [0.25, 0.25]])
    """
    return _map_rows("softmax_rows", logits, axis, where, 0.0, out, impl)


def log_softmax(
    logits: Array, /, *, axis: Axes = -1, where: Array | None = None, out: Array | None = None, impl: Impl = "auto"
) -> Array:
    r"""Logarithms of the probabilities of the classes.

    .. math:: \log p_j = z_j - \log \sum_k e^{z_k}

    Parameters, errors and the treatment of non-finite rows are those of `softmax`.

    Parameters
    ----------
    logits : array, (..., C, ...)
        float16, bfloat16, float32 or float64; C at least 1.
    axis : int, tuple of int or None
        The axis of the classes; several axes are taken together as one, None takes all.
    where : array of bool, optional
        False leaves a class out: its result is -inf. Of a shape that broadcasts to that of `logits`.
    out : array, shape of `logits`, optional
        Where the result is written: `logits` itself, or an array that shares no memory with it.
    impl : {"auto", "generic", "kernel"}
        "auto": the fastest code for these arrays; "generic": the generic code; "kernel": a kernel, or an error.

    Returns
    -------
    array
        Shape, dtype, namespace and device of `logits` (or `out`).

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `softmax`.

    See Also
    --------
    softmax : the probabilities
    logsumexp : what is taken off the logits

    Notes
    -----
    At the largest logit the value is ``-log1p(sum of the others)``, which keeps its digits where ``log(p)`` rounds to
    zero: every entry has a relative error of at most ``(4 + T/2 + log2(C)) * eps`` (``tests/loss/test_softmax.py``).

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA J.
    Numer. Anal. 41 (2021), doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> xs.log_softmax(np.array([40.0, 0.0]))
    array([-4.24835426e-18, -4.00000000e+01])
    """
    return _map_rows("log_softmax_rows", logits, axis, where, -INF, out, impl)


def logsumexp(
    logits: Array, /, *, axis: Axes = -1, where: Array | None = None, keepdims: bool = False, impl: Impl = "auto"
) -> Array:
    r"""Logarithm of the sum of exponentials, without overflow.

    .. math:: \log \sum_k e^{z_k} = m + \log\Bigl(1 + \sum_{k \ne \hat k} e^{z_k - m}\Bigr),
              \quad m = z_{\hat k} = \max z

    Parameters
    ----------
    logits : array, (..., C, ...)
        float16, bfloat16, float32 or float64; C at least 1.
    axis : int, tuple of int or None
        The axis that is summed over; or several; None sums over all.
    where : array of bool, optional
        False leaves an entry out of the sum. Of a shape that broadcasts to that of `logits`.
    keepdims : bool
        Keep the summed axes, with size 1.
    impl : {"auto", "generic", "kernel"}
        "auto": the fastest code for these arrays; "generic": the generic code; "kernel": a kernel, or an error.

    Returns
    -------
    array
        Shape of `logits` without `axis`; its dtype, namespace and device. -inf where all logits are -inf or left
        out, +inf where one is +inf, nan where one is nan.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `softmax`.

    See Also
    --------
    log_softmax : logits minus this
    softmax_loss_and_grad : returns it beside loss and gradient with ``aux=True``

    Notes
    -----
    The error is at most ``(4 + T/2 + log2(C)) * eps * (abs(m) + log1p(sum of the others))``
    (``tests/loss/test_softmax.py``).

    References
    ----------
    Blanchard, Higham and Higham (2021), as `log_softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> float(xs.logsumexp(np.array([1000.0, 1000.0])))
    1000.6931471805599
    """
    check_flag("keepdims", keepdims)
    if type(logits) in SEEN:  # the door reads them: this saves time in small calls
        return _logsumexp(logits, where, None, axis=axis, keepdims=keepdims, impl=impl)
    compute = partial(_logsumexp, axis=axis, keepdims=keepdims, impl=impl)
    return rows_on_views(compute, logits, where, out=None, impl=impl, differentiable=True)


def _logsumexp(
    logits: Array,
    where: Array | None,
    out: None,  # noqa: ARG001 - as `rows_on_views` calls it
    *,
    axis: Axes,
    keepdims: bool,
    impl: Impl,
) -> Array:
    """See `logsumexp`; without views."""
    array, mask, layout, plan = enter_rows("logsumexp_rows", logits, axis, impl, where=where)
    with plan.context():
        sums = plan.kernel(in_rows(masked(array, mask, layout), layout, None))
        shape = layout.rows_shape
        if len(shape) != 1:
            sums = reshaped(sums, shape)
        if keepdims:  # not expand_dims: dask's fails where the number of rows is unknown
            sums = sums[tuple(slice(None) if i in layout.row_axes else None for i in range(array.ndim))]
        else:
            sums = generic.as_0d(sums)
        return sums if plan.place is None else plan.place.like_logits(sums)


def softmax_jvp(logits: Array, tangent: Array, /, *, axis: int = -1) -> Array:
    r"""Jacobian of the softmax times a vector (the Jacobian is symmetric: also the vector times the Jacobian).

    .. math:: \dot p_k = \sum_j p_k (\delta_{jk} - p_j) v_j = p_k \sum_j p_j (v_k - v_j)

    Parameters
    ----------
    logits : array, (..., C, ...)
        float16, bfloat16, float32 or float64; C at least 1.
    tangent : array, shape and dtype of `logits`
        The vector, one a row.
    axis : int
        The axis of the classes.

    Returns
    -------
    array
        Shape, dtype, namespace and device of `logits`.

    Raises
    ------
    TypeError, ValueError
        As `softmax`, and if `tangent` does not fit `logits`.

    See Also
    --------
    softmax_jacobian : the whole matrix

    Notes
    -----
    The mean of v under p is subtracted in two steps. The first subtracts the entry of v that is nearest to the mean:
    for a constant v this leaves exactly 0, for a nearly certain row only small numbers. The second subtracts the mean
    of the rest. The error of entry k is at most ``(4 + T/2 + log2(C)) * eps * p[k] * sum(p[j] * abs(v[k] - v[j]))``
    (``tests/loss/test_softmax.py``).

    References
    ----------
    C. M. Bishop, "Pattern Recognition and Machine Learning", 2006, eq. 4.106.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> xs.softmax_jvp(np.log([2.0, 3.0, 5.0]), np.array([1.0, 0.0, 0.0])).round(6)
    array([ 0.16, -0.06, -0.1 ])
    """
    array, layout = check.as_logits(logits, axis, differentiable=True)
    _, v = check.as_floating("tangent", check.as_companion("tangent", tangent, layout.home), differentiable=True)
    if v.dtype != array.dtype:
        raise TypeError(f"tangent must have the dtype of logits, {array.dtype}, got {v.dtype}.")
    if not same_shape(v.shape, layout.shape):
        hint = size_hint(v.shape, layout.shape)
        raise ValueError(f"tangent must have the shape of logits, {layout.shape}, got {tuple(v.shape)}.{hint}")
    check.check_blocks("tangent", v, layout)
    xp = layout.home.xp
    with layout.home.context():
        rows = (xp.astype(to_rows(xp, x, layout.axis), layout.working, copy=False) for x in (array, v))
        return from_rows(
            xp, generic.narrowed(xp, select("softmax_jvp_rows", array, "auto")(*rows), array.dtype), layout
        )


def softmax_jacobian(logits: Array, /, *, axis: int = -1) -> Array:
    r"""Jacobian of the softmax, one matrix a row.

    .. math:: J_{jk} = \frac{\partial p_j}{\partial z_k} = p_j (\delta_{jk} - p_k)

    Parameters
    ----------
    logits : array, (..., C, ...)
        float16, bfloat16, float32 or float64; C at least 1.
    axis : int
        The axis of the classes.

    Returns
    -------
    array, (..., C, C)
        The class axis is moved last and doubled. Dtype, namespace and device of `logits`.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    See Also
    --------
    softmax_jvp : products with it, without the matrix

    Notes
    -----
    It holds C times as many numbers as `logits`; for products with it use `softmax_jvp`. On the diagonal of the most
    probable class, ``1 - p`` is the sum of the other probabilities (``tests/loss/test_softmax.py``).

    References
    ----------
    Bishop (2006), as `softmax_jvp`.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> xs.softmax_jacobian(np.log([2.0, 3.0, 5.0])).round(6)
    array([[ 0.16, -0.06, -0.1 ],
           [-0.06,  0.21, -0.15],
           [-0.1 , -0.15,  0.25]])
    """
    array, layout = check.as_logits(logits, axis, differentiable=True)
    xp = layout.home.xp
    with layout.home.context():
        rows = xp.astype(to_rows(xp, array, layout.axis), layout.working, copy=False)
        jacobian = xp.astype(select("softmax_jacobian_rows", array, "auto")(rows), array.dtype, copy=False)
        if array.ndim == 2:
            return jacobian
        return reshaped(jacobian, (*layout.rows_shape, layout.classes, layout.classes))


def _map_rows(
    operation: str, logits: Array, axis: Axes, where: Array | None, left_out: float, out: Array | None, impl: Impl
) -> Array:
    if type(logits) in SEEN:  # the door reads them: this saves time in small calls
        return _map_rows_here(logits, where, out, operation=operation, axis=axis, left_out=left_out, impl=impl)
    compute = partial(_map_rows_here, operation=operation, axis=axis, left_out=left_out, impl=impl)
    return rows_on_views(compute, logits, where, out=out, impl=impl, differentiable=True)


def _map_rows_here(
    logits: Array, where: Array | None, out: Array | None, *, operation: str, axis: Axes, left_out: float, impl: Impl
) -> Array:
    """See `_map_rows`; without views."""
    array, mask, layout, plan = enter_rows(operation, logits, axis, impl, out, where)
    if plan.place is not None:
        return plan.place.like_logits(_mapped(array, mask, layout, plan, left_out, None))
    return _mapped(array, mask, layout, plan, left_out, out)


def _mapped(
    array: Array, mask: Array | None, layout: Layout, plan: CallPlan, left_out: float, out: Array | None
) -> Array:
    with plan.context():
        if plan.direct and mask is None:
            return plan.kernel(array, out=out if plan.place is None else plan.place.empty_like(array))
        xp = layout.home.xp
        if mask is None:
            rows = in_rows(array, layout, out)
            into = rows_out(layout, out) if plan.place is None else plan.place.empty_like(rows)
            return deliver(xp, plan.kernel(rows, out=into), layout, out)
        array = masked(array, mask, layout)
        if out is not None:
            array = xp.astype(array, layout.working, copy=False)  # it is rounded once, into `out`
        result = xp.where(mask, from_rows(xp, plan.kernel(in_rows(array, layout, None)), layout), left_out)
        if out is None:
            return result
        copied(xp, result, out)
        return out
