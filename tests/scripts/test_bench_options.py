"""The benchmark of options: that it verifies before it times, and writes what it found."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
from paths import BENCHMARKS

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

QUICK = ["--shape", "6x4", "--seconds", "0.01"]


@pytest.fixture
def script(monkeypatch, short_samples):
    """The script as a module of its own, so that a test may break it."""
    for name in ("bench", "bench_options"):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, tmp_path, capsys):
    def call(*argv):
        path = tmp_path / "a" / "b.json"
        status = script.main([*QUICK, "--json", str(path), *argv])
        return status, json.loads(path.read_text()), capsys.readouterr().out

    return call


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_case_is_verified_and_timed(run, script, dtype):
    status, content, _ = run("--dtype", dtype)
    assert status == 0
    assert {"command", "date", "commit", "versions", "hardware", "simd", "findings"} <= content.keys()
    assert [finding["case"] for finding in content["findings"]] == [", ".join(names) for names in script.CASES]
    for finding in content["findings"]:
        assert {"xpsoftmax", "xpsoftmax generic"} <= finding["timings"].keys()
        assert finding["dtype"] == dtype
        assert finding["to_plain"] > 0.0


def test_the_ratio_to_plain_is_that_of_the_medians(run):
    _, content, _ = run()
    times = {finding["case"]: finding["timings"]["xpsoftmax"]["median"] for finding in content["findings"]}
    for finding in content["findings"]:
        kind = finding["case"].split(", ")[0]
        assert finding["to_plain"] == pytest.approx(times[finding["case"]] / times[kind])


def test_a_wrong_result_is_not_timed(run, script, monkeypatch):
    ours = script.Problem.ours

    def wrong(self, impl):
        loss, grad = ours(self, impl)()
        return lambda: (loss, grad + np.float32(1e-2))

    monkeypatch.setattr(script.Problem, "ours", wrong)
    status, content, out = run()
    assert status == 1
    assert "xpsoftmax is off by" in content["findings"][0]["problems"][0]
    assert "PROBLEM: labels: xpsoftmax is off by" in out
    assert "xpsoftmax" not in content["findings"][0]["timings"]


@pytest.mark.parametrize("argv", [["--shape", "10"], ["--shape", "0x3"], ["--dtype", "float16"]])
def test_a_bad_option_ends_with_one_line(script, capsys, argv):
    with pytest.raises(SystemExit) as stop:
        script.main(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
