"""The door: a call that is remembered gives what the full checks give, bit for bit and word for word."""

from __future__ import annotations

import inspect
import itertools
import threading
import weakref

import numpy as np
import pytest
from assertions import assert_same_bits

import xpsoftmax as xs
from xpsoftmax import kernels
from xpsoftmax._arguments import door
from xpsoftmax.kernels import generic

ROWS, CLASSES = 52, 7


@pytest.fixture(autouse=True)
def _empty():
    door.forget()
    yield
    door.forget()


@pytest.fixture
def full_checks(monkeypatch):
    """The names of the full checks that have run."""
    ran = []

    def noting(name, function):
        def noted(*args, **options):
            ran.append(name)
            return function(*args, **options)

        return noted

    for name in ("_check_rows", "_check_loss"):
        monkeypatch.setattr(door, name, noting(name, getattr(door, name)))
    return ran


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


def mixed(rng, shape, dtype):
    """Logits of every kind, some rows without a result; and labels."""
    z = rng.normal(size=shape)
    kind = rng.integers(20, size=shape[0])
    z[kind < 6] *= 40
    z[kind == 6] += 300
    z[kind == 7] -= 900
    z[kind == 8, 0] = np.nan
    z[kind == 9] = -np.inf
    z[kind == 10, -1] = np.inf
    return z.astype(dtype), rng.integers(shape[1], size=shape[0])


def outcome(function, *args, **options):
    """The results of a call, or the type and the words of its error."""
    try:
        results = function(*args, **options)
    except (TypeError, ValueError, NotImplementedError) as error:
        return type(error), str(error)
    return [native(x) for x in (results if type(results) is tuple else (results,))]


def native(x):
    x = np.asarray(x)
    return x.astype(x.dtype.newbyteorder("="))


def assert_same(actual, desired):
    if type(desired) is tuple:
        assert actual == desired
        return
    assert type(actual) is list, actual
    for one, other in zip(actual, desired, strict=True):
        assert_same_bits(one, other)


def fresh(function, *args, **options):
    """The outcome of a call that is checked in full."""
    door.forget()
    return outcome(function, *args, **options)


def kept(z):
    return z


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def unaligned(z):
    result = np.ndarray(z.shape, z.dtype, buffer=bytearray(z.nbytes + 1), offset=1)
    result[...] = z
    assert not result.flags.aligned
    return result


def other_order(z):
    return z.astype(z.dtype.newbyteorder())


def strided(z):
    result = np.zeros((2 * z.shape[0], 3 * z.shape[1]), z.dtype)[1::2, ::3]
    result[...] = z
    return result


class Subclass(np.ndarray):
    pass


def mapped(x, path):
    result = np.memmap(path, x.dtype, "w+", shape=x.shape)
    result[...] = x
    return result


# --- calls that are remembered ----------------------------------------------------------------------------------------

PLAIN = {
    "plain": (kept, kept, {}),
    "axis 1": (kept, kept, {"axis": 1}),
    "Fortran": (np.asfortranarray, kept, {}),
    "strided": (strided, kept, {}),
    "unaligned": (unaligned, kept, {}),
    "read-only": (read_only, read_only, {}),
    "one row": (lambda z: z[:1], lambda y: y[:1], {}),
    "one class": (lambda z: z[:, :1], lambda y: 0 * y, {}),
    "one of each": (lambda z: z[:1, :1], lambda y: 0 * y[:1], {}),
    "every second label": (kept, lambda y: np.repeat(y, 2)[::2], {}),
    "one label for all": (kept, lambda y: np.broadcast_to(y[:1], y.shape), {}),
    "without a look at the labels": (kept, kept, {"validate": False}),
    "long long labels": (kept, lambda y: y.astype(np.longlong), {}),
    "defaults": (
        kept,
        kept,
        {"class_weight": None, "label_smoothing": 0.0, "z_loss": 0.0, "reduction": "mean", "validate": True},
    ),
}
every_plain_problem = pytest.mark.parametrize(("logits", "labels", "options"), PLAIN.values(), ids=PLAIN)
every_impl = pytest.mark.parametrize("impl", ["auto", "generic", "kernel"])


@every_plain_problem
@every_impl
def test_a_remembered_call_gives_the_bits_of_the_first(rng, full_checks, dtype, logits, labels, options, impl):
    z, y = mixed(rng, (ROWS, CLASSES), dtype)
    z, y = logits(z), labels(y)
    first = xs.softmax_loss_and_grad(z, y, impl=impl, **options)
    loss, grad = xs.softmax_loss_and_grad(z, y, impl=impl, **options)
    assert full_checks == ["_check_loss"]
    assert_same([loss, grad], list(first))
    assert (type(loss), type(grad), loss.shape) == (np.ndarray, np.ndarray, ())


