"""Plot how many digits of the softmax loss and of its gradient are left when a row is sure of its label.

    python benchmarks/plot_confidence.py
    python benchmarks/plot_confidence.py --library torch --step 4 --rows 4

For each gap from 0 to where the exact loss is no longer a normal number, rows of ten logits are drawn in which that of
the label leads the largest of the others by the gap. Each library computes the loss of a row and the gradient of that
loss; errors are relative, and the worst of all rows is taken; of the gradient, that of the worst entry. Entries whose
exact value is not a normal number are left out. An error of 1 means that all digits are lost: zero came out, or
something as wrong. The reference is written with Python's `decimal` at 60 digits and sums the other classes: nothing is
subtracted from 1.

The libraries are called as most people call them: PyTorch's cross_entropy and autograd, JAX's log_softmax and grad,
scikit-learn's (private) multinomial loss, softmax and log_softmax of SciPy, and the same in plain NumPy.

Writes JSON and a PNG (--json, --plot; by default into report/ under the current directory). Exit status: 0; 1 if this
library is outside its bound (docs/numerics.md); 2 for a bad option.

Needs matplotlib; libraries that cannot be used are listed with the reason.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Context, Decimal, localcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from competitors import jax_in_float64, jax_losses, plain, sklearn_loss
from competitors import torch_eager as torch_loss_and_grad
from harness import Parser, described, json_text, parser_of, run_record
from harness import drawn as drawn_figure

import xpsoftmax as xs

Array: TypeAlias = Any
Results: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Loss (R,) of each row and its gradient (R, C)."""

CLASSES = 10
DTYPES = ("float32", "float64")
PACKAGES = ("numpy", "array-api-compat", "torch", "jax", "scipy", "scikit-learn", "matplotlib")
QUANTITIES = ("loss", "gradient")
LOST = 0.5
"""From this relative error on nothing is left of a number: at half of it, not even its size is right."""


@dataclass
class Curve:
    """What one library did in one precision: the worst relative error at each gap."""

    loss: list[float | None]
    gradient: list[float | None]
    lost_from: dict[str, float | None] = field(default_factory=dict)  # the first gap with an error above `LOST`


@dataclass
class Panel:
    """One precision."""

    dtype: str
    gaps: list[float]
    bound: list[float]  # that of this library
    compared: int = 0  # losses and gradient entries, for each library
    curves: dict[str, Curve] = field(default_factory=dict)


# --- the libraries: logits (R, C) and labels (R,) to loss (R,) and gradient (R, C) ------------------------------------


def package(z: np.ndarray, y: np.ndarray) -> Results:
    """Call this library."""
    return xs.softmax_loss_and_grad(z, y, reduction="none")


def torch_eager(z: np.ndarray, y: np.ndarray) -> Results:
    """Call PyTorch's cross_entropy and autograd."""
    import torch

    leaf, labels = torch.from_numpy(z), torch.from_numpy(y)
    losses, grad = torch_loss_and_grad(leaf, labels, reduction="none")()
    return losses.numpy(), grad.numpy()


def jax_grad(z: np.ndarray, y: np.ndarray) -> Results:
    """Take grad of log_softmax."""
    jax = jax_in_float64()
    z = jax.numpy.asarray(z)
    return np.asarray(jax_losses(z, y)), np.asarray(jax.grad(lambda z: jax_losses(z, y).sum())(z))


def scipy(z: np.ndarray, y: np.ndarray) -> Results:
    """Softmax and log_softmax of scipy.special."""
    special = importlib.import_module("scipy.special")
    rows = np.arange(len(y))
    dz = special.softmax(z, axis=1)
    dz[rows, y] -= 1
    return -special.log_softmax(z, axis=1)[rows, y], dz


def sklearn(z: np.ndarray, y: np.ndarray) -> Results:
    """Scikit-learn's private multinomial loss."""
    found: Results = sklearn_loss(z.shape[1]).loss_gradient(y_true=y.astype(z.dtype), raw_prediction=z)
    return found


LIBRARIES: dict[str, Callable[[np.ndarray, np.ndarray], Results]] = {
    "torch": torch_eager,
    "jax": jax_grad,
    "scikit-learn": sklearn,
    "SciPy": scipy,
    "NumPy": plain,
    "xpsoftmax": package,
}


# --- rows, and what is right for them ---------------------------------------------------------------------------------


