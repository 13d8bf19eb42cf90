"""Bad input of the softmax and loss functions: what is raised, and what it says. Values of labels: test_labels.py."""

import re
import warnings
from fractions import Fraction

import numpy as np
import pytest

import xpsoftmax as xs

ROWS, CLASSES = 3, 4
Z = np.linspace(-1.0, 1.0, ROWS * CLASSES).reshape(ROWS, CLASSES)
Y = np.array([0, 3, 1])
Q = np.full((ROWS, CLASSES), 0.25)

# What every function of logits does with them.
CALLS = {
    "softmax": xs.softmax,
    "log_softmax": xs.log_softmax,
    "logsumexp": xs.logsumexp,
    "softmax_jvp": lambda z, **options: xs.softmax_jvp(z, z, **options),
    "softmax_jacobian": xs.softmax_jacobian,
    "softmax_loss": lambda z, **options: xs.softmax_loss(z, Y, **options),
    "softmax_loss_and_grad": lambda z, **options: xs.softmax_loss_and_grad(z, Y, **options),
}
every_function = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def _matrix(values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.matrix(values)


def _foreign(dtype):
    return lambda: Z.astype(getattr(pytest.importorskip("ml_dtypes"), dtype))


def _sparse():
    return pytest.importorskip("scipy.sparse").csr_array(Q)


NOT_ARRAYS = {
    "list": lambda: Z.tolist(),
    "tuple": lambda: ((1.0, 2.0),),
    "None": lambda: None,
    "float": lambda: 1.0,
    "str": lambda: "logits",
    "memoryview": lambda: memoryview(Z),
    "scipy": _sparse,
}
NOT_PLAIN = {"MaskedArray": lambda: np.ma.array(Z), "matrix": lambda: _matrix(Z)}
BAD_DTYPES = {
    "longdouble": lambda: Z.astype(np.longdouble),
    "complex128": lambda: Z + 0j,
    "int64": lambda: np.ones((ROWS, CLASSES), dtype=np.int64),
    "bool": lambda: Z > 0,
    "object": lambda: Z.astype(object),
    "str": lambda: Z.astype(str),
    "datetime64": lambda: np.zeros((ROWS, CLASSES), dtype="M8[s]"),
    "bfloat16": _foreign("bfloat16"),
    "float8_e4m3fn": _foreign("float8_e4m3fn"),
}


# --- logits -----------------------------------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("make", NOT_ARRAYS.values(), ids=NOT_ARRAYS)
def test_logits_that_are_no_array(call, make):
    with pytest.raises(TypeError, match=r"^logits must be an array of .* library, got [\w.]+\.( Make one .*\.)?$"):
        call(make())


@every_function
@pytest.mark.parametrize(("kind", "make"), NOT_PLAIN.items(), ids=NOT_PLAIN)
def test_logits_of_a_subclass_with_another_meaning(call, kind, make):
    with pytest.raises(TypeError, match=rf"^logits must be a plain dense array, got numpy\.{kind}\. Convert it first"):
        call(make())


@every_function
@pytest.mark.parametrize("make", BAD_DTYPES.values(), ids=BAD_DTYPES)
def test_logits_of_another_dtype(call, make):
    rule = r"^logits must be of dtype float16, bfloat16, float32 or float64, got \S+\.$"
    with pytest.raises(TypeError, match=rule):
        call(make())


@every_function
@pytest.mark.parametrize("scalar", [np.array(1.0), np.float64(1.0)])
def test_logits_without_dimensions(call, scalar):
    with pytest.raises(ValueError, match=r"^logits must have at least one dimension, got shape \(\)\.$"):
        call(scalar)


@every_function
@pytest.mark.parametrize(("shape", "axis"), [((ROWS, 0), -1), ((0, 0), 1), ((0, ROWS), 0), ((0,), 0)])
def test_logits_without_classes(call, shape, axis):
    with pytest.raises(ValueError, match=rf"^logits must have at least one class along axis {axis}, got shape \("):
        call(np.ones(shape), axis=axis)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("layout", ["sparse", "nested"])
def test_tensors_that_are_not_strided(backend, layout):
    torch = backend.library
    if layout == "sparse":
        tensor = torch.eye(3).to_sparse()
    else:
        tensor = torch.nested.nested_tensor([torch.zeros(3), torch.zeros(3)], layout=torch.jagged)
    kind = "one of the layout torch.sparse_coo" if layout == "sparse" else "a nested tensor"
    with pytest.raises(TypeError, match=rf"^logits must be a plain dense array, got {kind}\. Convert it first\.$"):
        xs.softmax(tensor)


@pytest.mark.backends("dask")
@pytest.mark.parametrize("kind", ["masked", "sparse", "bfloat16"])
def test_dask_arrays_of_blocks_that_are_refused(backend, kind):
    da = backend.library
    if kind == "masked":
        logits, message = da.ma.masked_array(da.asarray(Z), mask=Z > 0), "logits must be a plain dense array"
    elif kind == "sparse":
        logits, message = da.asarray(Z).map_blocks(type(_sparse())), "logits must be a plain dense array"
    else:
        logits, message = da.asarray(_foreign("bfloat16")()), "logits must be of dtype .* got bfloat16"
    with pytest.raises(TypeError, match=f"^{message}"):
        xs.softmax(logits)


@pytest.mark.backends("dask")
@pytest.mark.parametrize("shape", ["classes", "vector", "cube"])
def test_dask_logits_of_unknown_size_beyond_rows(backend, shape):
    mask = backend.asarray(np.array([True, False, True]))
    logits = {
        "classes": backend.asarray(Z.T)[:, mask],
        "vector": backend.asarray(Z[:, 0])[mask],
        "cube": backend.asarray(np.ones((ROWS, 2, CLASSES)))[mask],
    }[shape]
    with pytest.raises(ValueError, match=r"^logits must be of known size, .* got shape \(.*nan.*compute_chunk_sizes"):
        xs.softmax(logits)


# --- axis, impl, keepdims ---------------------------------------------------------------------------------------------

BAD_AXES = [
    (2, ValueError, r"^axis must be from -2 to 1 for 2-dimensional logits, got 2\.$"),
    (-3, ValueError, r"^axis must be from -2 to 1 for 2-dimensional logits, got -3\.$"),
    (10**30, ValueError, r"^axis must be from -2 to 1 .* got 10{30}\.$"),
    (True, TypeError, r"^axis must be an integer, got True\.$"),
    (np.False_, TypeError, r"^axis must be an integer, got False\.$"),
    (1.0, TypeError, r"^axis must be an integer, got 1\.0\.$"),
    ("1", TypeError, r"^axis must be an integer, got '1'\.$"),
]


@every_function
@pytest.mark.parametrize(("axis", "error", "message"), BAD_AXES)
def test_axis(call, axis, error, message):
    with pytest.raises(error, match=message):
        call(Z, axis=axis)


@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"softmax", "log_softmax", "logsumexp"}))
@pytest.mark.parametrize("axis", [None, (1,), (0, 1)])
def test_some_functions_take_one_axis_only(name, axis):
    with pytest.raises(TypeError, match=rf"^axis must be an integer, got {re.escape(str(axis))}\.$"):
        CALLS[name](Z, axis=axis)


