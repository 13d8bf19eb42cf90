"""The truth tables of docs/guides/labels.md: what options, together, and special cases give here, and in PyTorch.

    python docs/_truth.py

prints them. `tests/docs/test_docs.py` holds the page to them, with PyTorch where that is installed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import xpsoftmax as xs

Z = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0], [2.0, 2.0, 2.0], [-1.0, 0.5, 1.5]])
Y = np.array([0, 2, 1, 1])
W = np.array([1.0, 2.0, 0.5])
Q = np.array([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0], [0.4, 0.3, 0.3], [0.1, 0.6, 0.3]])
SURE = np.array([[50.0, 0.0, 0.0]])
INF, NAN = np.inf, np.nan


def changed(array: np.ndarray, row: int, column: int, value: float) -> np.ndarray:
    """Return a copy with another number in one place."""
    array = array.copy()
    array[row, column] = value
    return array


@dataclass(frozen=True)
class Case:
    """Arguments by the names that they have here."""

    title: str
    logits: np.ndarray = field(default_factory=lambda: Z)
    targets: np.ndarray = field(default_factory=lambda: Y)
    options: dict[str, Any] = field(default_factory=dict)


IGNORED = np.array([0, -100, 1, 1])
ALL_IGNORED = np.full(4, -100)
REDUCTIONS = ("mean", "sum", "none")
OPTIONS = {"class_weight": W, "ignore_index": -100, "label_smoothing": 0.1}
"""Each alone and together: with labels of which the second is -100, and with soft targets."""

CASES = {
    "Labels": (
        Case("int32 labels", targets=Y.astype(np.int32)),
        Case("uint8 labels", targets=Y.astype(np.uint8)),
        Case("a label of C", targets=np.array([0, 3, 1, 1])),
        Case("a label of -1", targets=np.array([0, -1, 1, 1])),
        Case("a label of -100, no `ignore_index`", targets=IGNORED),
        Case(
            "a uint8 label of 156 (-100 as int8), `ignore_index=-100`",
            targets=np.array([0, 156, 1, 1], np.uint8),
            options={"ignore_index": -100},
        ),
        Case("`ignore_index=1`, which is a class", options={"ignore_index": 1}),
        Case("boolean labels", logits=Z[:, :2], targets=Y == 1),
        Case("labels as floats", targets=Y.astype(np.float64)),
        Case("logits of one row without an axis for rows", logits=Z[0], targets=np.array(0)),
        Case("a single class", logits=Z[:, :1], targets=np.zeros(4, np.int64)),
        Case("no classes", logits=Z[:, :0], targets=Y),
    ),
    "Soft targets": (
        Case("rows that add up to 2", targets=2 * Q),
        Case("rows of zeros", targets=0 * Q),
        Case("a negative one", targets=changed(Q, 0, 0, -0.1)),
        Case("nan in them", targets=changed(Q, 0, 0, NAN)),
        Case("integers of the shape of the logits", targets=np.eye(3, dtype=np.int64)[Y]),
        Case("`ignore_index=1`", targets=Q, options={"ignore_index": 1}),
    ),
    "Weights and smoothing": (
        Case("a class weight is negative", options={"class_weight": np.array([1.0, -1.0, 1.0])}),
        Case("a class weight is nan", options={"class_weight": np.array([1.0, NAN, 1.0])}),
        Case("a class weight is 0", options={"class_weight": np.array([0.0, 2.0, 0.5])}),
        Case(
            "a class weight is 0, `label_smoothing`",
            options={"class_weight": np.array([0.0, 2.0, 0.5]), "label_smoothing": 0.1},
        ),
        Case("too few class weights", options={"class_weight": W[:2]}),
        Case("`label_smoothing=1`", options={"label_smoothing": 1.0}),
        Case("`label_smoothing=1.5`", options={"label_smoothing": 1.5}),
        Case('`reduction="median"`', options={"reduction": "median"}),
    ),
    "A mean over nothing": (
        Case("all rows ignored", targets=ALL_IGNORED, options={"ignore_index": -100}),
        Case("all rows ignored, the sum", targets=ALL_IGNORED, options={"ignore_index": -100, "reduction": "sum"}),
        Case("all class weights 0", options={"class_weight": np.zeros(3)}),
        Case("all rows ignored, one by one", targets=ALL_IGNORED, options={"ignore_index": -100, "reduction": "none"}),
        Case("all class weights 0, the sum", options={"class_weight": np.zeros(3), "reduction": "sum"}),
        Case("no rows", logits=Z[:0], targets=Y[:0]),
        Case("no rows, the sum", logits=Z[:0], targets=Y[:0], options={"reduction": "sum"}),
        Case("no rows, soft targets", logits=Z[:0], targets=Q[:0]),
    ),
    "Numbers that are not finite": (
        Case("a logit of -inf, not the label's", logits=changed(Z, 0, 1, -INF)),
        Case("a logit of -inf at the label", logits=changed(Z, 0, 0, -INF)),
        Case("a logit of -inf, `label_smoothing`", logits=changed(Z, 0, 1, -INF), options={"label_smoothing": 0.1}),
        Case("a logit of -inf where the soft target is 0", logits=changed(Z, 1, 0, -INF), targets=Q),
        Case("a row of -inf", logits=np.concatenate([np.full((1, 3), -INF), Z[1:]])),
        Case("a logit of inf at the label", logits=changed(Z, 0, 0, INF)),
        Case("a logit of nan", logits=changed(Z, 0, 1, NAN)),
        Case("nan in an ignored row", changed(Z, 1, 0, NAN), targets=IGNORED, options={"ignore_index": -100}),
        Case(
            "nan in a row of class weight 0",
            logits=changed(Z, 0, 0, NAN),
            options={"class_weight": np.array([0.0, 2.0, 0.5])},
        ),
    ),
    "Precision": (
        Case("a lead of 50 in float64", logits=SURE, targets=np.array([0])),
        Case("a lead of 50 in float32", logits=SURE.astype(np.float32), targets=np.array([0])),
        Case("a lead of 50 in float64, a soft target of 1", logits=SURE, targets=np.array([[1.0, 0.0, 0.0]])),
        Case("logits of 1e4 and -1e4", logits=np.array([[1e4, -1e4, 0.0]]), targets=np.array([1])),
    ),
}


def here(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient of this library."""
    return xs.softmax_loss_and_grad(case.logits, case.targets, **case.options)


