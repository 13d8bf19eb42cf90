"""Time the loss on PyTorch tensors and JAX arrays beside that of PyTorch, Liger and optax, and write what was found.

    python benchmarks/bench_torch.py
    python benchmarks/bench_torch.py --shape 256x1000 --dtype float32 --comparison cross_entropy
    python benchmarks/bench_torch.py --device cuda --comparison cross_entropy

The comparisons; ratios are to the first competitor of each:

- cross_entropy: loss and gradient, forward and backward, of `F.cross_entropy` eager and compiled, Liger (on a GPU),
  `xpsoftmax.torch.cross_entropy` eager and compiled;
- softmax_loss_and_grad, softmax_loss, softmax, log_softmax, logsumexp: the function of this name on arrays of NumPy, on
  tensors of PyTorch and on arrays of JAX;
- mlp_loss_and_grad, mlp_predict, train (an epoch in batches of 200 rows), MLPClassifier.fit (an epoch; with
  scikit-learn) and MLPClassifier.predict: with networks of 64 inputs and 128 hidden units, in float32 on the CPU, on
  arrays of NumPy, on tensors of PyTorch and on arrays of JAX;
- jax.jit: `jax.value_and_grad` under jit of the loss of optax, and of `xs.softmax_loss`; without jit,
  `xs.softmax_loss_and_grad`.

Every case is verified and timed as by bench.py: each result is compared with plain NumPy in float64 first (that of a
network with the same function in float64), and one that is off by more than `ALLOWED` is not timed. bfloat16 is for
PyTorch alone.

PyTorch uses all its threads even for 64x10, and on a machine that is not idle they wait for each other: there
`--threads 1` is fairer. JAX has no such limit. Needs rich; competitors that are not installed are listed.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from competitors import plain
from harness import Call, Made, Parser, difference, json_text, parser_of, run_record, simd, sizes, timings, verified
from rich.console import Console
from rich.table import Table

import xpsoftmax as xs

# Otherwise a pool of processes that compile for PyTorch starts up while the first cases are timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

Array: TypeAlias = Any

SHAPES = ("64x10", "256x1000", "8192x1000", "1024x32000")
DTYPES = ("float32", "bfloat16")
PACKAGES = ("numpy", "array-api-compat", "torch", "triton", "liger-kernel", "jax", "optax")
ALLOWED = {"float32": 1e-4, "bfloat16": 2**-6}
"""Largest difference over largest entry; PyTorch's loss is of bfloat16, too. The tests hold the real bounds."""


@dataclass(frozen=True)
class Problem:
    """Logits and labels of a case, and where PyTorch has them."""

    rows: int
    classes: int
    dtype: str
    device: str = "cpu"

    @functools.cached_property
    def z(self) -> np.ndarray:
        """Logits (N, C), float32; for bfloat16 numbers that it holds exactly."""
        z = np.random.default_rng(0).standard_normal((self.rows, self.classes), np.float32)
        return z if self.dtype == "float32" else (z.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    @functools.cached_property
    def y(self) -> np.ndarray:
        """Labels (N,)."""
        return np.random.default_rng(1).integers(0, self.classes, self.rows)

    def exact(self) -> dict[str, tuple[np.ndarray, ...]]:
        """What each function of `FUNCTIONS` returns, in plain float64."""
        z = self.z.astype("f8")
        losses, dz = plain(z, self.y)
        sums = np.log(np.exp(z).sum(axis=1))
        log_p = z - sums[:, None]
        return {
            "softmax_loss_and_grad": (losses.mean(), dz / self.rows),
            "softmax_loss": (losses.mean(),),
            "softmax": (np.exp(log_p),),
            "log_softmax": (log_p,),
            "logsumexp": (sums,),
        }

    def tensors(self) -> tuple[Array, Array]:
        """Logits and labels as PyTorch has them, the logits in memory of their own."""
        import torch

        z = torch.from_numpy(self.z.copy()).to(self.device, getattr(torch, self.dtype))
        return z, torch.from_numpy(self.y).to(self.device)


# --- the competitors: from a problem to a call, or None where they lack it --------------------------------------------


def pytorch(name: str, problem: Problem, *, compiled: bool = False) -> Call:
    """Call the cross_entropy of a module, and autograd; compiled for the shape if wanted."""
    import torch

    function = importlib.import_module(name).cross_entropy
    if compiled:
        function = torch.compile(function, dynamic=False)
    z, y = problem.tensors()
    z.requires_grad_()

    def call() -> tuple[Array, Array]:
        z.grad = None
        loss = function(z, y)
        loss.backward()
        if problem.device == "cuda":
            torch.cuda.synchronize()
        return loss.detach(), z.grad

    return call


def liger(problem: Problem) -> Call | None:
    """Call Liger's Triton kernel, and autograd, on a copy of the logits: its gradient overwrites them."""
    import torch

    if problem.device != "cuda":
        return None
    function = importlib.import_module("liger_kernel.transformers.functional").liger_cross_entropy
    z, y = problem.tensors()

    def call() -> tuple[Array, Array]:
        logits = z.clone().requires_grad_()
        loss = function(logits, y)
        loss.backward()
        torch.cuda.synchronize()
        return loss.detach(), logits.grad

    return call


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "softmax_loss_and_grad": xs.softmax_loss_and_grad,
    "softmax_loss": lambda z, y: (xs.softmax_loss(z, y),),
    "softmax": lambda z, _: (xs.softmax(z),),
    "log_softmax": lambda z, _: (xs.log_softmax(z),),
    "logsumexp": lambda z, _: (xs.logsumexp(z),),
}