@every_impl
@pytest.mark.parametrize("in_place", [True, False])
def test_a_remembered_call_writes_to_out(rng, full_checks, dtype, impl, in_place):
    z, y = mixed(rng, (ROWS, CLASSES), dtype)
    desired = xs.softmax_loss_and_grad(z, y, impl=impl)
    full_checks.clear()
    for _ in range(2):
        given = z.copy()
        out = given if in_place else np.empty_like(z)
        results = xs.softmax_loss_and_grad(given, y, out=out, impl=impl)
        assert results[1] is out
        assert_same(list(results), list(desired))
    assert full_checks == ["_check_loss"]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 10, 49, 1000, 4099])
def test_the_weight_of_a_mean_has_the_bits_of_an_array_of_weights(rng, dtype, rows):
    z, y = rng.normal(size=(rows, 2)).astype(dtype), rng.integers(2, size=rows)
    weighted = xs.softmax_loss_and_grad(z, y, sample_weight=np.ones(rows, dtype))
    assert_same(list(xs.softmax_loss_and_grad(z, y)), list(weighted))


def test_another_number_of_rows_is_remembered(rng, full_checks, dtype):
    for rows in (5, 1, 300, 0, 64):
        z, y = rng.normal(size=(rows, CLASSES)).astype(dtype), rng.integers(CLASSES, size=rows)
        got = outcome(xs.softmax_loss_and_grad, z, y)
        desired = outcome(xs.softmax_loss_and_grad, z, y, sample_weight=np.ones(rows, dtype))
        assert_same(got, desired)
    assert full_checks == ["_check_loss"] * 2


@pytest.mark.parametrize("call", [xs.softmax, xs.log_softmax, xs.logsumexp])
@pytest.mark.parametrize("shape", [(ROWS, CLASSES), (CLASSES,), (2, 3, CLASSES)], ids=str)
def test_row_operations_are_remembered(rng, full_checks, dtype, call, shape):
    z = rng.normal(size=shape).astype(dtype)
    results = [call(z) for _ in range(3)]
    assert full_checks == ["_check_rows"]
    for result in results[1:]:
        assert_same_bits(result, results[0])


# --- what a key must hold ---------------------------------------------------------------------------------------------

