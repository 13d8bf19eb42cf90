"""Time the softmax functions beside those of other libraries, in one process, and write what was found.

    python benchmarks/bench.py
    python benchmarks/bench.py --operation softmax_loss_and_grad --shape 8192x1000 --dtype float32 --competitor torch

A case is an operation, a shape, a dtype and a kind of logits: "normal" ones are drawn from N(0, 1); "shifted" ones have
scale 30 and mean 100, so that exp(z) would leave the range of float32. For every case each competitor

- is verified: its result is compared with plain NumPy in float64. One that is off by more than `ALLOWED` is not timed,
  and the exit status is 1;
- is timed: in turn with the others, in a new order each round, after a pause in which the threads of the one before go
  to sleep, and calls that are not counted: until the system has spread two threads over two cores, PyTorch's spend
  whole ticks of some milliseconds waiting for each other. Reported are the median, the quartiles, the ratio of the
  median to that of PyTorch (eager; forward and backward), and for the fastest the traffic that cannot be avoided
  (logits read once, the result written once) in GB/s.

"np.exp" and "copy" are floors, not competitors: one exponential, or one copy, of every logit on all cores.
"xpsoftmax" writes into `out=` and validates; "xpsoftmax new" allocates its result; "xpsoftmax 1 thread" and
"xpsoftmax generic" are what they say; "kernel" is the kernel alone, without validation and dispatch.

On a machine with a GPU that CuPy can use, the same cases are also timed on it.

Needs rich and matplotlib; competitors that are not installed are listed.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from competitors import jax_in_float64, jax_losses, log_softmax, plain, sklearn_loss
from competitors import torch_eager as torch_loss_and_grad
from harness import (
    Call,
    Made,
    Parser,
    Timing,
    described,
    difference,
    drawn,
    json_text,
    parser_of,
    run_record,
    simd,
    sizes,
    timings,
    verified,
)
from rich.console import Console
from rich.table import Table

import xpsoftmax as xs
from xpsoftmax._typing import LossSpec
from xpsoftmax.kernels import numpy as kernels
from xpsoftmax.kernels.numpy.ranges import RANGES

# Otherwise a pool of processes that compile for PyTorch starts up while the first cases are timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

Array: TypeAlias = Any

OPERATIONS = ("softmax", "log_softmax", "logsumexp", "softmax_loss", "softmax_loss_and_grad")
SHAPES = ("64x10", "256x10", "256x1000", "8192x1000", "65536x10", "1024x32000", "256x128256")
DTYPES = ("float32", "float64")
REFERENCES = ("torch", "CUDA torch")
PACKAGES = ("numpy", "array-api-compat", "torch", "jax", "scipy", "scikit-learn", "cupy-cuda13x", "liger-kernel")
FLOORS = ("np.exp", "copy", "kernel")
ALLOWED = {"float32": 1e-4, "float64": 1e-10}
"""Largest difference over largest entry: what tells a wrong formula from rounding. The tests hold the real bounds."""


@dataclass(frozen=True)
class Case:
    """What is computed, and on which logits."""

    operation: str
    rows: int
    classes: int
    dtype: str
    logits: str = "normal"

    def __str__(self) -> str:
        return f"{self.operation} {self.shape} {self.dtype} {self.logits}"

    @property
    def shape(self) -> str:
        """As the option is written."""
        return f"{self.rows}x{self.classes}"

    @functools.cached_property
    def z(self) -> np.ndarray:
        """Logits (N, C)."""
        z = np.random.default_rng(0).standard_normal((self.rows, self.classes), np.float32)
        return (z * 30 + 100 if self.logits == "shifted" else z).astype(self.dtype)

    @functools.cached_property
    def y(self) -> np.ndarray:
        """Labels (N,)."""
        return np.random.default_rng(1).integers(0, self.classes, self.rows)

    @property
    def traffic(self) -> int:
        """Bytes that must be read and written at least."""
        arrays = 1 if self.operation in ("logsumexp", "softmax_loss") else 2
        return arrays * self.rows * self.classes * np.dtype(self.dtype).itemsize


@dataclass
class Finding:
    """What was found for a case."""

    case: Case
    timings: dict[str, Timing] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    shifted_rows: float | None = None  # share of the rows that the NumPy kernel did again with a shift

    def ratio(self, name: str) -> float | None:
        """Time relative to PyTorch's on the same device."""
        reference = self.timings.get(REFERENCES[name in ON_GPU])
        return self.timings[name].median / reference.median if reference and name in self.timings else None

    def cell(self, name: str) -> str:
        """The ratio as text; milliseconds for PyTorch itself, and where it is missing."""
        if name not in self.timings:
            return "-"
        ratio = None if name in REFERENCES else self.ratio(name)
        return f"{1e3 * self.timings[name].median:.3g} ms" if ratio is None else f"{ratio:.2f}"

    def speed(self) -> float:
        """Gigabytes of required traffic per second of our fastest."""
        ours = [timing.median for name, timing in self.timings.items() if "xpsoftmax" in name]
        return self.case.traffic / min(ours, default=np.inf) / 1e9

    def overhead(self) -> float | None:
        """Share of a call of this library that is not the kernel's."""
        if "kernel" not in self.timings or "xpsoftmax" not in self.timings:
            return None
        return 1.0 - self.timings["kernel"].median / self.timings["xpsoftmax"].median


