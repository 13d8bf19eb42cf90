"""Steps of the loop as programs: for rows in memory, where a backend runs programs.

The loop itself makes the other steps: those with a function as learning rate, with a batch in several chunks, or with
arrays of a layout that kernels cannot read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xpsoftmax._train.optimizers import Optimizer
from xpsoftmax._train.programs import Step, step_program
from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.kernels.activations import ACTIVATIONS
from xpsoftmax.kernels.rules import Rule

if TYPE_CHECKING:
    from xpsoftmax._train.loop import Loop
    from xpsoftmax._train.steps import RowBatch, RowSteps

NUMBERS = 1024
"""For how many updates the numbers of the rule are computed and sent ahead."""
NUMBERS_OF_A_RULE = 8


class ProgrammedSteps:
    """Programs of the steps of one training, one for each number of rows, and what changes from step to step.

    Parameters
    ----------
    steps : RowSteps
    runner : type
        Makes a runner of a program and its arrays: see xpsoftmax/kernels/cuda/capture.py.
    """

    def __init__(self, steps: RowSteps, runner: Any) -> None:
        self._steps, self._runner = steps, runner
        self._xp, self._device = steps.network.xp, steps.network.home.device
        self._dtype = dtype_name(steps.data.problem.row_weight.dtype)  # the working precision
        self._usable = self._are_rows_in_place()
        self._bound: list[Array] = []  # parameters, and what is kept of them, that the programs change
        self._arrays: dict[str, Array] = {}
        self._runners: dict[Any, Any] = {}  # by the number of rows and the rule
        self._order: Array | None = None  # of the rows, as the epoch drew it
        self._place = (-1, -1)  # where the programs would go on: the first row, and the row of the numbers
        self._optimizer: Optimizer | None = None  # for which the numbers were computed
        self._first = 0  # the update that the first row of the numbers is for

    def step(self, loop: Loop, batch: Any) -> Array | None:
        """Make a step, and return its loss; None if it has to be made in the usual way."""
        rate = loop.optimizer.learning_rate
        if not self._usable or not batch.counts or callable(rate):
            return None
        rule = loop.optimizer.rule(rate, 1)[0]
        one_chunk = len(self._steps.plan(batch.size).chunks) == 1
        if not (one_chunk and self._runner.has_rule(rule) and self._bind(loop)):
            return None
        key = batch.size, rule
        if key not in self._runners:
            self._runners[key] = self._runner(step_program(self._described(loop, batch.size, rule)), self._arrays)
        self._send(loop, batch, rate)
        self._runners[key].run()
        count, *kept = loop.state
        loop.state = (count + 1, *kept)
        self._place = ((batch.start + batch.size) % self._steps.rows, self._place[1] + 1)
        return self._arrays["loss"] + 0.0  # a copy: the next step writes its own there

    def _are_rows_in_place(self) -> bool:
        """Whether kernels can read inputs and targets where they are."""
        data, problem = self._steps.data, self._steps.data.problem
        vectors = [problem.row_weight, problem.counting, problem.spec.class_weight]
        vectors = [array for array in vectors if array is not None]
        labels = problem.targets.ndim == 2 or dtype_name(problem.targets.dtype) == "int64"
        if min(self._sizes()) == 0 or not labels or not hasattr(data.X, "flags"):  # sparse inputs have none
            return False
        in_place = all(array.flags.c_contiguous for array in (data.X, problem.targets, *vectors))
        return in_place and all(dtype_name(array.dtype) == self._dtype for array in vectors)

    def _sizes(self) -> tuple[int, ...]:
        layers = self._steps.network.layers
        return (int(layers[0].weight.shape[0]), *(int(layer.bias.shape[0]) for layer in layers))

    def _bind(self, loop: Loop) -> bool:
        """Make new programs if the loop has other arrays than the present programs.

        Return whether kernels can update the arrays in place.
        """
        named = {}
        for k, layers in enumerate((loop.params, *loop.state[1:])):
            for i, layer in enumerate(layers):
                for name, array in (("weight", layer.weight), ("bias", layer.bias)):
                    named[f"{name}{i}" if k == 0 else f"{name}{i}.kept{k - 1}"] = array
        arrays = list(named.values())
        if len(arrays) == len(self._bound) and all(a is b for a, b in zip(arrays, self._bound, strict=True)):
            return True
        if not all(array.flags.c_contiguous for array in arrays):
            return False
        self._bound, self._runners, self._arrays = arrays, {}, named | self._shared()
        self._order, self._place, self._optimizer = None, (-1, -1), None
        return True

    def _shared(self) -> dict[str, Array]:
        data, xp = self._steps.data, self._xp
        problem, options = data.problem, {"device": self._device}
        working = self._steps.network.working
        shared = {
            "X": data.X,
            "targets": problem.targets,
            "row_weight": problem.row_weight,
            "counting": problem.row_weight if problem.counting is None else problem.counting,
            "order": xp.arange(data.rows, dtype=xp.int64, **options),
            "place": xp.zeros(3, dtype=xp.int64, **options),
            "numbers": xp.zeros((NUMBERS, NUMBERS_OF_A_RULE), dtype=working, **options),
            "finite": xp.ones((), dtype=xp.bool, **options),
            "loss": xp.zeros((), dtype=working, **options),
        }
        if problem.spec.class_weight is not None:
            shared["class_weight"] = problem.spec.class_weight
        return shared

    def _described(self, loop: Loop, rows: int, rule: Rule) -> Step:
        steps, problem = self._steps, self._steps.data.problem
        given = [steps.data.X, *([problem.targets] if problem.targets.ndim == 2 else [])]
        return Step(
            rows=rows,
            all_rows=steps.rows,
            sizes=self._sizes(),
            activation=ACTIVATIONS[steps.network.activation],
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
            rule=rule,
            kept=loop.optimizer.kept,
        )

    def _send(self, loop: Loop, batch: RowBatch, rate: float) -> None:
        """Send to the device what has changed since the last step."""
        order = batch.order
        if batch.size < self._steps.rows and order is not self._order:
            self._arrays["order"][...] = self._on_device(np.arange(self._steps.rows)) if order is None else order
            self._order = order
        update = loop.state[0] - self._first
        if loop.optimizer is not self._optimizer or not 0 <= update < NUMBERS:
            self._send_numbers(loop, rate)
            update = 0
        if self._place != (batch.start, update):
            self._arrays["place"][...] = self._on_device(np.array([batch.start, update, update]))
            self._place = (batch.start, update)
        finite = self._arrays["finite"]
        if loop.finite is not finite:
            finite[...] = True if loop.finite is None else loop.finite
            loop.finite = finite

    def _send_numbers(self, loop: Loop, rate: float) -> None:
        """Send the numbers of the rule for the next updates, computed in float64."""
        optimizer, count = loop.optimizer, loop.state[0]
        table = np.zeros((NUMBERS, NUMBERS_OF_A_RULE))
        for k in range(NUMBERS):
            _, numbers = optimizer.rule(rate, count + k + 1)
            table[k, : len(numbers)] = numbers
        with np.errstate(over="ignore"):
            table = table.astype(self._dtype)
        self._arrays["numbers"][...] = self._on_device(table)
        self._optimizer, self._first = optimizer, count

    def _on_device(self, array: np.ndarray) -> Array:
        return self._xp.asarray(array, device=self._device)
