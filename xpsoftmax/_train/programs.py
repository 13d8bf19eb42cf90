"""A step of training as a program: a fixed list of operations on fixed buffers, described without any array library.

`step_program` describes the step. A backend runs the operations one by one, or records them once and replays them
(xpsoftmax/kernels/cuda/capture.py). What changes from step to step is read from arrays: the order of the rows, where
the batch begins in it, and the numbers of the update rule.

The caller gives arrays of these names: `memory`, of at least as many bytes as the program has; `X`, `targets`,
`row_weight`, `counting`, `class_weight`, `order`; `weight0`, `bias0`, ... and what the optimiser keeps of them,
`weight0.kept0`, ...; `place` (the first row of the batch in the order, the number of this update, that of the next),
`numbers` (a row for each update), `losses` (one for each update) and `finite`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

from xpsoftmax.kernels.activations import Activation
from xpsoftmax.kernels.rules import Rule


class Buffer(NamedTuple):
    """An array that belongs to the program: contiguous, from a byte of its memory on. Some share bytes."""

    shape: tuple[int, ...]
    dtype: str
    offset: int


class Operation(NamedTuple):
    """One operation: its name, its arrays and its options."""

    name: str
    arrays: tuple[str | None, ...]  # None: there is no such array
    options: dict[str, Any]


class Program(NamedTuple):
    """What a step of a given number of rows does. From step to step it keeps nothing in its memory."""

    buffers: dict[str, Buffer]
    size: int  # bytes of memory
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Step:
    """All that the description of a step depends on."""

    rows: int  # of the batch
    all_rows: int  # of the data: after the last one the first is the next. A batch of so many has all, in their order
    sizes: tuple[int, ...]  # (D, H, ..., C)
    activation: Activation
    dtype: str  # the working precision
    cast: bool  # inputs or soft targets are of another dtype
    soft: bool  # targets are masses, not labels
    weighted: bool  # rows have weights of their own
    class_weighted: bool
    mean: bool  # the loss is a mean, not a sum
    reg: float
    averaged: bool  # the penalty is divided by the weight of the batch, as the losses are
    label_smoothing: float
    z_loss: float
    rule: Rule
    kept: int  # arrays that the rule keeps of each parameter
    max_norm: float | None = None  # of all gradients together; None: any


def step_program(step: Step) -> Program:
    """Describe a step: gather the batch, forward, loss, backward, penalties, clip, record, update."""
    maker = _Maker(step)
    maker.gather()
    maker.forward()
    maker.backward()
    maker.clip()
    maker.end()
    return Program(maker.buffers, maker.size, tuple(maker.operations))


class _Maker:
    def __init__(self, step: Step) -> None:
        self.step = step
        self.buffers: dict[str, Buffer] = {}
        self.size = 0
        self.operations: list[Operation] = []
        self.depth = len(step.sizes) - 1
        self.inputs: dict[int, str] = {0: "inputs0"}  # of each layer
        self.targets = "batch_targets"
        self.row_weight: str | None = None

    def add(self, name: str, *arrays: str | None, **options: Any) -> None:
        self.operations.append(Operation(name, arrays, options))

    def buffer(self, name: str, *shape: int, dtype: str | None = None) -> str:
        dtype = dtype or self.step.dtype
        self.buffers[name] = Buffer(shape, dtype, self.size)
        end = self.size + ITEMSIZES[dtype] * prod(shape)
        self.size = -(-end // ALIGNMENT) * ALIGNMENT
        return name

    def part(self, name: str, whole: str, first: int, *shape: int) -> str:
        """Give entries of another buffer, from `first` on, a name and a shape."""
        _, dtype, offset = self.buffers[whole]
        self.buffers[name] = Buffer(shape, dtype, offset + ITEMSIZES[dtype] * first)
        return name

    def gather(self) -> None:
        """Copy the rows of the batch. All rows in their order are read where they are, as far as that is possible."""
        step, rows = self.step, self.step.rows
        whole = rows == step.all_rows
        copies: dict[str, str | None] = {"X": None, "targets": None, "row_weight": None, "counting": None}
        if whole and not step.cast:
            self.targets = "targets"
        else:
            shape = (rows, step.sizes[-1]) if step.soft else (rows,)
            copies["targets"] = self.buffer("batch_targets", *shape, dtype=None if step.soft else "int64")
        if whole and not step.cast and not step.weighted:
            self.inputs[0] = "X"
        else:
            copies["X"] = self.buffer("inputs0", rows, step.sizes[0])
        if step.weighted and not whole:
            copies |= {name: self.buffer(f"batch_{name}", rows) for name in ("row_weight", "counting")}
        arrays = [array for name, copy in copies.items() for array in (name if copy else None, copy)]
        if step.weighted:  # rows that do not count may hold anything: they become zeros
            arrays[4] = "row_weight"
        if any(copies.values()):
            order = None if whole else "order"
            self.add("gather", *arrays, order, "place", rows=rows, zero_rows=step.weighted)
        if step.weighted:
            self.weigh(copies["row_weight"] or "row_weight", copies["counting"] or "counting")

    def weigh(self, row_weight: str, counting: str) -> None:
        """Divide what a mean is divided by; the weights of the data stay as they are."""
        step = self.step
        self.row_weight = row_weight
        strength = self.buffer("strength") if step.averaged and step.reg != 0.0 else None
        if step.mean:
            self.row_weight = self.buffer("shares", step.rows)
            self.add("weigh", counting, row_weight, self.row_weight, strength, reg=step.reg)
        elif strength:
            self.add("weigh", counting, None, None, strength, reg=step.reg)

    def forward(self) -> None:
        step, rows = self.step, self.step.rows
        for i in range(self.depth):
            last, units = i == self.depth - 1, step.sizes[i + 1]
            z = self.inputs[i + 1] = self.buffer(f"inputs{i + 1}", rows, units)
            self.add("product", self.inputs[i], f"weight{i}", z, transposed="")
            slopes = None
            if not last and step.activation.kept == "slope":
                slopes = self.buffer(f"slopes{i}", rows, units)
            activation = "identity" if last else step.activation.name
            self.add("bias_activation", z, f"bias{i}", slopes, activation=activation)
        of_all = 1.0 / rows if step.mean else 1.0
        self.buffer("terms", rows + self.penalties())
        self.add(
            "softmax_loss",
            f"inputs{self.depth}",
            self.targets,
            self.row_weight,
            "class_weight" if step.class_weighted else None,
            "terms",
            weight_of_all=0.0 if step.weighted else of_all,
            label_smoothing=step.label_smoothing,
            z_loss=step.z_loss,
        )

    def penalties(self) -> int:
        """How many sums the penalties of all weights have."""
        return sum(map(self.parts, range(self.depth))) if self.step.reg != 0.0 else 0

    def parts(self, i: int) -> int:
        return -(-self.step.sizes[i] * self.step.sizes[i + 1] // ENTRIES_OF_A_PART)

    def backward(self) -> None:
        """Gradients; the gradient of the logits lies where the logits were."""
        step, rows = self.step, self.step.rows
        delta, sums = self.inputs[self.depth], []
        self.gradients()
        for i in reversed(range(self.depth)):
            fan_in = step.sizes[i]
            self.add("product", self.inputs[i], delta, f"grad_weight{i}", transposed="left")
            sums += [delta, f"grad_bias{i}"]
            if i > 0:
                before = self.buffer(f"delta{i}", rows, fan_in)
                self.add("product", delta, f"weight{i}", before, transposed="right")
                kept = {"nothing": None, "value": self.inputs[i], "slope": f"slopes{i - 1}"}[step.activation.kept]
                if kept is not None:
                    self.add("activation_backward", before, kept, step=step.activation.kept == "value")
                delta = before
        self.add("sums_of_rows", *sums)  # of all layers at once
        if step.reg == 0.0:
            return
        strength = "strength" if step.averaged and step.weighted else None
        reg = step.reg / rows if step.averaged else step.reg
        weights = [name for i in range(self.depth) for name in (f"weight{i}", f"grad_weight{i}")]
        self.add("penalties", strength, "terms", *weights, reg=reg, first=rows)

    def gradients(self) -> None:
        """All gradients are one vector. Biases come last, so that weights lie where products write fast."""
        layers = list(pairwise(self.step.sizes))
        self.buffer("grads", sum((fan_in + 1) * units for fan_in, units in layers))
        first = 0
        for i, (fan_in, units) in enumerate(layers):
            self.part(f"grad_weight{i}", "grads", first, fan_in, units)
            first += fan_in * units
        for i, (_, units) in enumerate(layers):
            self.part(f"grad_bias{i}", "grads", first, units)
            first += units

    def clip(self) -> None:
        """Shorten the gradients."""
        if self.step.max_norm is not None:
            entries = self.buffers["grads"].shape[0]
            squares = self.buffer("squares", -(-entries // ENTRIES_OF_A_PART), 3)
            self.add("clip", "grads", squares, max_norm=self.step.max_norm)

    def end(self) -> None:
        step = self.step
        self.add("record", "terms", "losses", "finite", "place", rows=step.rows, all_rows=step.all_rows)
        arrays = []
        for i in range(self.depth):
            for name in (f"weight{i}", f"bias{i}"):
                arrays += [f"grad_{name}", name, *(f"{name}.kept{k}" for k in range(step.kept))]
        self.add("update", "finite", "numbers", "place", *arrays, rule=step.rule, kept=step.kept)


ENTRIES_OF_A_PART = 16_384
"""Entries of a weight, or of the gradients, whose squares are one sum."""
ALIGNMENT = 256
"""Bytes: what CUDA's own allocations are aligned to."""
ITEMSIZES = {"float32": 4, "float64": 8, "int64": 8}