OTHERS = {
    "subclass of logits": lambda z, y, path: ((z.view(Subclass), y), {}),
    "subclass of labels": lambda z, y, path: ((z, y.view(Subclass)), {}),
    "mapped logits": lambda z, y, path: ((mapped(z, path), y), {}),
    "mapped labels": lambda z, y, path: ((z, mapped(y, path)), {}),
    "mapped out": lambda z, y, path: ((z, y), {"out": mapped(z, path)}),
    "subclass of out": lambda z, y, path: ((z, y), {"out": z.copy().view(Subclass)}),
    "int32": lambda z, y, path: ((z, y.astype(np.int32)), {}),
    "uint64": lambda z, y, path: ((z, y.astype(np.uint64)), {}),
    "labels in other byte order": lambda z, y, path: ((z, other_order(y)), {}),
    "logits in other byte order": lambda z, y, path: ((other_order(z), y), {}),
    "Fortran out": lambda z, y, path: ((z, y), {"out": np.asfortranarray(z)}),
    "strided out": lambda z, y, path: ((z, y), {"out": strided(z)}),
    "unaligned out": lambda z, y, path: ((z, y), {"out": unaligned(z)}),
    "out in other byte order": lambda z, y, path: ((z, y), {"out": other_order(z)}),
    "zero as an integer": lambda z, y, path: ((z, y), {"z_loss": 0}),
    "zero of NumPy": lambda z, y, path: ((z, y), {"label_smoothing": np.float64(0)}),
    "True of NumPy": lambda z, y, path: ((z, y), {"validate": np.True_}),
    "no label ignored": lambda z, y, path: ((z, y), {"ignore_index": -1}),
    "axis of NumPy": lambda z, y, path: ((z, y), {"axis": np.int64(1)}),
    "axis 0": lambda z, y, path: ((z.T, y), {"axis": 0}),
    "axis -2": lambda z, y, path: ((z.T, y), {"axis": -2}),
    "axis of the rows": lambda z, y, path: ((z[:CLASSES], y[:CLASSES]), {"axis": 0}),
    "class_weight": lambda z, y, path: ((z, y), {"class_weight": np.linspace(0, 2, CLASSES).astype(z.dtype)}),
    "class_weight of another dtype": lambda z, y, path: ((z, y), {"class_weight": np.arange(CLASSES)}),
    "sample_weight": lambda z, y, path: ((z, y), {"sample_weight": np.linspace(0, 2, ROWS).astype(z.dtype)}),
    "sample_weight of another dtype": lambda z, y, path: ((z, y), {"sample_weight": np.arange(ROWS)}),
    "ignore_index": lambda z, y, path: ((z, y), {"ignore_index": 1}),
    "another ignore_index": lambda z, y, path: ((z, y), {"ignore_index": 2}),
    "ignore_index True": lambda z, y, path: ((z, y), {"ignore_index": True}),
    "ignore_index 1.0": lambda z, y, path: ((z, y), {"ignore_index": 1.0}),
    "ignore_index of NumPy": lambda z, y, path: ((z, y), {"ignore_index": np.int64(1)}),
    "ignore_index a list": lambda z, y, path: ((z, y), {"ignore_index": [1]}),
    "label_smoothing": lambda z, y, path: ((z, y), {"label_smoothing": 0.25}),
    "label_smoothing 1": lambda z, y, path: ((z, y), {"label_smoothing": 1}),
    "label_smoothing True": lambda z, y, path: ((z, y), {"label_smoothing": True}),
    "label_smoothing 1.5": lambda z, y, path: ((z, y), {"label_smoothing": 1.5}),
    "label_smoothing nan": lambda z, y, path: ((z, y), {"label_smoothing": np.nan}),
    "z_loss": lambda z, y, path: ((z, y), {"z_loss": 0.25}),
    "z_loss -1": lambda z, y, path: ((z, y), {"z_loss": -1.0}),
    "z_loss inf": lambda z, y, path: ((z, y), {"z_loss": np.inf}),
    "sum": lambda z, y, path: ((z, y), {"reduction": "sum"}),
    "none": lambda z, y, path: ((z, y), {"reduction": "none"}),
    "reduction None": lambda z, y, path: ((z, y), {"reduction": None}),
    "validate False": lambda z, y, path: ((z, np.where(y == y[3], 9, y)), {"validate": False}),
    "validate 0": lambda z, y, path: ((z, y), {"validate": 0}),
    "validate 0.0": lambda z, y, path: ((z, y), {"validate": 0.0}),
    "generic": lambda z, y, path: ((z, y), {"impl": "generic"}),
    "kernel": lambda z, y, path: ((z, y), {"impl": "kernel"}),
    "out": lambda z, y, path: ((z, y), {"out": np.empty_like(z)}),
    "aux": lambda z, y, path: ((z, y), {"aux": True}),
    "aux 1": lambda z, y, path: ((z, y), {"aux": 1}),
    "soft targets": lambda z, y, path: ((z, np.eye(CLASSES, dtype=z.dtype)[y]), {}),
    "soft targets of another dtype": lambda z, y, path: ((z, np.eye(CLASSES, dtype="f2")[y]), {}),
    "float16": lambda z, y, path: ((z.astype("f2"), y), {}),
    "one dimension": lambda z, y, path: ((z[0], y[0, ...]), {}),
    "three dimensions": lambda z, y, path: ((z.reshape(1, ROWS, CLASSES), y.reshape(1, ROWS)), {}),
    "fewer classes": lambda z, y, path: ((z[:, :2], y % 2), {}),
    "no rows": lambda z, y, path: ((z[:0], y[:0]), {}),
    "negative zero": lambda z, y, path: ((z, y), {"z_loss": -0.0}),
}


