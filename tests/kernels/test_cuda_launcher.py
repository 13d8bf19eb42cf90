"""The launcher on a fake CuPy: every layout and option goes into the right launch, whose kernel runs on the CPU.

With --kernels only (nox -s kernels). The generic code is the reference: that the kernels keep the contract is tested in
test_kernels_cuda.py.
"""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace

import _gpu_counts
import cuda_on_cpu as cpu
import numpy as np
import pytest
from assertions import assert_same_bits
from fake_cupy import MULTIPROCESSORS, Recorder, array

import xpsoftmax as xs
from xpsoftmax._train.optimizers import VelocitySgd
from xpsoftmax._typing import LossSpec
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.activations import ACTIVATIONS
from xpsoftmax.kernels.cuda import plan, sizes, table_plan
from xpsoftmax.kernels.rules import Rule

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(cpu.unusable() is not None, reason=f"CUDA cannot be run on this CPU: {cpu.unusable()}"),
]

ROWS, CLASSES = 5, 37
ROWWISE = ("softmax_rows", "log_softmax_rows")
LAYOUTS = {
    "c-order": lambda z: z,
    "fortran": np.asfortranarray,
    "strided": lambda z: np.repeat(z, 2, axis=1)[:, ::2],
    "rows apart": lambda z: np.repeat(z, 2, axis=0)[::2],
    "reversed": lambda z: z[::-1, ::-1].copy()[::-1, ::-1],
    "rows backwards": lambda z: z[::-1].copy()[::-1],
    "part of a wider one": lambda z: np.pad(z, ((1, 1), (3, 5)))[1:-1, 3:-5],
    "one row again and again": lambda z: np.broadcast_to(z[:1], z.shape),
}
EPS = {"float16": 2.0**-10, "float32": 2.0**-18, "float64": 2.0**-47}


@pytest.fixture(params=[75, 90])
def recorder(request):
    return Recorder(request.param)


@pytest.fixture
def cuda(recorder, monkeypatch):
    return recorder.backend(monkeypatch)


@pytest.fixture
def launches(recorder, cuda):
    return recorder.modules["launches"]


def close(actual, desired):
    assert actual.dtype == desired.dtype
    assert actual.shape == desired.shape
    np.testing.assert_allclose(np.asarray(actual), desired, rtol=EPS[str(desired.dtype)], atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_layout(cuda, rng, layout, dtype):
    z = array(LAYOUTS[layout](rng.normal(size=(ROWS, CLASSES)).astype(dtype)))
    plain = np.array(z)
    for operation in ROWWISE:
        close(getattr(cuda, operation)(z), getattr(generic, operation)(plain))
    close(cuda.logsumexp_rows(z), generic.logsumexp_rows(plain))
    y, w = rng.integers(CLASSES, size=ROWS), rng.uniform(0.5, 2, ROWS).astype(cpu.working(dtype))
    for actual, desired in zip(
        cuda.softmax_loss_rows(z, array(y), array(w), LossSpec(), grad=True),
        generic.softmax_loss_rows(plain, y, w, LossSpec(), grad=True),
        strict=True,
    ):
        close(actual, desired)
    np.testing.assert_array_equal(z, plain)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "again" not in name])
