"""Mistaken keywords are answered by the right ones, and what is not an array by how to make one."""

import inspect

import numpy as np
import pytest

import xpsoftmax as xs

PARAMS = xs.init_params((2, 4, 3), rng=0)
X, Y = np.zeros((6, 2)), np.zeros(6, dtype=int)


def train(**options):
    return xs.train(PARAMS, X, Y, optimizer=xs.sgd(0.1), batch_size=2, rng=0, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: xs.adam(lr=0.1), r"adam\(\) has no argument 'lr'\. Did you mean learning_rate=\?"),
        (lambda: xs.adamw(0.1, decay=0.1), r"adamw\(\) has no argument 'decay'\. Did you mean weight_decay=\?"),
        (lambda: xs.adam(beta_1=0.9), r"adam\(\) has no argument 'beta_1'\. Did you mean betas=\?"),
        (lambda: xs.sgd(0.1, momentun=0.9), r"sgd\(\) has no argument 'momentun'\. Did you mean momentum=\?"),
        (lambda: train(epoch=1), r"train\(\) has no argument 'epoch'\. Did you mean epochs=\?"),
        (lambda: train(num_epochs=1), r"train\(\) has no argument 'num_epochs'\. Did you mean epochs=\?"),
        (
            lambda: train(epochs=1, lr=1.0),
            r"train\(\) has no argument 'lr'\. Did you mean optimizer=xs\.adam",
        ),
        (lambda: train(epochs=1, quux=1), r"train\(\) has no argument 'quux'\.$"),
        (
            lambda: xs.init_params(hidden=9, rng=0),
            r"init_params\(\) has no argument 'hidden'\. Did you mean sizes=",
        ),
        (lambda: xs.init_params((2, 3), seed=0), r"init_params\(\) has no argument 'seed'\. Did you mean rng=\?"),
    ],
)
def test_a_mistaken_keyword(call, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("option", "meant"), [("hidden", "hidden_layer_sizes"), ("epochs", "max_iter"), ("lr", "learning_rate_init")]
)
def test_a_mistaken_keyword_of_the_classifier(option, meant):
    pytest.importorskip("sklearn")
    from xpsoftmax.sklearn import MLPClassifier

    with pytest.raises(TypeError, match=rf"^MLPClassifier\(\) has no argument '{option}'\. Did you mean {meant}=\?$"):
        MLPClassifier(**{option: 1})


def test_what_is_meant_exists():
    """No suggestion of spelling or of another library names a keyword that is not there."""
    from xpsoftmax._arguments.suggestions import suggesting

    def function(rate, *, other):
        return rate + other

    checked = suggesting(lr="rate=")(function)
    assert checked(1, other=2) == 3
    assert inspect.signature(checked) == inspect.signature(function)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'other'"):
        checked(1)
    for name in ("learning_rate", "betas", "weight_decay"):
        assert name in inspect.signature(xs.adamw).parameters
    for name in ("optimizer", "epochs", "rng", "reg"):
        assert name in inspect.signature(xs.train).parameters


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: xs.softmax([1.0, 2.0]), r"logits must be .*, got list\. Make one with numpy\.asarray\.$"),
        (lambda: xs.softmax_loss(np.zeros(3), 0), r"targets must be .*, got int\. Make one with numpy\.asarray\.$"),
        (lambda: xs.softmax_loss(np.zeros(3), None), r"targets must be .*, got NoneType\.$"),
    ],
)
def test_what_is_no_array(call, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        call()


def test_dask_arrays_beside_parameters_in_memory():
    da = pytest.importorskip("dask.array")
    with pytest.raises(TypeError, match=r"^X must be .* For rows in dask arrays see xpsoftmax\.dask\.$"):
        xs.train(PARAMS, da.zeros((6, 2)), da.zeros(6, dtype=int), optimizer=xs.adam(), epochs=1, batch_size=2, rng=0)


def test_adam_has_the_usual_rate():
    for optimizer in (xs.adam(), xs.adamw()):
        assert optimizer.learning_rate == 1e-3


def test_dir_shows_what_is_public():
    assert set(dir(xs)) == {*xs.__all__, "__version__"}
    pytest.importorskip("dask.array")
    pytest.importorskip("distributed")
    import xpsoftmax.dask

    assert dir(xpsoftmax.dask) == sorted(xpsoftmax.dask.__all__)
    pytest.importorskip("sklearn")
    import xpsoftmax.sklearn

    assert dir(xpsoftmax.sklearn) == ["MLPClassifier"]
