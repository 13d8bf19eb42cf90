"""What the arguments beside the logits must fit."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from xpsoftmax._arguments.shapes import unknown
from xpsoftmax._typing import Device, DType, Namespace


class Frame(NamedTuple):
    """What the arguments beside the logits must fit: where the logits live and what they look like."""

    xp: Namespace
    device: Device
    shape: tuple[Any, ...]  # of the logits; a size is nan where a dask array does not know it
    axis: int  # of the classes, not negative
    working: DType  # float32 or float64
    owner: str = "logits"  # the argument that brought them
    blocks: tuple[int, ...] = ()  # of a dask array: how many along each axis
    axes: tuple[int, ...] = ()  # of the classes where they have several, in order; `axis` is the last of them

    @property
    def lengthless(self) -> bool:
        """Whether the rows are blocks of a dask array that does not know how many each block has."""
        return bool(self.blocks) and any(unknown(size) for size in self.shape)

    @property
    def classes(self) -> int:
        """C."""
        return math.prod(int(self.shape[axis]) for axis in self.axes or (self.axis,))

    @property
    def rows_shape(self) -> tuple[Any, ...]:
        """Shape of the logits without the class axes: one entry a row."""
        if self.axes:
            return tuple(self.shape[axis] for axis in self.row_axes)
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]

    @property
    def row_axes(self) -> tuple[int, ...]:
        """The axes that are not of the classes."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in (self.axes or (self.axis,)))