# --- the competitors: from a case to a call, or None where they lack the operation ------------------------------------


def exact(case: Case) -> Any:
    """Plain NumPy in float64: what results are verified with."""
    wide = Case(case.operation, case.rows, case.classes, "float64", case.logits)
    wide.__dict__.update(z=case.z.astype("f8"), y=case.y)
    call = plain_numpy(wide)
    return call()


def plain_numpy(case: Case, xp: Any = np) -> Call:
    """Write the usual lines: they lose the gradients of rows that are sure."""
    z, y, rows = case.z, case.y, xp.arange(case.rows)

    def softmax() -> Array:
        e = xp.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    def logsumexp() -> Array:
        top = z.max(axis=1)
        return top + xp.log(xp.exp(z - top[:, None]).sum(axis=1))

    def softmax_loss_and_grad() -> Array:
        losses, dz = plain(z, y, xp)
        dz /= len(y)
        return losses.mean(), dz

    return {
        "softmax": softmax,
        "log_softmax": lambda: log_softmax(z, xp),
        "logsumexp": logsumexp,
        "softmax_loss": lambda: -log_softmax(z, xp)[rows, y].mean(),
        "softmax_loss_and_grad": softmax_loss_and_grad,
    }[case.operation]


def package(case: Case, *, new: bool = False, **options: Any) -> Call:
    """Call the library on the arrays of the case."""
    function, arrays = getattr(xs, case.operation), (case.z, case.y)[: 2 if "loss" in case.operation else 1]
    if not new and case.operation not in ("logsumexp", "softmax_loss"):
        options["out"] = case.z.copy()
    return functools.partial(function, *arrays, **options)


def on_one_thread(case: Case) -> Call:
    """Call the library with a limit on its threads."""
    call = package(case)

    def limited() -> Any:
        with xs.threads(1):
            return call()

    return limited


def kernel_alone(case: Case) -> Call | None:
    """Call what does the arithmetic, with everything checked and prepared."""
    if case.operation != "softmax_loss_and_grad":
        return None
    weight, out, spec = np.full(case.rows, 1.0 / case.rows, case.dtype), case.z.copy(), LossSpec()

    def call() -> Any:
        losses, dlogits = kernels.softmax_loss_rows(case.z, case.y, weight, spec, grad=True, out=out)
        return losses.sum(), dlogits

    return call


