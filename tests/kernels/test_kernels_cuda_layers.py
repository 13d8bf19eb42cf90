"""The CUDA kernels of a layer, run on the CPU: bias and activation, and the gradient through them.

With --kernels only (nox -s kernels). The formulas are written once more here, in extended precision.
"""

from __future__ import annotations

from typing import NamedTuple

import cuda_on_cpu as cpu
import numpy as np
import pytest
from assertions import EPS, TINY, assert_same_bits, assert_within

from xpsoftmax.kernels.cuda import plan

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(cpu.unusable() is not None, reason=f"CUDA cannot be run on this CPU: {cpu.unusable()}"),
]

LD = np.longdouble
# One unit; less than a vector; a vector and a bit; odd; more than a block has lanes.
SIZES = (1, 3, 5, 64, 117, 1100)
ROWS = 5
SETTINGS = ((0, 0, 0), (1, 0, 0), (0, 3, 0), (1, 1, 1))
"""Elements behind a 16-byte boundary, between rows, and by which both are more in the second matrix."""
SLOPING = ("tanh", "logistic", "silu", "gelu")


def logistic(x):
    return 1 / (1 + np.exp(-x))


def inner(x):
    return 2 * np.sqrt(2 / LD(np.pi)) * (x + LD("0.044715") * x**3)


def inner_slope(x):
    return 2 * np.sqrt(2 / LD(np.pi)) * (1 + 3 * LD("0.044715") * x**2)


VALUES = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "logistic": logistic,
    "silu": lambda x: x * logistic(x),
    "gelu": lambda x: x * logistic(inner(x)),
}
SLOPES = {
    "tanh": lambda x: 1 / np.cosh(x) ** 2,
    "logistic": lambda x: logistic(x) * logistic(-x),
    "silu": lambda x: logistic(x) + x * logistic(x) * logistic(-x),
    "gelu": lambda x: logistic(inner(x)) + x * inner_slope(x) * logistic(inner(x)) * logistic(-inner(x)),
}


