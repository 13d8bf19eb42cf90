"""Activations: values and derivatives, also where they saturate."""

from contextlib import nullcontext

import mpmath as mp
import numpy as np
import pytest
from assertions import assert_close, assert_within

from xpsoftmax._network.layers import check_activation
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.activations import ACTIVATIONS

SLOPE, CUBIC = mp.sqrt(2 / mp.pi), mp.mpf("0.044715")
EXACT = {
    "identity": lambda x: x,
    "relu": lambda x: max(x, mp.mpf(0)),
    "tanh": mp.tanh,
    "logistic": lambda x: 1 / (1 + mp.exp(-x)),
    "silu": lambda x: x / (1 + mp.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + mp.tanh(SLOPE * (x + CUBIC * x**3))),
}
# Not 0, where the ReLU has a kink; 30 is deep in saturation for float32, where 1 - tanh**2 is 0.
POINTS = [-30.0, -4.0, -1.3, -0.2, 1e-3, 0.4, 1.0, 2.5, 7.0, 30.0]


@pytest.fixture(autouse=True)
def _here(request):
    """The functions are called without what surrounds them in the package."""
    with request.getfixturevalue("backend").here if "backend" in request.fixturenames else nullcontext():
        yield


def exact(name, x, order):
    with mp.workdps(120):
        x = mp.mpf(x)
        return float(mp.diff(EXACT[name], x)) if order else float(EXACT[name](x))


def slope(name, xp, z):
    """What the backward pass multiplies a gradient with."""
    value, kept = ACTIVATIONS[name].with_slope(xp, z)
    assert bool(xp.all((value == ACTIVATIONS[name].function(xp, z)) | (value != value)))
    return generic.activation_backward(xp.ones_like(z), kept, ACTIVATIONS[name])


# Each is a handful of roundings and one exp, whose argument is conditioned by its own size: for gelu 2 u, near 70 * 4.
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("order", [0, 1], ids=["function", "derivative"])
def test_activation_keeps_relative_precision(name, order, backend, dtype):
    points = np.asarray(POINTS, dtype)
    wanted = np.array([exact(name, float(x), order) for x in points])
    with np.errstate(all="ignore"):
        z = backend.asarray(points)
        got = slope(name, backend.xp, z) if order else ACTIVATIONS[name].function(backend.xp, z)
    argument = np.abs(points) * (1 + (0.1 * points**2 if name == "gelu" else 1)) + 1
    if (name, order) in (("silu", 1), ("gelu", 1)):
        # A sum of two terms of either sign: held to the larger of them.
        bound = (4 + argument) * float(np.finfo(dtype).eps) * np.maximum(np.abs(wanted), np.minimum(1, np.exp(points)))
        got = backend.to_numpy(got)
        assert assert_within(got, wanted, bound=bound, where=np.abs(wanted) > np.finfo(dtype).tiny) >= 8
    else:
        where = (np.abs(wanted) > np.finfo(dtype).tiny) | (wanted == 0)
        bound = (4 + argument) * float(np.finfo(dtype).eps) * np.abs(wanted)
        assert assert_within(backend.to_numpy(got), wanted, bound=bound, where=where) >= 8


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_passes_nan_on(name, backend, dtype):
    z = backend.asarray(np.array([np.nan, 1.0], dtype))
    got = backend.to_numpy(ACTIVATIONS[name].function(backend.xp, z))
    np.testing.assert_array_equal(np.isnan(got), [True, False])


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("value", [1e4, -1e4, 3e38, -3e38])
def test_derivative_is_finite_for_huge_inputs(name, value, backend):
    z = backend.asarray(np.array([value], "float32"))
    with np.errstate(all="ignore"):
        got = backend.to_numpy(slope(name, backend.xp, z))
    assert got[0] in (0.0, 1.0)


def test_relu_has_derivative_zero_at_zero(backend, dtype):
    got = slope("relu", backend.xp, backend.asarray(np.array([0.0, -0.0], dtype)))
    assert_close(got, [0.0, 0.0], backend=backend, dtype=dtype, ulps=0)


def test_unknown_activation():
    with pytest.raises(ValueError, match=r'activation must be one of "identity", "relu", .*, got \'sigmoid\''):
        check_activation("sigmoid")
