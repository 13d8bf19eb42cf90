"""Training steps on the GPU beside PyTorch's: eager, compiled, as a CUDA graph, and with Liger; for gpu_check.py.

    python scripts/_gpu_steps.py PATH SECONDS

A step gathers the rows of its batch from all rows on the GPU, in the order that an epoch drew, and makes loss,
gradients and update of a two-layer network with ReLU in float32. The cases are those of
benchmarks/bench_training.py, rows x features x hidden units x classes, with plain gradient descent, and one with Adam.
Each competitor is verified first: after `VERIFIED` steps in the same order its parameters must have moved as those of
the package on NumPy in float64 have. A time is that of one more epoch of a training, divided by its steps. Launches,
graphs and waits are counted by PyTorch's profiler; the host's time of a replayed step is that from one step to the
next within an epoch, when nothing is waited for. TF32 is off for all, unless CUPY_TF32=1 turns it on for all.

Writes JSON. Problems are wrong results, steps that were not captured, and cases that did not fit into the time limit.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

import numpy as np
from _gpu_counts import events_of
from _gpu_process import jobs_written, write
from _gpu_timing import each_more, seconds_of, wait
from _gpu_trainers import (
    ALLOWED,
    CASES,
    COMPETITORS,
    GRAPH,
    OURS,
    Case,
    Problem,
    Trainer,
    competitors,
    compile_case,
    tf32,
)
from _report import described

import xpsoftmax as xs

__all__ = ["CASES", "compile_case"]

SECONDS = 0.3
"""For which an epoch is repeated, for each competitor."""
MOST = 60.0
"""Seconds of a case, compiled competitors apart."""


def measured(case: Case, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Verify, time and count competitors, one after the other."""
    problem = Problem(case)
    for name in names:
        found: dict[str, Any] = {"name": name}
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found |= of_trainer(problem, COMPETITORS[name](problem), of_ours=name == OURS)
            found["warnings"] = list(dict.fromkeys(str(warning.message).partition("\n")[0] for warning in said))
        except Exception as error:  # noqa: BLE001 - one that fails must not end the others
            found["failed"] = described(error)
        yield found


def of_trainer(problem: Problem, trainer: Trainer, *, of_ours: bool) -> dict[str, Any]:
    """What is found out about one competitor; times in seconds of a step."""
    steps = problem.case.steps
    error = problem.off_by(trainer.verified())
    if not error <= ALLOWED[problem.case.optimizer]:
        raise ValueError(f"moves differently from NumPy in float64, by {error:.2g}: not timed")
    each, beside = each_more(trainer.epochs, SECONDS)
    low, median, high = (seconds / steps for seconds in statistics.quantiles(each, n=4))
    found: dict[str, Any] = {"low": low, "median": median, "high": high, "error": error, "beside_epochs": beside}
    if of_ours:
        found["host_microseconds"], found["captured"] = replayed(trainer.epochs)
    try:
        more, one = (events_of(lambda n=n: trainer.epochs(n)) for n in (2, 1))
        found["events"] = {kind: (count - one.get(kind, 0)) / steps for kind, count in more.items()}
    except Exception as error:  # noqa: BLE001 - no profiler is no reason to lose the times
        found["events"], found["not_counted"] = {}, described(error)
    return found


def replayed(epochs: Callable[[int], Any]) -> tuple[float | None, bool]:
    """Microseconds of the host from one programmed step to the next, and whether the last one was a graph.

    Within an epoch nothing waits for the GPU, so that this is the time of the host.
    """
    runner = importlib.import_module("xpsoftmax.kernels.cuda.capture").Runner
    run, begins, last = runner.run, [], []

    def noted(self: Any) -> None:
        begins.append(time.perf_counter())
        run(self)
        last[:] = [self]

    runner.run = noted
    try:
        epochs(2)
        wait()
    finally:
        runner.run = run
    if len(begins) < 3:
        return None, False
    return 1e6 * statistics.median(np.diff(begins)), getattr(last[0], "_graph", None) is not None


