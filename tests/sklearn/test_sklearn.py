"""MLPClassifier: scikit-learn's checks and tools, the numbers of its classifiers, every library, what is refused."""

import copy
import importlib
import importlib.util
import pickle
import signal
import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from assertions import assert_like
from backends import unusable

import xpsoftmax as xs

pytest.importorskip("sklearn")
import sklearn
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier as Theirs
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import has_fit_parameter

from xpsoftmax.sklearn import MLPClassifier, fitting
from xpsoftmax.sklearn.preparing import split_rows

# Short fits: what they have come to is compared, not how good it is.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*`disp` and `iprint`:DeprecationWarning"),  # older scikit-learn, newer SciPy
]
THEIRS_TAKES_WEIGHTS = has_fit_parameter(Theirs(), "sample_weight")  # from 1.7 on
KNOWS_LABELS_ELSEWHERE = tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 9)
SAME = 1e-11
"""Largest difference of weights of order 1 after some hundred steps from the same weights on the same batches."""


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:600] / 16.0, y[:600]


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(X), y


# --- scikit-learn's own checks ----------------------------------------------------------------------------------------


def expected_failures(estimator):
    if estimator.solver != "lbfgs":
        return {}
    reason = "predict_log_proba is finite where predict_proba is 0; the check compares it with log(0)"
    return {"check_classifiers_train": reason}


def _has_cuda():
    return importlib.util.find_spec("torch") is not None and importlib.import_module("torch").cuda.is_available()


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [MLPClassifier(), MLPClassifier((), solver="sgd"), MLPClassifier(solver="lbfgs")],
    expected_failed_checks=expected_failures,
)
def test_scikit_learns_checks(estimator, check):
    if "array_api" in repr(check) and not KNOWS_LABELS_ELSEWHERE:
        pytest.skip("before 1.9 scikit-learn had an older standard checked, and wanted classes_ to be where X is")
    if "cuda" in repr(check) and not _has_cuda():
        pytest.skip("scikit-learn asks only whether PyTorch is built for CUDA, and there is no GPU")
    if "array_namespace='cupy'" in repr(check) and unusable("cupy") is not None:
        pytest.skip("scikit-learn asks only whether CuPy is installed, and it cannot be used here")
    check(estimator)


# --- the numbers of scikit-learn --------------------------------------------------------------------------------------

LIKE = {
    "defaults": {"max_iter": 8},
    "one step of all rows": {"max_iter": 1, "batch_size": 600},
    "two layers, tanh": {"hidden_layer_sizes": (20, 10), "activation": "tanh", "max_iter": 5},
    "an integer, logistic": {"hidden_layer_sizes": 30, "activation": "logistic", "max_iter": 5, "alpha": 0.5},
    "linear": {"hidden_layer_sizes": (12,), "activation": "identity", "max_iter": 5},
    "adam": {"beta_1": 0.7, "beta_2": 0.9, "epsilon": 0.1, "max_iter": 5},
    "no shuffle": {"shuffle": False, "batch_size": 64, "max_iter": 5},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.1, "max_iter": 8},
    "no momentum": {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.3, "max_iter": 8},
    "Polyak": {"solver": "sgd", "nesterovs_momentum": False, "learning_rate_init": 0.1, "max_iter": 8},
    "invscaling": {
        "solver": "sgd",
        "learning_rate": "invscaling",
        "learning_rate_init": 0.5,
        "power_t": 0.3,
        "max_iter": 9,
    },
    "adaptive": {
        "solver": "sgd",
        "learning_rate": "adaptive",
        "learning_rate_init": 0.5,
        "n_iter_no_change": 1,
        "tol": 0.02,
        "max_iter": 60,
    },
    "stops": {"learning_rate_init": 0.02, "tol": 0.05, "n_iter_no_change": 2, "max_iter": 100},
    "lbfgs": {"solver": "lbfgs", "max_iter": 15, "alpha": 1.0},
    "lbfgs, few calls": {"solver": "lbfgs", "max_fun": 9},
}
FITTED = ("n_iter_", "n_layers_", "n_outputs_", "out_activation_", "t_", "n_features_in_")


def difference(model, theirs):
    pairs = zip(model.coefs_ + model.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True)
    return max(np.abs(a - b).max() for a, b in pairs)


@pytest.mark.parametrize("name", LIKE)
def test_a_fit_is_that_of_scikit_learn(name, digits):
    """From the same seed come the same weights and batches; the fits differ by rounding alone."""
    theirs = Theirs(random_state=3, **LIKE[name]).fit(*digits)
    model = MLPClassifier(random_state=3, **LIKE[name]).fit(*digits)
    assert difference(model, theirs) < SAME
    for attribute in FITTED:
        assert getattr(model, attribute) == getattr(theirs, attribute), attribute
    np.testing.assert_allclose(model.loss_, theirs.loss_, rtol=SAME)
    np.testing.assert_allclose(model.predict_proba(digits[0]), theirs.predict_proba(digits[0]), atol=SAME)
    np.testing.assert_array_equal(model.predict(digits[0]), theirs.predict(digits[0]))
    if model.solver != "lbfgs":
        np.testing.assert_allclose(model.loss_curve_, theirs.loss_curve_, rtol=SAME)
        np.testing.assert_allclose(model.best_loss_, theirs.best_loss_, rtol=SAME)
        assert model.validation_scores_ is None
        assert model.best_validation_score_ is None


def test_the_cases_stop_and_slow_down_where_they_are_to(digits):
    stops, adaptive = (MLPClassifier(random_state=3, **LIKE[name]).fit(*digits) for name in ("stops", "adaptive"))
    assert stops.n_iter_ < 100
    assert adaptive._optimizer.learning_rate < 0.1


@pytest.mark.skipif(not THEIRS_TAKES_WEIGHTS, reason="scikit-learn takes sample weights from 1.7 on")
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_fit_with_sample_weights_is_that_of_scikit_learn(solver, digits, rng):
    weight = rng.uniform(0.1, 3.0, len(digits[1]))
    options = {"solver": solver, "max_iter": 6, "random_state": 3, "alpha": 2.0}
    theirs = Theirs(**options).fit(*digits, sample_weight=weight)
    model = MLPClassifier(**options).fit(*digits, sample_weight=weight)
    assert difference(model, theirs) < SAME
    np.testing.assert_allclose(model.loss_, theirs.loss_, rtol=SAME)


def test_partial_fit_is_that_of_scikit_learn(digits):
    options = {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.2, "random_state": 3}
    theirs, model = Theirs(**options), MLPClassifier(**options)
    for start in (0, 250, 400):
        X, y = (a[start : start + 250] for a in digits)
        theirs.partial_fit(X, y, classes=np.arange(10))
        model.partial_fit(X, y, classes=np.arange(10))
        assert difference(model, theirs) < SAME
        assert (model.n_iter_, model.t_) == (theirs.n_iter_, theirs.t_)
    np.testing.assert_allclose(model.loss_curve_, theirs.loss_curve_, rtol=SAME)


@pytest.mark.parametrize(
    "changed",
    [
        {"solver": "adam"},
        {"learning_rate": "constant"},
        {"power_t": 2.0},
        {"momentum": 0.1, "nesterovs_momentum": False},
        {"alpha": 10.0, "batch_size": 50},
        {"shuffle": False, "activation": "tanh"},
    ],
    ids=repr,
)
def test_parameters_that_change_between_calls_of_partial_fit_count_as_in_scikit_learn(changed, digits):
    options = {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.3, "random_state": 3}
    theirs, model = (
        kind((12,), **options).partial_fit(*digits, classes=np.arange(10)) for kind in (Theirs, MLPClassifier)
    )
    for one in (theirs, model):
        one.set_params(**changed).partial_fit(*digits).partial_fit(*digits)
    assert difference(model, theirs) < SAME


def test_warm_start_is_that_of_scikit_learn(digits):
    options = {"warm_start": True, "max_iter": 3, "random_state": 3}
    theirs, model = Theirs(**options), MLPClassifier(**options)
    for _ in range(3):
        theirs.fit(*digits)
        model.fit(*digits)
        assert difference(model, theirs) < SAME
        assert (model.n_iter_, model.t_) == (theirs.n_iter_, theirs.t_)
    np.testing.assert_allclose(model.loss_curve_, theirs.loss_curve_, rtol=SAME)
    assert len(model.loss_curve_) == 9
    assert {type(loss) for loss in [model.loss_, model.best_loss_, *model.loss_curve_]} == {float}


@pytest.mark.parametrize("name", ["stops", "adaptive"])
def test_a_warm_start_after_a_stop_is_that_of_scikit_learn(name, digits):
    """What brought nothing before the stop still counts: the next fit may stop after an epoch."""
    theirs, model = (kind(random_state=3, warm_start=True, **LIKE[name]) for kind in (Theirs, MLPClassifier))
    for _ in range(3):
        theirs.fit(*digits)
        model.fit(*digits)
        assert difference(model, theirs) < SAME
        assert (model.n_iter_, model.t_) == (theirs.n_iter_, theirs.t_)
        assert model.n_iter_ < model.max_iter


