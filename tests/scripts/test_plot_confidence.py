"""The plot of lost digits: that its reference is right, that it sees what is lost, and that it writes what it found."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import plot_confidence as script
from oracle import bound, softmax_loss

QUICK = ["--rows", "2", "--library", "NumPy", "--library", "xpsoftmax"]


def run(tmp_path, *argv):
    paths = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    status = script.main([*QUICK, *paths, *argv])
    return status, json.loads((tmp_path / "a.json").read_text())


def test_a_run_of_the_command_succeeds_and_writes_its_files(tmp_path):
    argv = [*QUICK, "--step", "40", "--dtype", "float32"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # it imports harness
    command = [sys.executable, str(Path(script.__file__)), *argv]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    content = json.loads((tmp_path / "report" / "confidence.json").read_text())
    assert content["command"] == "python benchmarks/plot_confidence.py " + " ".join(argv)
    assert {"commit", "versions", "hardware", "absent", "problems", "panels"} <= content.keys()
    assert (tmp_path / "report" / "confidence.png").read_bytes().startswith(b"\x89PNG")
    assert "Written: report/confidence.json and report/confidence.png" in process.stdout


@pytest.mark.parametrize("gap", [0.0, 3.0, 50.0, 85.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reference_equals_that_of_the_tests(gap, dtype):
    z, y = script.drawn(gap, 3, dtype)
    desired = softmax_loss(z, y, reduction="none")
    for i in range(3):
        loss, dz = script.exact(z[i], y[i])
        assert float(loss) == pytest.approx(float(desired.loss.value[i]), rel=1e-15)
        np.testing.assert_allclose([float(x) for x in dz], desired.grad.value[i].astype(float), rtol=1e-15)


def test_the_bound_is_that_of_the_tests():
    for dtype in script.DTYPES:
        for gap in (0.0, 20.0, 80.0):
            z, _ = script.drawn(gap, 4, dtype)
            assert script.bound(z) == pytest.approx(float(bound(z).max()), rel=1e-6)


def test_the_label_leads_by_the_gap():
    z, y = script.drawn(30.0, 5, "float64")
    others = np.where(np.arange(script.CLASSES) == y[:, None], -np.inf, z)
    np.testing.assert_allclose(z[np.arange(5), y] - others.max(axis=1), 30.0, rtol=1e-14)


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 17.0), ("float64", 37.0)])
def test_the_standard_formula_loses_everything_and_this_library_nothing(tmp_path, dtype, gap):
    status, content = run(tmp_path, "--dtype", dtype, "--step", "4" if dtype == "float32" else "16")
    assert status == 0
    (panel,) = content["panels"]
    for quantity in script.QUANTITIES:
        plain, ours = (panel["curves"][name][quantity] for name in ("NumPy", "xpsoftmax"))
        beyond = [i for i, x in enumerate(panel["gaps"]) if x > gap]
        assert beyond
        assert all(plain[i] > 0.5 for i in beyond)
        assert all(error <= limit for error, limit in zip(ours, panel["bound"], strict=True))
        assert panel["curves"]["xpsoftmax"]["lost_from"][quantity] is None
        assert panel["curves"]["NumPy"]["lost_from"][quantity] <= gap + 16.0
    assert panel["compared"] >= len(panel["gaps"]) * 4


def test_a_wrong_gradient_of_this_library_is_a_problem(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(script.LIBRARIES, "xpsoftmax", script.plain)
    status, content = run(tmp_path, "--dtype", "float32", "--step", "20")
    assert status == 1
    assert any(problem.startswith("xpsoftmax gradient float32: error 1 at gap 20") for problem in content["problems"])
    assert "PROBLEM: xpsoftmax loss float32: error 1 at gap 20" in capsys.readouterr().out


def test_nan_is_an_infinite_error():
    assert script.relative_error(math.nan, Decimal(1)) == math.inf


def test_what_is_absent_is_listed_with_the_reason(tmp_path, monkeypatch, capsys):
    def absent(z, y):
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setitem(script.LIBRARIES, "torch", absent)
    status, content = run(tmp_path, "--dtype", "float32", "--step", "50", "--library", "torch")
    assert status == 0
    assert content["absent"] == {"torch": "ModuleNotFoundError: No module named 'torch'"}
    assert "not used: torch: ModuleNotFoundError" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["torch", "jax", "scikit-learn", "SciPy"])
def test_the_other_libraries_are_called_rightly(name):
    """Where no digits are lost they agree with the reference."""
    z, y = script.drawn(0.0, 3, "float64")
    try:
        losses, grads = script.LIBRARIES[name](z.copy(), y)
    except ImportError as error:
        pytest.skip(str(error))
    desired = softmax_loss(z, y, reduction="none")
    np.testing.assert_allclose(losses, desired.loss.value.astype(float), rtol=1e-13)
    np.testing.assert_allclose(grads, desired.grad.value.astype(float), rtol=1e-13)


@pytest.mark.parametrize("argv", [["--step", "0"], ["--step", "nan"], ["--rows", "0"], ["--library", "x"]])
def test_a_bad_option_ends_with_one_line(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        script.main(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
