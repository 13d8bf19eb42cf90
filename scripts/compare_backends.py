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
  NumPy. The libraries run one after the other, on a small problem: what is timed is mostly what a call costs;
- loss and gradient of one sure row (`_compare_precision.py`), by the textbook formula and by this package.

Exit status: 0; 1 if a library fails, is outside its error budget (`budget`; docs/numerics.md for the sure row) or, with
the default hyper-parameters and seed, outside `LEAST_ACCURACY` or `ACCURACY_MARGIN`; 2 for a bad option or a missing
package.

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

import _report_extra  # noqa: F401 - the first: it says how to install what the others need
import numpy as np
from _compare_libraries import LOADERS, Array, Backend
from _compare_page import page
from _compare_plot import draw
from _compare_precision import bound, exact, relative_error, row, sure_row
from _compare_print import show
from _report import Parser, described, finite, surroundings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import xpsoftmax as xs
from xpsoftmax import Layer, init_params, mlp_logits, mlp_loss, mlp_loss_and_grad, mlp_predict

Params: TypeAlias = tuple[Layer, ...]

CLASSES = 10
SPLIT_SEED = 0
QUANTITIES = ("loss", "W1", "b1", "W2", "b2")
MODULES = ("cupy", "torch", "jax", "array_api_strict", "dask")
WARM_UP = 10
"""Steps that are not timed: they compile, and fill caches."""
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
    sure_row: dict[str, dict[str, float]] = field(default_factory=dict)  # formula -> quantity -> value


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


# --- one library ------------------------------------------------------------------------------------------------------


def probe(name: str, dtype: str) -> Backend | str:
    """Return the library, ready for use, or the reason why it cannot be used."""
    try:
        backend = LOADERS[name](dtype)
        ones = backend.asarray(np.ones((2, 2), dtype))
        backend.to_numpy(ones @ ones)
    except ModuleNotFoundError as error:
        return "not installed" if error.name in MODULES else described(error)
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the reason
        return f"installed, but it cannot be used here: {described(error)}"
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
        sure_row=sure_row(backend, settings.dtype),
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
    trained, _, _ = train(LOADERS["numpy"]("float64"), task, replace(settings, dtype="float64"))
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
    if result.sure_row:
        error, limit = relative_error(result.sure_row["xpsoftmax"], report.options.dtype), bound(report.options.dtype)
        if not error <= limit:
            problems.append(f"{name}: the sure row has a relative error of {error:.2g}, the bound is {limit:.2g}")
    if report.options == Settings(dtype=report.options.dtype):
        apart = abs(result.test_accuracy - report.backends["numpy"].test_accuracy)
        if result.test_accuracy < LEAST_ACCURACY:
            problems.append(f"{name}: test accuracy {result.test_accuracy:.2%} is below {LEAST_ACCURACY:.0%}")
        if apart > ACCURACY_MARGIN:
            problems.append(f"{name}: test accuracy is {apart:.2%} from NumPy's, the margin is {ACCURACY_MARGIN:.0%}")
    return problems


# --- what is written --------------------------------------------------------------------------------------------------


def described_run(report: Report, argv: Sequence[str]) -> dict[str, Any]:
    """Return everything, and where it ran."""
    content: dict[str, Any] = {
        "command": shlex.join(["python", "scripts/compare_backends.py", *argv]),
        "date": datetime.now(UTC).date().isoformat(),
        **surroundings(("array-api-compat", "numpy", "scikit-learn", "matplotlib", "rich")),
        "accuracy_limits": {"least": LEAST_ACCURACY, "margin": ACCURACY_MARGIN},
        "sure_row": {"logits": row(report.options.dtype), "exact": exact(report.options.dtype)},
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
        raise ValueError("; ".join(f"--backend {name}: {reason}" for name, reason in reasons.items()))
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
    content = described_run(report, argv)
    show(content, console)
    draw(content, given.plot)
    given.json.write_text(as_json(content))
    given.html.write_bytes(page(content))
    files = f"{given.json}, {given.plot} and {given.html}"
    console.print(f"Written: {files}", markup=False, highlight=False, soft_wrap=True)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
