"""The truth table of docs/guides/labels.md: what each combination of options gives here, and in PyTorch.

    python docs/_truth.py

prints it. `tests/test_docs.py` holds the page to it, with PyTorch where that is installed.
"""

from __future__ import annotations

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
CASES = {
    "Options": (
        Case("labels"),
        Case("`class_weight`: divided by the sum of the weights", options={"class_weight": W}),
        Case("one row ignored: it does not count in the mean", targets=IGNORED, options={"ignore_index": -100}),
        Case("`label_smoothing`", options={"label_smoothing": 0.1}),
        Case("`label_smoothing`, `class_weight`", options={"label_smoothing": 0.1, "class_weight": W}),
        Case(
            "`label_smoothing`, `class_weight`, one row ignored",
            targets=IGNORED,
            options={"label_smoothing": 0.1, "class_weight": W, "ignore_index": -100},
        ),
        Case("soft targets", targets=Q),
        Case("soft targets, `class_weight`", targets=Q, options={"class_weight": W}),
        Case("soft targets, `label_smoothing`", targets=Q, options={"label_smoothing": 0.1}),
        Case("soft targets that add up to 2", targets=2 * Q),
        Case("soft targets, `ignore_index`", targets=Q, options={"ignore_index": 1}),
        Case("the sum, `class_weight`", options={"class_weight": W, "reduction": "sum"}),
    ),
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
        Case("a negative soft target", targets=changed(Q, 0, 0, -0.1)),
        Case("a negative class weight", options={"class_weight": np.array([1.0, -1.0, 1.0])}),
    ),
    "A mean over nothing": (
        Case("all rows ignored", targets=ALL_IGNORED, options={"ignore_index": -100}),
        Case("all rows ignored, the sum", targets=ALL_IGNORED, options={"ignore_index": -100, "reduction": "sum"}),
        Case("all class weights 0", options={"class_weight": np.zeros(3)}),
        Case("no rows", logits=Z[:0], targets=Y[:0]),
    ),
    "Numbers that are not finite": (
        Case("a logit of -inf, not the label's", logits=changed(Z, 0, 1, -INF)),
        Case("a logit of -inf at the label", logits=changed(Z, 0, 0, -INF)),
        Case("a logit of -inf, `label_smoothing`", logits=changed(Z, 0, 1, -INF), options={"label_smoothing": 0.1}),
        Case("a logit of -inf where the soft target is 0", logits=changed(Z, 1, 0, -INF), targets=Q),
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
    loss.backward()
    return loss.detach().numpy(), z.grad.numpy()


def outcome(function: Callable[[Case], tuple[np.ndarray, np.ndarray]], case: Case) -> str:
    """What comes out, in a few words: the loss, and what of the gradient is to be said."""
    try:
        loss, grad = function(case)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        return f"`{type(error).__name__}`"
    if np.isnan(grad).any():
        words = f"gradient nan in {int(np.isnan(grad).any(axis=1).sum())} of {len(grad)} rows"
    elif len(grad) == 1:
        words = f"gradient at the label {grad[0, 0]:.3g}"
    elif grad.size and not grad.any():
        words = "gradient 0"
    else:
        words = "gradient " + (f"{np.abs(grad).max():.3g} at most" if grad.size else "empty")
    return f"{float(loss):.4g}, {words}"


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


def table() -> str:
    """Return it as Markdown."""
    rows = [["", "`softmax_loss_and_grad`", "PyTorch `cross_entropy`"], ["---"] * 3, *lines(peer=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table())
