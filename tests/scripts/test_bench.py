"""The benchmark: that it verifies before it times, says what is missing, and writes what it found."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import BENCHMARKS

for module in ("rich", "matplotlib"):
    pytest.importorskip(module)

SCRIPT = BENCHMARKS / "bench.py"
QUICK = ["--shape", "6x4", "--dtype", "float32", "--seconds", "0.01"]


@pytest.fixture
def script(monkeypatch, short_samples):
    """The script as a module of its own, so that a test may break it."""
    spec = importlib.util.spec_from_file_location("bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench", module)  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, monkeypatch, tmp_path, capsys):
    """Call its main function in an empty folder; return the exit status, the JSON and the printed text."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        status = script.main([*QUICK, *argv])
        return status, json.loads(Path("report/bench.json").read_text()), capsys.readouterr().out

    return call


def test_a_run_of_the_command_succeeds_and_writes_its_files(tmp_path):
    argv = [*QUICK, "--competitor", "xpsoftmax", "--competitor", "NumPy", "--json", "a/b.json", "--plot", "c.png"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # it imports harness
    process = subprocess.run(
        [sys.executable, str(SCRIPT), *argv],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    content = json.loads((tmp_path / "a" / "b.json").read_text())
    assert content["command"] == "python benchmarks/bench.py " + " ".join(argv)
    assert {"commit", "versions", "hardware", "simd", "absent", "findings"} <= content.keys()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "Written: a/b.json and c.png" in process.stdout


def test_every_operation_is_timed_on_every_competitor_that_has_it(run):
    status, content, _ = run()
    assert status == 0, [finding["problems"] for finding in content["findings"]]
    cases = [(finding["case"]["operation"], finding["case"]["logits"]) for finding in content["findings"]]
    operations = ["softmax", "log_softmax", "logsumexp", "softmax_loss", "softmax_loss_and_grad"]
    assert cases == [(name, "normal") for name in operations] + [("softmax_loss_and_grad", "shifted")]
    for finding in content["findings"]:
        ours = {"xpsoftmax", "xpsoftmax new", "xpsoftmax 1 thread", "xpsoftmax generic"}
        assert ours | {"NumPy"} <= finding["timings"].keys()
        for timing in finding["timings"].values():
            assert 0.0 < timing["low"] <= timing["median"] <= timing["high"]
            assert timing["samples"] >= 5
            assert timing["error"] <= 1e-4
        assert finding["gigabytes_per_second"] > 0.0


def test_the_share_of_rows_that_are_shifted_is_counted(run):
    _, content, out = run("--operation", "softmax_loss_and_grad", "--competitor", "xpsoftmax")
    assert [finding["shifted_rows"] for finding in content["findings"]] == [0.0, 1.0]
    assert "100%" in out


def test_validation_and_dispatch_are_the_part_that_is_not_the_kernel(run):
    options = ["--operation", "softmax_loss_and_grad", "--competitor", "xpsoftmax", "--competitor", "kernel"]
    _, content, out = run(*options)
    for finding in content["findings"]:
        times = {name: timing["median"] for name, timing in finding["timings"].items()}
        assert finding["overhead"] == pytest.approx(1.0 - times["kernel"] / times["xpsoftmax"])
    assert "validation and dispatch take" in out


def test_a_wrong_result_is_not_timed(run, script, monkeypatch):
    def wrong(case):
        return lambda: script.plain_numpy(case)() + np.float32(1e-3)

    monkeypatch.setitem(script.COMPETITORS, "NumPy", wrong)
    status, content, out = run("--operation", "softmax", "--competitor", "xpsoftmax", "--competitor", "NumPy")
    (finding,) = content["findings"]
    assert status == 1
    assert list(finding["timings"]) == ["xpsoftmax"]
    assert "NumPy is off by" in finding["problems"][0]
    assert "PROBLEM: softmax 6x4 float32 normal: NumPy is off by" in out


def test_a_wrong_gradient_or_nan_is_not_timed(run, script, monkeypatch):
    def wrong(case):
        def call():
            loss, grad = script.plain_numpy(case)()
            grad[0, 0] = np.nan
            return loss, grad

        return call if case.operation == "softmax_loss_and_grad" else None

    monkeypatch.setitem(script.COMPETITORS, "NumPy", wrong)
    status, content, _ = run("--operation", "softmax_loss_and_grad", "--competitor", "NumPy")
    assert status == 1
    assert all("off by inf" in finding["problems"][0] for finding in content["findings"])


def test_a_competitor_that_fails_in_a_case_is_reported(run, script, monkeypatch):
    def broken(case):
        if case.rows == 6:
            raise RuntimeError("no such shape")
        return lambda: None

    monkeypatch.setitem(script.COMPETITORS, "NumPy", broken)
    status, content, _ = run("--operation", "softmax", "--competitor", "NumPy")
    assert status == 1
    assert content["findings"][0]["problems"] == ["NumPy failed: RuntimeError: no such shape"]


def test_what_is_absent_is_listed_with_the_reason(run, script, monkeypatch):
    def absent(case):
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setitem(script.COMPETITORS, "torch", absent)
    status, content, out = run("--operation", "softmax", "--competitor", "xpsoftmax", "--competitor", "torch")
    assert status == 0
    assert content["absent"] == {"torch": "ModuleNotFoundError: No module named 'torch'"}
    assert "not used: torch: ModuleNotFoundError: No module named 'torch'" in out


def test_ratios_are_to_pytorch(run, script, monkeypatch):
    monkeypatch.setitem(script.COMPETITORS, "torch", script.plain_numpy)
    _, content, _ = run("--operation", "softmax", "--competitor", "xpsoftmax", "--competitor", "torch")
    (finding,) = content["findings"]
    times = {name: timing["median"] for name, timing in finding["timings"].items()}
    assert finding["ratios"]["xpsoftmax"] == pytest.approx(times["xpsoftmax"] / times["torch"])


@pytest.mark.parametrize("argv", [["--shape", "10"], ["--shape", "0x3"], ["--dtype", "float16"], ["--competitor", "x"]])
def test_a_bad_option_ends_with_one_line(script, capsys, argv):
    with pytest.raises(SystemExit) as stop:
        script.main(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
