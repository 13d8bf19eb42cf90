"""PyTorch tensors on the GPU through the kernels: `xpsoftmax.torch.cross_entropy` beside others; for gpu_check.py.

    python scripts/_gpu_torch.py PATH SECONDS

First what is right: loss and gradient in float32, bfloat16 and float16 equal those in float64, on the default stream
and, behind work that is still going on, on another one; and nothing waits for the GPU, which PyTorch's debug mode would
show as an error. Then what is fast: forward and backward beside `F.cross_entropy` eager and compiled, Liger and QuACK,
as CUDA graphs of many calls on different inputs; and the host's time of a small call. Writes JSON.
"""

from __future__ import annotations

import functools
import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

from _gpu_counts import events_of
from _gpu_process import jobs_written, write
from _gpu_timing import give_back, milliseconds
from _report import described

DEVICE = "cuda"
"""Where PyTorch computes."""
ALLOWED = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
"""Largest difference over largest entry: what tells a wrong formula from rounding. The tests hold the real bounds."""
CACHE = 64 * 2**20
"""Bytes of a second-level cache; inputs are as many copies as fill it several times."""
WORK = 4096
"""Rows of the matrices whose products keep a stream at work."""
MOST = 30.0
"""Seconds of a case."""


class Case(NamedTuple):
    """Rows, classes and the dtype of the logits."""

    rows: int
    classes: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.rows}x{self.classes} {self.dtype}"


CASES = (
    Case(64, 10, "float32"),
    *(Case(8192, 32000, dtype) for dtype in ("float32", "bfloat16", "float16")),
    Case(8192, 128256, "bfloat16"),
)
COMPILED_AT = CASES[:3]
"""The cases for which what PyTorch compiles is timed: that takes seconds."""


