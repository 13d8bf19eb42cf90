"""Loss, gradients, prediction and training over dask arrays, whose blocks are NumPy or CuPy arrays.

Each block of rows is one task. A tree of tasks adds up their results; it depends on the number of blocks alone.
Dask's schedulers run the tasks, on threads, processes or a cluster (docs/guides/dask.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from xpsoftmax._arguments.home import quiet
from xpsoftmax._arguments.options import as_generator, as_integer, as_number, check_choice, check_flag
from xpsoftmax._arguments.problem import LossOptions
from xpsoftmax._arguments.suggestions import suggesting
from xpsoftmax._network.layers import PairsOfArrays, Params, carrying
from xpsoftmax._network.predict import predict
from xpsoftmax._train.optimizers import Optimizer
from xpsoftmax._train.records import TrainResult, TrainStep
from xpsoftmax._train.run import Run, run_epochs
from xpsoftmax._train.state import TrainState, checked_state
from xpsoftmax._train.steps import activation_to_train
from xpsoftmax._train.train import check_parts
from xpsoftmax._typing import Activation, Array, Impl, Reduction
from xpsoftmax.dask import graph
from xpsoftmax.dask.blocks import Model, as_model, sums_of_block
from xpsoftmax.dask.cluster import ClusterError, Scheduler
from xpsoftmax.dask.data import as_held_out, blocks_of_a_step, checked_sizes
from xpsoftmax.dask.steps import BlockSteps

__all__ = ["ClusterError", "mlp_loss", "mlp_loss_and_grad", "mlp_predict", "train"]


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


@suggesting(
    lr="optimizer=xs.adam(learning_rate)",
    learning_rate="optimizer=xs.adam(learning_rate)",
    num_epochs="epochs=",
    n_epochs="epochs=",
    seed="rng=",
    random_state="rng=",
)
def train(
    params: PairsOfArrays,
    X: Array,
    targets: Array,
    /,
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int | None = None,
    blocks_per_step: int | None = None,
    rng: Any = None,
    activation: Activation | None = None,
    reg: float = 0.0,
    validation: tuple[Array, Array] | None = None,
    patience: int | None = None,
    resume: TrainState | None = None,
    progress: bool = False,
    callback: Callable[[TrainStep], object] | None = None,
    max_memory: int | None = None,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    validate: bool = True,
    impl: Impl = "auto",
) -> TrainResult:
    """Train a network over the blocks of dask arrays.

    Without `batch_size` a step goes over whole blocks: all of them, or `blocks_per_step` at a time. With it, an epoch
    goes over groups of `blocks_per_step` blocks, in a random order of the blocks. A group is loaded into memory, and
    each step takes a random batch of its rows. Workers compute the sums of a step; the client makes the update.

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
    impl : {"auto", "generic", "kernel"}
        Which code computes it: the fastest that takes these arrays, the generic one, or a kernel or nothing.
    optimizer : Optimizer
        `sgd`, `adam` or `adamw`.
    epochs : int
        Epochs in all, those before `resume` included.
    patience : int, optional
        Stop after so many epochs without a smaller validation loss, and return the parameters of the best epoch.
    resume : TrainState, optional
        State of an earlier call: go on from there. The blocks, too, must be as they were.
    progress : bool
        Show a progress bar; needs tqdm.
    callback : function, optional
        Called with a `TrainStep` after each step; if it returns something true, training stops.
    batch_size : int, optional
        Rows of a step, of all its blocks together; the last ones of some blocks may be fewer. Default: all.
    blocks_per_step : int, optional
        How many blocks a step goes over, and with `batch_size` how many are in memory at once. It is also the largest
        number of workers that a step can use. Default: all blocks without `batch_size`, otherwise 8.
    rng : None, int, numpy.random.Generator, ...
        Anything that `numpy.random.default_rng` takes. It is not used if every step goes over all blocks.
    validation : (X, targets), optional
        Dask arrays, or arrays in memory, as `xpsoftmax.train` uses them. All of them are checked before the first
        step, in one pass.
    max_memory : int, optional
        Bytes of temporary memory of each task.
    reduction : {"mean", "sum"}
        Weighted mean or weighted sum of the rows; the penalty is added once to either.
    validate : bool
        Check labels and weights once, before the first step: one pass over them, not over `X`. If the number of rows
        of `X` is unknown, this pass is made in any case, to count them.

    Returns
    -------
    TrainResult
        params, history and state, as from `xpsoftmax.train`.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `mlp_loss_and_grad`, and if an option does not fit.
    ClusterError
        A ConnectionError, if the scheduler of a cluster is lost, or a task loses one worker after the other. Its
        `result` has the parameters after the last step and the state to resume from; it is None while labels are
        checked, before the first step.
    DivergenceError, ImportError
        As `xpsoftmax.train`.

    Notes
    -----
    Over one group of blocks the steps are those of `xpsoftmax.train` with the same `rng`. The result depends on the
    blocks and on `rng`, not on the scheduler, the number of workers or workers that die: Dask computes again what a
    lost worker had in memory (``tests/dask/test_dask.py``). An interrupt (Ctrl-C) abandons the step that is being
    computed; what was learnt before it is returned. Each epoch computes the blocks of `X` from their graph: call
    ``X.persist()`` before if they fit into the memory of the cluster.

    References
    ----------
    J. Chen, R. Monga, S. Bengio, R. Jozefowicz, "Revisiting distributed synchronous SGD", ICLR workshop 2016;
    batches from shuffled blocks: L. Xu et al., "Stochastic gradient descent without full data shuffle",
    arXiv:2206.05830.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> import xpsoftmax.dask as xd
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((300, 2))
    >>> y = (X[:, 0] * X[:, 1] > 0).astype(int)
    >>> X, y = da.from_array(X, chunks=(100, 2)), da.from_array(y, chunks=100)
    >>> params = xs.init_params((2, 16, 2), rng=rng)
    >>> result = xd.train(params, X, y, optimizer=xs.adam(0.02), epochs=60, batch_size=50, rng=rng)
    >>> bool((xd.mlp_predict(result.params, X) == y).mean().compute() > 0.95)
    True
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate)
    check_choice("reduction", reduction, ("mean", "sum"))
    epochs = as_integer("epochs", epochs, low=1)
    check_flag("progress", progress)
    if batch_size is not None:
        batch_size = as_integer("batch_size", batch_size, low=1)
    if blocks_per_step is not None:
        blocks_per_step = as_integer("blocks_per_step", blocks_per_step, low=1)
    check_parts(optimizer, callback, patience, validation)
    reg = as_number("reg", reg)
    model = as_model(params, activation, max_memory, options, impl)
    trained_with = activation_to_train(model.network, activation, resume)
    model = replace(model, params=carrying(model.params, trained_with), activation=trained_with)
    data = graph.as_partitions(model, X, targets, sample_weight)
    scheduler = Scheduler(data.X, model)
    sizes = checked_sizes(scheduler, model, data)
    held_out = None if validation is None else as_held_out(scheduler, model, *validation)
    steps = BlockSteps(
        model, data, sizes, reg, reduction, blocks_of_a_step(blocks_per_step, batch_size, sizes), scheduler
    )
    batch_size = steps.rows if batch_size is None else min(batch_size, steps.rows)
    generator = as_generator("rng", rng)
    if resume is not None:
        validated, patient = validation is not None, patience is not None
        resume = checked_state(resume, steps, optimizer, generator, batch_size, validated=validated, patient=patient)
        generator = copy.deepcopy(generator)  # a copy, because its state is set below
    with quiet(steps.network.xp, steps.network.home.device):
        run = Run(steps, optimizer, generator, batch_size, resume)
        try:
            return run_epochs(run, epochs, held_out, patience, callback, progress=progress)
        except ClusterError as error:
            raise ClusterError(error.reason, run.rescued()) from error.__cause__
