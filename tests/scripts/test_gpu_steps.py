"""The steps that scripts/gpu_check.py times, with PyTorch on the CPU and NumPy in the place of CuPy."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import _gpu_counts
import _gpu_steps
import _gpu_timing
import _gpu_trainers
import numpy as np
import pytest
import torch_without_cuda
from backends import numpy_as_cupy
from paths import ROOT

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of PyTorch's own compiler

SMALL = _gpu_trainers.Case((6, 5, 7, 4), "sgd", 8, 0.1)
ADAM = SMALL._replace(optimizer="adam")
captured = _gpu_trainers.captured


def torch_loss(hidden, weight, labels, bias=None):
    """What stands for Liger."""
    return torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, weight, bias), labels)


def run_again(torch, work, before):
    """What stands for a CUDA graph: it is made by running the work, too."""
    for _ in range(3):
        work()
    before()
    return work


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    cuda = SimpleNamespace(runtime=SimpleNamespace(deviceSynchronize=lambda: None))
    monkeypatch.setitem(sys.modules, "cupy", numpy_as_cupy(cuda=cuda))
    monkeypatch.setattr(_gpu_trainers, "DEVICE", "cpu")
    monkeypatch.setattr(_gpu_trainers, "captured", run_again)
    liger = SimpleNamespace(liger_fused_linear_cross_entropy=torch_loss)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", liger)
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled.append(how) or function)
    compiled = []
    return compiled


@pytest.mark.parametrize("name", _gpu_trainers.COMPETITORS)
def test_every_competitor_makes_the_same_steps(name):
    problem = _gpu_trainers.Problem(SMALL)
    trainer = _gpu_trainers.COMPETITORS[name](problem)
    assert problem.off_by(trainer.verified()) < 1e-3
    trainer.epochs(2)


@pytest.mark.parametrize("name", [_gpu_trainers.OURS, _gpu_trainers.GRAPH, "torch"])
def test_those_that_have_adam_make_the_same_steps_by_adam(name):
    assert name in _gpu_trainers.competitors(ADAM, compiled=False)
    problem = _gpu_trainers.Problem(ADAM)
    trainer = _gpu_trainers.COMPETITORS[name](problem)
    assert problem.off_by(trainer.verified()) < 1e-2


def test_one_step_less_or_another_rate_is_seen(monkeypatch):
    problem = _gpu_trainers.Problem(SMALL)
    few = problem.order[: -SMALL.sizes[0]]
    trainer = _gpu_trainers.torch_eager(problem)
    monkeypatch.setitem(problem.__dict__, "order", few)
    assert problem.off_by(trainer.verified()) > _gpu_trainers.ALLOWED["sgd"]
    monkeypatch.setattr(_gpu_trainers, "RATE", 1.1e-3)
    again = _gpu_trainers.Problem(SMALL)
    assert again.off_by(_gpu_trainers.package(problem).verified()) < 1e-3 < again.off_by(trainer.verified())
    assert again.off_by([a * np.nan for a in again.exact]) == np.inf


def test_compiled_competitors_compile_for_the_shape(on_cpu):
    _gpu_trainers.compile_case(SMALL)
    assert on_cpu == [{"dynamic": False, "mode": None}, {"dynamic": False, "mode": "reduce-overhead"}]


def test_tf32_is_that_of_cupy(monkeypatch):
    monkeypatch.delenv("CUPY_TF32", raising=False)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        _gpu_trainers.InTorch(_gpu_trainers.Problem(SMALL))
        assert torch.backends.cuda.matmul.allow_tf32 is False
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    monkeypatch.setenv("CUPY_TF32", "1")
    assert _gpu_trainers.tf32() is True


def test_a_graph_is_warmed_up_beside_the_current_stream_and_then_captured(monkeypatch):
    done = torch_without_cuda.install(monkeypatch, torch)
    replay = captured(torch, lambda: done.append("work"), lambda: done.append("before"))
    replay()
    assert done == [
        "other waits for current",
        *["work"] * 3,
        "current waits for other",
        "before",
        *("begin", "work", "end", "replay"),
    ]


def test_the_cases_are_those_of_the_benchmark():
    import bench_training

    sizes = ["x".join(map(str, case.sizes)) for case in _gpu_trainers.CASES if case.optimizer == "sgd"]
    assert sizes == list(bench_training.CASES[:5])
    assert [case.ms for case in _gpu_trainers.CASES][:5] == [0.034, 0.060, 0.052, 0.47, 0.72]
    assert [case.of_graph for case in _gpu_trainers.CASES] == [1.1, 1, 1, 1, 1, 1]
    liger = [str(case) for case in _gpu_trainers.CASES if "Liger" in _gpu_trainers.competitors(case, compiled=False)]
    assert liger == ["256x512x512x32000"]


# --- times and counts -------------------------------------------------------------------------------------------------


def test_an_epoch_is_timed_without_what_is_beside_it(monkeypatch):
    now = [0.0]

    def run(epochs):
        now[0] += 5.0 + 0.01 * epochs

    monkeypatch.setattr(_gpu_timing.time, "perf_counter", lambda: now[0])
    each, beside = _gpu_timing.each_more(run, 0.3)
    np.testing.assert_allclose(each, [0.01] * _gpu_timing.SAMPLES)
    assert beside == pytest.approx(5.0)
    assert len(_gpu_timing.each_more(lambda n: now.__setitem__(0, now[0] + n), 0.3)[0]) == 3


def event(name, device="CPU", **more):
    return SimpleNamespace(name=name, device_type=f"DeviceType.{device}", **more)


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        (event("cupy_add", "CUDA"), "kernels"),
        (event("Memcpy DtoD (Device -> Device)", "CUDA"), "copies"),
        (event("Optimizer.step#SGD.step", "CUDA", is_user_annotation=True), None),
        (event("cudaGraphLaunch"), "graphs"),
        (event("cuGraphLaunch"), "graphs"),
        (event("cudaLaunchKernel"), "launches"),
        (event("cuLaunchKernelEx"), "launches"),
        (event("cudaStreamSynchronize"), "waits"),
        (event("cudaMemcpy"), "waits"),
        (event("cudaMemcpyAsync"), None),
        (event("aten::mm"), None),
    ],
)
def test_events_are_counted_by_kind(seen, kind):
    assert _gpu_counts.kind_of_event(seen) == kind


def test_events_of_the_profiler_itself_are_not_counted(monkeypatch):
    class Profile:
        def __enter__(self):
            seen.clear()
            seen.append(event("cudaDeviceSynchronize"))
            return self

        def __exit__(self, *error):
            pass

        def events(self):
            return list(seen)

    seen = []
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: Profile())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = _gpu_counts.events_of(
        lambda: seen.extend([event("cudaGraphLaunch"), event("k", "CUDA"), event("k", "CUDA")])
    )
    assert found == {"graphs": 1, "kernels": 2}


@pytest.fixture
def capture(monkeypatch):
    """The module of the runner; a step is a graph from the second on."""

    class Runner:
        _graph = None

        def run(self):
            made.append(self)
            self._graph = self._graph or (object() if made.count(self) > 1 else None)

    made = []
    module = SimpleNamespace(Runner=Runner, made=made)
    monkeypatch.setitem(sys.modules, "xpsoftmax.kernels.cuda.capture", module)
    return module


def test_steps_that_are_replayed_are_timed_on_the_host(capture):
    runner = capture.Runner()
    before = capture.Runner.run
    microseconds, captured = _gpu_steps.replayed(lambda epochs: [runner.run() for _ in range(8 * epochs)])
    assert len(capture.made) == 16
    assert captured
    assert 0 < microseconds < 1000
    assert capture.Runner.run is before


def test_the_runner_has_what_is_looked_at():
    """Where CuPy is not installed its module cannot be imported: the names are looked for in its text."""
    text = (ROOT / "xpsoftmax" / "kernels" / "cuda" / "capture.py").read_text("utf-8")
    for name in ("class Runner:", "    def run(self)", "self._graph = ", "\ndef _graph_of(", "could not be captured"):
        assert name in text
    assert "runner.run()" in (ROOT / "xpsoftmax" / "_train" / "programmed.py").read_text("utf-8")


def test_a_training_without_programs_has_no_replayed_steps(capture):
    assert _gpu_steps.replayed(lambda epochs: None) == (None, False)


def result(**more):
    return {"name": _gpu_steps.OURS, "captured": True, "events": {"graphs": 1.0}, "warnings": [], "median": 1.0, **more}


def test_steps_that_are_not_captured_are_problems(monkeypatch):
    def problems(**more):
        return list(_gpu_steps.problems_of(SMALL, result(**more)))

    monkeypatch.setattr(_gpu_steps.importlib.util, "find_spec", lambda name: None)
    assert problems() == []
    assert problems(events={}) == []
    missing = "6x5x7x4: steps were not captured: nvmath-python is not installed"
    assert problems(captured=False) == problems(events={"graphs": 0.1}) == [missing]
    monkeypatch.setattr(_gpu_steps.importlib.util, "find_spec", lambda name: name)
    assert problems(captured=False) == ["6x5x7x4: steps were not captured"]
    warned = "A step of training could not be captured: no"
    assert problems(warnings=[warned, "another"]) == [f"6x5x7x4: {warned}"]
    assert problems(failed="it is off") == ["6x5x7x4: xpsoftmax train: it is off"]
    assert problems(name="torch", failed="it is off") == []


def test_all_is_measured_and_written(monkeypatch, tmp_path, capsys, capture):
    def in_this_process(function, *arguments, seconds):
        late = "torch.compile" in arguments[-1]
        return list(function(*arguments)), "not finished in 1 s" if late else None

    monkeypatch.setattr("_gpu_process.results_of", in_this_process)
    monkeypatch.setattr(_gpu_steps, "CASES", (SMALL, ADAM, SMALL))
    monkeypatch.setattr(_gpu_steps, "SECONDS", 0.01)
    monkeypatch.setattr(_gpu_steps, "events_of", lambda call: (call(), {"kernels": 3})[1])
    monkeypatch.setattr(_gpu_steps, "replayed", lambda epochs: (7.0, True))
    monkeypatch.setattr(_gpu_steps, "each_more", lambda epochs, seconds: (epochs(1), ([0.1, 0.2, 0.3], 0.5))[1])
    path = tmp_path / "steps.json"
    assert _gpu_steps.main([str(path), "100"]) == 0
    content = json.loads(path.read_text())
    first, adam = content["findings"]
    assert set(first["timings"]) == set(_gpu_steps.COMPETITORS) - {"Liger", "Liger graph"}
    assert set(adam["timings"]) == {"xpsoftmax train", "torch graph", "torch"}
    assert first["ratios"]["torch"] == 1.0
    assert first["to_graph"] == 1.0
    assert first["timings"]["torch"]["median"] == 0.2 / SMALL.steps
    assert first["timings"]["xpsoftmax train"]["events"] == {"kernels": 0.0}
    assert [each["name"] for each in content["functions"]][1:] == ["mlp_loss_and_grad, validate=False", "update"]
    assert all(each["events"] == {"kernels": 3} and each["median"] > 0 for each in content["functions"])
    assert content["problems"] == []
    assert content["not_timed"] == ["6x5x7x4, compiled: not finished in 1 s"]
    assert "6x5x7x4 adam, xpsoftmax train " in capsys.readouterr().out


def test_a_competitor_that_is_wrong_is_not_timed(monkeypatch):
    right = _gpu_trainers.package

    def twice(problem):
        trainer = right(problem)
        return trainer._replace(verified=lambda: [2.0 * array for array in trainer.verified()])

    monkeypatch.setitem(_gpu_steps.COMPETITORS, "torch", twice)
    (found,) = _gpu_steps.measured(SMALL, ["torch"])
    assert found["failed"].startswith("ValueError: moves differently from NumPy in float64, by ")
    assert found["failed"].endswith(": not timed")