def test_numbers_of_few_bits_are_as_good(digits):
    """128 + uint8(128) would be 0, and 1.0 - float16(1e-4) is 1.0."""
    options = {"max_iter": 40, "random_state": 3, "learning_rate_init": 0.1, "n_iter_no_change": 1}
    narrow = MLPClassifier(batch_size=np.uint8(128), tol=np.float16(1e-3), **options).fit(*digits)
    plain = MLPClassifier(batch_size=128, tol=float(np.float16(1e-3)), **options).fit(*digits)
    assert narrow.loss_curve_ == plain.loss_curve_
    assert 1 < plain.n_iter_ < 40


def test_verbose_prints_what_scikit_learn_prints(digits, capsys):
    for options in (LIKE["stops"], LIKE["adaptive"]):
        Theirs(random_state=3, verbose=True, **options).fit(*digits)
        expected = capsys.readouterr().out
        MLPClassifier(random_state=3, verbose=True, **options).fit(*digits)
        assert capsys.readouterr().out == expected
        assert "Training loss did not improve" in expected


def test_without_hidden_layers_it_is_logistic_regression(iris):
    """The optimum of a strictly convex loss (but for a common shift of the biases), to the tolerance of L-BFGS-B.

    It ends when the loss falls by less than 2e-9 of it, as in scikit-learn: half the digits of the weights.
    """
    alpha = 0.8
    theirs = LogisticRegression(C=1.0 / alpha, tol=1e-10, max_iter=5000).fit(*iris)
    model = MLPClassifier((), solver="lbfgs", alpha=alpha, tol=1e-9, max_iter=5000, random_state=0).fit(*iris)
    np.testing.assert_allclose(model.coefs_[0].T, theirs.coef_, atol=1e-3)
    np.testing.assert_allclose(model.predict_proba(iris[0]), theirs.predict_proba(iris[0]), atol=1e-4)
    layer = xs.Layer(theirs.coef_.T.copy(), theirs.intercept_)
    assert model.loss_ == pytest.approx(float(xs.mlp_loss((layer,), *iris, reg=alpha / 150)), rel=1e-7)


def test_two_classes_have_half_the_penalty(cancer):
    X, y = cancer
    ours = MLPClassifier((), solver="lbfgs", alpha=2.0, tol=1e-9, max_iter=5000, random_state=0).fit(X, y)
    theirs = Theirs((), solver="lbfgs", alpha=1.0, tol=1e-9, max_iter=5000, random_state=0).fit(X, y)
    logistic = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(X, y)
    expected = logistic.predict_proba(X)
    np.testing.assert_allclose(ours.predict_proba(X), expected, atol=1e-3)
    np.testing.assert_allclose(theirs.predict_proba(X), expected, atol=1e-3)
    np.testing.assert_allclose(ours.coefs_[0][:, 1], -ours.coefs_[0][:, 0], atol=1e-3)
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-6)
    same_alpha = MLPClassifier((), solver="lbfgs", alpha=1.0, tol=1e-9, max_iter=5000, random_state=0).fit(X, y)
    assert abs(same_alpha.predict_proba(X) - expected).max() > 0.02


def test_accuracy_is_that_of_scikit_learn(iris):
    """As single fits are the same, this is about data sets as they come: 30 epochs each, over three seeds."""
    scores = {}
    for kind in (Theirs, MLPClassifier):
        scores[kind] = [
            cross_val_score(kind(max_iter=60, learning_rate_init=0.02, random_state=seed), *iris).mean()
            for seed in range(3)
        ]
    np.testing.assert_allclose(scores[MLPClassifier], scores[Theirs], atol=1e-12)


# --- every library ----------------------------------------------------------------------------------------------------


def numbers(backend, arrays):
    return np.concatenate([backend.to_numpy(array).ravel() for array in arrays])


MODELS = {
    "adam": {},
    "sgd": {"solver": "sgd", "hidden_layer_sizes": (7, 5), "activation": "gelu", "shuffle": False},
    "smoothing": {"hidden_layer_sizes": (), "label_smoothing": 0.1, "class_weight": {1: 3.0}},
    "early stopping": {"early_stopping": True, "class_weight": "balanced"},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_library_makes_the_same_fit(name, backend, dtype, iris, rng):
    if backend.name == "dask":
        pytest.skip("refused")
    X, y = iris[0].astype(dtype), iris[1]
    weight = rng.uniform(0.5, 2.0, len(y)).astype(dtype)
    options = {"hidden_layer_sizes": (8,), "batch_size": 40, "max_iter": 5, "random_state": 0, **MODELS[name]}
    expected = MLPClassifier(**options).fit(X, y, weight)
    model = MLPClassifier(**options).fit(backend.asarray(X), backend.asarray(y), backend.asarray(weight))
    bound = {"float32": 1e-4, "float64": 1e-11}[dtype]  # of weights and logits of order 1, after 20 steps
    np.testing.assert_allclose(
        numbers(backend, model.coefs_ + model.intercepts_),
        np.concatenate([a.ravel() for a in expected.coefs_ + expected.intercepts_]),
        atol=bound,
    )
    np.testing.assert_allclose(model.loss_curve_, expected.loss_curve_, rtol=bound)
    if model.early_stopping:
        np.testing.assert_allclose(model.validation_scores_, expected.validation_scores_, rtol=1e-6)
    for layer, like in zip(model.params_, expected.params_, strict=True):
        assert_like(layer.weight, backend=backend, dtype=dtype, shape=like.weight.shape)
        assert_like(layer.bias, backend=backend, dtype=dtype, shape=like.bias.shape)
    there = backend.asarray(X)
    for method in ("decision_function", "predict_proba", "predict_log_proba"):
        result = getattr(model, method)(there)
        assert_like(result, backend=backend, dtype=dtype, shape=(150, 3))
        np.testing.assert_allclose(backend.to_numpy(result), getattr(expected, method)(X), atol=bound * 10)
    labels = model.predict(there)
    assert_like(labels, backend=backend, dtype=labels_dtype(backend, y), shape=(150,))
    np.testing.assert_array_equal(backend.to_numpy(labels), expected.predict(X))
    assert model.score(there, backend.asarray(y), backend.asarray(weight)) == pytest.approx(
        expected.score(X, y, weight)
    )


def labels_dtype(backend, y):
    array = backend.asarray(y)
    return getattr(array.dtype, "name", None) or str(array.dtype).rpartition(".")[2]


def test_labels_may_be_on_the_host(backend, iris):
    """Everything follows X; strings stay where they can be."""
    if backend.name == "dask":
        pytest.skip("refused")
    X, y = backend.asarray(iris[0]), iris[1]
    names = np.array(["setosa", "versicolor", "virginica"])
    options = {"max_iter": 2, "random_state": 0}
    expected = MLPClassifier(**options).fit(X, backend.asarray(y))
    model = MLPClassifier(**options).fit(X, names[y].tolist(), np.ones(150))
    assert numbers(backend, model.coefs_).tolist() == numbers(backend, expected.coefs_).tolist()
    predicted = model.predict(X)
    assert type(predicted) is np.ndarray
    np.testing.assert_array_equal(predicted, names[backend.to_numpy(expected.predict(X))])
    assert model.score(X, names[y]) == expected.score(X, y) == expected.score(X, backend.asarray(y))


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "decision_function"])
def test_another_library_is_refused(method, backend, iris):
    if backend.name in ("dask", "numpy"):
        pytest.skip("refused by fit, or the same")
    X, y = iris
    model, there = MLPClassifier(max_iter=1).fit(X, y), backend.asarray(X)
    message = (
        rf"X passed to MLPClassifier.{method}\(\) must use the same namespace .* as the model, numpy on cpu, got .*"
    )
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(there)
    moved = model.to(backend.library, device=backend.device)
    getattr(moved, method)(there)
    with pytest.raises(ValueError, match=r"got numpy on cpu\. Move one of them; the model by its method to\(\)\."):
        getattr(moved, method)(X)


@pytest.mark.parametrize("name", ["adam", "early stopping"])
def test_a_model_moves_and_goes_on_there(name, backend, iris):
    if backend.name == "dask":
        pytest.skip("refused")
    X, y = iris
    options = {"max_iter": 3, "random_state": 0, "warm_start": True, "batch_size": 50, **MODELS[name]}
    model = MLPClassifier(**options).fit(X, y)
    before = copy.deepcopy(model)
    moved = model.to(backend.library, device=backend.device)
    assert numbers(backend, moved.coefs_).tolist() == np.concatenate([a.ravel() for a in model.coefs_]).tolist()
    np.testing.assert_array_equal(backend.to_numpy(moved.predict(backend.asarray(X))), model.predict(X))
    moved.fit(backend.asarray(X), backend.asarray(y))
    back = moved.to(np)
    assert len(back.loss_curve_) == 6
    assert difference(model, before) == 0.0
    assert model.loss_curve_ == before.loss_curve_
    model.fit(X, y)
    assert difference(model, back) < SAME
    if not model.early_stopping:  # the optimiser's means have moved, too
        model.set_params(warm_start=False).partial_fit(X, y)
        assert difference(model, moved.partial_fit(backend.asarray(X), y).to(np)) < SAME


