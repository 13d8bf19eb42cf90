"""The rules of out=: what is written, what is refused, and that a refusal writes nothing."""

import numpy as np
import pytest
from array_api_compat import array_namespace, device
from assertions import assert_like, assert_same_bits

import xpsoftmax as xs

ROWS, CLASSES = 3, 5
SHAPE = (ROWS, CLASSES)
MUTABLE = ("numpy", "array_api_strict", "array_api_strict:device1", "torch", "cupy")
UNTOUCHED = 7.0


def loss_gradient(logits, **options):
    """The gradient, as one more function of the logits: labels 0, 1, ... of their library, on their device."""
    labels = array_namespace(logits).arange(logits.shape[0], device=device(logits))
    return xs.softmax_loss_and_grad(logits, labels, **options)[1]


CALLS = {"softmax": xs.softmax, "log_softmax": xs.log_softmax, "softmax_loss_and_grad": loss_gradient}
every_function = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


# --- what is written --------------------------------------------------------------------------------------------------


@every_function
@pytest.mark.backends(*MUTABLE)
def test_out_is_what_is_returned(backend, impl, dtype, call, rng):
    logits = backend.asarray(rng.normal(size=SHAPE), dtype)
    out = backend.asarray(np.full(SHAPE, UNTOUCHED), dtype)
    assert call(logits, out=out, impl=impl) is out
    assert_same_bits(backend.to_numpy(out), backend.to_numpy(call(logits, impl=impl)))


@every_function
@pytest.mark.backends(*MUTABLE)
def test_logits_may_be_overwritten(backend, impl, dtype, call, rng):
    logits = backend.asarray(rng.normal(size=SHAPE), dtype)
    desired = backend.to_numpy(call(logits, impl=impl)).copy()
    assert call(logits, out=logits, impl=impl) is logits
    assert_same_bits(backend.to_numpy(logits), desired)


@pytest.mark.parametrize("call", [xs.softmax, xs.log_softmax])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.backends(*MUTABLE)
def test_logits_of_three_dimensions_may_be_overwritten(backend, call, rng, axis):
    logits = backend.asarray(rng.normal(size=(2, *SHAPE)))
    desired = backend.to_numpy(call(logits, axis=axis)).copy()
    assert call(logits, axis=axis, out=logits) is logits
    assert_same_bits(backend.to_numpy(logits), desired)


@every_function
@pytest.mark.backends("numpy")
def test_another_view_of_exactly_the_logits(backend, call, rng):
    logits = rng.normal(size=SHAPE)
    desired = call(logits)
    call(logits, out=logits[:])
    assert_same_bits(logits, desired)


@every_function
@pytest.mark.backends("numpy", "torch", "cupy")
def test_out_of_sixteen_bits_or_of_float32(backend, impl, call, rng):
    logits = backend.asarray(rng.normal(size=SHAPE), "float16")
    narrow, wide = backend.asarray(np.zeros(SHAPE), "float16"), backend.asarray(np.zeros(SHAPE), "float32")
    call(logits, out=wide, impl=impl)
    call(logits, out=narrow, impl=impl)
    assert_like(wide, backend=backend, dtype="float32", shape=SHAPE)
    assert_same_bits(backend.to_numpy(wide).astype(np.float16), backend.to_numpy(narrow))


@pytest.mark.parametrize("call", [xs.softmax, loss_gradient])
def test_float32_out_keeps_what_float16_cannot_hold(call):
    logits, out = np.array([[20.0, 0.0, 0.0]], dtype="f2"), np.zeros((1, 3), dtype="f4")
    call(logits, out=out)
    assert 0.0 < out[0, 1] < 2.0**-25


@every_function
@pytest.mark.parametrize(("z_order", "out_order"), [("<", ">"), (">", "<"), (">", ">")])
def test_any_byte_order(call, rng, z_order, out_order):
    logits = rng.normal(size=SHAPE)
    out = np.zeros(SHAPE, dtype=f"{out_order}f8")
    assert call(logits.astype(f"{z_order}f8"), out=out) is out
    np.testing.assert_array_equal(out, call(logits))


