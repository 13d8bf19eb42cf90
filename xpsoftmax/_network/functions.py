"""Fully connected networks under the softmax loss: one layer is the softmax classifier, two are the classic network.

    a[0] = X,  z[l] = a[l-1] W[l] + b[l],  a[l] = activation(z[l]),  logits = z[L]

A call passes chunks of rows through all layers and adds up their sums, so that neither the logits nor the hidden
activations of all rows are ever held at once.
"""

from __future__ import annotations

from xpsoftmax._arguments.options import check_impl
from xpsoftmax._arguments.problem import LossOptions
from xpsoftmax._arguments.views import on_views
from xpsoftmax._network.backprop import forward
from xpsoftmax._network.layers import PairsOfArrays, Params
from xpsoftmax._network.network import as_inputs, as_network
from xpsoftmax._network.passes import sum_over_rows
from xpsoftmax._network.predict import predict
from xpsoftmax._network.sums import PartialSums, loss_with_penalty, with_penalty
from xpsoftmax._typing import Activation, Array, Impl, Reduction
from xpsoftmax.kernels.generic import narrowed


@on_views(differentiable=True)
def mlp_logits(
    params: PairsOfArrays, X: Array, /, *, activation: Activation | None = None, impl: Impl = "auto"
) -> Array:
    r"""Logits (N, C) of a network for inputs (N, D).

    .. math:: a_0 = X, \quad z_l = a_{l-1} W_l + b_l, \quad a_l = f(z_l), \quad \text{logits} = z_L

    Parameters
    ----------
    params : sequence of Layer
        (weight (fan_in, fan_out), bias (fan_out,)) of each layer; one layer is the softmax classifier.
    X : array or sparse matrix, (N, D)
        Of the library, device and dtype of the parameters. Sparse matrices and arrays of SciPy go with NumPy, those of
        cupyx with CuPy; they are never made dense, and formats other than CSR are converted to it in each call.
    activation : {"identity", "relu", "tanh", "logistic", "silu", "gelu"}, optional
        Of the hidden layers; gelu is its tanh form. Default: the one that the layers carry (see `Layer`), or "relu" for
        plain pairs. It must agree with the one that the layers carry.
    impl : {"auto", "generic", "kernel"}
        Which code computes it: the fastest that takes these arrays, the generic one, or a kernel or nothing.

    Returns
    -------
    array, (N, C)
        In the dtype of the parameters (16-bit parameters are multiplied in float32).

    Raises
    ------
    TypeError, ValueError
        If parameters and inputs do not fit each other; the message says which. ValueError if `activation` is not the
        one that the layers carry, or if they carry different ones.
    NotImplementedError
        With ``impl="kernel"``, if no kernel takes these arrays.

    See Also
    --------
    mlp_predict : the labels, in bounded memory
    init_params : parameters to start from

    References
    ----------
    Bishop (2006), section 5.1; GELU: D. Hendrycks and K. Gimpel, arXiv:1606.08415; SiLU: S. Elfwing et al., Neural
    Networks 107 (2018).

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = xs.init_params((4, 10, 3), rng=0)
    >>> xs.mlp_logits(params, np.ones((5, 4))).shape
    (5, 3)
    """
    check_impl(impl)
    net = as_network(params, activation, impl, differentiable=True)
    X = as_inputs(net, X)
    with net.home.context():
        logits = forward(net, X if X.dtype == net.working else net.xp.astype(X, net.working))[2]
        return narrowed(net.xp, logits, net.dtype)


