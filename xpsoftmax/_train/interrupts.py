"""Ctrl-C in training: the first lets the present step end, a second one is raised at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a step before it was completed. The parameters from before the step are kept."""


class _Handler:
    """Handler of Ctrl-C within `interrupts`: it remembers the first, and raises `KeyboardInterrupt` for a second."""

    def __init__(self) -> None:
        self.interrupted = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.interrupted:
            signal.default_int_handler(number, frame)
        self.interrupted = True


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed; within this context the first one is not raised.

    The caller asks between two steps: parameters that are half updated could not be resumed from. The handler is
    replaced only in the main thread, and only if it is Python's default one.
    """
    handler = _Handler()
    replaced = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if replaced:
        signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: handler.interrupted
    finally:
        if replaced:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within `interrupts`, let Ctrl-C raise `Interrupted` at once: for a wait that changes nothing and may never end.

    A terminal sends Ctrl-C to all processes of the program. It ends workers that were started here, and their tasks.
    """
    outer = signal.getsignal(signal.SIGINT)
    if not isinstance(outer, _Handler) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: Any) -> None:
        outer(number, frame)
        raise Interrupted

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, outer)
