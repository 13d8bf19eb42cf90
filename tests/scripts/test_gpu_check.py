"""scripts/gpu_check.py, as far as it runs without a GPU."""

from __future__ import annotations

import importlib
import json
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import _gpu_kernels
import gpu_check
import numpy as np
import pytest
from backends import numpy_as_cupy, unusable

import xpsoftmax as xs

DEVICE = {"gpu": "A GPU", "cache_bytes": 1, "driver": 13000, "cuda": 13000, "cupy": "14.0"}
SOFTMAX = _gpu_kernels.Case("softmax", 6, 4, "float32")
JUNIT = '<testsuites><testsuite tests="10" failures="1" errors="1" skipped="3"/></testsuites>'


def case(**timings):
    found = {name: {"ms": (1.0, 2.0, 3.0), "gb_per_s": speed, "off_by": 0.0} for name, speed in timings.items()}
    return {
        "operation": "softmax",
        "rows": 8,
        "classes": 10,
        "dtype": "float32",
        "traffic_bytes": 640,
        "timings": found,
    }


@pytest.mark.skipif(unusable("cupy") is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, capsys):
    assert gpu_check.main([str(tmp_path / "out")]) == gpu_check.NO_GPU != 0
    said = capsys.readouterr().out
    assert said.startswith("gpu_check: there is no GPU that can be used here, so nothing was checked: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "sums", "reason"),
    [(0, 12.0, "CuPy finds no CUDA device"), (1, 11.0, "CuPy computes 0 + 2 + 4 + 6 wrongly")],
)
def test_a_gpu_that_cannot_compute_is_none(monkeypatch, count, sums, reason):
    runtime = SimpleNamespace(getDeviceCount=lambda: count)
    fake = SimpleNamespace(
        cuda=SimpleNamespace(runtime=runtime), arange=lambda n, dtype: np.array(sums / 2, dtype).reshape(1)
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    assert gpu_check.usable_gpu() == reason


def test_tests_are_counted(tmp_path):
    (tmp_path / "tests.xml").write_text(JUNIT)
    assert gpu_check.counted(tmp_path) == {"passed": 5, "failed": 2, "skipped": 3}


def test_the_row_and_the_table_name_what_was_found():
    report = gpu_check.Report(DEVICE)
    report.parts["tests"] = {"seconds": 1.5, "passed": 5, "failed": 0, "skipped": 3}
    report.parts["kernels"] = {
        "cases": [case(copy=4000.0, xpsoftmax=3600.0)],
        "small_calls": {"softmax": {"launches": 2, "microseconds": 12.34, "bare_microseconds": 5.0}},
        "missing": {"Liger": "none"},
        "not_timed": ["QuACK failed at a case"],
    }
    timings = {"torch": {"median": 2e-3}, "xpsoftmax train": {"median": 1e-3}}
    ratios = {"torch": 1.0, "xpsoftmax train": 0.5}
    events = {"xpsoftmax train": {"kernels": 9}}
    steps = {"case": "5x4x10x3", "timings": timings, "ratios": ratios, "events": events}
    report.parts["steps"] = {"findings": [steps]}
    fits = [
        {"case": "digits", "kind": "NumPy", "seconds": {"fit": [3.0, 1.0, 2.0]}, "accuracy": 0.99},
        {"case": "digits", "kind": "CuPy", "failed": "no"},
    ]
    report.parts["estimator"] = {"gpu": fits}
    report.problems = ["one"]
    line = gpu_check.row(report, "abc", "2026-01-02", "the command")
    result = (
        "tests (5 passed, 0 failed, 3 skipped); kernels; steps; estimator; softmax 8x10 float32 3600 GB/s; 1 problems"
    )
    assert line == f"| 2026-01-02 | abc | A GPU | 13000, 13000, 14.0 | the command | {result} |"
    text = gpu_check.table(report)
    for part in (
        "tests: seconds 1.5, passed 5, failed 0, skipped 3",
        "90% of copy",
        "share of copy: softmax, float32, copy: 10 4000",
        "share of copy: softmax, float32, xpsoftmax: 10 0.90",
        "a small softmax without validation: 2 launches, 12.3 microseconds of the host, 2.5 bare launches",
        "not timed: QuACK failed at a case",
        "not here: Liger: none",
        "0.50 of PyTorch {'kernels': 9}",
        "estimator digits, NumPy: {'fit': 2.0} seconds, accuracy 0.9900",
        "estimator digits, CuPy: no",
    ):
        assert part in text
    assert text.endswith("PROBLEM: one")


# --- the parts --------------------------------------------------------------------------------------------------------


def part(*codes, seconds=60.0, findings=lambda folder: {}):
    return gpu_check.Part("", seconds, lambda folder: [[sys.executable, "-c", code] for code in codes], findings)


def test_a_part_that_goes_well_has_findings_and_no_problem(tmp_path):
    found, problems = gpu_check.run_part(
        part("print('hello')", "print(1 + 1)", findings=lambda folder: {"folder": folder.name}),
        tmp_path,
        tmp_path / "log",
    )
    assert problems == []
    assert found["folder"] == tmp_path.name
    assert "hello\n" in (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().endswith("\n2\n")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit(4)", "status 4"),
        ("import os; os.abort()", "status -6"),
        ("import time; time.sleep(60)", "not finished in 1 s"),
    ],
)
def test_a_command_that_fails_is_a_problem_and_does_not_end_the_others(code, reason, tmp_path):
    seconds = 1.0 if "sleep" in code else 60.0
    _, problems = gpu_check.run_part(part(code, seconds=seconds), tmp_path, tmp_path / "log")
    assert len(problems) == 1
    assert problems[0].endswith(reason)


