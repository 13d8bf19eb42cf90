"""The state of a training in a safetensors file, and a callback that writes it while the training runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.host import to_library
from xpsoftmax._arguments.naming import named
from xpsoftmax._arguments.options import as_integer
from xpsoftmax._arguments.suggestions import suggesting
from xpsoftmax._network.layers import Layer, Params
from xpsoftmax._network.network import as_network
from xpsoftmax._network.tensors import (
    as_path,
    check_dtype,
    import_safetensors,
    kinds_of,
    layers_of,
    load_arrays,
    save_arrays,
    unfit,
)
from xpsoftmax._train.state import TrainState, as_loss
from xpsoftmax._typing import Device, Namespace

if TYPE_CHECKING:
    from xpsoftmax._train.records import TrainStep

STATE = {"content": "state", "format": 1, "weight": "(fan_in, fan_out)"}
"""The metadata of every state; `format` grows when an older xpsoftmax would misread the file."""
NUMBERS = ("epoch", "step", "rows", "batch_size")


def save_state(path: str | os.PathLike[str], state: TrainState) -> None:
    """Write the state of a training to a safetensors file; `load_state` reads it.

    Parameters
    ----------
    path : str or os.PathLike
        The file. An existing file is replaced in one step: a reader finds either the old or the new state, complete,
        even if writing fails or the process is killed.
    state : TrainState
        The `state` of what `train` returned, or of the step that a callback sees.

    Returns
    -------
    None

    Raises
    ------
    ImportError
        Without safetensors and ml_dtypes: ``pip install safetensors ml-dtypes``.
    TypeError, ValueError
        If `state` is not a state, or `path` not the path of a file; nothing is written.
    OSError
        If the file cannot be written. An existing file stays as it was, and no other file is left behind. Also if the
        disk fails once the new file is in its place: a note on the error says so.

    Notes
    -----
    Every number keeps its bits. The tensors are ``params.layers.0.weight``, ..., ``optimizer.0.layers.0.weight``, ...
    (what the optimiser keeps), ``best.layers.0.weight``, ... and ``history.loss``, ...; counters and the random
    generator are in the metadata. A writer that is killed leaves a file ``.xpsoftmax-*.part``, which the next writer in
    the same folder removes (on Windows it stays).

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> X, y, params = np.eye(4), np.array([0, 1, 2, 0]), xs.init_params((4, 3), rng=0)
    >>> options = {"optimizer": xs.adam(0.1), "batch_size": 2, "rng": 0}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "run.safetensors")
    ...     xs.save_state(path, xs.train(params, X, y, epochs=3, **options).state)
    ...     result = xs.train(params, X, y, epochs=6, resume=xs.load_state(path), **options)
    >>> whole = xs.train(params, X, y, epochs=6, **options)
    >>> bool((result.params[0].weight == whole.params[0].weight).all())
    True
    """
    if not isinstance(state, TrainState):
        result = isinstance(getattr(state, "state", None), TrainState)
        got, hint = (f"a {type(state).__name__}", " Pass its `state`.") if result else (f"{state!r:.60}", "")
        raise TypeError(f"state must be a TrainState, got {got}.{hint}")
    _check_fields(state)
    updates, *kept = state.optimizer
    arrays: dict[str, Any] = _tensors_of("params", state.params)
    for i, layers in enumerate(kept):
        arrays |= _tensors_of(f"optimizer.{i}", layers)
    if state.best is not None:
        arrays |= _tensors_of("best", state.best[2])
    arrays |= {f"history.{name}": np.array(values, np.float64) for name, values in state.history.items()}
    metadata = {
        **STATE,
        "activation": [layer.activation if isinstance(layer, Layer) else None for layer in state.params],
        **{name: int(getattr(state, name)) for name in NUMBERS},
        "updates": int(updates),
        "kept": len(kept),
        "best": None if state.best is None else [float(state.best[0]), int(state.best[1])],
        "history": list(state.history),
        "blocks": state.blocks,
        "rng": _without_arrays("rng", state.rng, arrays),
    }
    save_arrays(path, arrays, metadata)


def load_state(
    path: str | os.PathLike[str], *, xp: Namespace | None = None, device: Device | None = None
) -> TrainState:
    """Read the state of a training that `save_state`, or a callback of `checkpoint`, wrote.

    Parameters
    ----------
    path : str or os.PathLike
        The file, as `save_state` wrote it.
    xp : module, optional
        Library of the arrays: numpy (default), cupy, torch, jax.numpy, ..., whatever library trained before.
    device : device of `xp`, optional
        Where the arrays are made. Default: that of `xp`.

    Returns
    -------
    TrainState
        For ``train(..., resume=state)``, whose other arguments are those of before. On the same versions of NumPy and
        BLAS the training ends with the same bits as one that was never stopped.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        Without safetensors and ml_dtypes: ``pip install safetensors ml-dtypes``.
    ValueError
        If the file is damaged, is no safetensors file, or does not hold a state of this format; if `device` is not one
        of `xp`.
    TypeError
        If `xp` does not have the dtype of the file.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> X, y, params = np.eye(4), np.array([0, 1, 2, 0]), xs.init_params((4, 3), rng=0)
    >>> result = xs.train(params, X, y, optimizer=xs.sgd(0.1), epochs=3, batch_size=2, rng=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "run.safetensors")
    ...     xs.save_state(path, result.state)
    ...     state = xs.load_state(path)
    >>> state.epoch, state.history["loss"] == result.history["loss"]
    (3, True)
    """
    xp = check.as_namespace("xp", np if xp is None else xp)
    arrays, metadata = load_arrays(path)
    if not isinstance(metadata, dict) or {name: metadata.get(name) for name in STATE} != STATE:
        raise unfit(path, f"its metadata is {metadata!a:.200}, not that of a state, {STATE}")
    try:
        return _state_of(path, arrays, metadata, xp, device)
    except (KeyError, AttributeError, IndexError) as error:
        raise unfit(path, f"it lacks a part of the state, {error}") from None


@suggesting(
    **dict.fromkeys(("interval", "period", "freq", "frequency", "save_freq", "save_every", "steps", "n"), "every=")
)
def checkpoint(path: str | os.PathLike[str], *, every: int) -> Callable[[TrainStep], None]:
    """Make a callback of `train` that saves the state of the training every few steps.

    Parameters
    ----------
    path : str or os.PathLike
        The file, as for `save_state`; its folder must exist.
    every : int
        Steps from one save to the next. On a GPU each save waits for the device.

    Returns
    -------
    function
        For ``train(callback=...)``. If a save fails, for example on a full disk, the function warns, training
        continues, and the file keeps the state that was saved before.

    Raises
    ------
    ImportError
        Without safetensors and ml_dtypes: ``pip install safetensors ml-dtypes``.
    TypeError, ValueError
        If `path` is not the path of a file, or `every` not an integer above 0.
    FileNotFoundError
        If the folder of `path` does not exist.

    Notes
    -----
    After ``kill -9`` at any moment the file is complete, or does not exist yet. A resumed training repeats the steps
    since the last save.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> X, y, params = np.eye(4), np.array([0, 1, 2, 0]), xs.init_params((4, 3), rng=0)
    >>> options = {"optimizer": xs.sgd(0.1), "epochs": 5, "batch_size": 2, "rng": 0}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "run.safetensors")
    ...     state = xs.load_state(path) if path.exists() else None  # it was killed and starts again
    ...     keep = xs.checkpoint(path, every=3)
    ...     result = xs.train(params, X, y, **options, resume=state, callback=keep)
    ...     xs.load_state(path).epoch, xs.load_state(path).step  # after 9 of 10 steps
    (4, 1)
    """
    target = as_path(path)
    every = as_integer("every", every, low=1)
    import_safetensors()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists, got {path}.")

    def save(step: TrainStep) -> None:
        if (step.step + 1) % every == 0:
            state = step.state
            try:
                save_state(target, state)
            except OSError as error:
                warnings.warn(f"The state after step {step.step} is not saved: {error}.", RuntimeWarning, stacklevel=2)

    return save


# --- writing ----------------------------------------------------------------------------------------------------------


def _check_fields(state: TrainState) -> None:
    """Check that the fields have what a state has: no file is written that `load_state` could not read."""
    _check_layers("state.params", state.params)
    if not isinstance(state.optimizer, (tuple, list)) or not state.optimizer:
        raise TypeError(f"state.optimizer must be the state of an optimizer, got {state.optimizer!r:.60}.")
    as_integer("state.optimizer[0]", state.optimizer[0], low=0)
    for i, layers in enumerate(state.optimizer[1:], 1):
        _check_layers(f"state.optimizer[{i}]", layers)
    for name in NUMBERS:
        as_integer(f"state.{name}", getattr(state, name), low=0)
    if not isinstance(state.rng, dict):
        raise TypeError(f"state.rng must be the state of a bit generator, a dict, got {state.rng!r:.60}.")
    if not isinstance(state.history, dict) or not all(isinstance(x, (list, tuple)) for x in state.history.values()):
        raise TypeError(f"state.history must be a dict of lists, got {state.history!r:.60}.")
    for name, values in state.history.items():
        for i, value in enumerate(values):
            as_loss(f'state.history["{name}"][{i}]', value)
    if state.best is not None:
        if not isinstance(state.best, (tuple, list)) or len(state.best) != 3:
            raise TypeError(f"state.best must be None or (validation loss, epoch, parameters), got {state.best!r:.60}.")
        as_loss("state.best[0]", state.best[0])
        as_integer("state.best[1]", state.best[1], low=1)
        _check_layers("state.best[2]", state.best[2])


def _check_layers(name: str, layers: Any) -> None:
    with named({"params": name}):
        as_network(layers, None)


def _tensors_of(prefix: str, layers: Params) -> dict[str, Any]:
    """Return the arrays of layers by their names in a file."""
    tensors: dict[str, Any] = {}
    for i, (weight, bias) in enumerate(layers):
        tensors |= {f"{prefix}.layers.{i}.weight": weight, f"{prefix}.layers.{i}.bias": bias}
    return tensors


def _without_arrays(name: str, value: Any, arrays: dict[str, Any]) -> Any:
    """Return the state of a random generator as JSON takes it; move its arrays to `arrays`, and leave their names."""
    if isinstance(value, dict):
        return {key: _without_arrays(f"{name}.{key}", part, arrays) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"tensor": name}
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        return value
    raise TypeError(f"state.{name} must be a number, a text or an array, got {value!r:.60}.")


# --- reading ----------------------------------------------------------------------------------------------------------


def _state_of(
    path: str | os.PathLike[str],
    arrays: dict[str, np.ndarray],
    metadata: Mapping[str, Any],
    xp: Namespace,
    device: Device | None,
) -> TrainState:
    for key in (*NUMBERS, "updates", "kept"):
        if type(metadata[key]) is not int:
            raise unfit(path, f"its {key} is {metadata[key]!a:.60}, not an integer")
    kinds = kinds_of(path, metadata["activation"])

    def layers(prefix: str) -> Params:
        names = [name for name in arrays if name.startswith(f"{prefix}.layers.")]
        found = layers_of(path, {name.removeprefix(f"{prefix}."): arrays.pop(name) for name in names})
        if len(found) != len(kinds):
            raise unfit(path, f"its {prefix} has {len(found)} layers, but it has the activations of {len(kinds)}")
        check_dtype(xp, found[0].weight.dtype.name, device, "the file")
        return tuple(
            kind(*(to_library(array, xp, device) for array in layer)) for kind, layer in zip(kinds, found, strict=True)
        )

    rng = _with_arrays(metadata["rng"], arrays)
    history = {name: arrays.pop(f"history.{name}").tolist() for name in metadata["history"]}
    params = layers("params")
    kept = [layers(f"optimizer.{i}") for i in range(metadata["kept"])]
    best = metadata["best"]
    if best is not None:
        best = (float(best[0]), best[1], layers("best"))
    if arrays:
        raise unfit(path, f"it has tensors that no state has, {sorted(arrays)!a:.200}")
    blocks = metadata["blocks"]
    if blocks is not None:
        blocks = (tuple(blocks[0]), blocks[1])
    return TrainState(
        params=params,
        optimizer=(metadata["updates"], *kept),
        rng=rng,
        epoch=metadata["epoch"],
        step=metadata["step"],
        best=best,
        history=history,
        rows=metadata["rows"],
        batch_size=metadata["batch_size"],
        blocks=blocks,
    )


def _with_arrays(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    if set(value) == {"tensor"}:
        return arrays.pop(value["tensor"])
    return {key: _with_arrays(part, arrays) for key, part in value.items()}
