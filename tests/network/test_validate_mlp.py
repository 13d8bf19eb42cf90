"""Bad input of the network functions, of init_params and of partial sums."""

import random

import numpy as np
import pytest
from assertions import assert_like

import xpsoftmax as xs

PARAMS = xs.init_params((4, 5, 3), rng=0)
(W0, B0), (W1, B1) = PARAMS
X = np.linspace(-1.0, 1.0, 24).reshape(6, 4)
Y = np.array([0, 1, 2, 2, 1, 0])
FLOATING = r"must be of dtype float16, bfloat16, float32 or float64, got {}\.$"

every_function = pytest.mark.parametrize(
    "call",
    [
        lambda params, X: xs.mlp_logits(params, X),
        lambda params, X: xs.mlp_predict(params, X),
        lambda params, X: xs.mlp_loss(params, X, Y),
        lambda params, X: xs.mlp_loss_and_grad(params, X, Y),
        lambda params, X: xs.mlp_partial_sums(params, X, Y),
    ],
    ids=["mlp_logits", "mlp_predict", "mlp_loss", "mlp_loss_and_grad", "mlp_partial_sums"],
)
every_loss = pytest.mark.parametrize("function", [xs.mlp_loss, xs.mlp_loss_and_grad, xs.mlp_partial_sums])


def as_dtype(params, dtype):
    return tuple(xs.Layer(weight.astype(dtype), bias.astype(dtype)) for weight, bias in params)


def test_a_bad_soft_target_is_named_wherever_it_is(backend):
    """They are looked at some rows at a time: here ten, then the rest."""
    soft = np.full((16, 1000), 1e-3, "f4")
    soft[13, 7] = -0.5
    params = (xs.Layer(backend.asarray(np.zeros((2, 1000))), backend.asarray(np.zeros(1000))),)
    X = backend.asarray(np.ones((16, 2)))
    with pytest.raises(
        ValueError, match=r"^targets must be finite and not negative in float64, got -0\.5 at index \(13, 7\)\.$"
    ):
        xs.mlp_loss(params, X, backend.asarray(soft), max_memory=2**17)


# --- parameters -------------------------------------------------------------------------------------------------------

NOT_PARAMS = r"^params must be a non-empty sequence of \(weight, bias\) pairs, got "
BAD_PARAMS = {
    "None": (None, TypeError, NOT_PARAMS + "None"),
    "empty": ((), TypeError, NOT_PARAMS + r"\(\)"),
    "array": (W0, TypeError, NOT_PARAMS + r"array\("),
    "dict": ({}, TypeError, NOT_PARAMS + r"\{\}"),
    "generator": ((layer for layer in PARAMS), TypeError, NOT_PARAMS + "<generator"),
    "one layer": (PARAMS[0], TypeError, r"^params\[0\] must be a pair \(weight, bias\), got array\("),
    "flat": ((W0, B0, W1, B1), TypeError, r"^params\[0\] must be a pair \(weight, bias\), got array\("),
    "triple": ((PARAMS[0], (W1, B1, 1)), TypeError, r"^params\[1\] must be a pair \(weight, bias\), got \("),
    "text": (("ab", "cd"), TypeError, r"^params\[0\] must be a pair \(weight, bias\), got 'ab'"),
    "list": (
        ((W0.tolist(), B0),),
        TypeError,
        r"^params\[0\]\.weight must be an array of an Array API library, got list",
    ),
    "no bias": ((PARAMS[0], (W1, None)), TypeError, r"^params\[1\]\.bias must be an array .* got NoneType"),
    "masked": (((np.ma.array(W0), B0), PARAMS[1]), TypeError, r"^params\[0\]\.weight must be a plain dense array"),
    "integers": (as_dtype(PARAMS, int), TypeError, r"^params\[0\]\.weight " + FLOATING.format("int64")),
    "longdouble": (as_dtype(PARAMS, np.longdouble), TypeError, r"^params\[0\]\.weight " + FLOATING.format(r"\w+")),
    "mixed layers": (
        (PARAMS[0], *as_dtype(PARAMS[1:], "f4")),
        TypeError,
        r"^params\[1\]\.weight must have the dtype of params\[0\]\.weight, float64, got float32\.$",
    ),
    "mixed layer": (
        ((W0, B0.astype("f4")), PARAMS[1]),
        TypeError,
        r"^params\[0\]\.bias must have the dtype of params\[0\]\.weight, float64, got float32\.$",
    ),
    "flat weight": (
        ((W0[0], B0), PARAMS[1]),
        ValueError,
        r"^params\[0\]\.weight must have shape \(fan_in, fan_out\), got \(5,\)\.$",
    ),
    "row bias": (
        ((W0, B0[None]), PARAMS[1]),
        ValueError,
        r"^params\[0\]\.bias must have shape \(fan_out,\), got \(1, 5\)\.$",
    ),
    "reversed": (
        PARAMS[::-1],
        ValueError,
        r"^params\[1\]\.weight must have shape \(3, fan_out\) to follow the layer before, got \(4, 5\)\.$",
    ),
    "short bias": (((W0, B0[:2]), PARAMS[1]), ValueError, r"^params\[0\]\.bias must have shape \(5,\), got \(2,\)\.$"),
    "no units": (
        ((W0[:, :0], B0[:0]), (W1[:0], B1)),
        ValueError,
        r"^params\[0\]\.weight must have at least one column, got shape \(4, 0\)\.$",
    ),
}