BAD: dict = {
    "label beyond": (lambda z, y: ((z, np.where(y == y[3], 7, y)), {}), ValueError, r"got 7 at row \d+\.$"),
    "label -1": (lambda z, y: ((z, np.append(y[1:], -1)), {}), ValueError, rf"got -1 at row {ROWS - 1}\.$"),
    "least label": (
        lambda z, y: ((z, np.append(y[1:], -(2**63))), {}),
        ValueError,
        rf"^targets must be labels from 0 to 6 \(7 classes, ignore_index=None\), got -{2**63} at row {ROWS - 1}\.$",
    ),
    "largest label": (lambda z, y: ((z, np.append(y[1:], 2**63 - 1)), {}), ValueError, rf"got {2**63 - 1} at row"),
    "labels of another shape": (lambda z, y: ((z, y[1:]), {}), ValueError, rf"^targets must have shape \({ROWS},\) if"),
    "column of labels": (lambda z, y: ((z, y[:, None]), {}), ValueError, rf"^targets must have shape \({ROWS},\) if"),
    "bool labels": (lambda z, y: ((z, y > 0), {}), TypeError, r"^targets must be integer labels or floating soft tar"),
    "list of labels": (lambda z, y: ((z, y.tolist()), {}), TypeError, r"^targets must be an array of an Array API"),
    "masked labels": (lambda z, y: ((z, np.ma.array(y)), {}), TypeError, r"^targets must be a plain dense array"),
    "masked logits": (lambda z, y: ((np.ma.array(z), y), {}), TypeError, r"^logits must be a plain dense array"),
    "matrix": (lambda z, y: ((z.view(np.matrix), y), {}), TypeError, r"^logits must be a plain dense array"),
    "integer logits": (lambda z, y: ((np.ones(z.shape, int), y), {}), TypeError, r"^logits must be of dtype float16,"),
    "no class": (lambda z, y: ((z[:, :0], y), {}), ValueError, r"^logits must have at least one class along axis -1"),
    "axis True": (lambda z, y: ((z, y), {"axis": True}), TypeError, r"^axis must be an integer, got True\.$"),
    "axis 1.0": (lambda z, y: ((z, y), {"axis": 1.0}), TypeError, r"^axis must be an integer, got 1\.0\.$"),
    "axis 2": (lambda z, y: ((z, y), {"axis": 2}), ValueError, r"^axis must be from -2 to 1 "),
    "validate 1": (lambda z, y: ((z, y), {"validate": 1}), TypeError, r"^validate must be True or False, got 1\.$"),
    "z_loss False": (lambda z, y: ((z, y), {"z_loss": False}), TypeError, r"^z_loss must be a real number, got False"),
    "reduction": (lambda z, y: ((z, y), {"reduction": "Mean"}), ValueError, r"^reduction must be one of"),
    "impl": (lambda z, y: ((z, y), {"impl": "fast"}), ValueError, r"^impl must be one of"),
    "out read-only": (lambda z, y: ((z, y), {"out": read_only(z)}), ValueError, r"^out must be writable"),
    "logits read-only and out": (
        lambda z, y: (lambda x: ((x, y), {"out": x}))(read_only(z)),
        ValueError,
        r"^out must be writable",
    ),
    "out of another shape": (lambda z, y: ((z, y), {"out": z[1:].copy()}), ValueError, r"^out must have the shape of"),
    "out of another dtype": (
        lambda z, y: ((z, y), {"out": np.ones(z.shape, int)}),
        TypeError,
        r"^out must have the dt",
    ),
    "out a list": (lambda z, y: ((z, y), {"out": z.tolist()}), TypeError, r"^out must be an array of an Array API"),
    "out overlaps the labels": (
        lambda z, y: (lambda x: ((z, x.reshape(-1).view(np.int64)[:ROWS]), {"out": x}))(np.zeros_like(z)),
        ValueError,
        r"^out must share no memory with targets, got an overlapping array\.$",
    ),
    "labels are in the logits, which are out": (
        lambda z, y: (lambda x: ((x, x.reshape(-1).view(np.int64)[:ROWS]), {"out": x}))(np.zeros_like(z)),
        ValueError,
        r"^out must share no memory with targets, got an overlapping array\.$",
    ),
    "out overlaps the logits": (
        lambda z, y: (lambda x: ((x[:-1], y), {"out": x[1:]}))(np.zeros((ROWS + 1, 7), z.dtype)),
        ValueError,
        r"^out must be logits itself or share no memory with it, got an overlapping array\.$",
    ),
}


CALLS = {**OTHERS, **{name: (lambda z, y, path, make=entry[0]: make(z, y)) for name, entry in BAD.items()}}
every_call = pytest.mark.parametrize("name", CALLS)


@every_call
def test_a_call_after_a_plain_one_is_as_without_it(rng, dtype, name, tmp_path):
    z, y = mixed(rng, (ROWS, CLASSES), dtype)
    args, options = CALLS[name](z.copy(), y.copy(), tmp_path / "one")
    others, other_options = CALLS[name](z.copy(), y.copy(), tmp_path / "other")
    desired = fresh(xs.softmax_loss_and_grad, *others, **other_options)
    door.forget()
    for _ in range(2):
        xs.softmax_loss_and_grad(z, y)
    assert_same(outcome(xs.softmax_loss_and_grad, *args, **options), desired)