def quiet_exp(z: np.ndarray, out: np.ndarray) -> None:
    """np.exp, of logits that may be too large for it; threads do not inherit the errstate."""
    with np.errstate(all="ignore"):
        np.exp(z, out=out)


def on_all_cores(operation: Callable[..., Any], case: Case) -> Call:
    """One elementwise pass, rows shared out among the cores."""
    out, cores = np.empty_like(case.z), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    parts = [slice(*x) for x in itertools.pairwise(np.linspace(0, case.rows, cores + 1, dtype=int))]
    if case.z.nbytes < 2**20:  # waking a thread takes longer
        return lambda: operation(case.z, out)
    pool = ThreadPoolExecutor(cores)
    return lambda: list(pool.map(lambda part: operation(case.z[part], out[part]), parts))


def torch_eager(case: Case, device: str = "cpu") -> Call:
    """PyTorch as most write it: forward, and backward through autograd."""
    import torch

    z, y = torch.from_numpy(case.z).to(device), torch.from_numpy(case.y).to(device)
    functions = torch.nn.functional
    if case.operation == "softmax_loss_and_grad":
        return torch_loss_and_grad(z, y)
    return {
        "softmax": lambda: functions.softmax(z, 1),
        "log_softmax": lambda: functions.log_softmax(z, 1),
        "logsumexp": lambda: torch.logsumexp(z, 1),
        "softmax_loss": lambda: functions.cross_entropy(z, y),
    }[case.operation]


def torch_compiled(case: Case, device: str = "cpu") -> Call:
    """PyTorch compiled for the shape, forward and backward in one graph."""
    import torch

    torch._dynamo.reset()
    functions = torch.nn.functional
    z, y = torch.from_numpy(case.z).to(device), torch.from_numpy(case.y).to(device)
    with_grad = torch.func.grad_and_value(functions.cross_entropy)  # on CPUs faster than compiling forward alone
    function = {
        "softmax": lambda z, _: functions.softmax(z, 1),
        "log_softmax": lambda z, _: functions.log_softmax(z, 1),
        "logsumexp": lambda z, _: torch.logsumexp(z, 1),
        "softmax_loss": functions.cross_entropy,
        "softmax_loss_and_grad": lambda z, y: with_grad(z, y)[::-1],
    }[case.operation]
    return functools.partial(torch.compile(function, dynamic=False), z, y)


def jax_jit(case: Case) -> Call:
    """JAX compiled for the shape."""
    jax = jax_in_float64()
    z, y = jax.numpy.asarray(case.z), jax.numpy.asarray(case.y)

    def loss(z: Array, y: Array) -> Array:
        return jax_losses(z, y).mean()

    function = {
        "softmax": lambda z, _: jax.nn.softmax(z, axis=1),
        "log_softmax": lambda z, _: jax.nn.log_softmax(z, axis=1),
        "logsumexp": lambda z, _: jax.nn.logsumexp(z, axis=1),
        "softmax_loss": loss,
        "softmax_loss_and_grad": jax.value_and_grad(loss),
    }[case.operation]
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(z, y))


def scipy(case: Case) -> Call | None:
    """scipy.special."""
    special = importlib.import_module("scipy.special")
    function = getattr(special, case.operation, None)
    return None if function is None else functools.partial(function, case.z, axis=1)


def sklearn(case: Case) -> Call | None:
    """Scikit-learn's private multinomial loss."""
    loss = sklearn_loss(case.classes)
    losses, out = np.empty(case.rows, case.dtype), np.empty_like(case.z)
    options = {
        "y_true": case.y.astype(case.dtype),
        "raw_prediction": case.z,
        "sample_weight": np.full(case.rows, 1.0 / case.rows, case.dtype),
        "n_threads": os.cpu_count(),
    }

    def loss_and_grad() -> Any:
        loss.loss_gradient(**options, loss_out=losses, gradient_out=out)
        return losses.sum(), out

    if case.operation == "softmax_loss":
        return lambda: loss.loss(**options, loss_out=losses).sum()
    return loss_and_grad if case.operation == "softmax_loss_and_grad" else None