@every_function
@pytest.mark.parametrize("kind", ["interleaved columns", "interleaved rows", "halves", "Fortran", "reversed", "memmap"])
def test_any_layout_that_shares_no_byte(call, rng, kind, tmp_path):
    buffer = rng.normal(size=(2 * ROWS, 2 * CLASSES))
    logits, out = {
        "interleaved columns": (buffer[:ROWS, ::2], buffer[:ROWS, 1::2]),
        "interleaved rows": (buffer[::2, :CLASSES], buffer[1::2, :CLASSES]),
        "halves": (buffer[:ROWS, :CLASSES], buffer[:ROWS, CLASSES:]),
        "Fortran": (buffer[:ROWS, :CLASSES], np.zeros(SHAPE, order="F")),
        "reversed": (buffer[:ROWS, :CLASSES], np.zeros(SHAPE)[::-1, ::-1]),
        "memmap": (buffer[:ROWS, :CLASSES], np.memmap(tmp_path / "out", dtype="f8", mode="w+", shape=SHAPE)),
    }[kind]
    kept, desired = logits.copy(), call(logits.copy())
    assert call(logits, out=out) is out
    assert_same_bits(np.asarray(out), desired)
    assert_same_bits(logits, kept)


def test_labels_between_the_columns_of_out(rng):
    """One table that holds gradient and label of a row: no byte is in both."""
    table = np.zeros((ROWS, CLASSES + 1))
    labels = table.view(np.int64)[:, CLASSES]
    labels[:] = [0, 1, 2]
    logits = rng.normal(size=SHAPE)
    _, dlogits = xs.softmax_loss_and_grad(logits, labels, out=table[:, :CLASSES])
    assert_same_bits(dlogits, loss_gradient(logits))
    np.testing.assert_array_equal(labels, [0, 1, 2])


@every_function
@pytest.mark.backends(*MUTABLE)
@pytest.mark.parametrize("alias", [False, True])
def test_out_without_rows(backend, impl, call, alias):
    logits = backend.asarray(np.zeros((0, CLASSES)))
    out = logits if alias else backend.asarray(np.zeros((0, CLASSES)))
    assert call(logits, out=out, impl=impl) is out


@every_function
@pytest.mark.backends("torch")
def test_tensors_that_require_grad_can_be_written_to(backend, call, rng):
    logits = backend.asarray(rng.normal(size=SHAPE)).requires_grad_()
    out = backend.asarray(np.zeros(SHAPE)).requires_grad_()
    # PyTorch would differentiate softmax and log_softmax here, which is refused; a gradient comes back detached.
    with backend.library.set_grad_enabled(call is loss_gradient):
        assert call(logits, out=out) is out
        assert out.requires_grad
        assert_same_bits(backend.to_numpy(out), backend.to_numpy(call(logits)))


# --- what is refused --------------------------------------------------------------------------------------------------


def _self_overlapping():
    return np.lib.stride_tricks.as_strided(np.zeros(20), SHAPE, (8, 8))


def _broadcast():
    return np.lib.stride_tricks.as_strided(np.zeros(CLASSES), SHAPE, (0, 8))


def _frozen():
    out = np.zeros(SHAPE)
    out.flags.writeable = False
    return out


