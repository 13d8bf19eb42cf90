"""How threads share a row: the size classes, and which of them a row gets on a device. Plain Python.

docs/adr/0009-cuda-kernels.md says why they are what they are.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

VECTOR = 16
"""Bytes that a thread reads at once."""
CLUSTERS_FROM = 90
"""Compute capability from which blocks can form clusters."""
LITTLE_SHARED_MEMORY_FROM = 120
"""Compute capability from which a block has 99 KiB of shared memory again, not 227 KiB as from 9.0 on."""
ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class SizeClass(NamedTuple):
    """How threads share a row (kernels/cuda/rows.cuh)."""

    lanes: int  # threads of a row in each block
    vectors: int  # 16-byte vectors that each holds; 0: the row is streamed
    blocks: int = 1  # of a row: more than one form a cluster
    resident: int = 2  # thread blocks that should fit on a multiprocessor at once
    slots: int = 0  # of a ring in shared memory through which the row is loaded; 0: no ring, straight into registers
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
# Rows of float32 that are too long for one thread block are loaded through shared memory, where that was measured to be
# faster. Each of these classes replaces the class before it on devices with enough shared memory.
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
# 16-bit results take more registers than the logits: each word of them unpacks to two numbers.
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
    if (operation, dtype) == ("softmax_loss", "float32") and capability in (86, 89):  # 25 vectors spill there
        kinds = [kind for kind in kinds if kind.vectors < 25]
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


@cache
def size_class(operation: str, classes: int, dtype: str, capability: int) -> SizeClass:
    """Return the first class that covers rows of so many classes on a device of this compute capability."""
    vectors = whole_vectors(classes, dtype)
    return next(kind for kind in classes_on(operation, dtype, capability) if covers(kind, vectors))


def on_capability(kind: SizeClass, capability: int) -> SizeClass:
    """Limit the resident blocks of a class to what the device has threads for, and registers without spills.

    The classes were measured on GPUs of 9.0; only these get more than 1024 threads. Code for other GPUs needs a few
    more registers. Code for Turing, which has no instructions for pairs of bfloat16, needs the most.
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
    """Whether a class holds so many vectors of a row; vectors beyond its capacity would silently be left out."""
    return kind.vectors == 0 or kind.capacity >= vectors


class MassClass(NamedTuple):
    """How the threads of a block share a row with target masses (kernels/cuda/softmax_loss_of_masses.cu)."""

    threads: int
    held: int  # classes of each thread in registers; 0: any number, which are read again
    resident: int


_MASSES_OF_SINGLE = (
    MassClass(32, 4, 16),
    MassClass(128, 4, 8),
    MassClass(512, 4, 2),
    MassClass(512, 8, 2),
    MassClass(512, 16, 1),
    MassClass(1024, 0, 1),  # the fewer rows at once, the more of each is still cached when it is read again
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