def _on_cupy(make: Callable[[Case], Call | None], case: Case) -> Call | None:
    """The same on arrays of the GPU, waiting for the result."""
    import cupy

    moved = Case(case.operation, case.rows, case.classes, case.dtype, case.logits)
    moved.__dict__.update(z=cupy.asarray(case.z), y=cupy.asarray(case.y))
    return _waiting(make(moved), cupy.cuda.get_current_stream().synchronize)


def _waiting(call: Call | None, wait: Call) -> Call | None:
    def waited() -> Any:
        result = call()
        wait()
        return result

    return None if call is None else waited


def cupy_plain(case: Case) -> Call | None:
    """Write the usual lines with CuPy."""
    import cupy

    return _on_cupy(functools.partial(plain_numpy, xp=cupy), case)


def cupyx(case: Case) -> Call | None:
    """cupyx.scipy.special."""
    special = importlib.import_module("cupyx.scipy.special")

    def make(moved: Case) -> Call | None:
        function = getattr(special, case.operation, None)
        return None if function is None else functools.partial(function, moved.z, axis=1)

    return _on_cupy(make, case)


def _on_cuda(make: Callable[..., Call], case: Case) -> Call | None:
    import torch

    return _waiting(make(case, device="cuda"), torch.cuda.synchronize)


def liger(case: Case) -> Call | None:
    """Liger's Triton kernel, forward and backward, on a copy of the logits."""
    functions = importlib.import_module("liger_kernel.transformers.functional")
    if case.operation != "softmax_loss_and_grad":
        return None
    import torch

    z, y = torch.from_numpy(case.z).to("cuda"), torch.from_numpy(case.y).to("cuda")

    def call() -> Any:
        logits = z.clone().requires_grad_()  # its gradient overwrites them
        loss = functions.liger_cross_entropy(logits, y)
        loss.backward()
        return loss.detach(), logits.grad

    return _waiting(call, torch.cuda.synchronize)


COMPETITORS: dict[str, Callable[[Case], Call | None]] = {
    "xpsoftmax": package,
    "xpsoftmax new": functools.partial(package, new=True),
    "xpsoftmax 1 thread": on_one_thread,
    "xpsoftmax generic": functools.partial(package, impl="generic"),
    "NumPy": plain_numpy,
    "torch": torch_eager,
    "torch.compile": torch_compiled,
    "JAX": jax_jit,
    "SciPy": scipy,
    "scikit-learn": sklearn,
    "np.exp": functools.partial(on_all_cores, quiet_exp),
    "copy": functools.partial(on_all_cores, lambda z, out: np.copyto(out, z)),
    "kernel": kernel_alone,
}
ON_GPU: dict[str, Callable[[Case], Call | None]] = {
    "CuPy xpsoftmax": functools.partial(_on_cupy, package),
    "CuPy xpsoftmax generic": functools.partial(_on_cupy, functools.partial(package, impl="generic")),
    "CuPy": cupy_plain,
    "cupyx": cupyx,
    "CUDA torch": functools.partial(_on_cuda, torch_eager),
    "CUDA torch.compile": functools.partial(_on_cuda, torch_compiled),
    "CUDA Liger": liger,
}


def missing(names: Sequence[str]) -> dict[str, str]:
    """Why competitors cannot be used here: they are tried on a small case of each operation."""
    reasons = {}
    for name in names:
        try:
            for operation in OPERATIONS:
                call = (COMPETITORS | ON_GPU)[name](Case(operation, 2, 3, "float32"))
                if call is not None:
                    call()
                    break
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the reason
            reasons[name] = described(error)
    return reasons


# --- verify, then time ------------------------------------------------------------------------------------------------


