"""The classifier on CuPy arrays beside NumPy, scikit-learn and a loop of PyTorch; for gpu_check.py.

    python scripts/_gpu_estimator.py PATH SECONDS

Each competitor fits in a process of its own. An epoch of 200 000 x 784 rows, hidden 256, minibatches of 200, Adam,
float32, is the difference between fits of three epochs and of one, so that neither the compilation nor the checks
count. PyTorch gets half of the rows, NumPy and scikit-learn a tenth, and their times are multiplied. On the digits, 20
epochs are timed whole, and the classifier on CuPy must have the losses of that on NumPy. Writes JSON.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

import numpy as np
from _gpu_process import jobs_written, write
from _gpu_timing import seconds_of

DEVICE = "cuda"
"""Where PyTorch computes."""
ROWS, FEATURES, HIDDEN, CLASSES, BATCH = 200_000, 784, 256, 10, 200
FEWER = 10
"""The slow ones get ROWS / FEWER."""
DIGITS_EPOCHS = 20
EPOCH_SECONDS = 0.12
"""To be reached on an H200."""
OFF = 1e-9
"""Largest difference of losses in float64 from those on NumPy, relative to them."""
MOST = 20.0
"""Seconds of a competitor."""
ENDLESS = {"tol": 0.0, "n_iter_no_change": 10**6, "random_state": 0}


class Kind(NamedTuple):
    """Who fits: the model of a number of epochs, where its arrays are, and what of the rows it gets."""

    model: Callable[..., Any]
    moved: Callable[[Any], Any]
    fewer: int = 1


def ours(**parameters: Any) -> Any:
    """The package's classifier."""
    return importlib.import_module("xpsoftmax.sklearn").MLPClassifier(**ENDLESS, **parameters)


def theirs(**parameters: Any) -> Any:
    """scikit-learn's."""
    return importlib.import_module("sklearn.neural_network").MLPClassifier(**ENDLESS, **parameters)


class InPytorch:
    """The same in a loop of PyTorch on the GPU: two layers with ReLU, Adam, minibatches."""

    def __init__(self, *, hidden_layer_sizes: tuple[int], max_iter: int, batch_size: int) -> None:
        self.hidden, self.epochs, self.batch = hidden_layer_sizes[0], max_iter, batch_size

    def fit(self, X: Any, y: Any) -> InPytorch:
        """Train on tensors that lie on the device."""
        torch = importlib.import_module("torch")
        torch.manual_seed(0)
        layers = torch.nn.Linear(X.shape[1], self.hidden), torch.nn.ReLU(), torch.nn.Linear(self.hidden, CLASSES)
        self.model = torch.nn.Sequential(*layers).to(DEVICE)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(y), device=DEVICE).split(self.batch):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(self.model(X[rows]), y[rows]).backward()
                optimizer.step()
        return self

    def score(self, X: Any, y: Any) -> float:
        """Return the share of right labels."""
        torch = importlib.import_module("torch")
        with torch.no_grad():
            return float((self.model(X).argmax(dim=1) == y).float().mean())


def to_cupy(array: Any) -> Any:
    """On the GPU."""
    return importlib.import_module("cupy").asarray(array)


def to_torch(array: Any) -> Any:
    """A tensor on the GPU."""
    return importlib.import_module("torch").from_numpy(np.asarray(array)).to(DEVICE)


KINDS = {
    "xpsoftmax on CuPy": Kind(ours, to_cupy),
    "PyTorch on the GPU": Kind(InPytorch, to_torch, 2),
    "xpsoftmax on NumPy": Kind(ours, np.asarray, FEWER),
    "scikit-learn": Kind(theirs, np.asarray, FEWER),
}


def many_rows(name: str) -> Iterator[dict[str, Any]]:
    """Time an epoch of many rows."""
    warnings.simplefilter("ignore")
    kind = KINDS[name]
    rows = ROWS // kind.fewer
    X = np.random.default_rng(0).standard_normal((rows, FEATURES), np.float32)
    y = X[:, :CLASSES].argmax(axis=1)
    here = kind.moved(X), kind.moved(y)
    how = {"hidden_layer_sizes": (HIDDEN,), "batch_size": BATCH}
    kind.model(max_iter=2, **how).fit(here[0][: 10 * BATCH], here[1][: 10 * BATCH])  # compiles, and starts threads
    models = {epochs: kind.model(max_iter=epochs, **how) for epochs in (1, 3)}
    seconds = {epochs: seconds_of(lambda epochs=epochs: models[epochs].fit(*here)) for epochs in models}
    epoch = (seconds[3] - seconds[1]) / 2 * kind.fewer
    accuracy = float(models[3].score(*(array[:2000] for array in here)))
    yield {"name": name, "rows": rows, "fits": seconds, "epoch_seconds": epoch, "accuracy": accuracy}


def digits(name: str) -> Iterator[dict[str, Any]]:
    """Time fits of the digits."""
    warnings.simplefilter("ignore")
    kind = KINDS[name]
    X, y = importlib.import_module("sklearn.datasets").load_digits(return_X_y=True)
    here = kind.moved((X / 16.0).astype(np.float32)), kind.moved(y)
    kind.model(max_iter=2).fit(*here)
    times = [seconds_of(lambda: kind.model(max_iter=DIGITS_EPOCHS).fit(*here)) for _ in range(3)]
    yield {"name": name, "digits_seconds": statistics.median(times)}


def same_losses() -> Iterator[dict[str, Any]]:
    """Compare losses of fits on CuPy and on NumPy, in float64."""
    warnings.simplefilter("ignore")
    X, y = importlib.import_module("sklearn.datasets").load_digits(return_X_y=True)
    curves = [
        np.array(ours(max_iter=5).fit(moved(X / 16.0), moved(y)).loss_curve_, dtype="f8")
        for moved in (to_cupy, np.asarray)
    ]
    off = float(np.abs(curves[0] / curves[1] - 1.0).max())
    if not off <= OFF:
        raise ValueError(f"losses are off by {off:.2g} of those on NumPy")
    yield {"name": "losses on CuPy", "off_by": off}


def main(argv: list[str]) -> int:
    """Measure all; 1 if the package is wrong somewhere."""
    path, seconds = Path(argv[0]), float(argv[1])
    content: dict[str, Any] = {"fits": [], "epoch_seconds_to_reach": EPOCH_SECONDS, "problems": []}
    jobs: dict[str, tuple[Any, ...]] = {"losses on CuPy": (same_losses,)}
    jobs |= {f"many rows, {name}": (many_rows, name) for name in KINDS}
    jobs |= {f"digits, {name}": (digits, name) for name in KINDS if name != "PyTorch on the GPU"}
    for job, found in jobs_written(path, content, jobs, seconds, MOST):
        content["fits"] += [{"case": job.partition(",")[0], **result} for result in found]
        print(job, *found, flush=True)
    content["not_timed"] = [problem for problem in content["problems"] if "CuPy" not in problem]
    content["problems"] = [problem for problem in content["problems"] if "CuPy" in problem]
    write(path, content)
    return 1 if content["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
