"""Train one network on every array library found here, from the same weights and batches, and compare them.

    python scripts/compare_backends.py
    python scripts/compare_backends.py --backend torch --backend jax --dtype float64

A two-layer network learns scikit-learn's handwritten digits (1797 images of 8 x 8 pixels, 10 classes) by plain
minibatch gradient descent with `train`, once for each library: NumPy always, and CuPy, PyTorch, JAX, array-api-strict
and dask where they can be used (dask in a loop of its own, since `train` does not take its arrays). It prints, and
writes as JSON, PNG and one HTML page that loads nothing (--json, --plot, --html; by default into report/ under the
current directory):

- train and test accuracy, and the loss of the training set at the end;
- how far loss and gradients are from those of NumPy in float64 for the very same (rounded) weights and inputs, at the
  first weights and at those where training ends and the network is sure of most rows. The unit is eps of --dtype:
  largest difference / largest entry of the reference / eps. NumPy in float64 is the reference itself: 0;
- the time of a step (rows taken, loss, gradients, update), the median after warming up, and the speed relative to
  NumPy. The libraries run one after the other, on a small problem: what is timed is mostly what a call costs.

Exit status: 0; 1 if a library fails or is outside its error budget (`budget`) or, with the default hyper-parameters and
seed, outside `LEAST_ACCURACY` or `ACCURACY_MARGIN`; 2 for a bad option.

Needs scikit-learn, rich and matplotlib: pip install '.[report]' in a clone.
"""

from __future__ import annotations

import functools
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from _compare_page import page
from _report import Parser, described, finite, surroundings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import xpsoftmax as xs
from xpsoftmax import Layer, init_params, mlp_logits, mlp_loss, mlp_loss_and_grad, mlp_predict

Array: TypeAlias = Any
Params: TypeAlias = tuple[Layer, ...]

CLASSES = 10
SPLIT_SEED = 0
QUANTITIES = ("loss", "W1", "b1", "W2", "b2")
WARM_UP = 10
"""Steps that are not timed: they compile, and fill caches."""
DASK_ROWS = 64
"""Rows of a chunk: a default batch has two, so that sums over chunks are part of the comparison."""
LEAST_ACCURACY = 0.95
"""Of the test set; with the default hyper-parameters, seeds 0 to 5 end between 96.2 and 97.3 %."""
ACCURACY_MARGIN = 0.01
"""From NumPy's test accuracy, 4 of 450 images: different roundings lead to weights that differ in their last digits,
and an image that lies between two classes may then fall to either side."""


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters: by default 275 steps, which bring every library above `LEAST_ACCURACY`."""

    dtype: str = "float32"
    epochs: int = 25
    batch_size: int = 128
    hidden: int = 64
    learning_rate: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("hidden", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{flag(name)} must be at least {least}, got {getattr(self, name)}")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"--learning-rate must be a positive number, got {self.learning_rate}")


def flag(name: str) -> str:
    """Spell the option of a setting."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Task:
    """Data, first weights and batches, drawn once on the host for all libraries; floats in float64."""

    X_train: np.ndarray
    X_test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray
    params: Params
    batches: list[list[np.ndarray]]  # of each epoch: row numbers


@dataclass(frozen=True)
class Result:
    """What one library did."""

    version: str
    device: str
    train_accuracy: float
    test_accuracy: float
    final_loss: float
    differences_eps: dict[str, dict[str, float]]  # state -> quantity -> distance from the reference
    step_seconds: tuple[float, ...]  # lower quartile, median, upper quartile
    losses: list[float]  # mean of each epoch


@dataclass
class Report:
    """Everything that is printed, drawn and written."""

    options: Settings
    budgets_eps: dict[str, float]  # by state
    unusable: dict[str, str]
    backends: dict[str, Result] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # any makes the exit status 1

    def speed(self, name: str) -> float:
        """How many steps are done in the time of one of NumPy's."""
        return self.backends["numpy"].step_seconds[1] / self.backends[name].step_seconds[1]


# --- the libraries ----------------------------------------------------------------------------------------------------


def _as_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Backend:
    """A library, and the only ways in which numbers get into it and out of it."""

    version: str
    device: str
    asarray: Callable[[np.ndarray], Array]
    to_numpy: Callable[[Array], np.ndarray]
    finish: Callable[[Any], Any] = _as_is  # return the arrays once they are really there
    compiled: Callable[[Any], Any] = _as_is
    lazy: bool = False


def _load_numpy(_dtype: str) -> Backend:
    return Backend(np.__version__, "CPU", np.asarray, np.asarray)


