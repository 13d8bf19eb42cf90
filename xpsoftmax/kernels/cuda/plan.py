"""What the CUDA backend launches: source text, specialisation, grid, arguments. Pure functions, no CuPy.

`launcher.py` hands a `Launch` to CuPy; the tests hand the same `Launch` to a CPU (tests/_cuda_on_cpu.py).
docs/adr/0009-cuda-kernels.md says why the size classes are what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

VECTOR = 16
"""Bytes that a thread reads at once."""
MOST_CLASSES = 2**31 - 17
"""Largest number of classes: positions within a vector beyond the row must fit 32 bits."""
MOST_BLOCKS = 2**31 - 1
"""Largest grid that CUDA launches."""
CLUSTERS_FROM = 90
"""Compute capability from which blocks can form clusters."""
LITTLE_SHARED_MEMORY_FROM = 120
"""Compute capability from which a block has 99 KiB of shared memory again, not 227 KiB as from 9.0 on."""
LEAST_CAPABILITY = 75
"""Compute capability from which the kernels are compiled in the tests: 7.5, Turing."""
SCALARS = {"float16": "Half", "bfloat16": "Bfloat", "float32": "float", "float64": "double"}
REALS = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}
"""The working precision of each dtype."""
ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
COMPILER_OPTIONS = ("-std=c++17", "--fmad=false")
"""Without fused multiply-add the merges of partial sums are symmetric, and the text means what a CPU makes of it."""


LEAST_SMOOTHING = 1e-6
"""Below, the terms of smoothing no longer cover what is lost of probabilities that are subnormal."""


class SizeClass(NamedTuple):
    """How a row is laid on threads (kernels/cuda/rows.cuh)."""

    lanes: int  # threads of a row in each block
    vectors: int  # 16-byte vectors that each holds; 0: the row is streamed
    blocks: int = 1  # of a row: more than one form a cluster
    resident: int = 2  # blocks that shall fit on a multiprocessor at once
    slots: int = 0  # of a ring in shared memory that the row comes through; 0: straight into registers
    group: int = 1  # vectors of each thread that a slot holds

    @property
    def threads(self) -> int:
        """Threads of a block; a ring has a warp of its own that fills it."""
        return self.lanes + 32 if self.slots else max(self.lanes, 128)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.slots * self.group * self.lanes * VECTOR

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return self.threads // self.lanes

    @property
    def capacity(self) -> int:
        """How many whole vectors of a row it holds."""
        return self.lanes * self.vectors * self.blocks

    @property
    def persistent(self) -> bool:
        """Whether its blocks take row after row."""
        return self.resident == 1 and self.vectors > 0


STREAMED = SizeClass(512, 0)
_FEW_LANES = (
    SizeClass(4, 1, resident=8),
    SizeClass(4, 2, resident=8),
    SizeClass(8, 2, resident=8),
    SizeClass(16, 2, resident=8),
    SizeClass(32, 2, resident=8),
    SizeClass(32, 4, resident=8),
)
_CLUSTERS = (
    SizeClass(1024, 8, 2, 1),
    SizeClass(512, 25, 2, 1),
    SizeClass(1024, 8, 4, 1),
    SizeClass(1024, 8, 8, 1),
)
# Rows that come through shared memory: of float32, too long for one block, where that was measured to be faster. Each
# takes the place of the class before it, on devices that have enough shared memory.
_SHORT_RING = SizeClass(480, 14, 2, 1, slots=14, group=2)
_LONG_RING = SizeClass(480, 9, 8, 1, slots=9, group=3)
_SINGLE = (
    *_FEW_LANES,
    SizeClass(32, 8, resident=8),
    SizeClass(128, 4, resident=10),
    SizeClass(256, 4, resident=6),
    SizeClass(512, 4, resident=3),
    SizeClass(512, 8, resident=2),
    SizeClass(1024, 8, resident=1),
    SizeClass(512, 25, resident=1),
    _SHORT_RING,
    *_CLUSTERS[:-1],
    _LONG_RING,
    _CLUSTERS[-1],
    STREAMED,
)
# Results of 16 bits take more registers than the logits: for what comes out of each word, two numbers.
_SIXTEEN_BITS = (
    *_FEW_LANES,
    SizeClass(32, 8, resident=8),
    SizeClass(128, 4, resident=10),
    SizeClass(256, 4, resident=5),
    SizeClass(256, 8, resident=4),
    SizeClass(512, 8, resident=2),
    SizeClass(1024, 7, resident=1),
    SizeClass(1024, 8, resident=1),
    SizeClass(512, 25, resident=1),
    *_CLUSTERS,
    STREAMED,
)
# An exponential in float64 takes many registers of its own.
_DOUBLE = (
    *(kind._replace(resident=4) for kind in (*_FEW_LANES, SizeClass(32, 8))),
    SizeClass(128, 4, resident=6),
    SizeClass(256, 4, resident=3),
    SizeClass(256, 8, resident=2),
    SizeClass(512, 8, resident=1),
    SizeClass(512, 16, resident=1),
    *(SizeClass(512, 16, blocks, 1) for blocks in (2, 4, 8)),
    SizeClass(256, 0),
)
_ALL_CLASSES = {"float16": _SIXTEEN_BITS, "bfloat16": _SIXTEEN_BITS, "float32": _SINGLE, "float64": _DOUBLE}
_TAKE_MORE_REGISTERS = ("softmax_loss_smoothed", "log_softmax")


@cache
def size_classes(operation: str, dtype: str) -> tuple[SizeClass, ...]:
    """Size classes of an operation, smallest first; a row gets the first that covers it.

    docs/adr/0009-cuda-kernels.md has the reasons. A class is left out, or has fewer blocks resident, where its threads
    would run out of registers.
    """
    kinds = _ALL_CLASSES[dtype]
    if operation not in _TAKE_MORE_REGISTERS:
        return kinds
    few = (kind for kind in kinds if kind.vectors < 25 and kind != _SHORT_RING)
    return tuple(dict.fromkeys(_with_more_registers(kind, operation, dtype) for kind in few))


@cache
def classes_on(operation: str, dtype: str, capability: int) -> tuple[SizeClass, ...]:
    """Those that a device of this compute capability (as 90 for 9.0) takes: a ring replaces the class before it."""
    kinds = [kind for kind in size_classes(operation, dtype) if exists_on(kind, capability)]
    if dtype == "float64" and capability >= 120:  # 16 vectors of it spill there
        kinds = [kind for kind in kinds if kind.vectors < 16]
    return tuple(kind for kind, after in zip(kinds, (*kinds[1:], STREAMED), strict=True) if not after.slots)


def _with_more_registers(kind: SizeClass, operation: str, dtype: str) -> SizeClass:
    if kind.slots:
        return kind
    if dtype == "float64" and kind.vectors == 16:
        return kind._replace(vectors=8)
    if operation == "softmax_loss_smoothed" and dtype == "float32" and kind.threads >= 512 and kind.vectors == 8:
        return SizeClass(512, 8, min(2 * kind.blocks, 8) if kind.threads == 1024 else 1, 1)
    if kind.threads == 1024 and (operation == "log_softmax" or kind.vectors == 8):
        return SizeClass(512, 16, kind.blocks, kind.resident)
    if kind.lanes == 32 and kind.vectors == 8:
        return kind._replace(resident=min(kind.resident, 6))
    return kind._replace(resident={10: 8, 6: 5, 5: 4, 3: 2}.get(kind.resident, kind.resident))


QUICK_FROM = 256
"""Number of classes from which results of 16 bits take the quick exponential (kernels/cuda/exponentials.cuh)."""


class Matrix(NamedTuple):
    """Rows of an array in device memory: neighbouring classes are neighbours there."""

    address: int
    rows: int
    classes: int
    stride: int  # elements from one row to the next
    dtype: str

    @property
    def first_bytes(self) -> int:
        """Most bytes that a row begins behind a 16-byte boundary."""
        itemsize = ITEMSIZES[self.dtype]
        apart = self.stride * itemsize if self.rows > 1 else 0
        aligned = self.address % VECTOR == 0 and apart % VECTOR == 0
        return 0 if aligned else VECTOR - itemsize


class Launch(NamedTuple):
    """One kernel launch."""

    kernel: str  # name of the kernel and of its file
    defines: tuple[tuple[str, str], ...]
    grid: int
    block: int
    arguments: tuple[Any, ...]  # NumPy scalars of exactly the types of the kernel's parameters
    cluster: int = 1  # blocks of a cluster
    persistent: bool = False  # the grid may be any smaller number of clusters: as many as run at once
    shared_bytes: int = 0  # dynamic shared memory of a block


def size_class(logits: Matrix, capability: int, operation: str = "softmax_loss") -> SizeClass:
    """Return the class of rows like these on a device of this compute capability (as 90 for 9.0)."""
    return _size_class(operation, logits.classes, logits.dtype, capability)


@cache
def _size_class(operation: str, classes: int, dtype: str, capability: int) -> SizeClass:
    vectors = whole_vectors(classes, dtype)
    return next(kind for kind in classes_on(operation, dtype, capability) if covers(kind, vectors))


def on_capability(kind: SizeClass, capability: int) -> SizeClass:
    """The class with as many blocks resident as the device can have: threads, and registers without spills.

    Only on GPUs of 9.0, where the classes were measured, are there more than 1024 threads. Code for other GPUs takes
    a few registers more. Turing, which has no instructions for pairs of bfloat16, takes the most.
    """
    most = 1536 if capability == CLUSTERS_FROM else 1024
    if capability < 80 and kind.vectors >= 4:
        most = 512
    return kind._replace(resident=max(min(kind.resident, most // kind.threads), 1))


def exists_on(kind: SizeClass, capability: int) -> bool:
    """Whether a device has such a class: clusters, shared memory, registers for as many threads and vectors."""
    if kind.slots:
        return CLUSTERS_FROM <= capability < LITTLE_SHARED_MEMORY_FROM
    if kind.blocks > 1:
        return capability >= CLUSTERS_FROM
    return capability >= 80 or (kind.threads <= 512 and kind.vectors <= 8)


def whole_vectors(classes: int, dtype: str) -> int:
    """Most whole vectors of a row, wherever it begins."""
    return classes * ITEMSIZES[dtype] // VECTOR


def covers(kind: SizeClass, vectors: int) -> bool:
    """Whether a class holds so many vectors of a row; what it did not hold would silently be left out."""
    return kind.vectors == 0 or kind.capacity >= vectors


def rows_launch(
    operation: str, logits: Matrix, result: Matrix | int, capability: int, kind: SizeClass | None = None
) -> Launch:
    """Launch of `softmax` or `log_softmax` (result (R, C)), or `logsumexp` (the address of (R,))."""
    outputs = _rows_of(result) if isinstance(result, Matrix) else (np.uint64(result),)
    return _launch(operation, logits, result if isinstance(result, Matrix) else None, capability, kind, outputs)


def loss_launch(
    logits: Matrix,
    labels: tuple[int, str],
    weights: int,
    losses: int,
    result: Matrix | None,
    capability: int,
    kind: SizeClass | None = None,
    *,
    weight_of_all: float = 0.0,
    label_smoothing: float = 0.0,
    total: int = 0,
    counter: int = 0,
) -> Launch:
    """Launch of the loss of labels, given by address and dtype; weights and losses are addresses of contiguous (R,).

    For weights 0 all rows have the same. Smoothing is 0 or at least `LEAST_SMOOTHING`. Without smoothing the launch may
    add up the losses, too: `total` is the address of the sum, or 0, and `counter` that of a uint32. The counter must be
    0, is 0 again afterwards, and belongs to no other launch that may run at the same time.
    """
    real = REALS[logits.dtype]
    arguments = (
        np.uint64(labels[0]),
        _label_bytes(labels[1]),
        np.uint64(weights),
        real(weight_of_all),
        np.uint64(losses),
        *_rows_of(result),
    )
    if label_smoothing == 0.0:
        sums = np.uint64(total), np.uint64(counter)
        return _launch("softmax_loss", logits, result, capability, kind, (*arguments, *sums))
    shares = real(1.0 - label_smoothing), real(label_smoothing / logits.classes)
    return _launch("softmax_loss_smoothed", logits, result, capability, kind, (*arguments, *shares))


def masses_launch(
    logits: Matrix,
    targets: Matrix | tuple[int, str],
    weights: int,
    losses: int,
    result: Matrix | None,
    *,
    class_weights: int,
    label_smoothing: float,
    z_loss: float,
    weight_of_all: float = 0.0,
) -> Launch:
    """Launch of the loss with options; targets are masses (R, C), or the address and dtype of labels (R,).

    Weights as for `loss_launch`.
    """
    if isinstance(targets, Matrix):
        target_arguments = (np.uint64(0), np.int32(8), np.uint64(targets.address), np.int64(targets.stride))
    else:
        address, dtype = targets
        target_arguments = (np.uint64(address), _label_bytes(dtype), np.uint64(0), np.int64(0))
    real = REALS[logits.dtype]
    kind = mass_class(logits.classes, logits.dtype)
    return Launch(
        "softmax_loss_of_masses",
        mass_defines(kind, logits.dtype, _result_dtype(logits, result)),
        _grid(logits.rows),
        kind.threads,
        (
            *_rows_of(logits),
            *target_arguments,
            np.uint64(class_weights),
            np.uint64(weights),
            real(weight_of_all),
            np.uint64(losses),
            *_rows_of(result),
            np.int64(_classes(logits)),
            *_reals(logits.dtype, (1.0 - label_smoothing, label_smoothing / logits.classes, z_loss)),
        ),
    )


def bias_activation_launch(z: Matrix, bias: int, slopes: Matrix | None, activation: str) -> Launch:
    """Launch of z = f(z + bias), and of slopes = f'(z + bias); bias is the address of contiguous (H,)."""
    return _units_launch("bias_activation", z, ("ACTIVATION", activation), (np.uint64(bias), *_rows_of(slopes)))


