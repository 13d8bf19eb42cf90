"""Errors for unknown keywords that name the right one: users know the names of other libraries."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def _each(names: str, advice: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), advice)


RATE = _each("lr eta eta0 rate step_size learning_rate_init lr_schedule scheduler lr_scheduler", "learning_rate=")
CLIPPING = _each(
    "clip clipnorm clip_norm global_clipnorm grad_clip max_grad_norm clip_grad_norm",
    "optimizer=xs.clip_by_global_norm(optimizer, max_norm)",
)
RANDOM = _each("seed random_seed random_state key generator", "rng=")
PENALTY = "l2 l2_reg weight_decay reg_lambda lam lambda_ alpha penalty regularization kernel_regularizer"
SIZES = "hidden hidden_sizes hidden_layer_sizes hidden_layers hidden_units hidden_dims n_hidden layers layer_sizes"
EPOCHS = "num_epochs n_epochs nb_epoch max_epochs max_iter n_iter steps max_steps num_steps"
HELD_OUT = "validation_data validation_split validation_set val_data eval_set valid X_val y_val"

TRAINING = {
    **_each(" ".join([*RATE, "learning_rate"]), "optimizer=xs.adam(learning_rate)"),
    **_each("momentum nesterov nesterovs_momentum", "optimizer=xs.sgd(learning_rate, momentum)"),
    **_each("betas beta_1 beta_2 eps epsilon", "optimizer=xs.adam(learning_rate, betas, eps)"),
    **CLIPPING,
    **RANDOM,
    **_each(PENALTY, "reg="),
    "weight_decay": "reg=, or optimizer=xs.adamw(weight_decay=...)",
    **_each(SIZES + " sizes", "params = xs.init_params((inputs, hidden, classes), rng=...)"),
    **_each("dtype device", "xs.init_params(..., dtype=..., xp=..., device=...)"),
    **_each(EPOCHS, "epochs="),
    **_each("batch minibatch minibatch_size", "batch_size="),
    **_each(HELD_OUT, "validation=(X, targets)"),
    **_each("early_stopping n_iter_no_change tol", "patience="),
    **_each("initial_epoch warm_start state initial_state", "resume="),
    **_each("verbose verbosity", "progress="),
    **_each("y labels target", "targets, the third argument"),
    **_each("solver optim opt", "optimizer="),
    **_each("weight weights", "class_weight= or sample_weight="),
    **_each("checkpoint checkpoint_path", "callback=xs.checkpoint(path, every=...)"),
}
"""Names that users of PyTorch, Keras, JAX and scikit-learn would give to what `train` takes."""


def suggesting(**meant: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function name the keyword that was meant: that of another library, or a similar one of its own.

    `meant` maps names that other libraries use to advice.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = [name for name in inspect.signature(function).parameters if name != "self"]
        called = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in names:
                    import difflib  # only for a message: its import takes a millisecond

                    closest = difflib.get_close_matches(name, names, n=1)
                    said = meant.get(name) or (f"{closest[0]}=" if closest else None)
                    hint = "" if said is None else f" Did you mean {said}?"
                    raise TypeError(f"{called}() has no argument {name!r}.{hint}")
            return function(*args, **kwargs)

        return checked

    return decorate