def drawn(gap: float, rows: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits (R, C) whose label leads by the gap, and the labels."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((rows, CLASSES))
    y = rng.integers(0, CLASSES, rows)
    z[np.arange(rows), y] = -np.inf
    z[np.arange(rows), y] = z.max(axis=1) + gap
    return z.astype(dtype), y


def exact(z: np.ndarray, label: int) -> tuple[Decimal, list[Decimal]]:
    """Loss and gradient of one row, to 60 digits."""
    with localcontext(Context(prec=60, Emin=-99999, Emax=99999)):
        lead = Decimal(float(z[label]))
        e = [(Decimal(float(x)) - lead).exp() for x in z]
        rest = sum((x for j, x in enumerate(e) if j != label), Decimal(0))
        dz = [x / (1 + rest) for x in e]
        dz[label] = -rest / (1 + rest)
        # log(1 + rest) by its series where 1 + rest would drop digits: 60 digits hold rest down to 1e-40
        loss = (1 + rest).ln() if rest > Decimal("1e-20") else rest - rest**2 / 2 + rest**3 / 3
        return loss, dz


def relative_error(found: float, right: Decimal) -> float:
    """How far off, relative to what is right; infinite for nan."""
    if not math.isfinite(found):
        return math.inf
    with localcontext(Context(prec=60, Emin=-99999, Emax=99999)):
        return float(abs(Decimal(found) - right) / abs(right))


def bound(z: np.ndarray) -> float:
    """B = (4 + T/2 + log2 C) eps of a row (docs/numerics.md), of the row with the largest."""
    limits = np.finfo(z.dtype)
    t = z.max(axis=1, keepdims=True).astype(np.float64) - z
    T = np.max(t, where=np.exp(-t) >= limits.smallest_normal, initial=0.0)
    return float((4 + T / 2 + math.log2(z.shape[1])) * limits.eps)


def worst_errors(results: Results, right: list[tuple[Decimal, list[Decimal]]], tiny: float) -> list[float | None]:
    """The largest relative error of the losses and of the gradients; None where no exact value is a normal number."""
    losses, grads = results
    pairs = [
        [(losses[i], loss) for i, (loss, _) in enumerate(right)],
        [(grads[i, j], x) for i, (_, dz) in enumerate(right) for j, x in enumerate(dz)],
    ]
    errors = [[relative_error(float(a), b) for a, b in part if abs(b) >= tiny] for part in pairs]
    return [max(part, default=None) for part in errors]


def measured(dtype: str, step: float, rows: int, libraries: Sequence[str], absent: dict[str, str]) -> Panel:
    """Compare the libraries in one precision."""
    tiny = float(np.finfo(dtype).smallest_normal)
    gaps = [float(gap) for gap in np.arange(0.0, -math.log(tiny), step)]
    problems = [drawn(gap, rows, dtype) for gap in gaps]
    right = [[exact(row, label) for row, label in zip(z, y, strict=True)] for z, y in problems]
    panel = Panel(dtype, gaps, [bound(z) for z, _ in problems])
    panel.compared = sum(abs(x) >= tiny for rows in right for loss, dz in rows for x in (loss, *dz))
    for name in libraries:
        if name in absent:
            continue
        try:
            with np.errstate(all="ignore"):
                found = [LIBRARIES[name](z.copy(), y) for z, y in problems]
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the reason
            absent[name] = described(error)
            continue
        errors = [worst_errors(results, exacts, tiny) for results, exacts in zip(found, right, strict=True)]
        curve = Curve(*([error[i] for error in errors] for i in range(len(QUANTITIES))))
        for quantity in QUANTITIES:
            lost = (gap for gap, error in zip(gaps, getattr(curve, quantity), strict=True) if (error or 0.0) > LOST)
            curve.lost_from[quantity] = next(lost, None)
        panel.curves[name] = curve
    return panel


def problems_of(panel: Panel) -> list[str]:
    """Say where this library is outside its bound."""
    if "xpsoftmax" not in panel.curves:
        return []
    return [
        f"xpsoftmax {quantity} {panel.dtype}: error {error:.3g} at gap {gap:g}, the bound is {limit:.3g}"
        for quantity in QUANTITIES
        for gap, error, limit in zip(panel.gaps, getattr(panel.curves["xpsoftmax"], quantity), panel.bound, strict=True)
        if error is not None and not error <= limit
    ]


# --- what is drawn and written ----------------------------------------------------------------------------------------

# Colours that people who cannot tell red from green can tell (M. Okabe and K. Ito), and a dash pattern of its own each:
# curves that lie on each other are all seen.
LOOK: dict[str, dict[str, Any]] = {
    "torch": {"color": "#D55E00", "linewidth": 5.0, "alpha": 0.45},
    "jax": {"color": "#009E73", "linewidth": 3.0, "linestyle": (0, (4, 2))},
    "scikit-learn": {"color": "#CC79A7", "linewidth": 2.0, "linestyle": (0, (1, 1.5))},
    "SciPy": {"color": "#56B4E9", "linewidth": 1.6},
    "NumPy": {"color": "0.25", "linewidth": 1.0, "linestyle": (0, (6, 3))},
    "xpsoftmax": {"color": "#0000A0", "linewidth": 2.4},
}


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw one panel for each precision and quantity."""
    size = (5.6 * len(panels), 6.6)
    with drawn_figure(path, len(QUANTITIES), len(panels), size) as (figure, grid):
        for i, quantity in enumerate(QUANTITIES):
            for axes, panel in zip(grid[i], panels, strict=True):
                _draw_panel(axes, panel, quantity)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)


def _draw_panel(axes: Any, panel: Panel, quantity: str) -> None:
    limits = np.finfo(panel.dtype)
    floor = float(limits.eps) / 20.0
    for name, curve in panel.curves.items():
        errors = [math.nan if error is None else max(error, floor) for error in getattr(curve, quantity)]
        axes.plot(panel.gaps, errors, label=name, **LOOK[name])
    axes.plot(panel.gaps, panel.bound, color="0.55", linewidth=1.0, linestyle=":", label="bound of xpsoftmax")
    axes.axhline(1.0, color="0.8", linewidth=0.8, zorder=0)
    axes.set(
        yscale="log",
        ylim=(floor, 30.0),
        xlabel="lead of the label's logit over the largest other",
        ylabel="relative error (1: all digits lost)",
        title=f"{quantity}, {panel.dtype}",
    )
    axes.grid(visible=True, alpha=0.25)


def as_json(panels: Sequence[Panel], absent: dict[str, str], problems: list[str], argv: Sequence[str]) -> str:
    """Everything as JSON; numbers that are not finite become null."""
    found = {"classes": CLASSES, "absent": absent, "problems": problems}
    content = run_record(
        "benchmarks/plot_confidence.py", argv, PACKAGES, **found, panels=[_rounded(asdict(panel)) for panel in panels]
    )
    return json_text(content, indent=None)


def _rounded(value: Any) -> Any:
    """Three digits of an error say all there is."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.3g}") if isinstance(value, float) and math.isfinite(value) else value


