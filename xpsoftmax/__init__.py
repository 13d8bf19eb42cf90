"""The softmax loss, and the network under it, on whatever array you hold."""

from typing import TYPE_CHECKING, Any

from xpsoftmax._backprop import PartialSums
from xpsoftmax._io import load_params, save_params, to_namespace
from xpsoftmax._layers import Layer
from xpsoftmax._loss import softmax_loss, softmax_loss_and_grad
from xpsoftmax._mlp import (
    init_params,
    mlp_logits,
    mlp_loss,
    mlp_loss_and_grad,
    mlp_partial_sums,
    mlp_predict,
)
from xpsoftmax._optim import adam, adamw, sgd
from xpsoftmax._softmax import log_softmax, logsumexp, softmax, softmax_jacobian, softmax_jvp
from xpsoftmax._state import TrainState
from xpsoftmax._threads import threads
from xpsoftmax._training import DivergenceError, TrainResult, TrainStep, train

if TYPE_CHECKING:
    from xpsoftmax._gradcheck import check_grad, numerical_grad

__version__ = "0.1.0.dev0"

__all__ = [
    "DivergenceError",
    "Layer",
    "PartialSums",
    "TrainResult",
    "TrainState",
    "TrainStep",
    "adam",
    "adamw",
    "check_grad",
    "init_params",
    "load_params",
    "log_softmax",
    "logsumexp",
    "mlp_logits",
    "mlp_loss",
    "mlp_loss_and_grad",
    "mlp_partial_sums",
    "mlp_predict",
    "numerical_grad",
    "save_params",
    "sgd",
    "softmax",
    "softmax_jacobian",
    "softmax_jvp",
    "softmax_loss",
    "softmax_loss_and_grad",
    "threads",
    "to_namespace",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is seldom used when it is asked for: importing the package should cost little."""
    if name in ("check_grad", "numerical_grad"):
        from xpsoftmax import _gradcheck

        return getattr(_gradcheck, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
