"""Trainings of the same network by the package and by PyTorch, for _gpu_steps.py: problems, and who trains."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

import xpsoftmax as xs

DEVICE = "cuda"
"""Where PyTorch computes."""
RATE = 1e-3
VERIFIED = 8
"""Steps after which parameters are compared."""
ALLOWED = {"sgd": 2e-2, "adam": 5e-2}
"""Largest difference of a movement, in its norm: what tells a wrong step from float32."""


class Case(NamedTuple):
    """Sizes, optimiser, steps of an epoch, and the targets: milliseconds a step, and the ratio to PyTorch's graph."""

    sizes: tuple[int, int, int, int]
    optimizer: str
    steps: int
    ms: float | None = None
    of_graph: float = 1.0

    def __str__(self) -> str:
        return "x".join(map(str, self.sizes)) + (f" {self.optimizer}" if self.optimizer != "sgd" else "")


CASES = (
    Case((5, 4, 10, 3), "sgd", 256, 0.034, 1.1),
    Case((200, 3072, 50, 10), "sgd", 64, 0.060),
    Case((128, 784, 256, 10), "sgd", 128, 0.052),
    Case((1024, 512, 2048, 1000), "sgd", 64, 0.47),
    Case((256, 512, 512, 32000), "sgd", 64, 0.72),
    Case((128, 784, 256, 10), "adam", 128),
)


@dataclass(frozen=True)
class Problem:
    """All rows on the GPU, and the parameters to start from on the host."""

    case: Case

    @property
    def rows(self) -> int:
        """Of an epoch."""
        return self.case.sizes[0] * self.case.steps

    @cached_property
    def X(self) -> Any:  # noqa: N802
        """Inputs (rows, D)."""
        random = importlib.import_module("cupy").random.default_rng(0)
        return random.standard_normal((self.rows, self.case.sizes[1]), dtype="f4")

    @cached_property
    def y(self) -> Any:
        """Labels (rows,)."""
        return importlib.import_module("cupy").random.default_rng(1).integers(0, self.case.sizes[-1], self.rows)

    @cached_property
    def params(self) -> tuple[xs.Layer, ...]:
        """First parameters, on the host."""
        return xs.init_params(self.case.sizes[1:], rng=0, dtype=np.float32)

    @property
    def few(self) -> int:
        """Rows of the steps that are verified."""
        return VERIFIED * self.case.sizes[0]

    @cached_property
    def order(self) -> np.ndarray:
        """The order in which `train` takes these rows from the seed 0."""
        return np.random.default_rng(0).permutation(self.few)

    def optimizer(self) -> xs.Optimizer:
        """The package's."""
        return xs.adam(RATE) if self.case.optimizer == "adam" else xs.sgd(RATE)

    def trained(self, params: Any, X: Any, y: Any, epochs: int) -> Any:
        """Train by the package, wherever the arrays are."""
        how = {"optimizer": self.optimizer(), "epochs": epochs, "batch_size": self.case.sizes[0], "rng": 0}
        return xs.train(params, X, y, **how)

    @cached_property
    def exact(self) -> list[np.ndarray]:
        """Parameters after the steps that are verified, by the package on NumPy in float64."""
        params = [xs.Layer(*(array.astype("f8") for array in layer)) for layer in self.params]
        X, y = (on_host(array[: self.few]) for array in (self.X, self.y))
        return arrays_of(self.trained(params, X.astype("f8"), y, 1).params)

    def off_by(self, found: list[np.ndarray]) -> float:
        """How far the parameters are from the exact ones, relative to how far these have moved."""
        start = arrays_of(self.params)
        errors = [
            np.linalg.norm(a - b) / np.linalg.norm(b - c) for a, b, c in zip(found, self.exact, start, strict=True)
        ]
        return float(max(errors)) if np.all(np.isfinite(errors)) else np.inf


def arrays_of(params: Any) -> list[np.ndarray]:
    """Weights and biases in turn, on the host, in float64."""
    return [on_host(array).astype("f8") for layer in params for array in layer]


def on_host(array: Any) -> np.ndarray:
    """The values in NumPy."""
    return np.asarray(array.get() if hasattr(array, "get") else array)


class Trainer(NamedTuple):
    """A competitor that is ready: epochs to time, and the parameters after the steps that are verified."""

    epochs: Callable[[int], Any]
    verified: Callable[[], list[np.ndarray]]


# --- competitors ------------------------------------------------------------------------------------------------------


def package(problem: Problem) -> Trainer:
    """`train`, as a user calls it."""
    xp = importlib.import_module("cupy")
    params = tuple(type(layer)(*map(xp.asarray, layer)) for layer in problem.params)
    few = problem.X[: problem.few], problem.y[: problem.few]
    return Trainer(
        lambda epochs: problem.trained(params, problem.X, problem.y, epochs),
        lambda: arrays_of(problem.trained(params, *few, 1).params),
    )


