"""Parameters in safetensors files: tensors and one line of JSON, no code; any library of arrays reads them.

A file holds NumPy arrays by name, and under the key "xpsoftmax" of its metadata a JSON text that says what they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.home import library
from xpsoftmax._arguments.host import to_host, to_library
from xpsoftmax._network.layers import CARRYING, Layer, PairsOfArrays, Params
from xpsoftmax._network.network import as_network
from xpsoftmax._typing import FLOATING, SIXTEEN_BIT, Array, Device, Namespace

if TYPE_CHECKING:
    from pathlib import Path


PARAMS = {"content": "params", "format": 1, "weight": "(fan_in, fan_out)"}
"""The metadata of the parameters of a network; `format` grows when an older xpsoftmax would read them wrongly.

If a layer carries an activation there is also "activation", a list with that of each layer, or null. An older xpsoftmax
refuses such a file, since it compares the whole.
"""


def save_params(path: str | os.PathLike[str], params: PairsOfArrays) -> None:
    """Write the parameters of a network to a safetensors file.

    Parameters
    ----------
    path : str or os.PathLike
        The file; one that is there already is replaced, in one step: whoever opens it finds the old parameters or the
        new ones, whole, also if writing fails or the process is killed.
    params : sequence of Layer
        (weight (fan_in, fan_out), bias (fan_out,)) of each layer, arrays of any library, on any device. The activation
        that the layers carry (see `Layer`) is written into the metadata of the file.

    Returns
    -------
    None

    Raises
    ------
    ImportError
        Without safetensors and ml_dtypes: ``pip install safetensors ml-dtypes``.
    TypeError, ValueError
        If `params` is not a network or `path` not the path of a file; nothing is written.
    OSError
        If the file cannot be written; nothing is left behind, and an older file stays.

    Notes
    -----
    The tensors are named ``layers.0.weight``, ``layers.0.bias``, ``layers.1.weight``, ... and keep their dtype
    (float16, bfloat16, float32 or float64) and every bit, except that a bfloat16 nan may become another nan.
    ``safetensors.torch.load_file`` and the like read them; a weight is (fan_in, fan_out), the transpose of what
    ``torch.nn.Linear`` holds, and the metadata says so. Arrays on another device are copied to the host, dask arrays
    computed. While it is written the file is in memory up to twice.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import xpsoftmax as xs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "digits.safetensors")
    ...     xs.save_params(path, xs.init_params((64, 32, 10), rng=0))
    ...     [layer.weight.shape for layer in xs.load_params(path)]
    [(64, 32), (32, 10)]
    """
    as_network(params, None)
    names = [name for pair in _names(len(params)) for name in pair]
    arrays = [array for layer in params for array in layer]
    activations = [layer.activation if isinstance(layer, Layer) else None for layer in params]
    metadata = PARAMS if not any(activations) else PARAMS | {"activation": activations}
    _save_arrays(path, dict(zip(names, arrays, strict=True)), metadata)


def load_params(path: str | os.PathLike[str], *, xp: Namespace | None = None, device: Device | None = None) -> Params:
    """Read the parameters of a network that `save_params` wrote.

    Parameters
    ----------
    path : str or os.PathLike
    xp : module, optional
        Library of the arrays: numpy (default), cupy, torch, jax.numpy, ..., whatever library they were saved from.
    device : device of `xp`, optional

    Returns
    -------
    tuple of Layer
        Of the dtype that was saved, with the activation that the saved layers carried. Files of older versions have
        none.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        Without safetensors and ml_dtypes: ``pip install safetensors ml-dtypes``.
    ValueError
        If the file is damaged, is no safetensors file, or does not hold a network of this format; if `device` is not
        one of `xp`.
    TypeError
        If `xp` does not have the dtype of the file: NumPy, for one, has no bfloat16.

    Notes
    -----
    Nothing in the file is executed. Changed bytes among the numbers cannot be noticed: the format has no checksum.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "zero.safetensors")
    ...     xs.save_params(path, [(np.zeros((2, 3)), np.ones(3))])
    ...     xs.load_params(path)
    (Layer(weight=array([[0., 0., 0.],
           [0., 0., 0.]]), bias=array([1., 1., 1.])),)
    """
    xp = check.as_namespace("xp", np if xp is None else xp)
    arrays, metadata = _load_arrays(path)
    kinds = None
    if isinstance(metadata, dict) and "activation" in metadata:
        kinds = _kinds(path, metadata.pop("activation"))
    if metadata != PARAMS:
        raise _unfit(path, f"its metadata is {metadata!a:.200}, not {PARAMS}")
    layers = _layers(path, arrays)
    if kinds is not None:
        if len(kinds) != len(layers):
            raise _unfit(path, f"it has {len(layers)} layers, but the activations of {len(kinds)}")
        layers = tuple(kind(*layer) for kind, layer in zip(kinds, layers, strict=True))
    for name in sorted({array.dtype.name for array in arrays.values()}):
        check_dtype(xp, name, device, "the file")
    params = tuple(type(layer)(*(to_library(array, xp, device) for array in layer)) for layer in layers)
    try:
        as_network(params, None)
    except (TypeError, ValueError) as error:
        raise _unfit(path, str(error).removesuffix(".")) from None
    return params


def _kinds(path: str | os.PathLike[str], activations: Any) -> list[type[Layer]]:
    """Types of the layers of a file, by the activations in its metadata."""
    known = [None, *CARRYING]
    if not isinstance(activations, list) or not all(name in known for name in activations):
        raise _unfit(path, f"its activations are {activations!a:.200}, not a list of {known}")
    return [Layer if name is None else CARRYING[name] for name in activations]


def _layers(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> Params:
    """Sort the tensors of a file into layers; every name must be there and no other."""
    names = _names(max(1, (len(arrays) + 1) // 2))
    for name in (name for pair in names for name in pair):
        if name not in arrays:
            raise _unfit(path, f"among {len(arrays)} tensors it has no {name}")
    for name, array in arrays.items():
        if array.dtype.name not in FLOATING:
            raise _unfit(path, f"its {name} is of dtype {array.dtype}")
    return tuple(Layer(arrays[pair.weight], arrays[pair.bias]) for pair in names)


def _names(depth: int) -> list[Layer]:
    return [Layer(f"layers.{i}.weight", f"layers.{i}.bias") for i in range(depth)]


def check_dtype(xp: Namespace, name: str, device: Device | None, owner: str) -> None:
    known = xp.__array_namespace_info__().dtypes(kind="real floating")  # JAX without x64 makes float32 of float64
    try:
        if name not in known and name not in SIXTEEN_BIT:  # which the standard does not have
            raise TypeError
        check.as_placement(xp, getattr(xp, name, name), device)
    except TypeError:
        raise TypeError(f"xp must have the dtype of {owner}, {name}, got {library(xp)}.") from None


def _save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Write arrays of any library, and what JSON can say about them, to a file."""
    import json

    target = _as_path(path)
    safetensors = _import_safetensors()
    hosts = {name: to_host(name, array) for name, array in arrays.items()}
    _replace(target, safetensors.numpy.save(hosts, metadata={"xpsoftmax": json.dumps(metadata)}))