@on_views()
def mlp_predict(
    params: PairsOfArrays,
    X: Array,
    /,
    *,
    activation: Activation | None = None,
    max_memory: int | None = None,
    validate: bool = True,
    impl: Impl = "auto",
) -> Array:
    """Most probable class of each row.

    Parameters
    ----------
    params : sequence of Layer
        (weight (fan_in, fan_out), bias (fan_out,)) of each layer.
    X : array or sparse matrix, (N, D)
        Inputs, of the library, device and dtype of the parameters. A memory map is read in chunks of rows.
    activation : {"identity", "relu", "tanh", "logistic", "silu", "gelu"}, optional
        Of the hidden layers. Default: the one that the layers carry, or "relu" for plain pairs.
    max_memory : int, optional
        Bytes of temporary memory, as for `mlp_loss`: the logits of all rows are never held at once.
    validate : bool
        Whether a row whose logits hold nan is an error. A GPU is waited for once. With False, which ``jax.jit``
        needs, nothing waits, and the label of such a row is -1.
    impl : {"auto", "generic", "kernel"}
        Which code computes it: the fastest that takes these arrays, the generic one, or a kernel or nothing.

    Returns
    -------
    array, (N,)
        Labels from 0 to C - 1 in the library's index dtype, or -1: the place of the largest logit, and of equal ones
        the first. This also holds for infinite logits. The logits of 16-bit parameters are compared in float32.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `mlp_logits`; ValueError with the least value if `max_memory` is too small, and with the first row whose
        logits hold nan: no class is the most probable one there. For dask arrays the latter is raised when the labels
        are computed, by the first block that finds one.

    See Also
    --------
    mlp_logits : the logits; `softmax` of them are the probabilities

    References
    ----------
    Bishop (2006), section 1.5.1.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = (xs.Layer(np.eye(3), np.zeros(3)),)
    >>> xs.mlp_predict(params, np.array([[0.0, 2.0, 1.0]]))
    array([1])
    >>> xs.mlp_predict(params, np.array([[0.0, 2.0, 1.0], [0.0, np.nan, 1.0]]), validate=False)
    array([ 1, -1])
    """
    return predict(params, X, activation, max_memory, impl, validate=validate)


