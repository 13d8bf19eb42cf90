"""The benchmark of training: that it verifies before it times, measures memory, and writes what it found."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from backends import numpy_as_cupy
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


# --- on a GPU, with NumPy in the place of CuPy ------------------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch):
    """A module of the name cupy; how often the GPU was waited for."""
    waits = []
    runtime = SimpleNamespace(deviceSynchronize=lambda: waits.append(1))
    monkeypatch.setitem(sys.modules, "cupy", numpy_as_cupy(cuda=SimpleNamespace(runtime=runtime)))
    return waits


def test_on_a_gpu_the_time_is_that_of_one_step_and_events_are_counted(script, run, waits, monkeypatch):
    def slow(case):
        call, verify = script.plain_numpy(case)
        return lambda: (time.sleep(2e-3), call()), verify

    monkeypatch.setitem(script.COMPETITORS, "CuPy", slow)
    monkeypatch.setattr(script, "events", lambda call: {"kernels": 7, "waits": 1})
    ours = [word for name in ("CuPy", *OURS[3::2]) for word in ("--competitor", name)]
    status, content, text = run("--device", "cuda", "--case", "6x4x5x3", *ours)
    assert status == 0
    assert waits
    (finding,) = content["findings"]
    assert set(finding["timings"]) == {"CuPy", "xpsoftmax functions", "xpsoftmax train"}
    assert 2e-3 <= finding["timings"]["CuPy"]["low"] < script.GPU_STEPS * 2e-3
    assert "7 kernels, 1 waits" in text


def test_kernels_and_waits_are_told_from_other_events(script):
    names = {
        ("cudaLaunchKernel", "DeviceType.CPU"): None,
        ("cuLaunchKernel", "DeviceType.CPU"): None,
        ("cudaStreamSynchronize", "DeviceType.CPU"): "waits",
        ("cudaMemcpy", "DeviceType.CPU"): "waits",
        ("cudaMemcpyAsync", "DeviceType.CPU"): None,
        ("Memcpy DtoH (Device -> Pageable)", "DeviceType.CUDA"): "copies",
        ("softmax_loss", "DeviceType.CUDA"): "kernels",
        ("cupy_multiply__float_float_float", "DeviceType.CUDA"): "kernels",
        ("cutlass_80_simt_sgemm_128x64_8x5_nn_align1", "DeviceType.CUDA"): "kernels",
        ("aten::mm", "DeviceType.CPU"): None,
    }
    for (name, device), kind in names.items():
        assert script.kind_of_event(SimpleNamespace(name=name, device_type=device)) == kind
    step = SimpleNamespace(name="Optimizer.step#SGD.step", device_type="DeviceType.CUDA", is_user_annotation=True)
    assert script.kind_of_event(step) is None


def test_without_a_profiler_times_remain(script, run, waits, monkeypatch):
    def none(call):
        raise RuntimeError("no profiler")

    monkeypatch.setattr(script, "events", none)
    status, content, _ = run("--device", "cuda", "--case", "6x4x5x3", "--competitor", "CuPy")
    assert status == 1
    assert content["findings"][0]["problems"] == ["no events were counted: RuntimeError: no profiler"]
    assert "CuPy" in content["findings"][0]["timings"]


def test_without_a_peak_times_remain(script, run, waits, monkeypatch):
    def none(call):
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(script, "gpu_peak_mib", none)
    monkeypatch.setattr(script, "events", lambda call: {})
    status, content, _ = run("--device", "cuda", "--case", "6x4x3", "--competitor", "CuPy")
    assert status == 1
    assert content["findings"][0]["problems"] == ["no peak of CuPy: ModuleNotFoundError: No module named 'torch'"]
    assert "CuPy" in content["findings"][0]["timings"]
