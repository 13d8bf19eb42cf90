"""scripts/_gpu_small.py with NumPy in the place of CuPy: it covers every size class, and sees a wrong number."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import _gpu_small
import numpy as np
import pytest
from backends import numpy_as_cupy

import xpsoftmax as xs
from xpsoftmax.kernels.cuda import sizes


@pytest.fixture
def cupy(monkeypatch):
    """A module of that name."""
    module = numpy_as_cupy(cuda=SimpleNamespace(set_allocator=lambda allocator: None))
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.mark.parametrize("dtype", _gpu_small.DTYPES)
def test_every_size_class_is_run(dtype):
    kinds = {sizes.size_class("softmax_loss", classes, dtype, 90) for classes in _gpu_small.widths(dtype)}
    assert kinds == set(sizes.classes_on("softmax_loss", dtype, 90))


def test_what_is_right_is_not_wrong(cupy, monkeypatch, capsys):
    monkeypatch.setattr(_gpu_small, "DTYPES", {"float32": 1e-5, "float16": 1e-3})
    assert _gpu_small.main() == 0
    assert capsys.readouterr().out == "0 steps were captured\n0 wrong\n"


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "softmax_loss_and_grad"])
def test_a_row_operation_that_is_wrong_is_named(name, cupy, monkeypatch, capsys):
    """The reference is computed in float64; in float32, what stands for the GPU, the last entry is off."""
    right = getattr(xs, name)

    def function(*arguments, **options):
        result = right(*arguments, **options)
        last = result[-1] if isinstance(result, tuple) else result
        if last.dtype == np.float32:
            last.flat[-1] += 1e-3 * np.abs(last).max()
        return result

    monkeypatch.setattr(xs, name, function)
    monkeypatch.setattr(_gpu_small, "DTYPES", {"float32": 1e-5})
    monkeypatch.setattr(_gpu_small, "widths", lambda dtype: [13])
    assert _gpu_small.main() == 1
    said = capsys.readouterr().out
    assert f"wrong: {name if 'loss' not in name else 'loss'}" in said
    assert said.endswith(f"{said.count('wrong: ')} wrong\n")


def test_a_rule_that_is_wrong_is_named(cupy, monkeypatch):
    right, optimizers = xs.train, []

    def train(*arguments, **options):
        result = right(*arguments, **options)
        if options["optimizer"] not in optimizers:  # the first is that on the GPU
            optimizers.append(options["optimizer"])
            result.params[0].bias[0] += 1e-2
        return result

    monkeypatch.setattr(xs, "train", train)
    assert next(iter(_gpu_small.wrong_training(cupy))) == "training with sgd"


def test_where_nvmath_is_installed_steps_must_be_captured(cupy, monkeypatch):
    monkeypatch.setattr(_gpu_small.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(_gpu_small, "trainings", lambda: [("sgd", {"optimizer": xs.sgd(0.1)})])
    capture = SimpleNamespace(_graph_of=lambda stream, work: "a graph")
    monkeypatch.setitem(sys.modules, "xpsoftmax.kernels.cuda.capture", capture)
    assert list(_gpu_small.wrong_training(cupy)) == ["training with sgd: no step was captured"]
    right, before = xs.train, capture._graph_of
    monkeypatch.setattr(xs, "train", lambda *args, **how: (capture._graph_of(0, 1), right(*args, **how))[1])
    assert list(_gpu_small.wrong_training(cupy)) == []
    assert capture._graph_of is before


def test_a_function_that_is_wrong_is_named(cupy, monkeypatch):
    right, calls = xs.mlp_predict, []
    monkeypatch.setattr(xs, "mlp_predict", lambda *args: (calls.append(0), right(*args) + len(calls))[1])
    assert list(_gpu_small.wrong_functions(cupy)) == ["mlp_predict"]


def test_shapes_and_numbers_that_are_not_finite_are_not_close():
    one = np.ones(3)
    assert _gpu_small.close(one, one, 0.0)
    assert not _gpu_small.close(one[:2], one, 1.0)
    assert not _gpu_small.close(np.full(3, np.nan), one, 1.0)
    assert not _gpu_small.close((one, one * 1.1), (one, one), 0.05)
