"""Steps of the loop as programs: for rows in memory, where a backend runs programs.

The loop itself makes the steps of trainings whose arrays have a layout that kernels cannot read, and those of an update
rule without a kernel.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from xpsoftmax._network.chunks import Plan
from xpsoftmax._network.layers import Params
from xpsoftmax._network.network import Network
from xpsoftmax._train.ahead import NUMBERS_OF_A_RULE, numbers_ahead
from xpsoftmax._train.clipping import Clipped
from xpsoftmax._train.data import Data
from xpsoftmax._train.losses import Losses, PendingLoss
from xpsoftmax._train.optimizers import Optimizer
from xpsoftmax._train.programs import Step, step_program
from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.kernels.activations import ACTIVATIONS
from xpsoftmax.kernels.rules import Rule

if TYPE_CHECKING:
    from xpsoftmax._train.loop import Loop
    from xpsoftmax._train.steps import RowBatch

UPDATES = 1024
"""For how many updates the device has room for the numbers of the rule, and for the losses."""
MOST_CHUNKS = 64
"""Chunks of a batch at most: a captured step has about ten launches for each."""
FIRST_AHEAD = 16
"""For how many updates the numbers are computed at first; then for twice as many: short trainings stay short."""


class ProgrammedSteps:
    """Programs of the steps of one training, one for each number of rows, and what changes from step to step.

    The programs are run on a stream of their own: `leave` before anything else is done with the arrays.

    Parameters
    ----------
    network : Network
    data : Data
        All rows of the training.
    runner : type
        Makes a runner of a program and its arrays: see xpsoftmax/kernels/cuda/capture.py.
    """

    def __init__(self, network: Network, data: Data, runner: Any) -> None:
        self._data, self._runner = data, runner
        self._xp, self._device, self._working = network.xp, network.home.device, network.working
        self._sizes = (int(network.layers[0].weight.shape[0]), *(int(layer.bias.shape[0]) for layer in network.layers))
        self._activation = ACTIVATIONS[network.activation]
        self._dtype = dtype_name(data.problem.row_weight.dtype)  # the working precision
        self._usable = self._are_rows_in_place()
        self._order_of_work = ExitStack()  # what `leave` ends
        self._within = False
        # What the programs were made for: they are made again for other arrays.
        self._bound: list[Array] = []  # parameters, and what is kept of them, that the programs change
        self._arrays: dict[str, Array] = {}
        self._losses: Losses
        self._runners: dict[int, Any] = {}  # by the number of rows
        self._optimizer: Optimizer | None = None
        self._params: Any = None
        self._state: Any = None
        # What the device has, so far as it was sent.
        self._order: Array | None = None  # of the rows, as the epoch drew it
        self._place = (-1, -1)  # where the programs would go on: the first row, and the row of the numbers
        self._row = 0  # of the numbers, and of the losses, of the next update
        self._sent = 0  # where the rows of numbers that were sent end
        self._ahead = FIRST_AHEAD

    def step(self, loop: Loop, batch: RowBatch) -> PendingLoss | float | None:
        """Make a step, and return its loss, or nan if no row counts. None: it has to be made in the usual way.

        Call `leave` before any other work on the arrays.
        """
        if not self._usable:
            return None
        if not batch.counts:
            return math.nan
        as_before = loop.state is self._state and loop.params is self._params and loop.optimizer is self._optimizer
        if not as_before and not self._bind(loop):
            return None
        runner = self._runners.get(batch.size)
        if runner is None:
            steps: Any = loop.steps
            if len(steps.plan(batch.size).chunks) > MOST_CHUNKS:
                return None
            runner = self._new_runner(loop, batch.size)
        if not self._within:
            self._enter()
        self._send(loop, batch)
        runner.run()
        row, start = self._row, batch.start + batch.size
        self._row = row + 1
        self._place = 0 if start >= self._data.rows else start, row + 1
        count, *kept = loop.state
        loop.state = self._state = (count + 1, *kept)
        return self._losses.of(row)

    def leave(self) -> None:
        """Let the stream that was current before the first step go on after the steps."""
        if self._within:
            self._order_of_work.close()
            self._within = False

    def _enter(self) -> None:
        self._within = True  # first: `leave` ends what an interrupt leaves behind
        self._order_of_work.enter_context(self._runner.in_order(self._device))

    def _are_rows_in_place(self) -> bool:
        """Whether kernels can read inputs and targets where they are."""
        data, problem = self._data, self._data.problem
        vectors = [problem.row_weight, problem.counting, problem.spec.class_weight]
        vectors = [array for array in vectors if array is not None]
        if min(self._sizes) == 0 or not hasattr(data.X, "flags"):  # sparse inputs have none
            return False
        in_place = all(array.flags.c_contiguous for array in (data.X, problem.targets, *vectors))
        return in_place and all(dtype_name(array.dtype) == self._dtype for array in vectors)

    def _bind(self, loop: Loop) -> bool:
        """Follow another optimiser, and make new programs if the loop has other arrays than the present programs.

        Return whether there is a kernel for the update.
        """
        if loop.params is not self._params:
            loop.params = self._in_rows(loop.params)
        if loop.state is not self._state:
            count, *kept = loop.state
            loop.state = (count, *map(self._in_rows, kept))
        named = {}
        for k, layers in enumerate((loop.params, *loop.state[1:])):
            for i, layer in enumerate(layers):
                for name, array in (("weight", layer.weight), ("bias", layer.bias)):
                    named[f"{name}{i}" if k == 0 else f"{name}{i}.kept{k - 1}"] = array
        arrays = list(named.values())
        same = len(arrays) == len(self._bound) and all(a is b for a, b in zip(arrays, self._bound, strict=True))
        before, rule, max_norm = self._optimizer, rule_of(loop.optimizer), max_norm_of(loop.optimizer)
        if not same:
            if not self._runner.has_rule(rule):
                return False
            self.leave()
            self._bound, self._arrays = arrays, named | self._shared()
            self._losses = Losses(self._arrays["losses"])
            self._order, self._place, self._row = None, (-1, -1), 0
        if not same or before is None or (rule_of(before), max_norm_of(before)) != (rule, max_norm):
            self._runners = {}
        if loop.optimizer is not before:
            self._ahead = FIRST_AHEAD
        self._sent = self._row  # the numbers that are there may be for another update, or of another optimiser
        self._params, self._state, self._optimizer = loop.params, loop.state, loop.optimizer
        return True

    def _in_rows(self, layers: Params) -> Params:
        """Return the layers if all arrays are contiguous, which kernels change in place; otherwise such copies."""
        if all(array.flags.c_contiguous for layer in layers for array in layer):
            return layers
        flat = [[self._xp.reshape(array, (-1,)) for array in layer] for layer in layers]
        return tuple(
            type(layer)(*(self._xp.reshape(vector, array.shape) for vector, array in zip(vectors, layer, strict=True)))
            for vectors, layer in zip(flat, layers, strict=True)
        )

    def _shared(self) -> dict[str, Array]:
        data, xp = self._data, self._xp
        problem, options = data.problem, {"device": self._device}
        targets = problem.targets
        shared = {
            "memory": xp.empty(0, dtype=xp.uint8, **options),
            "X": data.X,
            "targets": targets if targets.ndim == 2 else xp.astype(targets, xp.int64, copy=False),
            "row_weight": problem.row_weight,
            "counting": problem.row_weight if problem.counting is None else problem.counting,
            "order": xp.arange(data.rows, dtype=xp.int64, **options),
            "place": xp.zeros(3, dtype=xp.int64, **options),
            "numbers": xp.zeros((UPDATES, NUMBERS_OF_A_RULE), dtype=self._working, **options),
            "losses": xp.zeros(UPDATES, dtype=self._working, **options),
            "finite": xp.ones((), dtype=xp.bool, **options),
        }
        if problem.spec.class_weight is not None:
            shared["class_weight"] = problem.spec.class_weight
        return shared

    def _new_runner(self, loop: Loop, rows: int) -> Any:
        """Return a runner of a program for so many rows; its memory is allocated on the caller's stream."""
        self.leave()
        program = step_program(self._described(loop, rows))
        if program.size > self._arrays["memory"].shape[0]:  # all programs use the same memory, one after the other
            self._runners = {}
            del self._arrays["memory"]  # before the larger one is allocated
            self._arrays["memory"] = self._xp.empty(program.size, dtype=self._xp.uint8, device=self._device)
        self._runners[rows] = runner = self._runner(program, self._arrays)
        return runner

    def _described(self, loop: Loop, rows: int) -> Step:
        steps: Any = loop.steps
        problem = self._data.problem
        plan = steps.plan(rows)
        given = [self._data.X, *([problem.targets] if problem.targets.ndim == 2 else [])]
        return Step(
            rows=rows,
            all_rows=self._data.rows,
            sizes=self._sizes,
            activation=self._activation,
            dtype=self._dtype,
            cast=any(dtype_name(array.dtype) != self._dtype for array in given),
            soft=problem.targets.ndim == 2,
            weighted=problem.counting is not None,
            class_weighted=problem.spec.class_weight is not None,
            mean=steps.reduction == "mean",
            reg=steps.reg,
            averaged=steps.averaged,
            label_smoothing=problem.spec.label_smoothing,
            z_loss=problem.spec.z_loss,
            rule=rule_of(loop.optimizer),
            kept=loop.optimizer.kept,
            max_norm=max_norm_of(loop.optimizer),
            chunk=rows_of_a_chunk(plan, rows),
            spare=plan.spare,
        )

    def _send(self, loop: Loop, batch: RowBatch) -> None:
        """Send to the device what is not there yet. Nothing is waited for."""
        if batch.size < self._data.rows and batch.order is not self._order:
            order = self._on_device(np.arange(self._data.rows)) if batch.order is None else batch.order
            self._arrays["order"][...] = order
            self._order = batch.order
        if self._row == UPDATES:
            self._losses.begin_again()
            self._row = self._sent = 0
        if self._row == self._sent:
            self._send_numbers(loop)
        if self._place != (batch.start, self._row):
            self._arrays["place"][...] = self._on_device(np.array([batch.start, self._row, self._row]))
            self._place = batch.start, self._row
        finite = self._arrays["finite"]
        if loop.finite is not finite:
            finite[...] = True if loop.finite is None else loop.finite
            loop.finite = finite

    def _send_numbers(self, loop: Loop) -> None:
        """Send the numbers of the rule for the next updates."""
        table = numbers_ahead(loop.optimizer, loop.state[0], min(self._ahead, UPDATES - self._row))
        self._ahead *= 2
        with np.errstate(over="ignore"):
            table = table.astype(self._dtype)
        self._sent = self._row + len(table)
        self._arrays["numbers"][self._row : self._sent, :] = self._on_device(table)

    def _on_device(self, array: np.ndarray) -> Array:
        return self._xp.asarray(array, device=self._device)


def rows_of_a_chunk(plan: Plan, rows: int) -> int:
    """Return how many rows all chunks have, but for the last one, which may have fewer."""
    first = plan.chunks[0]
    return rows if first is None else int(first.stop)


def rule_of(optimizer: Optimizer) -> Rule:
    """Return the rule of all updates of an optimiser: whatever the learning rate is, only its numbers change."""
    return optimizer.rule(0.0, 1)[0]


def max_norm_of(optimizer: Optimizer) -> float | None:
    """Return the bound of the norm of all gradients; None if there is none."""
    bounds: list[float] = []
    while isinstance(optimizer, Clipped):  # one may be clipped again
        bounds.append(optimizer.max_norm)
        optimizer = optimizer.optimizer
    return min(bounds, default=None)
