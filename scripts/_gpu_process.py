"""Run each job of a part of gpu_check.py in a process of its own: after a crash or a hang the next job goes on.

The processes are forked from one that has imported the libraries and has not touched the GPU, so that a job does not
wait for imports.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from _report import described, finite

PRELOADED = ("numpy", "cupy", "cupyx", "torch", "xpsoftmax", "xpsoftmax.sklearn", "sklearn.neural_network")
"""Imported once; those that are not installed are left out."""
LEAST_SECONDS = 5.0
"""A job with less time left is not started."""


def results_of(function: Callable[..., Iterable[Any]], *arguments: Any, seconds: float) -> tuple[list[Any], str | None]:
    """Return what a generator yields in a process of its own, and why there is no more: None if it has ended.

    What was yielded before an error, a crash or the end of the seconds is kept.
    """
    if seconds < LEAST_SECONDS:
        return [], "no time was left"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    found: list[Any] = []
    deadline = time.monotonic() + seconds
    try:
        while ours.poll(max(0.0, deadline - time.monotonic())):
            kind, value = ours.recv()
            if kind != "result":
                return found, value
            found.append(value)
        return found, f"not finished in {seconds:.0f} s"
    except EOFError:
        process.join(LEAST_SECONDS)
        return found, f"the process ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _send(pipe: Any, function: Callable[..., Iterable[Any]], arguments: tuple[Any, ...]) -> None:
    end = None
    try:
        for value in function(*arguments):
            pipe.send(("result", value))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other process is told
        end = described(error)
    pipe.send(("end", end))


def jobs_written(
    path: Path, content: dict[str, Any], jobs: dict[str, tuple[Any, ...]], seconds: float, most: float
) -> Iterator[tuple[str, list[Any]]]:
    """Run each job (a generator function and its arguments) and yield what it found.

    A job has `most` seconds, and all together `seconds`. The content is written after each job, so that it survives
    whatever comes later. What goes wrong is added to content["problems"].
    """
    deadline = time.monotonic() + seconds
    for name, (function, *arguments) in jobs.items():
        left = min(most, deadline - time.monotonic())
        found, problem = results_of(function, *arguments, seconds=left)
        if problem is not None:
            content["problems"].append(f"{name}: {problem}")
        yield name, found
        write(path, content)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write findings as JSON, in which numbers that are not finite are null."""
    path.write_text(json.dumps(finite(content), indent=1) + "\n", encoding="utf-8")
