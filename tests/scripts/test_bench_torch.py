"""The benchmark on tensors: that it verifies before it times, and writes what it found."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from paths import BENCHMARKS

torch = pytest.importorskip("torch")
pytest.importorskip("rich")

TINY = ["--shape", "6x4", "--seconds", "0.01"]
# Dynamo and Inductor warn about what they compile.
compiles = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def script(monkeypatch, short_samples):
    """The script as a module of its own, so that a test may break it."""
    spec = importlib.util.spec_from_file_location("bench_torch", BENCHMARKS / "bench_torch.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_torch", module)  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, tmp_path, capsys):
    def call(*argv):
        path = tmp_path / "a" / "b.json"
        status = script.main([*TINY, "--json", str(path), *argv])
        return status, json.loads(path.read_text()), capsys.readouterr().out

    return call


@pytest.fixture
def eager(script, monkeypatch):
    """Leave out what compiles for seconds."""
    for name in ("PyTorch compiled", "xpsoftmax compiled"):
        monkeypatch.delitem(script.COMPARISONS["cross_entropy"], name)


@compiles
def test_every_comparison_is_verified_and_timed(run, script):
    status, content, out = run()
    assert status == 0, out
    assert {"command", "date", "commit", "versions", "hardware", "simd", "absent", "findings"} <= content.keys()
    found = {(finding["comparison"], finding["dtype"]): finding for finding in content["findings"]}
    assert found.keys() == {(name, dtype) for name in script.COMPARISONS for dtype in script.DTYPES}
    for (comparison, dtype), finding in found.items():
        not_here = {*content["absent"], "Liger"}  # which is for GPUs
        if dtype == "bfloat16":
            not_here |= {"NumPy arrays", "JAX arrays", *script.COMPARISONS["jax.jit"]}
            not_here |= {"PyTorch tensors"} if comparison in script.NETWORKS else set()
        if comparison.startswith("MLPClassifier") and importlib.util.find_spec("sklearn") is None:
            not_here |= script.COMPARISONS[comparison].keys()
        assert finding["timings"].keys() == script.COMPARISONS[comparison].keys() - not_here
        for timing in finding["timings"].values():
            assert 0.0 < timing["low"] <= timing["median"] <= timing["high"]
            assert timing["error"] <= script.ALLOWED[dtype]
    for name, reason in content["absent"].items():
        assert f"not used: {name}: {reason}" in out


def test_ratios_are_those_of_the_medians_to_the_first(run, eager):
    _, content, out = run("--dtype", "float32", "--comparison", "cross_entropy")
    (finding,) = content["findings"]
    medians = {name: timing["median"] for name, timing in finding["timings"].items()}
    assert finding["ratios"] == pytest.approx({name: time / medians["PyTorch"] for name, time in medians.items()})
    assert f"({finding['ratios']['xpsoftmax']:.2f})" in out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("part", ["loss", "gradient"])
@pytest.mark.parametrize("name", ["PyTorch", "xpsoftmax"])
def test_a_competitor_that_is_wrong_is_not_timed(run, script, eager, monkeypatch, name, part, dtype):
    make = script.COMPARISONS["cross_entropy"][name]

    def wrong(problem):
        def call():
            loss, grad = make(problem)()
            return (loss * 1.05, grad) if part == "loss" else (loss, grad * 1.05)

        return call

    monkeypatch.setitem(script.COMPARISONS["cross_entropy"], name, wrong)
    status, content, out = run("--comparison", "cross_entropy", "--dtype", dtype)
    assert status == 1
    (finding,) = content["findings"]
    assert finding["timings"].keys() == {"PyTorch", "xpsoftmax"} - {name}
    assert f"{name} is off by" in finding["problems"][0]
    assert f"PROBLEM: cross_entropy 6x4 {dtype}: {name} is off by" in out


def test_wrong_results_on_other_arrays_are_seen_too(run, script, monkeypatch):
    makers = {"softmax_loss_and_grad": "PyTorch tensors", "train": "PyTorch tensors"}
    if "optax" not in script.missing():
        makers["jax.jit"] = "optax"
    for comparison, name in makers.items():
        make = script.COMPARISONS[comparison][name]

        def wrong(problem, make=make):
            call = make(problem)
            return None if call is None else lambda: (call()[0] * 1.05, *call()[1:])

        monkeypatch.setitem(script.COMPARISONS[comparison], name, wrong)
    status, content, _ = run("--dtype", "float32", *(f"--comparison={name}" for name in makers))
    assert status == 1
    for finding in content["findings"]:
        assert f"{makers[finding['comparison']]} is off by" in finding["problems"][0]


def test_what_is_not_installed_is_listed(run, script, eager, monkeypatch):
    monkeypatch.setitem(script.NEEDS, "no_such_package", ("xpsoftmax",))
    status, content, out = run("--dtype", "float32", "--comparison", "cross_entropy")
    assert status == 0
    assert content["absent"]["xpsoftmax"] == "no_such_package is not installed"
    assert "not used: xpsoftmax: no_such_package is not installed" in out
    assert content["findings"][0]["timings"].keys() == {"PyTorch"}


def test_the_limit_on_threads_holds_while_it_runs(run, script, eager, monkeypatch):
    before, seen = torch.get_num_threads(), []

    def seeing(problem):
        return lambda: seen.append(torch.get_num_threads()) or problem.exact()["softmax_loss_and_grad"]

    monkeypatch.setitem(script.COMPARISONS["cross_entropy"], "PyTorch", seeing)
    assert run("--threads", str(before + 1), "--comparison", "cross_entropy")[0] == 0
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "argv", [["--shape", "10"], ["--dtype", "float16"], ["--comparison", "optax"], ["--threads", "0"]]
)
def test_a_bad_option_ends_with_one_line(script, capsys, argv):
    with pytest.raises(SystemExit) as stop:
        script.main(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