def activation_backward_launch(delta: Matrix, slopes: Matrix, *, step: bool) -> Launch:
    """Launch of delta *= slopes, or, for a `step`, of delta *= slopes > 0."""
    return _units_launch("activation_backward", delta, ("STEP", str(int(step))), _rows_of(slopes))


RULES = ("sgd_rule", "momentum_rule", "nesterov_rule", "adam_rule", "adamw_rule")
"""The functions of _optim.py that kernels/cuda/rules.cuh says again."""
RULE_NUMBERS = 8
"""How many numbers a rule takes at most."""


def update_launch(
    rule: str, arrays: tuple[int, ...], grad: int, ok: int, length: int, dtype: str, numbers: tuple[float, ...]
) -> Launch:
    """Launch of a rule: of a parameter and what is kept of it (at most two more), and its gradient; all addresses."""
    kept = (*arrays, *(0,) * (3 - len(arrays)))
    rest = (0.0,) * (RULE_NUMBERS - len(numbers))
    return Launch(
        "parameter_update",
        unit_defines(dtype, ("RULE", rule)),
        _grid(-(-length // UNIT_THREADS)),
        UNIT_THREADS,
        (
            *(np.uint64(address) for address in (*kept, grad, ok)),
            np.int64(length),
            *_reals(dtype, (*numbers, *rest)),
        ),
    )


MOST_ROWS_IN_ONE_LAUNCH = 4096
"""Beyond, one block adds up the losses more slowly than a launch of its own for their total does."""
TOTAL_PART = 16_384
TOTAL_THREADS = 512


def total_launch(x: int, sums: int, length: int, dtype: str) -> Launch:
    """Launch of the sums of the parts of a contiguous vector, of which there are `total_parts`; all are addresses."""
    return Launch(
        "total",
        total_defines(dtype),
        _grid(total_parts(length)),
        TOTAL_THREADS,
        (np.uint64(x), np.uint64(sums), np.int64(length)),
    )


def total_parts(length: int) -> int:
    """How many sums the kernel makes of a vector."""
    return -(-length // TOTAL_PART)


@cache
def total_defines(dtype: str) -> tuple[tuple[str, str], ...]:
    """The specialisation of the kernel for totals."""
    return (("SCALAR", SCALARS[dtype]), ("THREADS", str(TOTAL_THREADS)), ("PART", str(TOTAL_PART)))


LABEL_DEFINES = (("THREADS", "256"),)


def bad_labels_launch(labels: tuple[int, str], found: int, rows: int, classes: int) -> Launch:
    """Launch of the look at labels, given by address and dtype; `found` is the address of an int32, which is 0."""
    threads = int(dict(LABEL_DEFINES)["THREADS"])
    arguments = (np.uint64(labels[0]), _label_bytes(labels[1]), np.uint64(found), np.int64(rows), np.int64(classes))
    return Launch("bad_labels", LABEL_DEFINES, _grid(-(-rows // threads)), threads, arguments)


UNIT_THREADS = 256


def unit_defines(dtype: str, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """The specialisation of the kernels for units of a layer (kernels/cuda/units.cuh)."""
    return (("SCALAR", SCALARS[dtype]), ("THREADS", str(UNIT_THREADS)), *more)


def _units_launch(kernel: str, units: Matrix, define: tuple[str, str], arguments: tuple[Any, ...]) -> Launch:
    need = units.first_bytes + units.classes * ITEMSIZES[units.dtype]
    lane_bits = (-(-need // VECTOR) - 1).bit_length()
    return Launch(
        kernel,
        unit_defines(units.dtype, define),
        _grid(-(-(units.rows << lane_bits) // UNIT_THREADS)),
        UNIT_THREADS,
        (*_rows_of(units), *arguments, np.int32(lane_bits), np.int64(units.rows), np.int64(_classes(units))),
    )


class MassClass(NamedTuple):
    """How a row with target masses is laid on the threads of a block (kernels/cuda/softmax_loss_of_masses.cu)."""

    threads: int
    held: int  # classes of each thread in registers; 0: any number, which are read again
    resident: int


_MASSES_OF_SINGLE = (
    MassClass(32, 4, 16),
    MassClass(128, 4, 8),
    MassClass(512, 4, 2),
    MassClass(512, 8, 2),
    MassClass(512, 16, 1),
    MassClass(512, 0, 2),
)
_MASSES_OF_DOUBLE = (
    MassClass(32, 4, 16),
    MassClass(128, 4, 4),
    MassClass(512, 4, 1),
    MassClass(512, 8, 1),
    MassClass(512, 0, 1),
)


def mass_classes(dtype: str) -> tuple[MassClass, ...]:
    """Smallest first; the last one takes any row."""
    return _MASSES_OF_DOUBLE if dtype == "float64" else _MASSES_OF_SINGLE


@cache
def mass_class(classes: int, dtype: str) -> MassClass:
    """The first class that holds a row."""
    return next(kind for kind in mass_classes(dtype) if kind.held == 0 or classes <= kind.threads * kind.held)


def defines(kind: SizeClass, dtype: str, result: str, *, quick: bool) -> tuple[tuple[str, str], ...]:
    """The specialisation that rows.cuh asks for."""
    ring = (("SLOTS", str(kind.slots)), ("GROUP", str(kind.group))) if kind.slots else ()
    return (
        ("SCALAR", SCALARS[dtype]),
        ("RESULT", SCALARS[result]),
        ("QUICK", str(int(quick))),
        ("LANES", str(kind.lanes)),
        ("VECTORS", str(kind.vectors)),
        ("BLOCKS", str(kind.blocks)),
        ("THREADS", str(kind.threads)),
        ("RESIDENT", str(kind.resident)),
        *ring,
    )


def takes_quick(classes: int, dtype: str, result: str) -> bool:
    """Whether rows of so many classes, written in the type `result`, take the quick exponential."""
    return ITEMSIZES[dtype] == 2 and result == dtype and classes >= QUICK_FROM


def _result_dtype(logits: Matrix, result: Matrix | None) -> str:
    return logits.dtype if result is None else result.dtype


@cache
def mass_defines(kind: MassClass, dtype: str, result: str) -> tuple[tuple[str, str], ...]:
    """The specialisation of the kernel for target masses."""
    return (
        ("SCALAR", SCALARS[dtype]),
        ("RESULT", SCALARS[result]),
        ("THREADS", str(kind.threads)),
        ("CLASSES_HELD", str(kind.held)),
        ("RESIDENT", str(kind.resident)),
    )


def options(specialisation: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Compiler options of a specialisation."""
    return (*COMPILER_OPTIONS, *(f"-D{name}={value}" for name, value in specialisation))


@cache
def source(kernel: str) -> str:
    """Text of a kernel with its headers in place: CuPy's cache of compiled kernels knows only this text."""
    return with_headers(f"{kernel}.cu", lambda name: (Path(__file__).parent / name).read_text("utf-8"))


def with_headers(name: str, read: Callable[[str], str]) -> str:
    """Text of a file in which each `#include "..."` is replaced, once, by the file it names."""
    seen: set[str] = set()

    def text(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        lines = [f'#line 1 "{name}"']
        for number, line in enumerate(read(name).splitlines(), 1):
            if line.startswith('#include "'):
                lines += [text(line.split('"')[1]), f'#line {number + 1} "{name}"']
            elif line != "#pragma once":
                lines.append(line)
            else:
                lines.append("")
        return "\n".join(lines)

    return text(name) + "\n"


def _launch(
    kernel: str,
    logits: Matrix,
    result: Matrix | None,
    capability: int,
    kind: SizeClass | None,
    arguments: tuple[Any, ...],
) -> Launch:
    """Launch of a kernel of rows; of its arguments the logits and the sizes are put around those that are given."""
    sizes = logits.rows, _classes(logits)
    shape = _row_shape(kernel, *sizes, logits.dtype, _result_dtype(logits, result), kind, capability)
    return Launch(
        kernel,
        shape.defines,
        shape.grid,
        shape.kind.threads,
        (*_rows_of(logits), *arguments, *shape.sizes),
        shape.kind.blocks,
        shape.kind.persistent,
        shape.kind.shared_bytes,
    )


class _RowShape(NamedTuple):
    """What a launch of rows has that does not depend on where they lie."""

    defines: tuple[tuple[str, str], ...]
    grid: int
    kind: SizeClass
    sizes: tuple[Any, ...]


@lru_cache(maxsize=256)  # a call to a small problem is mostly such work
def _row_shape(
    operation: str, rows: int, classes: int, dtype: str, result: str, kind: SizeClass | None, capability: int
) -> _RowShape:
    if kind is None:
        kind = _size_class(operation, classes, dtype, capability)
    kind = on_capability(kind, capability)
    if not covers(kind, whole_vectors(classes, dtype)):
        raise ValueError(
            f"kind must cover {whole_vectors(classes, dtype)} vectors a row, got {kind} for {kind.capacity}."
        )
    quick = takes_quick(classes, dtype, result)
    return _RowShape(
        defines(kind, dtype, result, quick=quick),
        _grid(-(-rows // kind.rows) * kind.blocks),
        kind,
        (np.int64(rows), np.int64(classes)),
    )


def _rows_of(matrix: Matrix | None) -> tuple[Any, ...]:
    return (np.uint64(0), np.int64(0)) if matrix is None else (np.uint64(matrix.address), np.int64(matrix.stride))


def _reals(dtype: str, numbers: tuple[float, ...]) -> tuple[Any, ...]:
    """Numbers that users chose, in the working precision: what is beyond it is infinite, without a warning."""
    with np.errstate(over="ignore"):
        return tuple(map(REALS[dtype], numbers))


@cache
def _label_bytes(dtype: str) -> np.int32:
    kind = np.dtype(dtype)
    return np.int32(kind.itemsize if kind.kind == "i" else -kind.itemsize)


def _classes(logits: Matrix) -> int:
    if logits.classes > MOST_CLASSES:
        raise NotImplementedError(f"logits must have at most {MOST_CLASSES} classes here, got {logits.classes}.")
    return logits.classes


def _grid(blocks: int) -> int:
    if blocks > MOST_BLOCKS:
        raise NotImplementedError(f"logits must need at most {MOST_BLOCKS} blocks here, got {blocks}.")
    return blocks
