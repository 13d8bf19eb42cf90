"""What stands in for CuPy refuses what CuPy refuses: a fault that it let pass would be found on a GPU only."""

from __future__ import annotations

import contextlib
import importlib
import operator

import launch_counter
import numpy as np
import pytest
import stand_in_cupy as cupy


@contextlib.contextmanager
def waiting_refused():
    with contextlib.ExitStack() as stack:
        with pytest.warns(UserWarning, match="will be removed"):
            stack.enter_context(cupy.allow_synchronize(False))
        yield


@pytest.fixture
def x():
    return cupy.array([3.0, 1.0, 2.0])


@pytest.mark.parametrize(
    "call",
    [
        lambda x: np.asarray(x),
        lambda x: x + np.ones(3),
        lambda x: np.ones(3) + x,
        lambda x: np.add(x, np.ones(3)),
        lambda x: x.__setitem__(slice(None), np.ones(3)),
        lambda x: cupy.called(np.stack, [x, np.ones(3)]),
    ],
)
def test_arrays_of_the_host_are_not_mixed_with_those_of_the_device(call, x):
    with pytest.raises(TypeError, match=r"Implicit conversion|Unsupported type|unsupported operand"):
        call(x)


def test_numbers_are_mixed(x):
    for result in (x + 1.0, 1.0 + x, x * np.float64(1.0) + 1, np.add(x, 1.0)):
        assert type(result) is cupy.ndarray
        np.testing.assert_array_equal(result.get(), [4.0, 2.0, 3.0])


def test_a_result_is_an_array_and_not_a_number(x):
    total = x.sum()
    assert type(total) is cupy.ndarray
    assert (total.shape, float(total)) == ((), 6.0)


@pytest.mark.parametrize("call", [lambda x: x + 1.0, lambda x: cupy.called(np.exp, x), lambda x: x[x]])
def test_arrays_of_another_device_are_refused(call):
    with cupy.Device(1):
        x = cupy.array([0, 1])
    assert x.device == cupy.Device(1) != cupy.Device()
    with pytest.raises(ValueError, match="Array device must be same as the current device: array device = 1"):
        call(x)
    with x.device:
        assert call(x).device == cupy.Device(1)


@pytest.mark.parametrize(
    "call",
    [
        *(float, bool, repr, "{}".format, cupy.ndarray.get, cupy.ndarray.item, cupy.ndarray.__reduce__),
        *(lambda x: x[x > 0], lambda x: x.__setitem__(x > 0, x[None])),
    ],
)
def test_waiting_is_refused_where_it_is_not_allowed(call):
    x = cupy.array(1.0)
    call(x)
    with waiting_refused(), pytest.raises(cupy.DeviceSynchronized):
        call(x)


def test_memory_is_shared_with_views_alone(x):
    x[1:].fill(0.0)
    np.testing.assert_array_equal(x.get(), [3.0, 0.0, 0.0])
    host = x.get()
    host[0] = 7.0
    assert float(x[0]) == 3.0
    with pytest.raises(BufferError):
        np.from_dlpack(x)


def test_a_number_is_put_where_a_mask_holds_without_waiting(x):
    with waiting_refused():
        x[x > 1.5] = 0.0
    np.testing.assert_array_equal(x.get(), [0.0, 1.0, 0.0])


def test_no_array_is_an_index(x):
    with pytest.raises(TypeError):
        operator.index(x.argmax())


@pytest.mark.parametrize(
    "call", [lambda x: x.argmax(), lambda x: cupy.called(np.argmin, x), lambda x: cupy.called(np.where, True, x, 0.0)]
)
def test_what_has_no_loop_for_bfloat16_is_refused(call, x):
    kind = pytest.importorskip("ml_dtypes").bfloat16
    call(x)
    with pytest.raises(TypeError, match="bfloat16"):
        call(x.astype(kind))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x * 0.5,
        lambda x: x.__imul__(0.5),
        lambda x: cupy.called(np.exp, x * 0.0 - 90.0),
        lambda x: cupy.called(np.multiply, x, 0.5, out=x),
    ],
)
def test_subnormal_numbers_of_float32_become_zero(call):
    for dtype, lost in (("f4", True), ("f8", False)):
        tiny = np.finfo(dtype).smallest_normal
        assert (call(cupy.array([tiny, -tiny], dtype)).get() == 0.0).all() == lost


def test_subnormal_numbers_of_float32_are_taken_for_zero():
    x = cupy.array([1e-40], "f4")
    assert not (x * 1e10).get().any()
    assert not (x != 0.0).get().any()


def test_numbers_are_cast_on_the_host():
    x = cupy.array([1.0], "f4")
    with pytest.warns(RuntimeWarning, match="overflow"):
        x = x * 1e200
    assert np.isinf(x.get()).all()


def test_copies_keep_subnormal_numbers():
    x = cupy.array(np.array([1e-40], "f4"))
    assert x.copy().get() == x.reshape(1, 1).get() == x[:1].get() == np.float32(1e-40)


def test_it_has_nothing_that_cupy_lacks():
    real = pytest.importorskip("cupy", reason="CuPy is not installed")
    if hasattr(real, "stands_in"):
        pytest.skip("it stands in for CuPy")
    for part in cupy.modules():
        names = [name for name in vars(part) if not name.startswith("_") and name != "stands_in"]
        there = importlib.import_module(part.__name__)
        assert [name for name in names if not hasattr(there, name)] == [], part.__name__
    assert [name for name in dir(cupy.ndarray) if not hasattr(real.ndarray, name)] == ["_array", "_device"]


@pytest.mark.parametrize(
    ("call", "launches"),
    [
        (lambda x: x + 1.0, ["add"]),
        (lambda x: x.__iadd__(1.0), ["iadd"]),
        (lambda x: x.sum() * 2, ["sum", "mul"]),
        (lambda x: cupy.called(np.where, x > 1, x, 0.0), ["gt", "where"]),
        (lambda x: cupy.called(np.add, x, 1.0, out=x), ["add"]),
        (lambda x: x[None] @ x[:, None], ["matmul"]),
        (lambda x: (x[1:], x.T, x.reshape(3, 1), x[None, ::-1]), []),
        (lambda x: x[cupy.array([0])], ["copy to the device", "getitem"]),
        (lambda x: x.__setitem__(0, 1.0), ["setitem"]),
        (lambda x: x.fill(1.0), ["fill"]),
        (lambda x: (x.astype(np.float32), x.astype(x.dtype, copy=False), x.copy()), ["astype", "copy"]),
        (lambda x: (cupy.asarray(x), cupy.array(x)), ["copy"]),
        (lambda x: (cupy.called(np.empty, 3), cupy.called(np.zeros_like, x)), ["zeros_like"]),
        (lambda x: cupy.ascontiguousarray(cupy.ascontiguousarray(x)[::2]), ["copy"]),
        (lambda x: launch_counter.raw_module(code="", options=(), backend="nvrtc").get_function("f")(
            (1,), (1,), (x,), shared_mem=0), ["kernel f"]),
    ],
)  # fmt: skip
def test_launches_are_counted(call, launches, x):
    call(x)
    with launch_counter.counted() as count:
        call(x)
    assert count == (launches, [])
    call(x)
    assert count == (launches, []), "counted after the end"


def test_waits_are_counted(x):
    with launch_counter.counted() as count:
        float(x[0])
        x.get()
    assert count == ([], ["wait", "wait"])
