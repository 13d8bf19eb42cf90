"""Loss, gradients, prediction and training over dask arrays, whose blocks are NumPy or CuPy arrays.

Every block of rows is one task; what the tasks give is added up by a tree, always the same one for as many blocks.
Dask's schedulers do the rest: threads, processes, or a cluster (docs/guides/dask.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from xpsoftmax import _partitions as parts
from xpsoftmax import _validate as check
from xpsoftmax._backprop import Params
from xpsoftmax._loss import LossOptions
from xpsoftmax._mlp import mlp_predict as predict_in_memory
from xpsoftmax._optim import Optimizer
from xpsoftmax._partition_training import (
    ClusterError,
    LostError,
    PartitionSteps,
    Scheduler,
    as_blocks,
    as_held_out,
    looked_at,
)
from xpsoftmax._softmax import quiet
from xpsoftmax._training import Run, TrainResult, TrainState, TrainStep, check_parts, check_resumable, trained
from xpsoftmax._typing import Array, Impl, Reduction

__all__ = ["ClusterError", "mlp_loss", "mlp_loss_and_grad", "mlp_predict", "train"]


def mlp_loss_and_grad(
    params: Params,
    X: Array,
    targets: Array,
    /,
    *,
    activation: str = "relu",
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
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate)
    loss, *grads = _lazily(params, X, targets, activation, reg, max_memory, options, impl, grad=True)
    return loss, parts.as_layers(grads)


def mlp_loss(
    params: Params,
    X: Array,
    targets: Array,
    /,
    *,
    activation: str = "relu",
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
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate)
    (loss,) = _lazily(params, X, targets, activation, reg, max_memory, options, impl, grad=False)
    return loss


def _lazily(params, X, targets, activation, reg, max_memory, options, impl, *, grad):
    check.check_choice("reduction", options.reduction, ("mean", "sum"))
    reg = check.as_number("reg", reg)
    model = parts.as_model(params, activation, max_memory, options, impl)
    data = parts.as_partitions(model, X, targets, options.sample_weight)
    node = parts.as_node(model)
    total = parts.added_up(parts.each_block(parts.sums_of_block, data.pairs, model=node, grad=grad))
    return parts.finished_arrays(model, node, total, reg, options.reduction, grad=grad)


def mlp_predict(params: Params, X: Array, /, *, activation: str = "relu", impl: Impl = "auto") -> Array:
    model = parts.as_model(params, activation, None, LossOptions(), impl)
    return parts.by_rows(_labels, model, parts.as_rows(model.network, X))


def _labels(X: Array, *, model: parts.Model) -> Array:
    return predict_in_memory(model.params, X, activation=model.activation, impl=model.impl)


def train(
    params: Params,
    X: Array,
    targets: Array,
    /,
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int | None = None,
    blocks_per_step: int | None = None,
    rng: Any = None,
    activation: str = "relu",
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
    options = LossOptions(class_weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, validate)
    check.check_choice("reduction", reduction, ("mean", "sum"))
    epochs = check.as_integer("epochs", epochs, low=1)
    check.check_flag("progress", progress)
    if batch_size is not None:
        batch_size = check.as_integer("batch_size", batch_size, low=1)
    if blocks_per_step is not None:
        blocks_per_step = check.as_integer("blocks_per_step", blocks_per_step, low=1)
    check_parts(optimizer, callback, patience, validation)
    reg = check.as_number("reg", reg)
    model = parts.as_model(params, activation, max_memory, options, impl)
    data = parts.as_partitions(model, X, targets, sample_weight)
    scheduler = Scheduler(data.X)
    sizes = looked_at(scheduler, model, data)
    held_out = None if validation is None else as_held_out(scheduler, model, *validation)
    steps = PartitionSteps(model, data, sizes, reg, reduction, as_blocks(blocks_per_step, batch_size, sizes), scheduler)
    batch_size = steps.rows if batch_size is None else min(batch_size, steps.rows)
    generator = check.as_generator("rng", rng)
    if resume is not None:
        check_resumable(resume, steps.given, optimizer, generator, steps.rows, batch_size, steps.blocks)
        generator = copy.deepcopy(generator)  # it is set back: not the caller's
    with quiet(steps.given.xp, steps.given.frame.device):
        run = Run(steps, optimizer, generator, batch_size, resume)
        try:
            return trained(run, epochs, held_out, patience, callback, progress=progress)
        except LostError as error:
            raise ClusterError(str(error), run.rescued()) from error.__cause__
