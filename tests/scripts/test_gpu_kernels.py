"""The kernel benchmark of scripts/gpu_check.py, with NumPy in the place of CuPy, and PyTorch on the CPU."""

from __future__ import annotations

import sys
import time
import weakref
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import _gpu_counts
import _gpu_kernels
import _gpu_rivals
import _gpu_timing
import numpy as np
import pytest
from backends import numpy_as_cupy

import xpsoftmax as xs

SOFTMAX = _gpu_rivals.Case("softmax", 6, 4, "float32")


class OnGpu:
    """A result as CuPy has it."""

    def __init__(self, array):
        self.array = array

    def __getitem__(self, rows):
        return OnGpu(self.array[rows])

    def astype(self, kind):
        return SimpleNamespace(get=lambda: self.array.astype(kind))


@pytest.fixture
def inputs(monkeypatch):
    """With NumPy in the place of CuPy."""
    monkeypatch.setitem(sys.modules, "cupy", numpy_as_cupy())
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(6, 4)).astype("f4"), rng.integers(4, size=6)
    return _gpu_rivals.Inputs([z], y, [np.empty_like(z)], z, y)


def test_the_usual_lines_are_right_on_numpy(inputs):
    """The competitor that others are compared with."""
    for call in (_gpu_rivals.plain_cupy(inputs), _gpu_rivals.ours(inputs)):
        loss, grad = call(0)
        assert _gpu_rivals.off_by(_gpu_rivals.LOSS, (loss, OnGpu(grad)), inputs) < 1e-6
        grad[2, 1] += 1e-3
        assert _gpu_rivals.off_by(_gpu_rivals.LOSS, (loss, OnGpu(grad)), inputs) > 1e-3


@pytest.mark.parametrize("operation", ["softmax", "log_softmax"])
def test_elementwise_competitors_are_right_on_numpy(operation, inputs, monkeypatch):
    special = pytest.importorskip("scipy.special")
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", special)
    for name in ("xpsoftmax", "cupyx"):
        result = _gpu_rivals.OPERATIONS[operation][name](inputs)(0)
        assert _gpu_rivals.off_by(operation, OnGpu(result), inputs) < 1e-6
    result[0, 0] += 0.01
    assert _gpu_rivals.off_by(operation, OnGpu(result), inputs) > 1e-3


def test_pytorch_is_right_on_the_same_memory(inputs):
    pytest.importorskip("torch")
    for operation, names in (("softmax", ("torch",)), ("log_softmax", ("torch",)), (_gpu_rivals.LOSS, ("torch",))):
        for name in names:
            result = _gpu_rivals.OPERATIONS[operation][name](inputs)(0)
            assert _gpu_rivals.off_by(operation, result, inputs) < 1e-6


def test_between_competitors_the_memory_is_given_back_and_the_reference_is_computed_once(inputs, monkeypatch):
    def competitor(inputs):
        held = {"by": "this one"}
        alive.append(weakref.ref(call := lambda i: (held, xs.softmax(inputs.logits[i]))[1]))
        return call

    def broken(inputs):
        raise RuntimeError("out of memory")

    alive, given_back, references = [], [], []
    exact = xs.softmax
    monkeypatch.setattr(_gpu_kernels, "drawn", lambda *case: inputs)
    monkeypatch.setattr(_gpu_kernels, "milliseconds", lambda call, copies, **how: ([1.0, 2.0, 3.0], "as told"))
    monkeypatch.setattr(_gpu_kernels, "give_back", lambda: given_back.append(sum(call() is not None for call in alive)))
    off_by = _gpu_rivals.off_by
    monkeypatch.setattr(_gpu_kernels, "off_by", lambda op, result, inputs, of: off_by(op, OnGpu(result), inputs, of))
    monkeypatch.setattr(xs, "softmax", lambda z, **how: (references.append(0) if how else None, exact(z, **how))[1])
    monkeypatch.setitem(_gpu_rivals.OPERATIONS, "softmax", {"one": competitor, "none": broken, "two": competitor})
    found = _gpu_kernels.Benchmark()
    case = _gpu_kernels.timed_case(found, SOFTMAX, 1)
    assert set(case["timings"]) == {"one", "two"}
    assert case["timings"]["one"]["ms"][1] == 2.0
    assert given_back == [0, 0, 0, 0]  # none of the calls is kept then
    assert len(references) == 1
    assert found.not_timed == ["none failed at softmax 6x4 float32: RuntimeError: out of memory"]
    assert found.problems == []
    assert case["timings"]["one"]["by"] == "as told"


def test_only_a_failure_of_the_package_is_a_problem():
    found = _gpu_kernels.Benchmark()
    for name in ("QuACK", "xpsoftmax", "xpsoftmax kernel", "copy", "torch"):
        found.note(name, "failed")
    assert found.problems == ["xpsoftmax failed", "xpsoftmax kernel failed", "copy failed"]
    assert found.not_timed == ["QuACK failed", "torch failed"]


