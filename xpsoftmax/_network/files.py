"""Parameters in safetensors files, which hold tensors and one line of JSON, and no code.

A file holds NumPy arrays by name, and under the key "xpsoftmax" of its metadata a JSON text that says what they are.
"""

from __future__ import annotations

import os

import numpy as np

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.host import to_library
from xpsoftmax._network.layers import Layer, PairsOfArrays, Params
from xpsoftmax._network.network import as_network
from xpsoftmax._network.tensors import check_dtype, kinds_of, layers_of, load_arrays, names_of, save_arrays, unfit
from xpsoftmax._typing import Device, Namespace

PARAMS = {"content": "params", "format": 1, "weight": "(fan_in, fan_out)"}
"""The metadata of the parameters of a network; `format` grows when an older xpsoftmax would read them wrongly.

If a layer carries an activation there is also "activation", a list with that of each layer, or null. An older xpsoftmax
refuses such a file, because it compares all of the metadata.
"""


def save_params(path: str | os.PathLike[str], params: PairsOfArrays) -> None:
    """Write the parameters of a network to a safetensors file.

    Parameters
    ----------
    path : str or os.PathLike
        The file. An existing file is replaced in one step: a reader finds either the old or the new parameters,
        complete, even if writing fails or the process is killed.
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
        If the file cannot be written. An existing file stays as it was, and no other file is left behind. Also if the
        disk fails once the new file is in its place: a note on the error says so.

    Notes
    -----
    The tensors are named ``layers.0.weight``, ``layers.0.bias``, ``layers.1.weight``, ... and keep their dtype
    (float16, bfloat16, float32 or float64) and every bit, except that a bfloat16 nan may become another nan.
    ``safetensors.torch.load_file`` and the like read them; a weight is (fan_in, fan_out), the transpose of what
    ``torch.nn.Linear`` holds, and the metadata says so. Arrays on another device are copied to the host, dask arrays
    computed. While the file is written, memory holds its contents up to twice.

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
    names = [name for pair in names_of(len(params)) for name in pair]
    arrays = [array for layer in params for array in layer]
    activations = [layer.activation if isinstance(layer, Layer) else None for layer in params]
    metadata = PARAMS if not any(activations) else PARAMS | {"activation": activations}
    save_arrays(path, dict(zip(names, arrays, strict=True)), metadata)


def load_params(path: str | os.PathLike[str], *, xp: Namespace | None = None, device: Device | None = None) -> Params:
    """Read the parameters of a network that `save_params` wrote.

    Parameters
    ----------
    path : str or os.PathLike
        The file, as `save_params` wrote it.
    xp : module, optional
        Library of the arrays: numpy (default), cupy, torch, jax.numpy, ..., whatever library they were saved from.
    device : device of `xp`, optional
        Where the arrays are made. Default: that of `xp`.

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
    ...     params = xs.load_params(path)
    >>> params, params[0].bias
    ((Layer(2-3, float64),), array([1., 1., 1.]))
    """
    xp = check.as_namespace("xp", np if xp is None else xp)
    arrays, metadata = load_arrays(path)
    kinds = None
    if isinstance(metadata, dict) and "activation" in metadata:
        kinds = kinds_of(path, metadata.pop("activation"))
    if metadata != PARAMS:
        raise unfit(path, f"its metadata is {metadata!a:.200}, not {PARAMS}")
    layers = layers_of(path, arrays)
    if kinds is not None:
        if len(kinds) != len(layers):
            raise unfit(path, f"it has {len(layers)} layers, but the activations of {len(kinds)}")
        layers = tuple(kind(*layer) for kind, layer in zip(kinds, layers, strict=True))
    for name in sorted({array.dtype.name for array in arrays.values()}):
        check_dtype(xp, name, device, "the file")
    params = tuple(type(layer)(*(to_library(array, xp, device) for array in layer)) for layer in layers)
    try:
        as_network(params, None)
    except (TypeError, ValueError) as error:
        raise unfit(path, str(error).removesuffix(".")) from None
    return params
