"""The state of a training, and the checks of a state to resume from, all made before the first step."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, NamedTuple, Protocol

import numpy as np

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.home import quiet
from xpsoftmax._arguments.options import as_integer
from xpsoftmax._arguments.values import Rows, ValueCheck, check_values
from xpsoftmax._network.layers import Layer, Params, layer_type_of, sizes_of, with_types_of
from xpsoftmax._network.matching import check_matching
from xpsoftmax._network.network import Network
from xpsoftmax._train.optimizers import Optimizer, State

History = dict[str, list[float]]


VALIDATION = ("validation_loss", "validation_accuracy")
ACCURACY = "accuracy"
"""Key of a history: the accuracy on the training data after each epoch, recorded with `accuracy=True`."""


class TrainState(NamedTuple):
    """Everything that `train` needs to continue an earlier training.

    A state consists of tuples, dicts, numbers and arrays: it can be pickled and inspected.

    Attributes
    ----------
    params : tuple of Layer
        The last parameters, in float32 or wider. With `patience` those that `train` returns are of the best epoch.
    optimizer : tuple
        State of the optimiser.
    rng : dict
        State of the random generator at the beginning of the epoch.
    epoch, step : int
        Completed epochs, and completed steps of the next epoch.
    best : tuple or None
        (validation loss, epoch, parameters) of the best epoch so far, where `patience` is given.
    history : dict of lists
    rows, batch_size : int
        Rows of the data and of a batch; they determine the number of steps of an epoch.
    blocks : tuple or None
        With `xpsoftmax.dask.train`: the number of rows of each block, and the number of blocks of a step.
    interrupted : bool
        Whether Ctrl-C has ended the training.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> X, y = np.eye(4), np.array([0, 1, 2, 0])
    >>> options = {"optimizer": xs.sgd(0.1), "batch_size": 2, "rng": 0}
    >>> half = xs.train(xs.init_params((4, 3), rng=0), X, y, epochs=3, **options)
    >>> half.state.epoch, half.state.step, half.state.rows
    (3, 0, 4)
    >>> xs.train(half.params, X, y, epochs=6, resume=half.state, **options).state.epoch
    6
    """

    params: Params
    optimizer: State
    rng: dict[str, Any]
    epoch: int
    step: int
    best: tuple[float, int, Params] | None
    history: History
    rows: int
    batch_size: int
    blocks: tuple[tuple[int, ...], int] | None = None
    interrupted: bool = False

    def __repr__(self) -> str:
        """Progress and last losses; the arrays would fill pages."""
        return f"TrainState({', '.join([*self.progress(), *self.last()])})"

    def progress(self) -> list[str]:
        """Return the sizes of the network, and the epochs and steps made, as words."""
        words = [sizes_of(self.params) or f"{len(self.params)} layers", _counted(self.epoch, "epoch")]
        return words if self.step == 0 else [*words[:-1], f"{words[-1]} and {_counted(self.step, 'step')}"]

    def last(self, epoch: int = 0) -> list[str]:
        """Return the last loss and the validation accuracy of an epoch (counted from 1; 0: the last) as words."""
        names = {"loss": "loss", "validation_accuracy": "validation accuracy"}
        places = {"loss": -1, "validation_accuracy": epoch - 1}
        found = {name: self.history.get(name) for name in names}
        return [f"{names[name]} {values[places[name]]:.3g}" for name, values in found.items() if values]


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


class TrainingSizes(Protocol):
    """The sizes of a training that a state to resume from must match."""

    network: Network
    rows: int
    blocks: tuple[tuple[int, ...], int] | None

    def batch_count(self, batch_size: int, generator: np.random.Generator | None = None) -> int:
        """Return the number of batches of the epoch that the generator draws."""

    def batch_count_range(self, batch_size: int) -> tuple[int, int]:
        """Return the least and the largest number of batches of an epoch."""


def checked_state(
    resume: object,
    steps: TrainingSizes,
    optimizer: Optimizer,
    generator: np.random.Generator,
    batch_size: int,
    *,
    validated: bool,
    patient: bool,
    accurate: bool = False,
) -> TrainState:
    """Check a state against this training; return it with its numbers as Python's."""
    if not isinstance(resume, TrainState):
        result = isinstance(getattr(resume, "state", None), TrainState)
        got, hint = (f"a {type(resume).__name__}", " Pass its `state`.") if result else (f"{resume!r:.60}", "")
        raise TypeError(f"resume must be the state of an earlier call, got {got}.{hint}")
    _check_sizes(resume, steps, batch_size)
    rng = _checked_rng(resume.rng, generator)
    epoch, step = _checked_place(resume, rng, steps, generator, batch_size)
    params = _checked_layers("resume.params", resume.params, steps.network)
    updates, *kept = _checked_optimizer(resume.optimizer, optimizer, steps.network)
    history = _checked_history(resume.history, epoch, validated=validated, accurate=accurate)
    _check_counts(history, epoch, step, updates, steps.batch_count_range(batch_size))
    best = _checked_best(resume.best, epoch, history, steps.network, patient=patient)
    _check_numbers(steps.network, params, kept, optimizer.squares, best)
    return resume._replace(
        params=params, optimizer=(updates, *kept), rng=rng, epoch=epoch, step=step, best=best, history=history
    )