TWICE = r"^out must not hold an element twice, got a broadcast or self-overlapping array\.$"
BAD_OUTS = {
    "list": (
        lambda: [[0.0]],
        TypeError,
        r"^out must be an array of an Array API library, got list\. Make one with numpy.asarray\.$",
    ),
    "True": (
        lambda: True,
        TypeError,
        r"^out must be an array of an Array API library, got bool\. Make one with numpy.asarray\.$",
    ),
    "masked": (lambda: np.ma.zeros(SHAPE), TypeError, r"^out must be a plain dense array, got numpy\.MaskedArray\."),
    "shape": (lambda: np.zeros((5, 3)), ValueError, r"^out must have the shape of logits, \(3, 5\), got \(5, 3\)\.$"),
    "more": (lambda: np.zeros((1, 3, 5)), ValueError, r"^out must have the shape of logits, \(3, 5\), got \(1, 3, 5\)"),
    "0-d": (lambda: np.float64(0.0), ValueError, r"^out must have the shape of logits, \(3, 5\), got \(\)\.$"),
    "float32": (
        lambda: np.zeros(SHAPE, "f4"),
        TypeError,
        r"^out must have the dtype of logits, float64, got float32\.",
    ),
    "int": (lambda: np.zeros(SHAPE, int), TypeError, r"^out must have the dtype of logits, float64, got int64\.$"),
    "read-only": (_frozen, ValueError, r"^out must be writable, got a read-only array\.$"),
    "broadcast_to": (
        lambda: np.broadcast_to(np.zeros(5), SHAPE),
        ValueError,
        r"^out must be writable, got a read-only",
    ),
    "broadcast": (_broadcast, ValueError, TWICE),
    "self-overlapping": (_self_overlapping, ValueError, TWICE),
}


@every_function
@pytest.mark.parametrize(("make", "error", "message"), BAD_OUTS.values(), ids=BAD_OUTS)
def test_out(call, make, error, message):
    with pytest.raises(error, match=message):
        call(np.zeros(SHAPE), out=make())


@every_function
@pytest.mark.parametrize(
    ("logits", "out", "message"),
    [
        ("f2", "f8", r"^out must have the dtype of logits, float16 or float32, got float64\.$"),
        ("f4", "f8", r"^out must have the dtype of logits, float32, got float64\.$"),
        ("f4", "f2", r"^out must have the dtype of logits, float32, got float16\.$"),
    ],
)
def test_out_of_another_precision(call, logits, out, message):
    with pytest.raises(TypeError, match=message):
        call(np.zeros(SHAPE, dtype=logits), out=np.zeros(SHAPE, dtype=out))


@every_function
@pytest.mark.backends("jax", "dask")
def test_libraries_that_cannot_be_written_to(backend, call):
    logits = backend.asarray(np.zeros(SHAPE))
    message = rf"^out must be an array that can be written to, got one of {backend.module}\. Leave it out\.$"
    with pytest.raises(TypeError, match=message):
        call(logits, out=logits)


@every_function
def test_out_of_another_library(backend, call):
    logits = backend.asarray(np.zeros(SHAPE))
    other = pytest.importorskip("array_api_strict").zeros(SHAPE) if backend.name == "numpy" else np.zeros(SHAPE)
    with pytest.raises(TypeError, match=r"^out must be an array of the same library as logits \([\w.]+\), got one of "):
        call(logits, out=other)


@every_function
@pytest.mark.backends("array_api_strict:device1")
def test_out_on_another_device(backend, call):
    logits = backend.asarray(np.zeros(SHAPE))
    with pytest.raises(ValueError, match=r"^out must be on the device of logits \(.*device1.*\), got .*CPU_DEVICE"):
        call(logits, out=backend.library.zeros(SHAPE))


@every_function
@pytest.mark.backends("numpy", "array_api_strict", "torch", "cupy")
@pytest.mark.parametrize("kind", ["shifted", "transposed"])
def test_out_that_overlaps_the_logits(backend, call, rng, kind):
    buffer = backend.asarray(rng.normal(size=(ROWS, ROWS + 1)))
    if kind == "shifted":
        logits, out = buffer[:, :ROWS], buffer[:, 1:]
    else:
        logits, out = buffer[:, :ROWS], buffer[:, :ROWS].T
    kept = backend.to_numpy(buffer).copy()
    with pytest.raises(ValueError, match=r"^out must be logits itself or share no memory with it, got an overlapping"):
        call(logits, out=out)
    assert_same_bits(backend.to_numpy(buffer), kept)


@every_function
def test_wider_out_over_the_memory_of_the_logits(call):
    memory = np.zeros(ROWS * CLASSES, dtype="f4")
    logits, out = memory.view("f2")[: ROWS * CLASSES].reshape(SHAPE), memory.reshape(SHAPE)
    with pytest.raises(ValueError, match=r"^out must be logits itself or share no memory with it"):
        call(logits, out=out)


