"""What the CUDA backend launches: specialisation, grid, arguments. Pure functions, no CuPy.

`launches.py` hands a `Launch` to CuPy; the tests hand the same `Launch` to a CPU (tests/support/cuda_on_cpu.py).
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from xpsoftmax.kernels.cuda import texts
from xpsoftmax.kernels.cuda.sizes import (
    ITEMSIZES,
    VECTOR,
    SizeClass,
    covers,
    mass_class,
    on_capability,
    size_class,
    whole_vectors,
)
from xpsoftmax.kernels.cuda.texts import SCALARS, mass_defines

MOST_CLASSES = 2**31 - 17
"""Largest number of classes: positions within a vector beyond the row must fit 32 bits."""
MOST_BLOCKS = 2**31 - 1
"""Largest grid that CUDA launches."""
LEAST_CAPABILITY = 75
"""Compute capability from which the kernels are compiled in the tests: 7.5, Turing."""
REALS = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}
"""The working precision of each dtype."""
LEAST_SMOOTHING = 1e-6
"""Below, the terms of smoothing no longer cover what is lost of probabilities that are subnormal."""


class Matrix(NamedTuple):
    """Rows of an array in device memory; the classes of each row are contiguous."""

    address: int
    rows: int
    classes: int
    stride: int  # elements from one row to the next
    dtype: str

    @property
    def first_bytes(self) -> int:
        """Largest distance, in bytes, of the beginning of a row from the 16-byte boundary before it."""
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
    persistent: bool = False  # the grid may be smaller: as many clusters as run at once
    shared_bytes: int = 0  # dynamic shared memory of a block


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

    The address 0 for the weights means that all rows have the same weight. Smoothing is 0 or at least
    `LEAST_SMOOTHING`. Without smoothing the launch may add up the losses, too: `total` is the address of the sum, or 0,
    and `counter` that of a uint32. The counter must be 0, is 0 again afterwards, and belongs to no other launch that
    may run at the same time.
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
        checked_grid(logits.rows),
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
            *as_reals(logits.dtype, (1.0 - label_smoothing, label_smoothing / logits.classes, z_loss)),
        ),
    )


def bias_activation_launch(z: Matrix, bias: int, slopes: Matrix | None, activation: str) -> Launch:
    """Launch of z = f(z + bias), and of slopes = f'(z + bias); bias is the address of contiguous (H,)."""
    return _units_launch("bias_activation", z, ("ACTIVATION", activation), (np.uint64(bias), *_rows_of(slopes)))


def activation_backward_launch(delta: Matrix, slopes: Matrix, *, step: bool) -> Launch:
    """Launch of delta *= slopes, or, for a `step`, of delta *= slopes > 0."""
    return _units_launch("activation_backward", delta, ("STEP", str(int(step))), _rows_of(slopes))


MOST_ROWS_IN_ONE_LAUNCH = 4096
"""Beyond, one block adds up the losses more slowly than a launch of its own for their total does."""
TOTAL_PART = 16_384
TOTAL_THREADS = 512


def total_launch(x: int, sums: int, length: int, dtype: str) -> Launch:
    """Launch of the sums of the `total_parts` parts of a contiguous vector; arrays are given by address."""
    return Launch(
        "total",
        total_defines(dtype),
        checked_grid(total_parts(length)),
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
    """Launch of the check of labels, given by address and dtype; `found` is the address of an int32 that is 0."""
    threads = int(dict(LABEL_DEFINES)["THREADS"])
    arguments = (np.uint64(labels[0]), _label_bytes(labels[1]), np.uint64(found), np.int64(rows), np.int64(classes))
    return Launch("bad_labels", LABEL_DEFINES, checked_grid(-(-rows // threads)), threads, arguments)


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
        checked_grid(-(-(units.rows << lane_bits) // UNIT_THREADS)),
        UNIT_THREADS,
        (*_rows_of(units), *arguments, np.int32(lane_bits), np.int64(units.rows), np.int64(_classes(units))),
    )


def _result_dtype(logits: Matrix, result: Matrix | None) -> str:
    return logits.dtype if result is None else result.dtype


def _launch(
    kernel: str,
    logits: Matrix,
    result: Matrix | None,
    capability: int,
    kind: SizeClass | None,
    arguments: tuple[Any, ...],
) -> Launch:
    """Launch of a row kernel: the logits are added before the given arguments, and the sizes after them."""
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
    """The part of a row launch that does not depend on addresses."""

    defines: tuple[tuple[str, str], ...]
    grid: int
    kind: SizeClass
    sizes: tuple[Any, ...]


@lru_cache(maxsize=256)  # a small call spends most of its time on this
def _row_shape(
    operation: str, rows: int, classes: int, dtype: str, result: str, kind: SizeClass | None, capability: int
) -> _RowShape:
    if kind is None:
        kind = size_class(operation, classes, dtype, capability)
    kind = on_capability(kind, capability)
    if not covers(kind, whole_vectors(classes, dtype)):
        raise ValueError(
            f"kind must cover {whole_vectors(classes, dtype)} vectors a row, got {kind} for {kind.capacity}."
        )
    quick = texts.takes_quick(classes, dtype, result)
    return _RowShape(
        texts.defines(kind, dtype, result, quick=quick),
        checked_grid(-(-rows // kind.rows) * kind.blocks),
        kind,
        (np.int64(rows), np.int64(classes)),
    )


def _rows_of(matrix: Matrix | None) -> tuple[Any, ...]:
    return (np.uint64(0), np.int64(0)) if matrix is None else (np.uint64(matrix.address), np.int64(matrix.stride))


def as_reals(dtype: str, numbers: tuple[float, ...]) -> tuple[Any, ...]:
    """Convert options to the working precision; a number too large for it becomes infinite, without a warning."""
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


def checked_grid(blocks: int) -> int:
    """Return a number of blocks; raise where CUDA does not launch so many."""
    if blocks > MOST_BLOCKS:
        raise NotImplementedError(f"logits must need at most {MOST_BLOCKS} blocks here, got {blocks}.")
    return blocks