@every_call
def test_a_plain_call_after_another_is_as_without_it(rng, dtype, name, tmp_path):
    z, y = mixed(rng, (ROWS, CLASSES), dtype)
    desired = fresh(xs.softmax_loss_and_grad, z, y)
    door.forget()
    for i in range(2):
        args, options = CALLS[name](z.copy(), y.copy(), tmp_path / str(i))
        outcome(xs.softmax_loss_and_grad, *args, **options)
    assert_same(outcome(xs.softmax_loss_and_grad, z, y), desired)


def test_every_pair_of_calls_is_kept_apart(rng, tmp_path):
    """All calls in a row, twice, with one memory: the second time most of them are remembered."""
    z, y = mixed(rng, (ROWS, CLASSES), "float64")
    numbers = itertools.count()

    def made(name):
        return CALLS[name](z.copy(), y.copy(), tmp_path / str(next(numbers)))

    desired = {}
    for name in CALLS:
        args, options = made(name)
        desired[name] = fresh(xs.softmax_loss_and_grad, *args, **options)
    door.forget()
    for name in [*CALLS, *reversed(CALLS)]:
        args, options = made(name)
        assert_same(outcome(xs.softmax_loss_and_grad, *args, **options), desired[name])


@pytest.mark.parametrize("function", [xs.softmax_loss, xs.softmax_loss_and_grad])
def test_every_option_has_a_call_above(function, tmp_path):
    """A new option is tested here only if a call uses it."""
    z, y = np.zeros((ROWS, CLASSES)), np.zeros(ROWS, int)
    used = {name for make in OTHERS.values() for name in make(z, y, tmp_path / "array")[1]}
    options = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert options <= used


ROW_CALLS = {
    "plain": {},
    "axis 1": {"axis": 1},
    "axis True": {"axis": True},
    "axis 1.0": {"axis": 1.0},
    "axis 0": {"axis": 0},
    "axis False": {"axis": False},
    "axis None": {"axis": None},
    "axes": {"axis": (0, 1)},
    "axis a list": {"axis": [1]},
    "axis 2": {"axis": 2},
    "where": {"where": np.arange(CLASSES) > 1},
    "generic": {"impl": "generic"},
    "kernel": {"impl": "kernel"},
    "fast": {"impl": "fast"},
}


@pytest.mark.parametrize("call", [xs.softmax, xs.log_softmax, xs.logsumexp])
def test_every_pair_of_row_operations_is_kept_apart(rng, dtype, call):
    z = mixed(rng, (CLASSES, CLASSES), dtype)[0]
    calls = dict(ROW_CALLS)
    if call is xs.logsumexp:
        calls |= {f"keepdims {x!r}": {"keepdims": x} for x in (True, False, 1, 0, np.True_)}
    else:
        outs = (
            z.copy(),
            read_only(z),
            strided(z),
            other_order(z),
            z[1:].copy(),
            np.zeros(z.shape, "f2"),
            z.copy().T,
            z.tolist(),
        )
        calls |= {f"out {i}": {"out": out} for i, out in enumerate(outs)}
    arrays = (
        z,
        np.clip(z, -9, 9).astype("f2"),
        other_order(z),
        z[:, :3],
        z[0],
        z.view(Subclass),
        np.zeros(z.shape, int),
    )
    desired = [[fresh(call, x, **options) for options in calls.values()] for x in arrays]
    door.forget()
    for _ in range(2):
        for x, row in zip(arrays, desired, strict=True):
            for options, wanted in zip(calls.values(), row, strict=True):
                assert_same(outcome(call, x, **options), wanted)


def test_overlap_is_looked_for_at_every_call(rng, full_checks):
    z, y = rng.normal(size=(ROWS + 1, CLASSES)), rng.integers(CLASSES, size=ROWS)
    for out in (np.empty((ROWS, CLASSES)), np.empty((ROWS + 1, CLASSES))[1:]):
        xs.softmax_loss_and_grad(z[:-1], y, out=out)
        xs.softmax(z[:-1], out=out)
    full_checks.clear()
    with pytest.raises(ValueError, match=r"^out must be logits itself or share no memory with it, got an overlapping"):
        xs.softmax_loss_and_grad(z[:-1], y, out=z[1:])
    with pytest.raises(ValueError, match=r"^out must be logits itself or share no memory with it, got an overlapping"):
        xs.softmax(z[:-1], out=z[1:])
    assert full_checks == []


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_get_the_same_error_each_time(rng, dtype, make, error, message):
    z, y = mixed(rng, (ROWS, CLASSES), dtype)
    xs.softmax_loss_and_grad(z, y)
    args, options = make(z, y)
    for _ in range(3):
        with pytest.raises(error, match=message):
            xs.softmax_loss_and_grad(*args, **options)


