"""What users write is well typed: `nox -s typecheck` runs mypy --strict over this file, pytest runs it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

import xpsoftmax as xs

Matrix = npt.NDArray[np.float64]


def drawn() -> tuple[Matrix, npt.NDArray[np.int64]]:
    return np.random.default_rng(0).standard_normal((8, 4)), np.arange(8) % 3


def pairs() -> list[tuple[Matrix, Matrix]]:
    return [(np.ones((4, 5)), np.zeros(5)), (np.ones((5, 3)), np.zeros(3))]


def test_plain_pairs_are_parameters(tmp_path: Path) -> None:
    X, y = drawn()
    tuples: list[tuple[Matrix, Matrix]] = pairs()
    lists: list[list[Matrix]] = [[weight, bias] for weight, bias in pairs()]
    whole: tuple[tuple[Matrix, Matrix], ...] = tuple(pairs())
    for params in (tuples, lists, whole):
        assert xs.mlp_logits(params, X).shape == (8, 3)
        assert xs.mlp_predict(params, X, activation="tanh").shape == (8,)
        loss, grads = xs.mlp_loss_and_grad(params, X, y)
        assert loss == xs.mlp_loss(params, X, y)
        optimizer = xs.sgd(0.1)
        updated, _ = optimizer.update(params, grads, optimizer.init(params))
        sums: xs.PartialSums = xs.mlp_partial_sums(params, X, y)
        sums.finish(params)
        result = xs.train(params, X, y, optimizer=optimizer, epochs=1, batch_size=4, rng=0)
        carried: list[str | None] = [layer.activation for layer in result.params]
        assert carried == ["relu", None]
        if find_spec("safetensors"):
            xs.save_params(tmp_path / "net", params)
        layers: tuple[xs.Layer, ...] = xs.to_namespace(params, np)
        assert len(layers) == len(updated)


def test_layers_are_parameters() -> None:
    X, _ = drawn()
    params = xs.init_params((4, 5, 3), rng=0, activation="tanh")
    assert xs.mlp_logits(params, X).shape == (8, 3)
    assert xs.mlp_logits((*params[:1], xs.Layer(np.ones((5, 2)), np.zeros(2))), X).shape == (8, 2)
    assert xs.mlp_logits([*params[:1], (np.ones((5, 2)), np.zeros(2))], X).shape == (8, 2)
    assert xs.mlp_logits(tuple(layer._replace(bias=layer.bias + 1.0) for layer in params), X).shape == (8, 3)
