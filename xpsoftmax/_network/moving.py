"""Parameters moved between libraries and devices."""

from __future__ import annotations

from array_api_compat import device as device_of

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.home import on_device
from xpsoftmax._arguments.host import to_host, to_library
from xpsoftmax._network.layers import PairsOfArrays, Params, layer_type_of
from xpsoftmax._network.network import as_network
from xpsoftmax._network.tensors import check_dtype
from xpsoftmax._typing import Array, Device, Namespace, dtype_name


def to_namespace(params: PairsOfArrays, xp: Namespace, device: Device | None = None) -> Params:
    """Copy the parameters of a network to another library, or another device.

    Parameters
    ----------
    params : sequence of Layer
        Arrays of any library, on any device. The copies carry the activation of the layers.
    xp : module
        numpy, cupy, torch, jax.numpy, ...
    device : device of `xp`, optional
        Default: where the arrays are if they are of `xp`, otherwise the default device of `xp`.

    Returns
    -------
    tuple of Layer
        Of the same dtype. They share no memory with `params`.

    Raises
    ------
    TypeError
        If `params` is not a network, `xp` not a library of arrays, or if it lacks their dtype.
    ValueError
        If the layers do not fit each other or carry different activations, or if `xp` has no such device.

    Notes
    -----
    Arrays of other libraries pass through the memory of the host. Dask arrays are computed.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = xs.init_params((4, 10, 3), rng=0, activation="tanh")
    >>> [layer.activation for layer in xs.to_namespace(params, np)]  # or cupy, torch, ...
    ['tanh', None]
    """
    net = as_network(params, None)
    xp = check.as_namespace("xp", xp)
    check_dtype(xp, dtype_name(net.dtype), device, "params")
    return tuple(layer_type_of(layer)(*(_copied_to(array, xp, device) for array in layer)) for layer in params)


def _copied_to(array: Array, xp: Namespace, device: Device | None) -> Array:
    own, array = check.as_floating("params", array)
    if own is not xp:
        return to_library(to_host("params", array).copy(), xp, device)
    with on_device(xp, device_of(array)):
        return xp.asarray(array, copy=True, **({} if device is None else {"device": device}))
