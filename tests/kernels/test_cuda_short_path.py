"""Losses of plain CuPy arrays, by the public functions on a fake CuPy: a launch for the rows and their sum.

With --kernels only (nox -s kernels). Nothing else may be launched, no label copied, and nothing waited for.
"""

from __future__ import annotations

from types import ModuleType

import array_api_compat.numpy
import cuda_on_cpu as cpu
import numpy as np
import pytest
from fake_cupy import Recorder, array, only_launches

import xpsoftmax as xs
from xpsoftmax import kernels
from xpsoftmax._arguments import checks, door, home
from xpsoftmax._arguments import out as checks_of_out
from xpsoftmax._typing import LossSpec

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(cpu.unusable() is not None, reason=f"CUDA cannot be run on this CPU: {cpu.unusable()}"),
]

ROWS, CLASSES = 7, 300
EPS = {"float16": 2.0**-10, "float32": 2.0**-18, "float64": 2.0**-45}
LABEL_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
OPTIONS = {"none": {}, "smoothing": {"label_smoothing": 0.1}, "z-loss": {"z_loss": 0.01}}


class Namespace(ModuleType):
    """NumPy's functions under the name of CuPy."""

    def __init__(self):
        super().__init__("cupy")
        self.__dict__.update({k: v for k, v in vars(array_api_compat.numpy).items() if not k.startswith("_")})
        self.where = lambda *args: array(np.where(*args))


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder(90)
    cuda = recorder.backend(monkeypatch)
    # The arrays of the fake are arrays of NumPy, too: for the checks they are not.
    kind, namespace = recorder.module.ndarray, Namespace()
    device, of_array = home.device, checks.array_namespace
    monkeypatch.setattr(checks, "array_namespace", lambda x: namespace if type(x) is kind else of_array(x))
    monkeypatch.setattr(home, "device", lambda x: x.device if type(x) is kind else device(x))
    for module in (checks, checks_of_out):
        monkeypatch.setattr(module, "is_numpy_array", lambda x: type(x) is np.ndarray)
    monkeypatch.setattr(door, "SEEN", dict(door.SEEN))
    backend = kernels.Backend("cupy", lambda x: isinstance(x, recorder.module.ndarray), lambda: cuda)
    monkeypatch.setattr(
        kernels, "BACKENDS", (backend, kernels.BACKENDS[0]._replace(takes=lambda x: type(x) is np.ndarray))
    )
    return recorder


def problem(rng, dtype="float32", kind="int64", rows=ROWS):
    z = (rng.normal(size=(rows, CLASSES)) * 4).astype(dtype)
    return z, rng.integers(min(CLASSES, np.iinfo(kind).max), size=rows).astype(kind)


def close(actual, desired, dtype):
    np.testing.assert_allclose(np.asarray(actual), desired, rtol=EPS[dtype], atol=0)