@pytest.mark.parametrize("which", ["logits themselves", "another", "a wider type"])
def test_out(cuda, rng, layout, which):
    dtype = "float16" if which == "a wider type" else "float32"
    z = array(LAYOUTS[layout](rng.normal(size=(ROWS, CLASSES)).astype(dtype)))
    plain, y, w = np.array(z), rng.integers(CLASSES, size=ROWS), np.ones(ROWS, "f4")
    out = z if which == "logits themselves" else array(LAYOUTS[layout](np.zeros(z.shape, "f4")))
    _, dlogits = cuda.softmax_loss_rows(z, array(y), array(w), LossSpec(), grad=True, out=out)
    assert dlogits is out
    close(out, generic.softmax_loss_rows(plain.astype("f4"), y, w, LossSpec(), grad=True)[1])
    z[...] = plain
    assert cuda.softmax_rows(z, out=out) is out
    close(out, generic.softmax_rows(plain.astype("f4")))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1},
        {"label_smoothing": 1e-9, "z_loss": 1e-9},
        {"z_loss": 0.1},
        {"class_weight": True, "label_smoothing": 0.3},
    ],
)
def test_options_reach_the_kernel(cuda, recorder, rng, soft, options):
    z, w = rng.normal(size=(ROWS, CLASSES)), rng.uniform(0.5, 2, ROWS)
    q = rng.dirichlet(np.ones(CLASSES), ROWS) if soft else rng.integers(CLASSES, size=ROWS)
    per_class = rng.uniform(0.5, 2, CLASSES)
    spec = LossSpec(**{**options, **({"class_weight": per_class} if "class_weight" in options else {})})
    given = spec if spec.class_weight is None else LossSpec(array(per_class), spec.label_smoothing, spec.z_loss)
    losses, dlogits = cuda.softmax_loss_rows(array(z), array(q), array(w), given, grad=True)
    desired = generic.softmax_loss_rows(z, q, w, spec, grad=True)
    close(losses, desired[0])
    np.testing.assert_allclose(np.asarray(dlogits), desired[1], rtol=1e-12, atol=1e-15)  # sums of terms of any sign
    plain = "softmax_loss_smoothed" if options == {"label_smoothing": 0.1} else "softmax_loss"
    masses = soft or "z_loss" in options or "class_weight" in options
    assert recorder.launches[-1].kernel == ("softmax_loss_of_masses" if masses else plain)
    assert cuda.softmax_loss_rows(array(z), array(q), array(w), given, grad=False)[1] is None


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_labels_are_read_in_their_own_type(cuda, rng, dtype):
    z, y, w = rng.normal(size=(ROWS, CLASSES)), rng.integers(CLASSES, size=ROWS), np.ones(ROWS)
    losses, _ = cuda.softmax_loss_rows(array(z), array(y.astype(dtype)), array(w), LossSpec(), grad=False)
    close(losses, generic.softmax_loss_rows(z, y, w, LossSpec(), grad=False)[0])


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "again" not in name])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_layers_are_one_launch_forward_and_one_back(cuda, recorder, rng, layout, activation):
    z, bias = LAYOUTS[layout](rng.normal(size=(ROWS, CLASSES))), rng.normal(size=2 * CLASSES)[::2]
    value, slope = generic.bias_activation(z, bias, activation, grad=True)
    given = array(z.copy(order="K"))
    for out in (None, array(np.asfortranarray(np.zeros(z.shape)))):
        given[...] = z
        found, kept = cuda.bias_activation(given, array(bias), activation, grad=True, out=out)
        close(found, value)
        if slope is None:
            assert kept is None
        else:
            close(kept, slope)
            assert activation.kept == "value" or out is None or kept is out
    delta = array(LAYOUTS[layout](rng.normal(size=z.shape)).copy(order="K"))
    desired = generic.activation_backward(np.array(delta), slope, activation)
    assert cuda.activation_backward(delta, kept, activation) is delta
    close(delta, desired)
    assert len(recorder.launches) == (2 if slope is None else 3)


def test_without_a_gradient_no_slopes_are_written(cuda, recorder):
    z = array(np.ones((ROWS, CLASSES)))
    value, slope = cuda.bias_activation(z, array(np.ones(CLASSES)), ACTIVATIONS["relu"], grad=False)
    assert value is z
    assert slope is None
    assert (z == 2).all()