def _load_cupy(_dtype: str) -> Backend:
    import cupy

    gpu = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    driver = cupy.cuda.runtime.driverGetVersion()

    def finish(value: Any) -> Any:
        cupy.cuda.get_current_stream().synchronize()
        return value

    return Backend(cupy.__version__, f"{gpu}, driver for CUDA {driver}", cupy.asarray, cupy.asnumpy, finish)


def _load_torch(_dtype: str) -> Backend:
    import torch

    version = str(torch.__version__)
    if not torch.cuda.is_available():
        return Backend(version, "CPU", torch.tensor, lambda tensor: tensor.numpy())

    def finish(value: Any) -> Any:
        torch.cuda.synchronize()
        return value

    device = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    asarray = functools.partial(torch.tensor, device="cuda")
    return Backend(version, device, asarray, lambda tensor: tensor.cpu().numpy(), finish)


def _load_jax(dtype: str) -> Backend:
    import jax

    jax.config.update("jax_enable_x64", dtype == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")  # a GPU's default for float32 is TensorFloat-32
    device = jax.devices()[0].device_kind.replace("cpu", "CPU")
    return Backend(jax.__version__, device, jax.numpy.asarray, np.asarray, jax.block_until_ready, jax.jit)


def _load_strict(_dtype: str) -> Backend:
    import array_api_strict

    return Backend(array_api_strict.__version__, "CPU", array_api_strict.asarray, np.from_dlpack)


def _load_dask(_dtype: str) -> Backend:
    import dask
    import dask.array

    dask.config.set(scheduler="synchronous")  # a task here is far too small for a thread of its own

    def asarray(values: np.ndarray) -> Array:
        return dask.array.from_array(values, chunks=(DASK_ROWS, *values.shape[1:]))

    def finish(value: Any) -> Any:
        return dask.persist(value)[0]  # or the graph of a step would hold those of all steps before

    return Backend(dask.__version__, "CPU", asarray, lambda array: np.asarray(array.compute()), finish, lazy=True)


LOADERS: dict[str, Callable[[str], Backend]] = {
    "numpy": _load_numpy,
    "cupy": _load_cupy,
    "torch": _load_torch,
    "jax": _load_jax,
    "array-api-strict": _load_strict,
    "dask": _load_dask,
}


def probe(name: str, dtype: str) -> Backend | str:
    """Return the library, ready for use, or the reason why it cannot be used."""
    try:
        backend = LOADERS[name](dtype)
        ones = backend.asarray(np.ones((2, 2), dtype))
        backend.to_numpy(ones @ ones)
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the reason
        return described(error)
    return backend


def drawn(settings: Settings) -> Task:
    """Split the data, which no option changes, and draw weights and batches."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(
        X / 16.0, y, test_size=0.25, stratify=y, random_state=SPLIT_SEED
    )
    rows, size = X_train.shape[0], settings.batch_size
    if size > rows:
        raise ValueError(f"--batch-size must be at most {rows}, the rows of the training set, got {size}")
    params = init_params((X.shape[1], settings.hidden, CLASSES), rng=settings.seed, dtype=np.float64)
    rng, edges = np.random.default_rng(settings.seed), range(size, rows, size)
    batches = [np.split(rng.permutation(rows), edges) for _ in range(settings.epochs)]  # as `train` draws them
    return Task(X_train, X_test, y_train, y_test, params, batches)


def mapped(function: Callable[[Array], Array], params: Params) -> Params:
    """Apply a function to every weight matrix and bias."""
    return tuple(Layer(*(function(array) for array in layer)) for layer in params)


def moved(backend: Backend, params: Params, dtype: str) -> Params:
    """Round parameters to the dtype and bring them into a library."""
    return mapped(lambda array: backend.asarray(array.astype(dtype)), params)


def descended(params: Params, X: Array, y: Array, *, learning_rate: float) -> tuple[Array, Params]:
    """Return the loss, and the parameters after a step of gradient descent."""
    loss, grads = mlp_loss_and_grad(params, X, y, validate=False)
    pairs = zip(params, grads, strict=True)
    return loss, tuple(Layer(*(w - learning_rate * g for w, g in zip(*pair, strict=True))) for pair in pairs)


def train(
    backend: Backend, task: Task, settings: Settings, tick: Callable[[], object] = lambda: None
) -> tuple[Params, list[float], list[float]]:
    """Return the trained parameters, still in the library, and the loss and the seconds of each step."""
    if backend.lazy:
        return by_hand(backend, task, settings, tick)
    seconds: list[float] = []
    start = 0.0

    def callback(step: xs.TrainStep) -> None:
        nonlocal start
        backend.finish(step.loss)
        seconds.append(time.perf_counter() - start)
        tick()
        start = time.perf_counter()

    X, y = backend.asarray(task.X_train.astype(settings.dtype)), backend.asarray(task.y_train)
    params = moved(backend, task.params, settings.dtype)
    start = time.perf_counter()
    result = xs.train(
        params,
        X,
        y,
        optimizer=xs.sgd(settings.learning_rate),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        rng=settings.seed,
        callback=callback,
    )
    return result.params, result.history["loss"], seconds


def by_hand(
    backend: Backend, task: Task, settings: Settings, tick: Callable[[], object]
) -> tuple[Params, list[float], list[float]]:
    """Do what `train` does, on arrays that it does not take."""
    params = moved(backend, task.params, settings.dtype)
    losses, seconds = [], []
    for rows in (rows for epoch in task.batches for rows in epoch):
        start = time.perf_counter()
        X = backend.asarray(task.X_train[rows].astype(settings.dtype))
        y = backend.asarray(task.y_train[rows])
        loss, params = backend.finish(descended(params, X, y, learning_rate=settings.learning_rate))
        seconds.append(time.perf_counter() - start)
        losses.append(float(backend.to_numpy(loss)))
        tick()
    return params, losses, seconds


def run(
    backend: Backend, task: Task, states: dict[str, Params], settings: Settings, tick: Callable[[], object]
) -> Result:
    """Train, and measure everything about one library."""
    params, losses, seconds = train(backend, task, settings, tick)
    X, X_test = (backend.asarray(part.astype(settings.dtype)) for part in (task.X_train, task.X_test))
    labels = backend.finish(mlp_predict(params, X)), backend.finish(mlp_predict(params, X_test))
    quartiles = np.quantile(seconds[min(WARM_UP, len(seconds) // 2) :], (0.25, 0.5, 0.75))
    return Result(
        version=backend.version,
        device=backend.device,
        train_accuracy=float(np.mean(backend.to_numpy(labels[0]) == task.y_train)),
        test_accuracy=float(np.mean(backend.to_numpy(labels[1]) == task.y_test)),
        final_loss=float(backend.to_numpy(backend.finish(mlp_loss(params, X, backend.asarray(task.y_train))))),
        differences_eps={state: differences(backend, task, at, settings.dtype) for state, at in states.items()},
        step_seconds=tuple(quartiles.tolist()),
        losses=np.mean(np.reshape(losses, (settings.epochs, -1)), axis=1).tolist(),
    )


# --- how far from the reference ---------------------------------------------------------------------------------------


def budget(task: Task, params: Params) -> float:
    """Return how far a library may be from the reference, in eps: N + C + (D + H) max |z|.

    A sum of n products, in whatever order, is wrong by at most n eps/2 times the sum of their sizes (N. J. Higham,
    "Accuracy and stability of numerical algorithms", section 3.1). A logit z is the end of sums of D and of H products:
    wrong by (D + H) eps/2 |z|. A probability depends on the difference of two logits, and its relative error, that of
    the loss and of dlogits, is the absolute error of this difference: (D + H) eps |z|, with the largest |z| of the
    batch (at least 1). Going back, sums of C and of N products add C + N.

    This is the worst case, linear in the lengths, for sums whose terms do not cancel; what is found grows like their
    square roots and is 50 to 200 times less. Products in TensorFloat-32 or bfloat16 exceed it at the first weights.
    (A hidden unit so close to 0 that rounding turns it on or off is not covered: in float32, none of 1500 seeds.)
    """
    rows = task.batches[0][0]
    features, hidden = params[0].weight.shape
    largest = float(np.max(np.abs(mlp_logits(params, task.X_train[rows]))))
    return float(len(rows) + CLASSES + (features + hidden) * max(1.0, largest))


def differences(backend: Backend, task: Task, params: Params, dtype: str) -> dict[str, float]:
    """Compare loss and gradients on the first batch with those of NumPy float64, in eps of the dtype."""
    rows = task.batches[0][0]
    X, y = task.X_train[rows].astype(dtype), task.y_train[rows]
    rounded = mapped(lambda array: array.astype(dtype).astype(np.float64), params)
    exact = mlp_loss_and_grad(rounded, X.astype(np.float64), y)
    function = backend.compiled(functools.partial(mlp_loss_and_grad, validate=False))
    found = backend.finish(function(moved(backend, params, dtype), backend.asarray(X), backend.asarray(y)))
    pairs = zip(QUANTITIES, _flat(found), _flat(exact), strict=True)
    return {name: distance(backend.to_numpy(a), b) / float(np.finfo(dtype).eps) for name, a, b in pairs}


def _flat(loss_and_grads: tuple[Array, Params]) -> list[Array]:
    loss, grads = loss_and_grads
    return [loss, *(array for layer in grads for array in layer)]


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    """Largest difference relative to the largest entry; nan where either holds one."""
    error, size = float(np.max(np.abs(found - exact))), float(np.max(np.abs(exact)))
    if size == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / size


# --- the comparison ---------------------------------------------------------------------------------------------------


def compared(settings: Settings, task: Task, backends: dict[str, Backend], report: Report, console: Console) -> None:
    """Train on every library and add the results to the report."""
    # The second state: where NumPy in float64 ends.
    trained, _, _ = train(_load_numpy("float64"), task, replace(settings, dtype="float64"))
    states = {"first": task.params, "trained": trained}
    report.budgets_eps = {state: budget(task, params) for state, params in states.items()}
    columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    steps = sum(map(len, task.batches))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        for name, backend in backends.items():
            bar = bars.add_task(name, total=steps)
            try:
                result = run(backend, task, states, settings, functools.partial(bars.advance, bar))
            except Exception as error:
                if name == "numpy":  # there is nothing to compare with
                    raise
                report.problems.append(f"{name} failed: {described(error)}")
                continue
            report.backends[name] = result
            done = (
                f"{name} {result.version} on {result.device}: {steps} steps, test accuracy {result.test_accuracy:.2%}"
            )
            console.print(done, markup=False, highlight=False)


def judged(name: str, report: Report) -> list[str]:
    """Say what is outside its limits. Accuracies have limits only with the default hyper-parameters and seed."""
    result = report.backends[name]
    problems = [
        f"{name}: {quantity} at the {state} weights is {eps:.3g} eps from the reference, "
        f"the budget is {report.budgets_eps[state]:.0f}"
        for state, found in result.differences_eps.items()
        for quantity, eps in found.items()
        if not eps <= report.budgets_eps[state]  # nan is outside
    ]
    if report.options == Settings(dtype=report.options.dtype):
        apart = abs(result.test_accuracy - report.backends["numpy"].test_accuracy)
        if result.test_accuracy < LEAST_ACCURACY:
            problems.append(f"{name}: test accuracy {result.test_accuracy:.2%} is below {LEAST_ACCURACY:.0%}")
        if apart > ACCURACY_MARGIN:
            problems.append(f"{name}: test accuracy is {apart:.2%} from NumPy's, the margin is {ACCURACY_MARGIN:.0%}")
    return problems


# --- what is printed, drawn and written -------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """Print the tables, and what is missing or wrong."""
    console.print(_training_table(report), _difference_table(report))
    for name, reason in report.unusable.items():
        console.print(f"not used: {name}: {reason}", markup=False, highlight=False)
    for problem in report.problems:
        console.print(f"PROBLEM: {problem}", style="bold red", markup=False, highlight=False)


def _training_table(report: Report) -> Table:
    options = report.options
    table = Table(title=f"Digits: {options.hidden} hidden units, {options.epochs} epochs, {options.dtype}")
    table.add_column("backend")
    for heading in ("train", "test", "final loss", "ms a step", "speed"):
        table.add_column(heading, justify="right")
    for name, result in report.backends.items():
        cells = (f"{result.train_accuracy:.2%}", f"{result.test_accuracy:.2%}", f"{result.final_loss:.6f}")
        table.add_row(name, *cells, f"{1e3 * result.step_seconds[1]:.3g}", f"{report.speed(name):.3g} x")
    return table


def _difference_table(report: Report) -> Table:
    table = Table(title=f"Largest difference from NumPy float64, in eps of {report.options.dtype}")
    table.add_column("backend")
    table.add_column("weights")
    for heading in (*QUANTITIES, "budget"):
        table.add_column(heading, justify="right")
    for name, result in report.backends.items():
        for state, found in result.differences_eps.items():
            limit = report.budgets_eps[state]
            cells = [f"{eps:.2f}" if eps <= limit else f"[bold red]{eps:.3g}[/]" for eps in found.values()]
            table.add_row(name, state, *cells, f"{limit:.0f}")
    return table


def draw(report: Report, path: Path) -> None:
    """Draw the loss curves and the times of a step."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    _draw_losses(left, report)
    _draw_times(right, report)
    figure.savefig(path, format="png", dpi=120)
    plt.close(figure)


def _draw_losses(axes: Any, report: Report) -> None:
    # One over the other, the first one broadest: where all agree, every colour is still seen.
    widths = 1.5 + 1.6 * np.arange(len(report.backends))[::-1]
    for width, (name, result) in zip(widths, report.backends.items(), strict=True):
        axes.plot(range(1, len(result.losses) + 1), result.losses, label=name, linewidth=width)
    axes.set(
        yscale="log", xlabel="epoch", ylabel="mean loss of the batches", title="Loss (equal curves lie on each other)"
    )
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.yaxis.set_major_formatter("{x:g}")
    for line in axes.legend().get_lines():
        line.set_linewidth(4.0)


def _draw_times(axes: Any, report: Report) -> None:
    names = list(report.backends)
    low, middle, high = 1e3 * np.array([report.backends[name].step_seconds for name in names]).T
    colours = [f"C{i}" for i in range(len(names))]
    bars = axes.barh(names, middle, xerr=(middle - low, high - middle), color=colours, ecolor="0.2", capsize=4)
    axes.bar_label(bars, [f"{value:.3g} ms" for value in middle], padding=5)
    axes.set(
        xscale="log", xlabel="milliseconds, median and quartiles", title=f"Time of a step ({report.options.dtype})"
    )
    axes.set_xlim(np.min(low) / 4.0, 4.0 * np.max(high))  # room for bars and labels
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="x", alpha=0.3)
    axes.invert_yaxis()