def test_a_model_that_moved_shares_no_memory(backend, iris):
    if backend.name == "dask":
        pytest.skip("refused")
    X, y = iris
    model = MLPClassifier((5,), max_iter=2, random_state=0).fit(X, y)
    there = model.to(backend.library, device=backend.device)
    before = numbers(backend, there.coefs_)
    host = there.to(np)
    for one in (model, host):
        for array in one.coefs_ + one.intercepts_:
            array[...] = 7.0
    np.testing.assert_array_equal(numbers(backend, there.coefs_), before)
    again = MLPClassifier((5,), max_iter=2, random_state=0).fit(X, y)
    assert difference(again.to(np).partial_fit(X, y), again.partial_fit(X, y)) == 0.0


def test_a_device_that_there_is_not(iris):
    with pytest.raises(ValueError, match="device must be a device of numpy that can be used here, got 'moon'"):
        MLPClassifier(max_iter=1).fit(*iris).to(np, device="moon")


def test_a_dtype_that_jax_lacks(request):
    jax = pytest.importorskip("jax")
    request.addfinalizer(partial(jax.config.update, "jax_enable_x64", jax.config.jax_enable_x64))
    jax.config.update("jax_enable_x64", False)
    X = jax.numpy.ones((4, 2))
    with pytest.raises(ValueError, match=r"dtype must be one that jax\.numpy has \(float64 only .* got 'float64'"):
        MLPClassifier(dtype="float64").fit(X, [0, 1, 0, 1])
    with pytest.raises(
        TypeError, match=r"xp must have the dtype of the model, float64, got jax\.numpy, which lacks it"
    ):
        MLPClassifier(max_iter=1).fit(np.ones((4, 2)), [0, 1, 0, 1]).to(jax.numpy)


def test_lbfgs_is_for_numpy(backend, iris):
    if backend.name in ("numpy", "dask"):
        pytest.skip("it is NumPy, or refused")
    with pytest.raises(ValueError, match=r'solver must be "adam" or "sgd" for \w+.* arrays, got "lbfgs"'):
        MLPClassifier(solver="lbfgs").fit(backend.asarray(iris[0]), iris[1])


def test_the_dtype_of_the_numbers(backend, iris):
    if backend.name == "dask":
        pytest.skip("refused")
    for given, asked, expected in (
        ("float32", None, "float32"),
        ("float64", None, "float64"),
        ("float16", None, "float32"),
        ("int32", None, "float64"),
        ("float64", "float32", "float32"),
        ("int64", np.float32, "float32"),
        ("float64", "f4", "float32"),
        ("float32", np.dtype(">f8"), "float64"),
        ("float32", backend.xp.float64, "float64"),
    ):
        if given == "float16" and backend.name.startswith("array_api_strict"):
            continue  # which has none
        X = backend.asarray(np.round(iris[0] * 4), given)
        model = MLPClassifier(max_iter=1, dtype=asked).fit(X, iris[1])
        assert_like(model.predict_proba(X), backend=backend, dtype=expected, shape=(150, 3))


# --- labels, probabilities, weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes", [[3, 5, 900], [0.0, 1.0, 7.0], ["a", "b", "long"], np.array([1, 2, 200], "u1"), [-1, 0, 1]]
)
def test_labels_of_every_kind(classes, iris):
    X, y = iris
    labels = np.asarray(classes)[y]
    model = MLPClassifier(max_iter=2, random_state=0).fit(X, labels)
    expected = MLPClassifier(max_iter=2, random_state=0).fit(X, y)
    assert difference(model, expected) == 0.0
    np.testing.assert_array_equal(model.classes_, classes)
    np.testing.assert_array_equal(model.predict(X), np.asarray(classes)[expected.predict(X)])
    assert model.predict(X).dtype == labels.dtype
    assert model.score(X, labels) == expected.score(X, y)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1, 2]) * 10**15,
        np.array([0, 1, 2], "u8") + 2**63,
        np.array([0, 1, 2], "u2") + 60000,
        np.array([0.0, 1.0, 2.0]) + 2.0**24,
        np.array([0, 1, 2], ">i4"),
        np.array([0.0, 1.0, 2.0], ">f8"),
        np.array([0, 1, 2], np.longdouble),
    ],
    ids=lambda labels: labels.dtype.str,
)
def test_labels_that_a_library_may_lack_are_not_others(labels, backend, iris):
    """JAX makes 32 bits of 64, PyTorch has no byte order and takes nothing from some unsigned dtypes."""
    if backend.name == "dask":
        pytest.skip("refused")
    X = backend.asarray(iris[0])
    model = MLPClassifier(max_iter=20, learning_rate_init=0.05, random_state=0).fit(X, labels[iris[1]])
    predicted = model.predict(X)
    predicted = predicted if isinstance(predicted, np.ndarray) else backend.to_numpy(predicted)
    expected = labels[np.argmax(backend.to_numpy(model.predict_proba(X)), axis=1)]
    np.testing.assert_array_equal(predicted, expected)
    assert model.score(X, labels[iris[1]]) == np.mean(expected == labels[iris[1]]) > 0.9


@pytest.mark.parametrize("first", [10**15, 2.0**24 + 1.0, 7], ids=repr)
def test_labels_of_64_bits_that_jax_cuts_to_32_are_on_the_host(first, iris, request):
    jax = pytest.importorskip("jax")
    request.addfinalizer(partial(jax.config.update, "jax_enable_x64", jax.config.jax_enable_x64))
    jax.config.update("jax_enable_x64", False)
    labels = np.arange(3) + first
    X, y = jax.numpy.asarray(iris[0]), labels[iris[1]]
    model = MLPClassifier(max_iter=20, learning_rate_init=0.05, random_state=0).fit(X, y)
    assert isinstance(model.predict(X), jax.Array) == (first == 7)
    assert model.score(X, y) == np.mean(np.asarray(model.predict(X)) == y) > 0.9


def test_booleans_are_two_classes(cancer):
    X, y = cancer
    model = MLPClassifier(max_iter=2).fit(X, y.astype(bool))
    assert model.predict(X).dtype == bool
    assert model.predict_proba(X).shape == (569, 2)


def test_a_column_of_labels_is_taken_with_a_warning(iris):
    X, y = iris
    with pytest.warns(DataConversionWarning, match="column-vector"):
        model = MLPClassifier(max_iter=2, random_state=0).fit(X, y[:, None])
    assert difference(model, MLPClassifier(max_iter=2, random_state=0).fit(X, y)) == 0.0


def test_probabilities_that_are_sure_are_labels(backend, iris):
    if backend.name == "dask":
        pytest.skip("refused")
    X, y = iris
    options = {"max_iter": 5, "random_state": 0, "batch_size": 40}
    expected = MLPClassifier(**options).fit(X, y)
    model = MLPClassifier(**options).fit(backend.asarray(X), backend.asarray(np.eye(3)[y]))
    assert difference(expected, model.to(np)) < SAME
    np.testing.assert_array_equal(model.classes_, [0, 1, 2])
    assert model.score(backend.asarray(X), np.eye(3)[y]) == expected.score(X, y)


def test_weights_of_more_labels_than_there_are(iris):
    """As scikit-learn has it: a part of the data may lack one of the labels that have weights."""
    X, y = iris
    weights = {0: 1.0, 1: 2.0, 2: 3.0, 7: 4.0}
    model = MLPClassifier(max_iter=2, random_state=0, class_weight=weights).fit(X, y)
    del weights[7]
    assert difference(model, MLPClassifier(max_iter=2, random_state=0, class_weight=weights).fit(X, y)) == 0.0


def test_smoothing_to_the_end_learns_that_all_classes_are_alike(iris):
    options = {
        "label_smoothing": 1.0,
        "solver": "lbfgs",
        "alpha": 0.0,
        "random_state": 0,
        "max_iter": 1000,
        "tol": 1e-9,
    }
    model = MLPClassifier((), **options).fit(*iris)
    np.testing.assert_allclose(model.predict_proba(iris[0]), 1 / 3, atol=1e-3)


def test_logarithms_are_finite_as_far_as_numbers_go():
    params = (xs.Layer(np.array([[1.0, -1.0, -1.9]]), np.zeros(3)),)
    model = MLPClassifier.from_params(params)
    X = np.array([[1e3], [6e307], [1e308]])
    expected = [[0.0, -2e3, -2.9e3], [0.0, -1.2e308, -1.74e308], [0.0, -np.inf, -np.inf]]
    np.testing.assert_allclose(model.predict_log_proba(X), expected, rtol=1e-15)
    np.testing.assert_array_equal(model.predict_proba(X), [[1.0, 0.0, 0.0]] * 3)


def test_label_smoothing_is_a_mixture_with_all_classes(iris):
    X, y = iris
    options = {"max_iter": 5, "random_state": 0}
    model = MLPClassifier(label_smoothing=0.3, **options).fit(X, y)
    assert difference(model, MLPClassifier(**options).fit(X, 0.7 * np.eye(3)[y] + 0.1)) < SAME


