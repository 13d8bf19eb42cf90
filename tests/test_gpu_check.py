"""scripts/gpu_check.py, as far as it runs without a GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import _gpu_kernels
import gpu_check
import numpy as np
import pytest
from _backends import unusable

DEVICE = {"gpu": "A GPU", "cache_bytes": 1, "driver": 13000, "cuda": 13000, "cupy": "14.0"}
JUNIT = '<testsuites><testsuite tests="10" failures="1" errors="1" skipped="3"/></testsuites>'


def case(**timings):
    found = {name: {"ms": (1.0, 2.0, 3.0), "gb_per_s": speed, "off_by": 0.0} for name, speed in timings.items()}
    return {"rows": 8, "classes": 10, "dtype": "float32", "traffic_bytes": 640, "timings": found}


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
    numbers = SimpleNamespace(sum=lambda: sums)
    fake = SimpleNamespace(
        cuda=SimpleNamespace(runtime=runtime),
        arange=lambda n, dtype: SimpleNamespace(__mul__=None, sum=None) if n < 0 else np.array(sums / 2).reshape(1),
    )
    assert numbers.sum() == sums
    monkeypatch.setitem(sys.modules, "cupy", fake)
    assert gpu_check.usable_gpu() == reason


def test_tests_are_counted():
    assert gpu_check.counted(JUNIT) == {"passed": 5, "failed": 2, "skipped": 3}


def test_the_row_and_the_table_name_what_was_found():
    report = gpu_check.Report(DEVICE, tests={"status": 0, "passed": 5, "failed": 0, "skipped": 3})
    report.kernels.cases = [case(copy=4000.0, xpsoftmax=3600.0)]
    report.kernels.small_call = {"launches": 2, "microseconds": 12.34}
    report.kernels.problems = ["one"]
    line = gpu_check.row(report, "abc", "2026-01-02")
    result = "tests: 5 passed, 0 failed, 3 skipped; 8x10 float32 3600 GB/s; 1 problems"
    assert line == f"| 2026-01-02 | abc | A GPU | 13000, 13000, 14.0 | scripts/gpu_check.py | {result} |"
    text = gpu_check.table(report)
    assert "90% of copy" in text
    assert "2 launches, 12.3 microseconds of the host" in text
    assert text.endswith("PROBLEM: one")


def test_a_row_of_nothing_claims_nothing():
    report = gpu_check.Report(DEVICE, tests={"status": "not finished in 330 s"})
    assert "tests: not finished in 330 s; nothing timed; 0 problems" in gpu_check.row(report, None, "2026-01-02")


def test_what_is_trained_is_learnt():
    found = gpu_check.trained(np)
    assert found["last_loss"] < 0.6 * found["first_loss"]
    assert found["accuracy"] > 0.75


def test_the_usual_lines_are_right_on_numpy(monkeypatch):
    """The competitor that others are compared with, with NumPy in the place of CuPy."""
    monkeypatch.setitem(sys.modules, "cupy", np)
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(6, 4)).astype("f4"), rng.integers(4, size=6)
    inputs = _gpu_kernels.Inputs([z], y, np.empty_like(z), z, y)
    monkeypatch.setattr(_gpu_kernels, "CHECKED_ROWS", 6)
    for call in (_gpu_kernels.plain_cupy(inputs), _gpu_kernels.ours(inputs)):
        loss, grad = call(0)
        array = SimpleNamespace(astype=lambda kind, grad=grad: SimpleNamespace(get=lambda: grad.astype(kind)))
        sliced = type("Sliced", (), {"__getitem__": lambda self, rows, array=array: array})()
        assert _gpu_kernels.off_by((loss, sliced), inputs) < 1e-6