@pytest.mark.parametrize("flag", [None, True, False])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "velocity", "nesterov velocity", "adam", "adamw"])
def test_the_updates_of_all_parameters_are_one_launch(cuda, recorder, rng, name, in_place, flag):
    optimizer = {
        "sgd": xs.sgd(0.1),
        "momentum": xs.sgd(0.1, 0.9),
        "nesterov": xs.sgd(0.1, 0.9, nesterov=True),
        "velocity": VelocitySgd(0.1, 0.9, nesterov=False),
        "nesterov velocity": VelocitySgd(0.1, 0.9, nesterov=True),
        "adam": xs.adam(0.1),
        "adamw": xs.adamw(0.1),
    }[name]
    rule, numbers = optimizer.rule(0.1, 3)
    for dtype, order in (("float32", "C"), ("float64", "C"), ("float32", "F")):
        values = rng.normal(size=(2 + optimizer.kept, 7, 41)).astype(dtype)
        values[2 if optimizer.kept == 2 else 0] **= 2
        *arrays, grad = (array(np.asarray(a, order=order)) for a in values)
        ok = None if flag is None else array(np.array(flag))
        desired = generic.parameter_update(rule, list(values[:-1]), values[-1], numbers, ok=flag)
        found, other = cuda.parameter_updates(
            rule, [arrays, [x.copy() for x in arrays]], [grad, grad], numbers, ok=ok, in_place=in_place
        )
        for got, wanted in zip(other, desired, strict=True):
            assert_same_bits(np.asarray(got), wanted)
        for got, wanted, given, value in zip(found, desired, arrays, values, strict=False):
            assert_same_bits(np.asarray(got), wanted)
            assert (got is given) == (in_place and order == "C")
            if not in_place:
                assert_same_bits(np.asarray(given), value)
        assert_same_bits(np.asarray(grad), values[-1])
    assert [launch.kernel for launch in recorder.launches] == ["parameter_update"] * 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["c-order", "fortran", "rows apart"])
@pytest.mark.parametrize("rows", [1, 5, table_plan.ROWS_OF_A_PART, 2 * table_plan.ROWS_OF_A_PART + 3])
def test_rows_are_summed_in_parts(cuda, recorder, rng, dtype, layout, rows):
    x = array(LAYOUTS[layout](rng.normal(size=(rows, CLASSES)).astype(dtype)))
    exact = np.asarray(x, np.longdouble)
    error = np.abs(np.asarray(cuda.sum_of_rows(x)) - exact.sum(axis=0))
    assert (error <= 12 * np.finfo(dtype).eps * np.abs(exact).sum(axis=0) / min(rows, 8)).all()
    assert [launch.kernel for launch in recorder.launches] == ["sum_of_rows"] * (1 + (rows > table_plan.ROWS_OF_A_PART))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 41), (plan.TOTAL_PART + 3, 1)])
@pytest.mark.parametrize("strength", ["number", "array"])
def test_penalties_and_their_gradients(cuda, recorder, rng, dtype, shape, strength):
    weights, grads = ([rng.normal(size=size).astype(dtype) for size in (shape, (3, 2))] for _ in range(2))
    reg = 0.3 if strength == "number" else array(np.array(0.3, dtype))
    exact = 1.25 + 0.15 * sum((weight.astype("f8") ** 2).sum() for weight in weights)
    loss = array(np.array(1.25, dtype))
    for order in "CF":
        given = [array(np.array(grad, order=order)) for grad in grads]
        value, added = cuda.weight_penalties([array(np.array(w, order=order)) for w in weights], given, reg, loss)
        assert value.shape == ()
        assert abs(float(value) - exact) <= 8 * np.finfo(dtype).eps * exact
        for found, grad, old, weight in zip(added, given, grads, weights, strict=True):
            assert found is grad
            assert_same_bits(np.asarray(found), old + np.dtype(dtype).type(0.3) * weight)
    value, added = cuda.weight_penalties(list(map(array, weights)), None, reg, loss)
    assert added is None
    assert abs(float(value) - exact) <= 8 * np.finfo(dtype).eps * exact
    assert float(loss) == 1.25
    assert [launch.kernel for launch in recorder.launches] == ["weight_penalty"] * 3
    recorder.capturing = True
    captured, _ = cuda.weight_penalties(list(map(array, weights)), None, reg, loss)
    assert abs(float(captured) - exact) <= 8 * np.finfo(dtype).eps * exact
    assert recorder.launches[-1].kernel == "total", "a counter was used within a capture"


