"""The softmax loss, and the network under it, on whatever array you hold."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xpsoftmax import _moved
from xpsoftmax._loss import softmax_loss, softmax_loss_and_grad
from xpsoftmax._softmax import log_softmax, logsumexp, softmax, softmax_jacobian, softmax_jvp
from xpsoftmax._threads import threads

if TYPE_CHECKING:
    from xpsoftmax._gradcheck import check_grad, numerical_grad
    from xpsoftmax._network.files import load_params, save_params
    from xpsoftmax._network.functions import mlp_logits, mlp_loss, mlp_loss_and_grad, mlp_partial_sums, mlp_predict
    from xpsoftmax._network.init import init_params
    from xpsoftmax._network.layers import Layer
    from xpsoftmax._network.moving import to_namespace
    from xpsoftmax._network.sums import PartialSums
    from xpsoftmax._train.clipping import clip_by_global_norm
    from xpsoftmax._train.files import checkpoint, load_state, save_state
    from xpsoftmax._train.optimizers import Optimizer, adam, adamw, sgd
    from xpsoftmax._train.records import DivergenceError, TrainResult, TrainStep
    from xpsoftmax._train.schedules import constant_schedule, cosine_schedule, step_schedule, warm_up_schedule
    from xpsoftmax._train.state import TrainState
    from xpsoftmax._train.train import train

__version__ = "0.1.0"

__all__ = [
    "DivergenceError",
    "Layer",
    "Optimizer",
    "PartialSums",
    "TrainResult",
    "TrainState",
    "TrainStep",
    "adam",
    "adamw",
    "check_grad",
    "checkpoint",
    "clip_by_global_norm",
    "constant_schedule",
    "cosine_schedule",
    "init_params",
    "load_params",
    "load_state",
    "log_softmax",
    "logsumexp",
    "mlp_logits",
    "mlp_loss",
    "mlp_loss_and_grad",
    "mlp_partial_sums",
    "mlp_predict",
    "numerical_grad",
    "save_params",
    "save_state",
    "sgd",
    "softmax",
    "softmax_jacobian",
    "softmax_jvp",
    "softmax_loss",
    "softmax_loss_and_grad",
    "step_schedule",
    "threads",
    "to_namespace",
    "train",
    "warm_up_schedule",
]


_IMPORTED_LATER = {
    "_gradcheck": ("check_grad", "numerical_grad"),
    "_network.files": ("load_params", "save_params"),
    "_network.functions": ("mlp_logits", "mlp_loss", "mlp_loss_and_grad", "mlp_partial_sums", "mlp_predict"),
    "_network.init": ("init_params",),
    "_network.layers": ("Layer",),
    "_network.moving": ("to_namespace",),
    "_network.sums": ("PartialSums",),
    "_train.train": ("train",),
    "_train.clipping": ("clip_by_global_norm",),
    "_train.files": ("checkpoint", "load_state", "save_state"),
    "_train.optimizers": ("Optimizer", "adam", "adamw", "sgd"),
    "_train.records": ("DivergenceError", "TrainResult", "TrainStep"),
    "_train.schedules": ("constant_schedule", "cosine_schedule", "step_schedule", "warm_up_schedule"),
    "_train.state": ("TrainState",),
}
"""Imported at their first use, because importing the package should cost little."""


def __getattr__(name: str) -> Any:
    for module, names in _IMPORTED_LATER.items():
        if name in names:
            value = getattr(import_module(f"xpsoftmax.{module}"), name)
            globals()[name] = value  # the next use finds it without this function
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


_moved.install()