def on_numpy(name: str, problem: Problem) -> Call | None:
    """Call a function of the library on arrays of NumPy, which has no bfloat16."""
    if problem.dtype == "bfloat16" or problem.device != "cpu":
        return None
    return functools.partial(FUNCTIONS[name], problem.z, problem.y)


def on_tensors(name: str, problem: Problem) -> Call | None:
    """Call a function of the library on tensors in host memory."""
    return functools.partial(FUNCTIONS[name], *problem.tensors()) if problem.device == "cpu" else None


def on_jax(name: str, problem: Problem) -> Call | None:
    """Call a function of the library on arrays of JAX, not compiled by the caller."""
    if problem.dtype == "bfloat16" or problem.device != "cpu":
        return None
    import jax

    z, y = jax.numpy.asarray(problem.z), jax.numpy.asarray(problem.y)
    return lambda: jax.block_until_ready(FUNCTIONS[name](z, y))


def jitted(loss: Callable[[Array, Array], Array], problem: Problem) -> Call | None:
    """Call value_and_grad of a loss, compiled for the shape."""
    if problem.dtype == "bfloat16" or problem.device != "cpu":
        return None
    import jax

    z, y = jax.numpy.asarray(problem.z), jax.numpy.asarray(problem.y)
    compiled = jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(compiled(z, y))


def optax_loss(z: Array, y: Array) -> Array:
    """Return the mean of the losses of optax."""
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()


# --- networks ---------------------------------------------------------------------------------------------------------

FEATURES, HIDDEN = 64, 128


def classifier(X: Array, y: Array) -> Any:
    """Fit scikit-learn's classifier of this library for an epoch."""
    from xpsoftmax.sklearn import MLPClassifier

    return MLPClassifier((HIDDEN,), solver="sgd", random_state=0).partial_fit(X, y, classes=np.unique(np.asarray(y)))


def trained(params: Any, X: Array, y: Array) -> Any:
    """Train for an epoch; return the parameters."""
    return xs.train(params, X, y, optimizer=xs.sgd(0.1, 0.9), epochs=1, batch_size=200, rng=0).params


NETWORKS: dict[str, Callable[[Any, Array, Array], Call]] = {
    "mlp_loss_and_grad": lambda params, X, y: lambda: xs.mlp_loss_and_grad(params, X, y),
    "mlp_predict": lambda params, X, y: lambda: xs.mlp_predict(params, X),  # noqa: ARG005
    "train": lambda params, X, y: lambda: trained(params, X, y),
    "MLPClassifier.fit": lambda params, X, y: lambda: classifier(X, y).params_,  # noqa: ARG005
    "MLPClassifier.predict": lambda params, X, y: functools.partial(classifier(X, y).predict, X),  # noqa: ARG005
}
"""From parameters, inputs and labels to a call."""


def tensor(array: np.ndarray) -> Array:
    """Return a tensor of PyTorch that shares memory with an array."""
    import torch

    return torch.from_numpy(array)


def array_of_jax(array: np.ndarray) -> Array:
    """Return an array of JAX with these numbers."""
    import jax

    return jax.numpy.asarray(array)


