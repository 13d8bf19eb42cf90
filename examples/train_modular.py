"""Train one network with two formulas for the gradient of the softmax loss, and see where training stalls.

    python examples/train_modular.py
    python examples/train_modular.py --modulus 7 --steps 200 --seeds 1

The task is addition modulo a prime, as in L. Prieto et al., "Grokking at the edge of numerical stability" (ICLR 2025,
arXiv:2501.04697): two numbers come in as one-hot vectors, their sum is the class. A network with one hidden layer is
trained on a part of the table with the whole batch at once, by Adam without weight decay, in float32. Once all rows are
right, all that training can do is to widen the gaps, so every row becomes surer and surer.

The three runs of a seed have the same data, first weights, optimiser, matrix products and number of steps. All that
differs is where the loss and the gradient of the logits come from:

- "standard": softmax shifted by the largest logit, minus one at the label, in plain NumPy, in float32;
- "xpsoftmax": `softmax_loss_and_grad`;
- "standard, then xpsoftmax": the first in the first half of the steps, the second from there on. It tells what comes
  of the formula from what comes of the network that another formula has led to.

After every so many steps these are recorded: the loss that the formula gives, and the exact one of the same logits
(computed in float64 without cancellation); the norm of the label entries of the gradient; the share of training rows
whose label entry is exactly zero; accuracy on the rows trained on and on the others; the norm of all weights, that of
their gradient, and the mean of the logits. The largest of the losses in the last quarter shows whether training was
steady. Products of so small matrices are faster on one thread: set OPENBLAS_NUM_THREADS=1.

Writes JSON and a PNG (--json, --plot; by default into report/ under the current directory). Exit status: 0; 2 for a bad
option. Nothing is expected of the result, so nothing can fail.

Needs matplotlib.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

from _report import Parser, json_text, parser_of, run_record
from _report import drawn as drawn_figure

import xpsoftmax as xs

Params: TypeAlias = tuple[xs.Layer, ...]
LossAndGrad: TypeAlias = Callable[[np.ndarray, np.ndarray], tuple[Any, np.ndarray]]


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters."""

    modulus: int = 31
    hidden: int = 128
    train_share: float = 0.4
    learning_rate: float = 0.01
    steps: int = 40000
    seeds: int = 5
    every: int = 200  # steps between two records

    def __post_init__(self) -> None:
        for name in ("hidden", "steps", "seeds", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.modulus < 2:
            raise ValueError(f"--modulus must be at least 2, got {self.modulus}")
        if not 0.0 < self.train_share < 1.0:
            raise ValueError(f"--train-share must lie between 0 and 1, got {self.train_share}")
        if not self.learning_rate > 0.0:
            raise ValueError(f"--learning-rate must be positive, got {self.learning_rate}")


@dataclass
class Trace:
    """One run: a number for each record."""

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)  # as the formula gives it
    exact_loss: list[float] = field(default_factory=list)  # of the same logits
    label_grad_norm: list[float] = field(default_factory=list)
    zero_share: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    weight_norm: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)  # of the same weights
    mean_logit: list[float] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Task:
    """Inputs and labels of the rows trained on, and of the others."""

    X: np.ndarray  # (N, 2 modulus) float32
    y: np.ndarray  # (N,)
    X_test: np.ndarray
    y_test: np.ndarray


def drawn(settings: Settings, seed: int) -> Task:
    """Split the table of sums."""
    p = settings.modulus
    a, b = (x.ravel() for x in np.meshgrid(np.arange(p), np.arange(p), indexing="ij"))
    order = np.random.default_rng(seed).permutation(p * p)
    cut = max(1, round(settings.train_share * p * p))
    X = np.zeros((p * p, 2 * p), np.float32)
    X[np.arange(p * p), a] = 1.0
    X[np.arange(p * p), p + b] = 1.0
    y = (a + b) % p
    train, test = order[:cut], order[cut:]
    return Task(X[train], y[train], X[test], y[test])