def described_run(report: Report, argv: Sequence[str]) -> dict[str, Any]:
    """Return everything, and where it ran."""
    content: dict[str, Any] = {
        "command": shlex.join(["python", "scripts/compare_backends.py", *argv]),
        "date": datetime.now(UTC).date().isoformat(),
        **surroundings(("array-api-compat", "numpy", "scikit-learn", "matplotlib", "rich")),
        "accuracy_limits": {"least": LEAST_ACCURACY, "margin": ACCURACY_MARGIN},
        **asdict(report),
    }
    for name, result in content["backends"].items():
        result["speed"] = report.speed(name)
    return content


def as_json(content: dict[str, Any]) -> str:
    """Everything as JSON; numbers that are not finite become null."""
    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"


# --- the command line -------------------------------------------------------------------------------------------------


def parser() -> Parser:
    """Name the options."""
    options = Parser(prog="compare_backends.py", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    options.add_argument("--backend", action="append", choices=LOADERS, help="compare NumPy with this one (repeatable)")
    options.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="default: %(default)s")
    for setting in fields(Settings)[1:]:
        options.add_argument(
            flag(setting.name), type=type(setting.default), default=setting.default, help="default: %(default)s"
        )
    for kind, end in (("json", "json"), ("plot", "png"), ("html", "html")):
        path = Path("report", f"compare_backends.{end}")
        options.add_argument(f"--{kind}", type=Path, default=path, metavar="PATH", help="default: %(default)s")
    return options


