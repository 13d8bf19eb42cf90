"""A context in which a thread computes without helping threads, in its matrix products too."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from xpsoftmax.kernels.numpy.threads import importing, new_pool, without_helpers

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


@contextmanager
def single_threaded(*, blas: bool) -> Iterator[None]:
    """Compute in this thread alone: the caller already has a thread for every core.

    With `blas`, matrix products also use one thread, if threadpoolctl is installed. That setting holds for the whole
    process.
    """
    with without_helpers(), _one_blas_thread if blas else nullcontext():
        yield


class _OneBlasThread:
    """Limit BLAS to one thread while at least one thread is inside.

    The first thread to enter sets the limit, and the last to leave lifts it: any other thread would lift it too soon.
    One thread of a pool of its own does both, because threadpoolctl lets only the thread that has set a limit change
    it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.limit: Any = None
        self.controller: Any = None
        self.pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1 and self.available():
                self.limit = self.in_pool(lambda: self.controller.limit(limits=1, user_api="blas").__enter__())

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0 and self.limit is not None:
                limit, self.limit = self.limit, None
                self.in_pool(lambda: limit.__exit__(None, None, None))

    def in_pool(self, call: Callable[[], Any]) -> Any:
        with suppress(RuntimeError):  # no thread can be started while the interpreter shuts down
            self.pool = self.pool or new_pool(1, "xpsoftmax-blas")
            return self.pool.submit(call).result()
        return None

    def available(self) -> bool:
        if self.controller is None:
            try:
                with importing():
                    from threadpoolctl import ThreadpoolController
            except (ImportError, RuntimeError):
                return False
            self.controller = ThreadpoolController()  # kept: finding the libraries takes a while
        return True


_one_blas_thread = _OneBlasThread()


def _after_fork() -> None:
    global _one_blas_thread
    _one_blas_thread = _OneBlasThread()  # threads and held locks do not survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