def test_nothing_is_launched_for_nothing(cuda, recorder):
    assert cuda.sum_of_rows(array(np.zeros((0, 3), "f4"))).tolist() == [0, 0, 0]
    empty = array(np.zeros((0, 3), "f4"))
    (after,) = cuda.parameter_updates(xs.sgd(1.0).rule(1.0, 1)[0], [[empty]], [empty], (1.0,))
    assert after[0].shape == (0, 3)
    assert recorder.launches == []


def test_a_weight_without_inputs_has_no_penalty(cuda, rng):
    weights = [array(np.zeros((0, 3), "f4")), array(np.ones((3, 2), "f4"))]
    grads = [array(np.zeros((0, 3), "f4")), array(np.zeros((3, 2), "f4"))]
    value, added = cuda.weight_penalties(weights, grads, 0.5, array(np.array(1, "f4")))
    assert float(value) == 2.5
    assert added[0].shape == (0, 3)
    assert (np.asarray(added[1]) == 0.5).all()


def test_numbers_beyond_the_dtype_warn_of_nothing(cuda, recorder):
    rule, numbers = xs.sgd(1e200).rule(1e200, 1)
    ((found,),) = cuda.parameter_updates(rule, [[array(np.ones(3, "f4"))]], [array(np.ones(3, "f4"))], numbers)
    assert np.isneginf(found).all()
    z, y = array(np.zeros((1, 2), "f4")), array(np.zeros(1, "i8"))
    losses, _ = cuda.softmax_loss_rows(z, y, 1.0, LossSpec(z_loss=1e200), grad=False)
    assert np.isinf(losses).all()


def test_a_rule_without_a_kernel_is_computed_by_the_generic_text(cuda, recorder):
    # Its name is that of a rule with a kernel: the look-up must not go by names.
    ascent = Rule("sgd", lambda p, g, rate: (p + rate * g,))

    ((found,),) = cuda.parameter_updates(ascent, [[array(np.ones(3))]], [array(np.ones(3))], (0.5,))
    assert (np.asarray(found) == 1.5).all()
    assert recorder.launches == []


def test_no_rows_need_no_launch(cuda, recorder):
    z = array(np.zeros((0, 3), "f4"))
    assert cuda.softmax_rows(z).shape == (0, 3)
    assert cuda.logsumexp_rows(z).shape == (0,)
    losses, dlogits = cuda.softmax_loss_rows(
        z, array(np.zeros(0, "i8")), array(np.zeros(0, "f4")), LossSpec(), grad=True
    )
    assert (losses.shape, dlogits.shape) == ((0,), (0, 3))
    value, slope = cuda.bias_activation(z, array(np.zeros(3, "f4")), ACTIVATIONS["tanh"], grad=True)
    assert cuda.activation_backward(value, slope, ACTIVATIONS["tanh"]).shape == (0, 3)
    assert recorder.launches == []


def test_a_specialisation_is_compiled_once(cuda, recorder):
    for _ in range(3):
        cuda.softmax_rows(array(np.zeros((2, 5), "f4")))
    assert recorder.compiled == ["softmax"]
    assert len(recorder.launches) == 3


def test_every_launch_of_a_call_can_be_listed(cuda, recorder, rng):
    """scripts/gpu_check.py compares a call with a bare launch of the same arguments; so do those that are kept."""
    z, labels = array(rng.normal(size=(ROWS, 3))), array(rng.integers(3, size=ROWS))
    calls = {
        "kept": lambda: cuda.softmax_loss_total(z, labels, 0.5, LossSpec(), grad=True),
        "plain rows": lambda: cuda.softmax_rows(z),
        "with weights": lambda: cuda.softmax_loss_rows(z, labels, array(np.ones(ROWS)), LossSpec(), grad=True),
    }
    for name, call in calls.items():
        call()
        recorder.launches.clear()
        found = _gpu_counts.launches_of(call)
        assert [*map(len, found)] == [len(launch.arguments) for launch in recorder.launches] == [len(found[0])], name