def test_a_weight_is_as_many_rows(iris, rng):
    """Also in the penalty: with all rows in a batch, the weights 0, 1, 2, 3 are no row, one, two, three rows."""
    X, y = iris
    weight = rng.integers(0, 4, 150)
    options = {"max_iter": 20, "random_state": 0, "batch_size": 10**6, "alpha": 5.0}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "batch_size is 1000000")
        model = MLPClassifier(**options).fit(X, y, weight.astype(float))
        repeated = MLPClassifier(**options).fit(np.repeat(X, weight, 0), np.repeat(y, weight))
    assert difference(model, repeated) < SAME


def test_class_weights_multiply_those_of_their_rows(iris):
    X, y = iris
    kept = np.r_[0:50, 50:80, 100:150]  # so that the classes are not of one size
    X, y = X[kept], y[kept]
    options = {"max_iter": 5, "random_state": 0, "batch_size": 40}
    model = MLPClassifier(class_weight={0: 2.0, 2: 0.5}, **options).fit(X, y)
    assert difference(model, MLPClassifier(**options).fit(X, y, np.array([2.0, 1.0, 0.5])[y])) < SAME
    balanced = MLPClassifier(class_weight="balanced", **options).fit(X, y)
    of_rows = (130 / (3 * np.array([50.0, 30.0, 50.0])))[y]
    assert difference(balanced, MLPClassifier(**options).fit(X, y, of_rows)) < SAME
    soft = MLPClassifier(class_weight="balanced", **options).fit(X, np.eye(3)[y])
    # There the counting weight of a row does not know of its class: the batch's sum does, and so does its penalty.
    assert 0.0 < difference(soft, balanced) < 0.1


def test_class_weights_may_be_named_by_strings(iris):
    X, y = iris
    names = np.array(["a", "b", "c"])
    options = {"max_iter": 3, "random_state": 0}
    model = MLPClassifier(class_weight={"c": 4.0}, **options).fit(X, names[y])
    assert difference(model, MLPClassifier(class_weight={2: 4.0}, **options).fit(X, y)) == 0.0


def test_rows_that_do_not_count_make_no_step(iris):
    X, y = iris
    weight = np.zeros(150)
    weight[:7] = 1.0
    model = MLPClassifier(batch_size=5, max_iter=2, random_state=0).fit(X, y, weight)
    assert np.isfinite(model.loss_curve_).all()
    assert model._state[0] <= 14


def test_memory_is_bounded(rng):
    X, y = rng.standard_normal((500, 4)), np.arange(500) % 200
    options = {"max_iter": 2, "random_state": 0}
    model = MLPClassifier(max_memory=200_000, **options).fit(X, y)
    expected = MLPClassifier(**options).fit(X, y)
    assert difference(model, expected) < SAME
    np.testing.assert_array_equal(model.predict(X), expected.predict(X))
    with pytest.raises(ValueError, match=r"max_memory must be at least [0-9]+ bytes, what one row needs, got 10"):
        MLPClassifier(max_memory=10).fit(X, y)


# --- early stopping, warnings, interrupts -----------------------------------------------------------------------------


def test_early_stopping_returns_to_the_best_weights(digits):
    X, y = digits
    model = MLPClassifier(early_stopping=True, random_state=0, learning_rate_init=0.03, n_iter_no_change=3).fit(X, y)
    scores = model.validation_scores_
    assert len(scores) == model.n_iter_ < 200
    assert model.best_validation_score_ == max(scores)
    assert model.best_loss_ is None
    assert model.t_ == 540 * model.n_iter_
    again = MLPClassifier(
        early_stopping=True, random_state=0, learning_rate_init=0.03, max_iter=scores.index(max(scores)) + 1
    )
    assert difference(model, again.fit(X, y)) == 0.0


def test_rows_held_out_are_a_share_of_each_class():
    y = np.repeat([0, 1, 2], [100, 20, 10])
    train, test = split_rows(y, 0.1, np.random.RandomState(0))
    np.testing.assert_array_equal(np.bincount(y[test]), [10, 2, 1])
    assert sorted([*train, *test]) == list(range(130))
    alone = np.append(y, 3)  # a class of one row cannot be shared
    assert len(split_rows(alone, 0.1, np.random.RandomState(0))[1]) == 14


@pytest.mark.parametrize(
    ("fraction", "held", "size"), [(0.1, 1, "small"), (0.0, 0, "small"), (0.999, 6, "large"), (0.84, 6, "large")]
)
def test_too_few_rows_to_hold_out_or_to_learn_from(fraction, held, size):
    message = (
        rf"validation_fraction must hold out at least 2 rows and leave one, got {fraction} of 6 rows, which is {held}"
    )
    with pytest.raises(ValueError, match=rf"{message}\. The validation set is too {size}\."):
        MLPClassifier(early_stopping=True, validation_fraction=fraction).fit(np.eye(6), [0, 1] * 3)


def test_rows_held_out_must_weigh_something(iris, monkeypatch):
    X, y = iris
    held = split_rows(y, 0.1, np.random.RandomState(0))
    options = {
        "early_stopping": True,
        "random_state": np.random.RandomState(0),
        "hidden_layer_sizes": (),
        "max_iter": 2,
    }
    for part, which in zip(held, ("to train on", "held out"), strict=True):
        weight = np.ones(150)
        weight[part] = 0.0
        model = MLPClassifier(**options)
        zeros = (xs.Layer(np.zeros((4, 3)), np.zeros(3)),)
        monkeypatch.setattr(fitting, "initial_layers", lambda *_, zeros=zeros: zeros)  # draws nothing
        with pytest.raises(
            ValueError,
            match=rf"sample_weight must let a row count of those {which}, got weights that are all zero\. Another",
        ):
            model.set_params(random_state=np.random.RandomState(0)).fit(X, y, weight)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_fit_that_has_not_converged_says_so(solver, iris):
    with pytest.warns(
        ConvergenceWarning, match=r"(Maximum iterations \(2\) reached|lbfgs failed to converge).*max_iter"
    ):
        MLPClassifier(solver=solver, max_iter=2).fit(*iris)


def test_a_large_batch_is_cut_with_a_warning(iris):
    with pytest.warns(UserWarning, match="batch_size is 151, larger than the sample size, 150"):
        MLPClassifier(batch_size=151, max_iter=1).fit(*iris)


@pytest.mark.parametrize(
    ("rate", "epochs", "message"), [(1e200, 3, r"and the loss nan at step 1\."), (1e308, 1, r"by the last step\.")]
)
def test_numbers_that_are_not_finite_are_refused(rate, epochs, message, backend, iris):
    if backend.name == "dask":
        pytest.skip("refused")
    batch = 150 if epochs == 1 else 50
    model = MLPClassifier(
        solver="sgd", momentum=0.0, learning_rate_init=rate, max_iter=epochs, batch_size=batch, random_state=0
    )
    with pytest.raises(
        ValueError, match=rf"Solver produced non-finite parameter weights, {message} .* a smaller learning_rate_init"
    ):
        model.fit(backend.asarray(iris[0] * 1e3), iris[1])
    assert not [name for name in vars(model) if name.endswith("_") or name.startswith("_")]


def test_a_loss_of_lbfgs_that_is_not_finite_is_refused():
    X = np.array([[1e308, 1e308], [-1e308, 1e308], [0.0, 0.0], [1.0, 1.0]])
    model = MLPClassifier(solver="lbfgs", random_state=0)
    with pytest.raises(ValueError, match=r"non-finite parameter weights, and the loss (nan|inf) after 0 iterations"):
        model.fit(X, [0, 1, 0, 1])
    assert not hasattr(model, "coefs_")


def test_an_interrupt_keeps_what_was_learnt(iris, monkeypatch):
    from xpsoftmax._train.optimizers import UncorrectedAdam

    steps = []
    usual = UncorrectedAdam.step

    def step(self, *arguments, **options):
        steps.append(1)
        if len(steps) == 9:
            signal.raise_signal(signal.SIGINT)
        return usual(self, *arguments, **options)

    monkeypatch.setattr(UncorrectedAdam, "step", step)
    model = MLPClassifier(batch_size=50, random_state=0)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.fit(*iris)
    assert (model.n_iter_, model._state[0], len(steps)) == (2, 9, 9)
    assert len(model.loss_curve_) == 2
    assert model.loss_ != model.loss_curve_[-1]  # of the three steps after them
    assert model.score(*iris) > 0.0


