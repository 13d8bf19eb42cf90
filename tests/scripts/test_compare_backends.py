"""The comparison of backends: what it finds, what it writes, and that it does not let a fault pass."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import SCRIPTS

for module in ("sklearn", "rich", "matplotlib", "array_api_strict"):
    pytest.importorskip(module)

SCRIPT = SCRIPTS / "compare_backends.py"
QUICK = ["--epochs", "1", "--hidden", "16"]


@pytest.fixture
def script(monkeypatch):
    """The script as a module of its own, so that a test may break it."""
    spec = importlib.util.spec_from_file_location("compare_backends", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_backends", module)  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, monkeypatch, tmp_path, capsys):
    """Call its main function in an empty folder; return the exit status, the JSON and the printed text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def call(*argv):
        status = script.main([*QUICK, *argv])
        return status, json.loads(Path("report/compare_backends.json").read_text()), capsys.readouterr().out

    return call


def command(*argv, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # it imports _report
    arguments = [sys.executable, str(SCRIPT), *argv]
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run of the command on two backends, and the folder it wrote to."""
    folder = tmp_path_factory.mktemp("report")
    options = ["--backend", "numpy", "--backend", "array-api-strict", "--json", "new/a.json", "--plot", "b.png"]
    options += ["--html", "new/c.html"]
    (folder / "new").mkdir()
    (folder / "new/c.html").write_text("what was there before" * 1000)
    return command(*QUICK, *options, cwd=folder), folder


def test_a_run_succeeds_and_says_where_the_files_are(finished):
    process, _ = finished
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert "array-api-strict" in process.stdout
    assert "new/a.json" in process.stdout
    assert "b.png" in process.stdout
    assert "new/c.html" in process.stdout


def test_progress_is_printed_without_a_terminal(finished):
    process, _ = finished
    assert process.stdout.index("numpy 2") < process.stdout.index("array-api-strict") < process.stdout.index("Digits")


def test_the_printed_text_explains_its_columns_and_ends_with_the_verdict(finished):
    process, _ = finished
    text = " ".join(process.stdout.split())
    meanings = (
        "train, test: share",
        "ms a step: median",
        "speed: NumPy's time",
        "eps: 1.19e-07",
        "budget: the largest",
    )
    order = [text.index(words) for words in (*meanings, "A sure row: logits 20, 0, -1 in float32", "Every library is")]
    assert order == sorted(order)
    assert "array-api-strict takes" in text
    assert "it checks each operation" in text


def test_the_textbook_formula_loses_the_sure_row_and_this_package_does_not(finished):
    _, folder = finished
    content = json.loads((folder / "new/a.json").read_text())
    right = content["sure_row"]["exact"]
    assert right["loss"] == pytest.approx(2.8194e-9, rel=1e-4)
    for result in content["backends"].values():
        assert result["sure_row"]["textbook"] == {"loss": 0.0, "gradient": 0.0}
        assert result["sure_row"]["xpsoftmax"] == pytest.approx(right, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_exact_numbers_of_the_sure_row(script, dtype):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        first, *others = (mpmath.exp(logit) for logit in script.row(dtype))
        p = first / (first + sum(others))
        wanted = {"loss": float(-mpmath.log(p)), "gradient": float(p - 1)}
    assert script.exact(dtype) == pytest.approx(wanted, rel=1e-15)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_sure_row_that_is_wrong_is_a_problem(script, value):
    right = script.exact("float32")
    found = {"textbook": right, "xpsoftmax": right | {"gradient": value}}
    result = script.Result("", "", 1.0, 0.97, 0.0, {}, (1.0, 1.0, 1.0), [], found)
    report = script.Report(script.Settings(epochs=2), {}, {}, {"dask": result})
    (problem,) = script.judged("dask", report)
    assert problem.startswith("dask: the sure row has a relative error of")
    result.sure_row["xpsoftmax"] = right
    assert script.judged("dask", report) == []


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path):
    """Its imports are refused, as where it is not installed; so is the package itself, in a clone."""
    for name in ("rich", "xpsoftmax"):
        code = "\n".join(
            (
                "import importlib.util, runpy, sys",
                "find = importlib.util.find_spec",
                f"importlib.util.find_spec = lambda name, *more: None if name == {name!r} else find(name, *more)",
                f"sys.path.insert(0, {str(SCRIPT.parent)!r})",
                f"sys.argv = [{str(SCRIPT)!r}]",
                f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')",
            )
        )
        process = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert process.returncode == 2, process.stderr
        assert process.stderr == (
            f"compare_backends.py: not installed: {name}.\n"
            "In a clone of the repository: python -m pip install '.[report]'\n"
        )


def test_json_has_results_of_both_backends(finished):
    _, folder = finished
    content = json.loads((folder / "new/a.json").read_text())
    assert list(content["backends"]) == ["numpy", "array-api-strict"]
    for result in content["backends"].values():
        assert 0.1 < result["test_accuracy"] < 1.0
        assert len(result["losses"]) == 1
        assert result["step_seconds"] == sorted(result["step_seconds"])
        assert result["speed"] > 0.0
    assert content["backends"]["numpy"]["version"] == np.__version__
    assert content["backends"]["numpy"]["speed"] == 1.0
    assert content["problems"] == []


def test_differences_of_float32_are_small_and_not_zero(finished):
    """Zero would mean that something was compared with itself."""
    _, folder = finished
    content = json.loads((folder / "new/a.json").read_text())
    for result in content["backends"].values():
        assert list(result["differences_eps"]) == ["first", "trained"]
        for state, found in result["differences_eps"].items():
            assert list(found) == ["loss", "W1", "b1", "W2", "b2"]
            assert all(0.0 < eps < content["budgets_eps"][state] for eps in found.values())


def test_json_tells_how_it_was_made(finished):
    _, folder = finished
    content = json.loads((folder / "new/a.json").read_text())
    assert content["command"].startswith("python scripts/compare_backends.py --epochs 1 --hidden 16 --backend numpy")
    assert content["options"] == {
        "dtype": "float32",
        "epochs": 1,
        "batch_size": 128,
        "hidden": 16,
        "learning_rate": 0.5,
        "seed": 0,
    }
    assert {"python", "xpsoftmax", "numpy", "scikit-learn"} <= set(content["versions"])
    assert content["hardware"]["cores"] >= 1
    assert str(folder) not in json.dumps(content)


def test_plot_is_a_png(finished):
    _, folder = finished
    assert (folder / "b.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_page_replaces_what_was_there_and_has_the_numbers_of_the_json(finished):
    _, folder = finished
    text = (folder / "new/c.html").read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert "what was there before" not in text
    for result in json.loads((folder / "new/a.json").read_text())["backends"].values():
        assert f"{result['final_loss']:.6f}" in text
        assert f"{1e3 * result['step_seconds'][1]:.3g}" in text


def test_an_accuracy_below_the_limit_counts_with_default_options_only(finished):
    process, folder = finished
    content = json.loads((folder / "new/a.json").read_text())
    assert content["backends"]["numpy"]["test_accuracy"] < content["accuracy_limits"]["least"]
    assert process.returncode == 0


def test_every_backend_is_compared_or_listed_as_unusable(script, tmp_path):
    """In a process of its own: it changes settings of JAX and dask."""
    process = command(*QUICK, cwd=tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    content = json.loads((tmp_path / "report/compare_backends.json").read_text())
    assert {*content["backends"], *content["unusable"]} == set(script.LOADERS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_default_hyper_parameters_reach_the_accuracy(script, dtype):
    settings = script.Settings(dtype=dtype)
    result = script.run(script.LOADERS["numpy"](dtype), script.drawn(settings), {}, settings, lambda: None)
    assert result.test_accuracy >= script.LEAST_ACCURACY
    report = script.Report(settings, {}, {}, {"numpy": result})
    assert script.judged("numpy", report) == []


@pytest.mark.parametrize(("test_accuracy", "message"), [(0.94, "is below 95%"), (0.96, "2.00% from NumPy's")])
def test_accuracy_is_judged_with_default_options(script, test_accuracy, message):
    results = {
        name: script.Result("", "", 1.0, value, 0.0, {}, (1.0, 1.0, 1.0), [])
        for name, value in (("numpy", test_accuracy + 0.02), ("dask", test_accuracy))
    }
    problems = script.judged("dask", script.Report(script.Settings(), {}, {}, results))
    assert any(message in problem for problem in problems)
    assert script.judged("dask", script.Report(script.Settings(epochs=2), {}, {}, results)) == []


@pytest.mark.parametrize("at_fault", ["loss", "W1", "b1", "W2", "b2"])
@pytest.mark.parametrize("factor", [1.001, math.nan])
def test_a_fault_in_one_backend_is_found(script, run, monkeypatch, at_fault, factor):
    """One part in a thousand: no one would see it in the accuracy."""
    right = script.mlp_loss_and_grad

    def wrong(params, X, y, **options):
        loss, grads = right(params, X, y, **options)
        if not type(X).__module__.startswith("array_api_strict"):
            return loss, grads
        parts = dict(zip(script.QUANTITIES, (loss, *grads[0], *grads[1]), strict=True))
        parts[at_fault] = parts[at_fault] * factor
        loss, W1, b1, W2, b2 = parts.values()
        return loss, (script.Layer(W1, b1), script.Layer(W2, b2))

    monkeypatch.setattr(script, "mlp_loss_and_grad", wrong)
    status, content, text = run("--backend", "array-api-strict")
    assert status == 1
    assert any(f"array-api-strict: {at_fault} at the first weights" in problem for problem in content["problems"])
    assert not any(problem.startswith("numpy") for problem in content["problems"])
    assert "PROBLEM: array-api-strict" in text


def test_numpy_in_float64_is_the_reference(run):
    status, content, _ = run("--backend", "numpy", "--dtype", "float64")
    assert status == 0
    for found in content["backends"]["numpy"]["differences_eps"].values():
        assert set(found.values()) == {0.0}


def test_absent_backends_are_listed_with_the_reason(script, run, monkeypatch):
    def absent(dtype):
        raise ModuleNotFoundError("No module named 'cupy'", name="cupy")

    def incomplete(dtype):
        raise ModuleNotFoundError("No module named 'jaxlib'", name="jaxlib")

    def broken(dtype):
        raise RuntimeError("no device")

    loaders = {"numpy": script.LOADERS["numpy"], "cupy": absent, "jax": incomplete, "torch": broken}
    monkeypatch.setattr(script, "LOADERS", loaders)
    status, content, text = run()
    assert status == 0
    assert content["unusable"] == {
        "cupy": "not installed",
        "jax": "ModuleNotFoundError: No module named 'jaxlib'",
        "torch": "installed, but it cannot be used here: RuntimeError: no device",
    }
    assert "not used: cupy: not installed\n" in text


def test_a_backend_that_is_asked_for_must_be_usable(script, run, monkeypatch, capsys):
    def broken(dtype):
        raise RuntimeError("no device\nand more lines")

    monkeypatch.setitem(script.LOADERS, "cupy", broken)
    with pytest.raises(SystemExit) as stop:
        run("--backend", "cupy")
    assert stop.value.code == 2
    reason = "installed, but it cannot be used here: RuntimeError: no device"
    assert capsys.readouterr().err == f"compare_backends.py: --backend cupy: {reason}\n"
    assert not Path("report").exists()


def test_a_backend_that_fails_does_not_hide_the_others(script, run, monkeypatch):
    def failing(dtype):
        def broken(function):
            raise MemoryError("all gone")

        return script.replace(script.LOADERS["array-api-strict"](dtype), compiled=broken)

    numpy, strict = (script.LOADERS[name] for name in ("numpy", "array-api-strict"))
    monkeypatch.setattr(script, "LOADERS", {"numpy": numpy, "torch": failing, "array-api-strict": strict})
    status, content, _ = run()
    assert status == 1
    assert content["problems"] == ["torch failed: MemoryError: all gone"]
    assert list(content["backends"]) == ["numpy", "array-api-strict"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "tensorflow"], "invalid choice: 'tensorflow'"),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--hidden", "many"], "argument --hidden: invalid int value: 'many'"),
        (["--batch-size", "1348"], "--batch-size must be at most 1347, the rows of the training set, got 1348"),
        (["--learning-rate", "nan"], "--learning-rate must be a positive number, got nan"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--json", "."], "Is a directory"),
        (["--html", "."], "Is a directory: '.'"),
        (["--html", "/dev/null/page.html"], "/dev/null"),
    ],
)
def test_bad_options_end_with_status_2_and_one_line(script, monkeypatch, tmp_path, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "LOADERS", {name: script.LOADERS[name] for name in ("numpy", "array-api-strict")})
    with pytest.raises(SystemExit) as stop:
        script.main(options)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_backend_ends_the_command_with_status_2(tmp_path):
    process = command("--backend", "tensorflow", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith("compare_backends.py: argument --backend: invalid choice: 'tensorflow'")


@pytest.mark.parametrize(
    ("found", "exact", "expected"),
    [
        ([1.0, -3.0], [1.0, -4.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),  # the gradient of a dead hidden unit
        ([0.0, 1e-30], [0.0, 0.0], math.inf),
        ([math.nan, 0.0], [1.0, 0.0], math.nan),
        ([1.0, 0.0], [math.nan, 0.0], math.nan),
    ],
)
def test_distance_is_relative_to_the_largest_entry(script, found, exact, expected):
    np.testing.assert_equal(script.distance(np.array(found), np.array(exact)), expected)


def test_the_budget_grows_with_the_lengths_of_the_sums_and_with_the_logits(script):
    task = script.drawn(script.Settings(batch_size=100, hidden=32))
    nothing = script.mapped(np.zeros_like, task.params)
    assert script.budget(task, nothing) == 100 + 10 + (64 + 32) * 1.0
    assert script.budget(task, (nothing[0], nothing[1]._replace(bias=np.full(10, -7.0)))) == 110 + 96 * 7.0


def test_two_draws_are_the_same_and_another_seed_changes_no_data(script):
    one, same, other = (script.drawn(script.Settings(seed=seed, epochs=2)) for seed in (0, 0, 1))
    np.testing.assert_equal(vars(one), vars(same))
    np.testing.assert_equal(one.X_test, other.X_test)
    assert not np.array_equal(one.batches[0][0], other.batches[0][0])
    assert not np.array_equal(one.params[0].weight, other.params[0].weight)
