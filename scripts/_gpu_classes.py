"""Loss and gradients of a linear layer with many classes, beside Liger and PyTorch; for gpu_check.py.

    python scripts/_gpu_classes.py PATH SECONDS

Each competitor runs in a process of its own: its loss and gradients are compared with those in float64, computed on the
GPU in chunks, and then time and peak memory are measured, beyond inputs and parameters. Writes JSON.
"""

from __future__ import annotations

import importlib
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

from _gpu_process import jobs_written, write
from _gpu_timing import give_back, seconds_of, wait

import xpsoftmax as xs

DEVICE = "cuda"
"""Where PyTorch computes."""
MEMORY = 256 * 2**20
"""Bytes that the package may take for chunks."""
ALLOWED = {"float32": 1e-3, "bfloat16": 2e-2}
"""Largest difference of a gradient, in its norm."""
ROUNDS = 5
MOST = 20.0
"""Seconds of a competitor."""


class Case(NamedTuple):
    """Rows, features, classes, and the dtype of everything."""

    rows: int
    features: int
    classes: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.rows}x{self.features}x{self.classes} {self.dtype}"


CASES = (
    Case(4096, 512, 32000, "float32"),
    Case(8192, 4096, 128256, "bfloat16"),
    Case(4096, 512, 32000, "bfloat16"),
)


class Layer:
    """Inputs, labels, weight and bias as tensors on the GPU."""

    def __init__(self, case: Case) -> None:
        self.torch = torch = importlib.import_module("torch")
        torch.manual_seed(0)
        self.case, dtype = case, getattr(torch, case.dtype)
        self.X = torch.randn(case.rows, case.features, device=DEVICE, dtype=dtype).requires_grad_()
        self.weight = torch.randn(case.classes, case.features, device=DEVICE, dtype=dtype) / case.features**0.5
        self.bias = torch.zeros(case.classes, device=DEVICE, dtype=dtype)
        self.y = torch.randint(case.classes, (case.rows,), device=DEVICE)
        self.weight.requires_grad_()
        self.bias.requires_grad_()

    @property
    def leaves(self) -> tuple[Any, Any, Any]:
        """What has gradients."""
        return self.X, self.weight, self.bias

    @cached_property
    def exact(self) -> list[Any]:
        """Loss and gradients of inputs, weight and bias in float64, by chunks of rows."""
        torch, n = self.torch, self.case.rows
        X, weight, bias = (x.detach().double() for x in self.leaves)
        loss, dX, dweight, dbias = 0.0, torch.empty_like(X), torch.zeros_like(weight), torch.zeros_like(bias)
        for rows in torch.arange(n, device=X.device).split(1024):
            z = X[rows] @ weight.T + bias
            delta = torch.softmax(z, 1)
            hot = torch.arange(len(rows), device=X.device), self.y[rows]
            loss += (torch.logsumexp(z, 1) - z[hot]).sum() / n
            delta[hot] -= 1.0
            delta /= n
            dX[rows], dbias = delta @ weight, dbias + delta.sum(0)
            dweight += delta.T @ X[rows]
        return [loss, dX, dweight, dbias]

    def off_by(self, found: list[Any]) -> float:
        """Largest difference of loss or gradients in its norm; gradients that a competitor does not make are None."""
        errors = [
            float((a.double() - b).norm() / b.norm()) for a, b in zip(found, self.exact, strict=True) if a is not None
        ]
        return max(errors) if all(error == error for error in errors) else float("inf")


Step = Callable[[], list[Any]]
"""Returns the loss and the gradients of inputs, weight and bias."""


def by_autograd(layer: Layer, loss_of: Callable[[], Any]) -> Step:
    """Forward and backward through autograd."""

    def step() -> list[Any]:
        for leaf in layer.leaves:
            leaf.grad = None
        loss = loss_of()
        loss.backward()
        return [loss.detach(), *(leaf.grad for leaf in layer.leaves)]

    return step


def ours(layer: Layer) -> Step:
    """Call the package's function for tensors."""
    function = importlib.import_module("xpsoftmax.torch").linear_cross_entropy
    bias = {"linear_bias": layer.bias, "max_memory": MEMORY}
    return by_autograd(layer, lambda: function(layer.X, layer.weight, layer.y, **bias))


def ours_on_cupy(layer: Layer) -> Step:
    """Call mlp_loss_and_grad on CuPy arrays, without gradients of the inputs, and without a look at the labels."""
    cupy, torch = importlib.import_module("cupy"), layer.torch
    tensors = layer.X, layer.weight.T.contiguous(), layer.bias, layer.y
    X, weight, bias, y = (as_array(cupy, tensor.detach()) for tensor in tensors)
    params = (xs.Layer(weight, bias),)

    def step() -> list[Any]:
        loss, ((dweight, dbias),) = xs.mlp_loss_and_grad(params, X, y, max_memory=MEMORY, validate=False)
        return [as_tensor(torch, loss), None, as_tensor(torch, dweight).T, as_tensor(torch, dbias)]

    return step


