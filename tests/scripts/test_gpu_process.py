"""Jobs of scripts/gpu_check.py in processes of their own, and what compiles for them."""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import _gpu_compile
import _gpu_process
import pytest

from xpsoftmax.kernels.cuda import texts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork there")


@pytest.fixture(autouse=True)
def few_imports(monkeypatch):
    monkeypatch.setattr(_gpu_process, "PRELOADED", ())


def test_what_is_yielded_comes_back():
    assert _gpu_process.results_of(range, 3, seconds=60) == ([0, 1, 2], None)


def test_an_error_is_told():
    found, problem = _gpu_process.results_of(map, int, ["1", "2", "x", "4"], seconds=60)
    assert found == [1, 2]
    assert problem == "ValueError: invalid literal for int() with base 10: 'x'"


def test_a_crash_costs_nothing_that_was_found():
    found, problem = _gpu_process.results_of(map, os._exit, [7], seconds=60)
    assert found == []
    assert problem == "the process ended with status 7"


def test_a_job_has_no_more_than_its_seconds(monkeypatch):
    monkeypatch.setattr(_gpu_process, "LEAST_SECONDS", 1.0)
    begin = time.monotonic()
    found, problem = _gpu_process.results_of(map, time.sleep, [0.0, 60.0], seconds=4)
    assert found == [None]
    assert problem == "not finished in 4 s"
    assert time.monotonic() - begin < 30
    assert _gpu_process.results_of(range, 3, seconds=0.5) == ([], "no time was left")


def test_everything_is_written_after_each_job(monkeypatch, tmp_path):
    done = {"one": ([1, float("nan")], None), "two": ([], "it crashed")}
    monkeypatch.setattr(
        _gpu_process, "results_of", lambda function, name, seconds: (asked.append(seconds), done[name])[1]
    )
    path, asked = tmp_path / "found.json", []
    content = {"found": [], "problems": []}
    for _, found in _gpu_process.jobs_written(path, content, {n: (None, n) for n in done}, 100.0, 30.0):
        content["found"] += found
    assert json.loads(path.read_text()) == {"found": [1, None], "problems": ["two: it crashed"]}
    assert asked == [30.0, 30.0]


def test_jobs_share_the_seconds(monkeypatch, tmp_path):
    monkeypatch.setattr(_gpu_process, "results_of", lambda function, seconds: (asked.append(seconds), ([], None))[1])
    asked = []
    list(_gpu_process.jobs_written(tmp_path / "x", {"problems": []}, {"a": (None,), "b": (None,)}, 3.0, 30.0))
    assert 2.9 < asked[1] <= asked[0] <= 3.0


# --- compiling --------------------------------------------------------------------------------------------------------


def test_every_kernel_is_compiled_once_and_the_largest_first():
    jobs = [arguments for _, arguments in _gpu_compile.kernels(90)]
    assert len(jobs) == len(set(jobs)) > 400
    vectors = [int(dict(defines).get("VECTORS", "0")) for _, defines in jobs]
    assert vectors == sorted(vectors, reverse=True)
    files = {path.stem for path in texts.Path(texts.__file__).parent.glob("*.cu")}
    assert {kernel for kernel, _ in jobs} == files


def test_all_competitors_that_torch_compiles_are_called():
    pytest.importorskip("torch")
    names = {function.__module__ for function, _ in _gpu_compile.calls()}
    assert names == {"_gpu_trainers", "_gpu_kernels", "_gpu_classes", "_gpu_torch"}


def test_what_cannot_be_compiled_is_named_and_the_others_are():
    done = []
    jobs = [(done.append, (1,)), (int, ("x",)), (done.append, (2,))]
    number, problems = _gpu_compile.side_by_side(jobs, ThreadPoolExecutor(2), 60.0)
    assert number == 3
    assert sorted(done) == [1, 2]
    assert problems == ["x: ValueError: invalid literal for int() with base 10: 'x'"]


def test_compiling_ends_with_its_time():
    jobs = [(time.sleep, (0.0,)), (time.sleep, (1.0,))]
    number, problems = _gpu_compile.side_by_side(jobs, ThreadPoolExecutor(1), 0.3)
    assert number == 1
    assert problems == ["1 of 2 were not done in 0 s"]


def test_only_a_kernel_of_the_package_that_cannot_be_compiled_is_a_failure(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(_gpu_compile, "processes", lambda most: ThreadPoolExecutor(1))
    monkeypatch.setattr(_gpu_compile, "calls", lambda: [(int, ("x",)), (int, ("1",))])
    path = tmp_path / "compile.json"
    assert _gpu_compile.main([str(path), "others", "60"]) == 0
    content = json.loads(path.read_text())
    assert content["compiled"] == 2
    assert len(content["not_compiled"]) == 1
    assert capsys.readouterr().out.startswith("2 of 2 compiled\nx: ")
    cuda = type(sys)("cupy.cuda")
    cuda.Device = lambda: type("Device", (), {"compute_capability": "90"})
    monkeypatch.setitem(sys.modules, "cupy", type(sys)("cupy"))
    sys.modules["cupy"].cuda = cuda
    monkeypatch.setattr(_gpu_compile, "kernels", lambda capability: [(int, (str(capability),)), (int, ("x",))])
    assert _gpu_compile.main([str(path), "ours"]) == 1


def test_a_kernel_is_compiled_as_the_launcher_does(monkeypatch):
    asked = []

    def raw_module(**options):
        asked.append(options)
        return type("Module", (), {"get_function": lambda self, name: asked.append(name)})()

    cupy = type(sys)("cupy")
    cupy.RawModule = raw_module
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    defines = (("SCALAR", "float"),)
    _gpu_compile.compile_kernel("total", defines)
    assert asked == [{"code": texts.source("total"), "options": texts.options(defines), "backend": "nvrtc"}, "total"]