VALUES = ("label ", "least label", "largest label")
"""Bad values are seen at each call: what is remembered is that everything else is good."""


@pytest.mark.parametrize("name", [name for name in BAD if not name.startswith(VALUES)])
def test_a_bad_call_is_not_remembered(rng, dtype, name):
    z, y = mixed(rng, (ROWS, CLASSES), dtype)
    args, options = BAD[name][0](z, y)
    outcome(xs.softmax_loss_and_grad, *args, **options)
    assert not door._memory


@pytest.mark.parametrize("label", [7, -1, 2**40])
def test_a_bad_label_writes_nothing(rng, dtype, label):
    z, y = mixed(rng, (ROWS, CLASSES), dtype)
    for _ in range(2):
        xs.softmax_loss_and_grad(z, y, out=z.copy())
    y[11] = label
    given, out = z.copy(), np.full_like(z, 7.0)
    with pytest.raises(ValueError, match=rf"got {label} at row 11\.$"):
        xs.softmax_loss_and_grad(z, y, out=out)
    with pytest.raises(ValueError, match=rf"got {label} at row 11\.$"):
        xs.softmax_loss_and_grad(z, y, out=z)
    assert (out == 7.0).all()
    assert_same_bits(z, given)


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u8"])
@pytest.mark.parametrize("classes", [1, 127, 128, 129, 255, 256, 257, 40_000])
def test_labels_of_every_dtype_are_looked_at(kind, classes):
    info = np.iinfo(kind)
    good = min(classes - 1, info.max)
    bad = [label for label in (-1, info.min, classes, info.max) if info.min <= label <= info.max]
    bad = [label for label in bad if not 0 <= label < classes]
    z = np.zeros((3, classes), "f4")
    for label in (0, good):
        for validate in (True, False):
            loss = xs.softmax_loss(z, np.array([0, label, 0], kind), validate=validate)
            np.testing.assert_allclose(loss, np.log(classes), rtol=1e-6)
    for label in bad:
        y = np.array([0, label, 0], kind)
        with pytest.raises(ValueError, match=rf"got {label} at row 1\.$"):
            xs.softmax_loss(z, y)
        assert np.isnan(xs.softmax_loss(z, y, reduction="none", validate=False)).tolist() == [False, True, False]


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf, -5e-324])
@pytest.mark.parametrize("name", ["sample_weight", "class_weight", "targets"])
def test_bad_weights_are_seen_at_every_call(rng, name, value):
    z, y = rng.normal(size=(CLASSES, CLASSES)), rng.integers(CLASSES, size=CLASSES)
    weights = np.ones((CLASSES, CLASSES) if name == "targets" else CLASSES)

    def call():
        if name == "targets":
            return xs.softmax_loss(z, weights)
        return xs.softmax_loss(z, y, **{name: weights})

    for _ in range(2):
        call()
    weights[4] = value
    unit = {"sample_weight": r"row 4", "class_weight": r"class 4", "targets": r"index \(4, 0\)"}[name]
    with pytest.raises(ValueError, match=rf"^{name} must be finite and not negative, got {value} at {unit}\.$"):
        call()


# --- the memory -------------------------------------------------------------------------------------------------------


def test_a_full_memory_is_emptied(rng):
    for classes in range(1, 2 * door.REMEMBERED):
        z = rng.normal(size=(2, classes))
        np.testing.assert_allclose(xs.softmax(z).sum(axis=1), 1.0, rtol=1e-12)
        assert 0 < len(door._memory) <= door.REMEMBERED
    assert len(door._memory) == door.REMEMBERED - 1


def parts(entry):
    yield entry
    if isinstance(entry, tuple):
        for part in entry:
            yield from parts(part)


def test_the_memory_holds_no_arrays(rng):
    z, y = mixed(rng, (ROWS, CLASSES), "float64")
    params = xs.init_params((CLASSES, 5, CLASSES), rng=0)
    X = np.ones((ROWS, CLASSES))
    held = [weakref.ref(x) for x in (z, y, X, params[0].weight)]
    for _ in range(2):
        xs.softmax_loss_and_grad(z, y, class_weight=np.ones(CLASSES), out=z.copy())
        xs.softmax(z)
        xs.mlp_loss_and_grad(params, X, y)
    assert len(door._memory) == 5
    for key, found in door._memory.items():
        assert not any(isinstance(part, np.ndarray) for part in (*parts(key), *parts(found)))
    del z, y, X, params
    assert [x() for x in held] == [None] * 4


