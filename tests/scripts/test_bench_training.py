"""The benchmark of training: that it verifies before it times, measures memory, and writes what it found."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import BENCHMARKS

for module in ("rich", "sklearn"):
    pytest.importorskip(module)

OURS = [word for name in ("NumPy", "xpsoftmax functions", "xpsoftmax train") for word in ("--competitor", name)]


@pytest.fixture
def script(monkeypatch, short_samples):
    """The script as a module of its own, so that a test may break it."""
    spec = importlib.util.spec_from_file_location("bench_training", BENCHMARKS / "bench_training.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_training", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        status = script.main(["--seconds", "0.01", *argv])
        return status, json.loads(Path("report/bench_training.json").read_text()), capsys.readouterr().out

    return call


def test_a_step_is_timed_for_all_who_are_right(run):
    status, content, text = run("--case", "6x4x5x3", *OURS, "--competitor", "scikit-learn")
    assert status == 0
    (finding,) = content["findings"]
    assert set(finding["timings"]) == {"NumPy", "scikit-learn", "xpsoftmax functions", "xpsoftmax train"}
    assert all(timing["error"] < 1e-5 and timing["median"] > 0.0 for timing in finding["timings"].values())
    assert "6x4x5x3" in text


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc as on Linux")
def test_the_peak_of_a_linear_layer_is_measured(run):
    """N x C is 64 MiB: plain NumPy holds that several times; chunks of a sixteenth are not seen in it."""
    status, content, _ = run("--case", "2048x16x8192", *OURS[:4])
    assert status == 0
    peaks = content["findings"][0]["extra_mib"]
    assert peaks["NumPy"] > 2 * 64
    assert peaks["xpsoftmax functions"] < 80


@pytest.mark.parametrize("wrong", ["loss", "grads", "raises"])
def test_a_competitor_that_is_wrong_is_not_timed(wrong, script, run, monkeypatch):
    def broken(case):
        call, verify = script.plain_numpy(case)

        def bad():
            loss, grads = verify()
            if wrong == "raises":
                raise RuntimeError("no")
            return (loss * 1.01, grads) if wrong == "loss" else (loss, [*grads[:-1], grads[-1] * 1.01])

        return call, bad

    monkeypatch.setitem(script.COMPETITORS, "JAX", broken)
    status, content, _ = run("--case", "6x4x5x3", *OURS, "--competitor", "JAX")
    (finding,) = content["findings"]
    assert status == 1
    assert "JAX" not in finding["timings"]
    (problem,) = finding["problems"]
    assert ("JAX failed: RuntimeError: no" if wrong == "raises" else "JAX is off by 0.0") in problem


def test_textbook_gradients_are_those_of_numerical_differences(script):
    """What all others are verified with is verified itself."""
    import xpsoftmax as xs

    case = script.Case((7, 3, 4, 3))
    loss, grads = script.by_hand(case)
    arrays = [array.astype("f8") for layer in case.params for array in layer]
    for i, (array, grad) in enumerate(zip(arrays, grads, strict=True)):

        def function(x, i=i):
            weights = [*arrays[:i], x, *arrays[i + 1 :]]
            hidden = np.maximum(case.X.astype("f8") @ weights[0] + weights[1], 0.0)
            z = hidden @ weights[2] + weights[3]
            return np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(7), case.y])

        assert xs.check_grad(function, grad, array) < 1e-7
    assert abs(function(arrays[-1]) - loss) < 1e-12


@pytest.mark.parametrize("text", ["3x4", "0x4x5x6", "axbxcxd", "1x2x3x4x5"])
def test_bad_sizes_end_with_status_2(text, script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--case", text])
    assert stop.value.code == 2
    assert f"must be like 128x784x256x10, or 4096x512x32000 for a linear layer, got '{text}'" in capsys.readouterr().err


def test_missing_competitors_are_named(script, run, monkeypatch):
    def absent(case):
        raise ModuleNotFoundError("No module named 'jax'")

    monkeypatch.setitem(script.COMPETITORS, "JAX", absent)
    status, content, text = run("--case", "6x4x5x3", *OURS, "--competitor", "JAX")
    assert status == 0
    assert content["absent"] == {"JAX": "ModuleNotFoundError: No module named 'jax'"}
    assert "JAX is missing" in text