def test_axis_may_be_a_numpy_integer():
    np.testing.assert_array_equal(xs.softmax(Z, axis=np.int8(0)), xs.softmax(Z, axis=0))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "softmax_loss", "softmax_loss_and_grad"])
@pytest.mark.parametrize("impl", ["fast", "AUTO", None, 1, True])
def test_impl(name, impl):
    with pytest.raises(ValueError, match=rf'^impl must be one of "auto", "generic", "kernel", got {impl!r}\.$'):
        CALLS[name](Z, impl=impl)


@pytest.mark.parametrize("keepdims", [None, 1, "yes"])
def test_keepdims(keepdims):
    with pytest.raises(TypeError, match=rf"^keepdims must be True or False, got {keepdims!r}\.$"):
        xs.logsumexp(Z, keepdims=keepdims)


# --- tangent ----------------------------------------------------------------------------------------------------------

BAD_TANGENTS = {
    "list": (
        Z.tolist(),
        TypeError,
        r"^tangent must be an array of an Array API library, got list\. Make one with numpy.asarray\.$",
    ),
    "masked": (np.ma.array(Z), TypeError, r"^tangent must be a plain dense array"),
    "float32": (Z.astype("f4"), TypeError, r"^tangent must have the dtype of logits, float64, got float32\.$"),
    "int": (Z.astype(int), TypeError, r"^tangent must be of dtype float16, .* got int64\.$"),
    "rows": (Z[:2], ValueError, r"^tangent must have the shape of logits, \(3, 4\), got \(2, 4\)\.$"),
    "vector": (Z[0], ValueError, r"^tangent must have the shape of logits, \(3, 4\), got \(4,\)\.$"),
}


@pytest.mark.parametrize(("tangent", "error", "message"), BAD_TANGENTS.values(), ids=BAD_TANGENTS)
def test_tangent(tangent, error, message):
    with pytest.raises(error, match=message):
        xs.softmax_jvp(Z, tangent)


@pytest.mark.parametrize(("z_order", "v_order"), [("<", ">"), (">", "<"), (">", ">")])
def test_tangent_in_any_byte_order(z_order, v_order):
    product = xs.softmax_jvp(Z.astype(f"{z_order}f8"), Q.astype(f"{v_order}f8"))
    np.testing.assert_array_equal(product, xs.softmax_jvp(Z, Q))