@every_function
@pytest.mark.parametrize(("params", "error", "message"), BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_params(call, params, error, message):
    with pytest.raises(error, match=message):
        call(params, X)


def test_params_of_two_libraries():
    strict = pytest.importorskip("array_api_strict")
    params = (xs.Layer(strict.asarray(W0), strict.asarray(B0)), PARAMS[1])
    message = r"^params\[1\]\.weight must be an array of the same library as params\[0\]\.weight \(array_api_strict\)"
    with pytest.raises(TypeError, match=message + ", got one of numpy"):
        xs.mlp_logits(params, strict.asarray(X))


def test_params_on_two_devices():
    strict = pytest.importorskip("array_api_strict")
    there = strict.Device("device1")
    params = [xs.Layer(strict.asarray(W0), strict.asarray(B0, device=there))]
    with pytest.raises(ValueError, match=r"^params\[0\]\.bias must be on the device of params\[0\]\.weight \(.*CPU.*1"):
        xs.mlp_logits(params, strict.asarray(X))


@every_function
@pytest.mark.parametrize("kind", ["lists", "byte order"])
def test_params_in_other_words(call, kind):
    params = [list(layer) for layer in PARAMS] if kind == "lists" else as_dtype(PARAMS, ">f8")
    given, meant = call(params, X), call(PARAMS, X)
    first = lambda result: result[0] if isinstance(result, tuple) else result  # noqa: E731
    np.testing.assert_array_equal(first(given), first(meant))


# --- inputs -----------------------------------------------------------------------------------------------------------

X_DTYPE = r"^X must have the dtype of the parameters, float64, got {}\. Cast one of them\.$"
X_SHAPE = r"^X must have shape \(N, 4\) to fit params\[0\]\.weight, got {}\.$"
BAD_INPUTS = {
    "list": (
        X.tolist(),
        TypeError,
        r"^X must be an array of an Array API library, got list\. Make one with numpy.asarray\.$",
    ),
    "masked": (np.ma.array(X), TypeError, r"^X must be a plain dense array, got numpy\.MaskedArray\."),
    "integers": (X.astype(int), TypeError, "^X " + FLOATING.format("int64")),
    "bool": (X > 0, TypeError, "^X " + FLOATING.format("bool")),
    "float32": (X.astype("f4"), TypeError, X_DTYPE.format("float32")),
    "float16": (X.astype("f2"), TypeError, X_DTYPE.format("float16")),
    "vector": (X[0], ValueError, X_SHAPE.format(r"\(4,\)")),
    "cube": (X[None], ValueError, X_SHAPE.format(r"\(1, 6, 4\)")),
    "features": (X[:, :3], ValueError, X_SHAPE.format(r"\(6, 3\)")),
}


@every_function
@pytest.mark.parametrize(("inputs", "error", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_inputs(call, inputs, error, message):
    with pytest.raises(error, match=message):
        call(PARAMS, inputs)


def test_inputs_of_another_library():
    strict = pytest.importorskip("array_api_strict")
    message = r"^X must be an array of the same library as params\[0\]\.weight \(numpy\), got one of array_api_strict"
    with pytest.raises(TypeError, match=message):
        xs.mlp_logits(PARAMS, strict.asarray(X))


@pytest.mark.parametrize("shape", [(5,), (6, 1)])
def test_labels_that_do_not_fit_the_inputs(shape):
    with pytest.raises(ValueError, match=r"^targets must have shape \(6,\) if they are integer labels"):
        xs.mlp_loss(PARAMS, X, np.zeros(shape, dtype=int))


def test_labels_of_another_library():
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match=r"^targets must be an array of the same library as X \(numpy\)"):
        xs.mlp_loss(PARAMS, X, strict.asarray(Y))


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function", [xs.mlp_logits, xs.mlp_predict, xs.mlp_loss, xs.mlp_loss_and_grad, xs.mlp_partial_sums]
)
@pytest.mark.parametrize("activation", ["swish", "ReLU", False, np.tanh])
def test_activation(function, activation):
    choices = '"identity", "relu", "tanh", "logistic", "silu", "gelu"'
    arrays = (PARAMS, X) if function in (xs.mlp_logits, xs.mlp_predict) else (PARAMS, X, Y)
    with pytest.raises(ValueError, match=rf"^activation must be one of {choices}, got "):
        function(*arrays, activation=activation)


@pytest.mark.parametrize("function", [xs.mlp_logits, xs.mlp_predict])
def test_impl_without_a_loss(function):
    with pytest.raises(ValueError, match=r'^impl must be one of "auto", "generic", "kernel", got \'fast\'\.$'):
        function(PARAMS, X, impl="fast")


BAD_OPTIONS = [
    ("impl", "fast", ValueError, 'must be one of "auto", "generic", "kernel", got'),
    *(("max_memory", value, TypeError, "must be an integer, got") for value in (1e6, "1 GB", True)),
    *(
        ("max_memory", value, ValueError, rf"must be at least \d+ bytes, what one row needs, got {value}")
        for value in (-1, 9)
    ),
    ("class_weight", np.ones(2), ValueError, r"must have shape \(3,\)"),
    ("sample_weight", np.ones(2), ValueError, r"must have shape \(6,\)"),
    ("ignore_index", 1.5, TypeError, "must be an integer"),
    ("label_smoothing", 2.0, ValueError, "must be from 0 to 1"),
    ("z_loss", -1.0, ValueError, "must be finite and at least 0"),
    ("validate", "no", TypeError, "must be True or False"),
]


@every_loss
@pytest.mark.parametrize(("name", "value", "error", "message"), BAD_OPTIONS)
def test_options(function, name, value, error, message):
    with pytest.raises(error, match=f"^{name} {message}"):
        function(PARAMS, X, Y, **{name: value})


BAD_REG = [
    *((value, TypeError, r"^reg must be a real number, got ") for value in ("1", None, True, np.array(1.0))),
    *((value, ValueError, rf"^reg must be finite and at least 0, got {value}\.$") for value in (-1.0, np.nan, np.inf)),
]


@pytest.mark.parametrize("function", [xs.mlp_loss, xs.mlp_loss_and_grad])
@pytest.mark.parametrize(("reg", "error", "message"), BAD_REG)
def test_reg(function, reg, error, message):
    with pytest.raises(error, match=message):
        function(PARAMS, X, Y, reg=reg)


@pytest.mark.parametrize("function", [xs.mlp_loss, xs.mlp_loss_and_grad])
@pytest.mark.parametrize("reduction", ["none", "avg", None])
def test_reduction(function, reduction):
    with pytest.raises(ValueError, match=rf'^reduction must be one of "mean", "sum", got {reduction!r}\.$'):
        function(PARAMS, X, Y, reduction=reduction)


@every_loss
@pytest.mark.parametrize("name", ["axis", "out"])
def test_options_that_a_network_does_not_have(function, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        function(PARAMS, X, Y, **{name: None})


@every_loss
def test_the_least_memory_of_the_message_is_enough(function):
    with pytest.raises(ValueError, match=r"^max_memory must be at least \d+ bytes") as caught:
        function(PARAMS, X, Y, max_memory=1)
    least = int(str(caught.value).split()[5])
    function(PARAMS, X, Y, max_memory=least)
    with pytest.raises(ValueError, match=f"^max_memory must be at least {least} bytes"):
        function(PARAMS, X, Y, max_memory=least - 1)


# --- init_params ------------------------------------------------------------------------------------------------------

TWO_SIZES = r"^sizes must hold at least two positive integers \(features, \.\.\., classes\), got "
BAD_INIT = {
    "no sizes": ({"sizes": None}, TypeError, r"^sizes must be a sequence of integers, got None\.$"),
    "text": ({"sizes": "43"}, TypeError, r"^sizes must be a sequence of integers, got '43'\.$"),
    "set": ({"sizes": {4, 3}}, TypeError, r"^sizes must be a sequence of integers, got \{3, 4\}\.$"),
    "one size": ({"sizes": (4,)}, ValueError, TWO_SIZES + r"\(4,\)\.$"),
    "zero": ({"sizes": (4, 0, 3)}, ValueError, TWO_SIZES + r"\(4, 0, 3\)\.$"),
    "negative": ({"sizes": (4, -3)}, ValueError, TWO_SIZES + r"\(4, -3\)\.$"),
    "real size": ({"sizes": (4, 2.5)}, TypeError, r"^sizes\[1\] must be an integer, got 2\.5\.$"),
    "bool size": ({"sizes": (True, 3)}, TypeError, r"^sizes\[0\] must be an integer, got True\.$"),
    "scheme": ({"scheme": "xavier"}, ValueError, r'^scheme must be one of "he", "glorot", "lecun", got \'xavier\'\.$'),
    "std": ({"std": -1.0}, ValueError, r"^std must be finite and at least 0, got -1\.0\.$"),
    "std nan": ({"std": np.nan}, ValueError, r"^std must be finite and at least 0, got nan\.$"),
    "std text": ({"std": "1"}, TypeError, r"^std must be a real number, got '1'\.$"),
    "rng": ({"rng": "0"}, TypeError, r"^rng must be what numpy\.random\.default_rng takes, got '0'\.$"),
    "rng real": ({"rng": 1.5}, TypeError, r"^rng must be what numpy\.random\.default_rng takes, got 1\.5\.$"),
    "rng negative": ({"rng": -1}, ValueError, r"^rng must be what numpy\.random\.default_rng takes, got -1\.$"),
    "rng module": ({"rng": random}, TypeError, r"^rng must be what numpy\.random\.default_rng takes, got <module"),
    "dtype": ({"dtype": "real"}, TypeError, r"^dtype must be a dtype of numpy, got 'real'\.$"),
    "integers": ({"dtype": np.int64}, TypeError, r"^dtype must be float16, bfloat16, float32 or float64, got int64\.$"),
    "longdouble": ({"dtype": np.longdouble}, TypeError, r"^dtype must be float16, .* or float64, got \w+\.$"),
    "complex": ({"dtype": complex}, TypeError, r"^dtype must be float16, .* or float64, got complex128\.$"),
    "xp text": ({"xp": "numpy"}, TypeError, r"^xp must be an Array API library such as numpy or cupy, got 'numpy'\.$"),
    "xp module": ({"xp": random}, TypeError, r"^xp must be an Array API library such as numpy or cupy, got <module"),
    "device": ({"device": "moon"}, ValueError, r"^device must be a device of numpy that can be used .* got 'moon'\.$"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD_INIT.values(), ids=BAD_INIT)
def test_init_params(options, error, message):
    with pytest.raises(error, match=message):
        xs.init_params(**{"sizes": (4, 3), "rng": 0, **options})


def test_init_params_needs_rng():
    with pytest.raises(TypeError, match="required keyword-only argument: 'rng'"):
        xs.init_params((4, 3))


@pytest.mark.backends("torch")
@pytest.mark.parametrize(("name", "value", "error"), [("dtype", "float32", TypeError), ("device", "moon", ValueError)])
def test_init_params_in_torch(backend, name, value, error):
    with pytest.raises(error, match=rf"^{name} must be a {name} of torch.* got '{value}'\.$"):
        xs.init_params((4, 3), rng=0, xp=backend.library, **{name: value})


def test_init_params_stay_in_the_library(backend):
    params = xs.init_params((4, 3), rng=0, xp=backend.library, dtype=backend.xp.float32, device=backend.device)
    assert_like(params[0].weight, backend=backend, dtype="float32", shape=(4, 3))
    assert_like(params[0].bias, backend=backend, dtype="float32", shape=(3,))


# --- partial sums -----------------------------------------------------------------------------------------------------

SUMS = xs.mlp_partial_sums(PARAMS, X, Y)
OTHER_SHAPES = {
    "classes": xs.init_params((4, 5, 2), rng=0),
    "layers": PARAMS[:1],
    "a shape that broadcasts": xs.init_params((4, 1, 3), rng=0),
}


@pytest.mark.parametrize("params", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
@pytest.mark.parametrize("reg", [0.0, 1.0])
def test_finish_with_params_of_another_network(params, reg):
    message = r"^params must have weights of the shapes of the sums, \[\(4, 5\), \(5, 3\)\], got \[\(4, "
    with pytest.raises(ValueError, match=message):
        SUMS.finish(params, reg=reg)


@pytest.mark.parametrize("params", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_adding_sums_of_another_network(params):
    other = xs.mlp_partial_sums(params, X, Y % 2)
    message = r"^other must have weights of the shapes of the sums, \[\(4, 5\), \(5, 3\)\], got \[\(4, "
    with pytest.raises(ValueError, match=message):
        SUMS + other


def _in_strict(device=None):
    strict = pytest.importorskip("array_api_strict")
    return tuple(xs.Layer(*(strict.asarray(a, device=device) for a in layer)) for layer in PARAMS)


def test_finish_with_params_of_another_dtype():
    with pytest.raises(TypeError, match=r"^params must be of a dtype that is summed in float64, got float32\.$"):
        SUMS.finish(as_dtype(PARAMS, "f4"))


def test_finish_with_params_of_another_library():
    with pytest.raises(TypeError, match=r"^params must be an array of the same library as the sums \(numpy\), got one"):
        SUMS.finish(_in_strict())


def test_adding_sums_of_another_library():
    params = _in_strict()
    strict = pytest.importorskip("array_api_strict")
    other = xs.mlp_partial_sums(params, strict.asarray(X), strict.asarray(Y))
    with pytest.raises(TypeError, match=r"^other must be an array of the same library as the sums \(numpy\), got one"):
        SUMS + other


def test_finish_with_params_on_another_device():
    strict = pytest.importorskip("array_api_strict")
    sums = xs.mlp_partial_sums(_in_strict(), strict.asarray(X), strict.asarray(Y))
    with pytest.raises(ValueError, match=r"^params must be on the device of the sums \(.*CPU_DEVICE.*got .*device1"):
        sums.finish(_in_strict(strict.Device("device1")))


@pytest.mark.parametrize("other", [1, (1, 2, 3), None])
def test_adding_something_else(other):
    with pytest.raises(TypeError, match=r"unsupported operand type\(s\) for \+"):
        SUMS + other


@pytest.mark.parametrize(("params", "message"), [(None, NOT_PARAMS), ((), NOT_PARAMS)])
def test_finish_checks_its_params(params, message):
    with pytest.raises(TypeError, match=message):
        SUMS.finish(params)


@pytest.mark.parametrize(("reg", "error", "message"), BAD_REG)
def test_finish_checks_reg(reg, error, message):
    with pytest.raises(error, match=message):
        SUMS.finish(PARAMS, reg=reg)
