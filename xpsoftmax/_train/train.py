"""`train`: the arguments of a training, checked, and the call that starts the loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import is_dask_array

from xpsoftmax._arguments.home import quiet
from xpsoftmax._arguments.naming import VALIDATION, named
from xpsoftmax._arguments.options import as_generator, as_integer, as_number, check_choice, check_flag, check_impl
from xpsoftmax._arguments.problem import LossOptions
from xpsoftmax._arguments.suggestions import TRAINING, suggesting
from xpsoftmax._arguments.tracing import check_concrete, layers_by_name
from xpsoftmax._arguments.views import Entry, enter
from xpsoftmax._network.layers import PairsOfArrays
from xpsoftmax._network.network import as_network
from xpsoftmax._train.data import Data, as_data, check_held_out
from xpsoftmax._train.optimizers import Optimizer
from xpsoftmax._train.records import DivergenceError, TrainResult, TrainStep
from xpsoftmax._train.run import Run, run_epochs
from xpsoftmax._train.state import TrainState, checked_state
from xpsoftmax._train.steps import RowSteps, activation_to_train, trained_network
from xpsoftmax._typing import Activation, Array, Impl, Reduction


@suggesting(**TRAINING)
def train(
    params: PairsOfArrays,
    X: Array,
    targets: Array,
    /,
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    rng: Any,
    activation: Activation | None = None,
    reg: float = 0.0,
    validation: tuple[Array, Array] | None = None,
    patience: int | None = None,
    resume: TrainState | None = None,
    accuracy: bool = False,
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
    """Train a network by minibatches.

    Every epoch goes through all rows in a new random order; the last batch may be shorter. A batch of all rows keeps
    their order.

    Parameters
    ----------
    params : sequence of Layer
        (weight (fan_in, fan_out), bias (fan_out,)) of each layer, to start from; not modified. 16-bit parameters are
        trained in float32 and rounded at the end; layers that share an array are trained apart.
    X : array or sparse matrix, (N, D)
        Inputs, of the library, device and dtype of the parameters. It may be a memory map: only the rows of a batch are
        read.
    targets : array, (N,) or (N, C)
        Integer labels from 0 to C - 1, or floating soft targets.
    optimizer : Optimizer
        `sgd`, `adam` or `adamw`.
    epochs : int
        Epochs in all, those before `resume` included.
    batch_size : int
        Rows of a step; the last batch of an epoch may have fewer.
    rng : None, int, numpy.random.Generator, ...
        Anything that `numpy.random.default_rng` takes. Batches are drawn on the host: every library sees the same.
        With `resume` only its kind matters.
    activation : {"identity", "relu", "tanh", "logistic", "silu", "gelu"}, optional
        Of the hidden layers. Default: the one that the layers carry, or for plain pairs that of `resume`, or "relu".
    reg : float
        Strength of the L2 penalty on the weight matrices; biases are free.
    validation : (X, targets), optional
        Data of which loss (with the options of the call, but without penalty and sample weights) and accuracy are
        computed after each epoch. Its inputs must be finite in all rows that count; they are checked before the first
        step.
    patience : int, optional
        Stop after so many epochs without a smaller validation loss, and return the parameters of the best epoch.
    resume : TrainState, optional
        State of an earlier call, which this call continues. `params` then only has to have its shapes, and all other
        arguments must be as they were. All of the state is checked before the first step.
    accuracy : bool
        Record the accuracy on `X` after each epoch, by another pass over it.
    progress : bool
        Show a progress bar, with the loss (on a device that of the epoch before) and, where there are any, the last
        accuracy and validation loss and accuracy; needs tqdm.
    callback : function, optional
        Called with a `TrainStep` after each step; if it returns something true, training stops.
    max_memory : int, optional
        Bytes of temporary memory of a step; the rows of its batch are held beside it. Default: 256 MiB, or what one row
        needs.
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
        Check the values of labels, soft targets and weights once, before the first step.
    impl : {"auto", "generic", "kernel"}
        Which code computes it: the fastest that takes these arrays, the generic one, or a kernel or nothing.

    Returns
    -------
    TrainResult
        params, history and state. The parameters, also those of `state` and of a callback, carry the activation that
        they were trained with (see `Layer`).

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `mlp_loss_and_grad`, and if an option has a wrong type or value.
    DivergenceError
        A FloatingPointError, if a loss is not finite. On a device losses are checked once an epoch, without a wait
        within it; from the first loss that is not finite on, no update is made. Parameters are checked once, at the
        end. The message names the first row of `X` that counts and is not finite, if there is one. Also for a
        validation loss that is not finite, unless no row counts.
    ImportError
        If `progress` is asked for without tqdm.

    See Also
    --------
    init_params : parameters to start from
    mlp_predict : labels of other rows
    save_params : writes the parameters into a file
    xpsoftmax.dask.train : the same over dask arrays

    Notes
    -----
    A batch in which no row counts makes no update; its loss is recorded as nan. After an interrupt (Ctrl-C) the running
    step ends, and the parameters reached so far are returned; a second interrupt is raised. A training that was stopped
    and resumed ends, on NumPy, with the same bits as one that was not (``tests/train/test_training.py``).

    References
    ----------
    L. Bottou, F. E. Curtis, J. Nocedal, "Optimization methods for large-scale machine learning", SIAM Review 60
    (2018); early stopping: L. Prechelt, "Early stopping - but when?", 1998.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((300, 2))
    >>> y = (X[:, 0] * X[:, 1] > 0).astype(int)  # a checkerboard: no linear classifier can tell
    >>> params = xs.init_params((2, 16, 2), rng=rng)
    >>> result = xs.train(params, X, y, optimizer=xs.adam(0.02), epochs=60, batch_size=50, rng=rng)
    >>> bool((xs.mlp_predict(result.params, X) == y).mean() > 0.95)
    True
    """
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate)
    check_impl(impl)
    check_choice("reduction", reduction, ("mean", "sum"))
    epochs = as_integer("epochs", epochs, low=1)
    batch_size = as_integer("batch_size", batch_size, low=1)
    check_flag("progress", progress)
    check_flag("accuracy", accuracy)
    check_parts(optimizer, callback, patience, validation)
    entry = enter(params, X, targets, validation, resume, options, impl=impl)
    run, held_out, counted = entry.run(
        _prepared,
        optimizer=optimizer,
        batch_size=batch_size,
        rng=rng,
        activation=activation,
        reg=reg,
        patient=patience is not None,
        accuracy=accuracy,
        max_memory=max_memory,
        impl=impl,
    )
    net = run.steps.network
    seen = callback if callback is None or entry.library is None else _on_views(callback, entry, net.working)
    with quiet(net.xp, net.home.device):
        try:
            result = run_epochs(run, epochs, held_out, patience, seen, progress=progress, counted=counted)
        except DivergenceError as error:
            error.result = entry.back(error.result)
            raise
        return entry.back(result)  # type: ignore[no-any-return]


def _prepared(
    params: PairsOfArrays,
    X: Array,
    targets: Array,
    validation: tuple[Array, Array] | None,
    resume: TrainState | None,
    options: LossOptions,
    *,
    optimizer: Optimizer,
    batch_size: int,
    rng: Any,
    activation: Activation | None,
    reg: float,
    patient: bool,
    accuracy: bool,
    max_memory: int | None,
    impl: Impl,
) -> tuple[Run, Data | None, Data | None]:
    """Check all that concerns arrays; return the training before its first step, and the data to evaluate."""
    net = as_network(params, activation, impl)
    net = trained_network(net, activation_to_train(net, activation, resume))
    if is_dask_array(net.layers[0].weight):
        raise TypeError("params must be arrays of numbers in memory, got dask arrays.")
    check_concrete(**layers_by_name(params))
    reg = as_number("reg", reg)
    data = as_data(net, X, targets, options, max_memory)
    held_out = None
    if validation is not None:
        with named(VALIDATION):
            held_out = as_data(net, *validation, options._replace(sample_weight=None), max_memory)
            check_held_out(net, held_out, max_memory)
    generator = as_generator("rng", rng)
    batch_size = min(batch_size, data.rows)
    steps = RowSteps(net, data, reg, options.reduction, max_memory)
    if resume is not None:
        validated = validation is not None
        resume = checked_state(
            resume, steps, optimizer, generator, batch_size, validated=validated, patient=patient, accurate=accuracy
        )
        generator = copy.deepcopy(generator)  # a copy, because its state is set below
    with quiet(net.xp, net.home.device):
        return Run(steps, optimizer, generator, batch_size, resume), held_out, data if accuracy else None


def _on_views(callback: Callable[[TrainStep], object], entry: Entry, dtype: Any) -> Callable[[TrainStep], object]:
    """Return a callback that shows the step of a training on views with arrays of the user's library."""

    def seen(step: TrainStep) -> object:
        loss = entry.back(np.asarray(step.loss, dtype))
        params, state = (lambda: entry.back(step.params)), (lambda: entry.back(step.state))
        return callback(TrainStep(step.epoch, step.step, loss, params, state))

    return seen


def check_parts(optimizer: object, callback: object, patience: object, validation: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be made by sgd, adam or adamw, got {optimizer!r:.60}.")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function, got {callback!r:.60}.")
    if validation is not None and (not isinstance(validation, (tuple, list)) or len(validation) != 2):
        raise TypeError(f"validation must be a pair (X, targets), got {validation!r:.60}.")
    if patience is not None:
        as_integer("patience", patience, low=1)
        if validation is None:
            raise ValueError(f"patience must be None without validation data, got {patience}.")