def with_network(name: str, problem: Problem, convert: Callable[[np.ndarray], Array]) -> Call | None:
    """Call a function of networks on converted arrays; its result is a flat tuple."""
    absent = name.startswith("MLPClassifier") and importlib.util.find_spec("sklearn") is None
    if problem.dtype == "bfloat16" or problem.device != "cpu" or absent:
        return None
    X = np.random.default_rng(2).standard_normal((problem.rows, FEATURES), np.float32)
    params = xs.init_params((FEATURES, HIDDEN, problem.classes), rng=0, dtype=np.float32)
    moved = tuple(type(layer)(*map(convert, layer)) for layer in params)
    call = NETWORKS[name](moved, convert(X), convert(problem.y))
    return lambda: flat(call())


def flat(result: Any) -> tuple[Array, ...]:
    """Return the arrays of a tree of tuples."""
    return tuple(itertools.chain.from_iterable(map(flat, result))) if isinstance(result, tuple) else (result,)


def doubled(array: np.ndarray) -> np.ndarray:
    """Return floating numbers in float64, others as they are."""
    return array.astype("f8") if array.dtype.kind == "f" else array


# --- the comparisons --------------------------------------------------------------------------------------------------

Maker: TypeAlias = Callable[[Problem], Call | None]
THEIRS, OURS = "torch.nn.functional", "xpsoftmax.torch"
COMPARISONS: dict[str, dict[str, Maker]] = {
    "cross_entropy": {
        "PyTorch": functools.partial(pytorch, THEIRS),
        "PyTorch compiled": functools.partial(pytorch, THEIRS, compiled=True),
        "Liger": liger,
        "xpsoftmax": functools.partial(pytorch, OURS),
        "xpsoftmax compiled": functools.partial(pytorch, OURS, compiled=True),
    },
    **{
        name: {
            "NumPy arrays": functools.partial(on_numpy, name),
            "PyTorch tensors": functools.partial(on_tensors, name),
            "JAX arrays": functools.partial(on_jax, name),
        }
        for name in FUNCTIONS
    },
    **{
        name: {
            "NumPy arrays": functools.partial(with_network, name, convert=np.asarray),
            "PyTorch tensors": functools.partial(with_network, name, convert=tensor),
            "JAX arrays": functools.partial(with_network, name, convert=array_of_jax),
        }
        for name in NETWORKS
    },
    "jax.jit": {
        "optax": functools.partial(jitted, optax_loss),
        "xpsoftmax on JAX": functools.partial(jitted, functools.partial(xs.softmax_loss, validate=False)),
        "xpsoftmax without jit": functools.partial(on_jax, "softmax_loss_and_grad"),
    },
}
NEEDS = {
    "torch": ("PyTorch", "PyTorch compiled", "Liger", "xpsoftmax", "xpsoftmax compiled", "PyTorch tensors"),
    "liger_kernel": ("Liger",),
    "jax": ("JAX arrays", "optax", "xpsoftmax on JAX", "xpsoftmax without jit"),
    "optax": ("optax",),
}
"""The competitors that need a package."""


def missing() -> dict[str, str]:
    """Name the competitors that cannot be used here, and why."""
    absent = [package for package in NEEDS if importlib.util.find_spec(package) is None]
    return {name: f"{package} is not installed" for package in absent for name in NEEDS[package]}


# --- verify, then time ------------------------------------------------------------------------------------------------


def error_of(result: Any, truth: Any) -> float:
    """Return the error of loss and gradient; NumPy reads no bfloat16, and float64 holds all of them."""
    return difference(tuple(x.double() if hasattr(x, "double") else x for x in result), truth)


def made(make: Maker, problem: Problem, truth: Any) -> Made:
    """Return a competitor's call, and what compares its result with the truth."""
    call = make(problem)
    return None if call is None else (call, lambda: error_of(call(), truth))