def names(recorder):
    return [launch.kernel for launch in recorder.launches]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", LABEL_TYPES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_one_launch_for_the_rows_and_their_sum(recorder, rng, dtype, kind, reduction):
    z, y = problem(rng, dtype, kind)
    given, labels = array(z), array(y)
    with only_launches() as waits:
        loss, dlogits = xs.softmax_loss_and_grad(given, labels, reduction=reduction, validate=False)
    desired = xs.softmax_loss_and_grad(z, y, reduction=reduction, impl="generic")
    close(loss, desired[0], "float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(dlogits, desired[1], rtol=EPS[dtype], atol=2.0**-24 if dtype == "float16" else 0)
    assert loss.shape == desired[0].shape
    assert names(recorder) == ["softmax_loss"]
    assert recorder.launches[0].arguments[2] == labels.data.ptr
    assert waits == []


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("function", [xs.softmax_loss, xs.softmax_loss_and_grad])
def test_options_that_weigh_no_row(recorder, rng, function, option):
    z, y = problem(rng, "float64", "uint16")
    with only_launches() as waits:
        result = function(array(z), array(y), validate=False, **OPTIONS[option])
    desired = function(z, y, impl="generic", **OPTIONS[option])
    for actual, wanted in zip(result, desired, strict=True) if type(desired) is tuple else [(result, desired)]:
        np.testing.assert_allclose(np.asarray(actual), wanted, rtol=1e-12, atol=1e-15)  # sums of terms of any sign
    assert len(recorder.launches) == (1 if option == "none" else 2)
    assert waits == []


def test_a_launch_is_kept_for_the_layout_and_not_for_the_arrays(recorder, rng):
    """The launch of a first call is used again for other arrays, and for none of another layout, weight or option."""
    cuda = kernels.BACKENDS[0].load()
    for rows, dtype, kind, weight, smoothing, wide in (
        (ROWS, "float32", "int64", 0.5, 0.0, False),
        (ROWS, "float32", "int64", 0.5, 0.0, False),
        (ROWS, "float32", "int64", 2.0, 0.0, False),
        (ROWS, "float32", "int32", 0.5, 0.0, False),
        (ROWS, "float32", "int64", 0.5, 0.25, False),
        (ROWS, "float64", "int64", 0.5, 0.0, False),
        (ROWS + 2, "float32", "int64", 0.5, 0.0, False),
        (ROWS, "float16", "int64", 0.5, 0.0, False),
        (ROWS, "float16", "int64", 0.5, 0.0, True),
        (ROWS, "float32", "int64", 0.5, 0.0, False),
    ):
        z, y = problem(rng, dtype, kind, rows)
        out = array(np.zeros(z.shape, "f4")) if wide else None
        given, spec = array(z), LossSpec(label_smoothing=smoothing)
        loss, dlogits = cuda.softmax_loss_total(given, array(y), weight, spec, grad=True, out=out)
        desired = xs.softmax_loss_and_grad(
            z,
            y,
            reduction="sum",
            label_smoothing=smoothing,
            impl="generic",
            out=np.empty(z.shape, "f4") if wide else None,
        )
        close(loss, weight * desired[0], "float64" if dtype == "float64" else "float32")
        atol = 2.0**-24 if dtype == "float16" and not wide else 1e-7 if smoothing else 0
        rtol = EPS["float32" if wide else dtype]
        np.testing.assert_allclose(dlogits.astype("f8"), weight * desired[1].astype("f8"), rtol=rtol, atol=atol)
        assert recorder.launches[0].arguments[0] == given.data.ptr
        recorder.launches.clear()


def test_arrays_that_must_be_copied_first(recorder, rng):
    """Labels and logits whose neighbours are apart in memory go through copies."""
    z, y = problem(rng)
    cuda = kernels.BACKENDS[0].load()
    desired = xs.softmax_loss_and_grad(z, y, reduction="sum", impl="generic")
    apart = array(np.repeat(y, 2))[::2]
    for logits, labels in ((array(z), apart), (array(np.asfortranarray(z)), array(y))):
        losses, dlogits = cuda.softmax_loss_rows(logits, labels, 1.0, LossSpec(), grad=True)
        close(losses.sum(), desired[0], "float32")
        close(dlogits, desired[1], "float32")


@pytest.mark.parametrize("which", ["new", "logits themselves", "another"])
@pytest.mark.parametrize("function", [xs.softmax, xs.log_softmax])
def test_softmax_is_one_launch(recorder, rng, function, which):
    z = problem(rng)[0]
    given = array(z.copy())
    out = {"new": None, "logits themselves": given, "another": array(np.zeros_like(z))}[which]
    with only_launches() as waits:
        result = function(given, out=out)
    assert out is None or result is out
    close(result, function(z, impl="generic"), "float32")
    assert names(recorder) == [function.__name__]
    assert waits == []


def test_softmax_of_other_layouts_is_checked(recorder, rng):
    z = problem(rng)[0]
    for out in (array(np.zeros(z.shape, "f8")), array(np.zeros((2, *z.shape), "f4"))):
        with pytest.raises((TypeError, ValueError), match=r"^out must"):
            xs.softmax(array(z), out=out)
    assert names(recorder) == []


@pytest.mark.parametrize("which", ["logits themselves", "another"])
def test_into_an_output(recorder, rng, which):
    z, y = problem(rng)
    given = array(z.copy())
    out = given if which == "logits themselves" else array(np.zeros_like(z))
    with only_launches():
        _, dlogits = xs.softmax_loss_and_grad(given, array(y), out=out, validate=False)
    assert dlogits is out
    close(out, xs.softmax_loss_and_grad(z, y, impl="generic")[1], "float32")
    assert len(recorder.launches) == 1


def test_many_rows_have_more_than_one_part(recorder, rng):
    rows = 16_384 + 3
    z = rng.normal(size=(rows, 2)).astype("f4")
    y = np.zeros(rows, "u1")
    with only_launches():
        loss = xs.softmax_loss(array(z), array(y), validate=False)
    close(loss, xs.softmax_loss(z, y), "float32")
    assert names(recorder) == ["softmax_loss", "total", "total"]


@pytest.mark.parametrize(("kind", "bad"), [("int8", -1), ("int64", CLASSES), ("uint64", 2**64 - 1), ("uint64", 2**63)])
def test_a_bad_label_makes_its_own_row_nan(recorder, rng, kind, bad):
    z, y = problem(rng, kind=kind)
    y[2] = bad
    with only_launches():
        losses, dlogits = xs.softmax_loss_and_grad(array(z), array(y), reduction="none", validate=False)
    assert np.isnan(losses).tolist() == [row == 2 for row in range(ROWS)]
    assert np.isnan(dlogits).all(axis=1).tolist() == [row == 2 for row in range(ROWS)]
    assert len(recorder.launches) == 1


@pytest.mark.parametrize("kind", LABEL_TYPES)
def test_labels_are_looked_at_in_one_launch_and_waited_for_once(recorder, rng, kind):
    z, y = problem(rng, kind=kind)
    with only_launches() as waits:
        loss = xs.softmax_loss(array(z), array(y))
    close(loss, xs.softmax_loss(z, y), "float32")
    assert names(recorder) == ["bad_labels", "softmax_loss"]
    assert len(waits) == 1


@pytest.mark.parametrize(("kind", "bad"), [("int8", -1), ("int16", CLASSES), ("uint64", 2**64 - 1)])
def test_a_bad_label_is_an_error(recorder, rng, kind, bad):
    z, y = problem(rng, kind=kind)
    y[2] = bad
    with pytest.raises(ValueError, match=rf"^targets must be labels from 0 to 299 .* got {bad} at row 2\.$"):
        xs.softmax_loss(array(z), array(y))
    assert names(recorder) == ["bad_labels"]


def outcome(given, labels, out=None, **options):
    try:
        return [np.asarray(x) for x in xs.softmax_loss_and_grad(given, labels, out=out, **options)]
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def test_other_calls_after_a_plain_one_are_checked(recorder, rng):
    """Other layouts, weights, bad options and outputs that do not fit have keys of their own."""
    z, y = (array(x) for x in problem(rng))
    memory = array(np.zeros(2 * z.size + 1, "f4"))
    beside, over = memory[: z.size].reshape(z.shape), memory[1 : z.size + 1].reshape(z.shape)
    calls = [(z, labels, {}) for labels in (y.astype("f4"), y[:-1], np.asarray(y), y.astype(">i8"), y.astype("u1"))]
    calls += [(z, array(np.repeat(y, 2))[::2], {}), (array(np.asfortranarray(z)), y, {}), (z[:0], y[:0], {})]
    calls += [(logits, y, {}) for logits in (z.astype("i4"), z.astype(">f4"), z[None], np.asarray(z))]
    calls += [(beside, y, {"out": out}) for out in (over, z.astype("f8"), z[:-1], np.zeros(z.shape, "f4"))]
    options = (
        {"sample_weight": y.astype("f4")},
        {"ignore_index": int(y[0])},
        {"label_smoothing": 1.5},
        {"label_smoothing": True},
        {"z_loss": float("nan")},
        {"reduction": "average"},
        {"validate": 1},
        {"axis": 0},
        {"axis": True},
        {"axis": 1.0},
    )
    calls += [(z, y, option) for option in options]
    desired = []
    for logits, labels, option in calls:
        door.forget()
        desired.append(outcome(logits, labels, **option))
    door.forget()
    for _ in range(3):
        assert type(outcome(z, y)) is list
    for _ in range(2):
        for (logits, labels, option), wanted in zip(calls, desired, strict=True):
            got = outcome(logits, labels, **option)
            assert type(got) is type(wanted), (option, got, wanted)
            if type(wanted) is tuple:
                assert got == wanted
            else:
                for one, other in zip(got, wanted, strict=True):
                    np.testing.assert_array_equal(one, other)
    assert sum(type(wanted) is tuple for wanted in desired) >= 12


def test_labels_that_share_memory_with_the_output(recorder, rng):
    z = array(problem(rng)[0])
    inside = z.reshape(-1).view("i4")[:ROWS]
    inside[...] = 1
    for _ in range(3):
        xs.softmax_loss_and_grad(z.copy(), inside, out=array(np.zeros_like(z)))
    with pytest.raises(ValueError, match=r"^out must share no memory with targets, got an overlapping array\.$"):
        xs.softmax_loss_and_grad(array(np.asarray(z)), inside, out=z)