def _load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], Any]:
    """Read a file of `_save_arrays`; return NumPy arrays (bfloat16 as that of ml_dtypes) and the metadata."""
    import json

    source = _as_path(path)
    safetensors = _import_safetensors()
    source.open("rb").close()  # raises the OSError that fits
    try:
        with safetensors.safe_open(source, framework="np") as file:
            metadata = (file.metadata() or {}).get("xpsoftmax")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, TypeError) as error:  # TypeError: a dtype that NumPy does not have
        raise ValueError(f"path must name a safetensors file that is whole, got {path}: {error}.") from error
    try:
        return arrays, json.loads(metadata or "")
    except (ValueError, RecursionError):
        raise _unfit(path, "its metadata has no JSON text under the key xpsoftmax") from None


def _as_path(path: str | os.PathLike[str]) -> Path:
    """Check a path; a link stands for what it points to."""
    from pathlib import Path

    try:
        target = Path(path).resolve()
    except TypeError:
        raise TypeError(f"path must be a str or an os.PathLike of one, got {path!r:.60}.") from None
    except (ValueError, RuntimeError) as error:  # a null character; links in a circle, before Python 3.13
        raise ValueError(f"path must name a file, got {path!r}: {error}.") from None
    # A folder, a link in a circle (from 3.13 on) or, worse, a device: os.replace would take its place.
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise ValueError(f"path must name a file, got {path}, which is something else.")
    return target


def _import_safetensors() -> Any:
    try:
        import ml_dtypes  # noqa: F401 - tells NumPy what bfloat16 is
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"Files of parameters need safetensors and ml_dtypes: pip install safetensors ml-dtypes ({error})."
        ) from error
    return safetensors


def _unfit(path: str | os.PathLike[str], reason: str) -> ValueError:
    return ValueError(f"path must name a file that xpsoftmax wrote, got {path}: {reason}.")


def _replace(target: Path, content: bytes) -> None:
    """Put a new file in the place of the old one, in one step and with its permissions, or change nothing."""
    temporary = target.with_name(f".xpsoftmax-{os.urandom(8).hex()}.tmp")
    opened = temporary.open("xb")
    try:
        with opened as file:
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o7777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a crash of the machine could leave the name without the bytes
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
