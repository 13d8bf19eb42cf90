"""What a notebook shows of results, states, layers and sums: a line; what is passed in their place is named."""

import re

import numpy as np
import pytest

import xpsoftmax as xs

D, H, C = 6, 5, 3


@pytest.fixture
def problem(rng):
    return xs.init_params((D, H, C), rng=0, activation="tanh"), rng.standard_normal((20, D)), rng.integers(0, C, 20)


def trained(problem, **more):
    options = {"optimizer": xs.adam(0.01), "epochs": 3, "batch_size": 10, "rng": 0}
    return xs.train(*problem, **(options | more))


NUMBER = r"\d[\d.e-]*"


def test_results(problem):
    assert re.fullmatch(rf"TrainResult\(6-5-3, 3 epochs, loss {NUMBER}\)", repr(trained(problem)))
    result = trained(problem, epochs=1, validation=problem[1:])
    assert re.fullmatch(rf"TrainResult\(6-5-3, 1 epoch, loss {NUMBER}, validation accuracy {NUMBER}\)", repr(result))
    stopped = trained(problem, callback=lambda step: step.step == 2)
    assert re.fullmatch(rf"TrainResult\(6-5-3, 1 epoch and 1 step, loss {NUMBER}\)", repr(stopped))
    assert str(result) == repr(result)


def test_a_result_shows_the_accuracy_of_its_parameters(problem):
    """With patience those of the best epoch."""
    held_out = problem[1], problem[2][::-1].copy()  # nothing to learn: the first epochs are the best
    result = trained(problem, validation=held_out, patience=2, epochs=30, optimizer=xs.adam(0.1))
    accuracies, best = result.history["validation_accuracy"], result.state.best[1]
    assert best < len(accuracies)
    assert repr(result).endswith(f"validation accuracy {accuracies[best - 1]:.3g})")
    assert repr(result.state).endswith(f"validation accuracy {accuracies[-1]:.3g})")


def test_states(problem):
    state = trained(problem).state
    assert re.fullmatch(rf"TrainState\(6-5-3, 3 epochs, loss {NUMBER}\)", repr(state))
    assert repr(state._replace(history={"loss": []})) == "TrainState(6-5-3, 3 epochs)"


def test_layers(backend, dtype):
    layers = [[backend.asarray(np.zeros(shape), dtype) for shape in ((4, 2), (2,))]]
    layer = xs.Layer(*layers[0])
    assert repr(layer) == f"Layer(4-2, {dtype})"
    carrying = type(xs.init_params((1, 1, 1), rng=0, activation="gelu")[0])(*layer)
    assert repr(carrying) == f"Layer(4-2, gelu, {dtype})"
    assert repr((carrying, layer)) == f"({carrying!r}, {layer!r})"


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (xs.Layer(1.0, None), "Layer(weight=1.0, bias=None)"),
        (xs.Layer("a", "b"), "Layer(weight='a', bias='b')"),
        (xs.Layer(np.zeros(2), 0), "Layer(weight=array([0., 0.]), bias=0)"),
    ],
)
def test_layers_of_what_are_no_weights(layer, shown):
    """JAX makes such of specs and axes."""
    assert repr(layer) == shown


def test_layers_that_jax_traces():
    jax = pytest.importorskip("jax")
    shown = []

    def traced(params):
        shown.append(repr(params[0]))
        return params[0].weight.sum()

    jax.jit(traced)((xs.Layer(jax.numpy.zeros((4, 2), "float32"), jax.numpy.zeros(2, "float32")),))
    assert shown == ["Layer(4-2, float32)"]


def test_sums(problem):
    sums = xs.mlp_partial_sums(*problem)
    assert re.fullmatch(rf"PartialSums\(6-5-3, loss {NUMBER}, weight 20\.0\)", repr(sums))


# --- what is passed in the place of params ----------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(D, C), (D, H, C), (D, H, H, C)])
def test_what_has_parameters_is_not_them(problem, sizes):
    params, X, y = xs.init_params(sizes, rng=0), *problem[1:]
    result = trained((params, X, y))
    for wrong, name, attribute in (
        (result, "TrainResult", "params"),
        (result.state, "TrainState", "params"),
        (xs.mlp_partial_sums(params, X, y), "PartialSums", "grads"),
    ):
        message = rf"^params must be a sequence of \(weight, bias\) pairs, got a {name}\. Pass its `{attribute}`\.$"
        for call in (xs.mlp_logits, xs.mlp_predict):
            with pytest.raises(TypeError, match=message):
                call(wrong, X)
        with pytest.raises(TypeError, match=message):
            xs.mlp_loss_and_grad(wrong, X, y)
        with pytest.raises(TypeError, match=message):
            xs.sgd(0.1).init(wrong)


def test_a_classifier_is_not_its_parameters(problem):
    pytest.importorskip("sklearn")
    from xpsoftmax.sklearn import MLPClassifier

    model = MLPClassifier.from_params(problem[0])
    with pytest.raises(TypeError, match=r"^params must be a sequence .*got a MLPClassifier\. Pass its `params_`\.$"):
        xs.mlp_logits(model, problem[1])


def test_what_has_the_state_of_an_optimiser_is_not_it(problem):
    result, optimizer = trained(problem), xs.adam(0.01)
    _, grads = xs.mlp_loss_and_grad(*problem)
    with pytest.raises(TypeError, match=r"^state must be what init or update of .* Pass its `optimizer`\.$"):
        optimizer.update(problem[0], grads, result.state)
    with pytest.raises(TypeError, match=r"^state must be what init or update of .* Pass its `state\.optimizer`\.$"):
        optimizer.update(problem[0], grads, result)
    optimizer.update(problem[0], grads, result.state.optimizer)


def test_what_has_a_state_is_not_it(problem):
    with pytest.raises(TypeError, match=r"^resume must be the state of an earlier call, got a TrainResult\. Pass"):
        trained(problem, resume=trained(problem))
