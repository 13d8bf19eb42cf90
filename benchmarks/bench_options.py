"""Time loss and gradient with options beside PyTorch's, in one process, and write what was found.

    python benchmarks/bench_options.py
    python benchmarks/bench_options.py --shape 256x1000 --dtype float64

Every case is verified and timed as by bench.py: its result is compared with plain NumPy in float64 first. The ratio to
plain targets says what an option costs; that to PyTorch (eager, forward and backward) is there where PyTorch has the
option. Needs rich.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from bench import ALLOWED, DTYPES, PACKAGES, as_shape
from competitors import torch_eager
from harness import (
    Call,
    Made,
    Parser,
    difference,
    json_text,
    parser_of,
    run_record,
    simd,
    timings,
    verified,
)
from rich.console import Console
from rich.table import Table

import xpsoftmax as xs

SMOOTHING = 0.1
Z_LOSS = 1e-4
SOFT, WEIGHTS, GOAL, MASKED = "soft targets", "class weights", "logsumexp 0", "-inf"
CASES: tuple[tuple[str, ...], ...] = (
    ("labels",),
    ("labels", "z-loss"),
    ("labels", "z-loss", GOAL),
    ("labels", "z-loss", "logits - 30"),
    ("labels", "smoothing"),
    ("labels", "smoothing", WEIGHTS),
    ("labels", "smoothing", WEIGHTS, "z-loss"),
    (SOFT,),
    (SOFT, "sum 1.001"),
    (SOFT, "sum 2"),
    (SOFT, MASKED),
    (SOFT, "smoothing"),
    (SOFT, WEIGHTS),
    (SOFT, "smoothing", WEIGHTS),
    (SOFT, "z-loss"),
)
"""What each case has; those with labels come after plain labels, and so do those with soft targets."""


class Problem:
    """Arrays and options of a case."""

    def __init__(self, names: Sequence[str], rows: int, classes: int, dtype: str) -> None:
        rng = np.random.default_rng(0)
        z = rng.standard_normal((rows, classes)).astype(dtype)
        self.targets: np.ndarray = rng.integers(0, classes, rows)
        if SOFT in names:
            q = rng.random((rows, classes))
            if MASKED in names:
                q[:, ::8] = 0.0
                z[:, ::8] = -np.inf
            total = next((float(name.split()[1]) for name in names if name.startswith("sum")), 1.0)
            self.targets = (q * (total / q.sum(axis=1, keepdims=True))).astype(dtype)
        if GOAL in names:
            z = z - xs.logsumexp(z)[:, None]
        self.z = z - np.dtype(dtype).type(30) if "logits - 30" in names else z
        self.options: dict[str, Any] = {}
        if "smoothing" in names:
            self.options["label_smoothing"] = SMOOTHING
        if WEIGHTS in names:
            self.options["class_weight"] = (rng.random(classes) * (np.arange(classes) % 10 != 0)).astype(dtype)
        if "z-loss" in names:
            self.options["z_loss"] = Z_LOSS

    def exact(self) -> tuple[np.ndarray, np.ndarray]:
        """Losses of the rows and their gradients, in plain float64."""
        z, weight = self.z.astype("f8"), self.options.get("class_weight", np.ones(1)).astype("f8")
        smoothing, z_loss = (self.options.get(name, 0.0) for name in ("label_smoothing", "z_loss"))
        hard = self.targets.ndim == 1
        q = np.eye(z.shape[1])[self.targets] if hard else self.targets.astype("f8")
        q = ((1.0 - smoothing) * q + smoothing / z.shape[1]) * weight
        top = z.max(axis=1, keepdims=True)
        lse = top + np.log(np.exp(z - top).sum(axis=1, keepdims=True))
        p, share = np.exp(z - lse), z_loss * (weight[self.targets, None] if hard and weight.size > 1 else 1.0)
        losses = np.where(q > 0.0, q * (lse - z), 0.0).sum(axis=1) + (share * lse**2)[:, 0]
        return losses, (q.sum(axis=1, keepdims=True) + 2.0 * share * lse) * p - q

    def ours(self, impl: str) -> Call:
        """Call the library, writing into `out=`."""
        options = {**self.options, "out": np.empty_like(self.z), "impl": impl}
        return functools.partial(xs.softmax_loss_and_grad, self.z, self.targets, reduction="none", **options)

    def torch(self) -> Call | None:
        """Call PyTorch as most write it; None where it lacks an option."""
        import torch

        if "z_loss" in self.options or np.isneginf(self.z).any():  # 0 * inf is nan there
            return None
        weight = self.options.get("class_weight")
        return torch_eager(
            torch.from_numpy(self.z),
            torch.from_numpy(self.targets),
            weight=None if weight is None else torch.from_numpy(weight),
            label_smoothing=self.options.get("label_smoothing", 0.0),
            reduction="sum",
        )


def made(call: Call | None, truth: Any) -> Made:
    """Return a call, and what compares its result with the truth."""
    return None if call is None else (call, lambda: difference(call(), truth))


def measured(names: Sequence[str], shape: str, dtype: str, seconds: float, absent: Mapping[str, str]) -> dict[str, Any]:
    """Verify and time one case."""
    problem = Problem(names, *map(int, shape.split("x")), dtype)
    losses, grad = problem.exact()
    makers = {
        "xpsoftmax": lambda: made(problem.ours("auto"), (losses, grad)),
        "xpsoftmax generic": lambda: made(problem.ours("generic"), (losses, grad)),
        "torch": lambda: made(problem.torch(), (losses.sum(), grad)),
    }
    for name in absent:
        del makers[name]
    problems: list[str] = []
    calls, errors = verified(makers, ALLOWED[dtype], problems)
    found = {name: asdict(timing) for name, timing in timings(calls, errors, seconds).items()}
    return {"case": ", ".join(names), "shape": shape, "dtype": dtype, "timings": found, "problems": problems}


def compared(findings: Sequence[dict[str, Any]]) -> None:
    """Add the ratios to PyTorch and to plain labels, or plain soft targets, of the same shape and dtype."""
    plain: dict[str, float] = {}
    for finding in findings:
        times = {name: timing["median"] for name, timing in finding["timings"].items()}
        kind, *options = finding["case"].split(", ")
        if not options:
            plain[kind] = times.get("xpsoftmax", np.nan)
        ours = times.get("xpsoftmax", np.nan)
        finding["to_plain"] = ours / plain[kind]
        finding["to_torch"] = ours / times["torch"] if "torch" in times else None


def parser() -> Parser:
    """Name the options."""
    options = parser_of(__file__, __doc__)
    options.add_argument("--shape", type=as_shape, default="4000x1000", metavar="NxC", help="default: %(default)s")
    options.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    options.add_argument("--seconds", type=float, default=1.0, help="for each way and case; default: %(default)s")
    options.add_files("bench_options", json="json")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Verify, time, print and write; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser()
    given = options.parse_args(argv)
    options.check_files(given.json)
    absent = {} if importlib.util.find_spec("torch") else {"torch": "not installed"}
    with np.errstate(all="ignore"):
        findings = [measured(names, given.shape, given.dtype, given.seconds, absent) for names in CASES]
    compared(findings)
    content = run_record("benchmarks/bench_options.py", argv, PACKAGES, simd=simd(), absent=absent, findings=findings)
    given.json.write_text(json_text(content))
    console = Console()
    show(findings, console)
    for name, reason in absent.items():
        console.print(f"not used: {name}: {reason}", markup=False, highlight=False)
    return 1 if any(finding["problems"] for finding in findings) else 0


def show(findings: Sequence[dict[str, Any]], console: Console) -> None:
    """Print one table, and what is wrong."""
    table = Table(title=f"loss and gradient, {findings[0]['shape']} {findings[0]['dtype']}")
    for heading in ("case", "ms", "to plain", "to PyTorch", "generic / ours"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for finding in findings:
        times = {name: timing["median"] for name, timing in finding["timings"].items()}
        ours, generic, torch = times.get("xpsoftmax"), times.get("xpsoftmax generic"), finding["to_torch"]
        cells = [
            "-" if ours is None else f"{1e3 * ours:.3g}",
            f"{finding['to_plain']:.2f}",
            "-" if torch is None else f"{torch:.2f}",
            "-" if ours is None or generic is None else f"{generic / ours:.1f}",
        ]
        table.add_row(finding["case"], *cells)
    console.print(table)
    for finding in findings:
        for problem in finding["problems"]:
            console.print(f"PROBLEM: {finding['case']}: {problem}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