def measured(comparison: str, problem: Problem, truth: Any, seconds: float, absent: Sequence[str]) -> dict[str, Any]:
    """Verify the competitors of a comparison, and time those that are right, in turn."""
    if "torch" in sys.modules:  # it compiles a function for 8 shapes and dtypes, and not for more
        sys.modules["torch"]._dynamo.reset()
    ways = {name: make for name, make in COMPARISONS[comparison].items() if name not in absent}
    problems: list[str] = []
    if comparison in NETWORKS:
        exact = with_network(comparison, problem, doubled)
        wanted = None if exact is None else exact()
    else:
        wanted = truth[comparison if comparison in FUNCTIONS else "softmax_loss_and_grad"]
    makers = {name: functools.partial(made, make, problem, wanted) for name, make in ways.items()}
    found = timings(*verified(makers, ALLOWED[problem.dtype], problems), seconds)
    reference = found.get(next(iter(COMPARISONS[comparison])))
    ratios = {name: timing.median / reference.median if reference else None for name, timing in found.items()}
    return {
        "comparison": comparison,
        **asdict(problem),
        "timings": {name: asdict(timing) for name, timing in found.items()},
        "ratios": ratios,
        "problems": problems,
    }


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Limit the threads of PyTorch, where it is installed, and of this library."""
    if threads is None:
        yield
        return
    torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    before = torch.get_num_threads() if torch else 0
    try:
        if torch:
            torch.set_num_threads(threads)
        with xs.threads(threads):
            yield
    finally:
        if torch:
            torch.set_num_threads(before)


# --- what is printed, and the command line ----------------------------------------------------------------------------


def show(findings: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a table for each comparison: milliseconds, and ratios to the first competitor; and what is wrong."""
    for comparison, ways in COMPARISONS.items():
        rows = [finding for finding in findings if finding["comparison"] == comparison and finding["timings"]]
        if not rows:
            continue
        table = Table("shape", "dtype", title=f"{comparison}: milliseconds (ratio to {next(iter(ways))})")
        for name in ways:
            table.add_column(name, justify="right")
        for finding in rows:
            shape = f"{finding['rows']}x{finding['classes']}"
            table.add_row(shape, finding["dtype"], *(cell(finding, name) for name in ways))
        console.print(table)
    for finding in findings:
        for problem in finding["problems"]:
            case = f"{finding['comparison']} {finding['rows']}x{finding['classes']} {finding['dtype']}"
            console.print(f"PROBLEM: {case}: {problem}", markup=False, highlight=False, soft_wrap=True)


def cell(finding: dict[str, Any], name: str) -> str:
    """Return the milliseconds of a competitor, and its ratio, as text."""
    if name not in finding["timings"]:
        return "-"
    ratio = finding["ratios"][name]
    return f"{1e3 * finding['timings'][name]['median']:.3g}" + ("" if ratio is None else f" ({ratio:.2f})")


def parser() -> Parser:
    """Name the options."""
    options = parser_of(__file__, __doc__)
    for name, values in (("comparison", tuple(COMPARISONS)), ("dtype", DTYPES)):
        options.add_argument(f"--{name}", action="append", choices=values, help="only this one (repeatable)")
    options.add_argument("--shape", action="append", type=as_shape, metavar="NxC", help="only this one (repeatable)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    options.add_argument("--threads", type=as_threads, help="of PyTorch and of this library; default: their own")
    options.add_argument("--seconds", type=float, default=1.0, help="for each way and case; default: %(default)s")
    options.add_files("bench_torch", json="json")
    return options


def as_shape(text: str) -> str:
    """Return a shape as it is listed."""
    return "x".join(map(str, sizes(text, 2, example="256x1000")))


def as_threads(text: str) -> int:
    """Return a number of threads."""
    return sizes(text, 1, example="2")[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Verify, time, print and write; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser()
    given = options.parse_args(argv)
    options.check_files(given.json)
    console, absent = Console(), missing()
    if not console.is_terminal:
        console.width = 160  # a table in a file need not fit a window
    findings: list[dict[str, Any]] = []
    for shape, dtype in itertools.product(given.shape or SHAPES, given.dtype or DTYPES):
        problem = Problem(*map(int, shape.split("x")), dtype, given.device)
        truth = problem.exact()
        wanted = given.comparison or list(COMPARISONS)
        with limited(given.threads):
            findings += [measured(name, problem, truth, given.seconds, list(absent)) for name in wanted]
        content = run_record("benchmarks/bench_torch.py", argv, PACKAGES, simd=simd(), absent=absent, findings=findings)
        given.json.write_text(json_text(content))
    show(findings, console)
    for name, reason in absent.items():
        console.print(f"not used: {name}: {reason}", markup=False, highlight=False)
    return 1 if any(finding["problems"] for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