@pytest.mark.backends("numpy", "array_api_strict", "torch", "cupy")
@pytest.mark.parametrize("name", ["targets", "sample_weight", "class_weight"])
def test_out_that_overlaps_another_argument(backend, name):
    logits = backend.asarray(np.zeros(SHAPE))
    out = backend.asarray(np.full(SHAPE, 0.25))
    targets = out if name == "targets" else backend.asarray(np.array([0, 1, 2]))
    weights = {"sample_weight": {"sample_weight": out[:, 0]}, "class_weight": {"class_weight": out[0, :]}}.get(name, {})
    with pytest.raises(ValueError, match=rf"^out must share no memory with {name}, got an overlapping array\.$"):
        xs.softmax_loss_and_grad(logits, targets, out=out, **weights)
    assert_same_bits(backend.to_numpy(out), np.full(SHAPE, 0.25))


def test_out_that_overlaps_integer_labels():
    out = np.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"^out must share no memory with targets, got an overlapping array\.$"):
        xs.softmax_loss_and_grad(np.zeros(SHAPE), out.view(np.int64)[:, 1], out=out)


# --- an error writes nothing ------------------------------------------------------------------------------------------

LATE_ERRORS = {
    "label": ({"targets": [0, 1, CLASSES]}, ValueError, "^targets must be labels"),
    "sample_weight": ({"sample_weight": [1.0, -1.0, 1.0]}, ValueError, "^sample_weight must be finite"),
    "class_weight": ({"class_weight": [1.0, np.nan, 1.0, 1.0, 1.0]}, ValueError, "^class_weight must be finite"),
    "reduction": ({"reduction": "avg"}, ValueError, "^reduction must be one of"),
    "label_smoothing": ({"label_smoothing": 2.0}, ValueError, "^label_smoothing must be from 0 to 1"),
    "axis": ({"axis": 2}, ValueError, "^axis must be from"),
}


@pytest.mark.backends(*MUTABLE)
@pytest.mark.parametrize("alias", [False, True])
@pytest.mark.parametrize(("options", "error", "message"), LATE_ERRORS.values(), ids=LATE_ERRORS)
def test_an_error_writes_nothing(backend, impl, rng, alias, options, error, message):
    values = rng.normal(size=SHAPE)
    logits = backend.asarray(values)
    out = logits if alias else backend.asarray(values)
    options = {name: backend.asarray(np.array(v)) if isinstance(v, list) else v for name, v in options.items()}
    targets = options.pop("targets", backend.asarray(np.array([0, 1, 2])))
    with pytest.raises(error, match=message):
        xs.softmax_loss_and_grad(logits, targets, out=out, impl=impl, **options)
    assert_same_bits(backend.to_numpy(out), values)


def test_without_out_no_argument_is_modified(backend, impl, rng):
    given = {
        "logits": rng.normal(size=SHAPE),
        "targets": np.array([0, 4, 2]),
        "class_weight": rng.random(CLASSES),
        "sample_weight": rng.random(ROWS),
    }
    arrays = {name: backend.asarray(values) for name, values in given.items()}
    logits, targets, weights = arrays["logits"], arrays["targets"], dict(list(arrays.items())[2:])
    xs.softmax_loss_and_grad(logits, targets, label_smoothing=0.1, z_loss=0.1, ignore_index=2, impl=impl, **weights)
    for name, values in given.items():
        assert_same_bits(backend.to_numpy(arrays[name]), values)


@every_function
@pytest.mark.backends("numpy", "torch", "cupy")
def test_a_wide_out_holds_more_than_sixteen_bits_along_any_axis(backend, call, rng):
    """Along axis 0 the result goes to `out` by way of a copy, which must not be a 16-bit one."""
    logits = backend.asarray(rng.normal(size=(CLASSES, CLASSES)), "float16")
    out = backend.asarray(np.zeros((CLASSES, CLASSES)), "float32")
    call(logits, axis=0, out=out)
    wide = call(backend.asarray(backend.to_numpy(logits), "float32"), axis=0)
    assert_same_bits(backend.to_numpy(out), backend.to_numpy(wide))