@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_interrupt_in_the_first_epoch_leaves_every_attribute(early_stopping, iris, monkeypatch):
    from xpsoftmax._train.optimizers import UncorrectedAdam

    usual = UncorrectedAdam.step

    def step(self, *arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return usual(self, *arguments, **options)

    options = {"batch_size": 50, "random_state": 0, "early_stopping": early_stopping}
    whole = MLPClassifier(max_iter=1, **options).fit(*iris)
    monkeypatch.setattr(UncorrectedAdam, "step", step)
    with pytest.warns(UserWarning, match="Training interrupted by user") as caught:
        model = MLPClassifier(**options).fit(*iris)
    assert caught[0].filename == __file__
    assert vars(model).keys() == vars(whole).keys()
    assert (model.n_iter_, model.t_, model.loss_curve_, model._state[0]) == (0, 0, [], 1)
    assert 0.5 < model.loss_ < 2.0
    assert model.score(*iris) > 0.0
    monkeypatch.undo()
    assert len(model.set_params(early_stopping=False).partial_fit(*iris).loss_curve_) == 1  # it can go on


@pytest.mark.parametrize("evaluation", [1, 2, 8])
def test_an_interrupt_of_lbfgs_keeps_the_last_iterate(evaluation, digits, monkeypatch):
    """It is that of a fit that ends after as many iterations; SciPy makes one evaluation for each, and one before."""
    from xpsoftmax._train.steps import RowSteps

    calls = []
    usual = RowSteps.loss_and_grads

    def loss_and_grads(self, *arguments):
        calls.append(1)
        if len(calls) == evaluation:
            signal.raise_signal(signal.SIGINT)
        return usual(self, *arguments)

    monkeypatch.setattr(RowSteps, "loss_and_grads", loss_and_grads)
    model = MLPClassifier((5,), solver="lbfgs", random_state=0, alpha=1.0)
    with pytest.warns(UserWarning, match="Training interrupted by user") as caught:
        model.fit(*digits)
    monkeypatch.undo()
    assert caught[0].filename == __file__
    assert len(calls) == evaluation
    assert model.n_iter_ == len(model.loss_curve_) <= evaluation - 1
    loss = float(xs.mlp_loss(model.params_, *digits, reg=1.0 / len(digits[1])))
    assert model.loss_ == model.best_loss_ == pytest.approx(loss, rel=1e-12)
    if model.n_iter_ == 0:
        rng = np.random.RandomState(0)
        np.testing.assert_array_equal(
            model.coefs_[0], fitting.initial_layers(rng, (64, 5, 10), "relu", digits[0])[0].weight
        )
    else:
        fitted = MLPClassifier((5,), solver="lbfgs", random_state=0, alpha=1.0, max_iter=model.n_iter_).fit(*digits)
        assert difference(model, fitted) == 0.0
        assert model.loss_ == model.loss_curve_[-1] == fitted.loss_


def test_an_interrupt_before_lbfgs_begins_leaves_the_losses(iris, monkeypatch):
    model = MLPClassifier((5,), max_iter=3, random_state=0, warm_start=True).fit(*iris)
    before = (model.loss_, model.best_loss_, model.loss_curve_)
    monkeypatch.setattr("xpsoftmax.sklearn.lbfgs.interrupts", lambda: nullcontext(lambda: True))
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.set_params(solver="lbfgs").fit(*iris)
    assert (model.loss_, model.best_loss_, model.loss_curve_) == before


def test_the_best_loss_is_the_least_of_all_solvers(iris):
    model = MLPClassifier((5,), solver="lbfgs", random_state=0, warm_start=True).fit(*iris)
    best = model.loss_
    model.set_params(alpha=10.0, max_iter=2).fit(*iris)
    assert model.best_loss_ == min(model.loss_curve_) == best < model.loss_
    model.set_params(solver="adam").fit(*iris)
    assert model.best_loss_ == best


def test_a_second_interrupt_is_raised_and_nothing_is_changed(iris, monkeypatch):
    from xpsoftmax._train.steps import RowSteps

    model = MLPClassifier(random_state=0, max_iter=2).fit(*iris)
    before = copy.deepcopy(vars(model))

    def loss_and_grads(self, *arguments):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RowSteps, "loss_and_grads", loss_and_grads)
    for solver in ("adam", "lbfgs"):
        before["solver"] = solver
        with pytest.raises(KeyboardInterrupt):
            model.set_params(solver=solver).fit(*iris)
        assert_same_attributes(vars(model), before)


# --- errors change nothing --------------------------------------------------------------------------------------------


def assert_same_attributes(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert pickle.dumps(value) == pickle.dumps(expected[name]), name


def test_the_comparison_of_attributes_finds_a_changed_bit():
    for changed in ({"a": [np.nextafter(1.0, 2.0)], "b": 1}, {"a": [1.0]}, {"a": [1.0], "b": 1, "c": 2}):
        with pytest.raises(AssertionError):
            assert_same_attributes({"a": [1.0], "b": 1}, changed)


FAILING = {
    "X": ({}, {"X": np.ones((150, 3, 1))}),
    "more features": ({}, {"X": np.ones((150, 7)) * np.nan}),
    "y": ({}, {"y": np.full(150, 0.5)}),
    "rows": ({}, {"y": np.arange(149) % 3}),
    "sample_weight": ({}, {"sample_weight": np.ones(3)}),
    "negative": ({}, {"sample_weight": -np.ones(150)}),
    "no weight": ({}, {"sample_weight": np.zeros(150)}),
    "class_weight": ({"class_weight": {9: 1.0}}, {}),
    "no class": ({"class_weight": {0: 0.0, 1: 0.0, 2: 0.0}}, {}),
    "parameter": ({"beta_1": 1.0}, {}),
    "random_state": ({"random_state": "seven"}, {}),
    "dtype": ({"dtype": "bogus"}, {}),
    "split": ({"early_stopping": True, "validation_fraction": 0.001}, {}),
    "max_memory": ({"max_memory": 100}, {}),
    "divergence": ({"solver": "sgd", "momentum": 0.0, "learning_rate_init": 1e200, "batch_size": 20}, {"X": 1e3}),
    "last step": ({"solver": "sgd", "momentum": 0.0, "learning_rate_init": 1e308, "max_iter": 1}, {"X": 1e3}),
}


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("way", ["fit", "warm fit", "partial_fit"])
def test_an_error_leaves_the_model_as_it_was(way, name, iris):
    options, changed = FAILING[name]
    X, y = iris
    model = MLPClassifier((6,), random_state=0, max_iter=2, early_stopping=way == "warm fit").fit(X, y)
    if way == "partial_fit":
        model.partial_fit(X, y)
        if "solver" in options:  # the optimiser stays that of the first call
            model = MLPClassifier((6,), random_state=0, max_iter=2, solver="sgd", momentum=0.0).fit(X, y)
            model._optimizer = replace(model._optimizer, learning_rate=options["learning_rate_init"])
    model.set_params(warm_start=way == "warm fit", **options)
    predicted = model.predict_proba(X)
    before = copy.deepcopy(vars(model))
    arguments = {"X": X, "y": y, **changed}
    if isinstance(arguments["X"], float):
        arguments["X"] = X * arguments["X"]
    with pytest.raises((ValueError, TypeError)):
        (model.partial_fit if way == "partial_fit" else model.fit)(**arguments)
    assert_same_attributes(vars(model), before)
    np.testing.assert_array_equal(model.predict_proba(X), predicted)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_an_error_in_the_middle_leaves_the_model_as_it_was(solver, iris, monkeypatch):
    from xpsoftmax._train.steps import RowSteps

    model = MLPClassifier((6,), solver=solver, random_state=0, max_iter=2, batch_size=30, warm_start=True).fit(*iris)
    before, calls, usual = copy.deepcopy(vars(model)), [], RowSteps.loss_and_grads

    def loss_and_grads(self, *arguments):
        calls.append(1)
        if len(calls) == 8:
            raise MemoryError
        return usual(self, *arguments)

    monkeypatch.setattr(RowSteps, "loss_and_grads", loss_and_grads)
    before["max_iter"] = 50
    with pytest.raises(MemoryError):
        model.set_params(max_iter=50).fit(*iris)
    assert_same_attributes(vars(model), before)


def test_a_first_fit_that_fails_leaves_no_model(iris):
    model = MLPClassifier(max_memory=100)
    before = dict(vars(model))
    with pytest.raises(ValueError, match="max_memory"):
        model.fit(*iris)
    assert_same_attributes(vars(model), before)
    with pytest.raises(NotFittedError):
        model.predict(iris[0])


def test_attributes_taken_before_do_not_grow(iris):
    model = MLPClassifier(max_iter=2, random_state=0, warm_start=True, early_stopping=True).fit(*iris)
    curve, scores = model.loss_curve_, model.validation_scores_
    model.fit(*iris)
    assert (len(curve), len(scores), len(model.loss_curve_), len(model.validation_scores_)) == (2, 2, 4, 4)


# --- the tools of scikit-learn ----------------------------------------------------------------------------------------


def test_pipeline_search_and_calibration(iris):
    X, y = iris
    pipeline = make_pipeline(
        StandardScaler(), MLPClassifier((8,), max_iter=30, learning_rate_init=0.02, random_state=0)
    )
    search = GridSearchCV(pipeline, {"mlpclassifier__alpha": [1e-4, 100.0]}, cv=3).fit(X, y)
    assert search.best_params_ == {"mlpclassifier__alpha": 1e-4}
    assert search.best_score_ > 0.8
    calibrated = CalibratedClassifierCV(pipeline, cv=3).fit(X, y)
    np.testing.assert_allclose(calibrated.predict_proba(X).sum(axis=1), 1.0, rtol=1e-12)
    assert calibrated.score(X, y) > 0.8


def test_clones_and_pickles(iris):
    model = MLPClassifier((5,), max_iter=3, random_state=0, class_weight={1: 2.0}).fit(*iris)
    assert clone(model).get_params() == model.get_params()
    assert not hasattr(clone(model), "coefs_")
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(iris[0]), model.predict_proba(iris[0]))
    assert difference(again.partial_fit(*iris), model.partial_fit(*iris)) == 0.0
    assert repr(model).startswith("MLPClassifier(class_weight={1: 2.0}")


