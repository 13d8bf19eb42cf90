"""Ctrl-C within a training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a step, or a function that calls back, before it was completed: what was before it is kept."""


class _Noting:
    """What handles Ctrl-C within `interrupts`: the first is noted, a second one raised."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Let a step be ended before Ctrl-C stops the training; a second one is raised at once.

    Only where the default handler would raise it, which Python calls between any two lines of the main thread.
    """
    noting = _Noting()
    usual = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if usual:
        signal.signal(signal.SIGINT, noting)
    try:
        yield lambda: noting.asked
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def given_up() -> Iterator[None]:
    """Within `interrupts`, let Ctrl-C raise `Interrupted` at once: for a wait that changes nothing, and may not end.

    A terminal sends it to all processes of the program: workers that were started here end, and their tasks with them.
    """
    noting = signal.getsignal(signal.SIGINT)
    if not isinstance(noting, _Noting) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: Any) -> None:
        noting(number, frame)
        raise Interrupted

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, noting)
