"""Compare xpsoftmax.sklearn.MLPClassifier with scikit-learn's: accuracy, time and peak memory.

    python benchmarks/compare_sklearn.py
    python benchmarks/compare_sklearn.py --only accuracy --seeds 3

Accuracy: on digits, iris, wine and breast_cancer, standardised, a stratified quarter held out, for each seed of the
split and of the model. Time: fits of the same epochs, batches and solver on float64 NumPy arrays, and on sparse counts
of words (source_counts.py), in turn; the ratio of the medians. Peak memory: of a fit in a process of its own, beyond
what the process held before it.

Writes what it finds to benchmarks/results/DATE-compare-sklearn-Ncore.json, or to --json. Needs scikit-learn and rich.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from harness import Parser, json_text, output_of, parser_of, run_record
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier as Theirs
from sklearn.preprocessing import StandardScaler
from source_counts import counts

from xpsoftmax.sklearn import MLPClassifier

Problem: TypeAlias = tuple[Any, np.ndarray, dict[str, Any]]

KINDS: dict[str, Any] = {"xpsoftmax": MLPClassifier, "scikit-learn": Theirs}
DATA_SETS = ("digits", "iris", "wine", "breast_cancer")
PACKAGES = ("numpy", "scipy", "scikit-learn", "array-api-compat")
ENDLESS = {"tol": 0.0, "n_iter_no_change": 10**6}  # so that both make the same epochs


def accuracy(seeds: int, console: Console) -> list[dict[str, Any]]:
    """Return mean and standard deviation over the seeds, for each data set."""
    table = Table("data set", *KINDS, "largest difference", title=f"accuracy, {seeds} seeds")
    found = []
    for name in DATA_SETS:
        X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for seed in range(seeds):
            parts = train_test_split(X, y, stratify=y, random_state=seed)
            scale = StandardScaler().fit(parts[0])
            train, test = (scale.transform(part) for part in parts[:2])
            for kind, make in KINDS.items():
                model = make(max_iter=400, random_state=seed).fit(train, parts[2])
                scores[kind].append(float(model.score(test, parts[3])))
        apart = float(np.abs(np.subtract(*scores.values())).max())
        found.append({"data": name, "scores": scores, "largest_difference": apart})
        table.add_row(name, *(f"{np.mean(x):.4f} ± {np.std(x):.4f}" for x in scores.values()), f"{apart:.4f}")
    console.print(table)
    return found


def digits() -> Problem:
    """Return scikit-learn's digits."""
    X, y = datasets.load_digits(return_X_y=True)
    return X / 16.0, y, {"max_iter": 30}


def images() -> Problem:
    """Return as many numbers as a third of MNIST has; times do not depend on what they say."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((20_000, 784)), rng.integers(0, 10, 20_000), {"hidden_layer_sizes": 256, "max_iter": 5}


def many_classes() -> Problem:
    """Return rows of 5 000 of the 20 000 classes that `CLASSES` makes partial_fit name."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((5_000, 128)), np.arange(5_000), {"hidden_layer_sizes": 64, "max_iter": 2}


def words(dtype: str) -> Problem:
    """Return sparse counts of words, and whose source they are from."""
    X, y = counts(dtype)
    return X, y, {"max_iter": 3}


CASES: dict[str, Callable[[], Problem]] = {
    "digits, 30 epochs": digits,
    "words of the standard library, sparse float32, 3 epochs": lambda: words("float32"),
    "words of the standard library, sparse float64, 3 epochs": lambda: words("float64"),
    "20000 x 784, hidden 256, 10 classes, 5 epochs": images,
    "5000 x 128, hidden 64, 20000 classes, 2 epochs": many_classes,
}
CLASSES = {"5000 x 128, hidden 64, 20000 classes, 2 epochs": 20_000}


def fitted(kind: str, case: str) -> tuple[Any, float, np.ndarray]:
    """Return a model, the seconds that its fit took, and the inputs."""
    X, y, options = CASES[case]()
    model = KINDS[kind](random_state=0, **ENDLESS, **options)
    start = time.perf_counter()
    if case in CLASSES:
        for _ in range(options["max_iter"]):
            model.partial_fit(X, y, classes=np.arange(CLASSES[case]))
    else:
        model.fit(X, y)
    return model, time.perf_counter() - start, X


def timed(rounds: int, console: Console) -> list[dict[str, Any]]:
    """Return the times of fits and predictions, made in turn."""
    table = Table("case", "fit", "predict_proba", "peak memory", title="xpsoftmax relative to scikit-learn")
    found = []
    for case in CASES:
        seconds: dict[str, dict[str, list[float]]] = {what: {kind: [] for kind in KINDS} for what in ("fit", "predict")}
        for i in range(rounds + 1):
            for kind in KINDS:
                model, duration, X = fitted(kind, case)
                start = time.perf_counter()
                repeats = 50 if X.size + X.shape[0] * len(model.classes_) < 10**6 else 1
                for _ in range(repeats):
                    model.predict_proba(X)
                if i > 0:  # the first is to warm up
                    seconds["fit"][kind].append(duration)
                    seconds["predict"][kind].append((time.perf_counter() - start) / repeats)
                del model
        memory = {kind: peak(kind, case) for kind in KINDS}
        ratios = {what: float(np.divide(*(np.median(x) for x in times.values()))) for what, times in seconds.items()}
        ratios["memory"] = memory["xpsoftmax"] / max(1, memory["scikit-learn"])
        found.append({"case": case, "seconds": seconds, "peak_bytes": memory, "ratios": ratios})
        table.add_row(case, *(f"{ratios[what]:.2f}" for what in ("fit", "predict", "memory")))
    console.print(table)
    return found


# --- memory -----------------------------------------------------------------------------------------------------------


def peak(kind: str, case: str) -> int:
    """Return the bytes that a fit takes at most, beyond those that its process has before."""
    return int(output_of(__file__, "--peak", kind, case))


def _peak_kib() -> int:
    """Most resident memory of this process so far; `ru_maxrss` would begin with that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def print_peak(kind: str, case: str) -> None:
    """Print what `peak` returns, in the process of its own."""
    warnings.simplefilter("ignore")
    KINDS[kind](max_iter=1).fit(np.eye(4), [0, 1, 0, 1])  # loads what a fit needs
    CASES[case]()
    before = _peak_kib()
    fitted(kind, case)
    print(1024 * (_peak_kib() - before))


def parser() -> Parser:
    """Name the options."""
    options = parser_of(__file__, __doc__)
    options.add_argument("--only", choices=("accuracy", "time"), help="only this part")
    options.add_argument("--seeds", type=int, default=10, help="of accuracy; default: %(default)s")
    options.add_argument("--rounds", type=int, default=7, help="of times; default: %(default)s")
    options.add_argument("--json", type=Path, metavar="PATH", help="default: a new file of benchmarks/results")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Compare what the options ask for."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--peak"]:
        print_peak(*argv[1:])
        return 0
    options = parser()
    given = options.parse_args(argv)
    name = f"{datetime.now(UTC):%Y-%m-%d}-compare-sklearn-{os.cpu_count()}core.json"
    target = given.json or Path(__file__).resolve().parent / "results" / name
    options.check_files(*([given.json] if given.json else []))
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
    console = Console(width=110)
    found = run_record("benchmarks/compare_sklearn.py", argv, PACKAGES)
    if given.only in (None, "accuracy"):
        found["accuracy"] = accuracy(given.seeds, console)
    if given.only in (None, "time"):
        found["time"] = timed(given.rounds, console)
    target.write_text(json_text(found))
    console.print(f"Wrote {target.name}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