def plain_total(cuda, rng, rows=ROWS, **options):
    z, y = rng.normal(size=(rows, CLASSES)), rng.integers(CLASSES, size=rows)
    total, _ = cuda.softmax_loss_total(array(z), array(y), 0.5, LossSpec(**options), grad=False)
    close(total, generic.softmax_loss_total(z, y, np.full(rows, 0.5), LossSpec(**options), grad=False)[0])


@pytest.mark.parametrize("rows", [1, ROWS, plan.MOST_ROWS_IN_ONE_LAUNCH, plan.MOST_ROWS_IN_ONE_LAUNCH + 1])
def test_a_plain_loss_is_one_launch_for_not_many_rows(cuda, recorder, rng, rows):
    plain_total(cuda, rng, rows)
    plain_total(cuda, rng, rows)  # the counter is 0 again
    names = ["softmax_loss"] + ["total"] * (rows > plan.MOST_ROWS_IN_ONE_LAUNCH)
    assert [launch.kernel for launch in recorder.launches] == 2 * names


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"z_loss": 0.1}])
def test_a_loss_with_options_is_two_launches(cuda, recorder, rng, options):
    plain_total(cuda, rng, **options)
    assert [launch.kernel for launch in recorder.launches][1] == "total"


def test_a_launch_that_is_captured_has_no_counter(cuda, recorder, rng):
    """It may be replayed on several streams at once."""
    recorder.capturing = True
    plain_total(cuda, rng)
    assert [launch.kernel for launch in recorder.launches] == ["softmax_loss", "total"]


def test_each_stream_has_a_counter_of_its_own(cuda, recorder, rng):
    seen = []
    counters = recorder.modules["counters"]
    for recorder.stream in (7, 8, 7, counters.PER_THREAD):
        plain_total(cuda, rng)
        seen.append(int(recorder.launches[-1].arguments[-3]))
    thread = threading.Thread(
        target=lambda: (plain_total(cuda, rng), seen.append(int(recorder.launches[-1].arguments[-3])))
    )
    thread.start()
    thread.join()
    assert seen[0] == seen[2]
    assert len({*seen}) == 4


@pytest.mark.parametrize("capability", [75, 90])
def test_a_persistent_kernel_gets_as_many_blocks_as_run_at_once(rng, monkeypatch, capability):
    recorder = Recorder(capability)
    cuda = recorder.backend(monkeypatch)
    z = rng.normal(size=(2 * MULTIPROCESSORS + 1, 8_000))
    close(cuda.softmax_rows(array(z)), generic.softmax_rows(z))
    assert recorder.launches[-1].grid == MULTIPROCESSORS
    cuda.softmax_rows(array(z[:2]))
    assert recorder.launches[-1].grid == min(2, MULTIPROCESSORS)


@pytest.mark.parametrize("at_once", [0, 2])
def test_a_persistent_cluster_asks_the_driver(recorder, cuda, launches, rng, monkeypatch, at_once):
    """Where the driver does not say how many run at once, each row has a cluster of its own."""
    asked = []

    class Library:
        def cuOccupancyMaxActiveClusters(self, count, function, config):  # noqa: N802 - the driver's name
            asked.append((config._obj.grid_x, config._obj.block_x))
            count._obj.value = at_once
            return 0

    monkeypatch.setattr(launches, "ctypes", SimpleNamespace(**{**vars(ctypes), "CDLL": lambda name: Library()}))
    z = rng.normal(size=(5, 40_000))
    close(cuda.softmax_rows(array(z)), generic.softmax_rows(z))
    launch = recorder.launches[-1]
    if launch.cluster > 1:
        assert asked == [(launch.cluster, launch.block)]
        assert launch.grid == launch.cluster * (at_once or 5)