# --- targets ----------------------------------------------------------------------------------------------------------

LABEL_SHAPE = (
    r"^targets must have shape \(3,\) if they are integer labels for logits of shape \(3, 4\) with classes along "
    r"axis 1, got {}\. One-hot rows must be of a floating dtype\.$"
)
SOFT_SHAPE = (
    r"^targets must have the shape of logits, \(3, 4\), if they are floating soft targets, got {}\. "
    r"Labels must be of an integer dtype\.$"
)
NO_TARGETS = r"^targets must be integer labels or floating soft targets, got dtype {}"

BAD_TARGETS = {
    "list": (
        lambda: Y.tolist(),
        TypeError,
        r"^targets must be an array of an Array API library, got list\. Make one with numpy.asarray\.$",
    ),
    "None": (lambda: None, TypeError, r"^targets must be an array of an Array API library, got NoneType\.$"),
    "int": (
        lambda: 1,
        TypeError,
        r"^targets must be an array of an Array API library, got int\. Make one with numpy.asarray\.$",
    ),
    "scipy": (_sparse, TypeError, r"^targets must be an array of an Array API library, got scipy\.csr_array\.$"),
    "masked": (lambda: np.ma.array(Y), TypeError, r"^targets must be a plain dense array, got numpy\.MaskedArray\."),
    "matrix": (lambda: _matrix(Y), TypeError, r"^targets must be a plain dense array, got numpy\.matrix\."),
    "bool labels": (lambda: Y > 0, TypeError, NO_TARGETS.format(r"bool\.$")),
    "bool one-hot": (lambda: Q > 0, TypeError, NO_TARGETS.format(r"bool\.$")),
    "complex": (lambda: Q + 0j, TypeError, NO_TARGETS.format(r"complex128\.$")),
    "longdouble": (lambda: Q.astype(np.longdouble), TypeError, NO_TARGETS.format(r"\w+\.$")),
    "object": (lambda: Y.astype(object), TypeError, NO_TARGETS.format(r"object\.$")),
    "str": (lambda: Y.astype(str), TypeError, NO_TARGETS.format(r"<U\d+\.$")),
    "timedelta": (lambda: Y.astype("m8[s]"), TypeError, NO_TARGETS.format(r"timedelta64\[s\]\.$")),
    "bfloat16": (_foreign("bfloat16"), TypeError, NO_TARGETS.format(r"bfloat16\.$")),
    "int4": (_foreign("int4"), TypeError, NO_TARGETS.format(r"int4\.$")),
    "short": (lambda: Y[:2], ValueError, LABEL_SHAPE.format(r"\(2,\)")),
    "0-d": (lambda: np.array(0), ValueError, LABEL_SHAPE.format(r"\(\)")),
    "column": (lambda: Y[:, None], ValueError, LABEL_SHAPE.format(r"\(3, 1\)")),
    "integer one-hot": (lambda: np.eye(4, dtype=int)[:3], ValueError, LABEL_SHAPE.format(r"\(3, 4\)")),
    "floating labels": (lambda: Y * 1.0, ValueError, SOFT_SHAPE.format(r"\(3,\)")),
    "transposed": (lambda: Q.T, ValueError, SOFT_SHAPE.format(r"\(4, 3\)")),
    "broadcast": (lambda: Q[:1], ValueError, SOFT_SHAPE.format(r"\(1, 4\)")),
}


@pytest.mark.parametrize("function", [xs.softmax_loss, xs.softmax_loss_and_grad])
@pytest.mark.parametrize(("make", "error", "message"), BAD_TARGETS.values(), ids=BAD_TARGETS)
def test_targets(function, make, error, message):
    with pytest.raises(error, match=message):
        function(Z, make())


def test_labels_of_logits_with_classes_along_another_axis():
    with pytest.raises(ValueError, match=r"^targets must have shape \(4,\) .* with classes along axis 0, got \(3,\)"):
        xs.softmax_loss(Z, Y, axis=0)


@pytest.mark.backends("dask")
def test_dask_labels_of_known_length_for_rows_of_unknown(backend):
    logits = backend.asarray(Z)[backend.asarray(np.ones(ROWS, dtype=bool))]
    with pytest.raises(ValueError, match=r"^targets must have shape \(nan,\) .* got \(3,\)"):
        xs.softmax_loss(logits, backend.asarray(Y))


# --- weights ----------------------------------------------------------------------------------------------------------