def units(rng: np.random.Generator, size: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Products of a layer and biases; some are deep in saturation."""
    z = rng.normal(size=(ROWS, size)) * rng.choice([0.1, 1, 5, 20], size=(ROWS, size))
    return z.astype(dtype), rng.normal(size=size).astype(dtype)


def forward(z, bias, name, setting=SETTINGS[0], *, grad=True, schedule=0, change=None):
    """Values and slopes, by the kernel."""
    offset, gap, apart = setting
    dtype = z.dtype.name
    given = cpu.Placed(z, dtype, offset=offset, gap=gap)
    slopes = cpu.Placed(np.zeros_like(z), dtype, offset=offset + apart, gap=gap + apart) if grad else None
    written = None if slopes is None else slopes.matrix
    launch = plan.bias_activation_launch(given.matrix, cpu.address(bias), written, name)
    cpu.run(launch, schedule=schedule, change=change)
    for placed in (given, slopes):
        if placed is not None:
            placed.assert_only_rows_changed()
    return given.rows.copy(), None if slopes is None else slopes.rows.copy()


def backward(delta, slopes, setting=SETTINGS[0], *, step=False, schedule=0, change=None):
    offset, gap, apart = setting
    dtype = delta.dtype.name
    given = cpu.Placed(delta, dtype, offset=offset, gap=gap)
    beside = cpu.Placed(slopes, dtype, offset=offset + apart, gap=gap + apart)
    cpu.run(plan.activation_backward_launch(given.matrix, beside.matrix, step=step), schedule=schedule, change=change)
    given.assert_only_rows_changed()
    assert_same_bits(beside.rows, slopes)
    return given.rows.copy()


def check_forward(z, bias, name, setting, *, schedule=0, change=None) -> int:
    """A handful of roundings and one exp; of gelu its argument has seven roundings, and is conditioned by its size."""
    dtype = z.dtype.name
    x = z + bias
    exact = x.astype(LD)
    value, slope = forward(z, bias, name, setting, grad=name in SLOPING, schedule=schedule, change=change)
    with np.errstate(over="ignore"):
        wanted, wanted_slope = VALUES[name](exact), SLOPES[name](exact) if name in SLOPING else None
    bound = (5 + (3.5 * np.abs(inner(exact)) if name == "gelu" else 0)) * EPS[dtype]
    # A subnormal exponential is flushed in float32: what it is multiplied with, 4 or the unit's input, is lost with it.
    lost = 4 * np.maximum(1, np.abs(exact)) * (TINY[dtype] if dtype == "float32" else 0)
    where = (np.abs(wanted) > TINY[dtype]) | (wanted == 0)
    compared = assert_within(value, wanted, bound=bound * np.abs(wanted) + lost, where=where)
    if slope is None:
        return compared
    terms = np.abs(wanted_slope)
    if name in ("silu", "gelu"):  # a sum of two terms of either sign: held to the larger of them
        terms = np.maximum(terms, np.minimum(1, np.exp(exact)))
    where = np.abs(wanted_slope) > TINY[dtype]
    return compared + assert_within(slope, wanted_slope, bound=bound * terms + lost, where=where)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", VALUES)
def test_bias_and_activation(rng, name, dtype, record_property):
    compared = 0
    for number, size in enumerate(SIZES):
        z, bias = units(rng, size, dtype)
        compared += check_forward(z, bias, name, SETTINGS[number % len(SETTINGS)], schedule=number % 4)
    assert compared > 0.9 * ROWS * sum(SIZES)
    record_property("compared", compared)


@pytest.mark.parametrize("name", SLOPING)
def test_values_are_the_same_without_slopes(rng, name):
    z, bias = units(rng, 117, "float32")
    assert_same_bits(forward(z, bias, name, grad=False)[0], forward(z, bias, name)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", VALUES)
def test_nan_and_the_largest_numbers(name, dtype):
    most = float(np.finfo(dtype).max) / 2
    z = np.array([[np.nan, most, -most, 1e4, -1e4, 0.0, -0.0]], dtype)
    value, slope = forward(z, np.zeros(7, dtype), name, grad=name in SLOPING)
    np.testing.assert_array_equal(np.isnan(value), [[True] + [False] * 6])
    assert (value[0, 5:] == (0.5 if name == "logistic" else 0)).all()
    if slope is not None:
        np.testing.assert_array_equal(np.isnan(slope), [[True] + [False] * 6])
        assert np.isin(slope[0, 1:5], [0.0, 1.0]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("step", [False, True])
def test_gradient_through_an_activation(rng, dtype, step):
    for number, size in enumerate(SIZES):
        delta, slopes = rng.normal(size=(2, ROWS, size)).astype(dtype)
        slopes[0, 0], slopes[-1, -1], delta[1, 0] = 0, np.nan, np.nan
        with np.errstate(invalid="ignore"):
            wanted = delta * (slopes > 0 if step else slopes)
        got = backward(delta, slopes, SETTINGS[number % len(SETTINGS)], step=step, schedule=number % 4)
        assert_same_bits(got, wanted)


# --- faults -----------------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """Text of a kernel, and what stands in its place."""

    text: str
    instead: str
    name: str = "tanh"  # activation


FORWARD = {
    "the bias of the wrong unit": Fault("bias[p - span.shift]", "bias[p]"),
    "the bias left out": Fault("element<Scalar>(v, i) + b", "element<Scalar>(v, i)"),
    "a row too few": Fault("if (at.row >= rows) return;", "if (at.row >= rows - 1) return;"),
    "rows that end in the middle of their vectors": Fault(
        "if (!span.touches(at.position)) return;", "if (!span.fills(at.position)) return;"
    ),
    "every other row": Fault("index >> lane_bits", "index >> (lane_bits + 1)"),
    "the slopes in the place of the values": Fault("value[i] = unit.value", "value[i] = unit.slope"),
    "slopes in rows as far apart as those of z": Fault("(slopes, at.row, slopes_stride)", "(slopes, at.row, z_stride)"),
    "1 - tanh^2": Fault(
        "{hyperbolic_tangent(x), 4 * e / (above * above)}",
        "{hyperbolic_tangent(x), 1 - hyperbolic_tangent(x) * hyperbolic_tangent(x) + 0 * above}",
    ),
    "s (1 - s)": Fault(
        "{(x < 0 ? e : 1) / above, e / (above * above)}",
        "{(x < 0 ? e : 1) / above, 1 / above * (1 - 1 / above)}",
        "logistic",
    ),
    "1 + tanh": Fault(
        "{x * gate.value, gate.value + near",
        "{x / 2 * (1 + hyperbolic_tangent(steepness / 2 * (x + cubic * x * x * x))), gate.value + near",
        "gelu",
    ),
    "a nan lost": Fault("x < 0 ? 0 : x", "most_of(x, Real(0))", "relu"),
}
BACKWARD = {
    "another row's slopes": Fault("slopes + at.row * slopes_stride", "slopes"),
    "slopes off a boundary read as if on it": Fault(
        "if (fills(position) && (Word)place % 16 == 0) return load_vector(place);",
        "if (fills(position)) return load_vector(place);",
    ),
    "slopes instead of the step": Fault("STEP ? Scalar(slope > 0) : slope", "slope", "relu"),
    "1 at the kink": Fault("slope > 0", "slope >= 0", "relu"),
    "half of the lanes": Fault("1ll << lane_bits", "1ll << (lane_bits - 1)"),
}


def failure(kernel: str, fault: Fault, change: tuple[str, str] | None) -> str | None:
    """What goes wrong with this change, or None."""
    rng = np.random.default_rng(0)
    try:
        for number, size in enumerate((*SIZES, *SIZES)):
            setting = SETTINGS[(number + number // len(SIZES)) % len(SETTINGS)]
            z, bias = units(rng, size, "float32")
            z[0, -1] = np.nan
            if kernel == "bias_activation":
                check_forward(z, bias, fault.name, setting, change=change)
            else:
                step = fault.name == "relu"
                slopes = np.where(rng.random(z.shape) < 0.2, 0, rng.normal(size=z.shape)).astype("f4")
                got = backward(z, slopes, setting, step=step, change=change)
                assert_same_bits(got, z * (slopes > 0 if step else slopes))
    except (AssertionError, cpu.KernelError) as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("kernel", ["bias_activation", "activation_backward"])
@pytest.mark.parametrize("name", VALUES)
def test_without_a_fault_nothing_fails(kernel, name):
    assert failure(kernel, Fault("", "", name), None) is None


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        pytest.param(kernel, fault, id=name)
        for kernel, faults in (("bias_activation", FORWARD), ("activation_backward", BACKWARD))
        for name, fault in faults.items()
    ],
)
def test_faults_are_caught(kernel, fault, record_property):
    more = ("ACTIVATION", fault.name) if kernel == "bias_activation" else ("STEP", str(int(fault.name == "relu")))
    cpu.kernel(kernel, plan.unit_defines("float32", more), (fault.text, fault.instead))  # it compiles
    reason = failure(kernel, fault, (fault.text, fault.instead))
    assert reason is not None
    record_property("caught", reason)