def made(name: str, case: Case, truth: Any) -> Made:
    """Return a competitor's call, and what compares its result with the truth; None where it lacks the operation."""
    call = (COMPETITORS | ON_GPU)[name](case)
    if call is None:
        return None
    return call, None if name in ("np.exp", "copy") else lambda: difference(call(), truth)


def measured(case: Case, names: Sequence[str], seconds: float) -> Finding:
    """Verify the competitors and time those that are right, in turn, for about so many seconds each."""
    finding = Finding(case)
    truth = exact(case)
    makers = {name: functools.partial(made, name, case, truth) for name in names}
    calls, errors = verified(makers, ALLOWED[case.dtype], finding.problems)
    del truth, makers
    if "xpsoftmax" in calls and case.operation == "softmax_loss_and_grad":
        finding.shifted_rows = share_of_shifted_rows(case)
    finding.timings = timings(calls, errors, seconds)
    for name in ("z", "y"):  # made again if they are wanted again
        case.__dict__.pop(name, None)
    return finding


def share_of_shifted_rows(case: Case) -> float:
    """Return the share of rows that the NumPy kernel shifts because the sum of exponentials leaves its range.

    A few more have a label that leads, or is behind, by very much.
    """
    lse = xs.logsumexp(case.z)
    limits = RANGES[case.z.itemsize]
    return float(np.mean((lse < np.log(limits.least_total)) | (lse > np.log(limits.most_total))))


# --- what is printed, drawn and written -------------------------------------------------------------------------------


def names_in(findings: Sequence[Finding]) -> list[str]:
    """Every name that was timed, in the order of the registers."""
    return [name for name in COMPETITORS | ON_GPU if any(name in finding.timings for finding in findings)]


def table(operation: str, findings: Sequence[Finding]) -> Table:
    """Times relative to PyTorch's on the same device, its milliseconds, and our traffic."""
    names = names_in(findings)
    result = Table(title=f"{operation}: time / time of PyTorch eager")
    for heading in ("shape", "dtype", "logits"):
        result.add_column(heading)
    for name in names:
        result.add_column(f"{name} ms" if name in REFERENCES else name, justify="right")
    for heading in ("GB/s", "shifted rows"):
        result.add_column(heading, justify="right")
    for finding in findings:
        case = finding.case
        cells = [case.shape, case.dtype, case.logits, *(finding.cell(name) for name in names)]
        shifted = "-" if finding.shifted_rows is None else f"{finding.shifted_rows:.0%}"
        result.add_row(*cells, f"{finding.speed():.3g}", shifted)
    return result


def show(findings: Sequence[Finding], absent: dict[str, str], console: Console) -> None:
    """Print the tables, what calls of small arrays cost, what is missing and what is wrong."""
    for operation in OPERATIONS:
        of_operation = [finding for finding in findings if finding.case.operation == operation]
        if of_operation:
            console.print(table(operation, of_operation))
    for finding in findings:
        share = finding.overhead()
        if share is not None and finding.case.rows * finding.case.classes < 10_000:
            console.print(f"{finding.case}: validation and dispatch take {share:.0%} of the call", highlight=False)
    for name, reason in absent.items():
        console.print(f"not used: {name}: {reason}", markup=False, highlight=False)
    for finding in findings:
        for problem in finding.problems:
            console.print(f"PROBLEM: {finding.case}: {problem}", style="bold red", markup=False, highlight=False)