def in_torch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient of PyTorch's cross_entropy on the CPU."""
    import torch

    z = torch.tensor(case.logits, requires_grad=True)
    options = {("weight" if name == "class_weight" else name): value for name, value in case.options.items()}
    if "weight" in options:
        options["weight"] = torch.tensor(options["weight"])
    loss = torch.nn.functional.cross_entropy(z, torch.tensor(case.targets), **options)
    loss.sum().backward()
    return loss.detach().numpy(), z.grad.numpy()


def outcome(function: Callable[[Case], tuple[np.ndarray, np.ndarray]], case: Case) -> str:
    """What comes out, in a few words: the loss, and what of the gradient is to be said."""
    try:
        loss, grad = function(case)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        return f"`{type(error).__name__}`"
    if np.isnan(grad).any():
        words = f"gradient nan in {int(np.isnan(grad).any(axis=-1).sum())} of {len(grad)} rows"
    elif len(grad) == 1:
        words = f"gradient at the label {grad[0, 0]:.3g}"
    elif grad.size and not grad.any():
        words = "gradient 0"
    else:
        words = "gradient " + (f"{np.abs(grad).max():.3g} at most" if grad.size else "empty")
    return f"{spelled(loss)}, {words}"


def spelled(loss: np.ndarray) -> str:
    """Write four digits of one loss or of several."""
    return " ".join(f"{value + 0.0:.4g}" for value in np.ravel(loss))


def together() -> list[tuple[str, list[Case]]]:
    """Every combination of options, for labels and soft targets, with each of the reductions."""
    found = []
    for kind, targets in (("labels", IGNORED), ("soft targets", Q)):
        usable = [name for name in OPTIONS if kind == "labels" or name != "ignore_index"]
        for count in range(len(usable) + 1):
            for names in itertools.combinations(usable, count):
                options = {name: OPTIONS[name] for name in names}
                of_kind = Y if kind == "labels" and "ignore_index" not in names else targets
                cases = [Case("", targets=of_kind, options={**options, "reduction": how}) for how in REDUCTIONS]
                found.append((", ".join([kind, *(f"`{name}`" for name in names)]), cases))
    return found


def lines_together(*, peer: bool) -> list[list[str]]:
    """Cells of the table of combinations; the last column, about all digits of loss and gradient, only with PyTorch."""
    rows = []
    for title, cases in together():
        row = [title, *(spelled(here(case)[0]) for case in cases)]
        if peer:
            row.append("the same" if all(map(agree, cases)) else "others")
        rows.append(row)
    return rows


def agree(case: Case) -> bool:
    """Whether loss and gradient are PyTorch's, to rounding."""
    pairs = zip(here(case), in_torch(case), strict=True)
    return all(np.allclose(ours, theirs, rtol=1e-13, atol=1e-16, equal_nan=True) for ours, theirs in pairs)


def lines(*, peer: bool) -> list[list[str]]:
    """Cells of the table, without its header; the last column only with PyTorch."""
    cells = []
    for group, cases in CASES.items():
        cells.append([f"**{group}**", "", ""][: 3 if peer else 2])
        for case in cases:
            ours = outcome(here, case)
            row = [case.title, ours]
            if peer:
                theirs = outcome(in_torch, case)
                row.append("the same" if theirs == ours else theirs)
            cells.append(row)
    return cells


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return it as Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


if __name__ == "__main__":
    print(table(["", *(f'`"{how}"`' for how in REDUCTIONS), "PyTorch"], lines_together(peer=True)), end="\n\n")
    print(table(["", "`softmax_loss_and_grad`", "PyTorch `cross_entropy`"], lines(peer=True)))
