"""benchmarks/compare_sklearn.py and examples/plot_digits.py: that they run, and what they write."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
import compare_sklearn


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare_sklearn.py", *arguments])
    return compare_sklearn.main()


def test_accuracy(monkeypatch, tmp_path):
    monkeypatch.setattr(compare_sklearn, "DATA_SETS", ("iris",))
    assert run(monkeypatch, "--only", "accuracy", "--seeds", "2", "--json", str(tmp_path / "a.json")) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    (row,) = found["accuracy"]
    assert [len(scores) for scores in row["scores"].values()] == [2, 2]
    assert min(row["scores"]["xpsoftmax"]) > 0.8
    assert row["largest_difference"] == 0.0  # with three classes the fits are the same
    assert "time" not in found


def test_counts_of_words(monkeypatch):
    """Of a few of the standard library's files: the tests do not read all of it."""
    import source_counts

    every = source_counts.Path.rglob
    monkeypatch.setattr(source_counts.Path, "rglob", lambda folder, pattern: sorted(every(folder, "json/*.py")))
    monkeypatch.setattr(source_counts, "LINES", 20)
    X, y = source_counts.counts("float64")
    assert X.format == "csr"
    assert X.dtype == np.float64
    assert len(y) == X.shape[0] > 10
    assert 0.0 < X.nnz / np.prod(X.shape) < 0.5
    assert set(y) == set(range(len(set(y))))


def test_times_and_memory(monkeypatch, tmp_path):
    """Peaks are measured by the script itself, in another process: here of its smallest case."""
    name = "digits, 30 epochs"
    monkeypatch.setattr(compare_sklearn, "CASES", {name: compare_sklearn.CASES[name]})
    assert run(monkeypatch, "--only", "time", "--rounds", "1", "--json", str(tmp_path / "t.json")) == 0
    (row,) = json.loads((tmp_path / "t.json").read_text())["time"]
    assert row["case"] == name
    assert min(row["ratios"].values()) >= 0.0
    assert all(len(times) == 1 for kinds in row["seconds"].values() for times in kinds.values())


def test_the_case_of_many_classes_has_them_all(monkeypatch):
    case = next(case for case in compare_sklearn.CASES if case in compare_sklearn.CLASSES)
    rng = np.random.default_rng(0)
    small = rng.standard_normal((20, 3)), np.arange(20), {"hidden_layer_sizes": 2, "max_iter": 2}
    monkeypatch.setattr(compare_sklearn, "CASES", {case: lambda: small})
    for kind in compare_sklearn.KINDS:
        model, _, _ = compare_sklearn.fitted(kind, case)
        assert model.coefs_[-1].shape == (2, 20_000)
        assert len(model.loss_curve_) == 2


def test_the_picture_of_digits(monkeypatch, tmp_path, capsys):
    import matplotlib as mpl

    mpl.use("Agg")
    import plot_digits

    monkeypatch.setattr(sys, "argv", ["plot_digits.py", str(tmp_path / "digits.png")])
    assert plot_digits.main() == 0
    assert float(capsys.readouterr().out.removeprefix("accuracy:")) > 0.95
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