@on_views(differentiable=True)
def mlp_loss(
    params: PairsOfArrays,
    X: Array,
    targets: Array,
    /,
    *,
    activation: Activation | None = None,
    reg: float = 0.0,
    max_memory: int | None = None,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool = True,
    impl: Impl = "auto",
) -> Array:
    r"""Softmax loss of a network with L2 regularisation.

    .. math:: L = \frac{\sum_i w_i L_i}{\sum_i w_i} + \frac{\text{reg}}{2} \sum_l \lVert W_l \rVert^2

    Parameters
    ----------
    params : sequence of Layer
        (weight (fan_in, fan_out), bias (fan_out,)) of each layer.
    X : array or sparse matrix, (N, D)
        Inputs, of the library, device and dtype of the parameters.
    targets : array, (N,) or (N, C)
        Integer labels from 0 to C - 1, or floating soft targets.
    activation : {"identity", "relu", "tanh", "logistic", "silu", "gelu"}, optional
        Of the hidden layers. Default: the one that the layers carry, or "relu" for plain pairs.
    reg : float
        Strength of the L2 penalty on the weight matrices; biases are not penalised.
    max_memory : int, optional
        Bytes of temporary memory: rows pass through all layers in chunks. Default: 256 MiB, or what one row needs.
        Dask arrays are not chunked here: their own chunks are.
    class_weight : array, (C,), optional
        One weight per class. It multiplies the loss of each row with that label; with soft targets, that class's term.
    sample_weight : array, (N,), optional
        Multiplies the loss of each row.
    ignore_index : int, optional
        Rows with this label add nothing. None: no label is ignored.
    label_smoothing : float, 0 to 1
        Take this share of the target's mass and spread it evenly over the classes.
    z_loss : float
        Adds ``z_loss * logsumexp(logits)**2``, times the weight of the row.
    reduction : {"mean", "sum"}
        Weighted mean or weighted sum of the rows; the penalty is added once to either.
    validate : bool
        Check the values of labels, soft targets and weights. False: a bad row becomes nan, and nothing waits for a GPU.
    impl : {"auto", "generic", "kernel"}
        Which code computes it: the fastest that takes these arrays, the generic one, or a kernel or nothing.

    Returns
    -------
    array, 0-d
        float32 for 16-bit parameters, else of their dtype.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `mlp_logits` and `softmax_loss`; ValueError with the least value if `max_memory` is too small.

    See Also
    --------
    mlp_loss_and_grad : the gradients as well
    mlp_partial_sums : the same over parts of the rows

    References
    ----------
    Bishop (2006), sections 5.2 and 5.5.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = (xs.Layer(np.zeros((4, 10)), np.zeros(10)),)
    >>> bool(xs.mlp_loss(params, np.ones((5, 4)), np.arange(5)) == np.log(10))
    True
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate)
    net, total, reg = sum_over_rows(params, X, targets, activation, reg, max_memory, options, impl, grad=False)
    with net.home.context():
        return loss_with_penalty(net, total.loss, reg)


@on_views()
def mlp_loss_and_grad(
    params: PairsOfArrays,
    X: Array,
    targets: Array,
    /,
    *,
    activation: Activation | None = None,
    reg: float = 0.0,
    max_memory: int | None = None,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool = True,
    impl: Impl = "auto",
) -> tuple[Array, Params]:
    r"""Softmax loss of a network and its gradients with respect to all parameters.

    .. math:: \delta_L = \frac{\partial L}{\partial \text{logits}}, \quad
              \frac{\partial L}{\partial W_l} = a_{l-1}^T \delta_l + \text{reg}\, W_l, \quad
              \frac{\partial L}{\partial b_l} = 1^T \delta_l, \quad
              \delta_{l-1} = (\delta_l W_l^T) \odot f'(z_{l-1})

    Parameters
    ----------
    params : sequence of Layer
        (weight (fan_in, fan_out), bias (fan_out,)) of each layer.
    X : array or sparse matrix, (N, D)
        Inputs, of the library, device and dtype of the parameters.
    targets : array, (N,) or (N, C)
        Integer labels from 0 to C - 1, or floating soft targets.
    activation : {"identity", "relu", "tanh", "logistic", "silu", "gelu"}, optional
        Of the hidden layers. Default: the one that the layers carry, or "relu" for plain pairs.
    reg : float
        Strength of the L2 penalty on the weight matrices; biases are free.
    max_memory : int, optional
        Bytes of temporary memory: rows pass through all layers in chunks. Default: 256 MiB, or what one row needs.
    class_weight : array, (C,), optional
        One weight per class. It multiplies the loss of each row with that label; with soft targets, that class's term.
    sample_weight : array, (N,), optional
        Multiplies the loss of each row.
    ignore_index : int, optional
        Rows with this label add nothing. None: no label is ignored.
    label_smoothing : float, 0 to 1
        Take this share of the target's mass and spread it evenly over the classes.
    z_loss : float
        Adds ``z_loss * logsumexp(logits)**2``, times the weight of the row.
    reduction : {"mean", "sum"}
        Weighted mean or weighted sum of the rows; the penalty is added once to either.
    validate : bool
        Check the values of labels, soft targets and weights. False: a bad row becomes nan, and nothing waits for a GPU.
    impl : {"auto", "generic", "kernel"}
        Which code computes it: the fastest that takes these arrays, the generic one, or a kernel or nothing.

    Returns
    -------
    loss : array, 0-d
        As `mlp_loss` returns it.
    grads : tuple of Layer
        Shaped like `params`, of their dtype and with their activation; summed in float32 or wider.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `mlp_loss`.

    See Also
    --------
    train : goes through the rows in minibatches
    mlp_partial_sums : the same over parts of the rows
    check_grad : compares a gradient with numerical differences

    Notes
    -----
    Rows of weight zero add nothing, whatever they hold, also where their inputs are nan. ReLU has derivative 0 at 0.
    Checked against numerical gradients, the two-loop textbook forms and PyTorch's autograd
    (``tests/network/test_mlp.py``).

    References
    ----------
    D. E. Rumelhart, G. E. Hinton, R. J. Williams, "Learning representations by back-propagating errors", Nature 323
    (1986), doi:10.1038/323533a0; Bishop (2006), section 5.3.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = xs.init_params((4, 10, 3), rng=0)
    >>> loss, grads = xs.mlp_loss_and_grad(params, np.ones((5, 4)), np.array([0, 1, 2, 2, 1]), reg=1e-3)
    >>> grads[1].weight.shape, grads[1].bias.shape
    ((10, 3), (3,))
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate)
    net, total, reg = sum_over_rows(params, X, targets, activation, reg, max_memory, options, impl, grad=True)
    if reg == 0.0 and net.dtype == net.working:
        return total.loss, total.grads
    with net.home.context():
        return with_penalty(net, total.loss, total.grads, reg)


