"""safetensors files of named arrays, such as the layers of a network, with a line of JSON as metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.home import library
from xpsoftmax._arguments.host import to_host
from xpsoftmax._network.atomic import replace
from xpsoftmax._network.layers import HIDDEN_TYPES, Layer, Params
from xpsoftmax._typing import FLOATING, SIXTEEN_BIT, Array, Device, Namespace

if TYPE_CHECKING:
    from pathlib import Path  # it, json and safetensors are imported when a file is asked for


def kinds_of(path: str | os.PathLike[str], activations: Any) -> list[type[Layer]]:
    """Types of the layers of a file, by the activations in its metadata."""
    known = [None, *HIDDEN_TYPES]
    if not isinstance(activations, list) or not all(name in known for name in activations):
        raise unfit(path, f"its activations are {activations!a:.200}, not a list of {known}")
    return [Layer if name is None else HIDDEN_TYPES[name] for name in activations]


def layers_of(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> Params:
    """Sort the tensors of a file into layers; raise ValueError if a name is missing or unknown."""
    names = names_of(max(1, (len(arrays) + 1) // 2))
    for name in (name for pair in names for name in pair):
        if name not in arrays:
            raise unfit(path, f"among {len(arrays)} tensors it has no {name}")
    for name, array in arrays.items():
        if array.dtype.name not in FLOATING:
            raise unfit(path, f"its {name} is of dtype {array.dtype}")
    return tuple(Layer(arrays[pair.weight], arrays[pair.bias]) for pair in names)


def names_of(depth: int) -> list[Layer]:
    return [Layer(f"layers.{i}.weight", f"layers.{i}.bias") for i in range(depth)]


def check_dtype(xp: Namespace, name: str, device: Device | None, owner: str) -> None:
    known = xp.__array_namespace_info__().dtypes(kind="real floating")  # JAX without x64 makes float32 of float64
    try:
        if name not in known and name not in SIXTEEN_BIT:  # which the standard does not have
            raise TypeError
        check.as_placement(xp, getattr(xp, name, name), device)
    except TypeError:
        raise TypeError(f"xp must have the dtype of {owner}, {name}, got {library(xp)}.") from None


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Write arrays of any library, and metadata that JSON can hold, to a file."""
    import json

    target = as_path(path)
    safetensors = import_safetensors()
    hosts = {name: to_host(name, array) for name, array in arrays.items()}
    replace(target, safetensors.numpy.save(hosts, metadata={"xpsoftmax": json.dumps(metadata)}))


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], Any]:
    """Read a file of `save_arrays`; return NumPy arrays (bfloat16 as that of ml_dtypes) and the metadata."""
    import json

    source = as_path(path)
    safetensors = import_safetensors()
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
        raise unfit(path, "its metadata has no JSON text under the key xpsoftmax") from None


def as_path(path: str | os.PathLike[str]) -> Path:
    """Check a path; return it with links resolved."""
    from pathlib import Path

    try:
        target = Path(path).resolve()
    except TypeError:
        raise TypeError(f"path must be a str or an os.PathLike of one, got {path!r:.60}.") from None
    except (ValueError, RuntimeError) as error:  # a null character; links in a circle, before Python 3.13
        raise ValueError(f"path must name a file, got {path!r}: {error}.") from None
    # A folder, a link in a circle (from 3.13 on) or, worse, a device: os.replace would take its place.
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise ValueError(f"path must name a file, got {path}, which is no regular file.")
    return target


def import_safetensors() -> Any:
    try:
        import ml_dtypes  # noqa: F401 - tells NumPy what bfloat16 is
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"Files of parameters need safetensors and ml_dtypes: pip install safetensors ml-dtypes ({error})."
        ) from error
    return safetensors


def unfit(path: str | os.PathLike[str], reason: str) -> ValueError:
    return ValueError(f"path must name a file that xpsoftmax wrote, got {path}: {reason}.")
