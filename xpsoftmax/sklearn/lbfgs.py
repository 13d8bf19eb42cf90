"""The solver "lbfgs": SciPy's L-BFGS-B on the loss of all rows, on NumPy data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from xpsoftmax._arguments.caller import warn
from xpsoftmax._network.layers import Params
from xpsoftmax._network.network import Network
from xpsoftmax._network.vectors import parts_of
from xpsoftmax._train.interrupts import Interrupted, interrupts
from xpsoftmax.sklearn.checks import INTERRUPTED, diverged, finite_layers
from xpsoftmax.sklearn.fitted import Record, print_if_verbose, record_validation_loss


def minimise(model: Any, steps: Any, record: Record, watched: Any = None) -> Params:
    """Minimise the loss of all rows; return the weights of the last iteration.

    The loss of `watched`, validation data, is recorded after each.
    """
    from scipy.optimize import OptimizeResult, minimize

    net = steps.network
    found = OptimizeResult(x=_packed(net.layers), fun=math.nan)  # the last iteration: what an interrupt leaves

    def loss_and_grad(x: np.ndarray) -> tuple[float, np.ndarray]:
        if interrupted():
            raise Interrupted
        loss, grads = steps.loss_and_grads(_unpacked(x, net), None)
        if math.isnan(found.fun):
            found.fun = float(loss)
        return float(loss), _packed(grads)

    def report(intermediate_result: Any) -> None:
        found.update(x=intermediate_result.x.copy(), fun=float(intermediate_result.fun))
        record.count(found.fun, 0)
        print_if_verbose(model, f"Iteration {record.n_iter_}, loss = {found.fun:.8f}")
        record_validation_loss(model, steps, _unpacked(found.x, net), watched, record)

    record.expect(None)
    record.n_iter_ = 0
    options = {"maxfun": model.max_fun, "maxiter": model.max_iter, "gtol": model.tol}
    with interrupts() as interrupted:
        try:
            found = minimize(loss_and_grad, found.x, method="L-BFGS-B", jac=True, options=options, callback=report)
        except Interrupted:
            warn(INTERRUPTED)
        else:
            if not math.isfinite(found.fun):
                raise diverged(f"and the loss {found.fun} after {record.n_iter_} iterations")
            if found.status != 0:
                warn(
                    f"lbfgs failed to converge after {record.n_iter_} iterations (status {found.status}): "
                    f"{found.message}. Increase max_iter or max_fun, or scale the data.",
                    ConvergenceWarning,
                )
    if not math.isnan(found.fun):  # there was an evaluation
        record.loss_ = float(found.fun)
        record.best_loss_ = min(record.best_loss_, record.loss_)
    return finite_layers(net, _unpacked(found.x, net))


def _packed(layers: Params) -> np.ndarray:
    """Return all weights and biases as one vector in float64, in which SciPy computes."""
    return np.concatenate([array.ravel() for layer in layers for array in layer]).astype(np.float64, copy=False)


def _unpacked(x: np.ndarray, net: Network) -> Params:
    """Return the layers that a vector is made of, in the dtype of the network."""
    return parts_of(x.astype(net.dtype, copy=False), net.layers)