class InTorch:
    """Model, optimiser and data of a problem as PyTorch has them."""

    def __init__(self, problem: Problem) -> None:
        self.torch = torch = importlib.import_module("torch")
        torch.backends.cuda.matmul.allow_tf32 = tf32()
        layers: list[Any] = []
        for weight, bias in problem.params:
            linear = torch.nn.Linear(*weight.shape)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(weight.T.copy()))
                linear.bias.copy_(torch.from_numpy(np.array(bias)))
            layers += [linear, torch.nn.ReLU()]
        self.problem = problem
        self.model = torch.nn.Sequential(*layers[:-1]).to(DEVICE)
        self.X, self.y = torch.from_dlpack(problem.X), torch.from_dlpack(problem.y)
        parameters = self.model.parameters()
        if problem.case.optimizer == "adam":
            self.optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True, capturable=DEVICE == "cuda")
        else:
            self.optimizer = torch.optim.SGD(parameters, lr=RATE)

    def cross_entropy(self, inputs: Any, labels: Any) -> Any:
        """The mean loss of a batch."""
        return self.torch.nn.functional.cross_entropy(self.model(inputs), labels)

    def liger(self, inputs: Any, labels: Any) -> Any:
        """The same by Liger, which makes the logits of the last layer in chunks."""
        function = importlib.import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
        last = self.model[-1]
        return function(self.model[:-1](inputs), last.weight, labels, bias=last.bias)

    def trainer(self, step: Callable[[Any], Any]) -> Trainer:
        """A step on the rows of these numbers, as a competitor."""
        size = self.problem.case.sizes[0]

        def epochs(number: int) -> None:
            for _ in range(number):
                for rows in self.torch.randperm(self.problem.rows, device=DEVICE).split(size):
                    step(rows)

        def verified() -> list[np.ndarray]:
            for rows in self.torch.from_numpy(self.problem.order).to(DEVICE).split(size):
                step(rows)
            return self.parameters()

        return Trainer(epochs, verified)

    def parameters(self) -> list[np.ndarray]:
        """As the package has them."""
        return [np.asarray(p.detach().cpu()).T.astype("f8") for p in self.model.parameters()]


def tf32() -> bool:
    """Whether products may round to TF32: as the package has it from CuPy."""
    return os.environ.get("CUPY_TF32", "0") == "1"


def torch_eager(problem: Problem, loss: str = "cross_entropy") -> Trainer:
    """As every tutorial has it."""
    parts = InTorch(problem)

    def step(rows: Any) -> None:
        parts.optimizer.zero_grad()
        getattr(parts, loss)(parts.X[rows], parts.y[rows]).backward()
        parts.optimizer.step()

    return parts.trainer(step)


def torch_graph(problem: Problem, loss: str = "cross_entropy") -> Trainer:
    """The whole step as a CUDA graph, gathering included; the numbers of the rows are copied to where it reads them."""
    parts = InTorch(problem)
    torch, size = parts.torch, problem.case.sizes[0]
    at = torch.arange(size, device=DEVICE)
    saved = [p.detach().clone() for p in parts.model.parameters()]

    def work() -> None:
        parts.optimizer.zero_grad()
        getattr(parts, loss)(parts.X[at], parts.y[at]).backward()
        parts.optimizer.step()

    replay = captured(torch, work, parts.optimizer.zero_grad)
    with torch.no_grad():  # as if no step had been made
        for parameter, first in zip(parts.model.parameters(), saved, strict=True):
            parameter.copy_(first)
            for kept in parts.optimizer.state.get(parameter, {}).values():
                if kept is not None:  # a momentum that is off
                    kept.zero_()

    def step(rows: Any) -> None:
        at.copy_(rows)
        replay()

    return parts.trainer(step)


def captured(torch: Any, work: Callable[[], Any], before: Callable[[], Any]) -> Callable[[], Any]:
    """Capture work as a CUDA graph, and return what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    before()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], Any] = graph.replay
    return replay


def torch_compiled(problem: Problem, mode: str | None = None) -> Trainer:
    """Gather, loss, gradients and update in one compiled function; "reduce-overhead" makes a CUDA graph of it."""
    parts = InTorch(problem)
    torch = parts.torch
    torch._dynamo.reset()
    names, tensors = zip(*((name, p.detach()) for name, p in parts.model.named_parameters()), strict=True)
    for tensor in (*tensors, parts.X, parts.y):  # a CUDA graph may read them where they are
        torch._dynamo.mark_static_address(tensor)

    def loss_of(tensors: Any, X: Any, y: Any) -> Any:
        z = torch.func.functional_call(parts.model, dict(zip(names, tensors, strict=True)), (X,))
        return torch.nn.functional.cross_entropy(z, y)

    def whole(tensors: Any, X: Any, y: Any, rows: Any) -> Any:
        grads, loss = torch.func.grad_and_value(loss_of)(tensors, X[rows], y[rows])
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.sub_(grad, alpha=RATE)
        return loss

    compiled = torch.compile(whole, dynamic=False, mode=mode)

    def step(rows: Any) -> None:
        if mode is not None:
            torch.compiler.cudagraph_mark_step_begin()
        compiled(tensors, parts.X, parts.y, rows)

    return parts.trainer(step)


OURS, GRAPH = "xpsoftmax train", "torch graph"
COMPETITORS: dict[str, Callable[[Problem], Trainer]] = {
    OURS: package,
    GRAPH: torch_graph,
    "torch": torch_eager,
    "Liger": lambda problem: torch_eager(problem, "liger"),
    "Liger graph": lambda problem: torch_graph(problem, "liger"),
    "torch.compile": torch_compiled,
    "torch.compile, reduce-overhead": lambda problem: torch_compiled(problem, "reduce-overhead"),
}
COMPILED = ("torch.compile", "torch.compile, reduce-overhead")


def competitors(case: Case, *, compiled: bool) -> list[str]:
    """Who is timed at a case: Liger where there are many classes, compiled updates for gradient descent."""
    if compiled:
        return list(COMPILED) if case.optimizer == "sgd" else []
    return [name for name in COMPETITORS if name not in COMPILED and (case.sizes[-1] >= 10_000 or "Liger" not in name)]


def compile_case(case: Case) -> None:
    """Compile what the competitors of a case need (_gpu_compile.py)."""
    problem = Problem(case)
    for name in (*competitors(case, compiled=True), *competitors(case, compiled=False)):
        if name in COMPILED or name == "Liger":
            trainer = COMPETITORS[name](problem)
            trainer.verified()
