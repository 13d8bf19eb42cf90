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
    chunk: int = 0  # rows that pass through the network at once; 0: all of the batch
    spare: int = 0  # bytes for a part of a product, where it is added to the gradient of the chunks before


def step_program(step: Step) -> Program:
    """Describe a step.

    For each chunk of rows: gather the rows, forward pass, loss, backward pass. Then once: penalties of the weights,
    clipping of the gradients, record of the loss, update of the parameters.
    """
    maker = _Maker(step)
    if step.weighted and len(maker.chunks) > 1:
        maker.gather_weights()
    for chunk in maker.chunks:
        maker.gather(chunk)
        maker.forward(chunk)
        maker.backward(chunk)
    maker.penalties()
    maker.clip()
    maker.end()
    return Program(maker.buffers, maker.size, tuple(maker.operations))


class Chunk(NamedTuple):
    """Rows of a batch that pass through the network at once."""

    first: int
    rows: int


class _Maker:
    def __init__(self, step: Step) -> None:
        self.step = step
        self.buffers: dict[str, Buffer] = {}
        self.size = 0
        self.operations: list[Operation] = []
        self.depth = len(step.sizes) - 1
        size = step.chunk or step.rows
        self.chunks = [Chunk(first, min(size, step.rows - first)) for first in range(0, step.rows, size)]
        self.inputs: dict[int, str] = {}  # of each layer
        self.targets = "targets"
        self.row_weight: str | None = None  # of the batch
        self.buffer("terms", step.rows + sum(self.penalty_sums()))
        self.gradients()

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

    def of_chunk(self, name: str, *shape: int, dtype: str | None = None) -> str:
        """Return a buffer that all chunks use; the last one, which may have fewer rows, uses its beginning."""
        if name not in self.buffers:
            return self.buffer(name, *shape, dtype=dtype)
        return name if self.buffers[name].shape == shape else self.part(f"{name}.last", name, 0, *shape)

    def rows_of(self, name: str, chunk: Chunk) -> str:
        """Return the entries of a chunk in a buffer that has one for each row of the batch."""
        return name if len(self.chunks) == 1 else self.part(f"{name}.{chunk.first}", name, chunk.first, chunk.rows)

    def gather(self, chunk: Chunk) -> None:
        """Copy rows. All rows of the data in their order are read where they are, as far as that is possible."""
        step = self.step
        whole, alone = chunk.rows == step.all_rows, len(self.chunks) == 1
        copies: dict[str, str] = {}
        if not whole or step.cast:
            shape = (chunk.rows, step.sizes[-1]) if step.soft else (chunk.rows,)
            dtype = None if step.soft else "int64"
            self.targets = copies["targets"] = self.of_chunk("batch_targets", *shape, dtype=dtype)
        if not whole or step.cast or step.weighted:
            copies["X"] = self.of_chunk("inputs0", chunk.rows, step.sizes[0])
        if step.weighted and alone and not whole:
            copies |= self.batch_weights()
        self.inputs[0] = copies.get("X", "X")
        self.copy(copies, chunk)
        if step.weighted and alone:
            self.weigh(copies)

    def gather_weights(self) -> None:
        """Copy the weights of all rows of the batch, which are divided before the first chunk."""
        copies = self.batch_weights()
        self.copy(copies, Chunk(0, self.step.rows))
        self.weigh(copies)

    def batch_weights(self) -> dict[str, str]:
        return {name: self.buffer(f"batch_{name}", self.step.rows) for name in ("row_weight", "counting")}

    def copy(self, copies: dict[str, str], rows: Chunk) -> None:
        """Copy rows of these arrays of the data."""
        if not copies:
            return
        zero_rows = self.step.weighted and "X" in copies  # rows that do not count may hold anything: they become zeros
        arrays: list[str | None] = []
        for name in ("X", "targets", "row_weight", "counting"):
            read = name in copies or (name == "row_weight" and zero_rows)
            arrays += [name if read else None, copies.get(name)]
        order = None if rows.rows == self.step.all_rows else "order"
        self.add("gather", *arrays, order, "place", first=rows.first, rows=rows.rows, zero_rows=zero_rows)

    def weigh(self, copies: dict[str, str]) -> None:
        """Divide what a mean is divided by; the weights of the data stay as they are."""
        step = self.step
        row_weight, counting = (copies.get(name, name) for name in ("row_weight", "counting"))
        self.row_weight = row_weight
        strength = self.buffer("strength") if step.averaged and step.reg != 0.0 else None
        if step.mean:
            self.row_weight = self.buffer("shares", step.rows)
            self.add("weigh", counting, row_weight, self.row_weight, strength, reg=step.reg)
        elif strength:
            self.add("weigh", counting, None, None, strength, reg=step.reg)

    def forward(self, chunk: Chunk) -> None:
        step, rows = self.step, chunk.rows
        for i in range(self.depth):
            last, units = i == self.depth - 1, step.sizes[i + 1]
            z = self.inputs[i + 1] = self.of_chunk(f"inputs{i + 1}", rows, units)
            self.add("product", self.inputs[i], f"weight{i}", z, transposed="")
            slopes = None
            if not last and step.activation.kept == "slope":
                slopes = self.of_chunk(f"slopes{i}", rows, units)
            activation = "identity" if last else step.activation.name
            self.add("bias_activation", z, f"bias{i}", slopes, activation=activation)
        of_all = 1.0 / step.rows if step.mean else 1.0
        self.add(
            "softmax_loss",
            self.inputs[self.depth],
            self.targets,
            self.rows_of(self.row_weight, chunk) if self.row_weight else None,
            "class_weight" if step.class_weighted else None,
            self.rows_of("terms", chunk),
            weight_of_all=0.0 if step.weighted else of_all,
            label_smoothing=step.label_smoothing,
            z_loss=step.z_loss,
        )

    def backward(self, chunk: Chunk) -> None:
        """Gradients; the gradient of the logits lies where the logits were."""
        step, rows = self.step, chunk.rows
        added = chunk.first > 0  # to the gradients of the chunks before
        delta, sums = self.inputs[self.depth], []
        for i in reversed(range(self.depth)):
            more = {"spare": step.spare} if added else {}
            self.add("product", self.inputs[i], delta, f"grad_weight{i}", transposed="left", **more)
            sums += [delta, f"grad_bias{i}"]
            if i == 0 or not self.keeps_deltas():
                self.add("sums_of_rows", *sums, added=added)
                sums = []
            if i > 0:
                before = self.delta(i, rows)
                self.add("product", delta, f"weight{i}", before, transposed="right")
                if step.activation.kept != "nothing":
                    of_value = step.activation.kept == "value"
                    kept = self.inputs[i] if of_value else self.of_chunk(f"slopes{i - 1}", rows, step.sizes[i])
                    self.add("activation_backward", before, kept, step=of_value)
                delta = before

    def keeps_deltas(self) -> bool:
        """Whether the gradients of all layers are kept until all biases are summed at once.

        In deep networks they would take more memory than a chunk may (xpsoftmax/_network/chunks.py).
        """
        hidden = self.step.sizes[1:-1]
        return sum(hidden) <= 3 * max(hidden, default=0)

    def delta(self, i: int, rows: int) -> str:
        """Return the buffer for the gradient of the inputs of layer i."""
        units, widest = self.step.sizes[i], max(self.step.sizes[1:-1])
        if self.keeps_deltas():
            return self.of_chunk(f"delta{i}", rows, units)
        storage = f"deltas{i % 2}"  # two in turn
        if storage not in self.buffers:
            self.buffer(storage, rows, widest)
        return self.part(f"delta{i}.{rows}", storage, 0, rows, units)

    def penalty_sums(self) -> list[int]:
        """How many partial sums the penalty of each weight is added up from."""
        layers = pairwise(self.step.sizes) if self.step.reg != 0.0 else ()
        return [-(-fan_in * units // ENTRIES_OF_A_PART) for fan_in, units in layers]

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

    def penalties(self) -> None:
        """Add the penalty and its gradient, once."""
        step = self.step
        if step.reg == 0.0:
            return
        strength = "strength" if step.averaged and step.weighted else None
        reg = step.reg / step.rows if step.averaged else step.reg
        weights = [name for i in range(self.depth) for name in (f"weight{i}", f"grad_weight{i}")]
        self.add("penalties", strength, "terms", *weights, reg=reg, first=step.rows)

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
"""Each buffer begins at a multiple of so many bytes, as memory that CUDA allocates does."""
ITEMSIZES = {"float32": 4, "float64": 8, "int64": 8}