@on_views()
def mlp_partial_sums(
    params: PairsOfArrays,
    X: Array,
    targets: Array,
    /,
    *,
    activation: Activation | None = None,
    max_memory: int | None = None,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    validate: bool = True,
    impl: Impl = "auto",
) -> PartialSums:
    """Sums over some of the rows, from which the loss and its gradients over all rows are made.

    Batches, memory-mapped files and workers each give partial sums; they are added with ``+``, and ``finish`` makes
    the mean of them.

    Parameters
    ----------
    params : sequence of Layer
        (weight (fan_in, fan_out), bias (fan_out,)) of each layer.
    X : array or sparse matrix, (N, D)
        Inputs, of the library, device and dtype of the parameters.
    targets : array, (N,) or (N, C)
        Integer labels from 0 to C - 1, or floating soft targets.
    activation : {"identity", "relu", "tanh", "logistic", "silu", "gelu"}, optional
        Of the hidden layers. Default: the one that the layers carry, or "relu" for plain pairs.
    max_memory : int, optional
        Bytes of temporary memory: rows pass through all layers in chunks. Default: 256 MiB, or what one row needs.
    class_weight : array, (C,), optional
        One weight per class. It multiplies the loss of each row with that label; with soft targets, that class's term.
    sample_weight : array, (N,), optional
        Multiplies the loss of each row.
    ignore_index : int, optional
        Rows with this label add nothing. None: no label is ignored.
    label_smoothing : float, 0 to 1
        Take this share of the target's mass and spread it evenly over the classes.
    z_loss : float
        Adds ``z_loss * logsumexp(logits)**2``, times the weight of the row.
    validate : bool
        Check the values of labels, soft targets and weights. False: a bad row becomes nan, and nothing waits for a GPU.
    impl : {"auto", "generic", "kernel"}
        Which code computes it: the fastest that takes these arrays, the generic one, or a kernel or nothing.

    Returns
    -------
    PartialSums
        ``loss`` and ``weight``, 0-d: sums of the weighted losses and of the counting weights; ``grads``: sums of the
        weighted gradients in float32 or wider. ``finish(params, reg=0.0)`` returns what `mlp_loss_and_grad` does.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `mlp_loss`.

    See Also
    --------
    mlp_loss_and_grad : all rows at once

    References
    ----------
    The formulas are those of `mlp_loss_and_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = xs.init_params((4, 10, 3), rng=0)
    >>> X, y = np.ones((6, 4)), np.array([0, 1, 2, 2, 1, 0])
    >>> halves = xs.mlp_partial_sums(params, X[:3], y[:3]) + xs.mlp_partial_sums(params, X[3:], y[3:])
    >>> loss, grads = halves.finish(params, reg=1e-3)
    >>> bool(np.isclose(loss, xs.mlp_loss(params, X, y, reg=1e-3), rtol=1e-15))
    True
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, "sum", validate)
    net, total, _ = sum_over_rows(params, X, targets, activation, 0.0, max_memory, options, impl, grad=True)
    return total.partial(net)