def test_another_table_of_kernels_empties_the_memory(monkeypatch):
    z = np.zeros((2, CLASSES))
    assert (xs.softmax(z, impl="auto") == 1 / CLASSES).all()
    module = type("Module", (), {"softmax_rows": staticmethod(lambda logits, out=None: np.full(logits.shape, 42.0))})
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "BACKENDS", (kernels.Backend("fake", lambda array: True, lambda: module),))
        assert (xs.softmax(z) == 42.0).all()
    assert (xs.softmax(z) == 1 / CLASSES).all()


def test_threads_share_the_memory(monkeypatch):
    """Calls of more kinds than there is room for, in several threads at once."""
    monkeypatch.setattr(door, "REMEMBERED", 3)
    problems = []
    for classes in range(2, 8):
        for dtype in ("f4", "f8"):
            z, y = np.linspace(-3, 3, 5 * classes).reshape(5, classes).astype(dtype), np.arange(5) % classes
            problems.append((z, y, [native(x) for x in xs.softmax_loss_and_grad(z, y)]))
    errors, barrier = [], threading.Barrier(8)

    def work(number):
        barrier.wait()
        try:
            for i in range(300):
                z, y, desired = problems[(i * (number + 1) + number) % len(problems)]
                assert_same([native(x) for x in xs.softmax_loss_and_grad(z, y)], desired)
        except BaseException as error:  # noqa: BLE001 - it belongs to the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(door._memory) <= 3 + 8  # each thread may have found room at the same time


def test_a_forgetful_door_is_seen(rng, monkeypatch):
    """The tests above find an option that is left out of the key."""
    z, y = rng.normal(size=(ROWS, CLASSES)), rng.integers(CLASSES, size=ROWS)
    key = door._key_of_terms

    def forgetful(targets, options, shape, axis):
        return key(targets, options._replace(ignore_index=None), shape, axis)

    desired = fresh(xs.softmax_loss, z, y, ignore_index=1, reduction="sum")
    monkeypatch.setattr(door, "_key_of_terms", forgetful)
    xs.softmax_loss(z, y, reduction="sum")
    with pytest.raises(AssertionError):
        assert_same(outcome(xs.softmax_loss, z, y, ignore_index=1, reduction="sum"), desired)


# --- networks ---------------------------------------------------------------------------------------------------------


def network_calls(rng):
    """Parameters, inputs and options that differ from a plain call in one thing each."""
    params = xs.init_params((4, 6, 3), rng=0, activation="tanh")
    X, y = rng.normal(size=(20, 4)), rng.integers(3, size=20)
    narrow = tuple(type(layer)(*(x.astype("f4") for x in layer)) for layer in params)
    plain = tuple(xs.Layer(*layer) for layer in params)
    base = {"activation": None}
    return {
        "plain": (params, X, y, base),
        "a list": (list(params), X, y, base),
        "pairs": (tuple(tuple(layer) for layer in params), X, y, base),
        "without an activation": (plain, X, y, base),
        "relu": (plain, X, y, {"activation": "relu"}),
        "silu": (plain, X, y, {"activation": "silu"}),
        "tanh": (params, X, y, {"activation": "tanh"}),
        "another activation": (params, X, y, {"activation": "relu"}),
        "no activation": (params, X, y, {"activation": 1}),
        "float32": (narrow, X.astype("f4"), y, base),
        "X of another dtype": (params, X.astype("f4"), y, base),
        "X of another width": (params, X[:, :3], y, base),
        "X of one dimension": (params, X[0], y, base),
        "X in the other byte order": (params, other_order(X), y, base),
        "X a list": (params, X.tolist(), y, base),
        "another dtype among them": ((params[0], narrow[1]), X, y, base),
        "layers that do not fit": ((params[1], params[0]), X, y, base),
        "bias that does not fit": ((params[0]._replace(bias=np.zeros(5)), params[1]), X, y, base),
        "one layer": (params[:1], X, y, base),
        "fewer rows": (params, X[:7], y[:7], base),
        "no rows": (params, X[:0], y[:0], base),
        "labels of other rows": (params, X, y[:7], base),
        "int32": (params, X, y.astype("i4"), base),
        "sample_weight": (params, X, y, {"sample_weight": np.arange(20.0)}),
        "class_weight": (params, X, y, {"class_weight": np.arange(3.0)}),
        "ignore_index": (params, X, y, {"ignore_index": 1}),
        "ignore_index True": (params, X, y, {"ignore_index": True}),
        "label_smoothing": (params, X, y, {"label_smoothing": 0.1}),
        "z_loss": (params, X, y, {"z_loss": 0.1}),
        "sum": (params, X, y, {"reduction": "sum"}),
        "none": (params, X, y, {"reduction": "none"}),
        "validate False": (params, X, y + 1, {"validate": False}),
        "validate 0": (params, X, y, {"validate": 0}),
        "generic": (params, X, y, {"impl": "generic"}),
        "kernel": (params, X, y, {"impl": "kernel"}),
        "reg": (params, X, y, {"reg": 0.1}),
        "max_memory": (params, X, y, {"max_memory": 3000}),
    }


