"""The threads of the NumPy kernels: one pool, made when first needed, and how many may run."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np

from xpsoftmax import _validate as check

Item = TypeVar("Item")


class _State:
    """All that a forked child must make anew: threads and held locks do not survive a fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0  # threads that compute now, callers included
        self.pool: Any = None


_state = _State()
_limits: list[int] = []  # of the `threads` blocks that are open now


def _after_fork() -> None:
    global _state
    _state = _State()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def threads(n: int, /) -> Iterator[None]:
    """Let the NumPy kernels use at most `n` threads inside a ``with`` block.

    Parameters
    ----------
    n : int
        At least 1: that of the caller. Without a limit they use as many as the process may use cores, where it pays.

    Returns
    -------
    context manager

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If it is less than 1.

    Notes
    -----
    The limit holds for the whole process, also for calls from other threads, so that it can be put around a thread
    pool or a Dask computation. Of several blocks that are open at once the lowest limit counts. Results do not depend
    on it, not in a single bit.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> with xs.threads(1):
    ...     p = xs.softmax(np.zeros((4096, 1000)))
    """
    n = check.as_integer("n", n)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    with _state.lock:
        _limits.append(n)
    try:
        yield
    finally:
        with _state.lock:
            _limits.remove(n)


def allowed() -> int:
    """How many threads may run: the cores of this process, or less inside `threads`."""
    return min([_cores(), *_limits])


def _cores() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13; it also knows -X cpu_count
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(worker: Callable[[Iterator[Item]], None], items: Iterable[Item], most: int) -> None:
    """Call `worker` with an iterator over the items, here and in up to `most` - 1 helping threads at once.

    Every item goes to one of them, the next to who asks first. All have ended when this returns or raises; what a
    helper raises is raised here. The caller never waits for a helper to start: where none is free it does all itself.
    """
    queue = deque(items)
    state = _state
    with state.lock:
        helpers = max(0, min(most, len(queue), allowed() - state.running) - 1)
        state.running += 1 + helpers
    futures: list[Any] = []
    try:
        if helpers > 0:
            _start(state, futures, helpers, lambda: _help(worker, queue))
        worker(_rest_of(queue))
    finally:
        queue.clear()  # after an error here nobody goes on
        for future in futures:
            future.cancel()
        errors = [future.exception() for future in futures if not future.cancelled()]
        with state.lock:
            state.running -= 1 + helpers
    for error in errors:
        if error is not None:
            raise error


def _start(state: _State, futures: list[Any], helpers: int, task: Callable[[], None]) -> None:
    with state.lock:
        if state.pool is None:
            from concurrent.futures import ThreadPoolExecutor  # not before it is needed: its import takes a while

            state.pool = ThreadPoolExecutor(os.cpu_count(), "xpsoftmax")
    # While the interpreter shuts down, or when no thread can be started, the caller does it all.
    with suppress(RuntimeError):
        while len(futures) < helpers:
            futures.append(state.pool.submit(task))


def _help(worker: Callable[[Iterator[Item]], None], queue: deque[Item]) -> None:
    with np.errstate(all="ignore"):  # threads do not inherit the caller's
        try:
            worker(_rest_of(queue))
        except BaseException:
            queue.clear()
            raise


def _rest_of(queue: deque[Item]) -> Iterator[Item]:
    while True:
        try:
            yield queue.popleft()
        except IndexError:
            return
