"""Losses of steps on a device, which are read together: reading one would wait for its step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from xpsoftmax._train.data import on_host
from xpsoftmax._typing import Array, Namespace


class Window:
    """Losses of updates in a row: the array that the program writes, or a copy of what it held."""

    def __init__(self, losses: Array) -> None:
        self.losses = losses


class PendingLoss(NamedTuple):
    """The loss of one update, on the device."""

    window: Window
    row: int

    def copy(self) -> Array:
        """Return the loss, 0-d, in an array of its own: it keeps its value."""
        return self.window.losses[self.row, ...].copy()


class Losses:
    """The array (updates,) that programs write their losses to, from its beginning again when it is full."""

    def __init__(self, losses: Array) -> None:
        self._losses = losses
        self._window = Window(losses)

    def of(self, row: int) -> PendingLoss:
        """Return the loss that the program writes there."""
        return PendingLoss(self._window, row)

    def begin_again(self) -> None:
        """Copy the losses, before others are written in their places."""
        self._window.losses = self._losses.copy()
        self._window = Window(self._losses)


def values_of(xp: Namespace, losses: Sequence[Any]) -> list[float]:
    """Return the values of losses: numbers, arrays (0-d) and those that are pending. It waits for the device."""
    values = [loss if type(loss) is float else math.nan for loss in losses]
    arrays = [i for i, loss in enumerate(losses) if type(loss) not in (float, PendingLoss)]
    if arrays:
        for i, value in zip(arrays, on_host(xp.stack([losses[i] for i in arrays])), strict=True):
            values[i] = value
    windows: dict[Window, list[int]] = {}
    for i, loss in enumerate(losses):
        if type(loss) is PendingLoss:
            windows.setdefault(loss.window, []).append(i)
    for window, places in windows.items():
        first, last = losses[places[0]].row, losses[places[-1]].row  # rows only grow within a window
        read = on_host(window.losses[first : last + 1])
        for i in places:
            values[i] = read[losses[i].row - first]
    return values