def _check_sizes(resume: TrainState, steps: TrainingSizes, batch_size: int) -> None:
    rows = as_integer("resume.rows", resume.rows)
    if rows != steps.rows:
        raise ValueError(f"X must have as many rows as in the training that is resumed, {rows}, got {steps.rows}.")
    size = as_integer("resume.batch_size", resume.batch_size)
    if size != batch_size:
        raise ValueError(f"batch_size must be that of the training that is resumed, {size}, got {batch_size}.")
    blocks = _as_blocks(resume.blocks)
    if blocks != steps.blocks:
        raise ValueError(f"X must have the blocks of the training that is resumed, {blocks}, got {steps.blocks}.")


def _as_blocks(blocks: Any) -> tuple[tuple[int, ...], int] | None:
    if blocks is None:
        return None
    if not isinstance(blocks, (tuple, list)) or len(blocks) != 2 or not isinstance(blocks[0], (tuple, list)):
        raise TypeError(f"resume.blocks must be None or the rows of each block and a number, got {blocks!r:.60}.")
    sizes = tuple(as_integer(f"resume.blocks[0][{i}]", size) for i, size in enumerate(blocks[0]))
    return sizes, as_integer("resume.blocks[1]", blocks[1])


def _checked_place(
    resume: TrainState, rng: dict[str, Any], steps: TrainingSizes, generator: np.random.Generator, batch_size: int
) -> tuple[int, int]:
    """Return epoch and step, checked: training would never end an epoch whose steps are exceeded."""
    epoch = as_integer("resume.epoch", resume.epoch, low=0)
    step = as_integer("resume.step", resume.step, low=0)
    if step > 0:
        drawn = copy.deepcopy(generator)
        drawn.bit_generator.state = rng
        batches = steps.batch_count(batch_size, drawn)
        if step > batches:
            raise ValueError(f"resume.step must be at most {batches}, the steps of the epoch, got {step}.")
    return epoch, step


def as_loss(name: str, value: object) -> float:
    """Check a loss or an accuracy; return it as a float. It may be nan: that of no row."""
    if not isinstance(value, Real) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a real number, got {value!r:.60}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise ValueError(f"{name} must be finite, or nan where no row counts, got {number}.")
    return number


POSITIONS = {"pos": 624, "buffer_pos": 4}
"""Positions in the arrays of a bit generator, and the largest valid ones.

NumPy takes larger positions, too, and then reads memory beyond the array.
"""


