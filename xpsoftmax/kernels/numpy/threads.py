"""The threads of the NumPy kernels: how work is shared by them, and how many may run.

One pool of threads is made when it is first needed. A caller shares a list of items: whichever thread is free takes the
next item. The caller itself works, too, and never waits for a helping thread to start, so nothing can deadlock.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Item = TypeVar("Item")


class _State:
    """What a forked child must make anew: threads and held locks do not survive a fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0  # threads that compute now, callers included
        self.pool: ThreadPoolExecutor | None = None


_state = _State()
_importing = False
"""Whether a module that starts threads is being imported. A child forked meanwhile would wait forever for its lock."""
_forked_while_importing = False
"""Whether this process is such a child. It uses no helping threads."""
_this_thread = threading.local()  # its attribute `alone`: whether the thread must not use helping threads
_limits: list[tuple[int, int]] = []  # of the `threads` contexts that are open now: thread, limit


def _after_fork() -> None:
    global _state, _forked_while_importing
    _state, _forked_while_importing = _State(), _forked_while_importing or _importing
    this_thread = threading.get_ident()
    _limits[:] = [limit for limit in _limits if limit[0] == this_thread]  # the child has no other thread


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# --- how many threads -------------------------------------------------------------------------------------------------


@contextmanager
def limited(n: int) -> Iterator[None]:
    """Let at most `n` threads run, in the whole process."""
    limit = (threading.get_ident(), n)
    with _state.lock:
        _limits.append(limit)
    try:
        yield
    finally:
        with _state.lock:
            _limits.remove(limit)


@contextmanager
def without_helpers() -> Iterator[None]:
    """Let this thread compute without helping threads."""
    before, _this_thread.alone = getattr(_this_thread, "alone", False), True
    try:
        yield
    finally:
        _this_thread.alone = before


def allowed() -> int:
    """How many threads may run: as many as this process has cores, or fewer inside `threads`."""
    return min([_cores(), *(n for _, n in _limits)])


def _cores() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13; it also knows -X cpu_count
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- the pool ---------------------------------------------------------------------------------------------------------


@contextmanager
def importing() -> Iterator[None]:
    """Surround the import of a module that starts threads; RuntimeError where it could wait forever."""
    global _importing
    if _forked_while_importing:
        raise RuntimeError("this process was forked while its parent imported what makes threads")
    _importing = True
    try:
        yield
    finally:
        _importing = False


def new_pool(threads: int | None, name: str) -> ThreadPoolExecutor:
    """Make a pool of threads."""
    with importing():
        from concurrent.futures import ThreadPoolExecutor  # not at import time: this import takes a while

    return ThreadPoolExecutor(threads, name)


# --- sharing work -----------------------------------------------------------------------------------------------------


def share(worker: Callable[[Iterator[Item]], None], items: Iterable[Item], most: int) -> None:
    """Call `worker` with an iterator over the items, in this thread and in up to `most` - 1 helping threads at once.

    Whichever thread is free takes the next item. All threads have ended when this returns or raises; an error in a
    helping thread is raised here.
    """
    job, state = _Job(worker, deque(items)), _state
    most = 1 if getattr(_this_thread, "alone", False) else most
    with state.lock:
        helpers = max(0, min(most, len(job.queue), allowed() - state.running) - 1)
        state.running += 1 + helpers
    try:
        if helpers > 0:
            _start_helpers(state, job, helpers)
        worker(job.remaining_items())
    finally:
        try:
            job.end()
        finally:
            with state.lock:
                state.running -= 1 + helpers
    if job.error is not None:
        raise job.error


def _start_helpers(state: _State, job: _Job, helpers: int) -> None:
    # RuntimeError: no thread can be started, as while the interpreter shuts down. The caller then does all the work.
    with suppress(RuntimeError):
        if state.pool is None:
            with state.lock:
                state.pool = state.pool or new_pool(os.cpu_count(), "xpsoftmax")
        for _ in range(helpers):
            state.pool.submit(job.help)


class _Job:
    """Items for a worker, and how many helping threads work on them.

    The job counts its helpers itself: a pool may keep a task for which it could not start a thread, and start it much
    later.
    """

    def __init__(self, worker: Callable[[Iterator[Any]], None], queue: deque[Any]) -> None:
        self.worker = worker
        self.queue = queue
        self.error: BaseException | None = None
        self.changed = threading.Condition()
        self.open = True
        self.helping = 0

    def remaining_items(self) -> Iterator[Any]:
        """Take items from the queue, which other threads do at the same time, until it is empty."""
        while True:
            try:
                yield self.queue.popleft()
            except IndexError:
                return

    def help(self) -> None:
        """Work on the items in a helping thread, unless the job has ended."""
        with self.changed:
            if not self.open:
                return
            self.helping += 1
        try:
            with np.errstate(all="ignore"):  # threads do not inherit the errstate of the caller
                self.worker(self.remaining_items())
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller
            self.queue.clear()
            self.error = error
        finally:
            with self.changed:
                self.helping -= 1
                self.changed.notify_all()

    def end(self) -> None:
        """Let no more helpers begin, and wait for those at work: they write into the caller's arrays.

        An interrupt while waiting is raised when they have ended.
        """
        interrupt: BaseException | None = None
        self.queue.clear()
        while True:
            try:
                with self.changed:
                    self.open = False
                    self.changed.wait_for(lambda: self.helping == 0)
                break
            except BaseException as error:  # noqa: BLE001 - raised below
                interrupt = error
        if interrupt is not None:
            raise interrupt
