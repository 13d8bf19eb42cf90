"""Loss, gradients and prediction over dask arrays, whose blocks are NumPy or CuPy arrays.

Each block of rows is one task. A tree of tasks adds up their results; it depends on the number of blocks alone.
Dask's schedulers run the tasks, on threads, processes or a cluster (docs/guides/dask.md).
"""

from __future__ import annotations

from xpsoftmax._arguments.options import as_number, check_choice, check_flag
from xpsoftmax._arguments.problem import LossOptions
from xpsoftmax._network.layers import PairsOfArrays, Params
from xpsoftmax._network.predict import predict
from xpsoftmax._typing import Activation, Array, Impl, Reduction
from xpsoftmax.dask import graph
from xpsoftmax.dask.blocks import Model, as_model, sums_of_block

__all__ = ["mlp_loss", "mlp_loss_and_grad", "mlp_predict"]


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
    r"""Softmax loss of a network and its gradients, over all blocks of dask arrays in one pass.

    .. math:: L = \frac{\sum_b \sum_{i \in b} w_i L_i}{\sum_b \sum_{i \in b} w_i} +
              \frac{\text{reg}}{2} \sum_l \lVert W_l \rVert^2

    Parameters
    ----------
    params : sequence of Layer
        In memory, of the library and dtype of the blocks of `X`. They are copied, and reach every worker once.
    X : dask array, (N, D)
        In blocks of rows, also of unknown sizes. Features in more than one chunk are put together, with a warning.
    targets : dask array, (N,) or (N, C)
        Labels or soft targets. They are chunked as `X` is where the sizes are known; otherwise the blocks must be as
        many. Arrays in memory are accepted, too, if the number of rows is known.
    activation : {"identity", "relu", "tanh", "logistic", "silu", "gelu"}, optional
        Of the hidden layers. Default: the one that the layers carry, or "relu" for plain pairs.
    reg : float
        Strength of the L2 penalty on the weight matrices; biases are free.
    max_memory : int, optional
        Bytes of temporary memory of each block that is being computed.
    class_weight : array, (C,), optional
        In memory, as `params`: multiplies the loss of the rows with this label.
    sample_weight : dask array, (N,), optional
        Multiplies the loss of each row; in blocks like those of `X`.
    ignore_index : int, optional
        Rows with this label add nothing. None: no label is ignored.
    label_smoothing : float, 0 to 1
        Take this share of the target's mass and spread it evenly over the classes.
    z_loss : float
        Adds ``z_loss * logsumexp(logits)**2``, times the weight of the row.
    reduction : {"mean", "sum"}
        Weighted mean or weighted sum of the rows; the penalty is added once to either.
    validate : bool
        Check the values of labels, soft targets and weights, in the same pass.
    impl : {"auto", "generic", "kernel"}
        Which code computes it: the fastest that takes these arrays, the generic one, or a kernel or nothing.

    Returns
    -------
    loss : dask array, 0-d
    grads : tuple of Layer
        Dask arrays, shaped like `params` and with their activation. Compute them together with the loss:
        ``dask.compute(loss, grads)`` is one pass over the data.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `xpsoftmax.mlp_loss_and_grad`, and if blocks do not fit each other. When computed: ValueError that names the
        first bad label or weight and its row of all rows, or the first block in which the arrays differ in rows.

    Notes
    -----
    Equal to the result in memory to 1e-12 in float64, whatever the blocks, and from run to run the same in every bit
    for the same blocks (``tests/dask/test_dask.py``). A task uses no threads of its own but those of the BLAS.

    References
    ----------
    The formulas are those of `xpsoftmax.mlp_loss_and_grad`.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import xpsoftmax as xs
    >>> import xpsoftmax.dask as xd
    >>> params = xs.init_params((4, 10, 3), rng=0)
    >>> X, y = da.ones((600, 4), chunks=(200, 4)), da.arange(600, chunks=200) % 3
    >>> loss, grads = dask.compute(*xd.mlp_loss_and_grad(params, X, y, reg=1e-3))
    >>> grads[0].weight.shape
    (4, 10)
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate)
    model = as_model(params, activation, max_memory, options, impl)
    loss, *grads = _lazily(model, X, targets, reg, options, grad=True)
    return loss, graph.as_layers(grads, model.params)


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
    """Softmax loss of a network over all blocks of dask arrays.

    Parameters
    ----------
    params : sequence of Layer
        In memory, of the library and dtype of the blocks of `X`. They are copied, and reach every worker once.
    X : dask array, (N, D)
        Inputs in blocks of rows, also of unknown sizes.
    targets : dask array, (N,) or (N, C)
        Labels or soft targets, in blocks like those of `X`.
    activation : {"identity", "relu", "tanh", "logistic", "silu", "gelu"}, optional
        Of the hidden layers. Default: the one that the layers carry, or "relu" for plain pairs.
    reg : float
        Strength of the L2 penalty on the weight matrices; biases are free.
    max_memory : int, optional
        Bytes of temporary memory of each block that is being computed.
    class_weight : array, (C,), optional
        In memory, as `params`: multiplies the loss of the rows with this label.
    sample_weight : dask array, (N,), optional
        Multiplies the loss of each row; in blocks like those of `X`.
    ignore_index : int, optional
        Rows with this label add nothing. None: no label is ignored.
    label_smoothing : float, 0 to 1
        Take this share of the target's mass and spread it evenly over the classes.
    z_loss : float
        Adds ``z_loss * logsumexp(logits)**2``, times the weight of the row.
    reduction : {"mean", "sum"}
        Weighted mean or weighted sum of the rows; the penalty is added once to either.
    validate : bool
        Check the values of labels, soft targets and weights, in the same pass.
    impl : {"auto", "generic", "kernel"}
        Which code computes it: the fastest that takes these arrays, the generic one, or a kernel or nothing.

    Returns
    -------
    dask array, 0-d

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `mlp_loss_and_grad`.

    References
    ----------
    The formula is that of `xpsoftmax.mlp_loss`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> import xpsoftmax.dask as xd
    >>> params = (xs.Layer(np.zeros((4, 10)), np.zeros(10)),)
    >>> loss = xd.mlp_loss(params, da.ones((50, 4), chunks=(20, 4)), da.arange(50, chunks=20) % 10)
    >>> bool(np.isclose(loss.compute(), np.log(10), rtol=1e-15))
    True
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate)
    model = as_model(params, activation, max_memory, options, impl)
    (loss,) = _lazily(model, X, targets, reg, options, grad=False)
    return loss


