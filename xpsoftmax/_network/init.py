"""Initial weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.home import on_device
from xpsoftmax._arguments.options import as_generator, as_integer, as_number, check_choice
from xpsoftmax._arguments.suggestions import RANDOM, SIZES, suggesting
from xpsoftmax._network.layers import Layer, Params, check_activation, with_activation
from xpsoftmax._typing import Activation, Device, DType, Namespace, Scheme, dtype_name


@suggesting(
    **dict.fromkeys(SIZES.split(), "sizes=(inputs, hidden, classes)"),
    **RANDOM,
    **dict.fromkeys(("init", "initializer", "kernel_initializer", "method", "mode"), "scheme="),
    **dict.fromkeys(("scale", "stddev", "sigma", "gain", "weight_scale"), "std="),
    **dict.fromkeys(("nonlinearity", "act", "act_fn"), "activation="),
    **dict.fromkeys(("library", "namespace", "backend", "framework"), "xp="),
)
def init_params(
    sizes: Sequence[int],
    *,
    rng: Any,
    activation: Activation | None = None,
    scheme: Scheme = "he",
    std: float | None = None,
    dtype: DType | None = None,
    xp: Namespace | None = None,
    device: Device | None = None,
) -> Params:
    r"""Random weights and zero biases for a network of these layer sizes.

    .. math:: W \sim \mathcal N(0, \sigma^2), \quad \sigma^2 = 2 / n_{in} \text{ (he)},\ 2 / (n_{in} + n_{out})
              \text{ (glorot)},\ 1 / n_{in} \text{ (lecun)}

    Parameters
    ----------
    sizes : sequence of int
        (D, H, ..., C): features, hidden units, classes.
    rng : None, int, numpy.random.Generator, ...
        Anything that `numpy.random.default_rng` takes. The numbers are drawn on the host in float64 and then moved, so
        every library and dtype starts from the same weights.
    activation : {"identity", "relu", "tanh", "logistic", "silu", "gelu"}, optional
        The activation that the hidden layers carry: every function takes it from the parameters. Default: none.
    scheme : {"he", "glorot", "lecun"}
        The variance of the weights, as above.
    std : float, optional
        Standard deviation of all weights, instead of that of the scheme.
    dtype : dtype of `xp`, optional
        Default: the default floating dtype of `xp`.
    xp : module, optional
        Library of the arrays: numpy (default), cupy, torch, jax.numpy, ...
    device : device of `xp`, optional
        Where the arrays are made. Default: that of `xp`.

    Returns
    -------
    tuple of Layer

    Raises
    ------
    TypeError, ValueError
        If an option does not fit.

    References
    ----------
    K. He et al., "Delving deep into rectifiers", ICCV 2015; X. Glorot and Y. Bengio, AISTATS 2010; Y. LeCun et al.,
    "Efficient BackProp", 1998.

    Examples
    --------
    >>> import xpsoftmax as xs
    >>> [layer.weight.shape for layer in xs.init_params((64, 32, 10), rng=0)]
    [(64, 32), (32, 10)]
    """
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Sequence):
        raise TypeError(f"sizes must be a sequence of integers, got {sizes!r}.")
    widths = [as_integer(f"sizes[{i}]", size) for i, size in enumerate(sizes)]
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"sizes must hold at least two positive integers (features, ..., classes), got {sizes!r}.")
    if activation is not None:
        check_activation(activation)
    check_choice("scheme", scheme, tuple(SCHEMES))
    if std is not None:
        std = as_number("std", std)
    generator = as_generator("rng", rng)
    xp = check.as_namespace("xp", np if xp is None else xp)
    options = check.as_placement(xp, dtype, device)
    layers = []
    with on_device(xp, device):
        for fan_in, fan_out in itertools.pairwise(widths):
            scale = SCHEMES[scheme](fan_in, fan_out) if std is None else std
            weight = scale * generator.standard_normal((fan_in, fan_out))
            if dtype_name(options["dtype"]) == "float32":  # on the host: threads of other libraries wait for each other
                weight = weight.astype(np.float32)
            weight = xp.asarray(weight, **options)
            layers.append(Layer(weight, xp.zeros((fan_out,), **options)))
    return tuple(layers) if activation is None else with_activation(layers, activation)


SCHEMES = {
    "he": lambda fan_in, fan_out: math.sqrt(2.0 / fan_in),  # noqa: ARG005
    "glorot": lambda fan_in, fan_out: math.sqrt(2.0 / (fan_in + fan_out)),
    "lecun": lambda fan_in, fan_out: math.sqrt(1.0 / fan_in),  # noqa: ARG005
}
