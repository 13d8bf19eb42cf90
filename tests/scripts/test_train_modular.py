"""The experiment on modular addition: same data, same steps, one formula apart."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import train_modular as script
from textbook import dscores_vectorised

import xpsoftmax as xs

QUICK = script.Settings(modulus=7, hidden=16, steps=30, seeds=1, every=10)


def test_the_table_of_sums_is_split():
    task = script.drawn(QUICK, seed=0)
    rows = np.concatenate([task.X, task.X_test])
    assert len(task.X) == round(0.4 * 49)
    assert len(np.unique(rows, axis=0)) == 49
    numbers = rows.reshape(49, 2, 7).argmax(axis=2)
    np.testing.assert_array_equal(rows.sum(axis=1), 2.0)
    np.testing.assert_array_equal(numbers.sum(axis=1) % 7, np.concatenate([task.y, task.y_test]))


def test_the_standard_formula_is_the_textbooks(rng):
    z, y = rng.standard_normal((6, 5)), rng.integers(0, 5, 6)
    loss, dz = script.standard(z, y)
    np.testing.assert_allclose(dz, dscores_vectorised(z, y), rtol=0, atol=1e-15)
    assert loss == pytest.approx(float(xs.softmax_loss(z, y)), rel=1e-14)


def test_the_standard_formula_works_in_the_precision_of_the_logits(rng):
    z, y = np.array([[20.0, 0.0, 0.0]], np.float32), np.array([0])
    loss, dz = script.standard(z, y)
    assert loss.dtype == dz.dtype == np.float32
    assert loss == dz[0, 0] == 0.0
    assert dz[0, 1] > 0.0


def test_gradients_are_those_of_the_package(rng):
    task = script.drawn(QUICK, seed=0)
    params = xs.init_params((14, 16, 7), rng=0, dtype=np.float64)
    hidden, z = script.forward(params, task.X.astype(np.float64))
    _, dz = xs.softmax_loss_and_grad(z, task.y)
    _, desired = xs.mlp_loss_and_grad(params, task.X.astype(np.float64), task.y)
    for layer, want in zip(script.backward(params, task.X, hidden, dz), desired, strict=True):
        np.testing.assert_allclose(layer.weight, want.weight, atol=1e-15)
        np.testing.assert_allclose(layer.bias, want.bias, atol=1e-15)


def test_two_formulas_begin_alike_and_a_run_repeats():
    traces = {name: script.trained(QUICK, 0, halves) for name, halves in script.FORMULAS.items()}
    assert traces["standard"].step == [0, 10, 20, 30]
    assert traces["standard"].exact_loss == pytest.approx(traces["xpsoftmax"].exact_loss, rel=1e-3)
    assert traces["xpsoftmax"].exact_loss[-1] < traces["xpsoftmax"].exact_loss[0]
    again = script.trained(QUICK, 0, script.FORMULAS["xpsoftmax"])
    assert again.exact_loss == traces["xpsoftmax"].exact_loss


def test_the_formula_changes_after_half_of_the_steps():
    calls = []

    def first(z, y):
        calls.append("first")
        return xs.softmax_loss_and_grad(z, y)

    def second(z, y):
        calls.append("second")
        return xs.softmax_loss_and_grad(z, y)

    script.trained(QUICK, 0, (first, second))
    assert calls == ["first"] * 15 + ["second"] * 16  # the last one is recorded only


def test_zero_label_gradients_are_counted():
    trace, task = script.Trace(), script.drawn(QUICK, seed=0)
    params = xs.init_params((14, 16, 7), rng=0, dtype=np.float32)
    _, z = script.forward(params, task.X)
    dz = np.ones_like(z)
    dz[np.arange(5), task.y[:5]] = 0.0
    script.record(trace, 0, params, task, z, 1.0, dz)
    assert trace.zero_share == [5 / len(z)]
    assert trace.label_grad_norm == [pytest.approx((len(z) - 5) ** 0.5)]
    squares = sum(float((layer.weight.astype(float) ** 2).sum()) for layer in params)
    assert trace.weight_norm == [pytest.approx(squares**0.5, rel=1e-6)]
    assert trace.mean_logit == [pytest.approx(z.astype(float).mean())]


def test_a_run_writes_its_files(tmp_path, capsys):
    options = ["--modulus", "5", "--hidden", "8", "--steps", "20", "--seeds", "2", "--every", "10"]
    paths = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    assert script.main([*options, *paths]) == 0
    content = json.loads((tmp_path / "a.json").read_text())
    assert {name: len(traces) for name, traces in content["runs"].items()} == dict.fromkeys(script.FORMULAS, 2)
    assert content["options"]["modulus"] == 5
    assert len(content["summaries"]["standard"]) == 2
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("label gradients of zero") == 6


@pytest.mark.parametrize(
    "argv", [["--modulus", "1"], ["--steps", "0"], ["--train-share", "1"], ["--learning-rate", "0"], ["--x", "1"]]
)
def test_a_bad_option_ends_with_one_line(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        script.main(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