def test_a_second_command_has_what_the_first_left_of_the_time(tmp_path):
    _, problems = gpu_check.run_part(
        part("import time; time.sleep(60)", "print(1)", seconds=0.5), tmp_path, tmp_path / "log"
    )
    assert [problem.rpartition(": ")[2] for problem in problems] == ["not finished in 0 s", "no time was left"]


def test_a_command_that_takes_too_long_can_write_what_it_has_and_leaves_no_process(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "GRACE", 2.0)
    child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    code = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}])
pathlib.Path("{tmp_path}/child").write_text(str(child.pid))
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path("{tmp_path}/found").write_text("something")
    time.sleep(60)
"""
    start = time.monotonic()
    found, problems = gpu_check.run_part(
        part(code, seconds=2.2, findings=lambda folder: {"found": (folder / "found").read_text()}),
        tmp_path,
        tmp_path / "log",
    )
    assert time.monotonic() - start < 30
    assert found["found"] == "something"
    assert [problem.rpartition(": ")[2] for problem in problems] == ["not finished in 2 s"]
    state = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_the_sanitizer_is_found_in_the_folder_of_cuda(monkeypatch, tmp_path):
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu_check.sanitizer() == str(program)
    _, memcheck, *_ = gpu_check.sanitizer_commands(tmp_path)
    assert memcheck[:3] == [str(program), "--tool", "memcheck"]


def test_each_tool_of_the_sanitizer_must_have_reported(tmp_path):
    log = tmp_path / gpu_check.LOG
    log.write_text("0 wrong\n========= COMPUTE-SANITIZER\n0 wrong\n========= ERROR SUMMARY: 0 errors\n")
    with pytest.raises(ValueError, match="reported 1 times, not 4"):
        gpu_check.summaries(tmp_path)
    with log.open("a") as stream:
        stream.write("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n")
        stream.write("========= ERROR SUMMARY: 0 errors\n" * 2)
    hazard = "1 hazard displayed (1 error, 0 warnings)"
    found = {"memcheck": "0 errors", "racecheck": hazard, "synccheck": "0 errors", "initcheck": "0 errors"}
    assert gpu_check.summaries(tmp_path) == found


def test_pytest_benchmark_is_left_out(tmp_path):
    (command,) = gpu_check.pytest_commands(tmp_path)
    assert "-p no:benchmark" in " ".join(command)
    assert "--require-backend=cupy" in command


def test_all_parts_together_take_eight_minutes():
    assert sum(part.seconds for part in gpu_check.PARTS.values()) <= 480


def test_the_page_has_at_most_two_commands():
    page = (gpu_check.ROOT / "docs" / "gpu-runs.md").read_text("utf-8")
    assert page.count("\npython scripts/gpu_check.py OUT") <= 2


def test_the_commands_of_ten_minutes_end_in_ten_minutes():
    page = (gpu_check.ROOT / "docs" / "gpu-runs.md").read_text("utf-8")
    lines = [line for line in page.splitlines() if line.startswith("python scripts/gpu_check.py")]
    commands = [line.split("--part ")[1:] for line in lines]
    assert sorted(name.strip() for names in commands for name in names) == sorted(gpu_check.PARTS)
    for names in commands:
        assert sum(gpu_check.PARTS[name.strip()].seconds + gpu_check.GRACE for name in names) < 600 - 10  # to start


def test_a_missing_program_and_findings_that_cannot_be_read_are_problems(tmp_path):
    absent = gpu_check.Part("", 9.0, lambda folder: [["no-such-program"]], gpu_check.read("none.json"))
    _, problems = gpu_check.run_part(absent, tmp_path, tmp_path / "log")
    assert problems[0] == "no-such-program: no-such-program is not here"
    assert problems[1].startswith("its findings cannot be read: FileNotFoundError")


def test_main_runs_the_parts_that_are_asked_for_and_writes_all(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "usable_gpu", lambda: DEVICE)
    parts = {
        "tests": part("print('tests ran')", findings=lambda folder: {"passed": 5}),
        "kernels": part("raise SystemExit(1)"),
        "steps": part("print('never')"),
    }
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    assert gpu_check.main([str(tmp_path), "--part", "tests", "--part", "kernels"]) == 1
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    assert content["command"] == "python scripts/gpu_check.py OUT --part=tests --part=kernels"
    assert list(content["parts"]) == ["tests", "kernels"]
    assert content["parts"]["tests"]["passed"] == 5
    assert len(content["problems"]) == 1
    log = (tmp_path / "gpu_check.log").read_text()
    assert "tests ran" in log
    assert "never" not in log
    assert (tmp_path / "gpu-runs-row.md").read_text().startswith("| 20")
    assert "PROBLEM: kernels: " in capsys.readouterr().out


def test_every_part_is_a_script_of_this_checkout(tmp_path):
    for name, found in gpu_check.PARTS.items():
        for command in found.commands(tmp_path):
            files = [word for word in command if word.endswith(".py")]
            assert all(Path(word).is_relative_to(gpu_check.ROOT) and Path(word).exists() for word in files)
            assert files or name == "tests"
        assert f"- {name}, " in gpu_check.__doc__


@pytest.mark.parametrize(
    ("part", "module", "expected"),
    [
        ("steps", "bench_training", {"device": "cuda", "seconds": 0.2, "competitor": list(gpu_check.STEPPERS)}),
        ("compare", "compare_backends", {"backend": ["cupy"]}),
        ("estimator", "compare_sklearn", {"only": "gpu", "rounds": 1}),
    ],
)
def test_the_scripts_of_the_parts_know_their_options(part, module, expected, tmp_path):
    """The command lines that a GPU would see, parsed by the scripts themselves."""
    for needed in ("rich", "sklearn", "matplotlib"):
        pytest.importorskip(needed)
    (command,) = gpu_check.PARTS[part].commands(tmp_path)
    given = vars(importlib.import_module(module).parser().parse_args(command[2:]))
    assert expected.items() <= given.items()
    assert given["json"] == tmp_path / f"{part}.json"
    assert part != "steps" or [str(case) for case in given["case"]] == list(gpu_check.STEPS)


# --- the kernel benchmark ---------------------------------------------------------------------------------------------


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
    return _gpu_kernels.Inputs([z], y, [np.empty_like(z)], z, y)


def test_the_usual_lines_are_right_on_numpy(inputs):
    """The competitor that others are compared with."""
    for call in (_gpu_kernels.plain_cupy(inputs), _gpu_kernels.ours(inputs)):
        loss, grad = call(0)
        assert _gpu_kernels.off_by(_gpu_kernels.LOSS, (loss, OnGpu(grad)), inputs) < 1e-6
        grad[2, 1] += 1e-3
        assert _gpu_kernels.off_by(_gpu_kernels.LOSS, (loss, OnGpu(grad)), inputs) > 1e-3


@pytest.mark.parametrize("operation", ["softmax", "log_softmax"])
def test_elementwise_competitors_are_right_on_numpy(operation, inputs, monkeypatch):
    special = pytest.importorskip("scipy.special")
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", special)
    for name in ("xpsoftmax", "cupyx"):
        result = _gpu_kernels.OPERATIONS[operation][name](inputs)(0)
        assert _gpu_kernels.off_by(operation, OnGpu(result), inputs) < 1e-6
    result[0, 0] += 0.01
    assert _gpu_kernels.off_by(operation, OnGpu(result), inputs) > 1e-3


def test_pytorch_is_right_on_the_same_memory(inputs):
    pytest.importorskip("torch")
    for operation, names in (("softmax", ("torch",)), ("log_softmax", ("torch",)), (_gpu_kernels.LOSS, ("torch",))):
        for name in names:
            result = _gpu_kernels.OPERATIONS[operation][name](inputs)(0)
            assert _gpu_kernels.off_by(operation, result, inputs) < 1e-6


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
    off_by = _gpu_kernels.off_by
    monkeypatch.setattr(_gpu_kernels, "off_by", lambda op, result, inputs, of: off_by(op, OnGpu(result), inputs, of))
    monkeypatch.setattr(xs, "softmax", lambda z, **how: (references.append(0) if how else None, exact(z, **how))[1])
    monkeypatch.setitem(_gpu_kernels.OPERATIONS, "softmax", {"one": competitor, "none": broken, "two": competitor})
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
    monkeypatch.setitem(_gpu_kernels.OPERATIONS, "softmax", {"copy": lambda inputs: lambda i: "kernel"})
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
        slow = set(_gpu_kernels.SLOW) & set(_gpu_kernels.competitors(case))
        assert not slow or case.classes == _gpu_kernels.SLOW_AT
    assert any("CuPy" in _gpu_kernels.competitors(case) for case in cases)
    assert {case.operation for case in cases} == set(_gpu_kernels.OPERATIONS)


def test_everything_that_compiles_is_called_before_anything_is_timed(inputs, monkeypatch):
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
    monkeypatch.setitem(_gpu_kernels.OPERATIONS, "softmax", {name: competitor(name) for name in names})
    _gpu_kernels.compile_side_by_side([SOFTMAX], ThreadPoolExecutor(2))
    assert made == ["QuACK", "xpsoftmax", "Liger"]
    assert called == [("xpsoftmax", 0), ("Liger", 0)]


def test_cases_without_time_are_problems_and_compilation_comes_first(monkeypatch):
    done = []
    cases = [SOFTMAX, SOFTMAX._replace(rows=7)]
    monkeypatch.setattr(_gpu_kernels, "wanted", lambda: cases)
    monkeypatch.setattr(_gpu_kernels, "compile_side_by_side", lambda cases: (done.append(cases), time.monotonic())[1])
    monkeypatch.setattr(_gpu_kernels, "timed_case", lambda found, case, cache: (done.append(case), {})[1])
    monkeypatch.setattr(_gpu_kernels, "small_calls", dict)
    _gpu_kernels.run(_gpu_kernels.Benchmark(), 1, time.monotonic() + 60)
    assert done == [cases, *cases]
    late = _gpu_kernels.Benchmark()
    _gpu_kernels.run(late, 1, time.monotonic() - 1)
    assert late.problems == [f"no time left for softmax {rows}x4 float32" for rows in (6, 7)]
    assert late.cases == []


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
    times, how = _gpu_kernels.milliseconds(lambda i: streams.append(i), 3)
    assert how == "graph of 8 calls"
    assert times == [2.0] * _gpu_kernels.SAMPLES
    rotated = [0, 1, 2, 0, 1, 2, 0, 1]
    launches = ["launch"] * (1 + _gpu_kernels.SAMPLES)
    assert streams == [0, 1, 2, "synchronize", "begin", *rotated, "end", *launches]


def test_calls_that_cannot_be_captured_are_timed_in_series(streams):
    def call(i):
        if streams.count("begin") > streams.count("end"):
            raise RuntimeError("not within a graph")

    times, how = _gpu_kernels.milliseconds(call, 20)
    assert how == "events around 20 calls: RuntimeError: not within a graph"
    assert times == [16.0 / 20] * _gpu_kernels.SAMPLES
    assert streams == ["synchronize", "begin", "end"]  # the capture was ended


def test_pytorch_is_timed_on_its_own_stream(monkeypatch):
    pytest.importorskip("torch")
    asked = []
    monkeypatch.setattr(_gpu_kernels, "torch_graph", lambda calls: (lambda: asked.append(len(calls)), "its stream"))
    monkeypatch.setattr(_gpu_kernels, "time_of", lambda start, stream: (start(), 8.0)[1])
    times, _ = _gpu_kernels.milliseconds(lambda i: None, 1, of_torch=True)
    assert times == [1.0] * _gpu_kernels.SAMPLES
    assert asked == [8] * (1 + _gpu_kernels.SAMPLES)


@pytest.fixture
def soft(inputs):
    q = np.random.default_rng(1).dirichlet(np.ones(4), 6).astype("f4")
    return replace(inputs, masses=[q], host_masses=q, _exact={})


def test_soft_targets_are_right_on_numpy(inputs, soft):
    loss, grad = _gpu_kernels.ours(soft)(0)
    assert _gpu_kernels.off_by(_gpu_kernels.SOFT, (loss, OnGpu(grad)), soft) < 1e-6
    assert _gpu_kernels.off_by(_gpu_kernels.SOFT, (loss, OnGpu(grad)), replace(inputs, _exact={})) > 1e-2


def test_soft_targets_are_right_in_pytorch(soft):
    pytest.importorskip("torch")
    assert _gpu_kernels.off_by(_gpu_kernels.SOFT, _gpu_kernels.in_torch(soft)(0), soft) < 1e-6


def test_quack_gives_pytorch_the_gradient_of_the_sum(inputs, monkeypatch):
    torch = pytest.importorskip("torch")

    def forward(z, y, *, return_dx):
        z = z.clone().requires_grad_()
        losses = torch.nn.functional.cross_entropy(z, y, reduction="none")
        losses.sum().backward()
        return losses.detach(), z.grad

    monkeypatch.setitem(sys.modules, "quack.cross_entropy", SimpleNamespace(cross_entropy_fwd=forward))
    result = _gpu_kernels.quack(inputs)(0)
    assert _gpu_kernels.off_by(_gpu_kernels.LOSS, result, inputs, _gpu_kernels.SCALES["QuACK"]) < 1e-6
    assert _gpu_kernels.off_by(_gpu_kernels.LOSS, result, inputs) > 1


def test_small_calls_are_compared_with_bare_launches_of_the_same_arguments(monkeypatch):
    kernels = []

    def raw_kernel(text, name):
        kernels.append(text)
        return lambda grid, block, arguments: None

    stream = SimpleNamespace(synchronize=lambda: None)
    cuda = SimpleNamespace(get_current_stream=lambda: stream)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, RawKernel=raw_kernel))
    numbers = np.uint64(1), np.float32(2), np.int32(3), np.int64(4), np.float64(5)
    bare = _gpu_kernels.bare_launch((*numbers, np.zeros(3)))
    bare()
    parameters = "unsigned long long p0, float p1, int p2, long long p3, double p4, void* p5"
    assert kernels == [f'extern "C" __global__ void nothing({parameters}) {{}}']
    assert 0 < _gpu_kernels.of_host(bare) < 1000


def test_what_both_libraries_keep_at_hand_is_given_back(monkeypatch):
    asked = []
    pool = SimpleNamespace(free_all_blocks=lambda: asked.append("CuPy"))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(get_default_memory_pool=lambda: pool))
    cuda = SimpleNamespace(empty_cache=lambda: asked.append("PyTorch"))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    _gpu_kernels.give_back()
    monkeypatch.delitem(sys.modules, "torch")
    _gpu_kernels.give_back()
    assert asked == ["CuPy", "PyTorch", "CuPy"]
