"""What scripts ask of torch.cuda, where there is no GPU: streams and graphs that write down what is done, no memory."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import Any


class Stream(nullcontext):
    """A stream: what is asked of it is written down."""

    cuda_stream = 0

    def __init__(self, done: list[str], name: str) -> None:
        super().__init__()
        self.done, self.name = done, name

    def wait_stream(self, other: Stream) -> None:
        self.done.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.done.append(f"wait for {self.name}")


def install(monkeypatch: Any, torch: Any) -> list[str]:
    """Replace parts of torch.cuda; return the list of what is done with them."""
    done: list[str] = []

    class Graph:
        def replay(self) -> None:
            done.append("replay")

    @contextmanager
    def capture(graph: Graph, **how: Any) -> Any:
        done.append("begin")
        yield
        done.append("end")

    parts = {
        "Stream": lambda: Stream(done, "other"),
        "current_stream": lambda: Stream(done, "current"),
        "stream": lambda stream: stream,
        "CUDAGraph": Graph,
        "graph": capture,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "set_sync_debug_mode": lambda mode: done.append(f"mode {mode}"),
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 2**20,
        "max_memory_allocated": lambda: 4 * 2**20,
    }
    for name, part in parts.items():
        monkeypatch.setattr(torch.cuda, name, part)
    return done
