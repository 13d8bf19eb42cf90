"""`MLPClassifier` on tensors in host memory: the bits of NumPy, learnt attributes and predictions as tensors."""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from sklearn.exceptions import ConvergenceWarning  # noqa: E402

from xpsoftmax._network import network  # noqa: E402
from xpsoftmax.sklearn import MLPClassifier  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N, D, C = 61, 6, 4


def data(convert=lambda array: array):
    rng = np.random.default_rng(0)
    X = convert(rng.standard_normal((N, D), np.float32))
    return X, convert(rng.permutation(np.arange(N) % C)), convert(rng.uniform(0.5, 2.0, N).astype("f4"))


def soft(convert):
    return convert(np.random.default_rng(1).dirichlet(np.ones(C), N).astype("f4"))


def model(**more):
    return MLPClassifier(**{"hidden_layer_sizes": (8,), "max_iter": 4, "random_state": 0, "batch_size": 10, **more})


def in_parts(convert):
    X, y, weight = data(convert)
    fitted = model()
    for rows in (slice(0, 30), slice(30, None)):
        fitted.partial_fit(X[rows], y[rows], classes=np.arange(C), sample_weight=weight[rows])
    return fitted


def went_on(convert):
    X, y, _ = data(convert)
    return model(warm_start=True, solver="sgd").fit(X, y).fit(X, y)


def validated(convert):
    X, y, weight = data(convert)
    return model(early_stopping=True).fit(X, y, X_val=X[:20], y_val=y[:20], sample_weight_val=weight[:20])


FITS = {
    "adam": lambda convert: model().fit(*data(convert)[:2]),
    "sgd": lambda convert: model(solver="sgd", learning_rate="adaptive").fit(*data(convert)),
    "early stopping": lambda convert: model(early_stopping=True).fit(*data(convert)[:2]),
    "validation": validated,
    "class weights": lambda convert: model(class_weight="balanced", label_smoothing=0.1).fit(*data(convert)),
    "probabilities": lambda convert: model(class_weight="balanced").fit(data(convert)[0], soft(convert)),
    "probabilities, early stopping": lambda convert: model(early_stopping=True).fit(data(convert)[0], soft(convert)),
    "partial_fit": in_parts,
    "warm start": went_on,
    "no hidden layer": lambda convert: model(hidden_layer_sizes=()).fit(*data(convert)),
}
every_fit = pytest.mark.parametrize("fit", FITS)


@pytest.fixture
def only_arrays(monkeypatch):
    """Give no operations to a network that is not of NumPy's arrays: it cannot compute."""
    operations = network.operations
    monkeypatch.setattr(
        network, "operations", lambda array, impl: operations(array, impl) if type(array) is np.ndarray else None
    )


def same(array):
    return array


def assert_same_bits(tensor, array):
    assert type(tensor) is torch.Tensor
    assert tensor.dtype == torch.from_numpy(np.array(array)).dtype
    np.testing.assert_array_equal(tensor.numpy(), array)


@every_fit
def test_what_is_learnt_has_the_bits_of_numpy(fit, only_arrays):
    ours, theirs = FITS[fit](torch.from_numpy), FITS[fit](same)
    for name in ("coefs_", "intercepts_"):
        for one, other in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            assert_same_bits(one, other)
    for kept, others in zip(ours._state[1:], theirs._state[1:], strict=True):
        for layer, other in zip(kept, others, strict=True):
            assert_same_bits(layer.weight, other.weight)
            assert_same_bits(layer.bias, other.bias)
    for layer, other in zip(ours._best, theirs._best, strict=True):
        assert_same_bits(layer.weight, other.weight)
    for name in ("loss_curve_", "validation_scores_", "validation_loss_curve_", "n_iter_", "t_", "best_loss_"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert type(ours.classes_) is np.ndarray


@every_fit
def test_predictions_have_the_bits_of_numpy(fit, only_arrays):
    ours, theirs = FITS[fit](torch.from_numpy), FITS[fit](same)
    (X, y, weight), (T, t, sample_weight) = data(), data(torch.from_numpy)
    for method in ("decision_function", "predict", "predict_proba", "predict_log_proba"):
        assert_same_bits(getattr(ours, method)(T), getattr(theirs, method)(X))
    assert ours.score(T, t, sample_weight) == theirs.score(X, y, weight)
    again = pickle.loads(pickle.dumps(ours))
    assert_same_bits(again.predict_proba(T), theirs.predict_proba(X))


def test_arguments_and_models_are_not_changed(only_arrays):
    X, y, weight = data(torch.from_numpy)
    before = X.clone(), y.clone(), weight.clone()
    fitted = model().fit(X, y, weight)
    assert all(torch.equal(one, other) for one, other in zip((X, y, weight), before, strict=True))
    kept = copy.deepcopy(fitted.coefs_)
    first = fitted.coefs_
    fitted.partial_fit(X, y)
    assert not torch.equal(fitted.coefs_[0], kept[0])
    assert torch.equal(first[0], kept[0])  # the tensors of the first fit are the user's
    fitted.predict(X).zero_()
    assert torch.equal(X, before[0])


def test_tensors_that_require_grad(only_arrays):
    X, y, _ = data(torch.from_numpy)
    theirs = model().fit(*data()[:2])
    leaf = X.clone().requires_grad_()
    fitted = model().fit(leaf, y)
    assert_same_bits(fitted.predict_proba(leaf), theirs.predict_proba(data()[0]))
    assert leaf.grad is None


def test_inputs_that_are_not_finite_are_named():
    X, y, _ = data(torch.from_numpy)
    fitted = model().fit(X, y)
    bad = X.clone()
    bad[3, 2] = torch.nan
    for call in (lambda: model().fit(bad, y), lambda: fitted.predict(bad), lambda: fitted.predict_proba(bad)):
        with pytest.raises(ValueError, match=r"^X must be finite, got NaN at row 3, column 2"):
            call()


def test_an_error_while_learning_leaves_the_model_as_it_was():
    X, y, _ = data(torch.from_numpy)
    fitted = model(warm_start=True, solver="sgd").fit(X, y)
    before = [tensor.clone() for tensor in fitted.coefs_]
    fitted.set_params(learning_rate_init=1e38)
    with pytest.raises(ValueError, match=r"^Solver produced non-finite parameter weights"):
        fitted.fit(X, y)
    assert all(torch.equal(one, other) for one, other in zip(fitted.coefs_, before, strict=True))


def test_scipy_still_needs_numpy():
    with pytest.raises(ValueError, match=r'^solver must be "adam" or "sgd" for torch arrays, got "lbfgs"'):
        model(solver="lbfgs").fit(*data(torch.from_numpy)[:2])


def test_bfloat16_inputs_are_learnt_from_in_float32(only_arrays):
    X, y, _ = data(torch.from_numpy)
    short = X.to(torch.bfloat16)
    fitted = model().fit(short, y)
    assert_same_bits(fitted.coefs_[0], model().fit(short.float().numpy(), y.numpy()).coefs_[0])


def test_it_warns_at_the_line_of_the_user():
    with pytest.warns(ConvergenceWarning) as caught:
        model().fit(*data(torch.from_numpy)[:2])
    assert caught[0].filename == __file__