def standard(z: np.ndarray, y: np.ndarray) -> tuple[np.floating[Any], np.ndarray]:
    """Write the usual lines: softmax, minus one at the label, in the precision of the logits."""
    rows = np.arange(len(y))
    t = z - z.max(axis=1, keepdims=True)
    log_p = t - np.log(np.exp(t).sum(axis=1, keepdims=True))
    dz = np.exp(log_p)
    dz[rows, y] -= 1.0
    dz /= len(y)
    return -log_p[rows, y].mean(), dz


FORMULAS: dict[str, tuple[LossAndGrad, LossAndGrad]] = {
    "standard": (standard, standard),
    "xpsoftmax": (xs.softmax_loss_and_grad, xs.softmax_loss_and_grad),
    "standard, then xpsoftmax": (standard, xs.softmax_loss_and_grad),
}
"""In the first half of the steps, and in the second."""


def forward(params: Params, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden activations (N, H) and logits (N, C)."""
    (W1, b1), (W2, b2) = params
    hidden = np.maximum(X @ W1 + b1, 0.0)
    return hidden, hidden @ W2 + b2


def backward(params: Params, X: np.ndarray, hidden: np.ndarray, dlogits: np.ndarray) -> Params:
    """Gradients, the same for both formulas."""
    dz1 = (dlogits @ params[1].weight.T) * (hidden > 0.0)
    return xs.Layer(X.T @ dz1, dz1.sum(axis=0)), xs.Layer(hidden.T @ dlogits, dlogits.sum(axis=0))


def trained(settings: Settings, seed: int, halves: tuple[LossAndGrad, LossAndGrad]) -> Trace:
    """Train one network and record."""
    task, trace, start = drawn(settings, seed), Trace(), time.perf_counter()
    sizes = (2 * settings.modulus, settings.hidden, settings.modulus)
    params = xs.init_params(sizes, rng=seed, dtype=np.float32)
    optimizer = xs.adam(settings.learning_rate)
    state = optimizer.init(params)
    for step in range(settings.steps + 1):
        hidden, z = forward(params, task.X)
        loss, dlogits = halves[2 * step >= settings.steps](z, task.y)
        grads = backward(params, task.X, hidden, dlogits)
        if step % settings.every == 0 or step == settings.steps:
            record(trace, step, params, task, z, float(loss), dlogits)
            trace.grad_norm.append(norm(grads))
        if step < settings.steps:
            params, state = optimizer.update(params, grads, state)
    trace.seconds = round(time.perf_counter() - start, 1)
    return trace


def record(trace: Trace, step: int, params: Params, task: Task, z: np.ndarray, loss: float, dz: np.ndarray) -> None:
    """Add what is looked at."""
    of_labels = dz[np.arange(len(task.y)), task.y].astype(np.float64)
    trace.step.append(step)
    trace.loss.append(loss)
    trace.exact_loss.append(float(xs.softmax_loss(z.astype(np.float64), task.y)))
    trace.label_grad_norm.append(float(np.linalg.norm(of_labels)))
    trace.zero_share.append(float(np.mean(of_labels == 0.0)))
    trace.train_accuracy.append(float(np.mean(z.argmax(axis=1) == task.y)))
    trace.test_accuracy.append(float(np.mean(forward(params, task.X_test)[1].argmax(axis=1) == task.y_test)))
    trace.weight_norm.append(norm(params))
    trace.mean_logit.append(float(z.mean(dtype=np.float64)))


def norm(params: Params) -> float:
    """Return the norm of all weights, biases excepted."""
    return float(np.hypot(*(np.linalg.norm(layer.weight) for layer in params)))


def summary(trace: Trace) -> dict[str, float]:
    """What a table has room for."""
    last = max(1, len(trace.step) // 4)
    return {
        "final_exact_loss": trace.exact_loss[-1],
        "largest_exact_loss_of_last_quarter": max(trace.exact_loss[-last:]),
        "final_zero_share": trace.zero_share[-1],
        "largest_zero_share": max(trace.zero_share),
        "final_train_accuracy": trace.train_accuracy[-1],
        "final_test_accuracy": trace.test_accuracy[-1],
        "best_test_accuracy": max(trace.test_accuracy),
        "final_weight_norm": trace.weight_norm[-1],
        "final_mean_logit": trace.mean_logit[-1],
    }


# --- what is drawn and written ----------------------------------------------------------------------------------------

PANELS = (
    ("exact_loss", "training loss (exact, of the same logits)", "log"),
    ("label_grad_norm", "norm of the label entries of the gradient", "log"),
    ("zero_share", "share of rows with a label gradient of 0", "linear"),
    ("weight_norm", "norm of the weights", "log"),
    ("mean_logit", "mean logit", "linear"),
    ("test_accuracy", "accuracy on the rows not trained on", "linear"),
)
COLOURS = {"standard": "#D55E00", "xpsoftmax": "#0000A0", "standard, then xpsoftmax": "#009E73"}


def draw(settings: Settings, runs: dict[str, list[Trace]], path: Path) -> None:
    """Draw a line for each seed and formula."""
    with drawn_figure(path, 3, 2, (11, 10)) as (figure, grid):
        for axes, (name, title, scale) in zip(grid.flat, PANELS, strict=True):
            for formula, traces in reversed(runs.items()):  # the mixed one below the two that it is made of
                for i, trace in enumerate(traces):
                    values = np.array(getattr(trace, name), float)
                    if scale == "log":
                        values = np.where(values > 0.0, values, np.nan)
                    label = f"{formula}, seeds 0 to {settings.seeds - 1}" if i == 0 else None
                    axes.plot(trace.step, values, color=COLOURS[formula], alpha=0.75, linewidth=1.2, label=label)
            axes.set(yscale=scale, xlabel="step", title=title)
            if name in ("zero_share", "test_accuracy"):
                axes.set_ylim(-0.03, 1.03)
            axes.grid(visible=True, alpha=0.25)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=len(runs))


def as_json(settings: Settings, runs: dict[str, list[Trace]], argv: Sequence[str]) -> str:
    """Everything as JSON; four digits are enough."""
    content = {
        "options": asdict(settings),
        "summaries": {formula: [_rounded(summary(trace)) for trace in traces] for formula, traces in runs.items()},
        "runs": {formula: [_rounded(asdict(trace)) for trace in traces] for formula, traces in runs.items()},
    }
    packages = ("array-api-compat", "numpy", "matplotlib")
    return json_text(run_record("examples/train_modular.py", argv, packages, **content), indent=None)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


# --- the command line -------------------------------------------------------------------------------------------------


def parser() -> Parser:
    """Name the options."""
    options = parser_of(__file__, __doc__)
    for setting in fields(Settings):
        name = "--" + setting.name.replace("_", "-")
        options.add_argument(name, type=type(setting.default), default=setting.default, help="default: %(default)s")
    options.add_files("modular", json="json", plot="png")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print, draw and write; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser()
    given = options.parse_args(argv)
    try:
        settings = Settings(**{setting.name: getattr(given, setting.name) for setting in fields(Settings)})
    except ValueError as error:
        options.error(str(error))
    options.check_files(given.json, given.plot)
    runs: dict[str, list[Trace]] = {formula: [] for formula in FORMULAS}
    for seed in range(settings.seeds):
        for formula, halves in FORMULAS.items():
            trace = trained(settings, seed, halves)
            runs[formula].append(trace)
            found = summary(trace)
            print(
                f"seed {seed}, {formula}: loss {found['final_exact_loss']:.2e} "
                f"(largest of the last quarter {found['largest_exact_loss_of_last_quarter']:.2e}), "
                f"label gradients of zero {found['final_zero_share']:.1%}, "
                f"accuracy {found['final_train_accuracy']:.2%}, "
                f"on other rows {found['final_test_accuracy']:.2%}, weights {found['final_weight_norm']:.0f}, "
                f"mean logit {found['final_mean_logit']:.0f}, {trace.seconds:.0f} s",
                flush=True,
            )
    draw(settings, runs, given.plot)
    given.json.write_text(as_json(settings, runs, argv))
    print(f"Written: {given.json} and {given.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
