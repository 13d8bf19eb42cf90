"""Training over the blocks of dask arrays: the arguments, checked, and the call that starts the run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from xpsoftmax._arguments.home import quiet
from xpsoftmax._arguments.options import as_generator, as_integer, as_number, check_choice, check_flag
from xpsoftmax._arguments.problem import LossOptions
from xpsoftmax._arguments.suggestions import TRAINING, suggesting
from xpsoftmax._network.layers import PairsOfArrays, with_activation
from xpsoftmax._train.optimizers import Optimizer
from xpsoftmax._train.records import TrainResult, TrainStep
from xpsoftmax._train.run import Run, run_epochs
from xpsoftmax._train.state import TrainState, checked_state
from xpsoftmax._train.steps import activation_to_train
from xpsoftmax._train.train import check_parts
from xpsoftmax._typing import Activation, Array, Impl, Reduction
from xpsoftmax.dask import graph
from xpsoftmax.dask.blocks import as_model
from xpsoftmax.dask.cluster import ClusterError, Scheduler
from xpsoftmax.dask.data import as_held_out, blocks_of_a_step, checked_sizes
from xpsoftmax.dask.steps import BlockSteps


@suggesting(**TRAINING)
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
        State of an earlier call, which this call continues. The blocks, too, must be as they were.
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
        As `mlp_loss_and_grad`, and if an option has a wrong type or value.
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
    lost worker had in memory (``tests/dask/test_dask.py``). An interrupt (Ctrl-C) abandons the running
    step; the parameters from before it are returned. Each epoch computes the blocks of `X` from their graph: call
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
    model = replace(model, params=with_activation(model.params, trained_with), activation=trained_with)
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