@pytest.mark.parametrize("classes", [33_000, 128_256])
def test_a_ring_gets_its_shared_memory(recorder, cuda, launches, rng, monkeypatch, classes):
    """The function is allowed to have it, the driver is asked with it, and the launch has it."""
    asked = []

    class Library:
        def cuOccupancyMaxActiveClusters(self, count, function, config):  # noqa: N802 - the driver's name
            asked.append((config._obj.grid_x, config._obj.block_x, config._obj.shared))
            count._obj.value = 2
            return 0

    monkeypatch.setattr(launches, "ctypes", SimpleNamespace(**{**vars(ctypes), "CDLL": lambda name: Library()}))
    z = rng.normal(size=(5, classes)).astype("f4")
    y, w = rng.integers(classes, size=5), np.ones(5, "f4")
    close(cuda.softmax_rows(array(z)), generic.softmax_rows(z))
    losses, grad = cuda.softmax_loss_rows(array(z), array(y), 1.0, LossSpec(), grad=True)
    exact = generic.softmax_loss_rows(z.astype("f8"), y, w.astype("f8"), LossSpec(), grad=True)
    np.testing.assert_allclose(losses, exact[0], rtol=1e-5)
    np.testing.assert_allclose(grad, exact[1], rtol=1e-4, atol=0)
    cuda.softmax_loss_rows(array(z), array(y), array(w), LossSpec(), grad=True)
    rings = recorder.launches
    if launches.capability_of(0) < sizes.CLUSTERS_FROM:
        assert not any(launch.shared_bytes for launch in rings)
        return
    for launch in rings:
        assert launch.shared_bytes > 128 * 1024
        assert launch.grid == 2 * launch.cluster
    assert asked == [(rings[0].cluster, 512, rings[0].shared_bytes)] * 2  # once for each kernel


def test_without_a_driver_there_is_no_answer(launches, monkeypatch):
    assert launches._clusters_at_once(0, 512, 2, 0) == 0
    library = SimpleNamespace(cuOccupancyMaxActiveClusters=lambda count, function, config: 1)  # an error
    monkeypatch.setattr(launches, "ctypes", SimpleNamespace(**{**vars(ctypes), "CDLL": lambda name: library}))
    assert launches._clusters_at_once(0, 512, 2, 0) == 0


def test_what_is_refused(cuda, recorder):
    z = array(np.zeros((2, 5), "f4"))
    assert cuda.refusal(z) is None
    many = np.broadcast_to(np.zeros(1, "i1"), (1, plan.MOST_CLASSES + 1))
    assert cuda.refusal(array(many)) == "its kernels take at most 2147483631 classes"
    recorder.module.cuda.runtime.is_hip = True
    assert cuda.refusal(z) == "its kernels are written for NVIDIA GPUs"