def usable(wanted: Sequence[str], dtype: str) -> tuple[dict[str, Backend], dict[str, str]]:
    """Return the libraries that can be used, NumPy first, and why others cannot; one that is wanted must be usable."""
    probed = {name: probe(name, dtype) for name in (["numpy", *wanted] if wanted else LOADERS)}
    reasons = {name: reason for name, reason in probed.items() if isinstance(reason, str)}
    if wanted and reasons:
        raise ValueError("; ".join(f"--backend {name} cannot be used: {reason}" for name, reason in reasons.items()))
    return {name: backend for name, backend in probed.items() if isinstance(backend, Backend)}, reasons


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print, draw and write; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser()
    given = options.parse_args(argv)
    try:
        settings = Settings(**{setting.name: getattr(given, setting.name) for setting in fields(Settings)})
        task = drawn(settings)
        backends, unusable = usable(given.backend or (), settings.dtype)
        for path in (given.json, given.plot, given.html):  # one that cannot be written is found now, not at the end
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
    except (OSError, ValueError) as error:
        options.error(str(error))
    console = Console()
    report = Report(settings, {}, unusable)
    compared(settings, task, backends, report, console)
    report.problems += [problem for name in report.backends for problem in judged(name, report)]
    show(report, console)
    draw(report, given.plot)
    content = described_run(report, argv)
    given.json.write_text(as_json(content))
    given.html.write_bytes(page(content))
    files = f"{given.json}, {given.plot} and {given.html}"
    console.print(f"Written: {files}", markup=False, highlight=False, soft_wrap=True)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