def test_data_frames(iris):
    pandas = pytest.importorskip("pandas")
    X, y = iris
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    labels = pandas.Series(np.array(["x", "y", "z"])[y], dtype="category")
    model = MLPClassifier(max_iter=2, random_state=0).fit(frame, labels)
    assert difference(model, MLPClassifier(max_iter=2, random_state=0).fit(X, y)) == 0.0
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        model.predict(X)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["b", "a", "c", "d"]])
    pipeline = make_pipeline(StandardScaler(), model).set_output(transform="pandas").fit(frame, labels)
    assert pipeline[-1].feature_names_in_.tolist() == ["a", "b", "c", "d"]


def test_sample_weights_are_routed(iris, rng):
    X, y = iris
    weight = rng.uniform(size=150)
    options = {"max_iter": 3, "random_state": 0}
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(MLPClassifier(**options).set_fit_request(sample_weight=True))
        pipeline.fit(X, y, sample_weight=weight)
    assert difference(pipeline[-1], MLPClassifier(**options).fit(X, y, weight)) == 0.0


def test_partial_fit_goes_with_its_solver():
    assert hasattr(MLPClassifier(), "partial_fit")
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")


# --- weights from elsewhere -------------------------------------------------------------------------------------------


def test_weights_are_saved_and_loaded(backend, iris, tmp_path):
    pytest.importorskip("safetensors")
    if backend.name == "dask":
        pytest.skip("refused")
    X, y = backend.asarray(iris[0]), np.array(["a", "b", "c"])[iris[1]]
    model = MLPClassifier((6, 4), activation="tanh", max_iter=3, random_state=0).fit(X, y)
    xs.save_params(tmp_path / "iris", model.params_)
    params = xs.load_params(tmp_path / "iris", xp=backend.library, device=backend.device)
    loaded = MLPClassifier.from_params(params, classes=model.classes_, activation="tanh")
    assert loaded.get_params()["hidden_layer_sizes"] == (6, 4)
    assert numbers(backend, loaded.coefs_).tolist() == numbers(backend, model.coefs_).tolist()
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    logits = xs.mlp_logits(model.params_, X, activation="tanh")
    np.testing.assert_array_equal(backend.to_numpy(logits), backend.to_numpy(loaded.decision_function(X)))


def test_given_classes_are_copied_from_every_library(backend):
    if backend.name == "dask":
        pytest.skip("refused")
    params, X = [(np.eye(2), np.zeros(2))], np.eye(2)
    classes = np.array([3, 5])
    model = MLPClassifier.from_params(params, classes=classes)
    learner = MLPClassifier(random_state=0).partial_fit(X, [3, 5], classes)
    classes[:] = 0
    assert model.predict(X).tolist() == [3, 5]
    assert learner.classes_.tolist() == [3, 5]
    there = MLPClassifier.from_params(params, classes=backend.asarray(np.array([3, 5])))
    assert there.predict(X).tolist() == [3, 5]


def test_a_fit_goes_on_from_given_weights(iris):
    """Those of train() go on in the estimator; what is given is not modified."""
    X, y = iris
    params = xs.init_params((4, 5, 3), rng=0)
    before = copy.deepcopy(params)
    model = MLPClassifier.from_params(params, solver="sgd", momentum=0.0, warm_start=True, max_iter=1, batch_size=150)
    model.set_params(learning_rate_init=0.5, alpha=0.3).fit(X, y)
    loss, grads = xs.mlp_loss_and_grad(params, X, y, reg=0.3 / 150)
    assert model.loss_curve_ == [pytest.approx(float(loss), rel=1e-14)]
    for layer, old, grad in zip(model.params_, params, grads, strict=True):
        np.testing.assert_allclose(layer.weight, old.weight - 0.5 * grad.weight, atol=1e-15)
        np.testing.assert_allclose(layer.bias, old.bias - 0.5 * grad.bias, atol=1e-15)
    for layer, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(layer.weight, old.weight)
    with pytest.raises(
        ValueError, match=r"hidden_layer_sizes must make the layers of the fitted model, \[4, 5, 3\], got"
    ):
        model.set_params(hidden_layer_sizes=(6,)).fit(X, y)


def test_a_fit_leaves_earlier_weights_alone(iris):
    model = MLPClassifier(max_iter=2, random_state=0, warm_start=True).fit(*iris)
    held = model.coefs_[0]
    before = held.copy()
    model.fit(*iris)
    np.testing.assert_array_equal(held, before)
    assert not np.array_equal(model.coefs_[0], before)


@pytest.mark.parametrize(
    ("params", "options", "error", "message"),
    [
        (
            [(np.eye(2, dtype="f2"), np.zeros(2, "f2"))],
            {},
            TypeError,
            "params must be in float32 or float64, got float16",
        ),
        ([(np.eye(2), np.zeros(2))], {"classes": [1, 0]}, ValueError, "classes must be 2 sorted and different labels"),
        ([(np.eye(2), np.zeros(2))], {"classes": [1]}, ValueError, "classes must be 2 sorted and different labels"),
        (
            [(np.eye(2), np.zeros(2))],
            {"classes": [None, 1]},
            ValueError,
            r"classes must hold no missing values, got None at place 0\.",
        ),
        (
            [(np.eye(2), np.zeros(2))],
            {"classes": ["a", 1]},
            TypeError,
            r"classes must be labels of one kind, got str 'a' at place 0 and int 1 at place 1\.",
        ),
        (
            [(np.ones((2, 1)), np.zeros(1))],
            {},
            ValueError,
            r"params must have a column for .* one column and no classes",
        ),
        (
            [(np.ones((2, 1)), np.zeros(1))],
            {"classes": ["no", "yes"]},
            ValueError,
            r"params must have a column for each class .* one column and the classes \['no' 'yes'\]\. .*-w / 2, w / 2",
        ),
        ([(np.eye(2), np.zeros(2))], {"activation": "swish"}, ValueError, "activation must be one of"),
        (
            [(np.eye(2), np.zeros(2))],
            {"dtype": "float32"},
            ValueError,
            "dtype must be None or that .* float64, got 'flo",
        ),
        ([(np.eye(2), np.zeros(2))], {"hidden_layer_sizes": 3}, ValueError, "hidden_layer_sizes must make the layers"),
    ],
)
def test_weights_that_do_not_fit(params, options, error, message):
    with pytest.raises(error, match=message):
        MLPClassifier.from_params(params, **options)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"activation": "softsign"}, ValueError, "activation must be one of \"identity\", .*, got 'softsign'"),
        ({"solver": "rmsprop"}, ValueError, 'solver must be one of "adam", "sgd", "lbfgs", got'),
        ({"learning_rate": "fast"}, ValueError, "learning_rate must be one of"),
        ({"alpha": -1.0}, ValueError, r"alpha must be finite and at least 0, got -1\.0"),
        ({"alpha": "1"}, TypeError, "alpha must be a real number, got '1'"),
        ({"learning_rate_init": 0.0}, ValueError, r"learning_rate_init must be positive, got 0\.0"),
        ({"epsilon": 0.0}, ValueError, r"epsilon must be positive, got 0\.0"),
        ({"momentum": 1.5}, ValueError, r"momentum must be from 0 to 1, got 1\.5"),
        ({"beta_1": 1.0}, ValueError, r"beta_1 must be at least 0 and below 1, got 1\.0"),
        ({"validation_fraction": 1.0}, ValueError, r"validation_fraction must be at least 0 and below 1, got 1\.0"),
        ({"tol": np.inf}, ValueError, r"tol must be finite and at least 0, got inf"),
        ({"verbose": 2.5}, TypeError, r"verbose must be an integer, got 2\.5"),
        ({"verbose": -1}, ValueError, "verbose must be at least 0, got -1"),
        ({"random_state": "a"}, ValueError, "random_state must be None, an integer from 0 or a RandomState, got 'a'"),
        ({"label_smoothing": 2.0}, ValueError, r"label_smoothing must be from 0 to 1, got 2\.0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": "all"}, TypeError, "batch_size must be an integer, got 'all'"),
        ({"max_iter": 1.5}, TypeError, r"max_iter must be an integer, got 1\.5"),
        ({"n_iter_no_change": 0}, ValueError, "n_iter_no_change must be at least 1, got 0"),
        ({"hidden_layer_sizes": (3, 0)}, ValueError, "hidden_layer_sizes must be at least 1, got 0"),
        *(
            (
                {"hidden_layer_sizes": sizes},
                TypeError,
                rf"hidden_layer_sizes must be an integer or a sequence of integers, got {shown}\. \(\) is a network",
            )
            for sizes, shown in (
                (None, "None"),
                ("3", "'3'"),
                (2.5, r"2\.5"),
                ({5: 1}, "{5: 1}"),
                ([[3]], r"\[\[3\]\]"),
                ([[3, 2], [1]], r"\[\[3, 2\], \[1\]\]"),
            )
        ),
        ({"hidden_layer_sizes": [None]}, TypeError, "hidden_layer_sizes must be an integer, got None"),
        ({"shuffle": "yes"}, TypeError, "shuffle must be True or False, got 'yes'"),
        ({"class_weight": "equal"}, ValueError, "class_weight must be one of \"balanced\", got 'equal'"),
        ({"class_weight": [1, 2, 3]}, TypeError, r'class_weight must be None, a dict or "balanced", got \[1, 2, 3\]'),
        (
            {"class_weight": {0: 1.0, 9: 1.0}},
            ValueError,
            r"class_weight must be of the labels of y, \[0 1 2\], .* of 9",
        ),
        ({"class_weight": {0: "1"}}, TypeError, r"class_weight\[0\] must be a real number, got '1'"),
        ({"class_weight": {1: np.nan}}, ValueError, r"class_weight\[1\] must be finite and at least 0, got nan"),
        (
            {"class_weight": {0: 0, 1: 0, 2: 0}},
            ValueError,
            r"class_weight must let a row count, got \{0: 0, 1: 0, 2: 0\}",
        ),
        ({"dtype": "float16"}, ValueError, 'dtype must be "float32" or "float64", got \'float16\''),
        ({"dtype": "wide"}, ValueError, 'dtype must be "float32" or "float64", got \'wide\''),
        ({"dtype": ["float32"]}, ValueError, r'dtype must be "float32" or "float64", got \[\'float32\'\]'),
        ({"dtype": 3}, ValueError, 'dtype must be "float32" or "float64", got 3'),
    ],
)
def test_parameters_are_checked(options, error, message, iris):
    with pytest.raises(error, match=message):
        MLPClassifier(**options).fit(*iris)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.eye(3, dtype=int)[[0, 1, 2, 0]], r"y must be labels .* got int64 of shape \(4, 3\)\. Several .*multilabel"),
        (np.array([["a", "b"]] * 4), "multilabel, multioutput"),
        (np.full((4, 2), 0.4), r"y must be probabilities.* got the sum 0\.8 and the least entry 0\.4 at row 0"),
        (np.array([[1.0, 0.0]] * 3 + [[1.5, -0.5]]), r"got the sum 1\.0 and the least entry -0\.5 at row 3"),
        ([0.5, 1.0, 2.0, 3.0], "Unknown label type: continuous"),
        ([0, 1, 2], "inconsistent numbers of samples"),
        ([], r"y must have shape \(N,\) or \(N, C\), both at least 1, got \(0,\)"),
        (1, r"y must have shape \(N,\) or \(N, C\), both at least 1, got \(\)"),
        (np.ones((4, 1, 2)), r"y must have shape \(N,\) or \(N, C\), both at least 1, got \(4, 1, 2\)"),
        ([0, 1, np.nan, 2], "y must hold no missing values, got NaN at row 2"),
    ],
)
def test_targets_are_checked(y, message):
    with pytest.raises(ValueError, match=message):
        MLPClassifier().fit(np.eye(4), y)