def draw(findings: Sequence[Finding], path: Path) -> None:
    """Draw the ratios to PyTorch, a panel for each operation and dtype."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.case.logits == "normal":
            groups.setdefault(f"{finding.case.operation}, {finding.case.dtype}", []).append(finding)
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    size = (6.5 * columns, 3.6 * rows + 1.0)
    with drawn(path, rows, columns, size, dpi=100) as (figure, panels):
        for axes, (title, group) in itertools.zip_longest(panels.flat, groups.items(), fillvalue=("", [])):
            _draw_ratios(axes, title, group, names_in(findings))
        handles = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)


def _draw_ratios(axes: Any, title: str, findings: Sequence[Finding], names: Sequence[str]) -> None:
    if not findings:
        axes.set_axis_off()
        return
    for i, name in enumerate(names):
        ratios = [finding.ratio(name) or np.nan for finding in findings]
        ours, floor = "xpsoftmax" in name, name in FLOORS
        style = {"linewidth": 2.5 if ours else 1.2, "linestyle": ":" if floor else "-", "color": f"C{i % 10}"}
        if np.isfinite(ratios).any():
            axes.plot([finding.case.shape for finding in findings], ratios, label=name, marker=".", **style)
    axes.set(yscale="log", title=title, ylabel="time / PyTorch eager")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.tick_params(axis="x", rotation=30)


def as_json(findings: Sequence[Finding], absent: dict[str, str], argv: Sequence[str]) -> str:
    """Everything as JSON."""
    content = [
        {
            **asdict(finding),
            "ratios": {name: finding.ratio(name) for name in finding.timings},
            "gigabytes_per_second": finding.speed(),
            "overhead": finding.overhead(),
        }
        for finding in findings
    ]
    return json_text(run_record("benchmarks/bench.py", argv, PACKAGES, simd=simd(), absent=absent, findings=content))


# --- the command line -------------------------------------------------------------------------------------------------


def cases(operations: Sequence[str], shapes: Sequence[str], dtypes: Sequence[str]) -> Iterator[Case]:
    """All combinations; loss and gradient also on logits that need the shift."""
    for operation, shape, dtype in itertools.product(operations, shapes, dtypes):
        rows, classes = map(int, shape.split("x"))
        yield Case(operation, rows, classes, dtype)
        if operation == "softmax_loss_and_grad":
            yield Case(operation, rows, classes, dtype, "shifted")


def parser() -> Parser:
    """Name the options."""
    options = parser_of(__file__, __doc__)
    options.add_argument("--operation", action="append", choices=OPERATIONS, help="only this one (repeatable)")
    options.add_argument("--shape", action="append", type=as_shape, metavar="NxC", help="only this one (repeatable)")
    options.add_argument("--dtype", action="append", choices=DTYPES, help="only this one (repeatable)")
    options.add_argument(
        "--competitor", action="append", choices=[*COMPETITORS, *ON_GPU], help="only this one (repeatable)"
    )
    options.add_argument(
        "--seconds", type=float, default=1.0, help="for each competitor and case; default: %(default)s"
    )
    options.add_files("bench", json="json", plot="png")
    return options


def as_shape(text: str) -> str:
    """Return a shape as it is listed."""
    return "x".join(map(str, sizes(text, 2, example="256x1000")))


def main(argv: Sequence[str] | None = None) -> int:
    """Verify, time, print, draw and write; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser()
    given = options.parse_args(argv)
    options.check_files(given.json, given.plot)
    console = Console()
    if not console.is_terminal:
        console.width = 240  # a table in a file need not fit a window
    wanted = given.competitor or [*COMPETITORS, *ON_GPU]
    absent = missing(wanted)
    names = [name for name in wanted if name not in absent]
    findings: list[Finding] = []
    with np.errstate(all="ignore"):  # plain NumPy warns
        for case in cases(given.operation or OPERATIONS, given.shape or SHAPES, given.dtype or DTYPES):
            finding = measured(case, names, given.seconds)
            findings.append(finding)
            cells = ", ".join(f"{name} {finding.cell(name)}" for name in finding.timings)
            console.print(f"{case}: {cells}", markup=False, highlight=False, soft_wrap=True)
            given.json.write_text(as_json(findings, absent, argv))
    show(findings, absent, console)
    draw(findings, given.plot)
    console.print(f"Written: {given.json} and {given.plot}", markup=False, highlight=False, soft_wrap=True)
    return 1 if any(finding.problems for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