def test_the_ceiling_is_the_faster_copy(inputs, monkeypatch):
    times = {"kernel": [2.0, 2.1, 2.2], "CUDA": [3.0, 3.1, 3.2]}
    monkeypatch.setattr(_gpu_kernels, "drawn", lambda *case: inputs)
    monkeypatch.setattr(_gpu_kernels, "give_back", lambda: None)
    monkeypatch.setattr(_gpu_kernels, "milliseconds", lambda call, copies, **how: (times[call(0)], call(0)))
    monkeypatch.setattr(_gpu_kernels, "copied_by_cuda", lambda inputs: lambda i: "CUDA")
    monkeypatch.setitem(_gpu_rivals.OPERATIONS, "softmax", {"copy": lambda inputs: lambda i: "kernel"})
    for faster in ("kernel", "CUDA"):
        times[faster] = [1.0, 1.1, 1.2]
        copy = _gpu_kernels.timed_case(_gpu_kernels.Benchmark(), SOFTMAX, 1)["timings"]["copy"]
        assert copy["by"] == faster
        assert copy["gb_per_s"] == 2 * inputs.bytes / 1.1 / 1e6
        times[faster] = [4.0, 4.1, 4.2]


def test_slow_competitors_are_timed_at_one_size():
    cases = _gpu_kernels.wanted()
    assert len(cases) == len(set(cases))
    for case in cases:
        slow = set(_gpu_rivals.SLOW) & set(_gpu_kernels.competitors(case))
        assert not slow or case.classes == _gpu_kernels.SLOW_AT
    assert any("CuPy" in _gpu_kernels.competitors(case) for case in cases)
    assert {case.operation for case in cases} == set(_gpu_rivals.OPERATIONS)


def test_only_competitors_that_compile_are_called_by_what_compiles(inputs, monkeypatch):
    def competitor(name):
        def make(inputs):
            made.append(name)
            if name == "QuACK":
                raise RuntimeError("it will be told later")
            return lambda i: called.append((name, i))

        return make

    made, called = [], []
    monkeypatch.setattr(_gpu_kernels, "drawn", lambda case, cache: inputs)
    monkeypatch.setattr(_gpu_kernels, "give_back", lambda: None)
    names = ("copy", "QuACK", "torch", "xpsoftmax", "Liger")
    monkeypatch.setitem(_gpu_rivals.OPERATIONS, "softmax", {name: competitor(name) for name in names})
    _gpu_kernels.call_once(SOFTMAX)
    assert made == ["QuACK", "xpsoftmax", "Liger"]
    assert called == [("xpsoftmax", 0), ("Liger", 0)]


def test_cases_without_time_are_problems_and_what_is_found_is_written_at_once(monkeypatch, tmp_path):
    done, written = [], []
    cases = [SOFTMAX, SOFTMAX._replace(rows=7)]
    monkeypatch.setattr(_gpu_kernels, "wanted", lambda: cases)
    monkeypatch.setattr(_gpu_kernels, "timed_case", lambda found, case, cache: (done.append(case), {})[1])
    monkeypatch.setattr(_gpu_kernels, "small_calls", dict)
    _gpu_kernels.run(_gpu_kernels.Benchmark(), 1, time.monotonic() + 60, lambda: written.append(len(done)))
    assert done == cases
    assert written == [1, 2, 2]

    def failing():
        raise RuntimeError("no")

    monkeypatch.setattr(_gpu_kernels, "small_calls", failing)
    late = _gpu_kernels.Benchmark()
    _gpu_kernels.run(late, 1, time.monotonic() - 1, lambda: None)
    no_time = [f"no time left for softmax {rows}x4 float32" for rows in (6, 7)]
    assert late.problems == [*no_time, "small calls: RuntimeError: no"]
    assert late.cases == []


def test_each_case_of_the_table_has_a_figure_to_reach():
    aims = {case: _gpu_kernels.aim(case) for case in _gpu_kernels.wanted()}
    assert all(0.5 < aim < 1 for aim in aims.values())
    assert aims[_gpu_rivals.Case(_gpu_rivals.LOSS, 8192, 50257, "float32")] == 0.92
    assert aims[_gpu_rivals.Case(_gpu_rivals.OTHERS, 8192, 32000, "float16")] == 0.96
    assert aims[_gpu_rivals.Case(_gpu_rivals.OTHERS, 8192, 32000, "float64")] == 0.60


class Stream(nullcontext):
    """CuPy's stream, which writes down what is done with it, and captures nothing."""

    def __init__(self, done, **how):
        super().__init__()
        self.done = done

    def synchronize(self):
        self.done.append("synchronize")

    def begin_capture(self):
        self.done.append("begin")

    def end_capture(self):
        self.done.append("end")
        return SimpleNamespace(launch=lambda stream: self.done.append("launch"))