def _lazily(model: Model, X: Array, targets: Array, reg: float, options: LossOptions, *, grad: bool) -> list[Array]:
    check_choice("reduction", options.reduction, ("mean", "sum"))
    reg = as_number("reg", reg)
    data = graph.as_partitions(model, X, targets, options.sample_weight)
    node = graph.as_node(model)
    total = graph.tree_sum(graph.each_block(sums_of_block, data.pairs, model=node, grad=grad))
    return graph.lazy_loss_and_grads(model, node, total, reg, options.reduction, grad=grad)


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
    """Most probable class of each row of a dask array.

    Parameters
    ----------
    params : sequence of Layer
        In memory, of the library and dtype of the blocks of `X`. They are copied, and reach every worker once.
    X : dask array, (N, D)
        Inputs in blocks of rows, also of unknown sizes.
    activation : {"identity", "relu", "tanh", "logistic", "silu", "gelu"}, optional
        Of the hidden layers. Default: the one that the layers carry, or "relu" for plain pairs.
    max_memory : int, optional
        Bytes of temporary memory of each block that is being computed.
    validate : bool
        Whether a row whose logits hold nan is an error. With False its label is -1.
    impl : {"auto", "generic", "kernel"}
        Which code computes it: the fastest that takes these arrays, the generic one, or a kernel or nothing.

    Returns
    -------
    dask array, (N,)
        Labels, in blocks like those of `X`; each block is what `xpsoftmax.mlp_predict` returns for it.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `xpsoftmax.mlp_predict`. When computed: ValueError that names the first row of a block whose logits hold nan.
        The row is counted from the first row of `X`, or from that of the block where the sizes of the blocks are
        unknown.

    References
    ----------
    Bishop (2006), section 1.5.1.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> import xpsoftmax.dask as xd
    >>> params = (xs.Layer(np.eye(3), np.zeros(3)),)
    >>> xd.mlp_predict(params, da.eye(3, chunks=2).rechunk((2, 3))).compute()
    array([0, 1, 2])
    """
    check_flag("validate", validate)
    model = as_model(params, activation, max_memory, LossOptions(validate=validate), impl)
    return graph.by_rows(_labels, model, graph.as_rows(model.network, X))


def _labels(X: Array, *, model: Model) -> Array:
    return predict(model.params, X, model.activation, model.max_memory, model.impl, validate=model.options.validate)
