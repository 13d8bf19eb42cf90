"""Numbers of update rules, computed on the host in float64 for the next updates, to be sent to a device."""

from __future__ import annotations

import numpy as np

from xpsoftmax._train.optimizers import Optimizer
from xpsoftmax._train.schedules import is_of_the_package

NUMBERS_OF_A_RULE = 8


def numbers_ahead(optimizer: Optimizer, count: int, most: int) -> np.ndarray:
    """Return the numbers for the updates after `count`, (updates, NUMBERS_OF_A_RULE): one at least, at most `most`.

    A learning rate that is a function of the user may change its mind, so it is called for the next update alone. The
    rows end before an update whose rate is an error: it is raised when this update is the next one.
    """
    rate = optimizer.learning_rate
    if callable(rate) and not is_of_the_package(rate):
        most = 1
    rows: list[tuple[float, ...]] = []
    for update in range(count, count + most):
        try:
            rows.append(optimizer.rule(optimizer.rate(update), update + 1)[1])
        except Exception:
            if not rows:
                raise
            break
    table = np.zeros((len(rows), NUMBERS_OF_A_RULE))
    table[:, : len(rows[0])] = rows
    return table