def test_columns_of_probabilities_are_those_of_sorted_classes(iris):
    X, y = iris
    rows, names = np.eye(3)[y], np.array(["a", "b", "c"])
    options = {"random_state": 0, "learning_rate_init": 0.1}
    model = MLPClassifier(**options).partial_fit(X, rows, classes=names)
    assert difference(model, MLPClassifier(**options).partial_fit(X, names[y], classes=names)) < SAME
    assert model.classes_.tolist() == ["a", "b", "c"]
    for one in (MLPClassifier(**options), model):
        with pytest.raises(
            ValueError, match=r"classes must be sorted, as the columns of probabilities are, got \['b', "
        ):
            one.partial_fit(X, rows, classes=["b", "a", "c"])


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_weights_of_other_shapes_begin_anew(solver, iris):
    """A pruned network can go on, but not with what the optimiser keeps for the weights that are gone."""
    model = MLPClassifier((6,), solver=solver, max_iter=2, random_state=0).fit(*iris)
    model.coefs_ = [model.coefs_[0][:, :4].copy(), model.coefs_[1][:4].copy()]
    model.intercepts_[0] = model.intercepts_[0][:4].copy()
    model.set_params(hidden_layer_sizes=(4,), warm_start=True)
    with pytest.raises(ValueError, match=r"coefs_ .* must have the shapes that partial_fit has seen, got \[\(4, 4\), "):
        model.partial_fit(*iris)
    assert model.fit(*iris).partial_fit(*iris).coefs_[0].shape == (4, 4)


def test_targets_of_every_library_are_checked(backend):
    if backend.name == "dask":
        pytest.skip("refused")
    X = backend.asarray(np.eye(4))
    with pytest.raises(ValueError, match="multilabel"):
        MLPClassifier().fit(X, backend.asarray(np.eye(4, dtype=int)))
    with pytest.raises(ValueError, match=r"got the sum 1\.5 and the least entry 0\.0 at row 2"):
        MLPClassifier().fit(X, backend.asarray(np.diag([1.0, 1.0, 1.5, 1.0])))
    with pytest.raises(ValueError, match=r"^X must be finite, got NaN at row 1, column 1\. Fill in missing values"):
        MLPClassifier().fit(backend.asarray(np.diag([1.0, np.nan])), [0, 1])


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.zeros(4), "sample_weight must let a row count, got weights that are all zero"),
        (np.array([1.0, -1.0, 1.0, 1.0]), r"sample_weight must be finite and not negative.*, got -1\.0 at row 1"),
        (np.ones(3), r"sample_weight must have shape \(4,\), a number for each row of X, got \(3,\)"),
        (np.ones((4, 1)), r"sample_weight must have shape \(4,\), a number for each row of X, got \(4, 1\)"),
        (["a"] * 4, "sample_weight must be numbers, got 'a'"),
        ({0: 1.0, 1: 2.0}, r"sample_weight must be an array \(N,\), a number or None, got \{0: 1\.0, 1: 2\.0\}"),
        (np.ones((4, 1, 1)), r"sample_weight must have shape \(4,\), a number for each row of X, got \(4, 1, 1\)"),
    ],
)
def test_sample_weights_are_checked(weight, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MLPClassifier().fit(np.eye(4), [0, 1, 0, 1], weight)


def test_weights_of_pytorch_are_real():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"sample_weight must be real numbers, got torch\.complex64"):
        MLPClassifier().fit(np.eye(4), [0, 1, 0, 1], torch.ones(4) + 1j)


def test_sixteen_bits_of_pytorch_and_jax_are_taken(iris):
    torch = pytest.importorskip("torch")
    jnp = pytest.importorskip("jax").numpy
    X, y = torch.asarray(iris[0]), iris[1]
    options = {"max_iter": 2, "random_state": 0}
    expected = MLPClassifier(**options).fit(X, y).loss_
    weight, rows = (jnp.asarray(a, dtype=jnp.bfloat16) for a in (np.ones(150), np.eye(3)[y]))
    assert MLPClassifier(**options).fit(X, y, weight).loss_ == pytest.approx(expected, rel=1e-12)
    assert MLPClassifier(**options).fit(X, rows).loss_ == pytest.approx(expected, rel=1e-12)
    model = MLPClassifier(**options).fit(X, torch.asarray(y, dtype=torch.bfloat16))
    assert (model.loss_, model.classes_.tolist()) == (expected, [0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.ones((4, 2), dtype=int), "y must be labels .* got int64 .*multilabel"),
        (np.zeros((4, 2)), r"y must be probabilities.* got the sum 0\.0"),
        (np.full((4, 2), np.nan), "y must be probabilities without missing values, got NaN at row 0"),
        (["0", "1", "0", "1"], r"y must be labels like \[0 1\], got \['0' '1' '0' '1'\]"),
        ([0, None, 0, 1], "y must hold no missing values, got None at row 1"),
        ([0, 1, 0], r"inconsistent numbers of samples: \[3, 4\]"),
        (np.full((4, 3), 1 / 3), "y must have a column for each of 2 classes, got 3"),
    ],
)
def test_targets_of_score_are_checked(y, message):
    model = MLPClassifier(max_iter=1).fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(ValueError, match=message):
        model.score(np.eye(4), y)


def test_weights_whose_sum_overflows_are_weights():
    X, y = np.repeat(np.eye(2), 12, axis=0), np.repeat([0, 1], 12)
    model = MLPClassifier((), early_stopping=True, max_iter=40, learning_rate_init=0.3, random_state=0)
    assert model.fit(X, y).score(X, y, np.full(24, 1e308)) == 1.0
    wrong = np.where(np.arange(24) < 6, 1, y)
    assert model.score(X, wrong, np.where(np.arange(24) < 12, 1e308, 5e307)) == pytest.approx(2 / 3, rel=1e-15)