def _checked_rng(state: object, generator: np.random.Generator) -> dict[str, Any]:
    kind = generator.bit_generator.state["bit_generator"]
    own = state.get("bit_generator") if isinstance(state, dict) else None
    if not isinstance(state, dict) or not isinstance(own, str):
        raise TypeError(f"resume.rng must be the state of a bit generator, a dict, got {state!r:.60}.")
    if own != kind:
        raise ValueError(f"rng must be of the kind of resume, {own}, got {kind}.")
    probe = copy.deepcopy(generator).bit_generator
    try:
        probe.state = state
        whole = _equal(probe.state, state) and all(_has_valid_positions(part) for part in (state, state.get("state")))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"resume.rng must be a state of {kind}, got one that raises {error!r:.100}.") from None
    if not whole:
        raise ValueError(f"resume.rng must be a state of {kind}, got {state!r:.100}.")
    return dict(probe.state)


def _equal(first: Any, second: Any) -> bool:
    """Compare states of bit generators: nested dicts of numbers and arrays."""
    if isinstance(first, dict):
        keys_agree = isinstance(second, dict) and first.keys() == second.keys()
        return keys_agree and all(_equal(first[key], second[key]) for key in first)
    return bool(np.array_equal(first, second))


def _has_valid_positions(part: Any) -> bool:
    return not isinstance(part, dict) or all(0 <= part.get(name, 0) <= last for name, last in POSITIONS.items())


def _checked_layers(name: str, layers: Any, net: Network) -> Params:
    """Check that layers have the shapes, library, device and working precision of the network; return them."""
    if not isinstance(layers, (tuple, list)) or not all(isinstance(x, (tuple, list)) and len(x) == 2 for x in layers):
        raise TypeError(f"{name} must be a sequence of layers (weight, bias), got {layers!r:.60}.")
    pairs = []
    for i, layer in enumerate(layers):
        arrays = []
        for part, value in zip(Layer._fields, layer, strict=True):
            where = f"{name}[{i}].{part}"
            check.as_companion(where, value, net.home)
            _, array = check.as_floating(where, value)
            if array.dtype != net.working:
                raise TypeError(f"resume must be of a training in {net.working}, got one in {array.dtype}.")
            arrays.append(array)
        pairs.append(layer_type_of(layer)(*arrays))
    check_matching(name, tuple(pairs), net.layers, "params")
    return with_types_of(pairs, net.layers)


def _checked_optimizer(state: Any, optimizer: Optimizer, net: Network) -> State:
    if not isinstance(state, (tuple, list)) or not state:
        raise TypeError(f"resume.optimizer must be the state of an optimizer, got {state!r:.60}.")
    if len(state) != 1 + optimizer.kept:
        raise ValueError(f"resume must be of a training by the same optimizer, got one that is not by {optimizer}.")
    updates = as_integer("resume.optimizer[0]", state[0], low=0)
    return updates, *(_checked_layers(f"resume.optimizer[{i}]", kept, net) for i, kept in enumerate(state[1:], 1))


def _check_numbers(
    net: Network, params: Params, kept: Sequence[Params], squares: Sequence[int], best: tuple[float, int, Params] | None
) -> None:
    """Check that all numbers are finite, and means of squares not negative, with one synchronisation."""

    def named() -> Iterator[tuple[str, str, Any]]:
        groups = [("resume.params", "be finite", params)]
        for i, layers in enumerate(kept):
            rule = "be finite and not negative" if i in squares else "be finite"
            groups.append((f"resume.optimizer[{1 + i}]", rule, layers))
        if best is not None:
            groups.append(("resume.best[2]", "be finite", best[2]))
        for name, rule, layers in groups:
            for i, layer in enumerate(layers):
                for part, array in zip(Layer._fields, layer, strict=True):
                    yield f"{name}[{i}].{part}", rule, array

    def value_check(name: str, rule: str, array: Any) -> ValueCheck:
        def bad(_: Rows) -> Any:
            found = ~net.xp.isfinite(array)
            return found | (array < 0.0) if rule.endswith("negative") else found

        return ValueCheck(name, rule, "index", bad, array)

    with quiet(net.xp, net.home.device):
        check_values(net.xp, [value_check(*entry) for entry in named()])