def test_an_old_gpu_is_refused(monkeypatch):
    cuda = Recorder(61).backend(monkeypatch)
    reason = "its kernels need compute capability 7.5, and the device has 6.1"
    assert cuda.refusal(array(np.zeros((2, 5), "f4"))) == reason


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 700])
@pytest.mark.parametrize("given", ["sample", "class", "both", "ignored", "all"])
def test_weights_of_rows(cuda, recorder, rng, dtype, mean, within, rows, given):
    labels = rng.integers(CLASSES, size=rows)
    options = {"sample_weight": None, "class_weight": None, "ignore_index": None}
    if given in ("sample", "both", "all"):
        options["sample_weight"] = rng.choice([0, 0.5, 1, 2], size=rows).astype(dtype)
    if given in ("class", "both", "all"):
        options["class_weight"] = rng.choice([0, 0.5, 1, 2], size=CLASSES).astype(dtype)
    if given in ("ignored", "all"):
        labels[::3], options["ignore_index"] = -7, -7
    arguments = {"within": within and options["class_weight"] is not None, "mean": mean, "validate": True}
    wanted = generic.weigh_rows(labels, CLASSES, np.dtype(dtype), **options, **arguments)
    on_device = {name: array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    found = cuda.weigh_rows(array(labels), CLASSES, np.dtype(dtype), **on_device, **arguments)
    assert found.sound is wanted.sound is True
    for name in ("weights", "counting", "total", "correction"):  # sums of halves and wholes are exact
        np.testing.assert_array_equal(np.asarray(getattr(found, name)), getattr(wanted, name), err_msg=name)
    assert [launch.kernel for launch in recorder.launches] == ["weigh_rows"]


@pytest.mark.parametrize(
    ("what", "value"),
    [("label", -1), ("label", CLASSES), *((name, x) for name in ("sample", "class") for x in (-0.5, np.nan, np.inf))],
)
def test_bad_values_of_what_weighs_rows_are_found(cuda, rng, what, value):
    rows = 300
    options = {"ignore_index": -7, "within": False, "mean": True}
    for place in (0, 299, 17):
        given = {"sample": np.ones(rows), "class": np.ones(CLASSES), "label": np.zeros(rows, "i8")}
        given["label"][5] = -7
        given["sample"][5] = 0
        for bad in (False, True, False):
            given[what][place % given[what].size] = value if bad else 1
            weights = {"sample_weight": array(given["sample"]), "class_weight": array(given["class"])}
            found = cuda.weigh_rows(array(given["label"]), CLASSES, np.dtype("f8"), **weights, **options, validate=True)
            assert found.sound is not bad
        found = cuda.weigh_rows(array(given["label"]), CLASSES, np.dtype("f8"), **weights, **options, validate=False)
        assert found.sound is None


def test_a_mean_over_rows_that_weigh_nothing(cuda):
    labels, weight = array(np.zeros(5, "i8")), array(np.zeros(5))
    for mean in (True, False):
        options = {"class_weight": None, "ignore_index": None, "within": False, "validate": True}
        found = cuda.weigh_rows(labels, 3, np.dtype("f8"), sample_weight=weight, mean=mean, **options)
        assert np.asarray(found.weights).tolist() == [0] * 5
        assert float(found.total) == 0
        assert np.isnan(float(found.correction)) == mean


def test_rows_that_weigh_nothing_become_zeros(cuda, recorder, rng):
    for dtype, columns in (("float32", 37), ("float64", 600), ("float32", 1)):
        X, weights = rng.normal(size=(9, columns)).astype(dtype), np.array([1, 0, 2] * 3, dtype)
        X[1::3] = np.nan
        for layout in ("c-order", "fortran", "rows apart"):
            found = cuda.counted_rows(array(LAYOUTS[layout](X)), array(weights))
            assert_same_bits(np.asarray(found), generic.counted_rows(X, weights))
    assert {launch.kernel for launch in recorder.launches} == {"gather"}


@pytest.mark.parametrize("rows", [0, 5, 2 * table_plan.ROWS_OF_A_PART + 3])
def test_sums_of_rows_of_several_matrices(cuda, recorder, rng, rows):
    several = [rng.normal(size=(rows, units)).astype("f4") for units in (3, 70, 32)]
    found = cuda.sums_of_rows(list(map(array, several)))
    for got, x in zip(found, several, strict=True):
        assert_same_bits(np.asarray(got), np.asarray(cuda.sum_of_rows(array(x))))
    if rows:
        of_all = 1 + (rows > table_plan.ROWS_OF_A_PART)
        assert len(recorder.launches) == 4 * of_all


def test_a_flag_that_an_interrupted_call_left_is_believed_once(cuda, recorder):
    """Good labels are then called bad; the caller looks for a bad one, finds none, and goes on."""
    labels = array(np.zeros(3, "i8"))
    assert cuda.are_classes(labels, 3)
    recorder.modules["counters"].flag_on(1).fill(1)
    assert [cuda.are_classes(labels, 3) for _ in range(2)] == [False, True]
    assert [cuda.are_classes(array(np.full(3, y)), 3) for y in (3, 2, -1, 0)] == [False, True, False, True]