def test_memory_for_predictions_is_checked(iris):
    model = MLPClassifier(max_iter=1).fit(*iris)
    for value, error in (("1G", TypeError), (1.5, TypeError), (-4, ValueError), (0, ValueError)):
        with pytest.raises(error, match=f"max_memory must be .*, got '?{value}"):
            model.set_params(max_memory=value).predict(iris[0])


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_another_dtype_is_not_left_unnoticed_where_a_fit_goes_on(method, backend, iris):
    if backend.name == "dask":
        pytest.skip("refused")
    X = backend.asarray(iris[0], "float32")
    model = MLPClassifier(max_iter=1, warm_start=True, dtype="float32").fit(X, iris[1])
    getattr(model, method)(X, iris[1])
    with pytest.raises(ValueError, match=r"dtype must be None or that of the fitted weights, float32, got .*64"):
        getattr(model.set_params(dtype="float64"), method)(X, iris[1])
    with pytest.raises(ValueError, match='dtype must be "float32" or "float64", got \'bogus\''):
        getattr(model.set_params(dtype="bogus"), method)(X, iris[1])


def test_inputs_are_checked(iris):
    X, y = iris
    with pytest.raises(NotFittedError):
        MLPClassifier().predict(X)
    model = MLPClassifier(max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match="X has 3 features, but MLPClassifier is expecting 4"):
        model.predict(X[:, :3])
    for bad, word in ((np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "-infinity")):
        holes = np.where((np.arange(150) == 77)[:, None] & (np.arange(4) == 2), bad, X)
        for call in (model.predict, partial(model.partial_fit, y=y), partial(model.fit, y=y), model.decision_function):
            for given in (holes, holes.tolist(), np.asfortranarray(holes)):
                with pytest.raises(ValueError, match=f"^X must be finite, got {word} at row 77, column 2"):
                    call(given)
    large = MLPClassifier(dtype="float32")
    with pytest.raises(ValueError, match=r"^X must be finite, got infinity at row 1, column 1, or .* for float32\."):
        large.fit(np.diag([1.0, 1e300]), [0, 1])


def test_missing_values_of_inputs_are_named():
    pandas = pytest.importorskip("pandas")
    columns = {"a": [1, None, 3], "b": [1, 2, 3]}
    frames = [pandas.DataFrame(columns, dtype=dtype) for dtype in ("Int64", "Float64", object)]
    for X in (*frames, [[1, 1], [pandas.NA, 2], [3, 3]], [[1, 1], [None, 2], [3, 3]]):
        with pytest.raises(ValueError, match=r"^X must be finite, got NaN at row 1, column 0\."):
            MLPClassifier().fit(X, [0, 1, 0])


def masked_blocks(X):
    da = pytest.importorskip("dask.array")
    return da.ma.masked_equal(da.from_array(X, chunks=(50, 4)), 7.0)


MASKED = {
    "X": lambda model, X, y: model.fit(np.ma.array(X), y),
    "X of dask": lambda model, X, y: model.fit(masked_blocks(X), y),
    "X in rows": lambda model, X, y: model.fit([np.ma.array(row) for row in X], y),
    "y": lambda model, X, y: model.fit(X, np.ma.array(y)),
    "sample_weight": lambda model, X, y: model.fit(X, y, np.ma.ones(len(y))),
    "classes": lambda model, X, y: model.partial_fit(X, y, np.ma.array([0, 1, 2])),
    "X of predict": lambda model, X, y: model.predict(np.ma.array(X)),
    "X of predict_proba": lambda model, X, y: model.predict_proba(np.ma.array(X)),
    "y of score": lambda model, X, y: model.score(X, np.ma.array(y)),
    "sample_weight of score": lambda model, X, y: model.score(X, y, np.ma.ones(len(y))),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_arrays_are_refused(name, iris):
    """Also where nothing is masked: the type of an argument should not depend on its values."""
    X, y = iris
    model = MLPClassifier(max_iter=1, random_state=0).fit(X, y)
    with pytest.raises(TypeError, match=rf"^{name.split()[0]} must not be a masked array, got one\. Fill it in"):
        MASKED[name](model, X, y)


METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function", "score")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("hidden", [(), (5,)])
def test_products_that_overflow_are_no_prediction(hidden, method, backend, dtype, iris):
    if backend.name == "dask":
        pytest.skip("a model is in memory")
    X, y = iris[0].astype(dtype), iris[1]
    model = MLPClassifier(hidden, max_iter=1, random_state=0).fit(X, y)
    model.coefs_ = [np.abs(weight) * 100 for weight in model.coefs_]
    X[77] = np.finfo(dtype).max
    moved, there = model.to(backend.library, device=backend.device), backend.asarray(X)
    message = rf"^X must have products .* finite in {dtype}, got the largest logit (NaN|infinity) at row 77\. Scale X"
    with pytest.raises(ValueError, match=message):
        getattr(moved, method)(*((there, y) if method == "score" else (there,)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_make_no_prediction(method, value, iris):
    X, y = iris
    X = X * 0.0 + 50.0
    model = MLPClassifier((5,), "tanh", max_iter=1, random_state=0).fit(X, y)
    model.coefs_[1][:, 1] = value
    with pytest.raises(
        ValueError, match=r"^coefs_\[1\] must be finite, got (nan|inf): row 0 of X has no most probable"
    ):
        getattr(model, method)(*((X, y) if method == "score" else (X,)))


def test_a_logit_of_minus_infinity_is_a_probability_of_zero():
    model = MLPClassifier.from_params([(np.array([[1.0, -1e308]]), np.zeros(2))])
    assert model.predict([[10.0]]).tolist() == [0]
    np.testing.assert_array_equal(model.predict_proba([[10.0]]), [[1.0, 0.0]])


def test_rows_held_out_do_not_hide_that_training_diverges(iris):
    model = MLPClassifier(
        (5,), solver="sgd", momentum=0.0, learning_rate_init=1e308, max_iter=1, batch_size=135, early_stopping=True
    )
    with pytest.raises(ValueError, match=r"^Solver produced non-finite .* logits of rows held out .* after epoch 1\."):
        model.fit(iris[0] * 1e3, iris[1])
    assert not hasattr(model, "coefs_")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("hidden", [(), (50,)])
def test_numbers_of_every_chunk_are_looked_at(hidden, bad, rng, monkeypatch):
    """By the product with a column of weights: also where its weight is 0, and where only the sum overflows."""
    monkeypatch.setattr("xpsoftmax.sklearn.predicting.IN_CACHE", 2**15)
    X, y = rng.standard_normal((900, 6)), np.arange(900) % 7
    for weight in (1.0, 0.0):
        model = MLPClassifier(hidden, max_iter=1, random_state=0).fit(X, y)
        model.coefs_[0][3, 0] *= weight
        for row in (0, 400, 899):
            Z = X.copy()
            Z[row, 3] = bad
            for method in (model.predict, model.predict_proba, model.decision_function):
                with pytest.raises(
                    ValueError, match=rf"^X must be finite, got (NaN|-?infinity) at row {row}, column 3"
                ):
                    method(Z)
            with pytest.raises(ValueError, match=rf"^X must be finite, got (NaN|-?infinity) at row {row}, column 3"):
                model.partial_fit(Z, y)
    X[450:] = 1e305  # the sum of the logits of a chunk overflows, and none of them does
    model.coefs_ = [np.ones_like(weight) for weight in model.coefs_]
    np.testing.assert_allclose(model.predict_proba(X), 1 / 7, atol=0.2)


def test_partial_fit_is_checked(iris):
    X, y = iris
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        MLPClassifier().partial_fit(X, y)
    with pytest.raises(ValueError, match="early_stopping must be False for partial_fit"):
        MLPClassifier(early_stopping=True).partial_fit(X, y, [0, 1, 2])
    with pytest.raises(ValueError, match="class_weight must be None or a dict for partial_fit, got 'balanced'"):
        MLPClassifier(class_weight="balanced").partial_fit(X, y, [0, 1, 2])
    with pytest.raises(ValueError, match=r"y must have no classes but those that are known, \[0 1\], got also \[2\]"):
        MLPClassifier().partial_fit(X, y, [0, 1])
    model = MLPClassifier().partial_fit(X, y, [0, 1, 2])
    with pytest.raises(ValueError, match=r"classes must be the same as on the first call"):
        model.partial_fit(X, y, [0, 1, 2, 3])
    for weight, message in (
        (np.ones(150), r"classes must be different labels, got 1\.0 150 times"),
        (np.linspace(0.1, 3.1, 150), r"classes must be labels: .* got 0\.1 at place 0\."),
        (np.ones((3, 1)), r"classes must be labels \(C,\), got shape \(3, 1\)"),
        ([], r"classes must be labels \(C,\), got shape \(0,\)"),
        ([0.0, 1.0, np.nan], "classes must hold no missing values, got NaN at place 2"),
    ):  # scikit-learn has the weights in that place
        for one in (MLPClassifier(), model):
            with pytest.raises(ValueError, match=r"\. Pass weights of the rows by name: sample_weight=\.\.\."):
                one.partial_fit(X, y, weight)
        with pytest.raises(ValueError, match=message):
            MLPClassifier().partial_fit(X, y, weight)
    with pytest.raises(
        ValueError, match=r"^y must have the classes of the earlier fit: .*Previously got \[0 1 2\], `y` has \[0 1\]\.$"
    ):
        MLPClassifier(max_iter=1, warm_start=True).fit(X, y).fit(X[:100], y[:100])
