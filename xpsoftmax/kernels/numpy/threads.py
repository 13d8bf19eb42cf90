"""The threads of the NumPy kernels: one pool, made when first needed, and how many may run."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Item = TypeVar("Item")


class _State:
    """All that a forked child must make anew: threads and held locks do not survive a fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0  # threads that compute now, callers included
        self.pool: ThreadPoolExecutor | None = None


_state = _State()
_importing = False
"""Whether what makes threads is being imported. A child forked meanwhile would wait for ever for the import to end."""
_helpless = False
"""Whether this process is such a child. It does all itself."""
_here = threading.local()  # whether this thread is to be `alone`
_limits: list[tuple[int, int]] = []  # of the `threads` blocks that are open now: thread, limit


def _after_fork() -> None:
    global _state, _one_blas_thread, _helpless
    _state, _one_blas_thread, _helpless = _State(), _OneBlasThread(), _helpless or _importing
    here = threading.get_ident()
    _limits[:] = [limit for limit in _limits if limit[0] == here]  # the child has no other thread


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def _import_under_way() -> Iterator[None]:
    global _importing
    if _helpless:
        raise RuntimeError("this process was forked while its parent imported what makes threads")
    _importing = True
    try:
        yield
    finally:
        _importing = False


def _pool(threads: int | None, name: str) -> ThreadPoolExecutor:
    with _import_under_way():
        from concurrent.futures import ThreadPoolExecutor  # not before it is needed: its import takes a while

    return ThreadPoolExecutor(threads, name)


@contextmanager
def limited(n: int) -> Iterator[None]:
    """Surroundings in which at most `n` threads run, in the whole process."""
    limit = (threading.get_ident(), n)
    with _state.lock:
        _limits.append(limit)
    try:
        yield
    finally:
        with _state.lock:
            _limits.remove(limit)


@contextmanager
def alone(*, blas: bool) -> Iterator[None]:
    """Give what this thread computes no helping threads: somebody else has a thread for every core.

    With `blas` that goes for the products, too, if threadpoolctl is there; this is a setting of the whole process.
    """
    before, _here.alone = getattr(_here, "alone", False), True
    try:
        with _one_blas_thread if blas else nullcontext():
            yield
    finally:
        _here.alone = before


class _OneBlasThread:
    """The first to enter sets the limit, the last to leave lifts it: others between them would lift it too soon.

    Both is done by one thread that lives on: threadpoolctl lets nobody else touch what a thread has set.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.limit: Any = None
        self.controller: Any = None
        self.keeper: ThreadPoolExecutor | None = None

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1 and self.available():
                self.limit = self.kept(lambda: self.controller.limit(limits=1, user_api="blas").__enter__())

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0 and self.limit is not None:
                limit, self.limit = self.limit, None
                self.kept(lambda: limit.__exit__(None, None, None))

    def kept(self, call: Callable[[], Any]) -> Any:
        with suppress(RuntimeError):  # while the interpreter shuts down no thread can be started
            self.keeper = self.keeper or _pool(1, "xpsoftmax-blas")
            return self.keeper.submit(call).result()
        return None

    def available(self) -> bool:
        if self.controller is None:
            try:
                with _import_under_way():
                    from threadpoolctl import ThreadpoolController
            except (ImportError, RuntimeError):
                return False
            self.controller = ThreadpoolController()  # finding the libraries takes a while: once
        return True


_one_blas_thread = _OneBlasThread()


def allowed() -> int:
    """How many threads may run: the cores of this process, or less inside `threads`."""
    return min([_cores(), *(n for _, n in _limits)])


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
    job, state = _Job(worker, deque(items)), _state
    most = 1 if getattr(_here, "alone", False) else most
    with state.lock:
        helpers = max(0, min(most, len(job.queue), allowed() - state.running) - 1)
        state.running += 1 + helpers
    try:
        if helpers > 0:
            _call_for_help(state, job, helpers)
        worker(job.rest())
    finally:
        try:
            job.end()
        finally:
            with state.lock:
                state.running -= 1 + helpers
    if job.error is not None:
        raise job.error


def _call_for_help(state: _State, job: _Job, helpers: int) -> None:
    # While the interpreter shuts down, when no thread can be started, or in a helpless child the caller does it all.
    with suppress(RuntimeError):
        if state.pool is None:
            with state.lock:
                state.pool = state.pool or _pool(os.cpu_count(), "xpsoftmax")
        for _ in range(helpers):
            state.pool.submit(job.help)


class _Job:
    """Items for a worker, and who works on them.

    It counts helpers itself: the pool may keep a task that it could not start a thread for, and start it much later.
    """

    def __init__(self, worker: Callable[[Iterator[Any]], None], queue: deque[Any]) -> None:
        self.worker = worker
        self.queue = queue
        self.error: BaseException | None = None
        self.changed = threading.Condition()
        self.open = True
        self.helping = 0

    def rest(self) -> Iterator[Any]:
        while True:
            try:
                yield self.queue.popleft()
            except IndexError:
                return

    def help(self) -> None:
        with self.changed:
            if not self.open:
                return
            self.helping += 1
        try:
            with np.errstate(all="ignore"):  # threads do not inherit the caller's
                self.worker(self.rest())
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller
            self.queue.clear()
            self.error = error
        finally:
            with self.changed:
                self.helping -= 1
                self.changed.notify_all()

    def end(self) -> None:
        """Let nobody begin, and wait for those who have: they write into the caller's arrays."""
        interrupt: BaseException | None = None
        self.queue.clear()
        while True:
            try:
                with self.changed:
                    self.open = False
                    self.changed.wait_for(lambda: self.helping == 0)
                break
            except BaseException as error:  # noqa: BLE001 - raised when they have ended
                interrupt = error
        if interrupt is not None:
            raise interrupt