def test_every_pair_of_network_calls_is_kept_apart(rng):
    calls = network_calls(rng)

    def flat(params, X, y, options):
        loss, grads = xs.mlp_loss_and_grad(params, X, y, **options)
        return (loss, *(x for layer in grads for x in layer))

    desired = {name: fresh(flat, *call) for name, call in calls.items()}
    assert len({str(x) for x in desired.values()}) > 20
    door.forget()
    for name in [*calls, *reversed(calls), *calls]:
        assert_same(outcome(flat, *calls[name]), desired[name])


def test_gradients_keep_the_types_of_the_layers(rng):
    params = xs.init_params((4, 6, 3), rng=0, activation="tanh")
    X, y = rng.normal(size=(20, 4)), rng.integers(3, size=20)
    for _ in range(2):
        grads = xs.mlp_loss_and_grad(params, X, y)[1]
        assert [type(layer) for layer in grads] == [type(layer) for layer in params]


def test_gradients_that_do_not_fit_are_seen_after_those_that_do():
    params = xs.init_params((4, 6, 3), rng=0)
    optimizer = xs.sgd(0.1)
    state = optimizer.init(params)
    zeros = tuple(layer._replace(weight=0 * layer.weight, bias=0 * layer.bias) for layer in params)
    for _ in range(2):
        optimizer.update(params, zeros, state)
    others = {
        "fewer layers": (zeros[:1], "weights of the shapes"),
        "weights": ((zeros[0]._replace(weight=np.zeros((4, 5))), zeros[1]), "layer|weights of the shapes|bias"),
        "float32": (tuple(xs.Layer(*(x.astype("f4") for x in layer)) for layer in zeros), "dtype"),
        "lists": ([[x.tolist() for x in layer] for layer in zeros], "array"),
    }
    for _ in range(2):
        for grads, message in others.values():
            with pytest.raises((TypeError, ValueError), match=message):
                optimizer.update(params, grads, state)
        optimizer.update(params, zeros, state)


# --- flags of libraries -----------------------------------------------------------------------------------------------


def test_jax_with_and_without_float64():
    jax = pytest.importorskip("jax")
    z, y = np.linspace(-3, 3, 15).reshape(5, 3), np.arange(5) % 3
    before = jax.config.jax_enable_x64
    try:
        for x64 in (True, False, True, False):
            jax.config.update("jax_enable_x64", x64)
            for _ in range(2):
                loss, dlogits = xs.softmax_loss_and_grad(jax.numpy.asarray(z), jax.numpy.asarray(y))
                assert str(loss.dtype) == str(dlogits.dtype) == ("float64" if x64 else "float32")
                np.testing.assert_allclose(loss, xs.softmax_loss(z, y), rtol=1e-6)
    finally:
        jax.config.update("jax_enable_x64", before)


def test_pytorch_with_and_without_gradients():
    torch = pytest.importorskip("torch")
    z, y = torch.zeros(5, 3, dtype=torch.float64), torch.arange(5) % 3
    wanted = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        xs.softmax_loss(z, y)
        with torch.no_grad():
            xs.softmax_loss(wanted, y)
            xs.softmax(wanted)
        assert not xs.softmax_loss_and_grad(wanted, y)[1].requires_grad


def test_the_kernels_are_those_under_test(monkeypatch, rng):
    """A remembered call runs a kernel for NumPy, not the generic code."""
    z, y = mixed(rng, (3, 5), "float64")
    xs.softmax_loss(z, y)
    for name in ("softmax_rows", "softmax_loss_rows", "softmax_loss_total"):
        monkeypatch.setattr(generic, name, None)
    xs.softmax_loss(z / 1e6, y)
