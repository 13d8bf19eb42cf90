"""Small arrays that are 0 between launches: to make a new one would be a launch."""

from __future__ import annotations

import threading
from functools import cache

import cupy

from xpsoftmax._typing import Array

PER_THREAD = 2
"""The handle that stands for another stream in each thread of the host (cudaStreamPerThread)."""


def counter_on(device: int) -> Array | None:
    """Return a counter that is 0 and that no launch of another stream uses; None during a capture.

    A captured launch may be replayed at the same time as other launches, and they must not share a counter.
    """
    stream = cupy.cuda.get_current_stream().ptr
    if cupy.cuda.runtime.streamIsCapturing(stream):
        return None
    return _counter_of(device, stream, threading.get_ident() if stream == PER_THREAD else 0)


@cache
def _counter_of(device: int, stream: int, thread: int) -> Array:  # noqa: ARG001 - one for each
    """Return the counter of a stream. It is never freed, because launches may still use its memory."""
    return cupy.zeros((), "u4")


def flag_on(device: int) -> Array:
    """Return a flag that is 0, for the current stream and this thread; `is_set` reads it and sets it back.

    If a call is interrupted before it has read the flag, the next call may say that its values are bad. It is not
    believed: the caller looks for the first bad value, and goes on where there is none.
    """
    return _flag_of(device, cupy.cuda.get_current_stream().ptr, threading.get_ident())


@cache
def _flag_of(device: int, stream: int, thread: int) -> Array:  # noqa: ARG001 - one for each
    return cupy.zeros((), "i4")


def is_set(flag: Array) -> bool:
    """Whether a kernel has set the flag, which is 0 afterwards; waits for the answer."""
    found = bool(flag.item())
    if found:
        flag.fill(0)
    return found