def table(panels: Sequence[Panel]) -> str:
    """Say in words from which gap on each library has lost all digits."""
    lines = []
    for panel in panels:
        lines.append(f"{panel.dtype}: {panel.compared} numbers compared for each library")
        for name, curve in panel.curves.items():
            worst = [max(error for error in getattr(curve, quantity) if error is not None) for quantity in QUANTITIES]
            parts = [
                f"{quantity} {error:.2g}" + ("" if gap is None else f", lost from a gap of {gap:g} on")
                for quantity, error, gap in zip(QUANTITIES, worst, curve.lost_from.values(), strict=True)
            ]
            lines.append(f"  {name}: worst relative error: " + "; ".join(parts))
    return "\n".join(lines)


# --- the command line -------------------------------------------------------------------------------------------------


def parser() -> Parser:
    """Name the options."""
    options = parser_of(__file__, __doc__)
    options.add_argument("--library", action="append", choices=LIBRARIES, help="this one only (repeatable)")
    options.add_argument("--dtype", action="append", choices=DTYPES, help="this precision only (repeatable)")
    options.add_argument("--step", type=float, default=1.0, help="between gaps; default: %(default)s")
    options.add_argument("--rows", type=int, default=16, help="for each gap; default: %(default)s")
    options.add_files("confidence", json="json", plot="png")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print, draw and write; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser()
    given = options.parse_args(argv)
    if not 0.0 < given.step < math.inf:
        options.error(f"--step must be a positive number, got {given.step}")
    if given.rows < 1:
        options.error(f"--rows must be at least 1, got {given.rows}")
    options.check_files(given.json, given.plot)
    absent: dict[str, str] = {}
    libraries = [name for name in LIBRARIES if given.library is None or name in given.library]
    panels = [measured(dtype, given.step, given.rows, libraries, absent) for dtype in given.dtype or DTYPES]
    problems = [problem for panel in panels for problem in problems_of(panel)]
    print(table(panels))
    for name, reason in absent.items():
        print(f"not used: {name}: {reason}")
    for problem in problems:
        print(f"PROBLEM: {problem}")
    draw(panels, given.plot)
    given.json.write_text(as_json(panels, absent, problems, argv))
    print(f"Written: {given.json} and {given.plot}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