def as_array(cupy: Any, tensor: Any) -> Any:
    """A CuPy array on the same memory; not all versions of the libraries exchange bfloat16."""
    if str(tensor.dtype) != "torch.bfloat16":
        return cupy.from_dlpack(tensor)
    kind = importlib.import_module("ml_dtypes").bfloat16
    return cupy.from_dlpack(tensor.view(importlib.import_module("torch").int16)).view(kind)


def as_tensor(torch: Any, array: Any) -> Any:
    """A tensor on the same memory."""
    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view("i2")).view(torch.bfloat16)
    return torch.from_dlpack(array)


def liger(layer: Layer) -> Step:
    """Liger's fused linear cross entropy."""
    function = importlib.import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
    return by_autograd(layer, lambda: function(layer.X, layer.weight, layer.y, bias=layer.bias))


def torch_chunked(layer: Layer) -> Step:
    """PyTorch's own function, from 2.13 on, with its own choice of chunks."""
    functional = layer.torch.nn.functional
    options = layer.torch.nn.LinearCrossEntropyOptions()
    bias = {"linear_bias": layer.bias, "options": options}
    return by_autograd(layer, lambda: functional.linear_cross_entropy(layer.X, layer.weight, layer.y, **bias))


def torch_eager(layer: Layer, *, compiled: bool = False) -> Step:
    """A linear layer, and the loss of all logits."""
    functional = layer.torch.nn.functional

    def loss_of(X: Any, weight: Any, bias: Any, y: Any) -> Any:
        return functional.cross_entropy(functional.linear(X, weight, bias), y)

    if compiled:
        layer.torch._dynamo.reset()
        loss_of = layer.torch.compile(loss_of, dynamic=False)
    return by_autograd(layer, lambda: loss_of(*layer.leaves, layer.y))


COMPETITORS: dict[str, Callable[[Layer], Step]] = {
    "xpsoftmax.torch": ours,
    "xpsoftmax, CuPy arrays": ours_on_cupy,
    "Liger": liger,
    "linear_cross_entropy": torch_chunked,
    "torch": torch_eager,
    "torch.compile": lambda layer: torch_eager(layer, compiled=True),
}


def compile_case(case: Case) -> None:
    """Compile what the competitors of a case need (_gpu_compile.py)."""
    for name in ("Liger", "torch.compile"):
        with suppress(Exception):
            COMPETITORS[name](Layer(case))()


def measured(case: Case, name: str) -> Iterator[dict[str, Any]]:
    """Verify a competitor, and measure it."""
    layer = Layer(case)
    step = COMPETITORS[name](layer)
    error = layer.off_by(step())
    if not error <= ALLOWED[case.dtype]:
        raise ValueError(f"is off by {error:.2g} in norm: not timed")
    del layer.exact
    for leaf in layer.leaves:
        leaf.grad = None
    give_back()
    peak = peak_mib(layer.torch, step)
    times = [1e3 * seconds_of(step) for _ in range(ROUNDS)]
    yield {"name": name, "ms": statistics.quantiles(times, n=4), "peak_mib": peak, "error": error}


def peak_mib(torch: Any, step: Step) -> float:
    """How much more than before PyTorch and CuPy take from the GPU in a step, its gradients included; MiB."""
    pool = importlib.import_module("cupy").get_default_memory_pool()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() + pool.total_bytes()
    result = step()
    wait()
    del result
    return float(torch.cuda.max_memory_allocated() + pool.total_bytes() - before) / 2**20


def main(argv: list[str]) -> int:
    """Measure all; 1 if the package is wrong somewhere."""
    path, seconds = Path(argv[0]), float(argv[1])
    content: dict[str, Any] = {"max_memory": MEMORY, "classes": [], "problems": []}
    jobs = {f"{case}, {name}": (measured, case, name) for name in COMPETITORS for case in CASES}
    failed: list[str] = []
    heard = {"classes": content["classes"], "problems": failed}
    for job, found in jobs_written(path, heard, jobs, seconds, MOST):
        case, _, name = job.partition(", ")
        content["classes"].append({"case": case, "results": found, "name": name})
        print(job, *(f"{f['ms'][1]:.2f} ms, {f['peak_mib']:.0f} MiB" for f in found), sep=", ", flush=True)
    content["problems"] = [problem for problem in failed if ", xpsoftmax" in problem]
    content["not_timed"] = [problem for problem in failed if problem not in content["problems"]]
    write(path, content)
    return 1 if content["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
