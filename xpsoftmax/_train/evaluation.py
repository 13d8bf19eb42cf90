"""Loss and accuracy on validation data."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from xpsoftmax._arguments import checks as check
from xpsoftmax._network.backprop import Buffers, forward
from xpsoftmax._network.chunks import plan_chunks
from xpsoftmax._network.network import Network
from xpsoftmax._network.predict import NO_CLASS, labels_of
from xpsoftmax._train.data import Data
from xpsoftmax._typing import Reduction
from xpsoftmax.kernels import summed


class Evaluation(NamedTuple):
    """Sums over rows of validation data: those of disjoint rows add up."""

    loss: Any  # 0-d, or a number: the sum of the weighted losses
    total: Any  # of the counting weights
    correct: Any  # how many of the rows that count are classified correctly
    counted: int  # how many count

    def __add__(self, other: object) -> Evaluation:
        if not isinstance(other, Evaluation):
            return NotImplemented
        return Evaluation(*(a + b for a, b in zip(self, other, strict=True)))

    def means(self, reduction: Reduction) -> tuple[float, float]:
        """Return loss and accuracy; nan if no row counts. With the reduction "sum" the loss is not divided."""
        if self.counted == 0:
            return math.nan, math.nan
        loss = float(self.loss / self.total if reduction == "mean" else self.loss)
        return loss, float(self.correct) / self.counted


def evaluation(
    net: Network, data: Data, reduction: Reduction, max_memory: int | None, buffers: Buffers | None
) -> Evaluation:
    """Return the sums over all rows, which pass through the network in chunks."""
    xp, problem = net.xp, data.problem
    loss, correct = 0.0, 0.0
    for rows in plan_chunks(net, data.rows, problem, max_memory).chunks:
        rows = slice(0, data.rows) if rows is None else rows
        X = data.X[rows, :]
        if X.dtype != net.working:
            X = xp.astype(X, net.working)
        targets, row_weight = problem.targets[rows, ...], problem.row_weight[rows]
        if targets.ndim == 2:
            targets = check.as_dtype(xp, targets, net.working)
        _, _, logits = forward(net, X, buffers=buffers)
        labels = targets if targets.ndim == 1 else xp.argmax(targets, axis=1)
        found = labels_of(xp, logits)
        hits = (found == labels) & (found != NO_CLASS)  # an ignored label may equal NO_CLASS
        if problem.counting is not None:
            hits = hits & ((problem.counting if reduction == "mean" else problem.row_weight)[rows] != 0.0)
        losses, _ = net.kernels.softmax_loss_rows(logits, targets, row_weight, problem.spec, grad=False)
        loss, correct = loss + summed(xp, losses), correct + xp.sum(xp.astype(hits, net.working))
        del X, targets, logits, losses  # before the next chunk allocates its own
    counted = data.rows if data.counts is None else int(np.count_nonzero(data.counts))
    return Evaluation(loss, problem.total, correct, counted)