class Tensors:
    """Logits in as many copies as it takes to fill the cache several times, and labels."""

    def __init__(self, case: Case) -> None:
        self.torch = torch = importlib.import_module("torch")
        torch.manual_seed(0)
        self.case, dtype = case, getattr(torch, case.dtype)
        first = torch.randn(case.rows, case.classes, device=DEVICE).to(dtype)
        copies = min(16, 1 + 3 * CACHE // (first.numel() * first.element_size()))
        self.logits = [first, *(first.clone() for _ in range(copies - 1))]
        self.labels = torch.randint(case.classes, (case.rows,), device=DEVICE)

    def exact(self, rows: int = 64) -> tuple[Any, Any]:
        """The losses of the first rows, and the gradient of their mean over all rows, in float64."""
        torch = self.torch
        z, y = self.logits[0][:rows].detach().double(), self.labels[:rows]
        at = torch.arange(len(y), device=z.device), y
        log_p = torch.log_softmax(z, 1)
        grad = torch.exp(log_p)
        grad[at] -= 1.0
        return -log_p[at], grad / self.case.rows


Call = Callable[[int], Any]
"""With the number of the input to work on; returns the gradient."""


def autograd_call(tensors: Tensors, function: Callable[[Any, Any], Any]) -> Call:
    """Forward and backward of the mean loss."""
    logits = [z.detach().requires_grad_() for z in tensors.logits]

    def call(i: int) -> Any:
        z = logits[i]
        z.grad = None
        function(z, tensors.labels).backward()
        return z.grad

    return call


def ours(tensors: Tensors, *, compiled: bool = False) -> Call:
    """Call the package's, which validates nothing on a GPU."""
    function = importlib.import_module("xpsoftmax.torch").cross_entropy
    return autograd_call(tensors, made_compiled(tensors.torch, function) if compiled else function)


def ours_in_place(tensors: Tensors) -> Call:
    """The package's with the gradient in the place of logits that are no leaves."""
    function = importlib.import_module("xpsoftmax.torch").cross_entropy
    leaves = [z.detach().requires_grad_() for z in tensors.logits]

    def call(i: int) -> Any:
        leaf = leaves[i]
        leaf.grad = None
        function(leaf * 1.0, tensors.labels, inplace=True).backward()
        return leaf.grad

    return call


def theirs(tensors: Tensors, *, compiled: bool = False) -> Call:
    """Call PyTorch's."""
    function = tensors.torch.nn.functional.cross_entropy
    return autograd_call(tensors, made_compiled(tensors.torch, function) if compiled else function)


def made_compiled(torch: Any, function: Any) -> Any:
    """Compiled for the shape."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def liger(tensors: Tensors) -> Call:
    """Call Liger's, which writes the gradient over the logits: the copy that it needs for that is not timed."""
    function = importlib.import_module("liger_kernel.transformers.functional").liger_cross_entropy
    return autograd_call(tensors, function)


def quack(tensors: Tensors) -> Call:
    """Call QuACK's with autograd."""
    function = importlib.import_module("quack.cross_entropy").cross_entropy
    return autograd_call(tensors, functools.partial(function, reduction="mean"))


OURS = "xpsoftmax"
COMPETITORS: dict[str, Callable[[Tensors], Call]] = {
    OURS: ours,
    "xpsoftmax, in place of a product": ours_in_place,
    "torch": theirs,
    "QuACK": quack,
    "torch.compile": functools.partial(theirs, compiled=True),
    "xpsoftmax compiled": functools.partial(ours, compiled=True),
    "Liger": liger,  # the last: it writes over the logits
}


def compile_case(case: Case) -> None:
    """Compile what the competitors of a case need (_gpu_compile.py)."""
    tensors = Tensors(case)
    compiled = ("torch.compile", "xpsoftmax compiled") if case in COMPILED_AT else ()
    for name in (*compiled, "QuACK", "Liger"):
        with suppress(Exception):
            COMPETITORS[name](tensors)(0)


# --- what is right ----------------------------------------------------------------------------------------------------


def checks(case: Case) -> dict[str, Callable[[], float]]:
    """Each returns by how much it is off."""
    tensors = Tensors(case)
    torch, z, y = tensors.torch, tensors.logits[0], tensors.labels
    losses, grad = tensors.exact()
    function = importlib.import_module("xpsoftmax.torch").cross_entropy

    def of(z: Any, **how: Any) -> float:
        leaf = z.detach().requires_grad_()
        function(leaf, y, **how).backward()
        return difference(leaf.grad[: len(grad)].double(), grad)

    def each_row() -> float:
        return difference(function(z, y, reduction="none")[: len(losses)].double(), losses)

    def without_waiting() -> float:
        with no_waits(torch):
            leaf = z.detach().requires_grad_()
            function(leaf, y).backward()
            function(z, y)
        return difference(leaf.grad[: len(grad)].double(), grad)

    def waits() -> float:
        """CuPy's waits are seen by the profiler alone."""
        leaf = z.detach().requires_grad_()
        return float(events_of(lambda: function(leaf, y).backward()).get("waits", 0))

    def on_another_stream() -> float:
        """The logits are still being written when the loss is called; the other stream has nothing to do."""
        work = torch.randn(WORK, WORK, device=DEVICE)
        late, stream = torch.zeros_like(z), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(20):
                work = work @ work / WORK**0.5
            late.copy_(z)
            leaf = late.detach().requires_grad_()
            function(leaf, y).backward()
            found = leaf.grad[: len(grad)].double().clone()
        stream.synchronize()
        return difference(found, grad)

    def with_probabilities() -> float:
        leaf = z[:64].detach().requires_grad_()
        q = torch.softmax(z[:64].float().flip(1), 1).to(z.dtype)  # others than those of the logits
        function(leaf, q).backward()
        p, q = torch.softmax(leaf.detach().double(), 1), q.double()
        return difference(leaf.grad.double(), (p * q.sum(1, keepdim=True) - q) / len(q))

    return {
        "gradient": lambda: of(z),
        "each row": each_row,
        "probabilities": with_probabilities,
        "no wait": without_waiting,
        "waits": waits,
        "another stream": on_another_stream,
    }


@contextmanager
def no_waits(torch: Any) -> Iterator[None]:
    """Context in which a wait for the GPU by PyTorch is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def difference(found: Any, exact: Any) -> float:
    """Largest difference over largest entry; infinite where it is not a number."""
    worst = float((found - exact).abs().max() / exact.abs().max())
    return worst if worst == worst else float("inf")


# --- what is fast -----------------------------------------------------------------------------------------------------


def measured(case: Case) -> Iterator[dict[str, Any]]:
    """Check the package, then verify and time each competitor."""
    warnings.simplefilter("ignore")  # compilation has much to say
    for name, check in checks(case).items():
        result: dict[str, Any] = {"check": name}
        try:
            result["off_by"] = check()
            result["wrong"] = not result["off_by"] <= ALLOWED[case.dtype]
        except Exception as error:  # noqa: BLE001 - one that fails must not end the others
            result |= {"wrong": True, "failed": described(error)}
        yield result
    give_back()
    tensors = Tensors(case)
    _, grad = tensors.exact()
    for name, make in COMPETITORS.items():
        if "compile" in name and case not in COMPILED_AT:
            continue
        result = {"name": name}
        try:
            call = make(tensors)
            result["off_by"] = difference(call(0)[: len(grad)].double(), grad)
            if not result["off_by"] <= ALLOWED[case.dtype]:
                raise ValueError(f"is off by {result['off_by']:.2g}: not timed")
            times, result["by"] = milliseconds(call, len(tensors.logits), of_torch=True)
            result["ms"] = statistics.quantiles(times, n=4)
            result["host_microseconds"] = host_microseconds(tensors.torch, call)
        except Exception as error:  # noqa: BLE001 - the same
            result["failed"] = described(error)
        call = None
        yield result
        give_back()


def host_microseconds(torch: Any, call: Call) -> float:
    """Microseconds of the host in a call, when the GPU has nothing else to do."""
    times = []
    for _ in range(60):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call(0)
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times[20:])


def problems_of(case: str, results: list[dict[str, Any]]) -> Iterator[str]:
    """What of the package is wrong."""
    for result in results:
        if result.get("wrong"):
            yield f"{case}: {result['check']}: {result.get('failed') or 'off by {off_by:.2g}'.format(**result)}"
        elif result.get("name") == OURS and "failed" in result:
            yield f"{case}: {OURS}: {result['failed']}"


def main(argv: list[str]) -> int:
    """Check and measure; 1 if the package is wrong somewhere."""
    path, seconds = Path(argv[0]), float(argv[1])
    content: dict[str, Any] = {"tensors": [], "problems": []}
    jobs = {str(case): (measured, case) for case in CASES}
    for case, found in jobs_written(path, content, jobs, seconds, MOST):
        content["tensors"].append({"case": case, "results": found})
        content["problems"] += problems_of(case, found)
        print(case, *found, sep="\n", flush=True)
    write(path, content)
    return 1 if content["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