def _checked_history(history: Any, epoch: int, *, validated: bool, accurate: bool) -> History:
    if not isinstance(history, dict) or set(history) - {ACCURACY} not in ({"loss"}, {"loss", *VALIDATION}):
        got = list(history) if isinstance(history, dict) else history
        raise _error_for(history, dict)(
            f'resume.history must have the lists "loss" and, with validation data, "{VALIDATION[0]}" and '
            f'"{VALIDATION[1]}", got {got!r:.60}.'
        )
    for name, values in history.items():
        if not isinstance(values, (list, tuple)):
            raise TypeError(f'resume.history["{name}"] must be a list of numbers, got {values!r:.60}.')
    checked = {
        name: [as_loss(f'resume.history["{name}"][{i}]', value) for i, value in enumerate(values)]
        for name, values in history.items()
    }
    was_validated = VALIDATION[0] in checked
    if epoch > 0 and was_validated != validated:
        before, now = ("with", "without") if was_validated else ("without", "with")
        raise ValueError(
            f"validation must be as in the training that is resumed, {before} such data, got one {now} it."
        )
    if epoch > 0 and (ACCURACY in checked) != accurate:
        raise ValueError(f"accuracy must be {not accurate}, as in the training that is resumed, got {accurate}.")
    for name in (*VALIDATION, ACCURACY):
        if name in checked and len(checked[name]) != epoch:
            raise ValueError(
                f'resume.history["{name}"] must have a number for each of {epoch} epochs, got {len(checked[name])}.'
            )
    return checked


def _error_for(value: object, kind: type | tuple[type, ...]) -> type[TypeError] | type[ValueError]:
    """Return the class of the error for a bad value: ValueError if its type is right."""
    return ValueError if isinstance(value, kind) else TypeError


def _check_counts(history: History, epoch: int, step: int, updates: int, span: tuple[int, int]) -> None:
    """Check that the history has a loss for each step, and that each loss but nan stands for an update."""
    losses = history["loss"]
    least, most = (epoch * batches + step for batches in span)
    if not least <= len(losses) <= most:
        steps = f"{least}" if least == most else f"{least} to {most}"
        raise ValueError(
            f'resume.history["loss"] must have a number for each of {steps} steps (resume.epoch is {epoch} and '
            f"resume.step {step}), got {len(losses)}."
        )
    made = sum(not math.isnan(loss) for loss in losses)
    if updates != made:
        raise ValueError(
            f'resume.optimizer[0], the number of updates, must be {made}, as many as resume.history["loss"] has '
            f"numbers that are not nan, got {updates}."
        )


def _checked_best(
    best: Any, epoch: int, history: History, net: Network, *, patient: bool
) -> tuple[float, int, Params] | None:
    """Check the best epoch so far; return it, or None for a training without patience, which ignores it."""
    if best is None:
        if patient and epoch > 0:
            raise ValueError(
                "resume.best must be the best epoch where patience is given, got None: the training that is resumed "
                "had no patience."
            )
        return None
    if not isinstance(best, (tuple, list)) or len(best) != 3:
        raise _error_for(best, (tuple, list))(
            f"resume.best must be None or (validation loss, epoch, parameters), got {best!r:.60}."
        )
    loss = as_loss("resume.best[0]", best[0])
    number = as_integer("resume.best[1]", best[1], low=1)
    layers = _checked_layers("resume.best[2]", best[2], net)
    losses = history.get(VALIDATION[0], [])
    counted = [value for value in losses if not math.isnan(value)]
    least = min(counted, default=math.nan)
    found = 1 + (losses.index(least) if counted else 0)
    if not losses or number != found or not np.array_equal(loss, losses[found - 1], equal_nan=True):
        wanted = f"({losses[found - 1]}, {found}, ...)" if losses else "None before the first epoch ends"
        raise ValueError(
            f'resume.best must be that of the least number of resume.history["{VALIDATION[0]}"], {wanted}, '
            f"got ({loss}, {number}, ...)."
        )
    return (loss, number, layers) if patient else None
