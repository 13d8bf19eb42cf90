"""What users write is well typed: `nox -s typecheck` runs mypy --strict and pyright over this file, pytest runs it."""

from __future__ import annotations

import functools
import operator
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


def test_partial_sums_add_up_in_every_way() -> None:
    X, y = drawn()
    params = pairs()
    parts = [xs.mlp_partial_sums(params, X[start : start + 2], y[start : start + 2]) for start in range(0, 8, 2)]
    loss, _ = xs.mlp_loss_and_grad(params, X, y)
    by_start = sum(parts[1:], start=parts[0])
    by_reduce = functools.reduce(operator.add, parts)
    by_hand = functools.reduce(lambda one, other: one + other, parts)
    by_sum = sum(parts)
    assert by_sum  # an int for no parts
    for total in (by_start, by_reduce, by_hand, by_sum):
        found, _ = total.finish(params)
        assert abs(found - loss) < 1e-12


def test_trainings() -> None:
    X, y = drawn()
    net = xs.init_params((4, 5, 3), rng=0, activation="gelu", scheme="glorot")
    rate = xs.warm_up_schedule(xs.cosine_schedule(0.1, steps=10), steps=2)
    optimizer = xs.clip_by_global_norm(xs.sgd(rate, momentum=0.9), 1.0)

    def stop(step: xs.TrainStep) -> bool:
        return float(step.loss) < 0.0

    def report(step: xs.TrainStep) -> None:
        assert step.params[0].weight.shape == (4, 5)

    for callback in (stop, report):
        result = xs.train(
            net, X, y, optimizer=optimizer, epochs=2, batch_size=4, rng=0, validation=(X, y), callback=callback
        )
        params, history, state = result
        losses: list[float] = history["loss"]
        interrupted: bool = result.interrupted
        assert len(losses) == 4
        assert not interrupted
        again = xs.train(
            params, X, y, optimizer=optimizer, epochs=3, batch_size=4, rng=0, resume=state, validation=(X, y)
        )
        assert again.state.epoch == 3
    _, bias = net[0]
    layer: xs.Layer = net[0]._replace(bias=bias + 1.0)
    assert xs.mlp_predict((layer, *net[1:]), X, activation=layer.activation).shape == (8,)


def test_losses() -> None:
    X, y = drawn()
    loss, dlogits = xs.softmax_loss_and_grad(X, y, class_weight=np.ones(4), reduction="none", impl="generic")
    assert loss.shape == (8,)
    assert dlogits.shape == xs.softmax(X).shape
    with xs.threads(1):
        assert xs.softmax_loss(X, y, label_smoothing=0.1) > 0.0