FUNCTIONS = "mlp_loss_and_grad and update"


def functions(case: Case) -> Iterator[dict[str, Any]]:
    """Count and time what the public functions do in a step, with a look at the labels and without."""
    cupy = importlib.import_module("cupy")
    problem, optimizer = Problem(case), xs.sgd(1e-3)
    size = case.sizes[0]
    params = tuple(type(layer)(*map(cupy.asarray, layer)) for layer in problem.params)
    batch, state = (problem.X[:size], problem.y[:size]), optimizer.init(params)
    _, grads = xs.mlp_loss_and_grad(params, *batch)
    calls: dict[str, Callable[[], Any]] = {
        "mlp_loss_and_grad": lambda: xs.mlp_loss_and_grad(params, *batch),
        "mlp_loss_and_grad, validate=False": lambda: xs.mlp_loss_and_grad(params, *batch, validate=False),
        "update": lambda: optimizer.update(params, grads, state),
    }
    for name, call in calls.items():
        seconds = seconds_of(lambda call=call: [call() for _ in range(100)]) / 100
        yield {"name": name, "median": seconds, "events": events_of(call)}


def problems_of(case: Case, found: dict[str, Any]) -> Iterator[str]:
    """What of the package is wrong; a failure of a competitor is only written down."""
    if found["name"] != OURS:
        return
    if "failed" in found:
        yield f"{case}: {OURS}: {found['failed']}"
        return
    yield from (f"{case}: {said}" for said in found.get("warnings", ()) if "captured" in said)
    graphs = found["events"].get("graphs")
    if not found["captured"] or (graphs is not None and graphs < 0.9):
        reason = "" if importlib.util.find_spec("nvmath") else ": nvmath-python is not installed"
        yield f"{case}: steps were not captured{reason}"


def added(content: dict[str, Any], case: Case, results: list[dict[str, Any]]) -> None:
    """Add results to the finding of their case, with ratios to PyTorch eager and to its graph."""
    name = str(case)
    finding = next((f for f in content["findings"] if f["case"] == name), None)
    if finding is None:
        finding = {"case": name, "ms": case.ms, "of_graph": case.of_graph, "timings": {}, "ratios": {}, "failed": {}}
        content["findings"].append(finding)
    for result in results:
        content["problems"] += problems_of(case, result)
        if "failed" in result:
            finding["failed"][result["name"]] = result["failed"]
        else:
            finding["timings"][result["name"]] = result
    medians = {name: timing["median"] for name, timing in finding["timings"].items()}
    finding["ratios"] = {name: median / medians["torch"] for name, median in medians.items() if "torch" in medians}
    if {OURS, GRAPH} <= medians.keys():
        finding["to_graph"] = medians[OURS] / medians[GRAPH]


def main(argv: list[str]) -> int:
    """Measure everything, those that compile last; 1 if there were problems."""
    path, seconds = Path(argv[0]), float(argv[1])
    content: dict[str, Any] = {"tf32": tf32(), "findings": [], "functions": [], "problems": []}
    jobs: dict[str, tuple[Any, ...]] = {}
    for compiled in (False, True):
        for case in CASES:
            if names := competitors(case, compiled=compiled):
                jobs[f"{case}{', compiled' * compiled}"] = (measured, case, names)
        jobs.setdefault(FUNCTIONS, (functions, CASES[2]))  # before all that compiles
    failed: list[str] = []
    heard = {**content, "problems": failed}
    for job, found in jobs_written(path, heard, jobs, seconds, MOST):
        if job == FUNCTIONS:
            content["functions"] = found
        else:
            added(content, next(case for case in CASES if str(case) == job.partition(",")[0]), found)
        print(job, *(f"{f['name']} {f.get('failed') or 1e3 * f['median']}" for f in found), sep=", ", flush=True)
    content["not_timed"] = [problem for problem in failed if ", compiled" in problem]
    content["problems"] += [problem for problem in failed if problem not in content["not_timed"]]
    write(path, content)
    return 1 if content["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