SIZES = {"sample_weight": ROWS, "class_weight": CLASSES}
MEANINGS = {"sample_weight": "that of logits without the class axis", "class_weight": "one weight a class"}
BAD_WEIGHTS = {
    "list": (lambda w: w.tolist(), "must be an array of an Array API library, got list"),
    "float": (lambda w: 1.0, "must be an array of an Array API library, got float"),
    "str": (lambda w: "balanced", "must be an array of an Array API library, got str"),
    "dict": (lambda w: {0: 1.0}, "must be an array of an Array API library, got dict"),
    "masked": (np.ma.array, r"must be a plain dense array, got numpy\.MaskedArray"),
    "bool": (lambda w: w > 0, "must be of a real floating or integer dtype, got bool"),
    "complex": (lambda w: w + 0j, "must be of a real floating or integer dtype, got complex128"),
    "longdouble": (lambda w: w.astype(np.longdouble), r"must be of a real floating or integer dtype, got \w+"),
    "object": (lambda w: w.astype(object), "must be of a real floating or integer dtype, got object"),
    "bfloat16": (
        lambda w: w.astype(pytest.importorskip("ml_dtypes").bfloat16),
        "must be of a real floating or integer dtype, got bfloat16",
    ),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("make", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_weights_of_another_kind(name, make, message):
    with pytest.raises(TypeError, match=rf"^{name} {message}\b"):
        xs.softmax_loss(Z, Y, **{name: make(np.ones(SIZES[name]))})


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("shape", [(), (2,), (1,), (ROWS, CLASSES)])
def test_weights_of_another_shape(name, shape):
    message = (
        rf"^{name} must have shape \({SIZES[name]},\), {MEANINGS[name]}, got \({', '.join(map(str, shape))},?\)\.$"
    )
    with pytest.raises(ValueError, match=message):
        xs.softmax_loss(Z, Y, **{name: np.ones(shape)})


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float32"])
def test_weights_of_another_real_dtype(name, dtype):
    weight = np.arange(1, SIZES[name] + 1)
    loss = xs.softmax_loss(Z, Y, **{name: weight.astype(dtype)})
    assert loss == xs.softmax_loss(Z, Y, **{name: weight.astype("float64")})


# --- options of the loss ----------------------------------------------------------------------------------------------

NOT_REAL = ["0.1", None, True, np.True_, 1j, [0.1], np.array(0.1)]
BAD_OPTIONS = [
    *(("label_smoothing", value, TypeError, "must be a real number, got") for value in NOT_REAL),
    *(("label_smoothing", v, ValueError, f"must be from 0 to 1, got {v!r}") for v in (-0.1, 1.1, np.nan, np.inf)),
    *(("z_loss", value, TypeError, "must be a real number, got") for value in NOT_REAL),
    *(("z_loss", v, ValueError, f"must be finite and at least 0, got {v!r}") for v in (-1.0, np.nan, np.inf)),
    ("z_loss", 10**400, ValueError, "must be finite and at least 0, got inf"),
    *(("ignore_index", v, TypeError, "must be an integer, got") for v in (1.5, "1", True, [1], np.array(2.0))),
    *(
        ("reduction", v, ValueError, f'must be one of "mean", "sum", "none", got {v!r}')
        for v in ("avg", "MEAN", b"mean", None, 1, True)
    ),
    *(("validate", v, TypeError, f"must be True or False, got {v!r}") for v in (None, 1, "no")),
]


@pytest.mark.parametrize("function", [xs.softmax_loss, xs.softmax_loss_and_grad])
@pytest.mark.parametrize(("name", "value", "error", "message"), BAD_OPTIONS)
def test_options(function, name, value, error, message):
    with pytest.raises(error, match=f"^{name} {message}"):
        function(Z, Y, **{name: value})


def test_ignore_index_with_soft_targets():
    with pytest.raises(ValueError, match=r"^ignore_index must be None for soft targets, got 0\. Use sample_weight"):
        xs.softmax_loss(Z, Q, ignore_index=0)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"label_smoothing": 1}, {"label_smoothing": 1.0}),
        ({"label_smoothing": np.float32(0.25)}, {"label_smoothing": 0.25}),
        ({"label_smoothing": Fraction(1, 4)}, {"label_smoothing": 0.25}),
        ({"z_loss": 2}, {"z_loss": 2.0}),
        ({"ignore_index": np.int8(3)}, {"ignore_index": 3}),
        ({"validate": np.True_}, {"validate": True}),
    ],
)
def test_numbers_where_their_type_is_another(given, meant):
    assert xs.softmax_loss(Z, Y, **given) == xs.softmax_loss(Z, Y, **meant)


@pytest.mark.parametrize("function", [xs.softmax_loss, xs.softmax_loss_and_grad])
def test_arrays_are_positional_and_options_are_not(function):
    with pytest.raises(TypeError, match="positional-only"):
        function(logits=Z, targets=Y)
    with pytest.raises(TypeError, match="2 positional arguments"):
        function(Z, Y, -1)