@pytest.fixture
def streams(monkeypatch):
    """What is done with CuPy's streams; an event is as late as its number."""
    done, clock = [], count()

    def event():
        made = SimpleNamespace(time=None, synchronize=lambda: None)
        made.record = lambda stream: setattr(made, "time", next(clock))
        return made

    cuda = SimpleNamespace(
        Stream=lambda **how: Stream(done, **how),
        get_current_stream=lambda: Stream(done),
        Event=event,
        get_elapsed_time=lambda first, last: 16.0 * (last.time - first.time),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    return done


def test_calls_are_timed_as_a_graph(streams):
    times, how = _gpu_timing.milliseconds(lambda i: streams.append(i), 3)
    assert how == "graph of 8 calls"
    assert times == [2.0] * _gpu_timing.SAMPLES
    rotated = [0, 1, 2, 0, 1, 2, 0, 1]
    launches = ["launch"] * (1 + _gpu_timing.SAMPLES)
    assert streams == [0, 1, 2, "synchronize", "begin", *rotated, "end", *launches]


def test_calls_that_cannot_be_captured_are_timed_in_series(streams):
    def call(i):
        if streams.count("begin") > streams.count("end"):
            raise RuntimeError("not within a graph")

    times, how = _gpu_timing.milliseconds(call, 20)
    assert how == "events around 20 calls: RuntimeError: not within a graph"
    assert times == [16.0 / 20] * _gpu_timing.SAMPLES
    assert streams == ["synchronize", "begin", "end"]  # the capture was ended


def test_pytorch_is_timed_on_its_own_stream(monkeypatch):
    pytest.importorskip("torch")
    asked = []
    monkeypatch.setattr(_gpu_timing, "torch_graph", lambda calls: (lambda: asked.append(len(calls)), "its stream"))
    monkeypatch.setattr(_gpu_timing, "time_of", lambda start, stream: (start(), 8.0)[1])
    times, _ = _gpu_timing.milliseconds(lambda i: None, 1, of_torch=True)
    assert times == [1.0] * _gpu_timing.SAMPLES
    assert asked == [8] * (1 + _gpu_timing.SAMPLES)


@pytest.fixture
def soft(inputs):
    q = np.random.default_rng(1).dirichlet(np.ones(4), 6).astype("f4")
    return replace(inputs, masses=[q], host_masses=q, _exact={})


def test_soft_targets_are_right_on_numpy(inputs, soft):
    loss, grad = _gpu_rivals.ours(soft)(0)
    assert _gpu_rivals.off_by(_gpu_rivals.SOFT, (loss, OnGpu(grad)), soft) < 1e-6
    assert _gpu_rivals.off_by(_gpu_rivals.SOFT, (loss, OnGpu(grad)), replace(inputs, _exact={})) > 1e-2


def test_soft_targets_are_right_in_pytorch(soft):
    pytest.importorskip("torch")
    assert _gpu_rivals.off_by(_gpu_rivals.SOFT, _gpu_rivals.in_torch(soft)(0), soft) < 1e-6


def test_quack_gives_pytorch_the_gradient_of_the_sum(inputs, monkeypatch):
    torch = pytest.importorskip("torch")

    def forward(z, y, *, return_dx):
        z = z.clone().requires_grad_()
        losses = torch.nn.functional.cross_entropy(z, y, reduction="none")
        losses.sum().backward()
        return losses.detach(), z.grad

    monkeypatch.setitem(sys.modules, "quack.cross_entropy", SimpleNamespace(cross_entropy_fwd=forward))
    result = _gpu_rivals.quack(inputs)(0)
    assert _gpu_rivals.off_by(_gpu_rivals.LOSS, result, inputs, _gpu_rivals.SCALES["QuACK"]) < 1e-6
    assert _gpu_rivals.off_by(_gpu_rivals.LOSS, result, inputs) > 1


def test_small_calls_are_compared_with_bare_launches_of_the_same_arguments(monkeypatch):
    kernels = []

    def raw_kernel(text, name):
        kernels.append(text)
        return lambda grid, block, arguments: None

    stream = SimpleNamespace(synchronize=lambda: None)
    cuda = SimpleNamespace(get_current_stream=lambda: stream)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, RawKernel=raw_kernel))
    numbers = np.uint64(1), np.float32(2), np.int32(3), np.int64(4), np.float64(5)
    bare = _gpu_counts.bare_launch((*numbers, np.zeros(3)))
    bare()
    parameters = "unsigned long long p0, float p1, int p2, long long p3, double p4, void* p5"
    assert kernels == [f'extern "C" __global__ void nothing({parameters}) {{}}']
    assert 0 < _gpu_counts.of_host(bare) < 1000


def test_what_both_libraries_keep_at_hand_is_given_back(monkeypatch):
    asked = []
    pool = SimpleNamespace(free_all_blocks=lambda: asked.append("CuPy"))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(get_default_memory_pool=lambda: pool))
    cuda = SimpleNamespace(empty_cache=lambda: asked.append("PyTorch"))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    _gpu_timing.give_back()
    monkeypatch.delitem(sys.modules, "torch")
    _gpu_timing.give_back()
    assert asked == ["CuPy", "PyTorch", "CuPy"]
