"""Fitted attributes of a classifier: its weights, and the record with which `fit` and `partial_fit` continue."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Self

from xpsoftmax._network.layers import Layer, Params, with_activation
from xpsoftmax._train.optimizers import Optimizer, State
from xpsoftmax.sklearn.checks import diverged


@dataclass
class Record:
    """The progress of a model in training. Its fields are attributes of the model, by the same names.

    `fit` and `partial_fit` change a record while they learn; the model takes it over when they are done.
    """

    n_iter_: int = 0
    t_: int = 0
    loss_: float = math.nan
    loss_curve_: list[float] = field(default_factory=list)
    # Numbers and a list, or None: as scikit-learn has them.
    best_loss_: Any = None
    best_validation_score_: Any = None
    validation_scores_: Any = None
    validation_loss_curve_: Any = None
    _no_improvement_count: int = 0
    _optimizer: Optimizer | None = None
    _schedule: tuple[str, float, float] = ("constant", 0.0, 0.0)
    _state: State = ()
    _best: Params = ()

    @classmethod
    def of(cls, model: Any) -> Self:
        """Return the record of a fitted model, with lists of its own."""
        # Older pickles lack some of them.
        known: dict[str, Any] = {each.name: getattr(model, each.name, None) for each in fields(cls)}
        record = cls(**known)
        record.loss_curve_ = list(record.loss_curve_)
        for name in ("validation_scores_", "validation_loss_curve_"):
            values = getattr(record, name)
            setattr(record, name, None if values is None else list(values))
        return record

    def count(self, loss: float, rows: int) -> None:
        """Count an epoch over so many rows, or an iteration of lbfgs."""
        self.n_iter_ += 1
        self.t_ += rows
        self.loss_ = loss
        self.loss_curve_.append(loss)

    def expect_validation(self, *, given: bool) -> None:
        """Begin or continue the curve of the validation loss, if there is validation data."""
        self.validation_loss_curve_ = (self.validation_loss_curve_ or []) if given else None

    def expect(self, layers: Params | None) -> None:
        """Prepare the comparison of losses or, if the present `layers` are given, of validation scores."""
        if layers is None:
            self.best_validation_score_ = self.validation_scores_ = None
            if self.best_loss_ is None:
                self.best_loss_ = math.inf
            return
        self.best_loss_ = None
        if self.validation_scores_ is None:
            self.best_validation_score_, self.validation_scores_ = -math.inf, []
            self._best = layers


def params_of(model: Any) -> Params:
    """Return the layers of a fitted model, which carry the activation that it was fitted with."""
    layers = [Layer(*layer) for layer in zip(model.coefs_, model.intercepts_, strict=True)]
    return with_activation(layers, getattr(model, "_activation", model.activation))  # older pickles lack it


def set_fitted(model: Any, layers: Params, record: Record | None = None) -> None:
    """Set the weights of a model, and its record."""
    model.coefs_ = [layer.weight for layer in layers]
    model.intercepts_ = [layer.bias for layer in layers]
    if record is not None:
        vars(model).update(vars(record))


def set_fitted_classes(model: Any, layers: Params, classes: Any) -> None:
    """Set the attributes that only a first fit sets."""
    model.classes_ = classes
    model.n_layers_ = len(layers) + 1
    model.n_outputs_ = len(classes)
    model.out_activation_ = "softmax"


@contextmanager
def all_or_nothing(model: Any) -> Iterator[None]:
    """Let an error, or a second Ctrl-C, leave the attributes of a model as they were."""
    before = dict(vars(model))
    try:
        yield
    except BaseException:
        vars(model).clear()
        vars(model).update(before)
        raise


def record_validation_loss(model: Any, steps: Any, params: Params, watched: Any, record: Record) -> None:
    """Add the loss of validation data, if there are some, to its curve."""
    if watched is None:
        return
    loss, _ = steps.evaluated(params, watched)
    if not math.isfinite(loss):
        raise diverged(f"and the validation loss {loss} after epoch {record.n_iter_}")
    record.validation_loss_curve_.append(loss)
    print_if_verbose(model, f"Validation loss: {loss:.8f}")


def print_if_verbose(model: Any, text: str) -> None:
    """Print a line about the training if the model is verbose."""
    if model.verbose:
        print(text)
