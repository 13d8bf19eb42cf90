"""Fitted models from scikit-learn and to it: the same probabilities, attributes, tools that go on; ONNX."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.neural_network import MLPClassifier as Theirs
from sklearn.preprocessing import StandardScaler

from xpsoftmax.sklearn import MLPClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
ACTIVATIONS = ("identity", "logistic", "tanh", "relu")
EQUAL = {np.float64: 1e-12, np.float32: 1e-5}
"""Largest difference of probabilities, by the dtype of the weights."""


@pytest.fixture(scope="module")
def data():
    """Inputs and labels of two classes, and of three."""
    X2, y2 = load_breast_cancer(return_X_y=True)
    X3, y3 = load_iris(return_X_y=True)
    scaled = StandardScaler().fit_transform
    return {2: (scaled(X2), np.array(["bad", "good"])[y2]), 3: (scaled(X3), y3)}


def assert_same_answers(one, other, X):
    atol = EQUAL[X.dtype.type]
    np.testing.assert_allclose(one.predict_proba(X), other.predict_proba(X), rtol=0, atol=atol)
    np.testing.assert_array_equal(one.predict(X), other.predict(X))
    np.testing.assert_array_equal(one.classes_, other.classes_)


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_networks_of_scikit_learn(data, classes, activation, dtype):
    X, y = data[classes][0].astype(dtype), data[classes][1]
    theirs = Theirs((9, 5), activation=activation, max_iter=20, random_state=0).fit(X, y)
    model = MLPClassifier.from_sklearn(theirs)
    assert model.coefs_[0].dtype == dtype
    assert_same_answers(model, theirs, X)
    assert model.activation == activation
    assert model.score(X, y) == theirs.score(X, y)
    back = model.to_sklearn()
    assert type(back) is Theirs
    assert_same_answers(back, theirs, X)
    for own, given in zip([*back.coefs_, *back.intercepts_], [*theirs.coefs_, *theirs.intercepts_], strict=True):
        np.testing.assert_array_equal(own, given)  # halves are exact


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_networks_to_scikit_learn(data, classes, activation):
    X, y = data[classes]
    model = MLPClassifier((9, 5), activation=activation, max_iter=20, random_state=0).fit(X, y)
    theirs = model.to_sklearn()
    assert_same_answers(theirs, model, X)
    again = MLPClassifier.from_sklearn(theirs)
    assert_same_answers(again, model, X)


@pytest.mark.parametrize("early", [False, True])
def test_parameters_and_scores_come_along(data, early):
    X, y = data[3]
    given = {"hidden_layer_sizes": [7], "alpha": 0.01, "batch_size": 30, "learning_rate_init": 0.01, "max_iter": 12}
    given |= {"early_stopping": early, "random_state": 3, "beta_1": 0.8, "solver": "sgd", "learning_rate": "invscaling"}
    theirs = Theirs(**given).fit(X, y)
    model = MLPClassifier.from_sklearn(theirs)
    own = theirs.get_params()
    assert {name: value for name, value in model.get_params().items() if name in own} == {
        name: value for name, value in own.items() if name in model.get_params()
    }
    same = ("n_iter_", "t_", "loss_", "loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_")
    for fitted in (model, model.to_sklearn()):
        for name in (*same, "n_layers_", "n_outputs_", "n_features_in_", "out_activation_"):
            assert getattr(fitted, name) == getattr(theirs, name), name
    model.loss_curve_.append(0.0)
    assert len(theirs.loss_curve_) == 12


@pytest.mark.filterwarnings("ignore:.*clipped:UserWarning")
def test_both_go_on_to_the_same_weights(data):
    """A warm start of one and of the other, from the same weights with a new optimiser, in steps of all rows."""
    X, y = data[3]
    theirs = Theirs((7,), max_iter=5, batch_size=1000, random_state=0, tol=0.0, warm_start=True).fit(X, y)
    model = MLPClassifier.from_sklearn(theirs)
    back = model.to_sklearn()
    theirs.fit(X, y)
    for other in (model, back):
        other.fit(X, y)
        np.testing.assert_allclose(other.coefs_[0], theirs.coefs_[0], rtol=0, atol=1e-12)
        assert len(other.loss_curve_) == 10
    model.partial_fit(X, y)
    model.to_sklearn().partial_fit(X, y)


def test_an_early_stop_goes_on_from_scores(data):
    X, y = data[3]
    theirs = Theirs((7,), max_iter=8, random_state=0, early_stopping=True, warm_start=True).fit(X, y)
    model = MLPClassifier.from_sklearn(theirs).fit(X, y)
    assert len(model.validation_scores_) > len(theirs.validation_scores_)
    back = model.to_sklearn().fit(X, y)
    assert len(back.validation_scores_) > len(model.validation_scores_)


def test_names_of_features(data):
    pandas = pytest.importorskip("pandas")
    X, y = data[3]
    frame = pandas.DataFrame(X, columns=list("abcd"))
    theirs = Theirs((5,), max_iter=3).fit(frame, y)
    for model in (MLPClassifier.from_sklearn(theirs), MLPClassifier.from_sklearn(theirs).to_sklearn()):
        assert model.feature_names_in_.tolist() == list("abcd")
        np.testing.assert_allclose(model.predict_proba(frame), theirs.predict_proba(frame), rtol=0, atol=1e-12)
        with pytest.raises(ValueError, match="feature names"):
            model.predict(frame.rename(columns={"a": "x"}))


def test_models_elsewhere_come_to_the_host(backend, rng):
    if not backend.name.startswith(("torch", "jax", "cupy", "array_api_strict")):
        pytest.skip("it is on the host")
    X, y = rng.standard_normal((30, 4)).astype("float32"), np.arange(30) % 3
    model = MLPClassifier((5,), max_iter=3, random_state=0).fit(backend.asarray(X), y)
    theirs = model.to_sklearn()
    assert all(type(array) is np.ndarray for array in theirs.coefs_)
    np.testing.assert_allclose(
        theirs.predict_proba(X), backend.to_numpy(model.predict_proba(backend.asarray(X))), atol=1e-5
    )


def test_they_share_no_memory(data):
    X, y = data[3]
    theirs = Theirs((5,), max_iter=3, random_state=0).fit(X, y)
    model = MLPClassifier.from_sklearn(theirs)
    back = model.to_sklearn()
    for own in (model, back):
        assert not any(np.shares_memory(a, b) for a, b in zip(own.coefs_, theirs.coefs_, strict=True))
    assert not any(np.shares_memory(a, b) for a, b in zip(back.coefs_, model.coefs_, strict=True))


def test_both_can_be_cloned_and_pickled(data):
    X, y = data[2]
    theirs = Theirs((5,), max_iter=3, random_state=0).fit(X, y)
    model = MLPClassifier.from_sklearn(theirs)
    assert_same_answers(pickle.loads(pickle.dumps(model)), theirs, X)
    assert_same_answers(pickle.loads(pickle.dumps(model.to_sklearn())), theirs, X)
    assert clone(model.to_sklearn()).get_params() == theirs.get_params()


# --- regressions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_regressions(data, classes, dtype):
    X, y = data[classes][0].astype(dtype), data[classes][1]
    theirs = LogisticRegression(C=0.5, max_iter=30).fit(X, y)
    model = MLPClassifier.from_sklearn(theirs)
    assert_same_answers(model, theirs, X)
    assert (model.hidden_layer_sizes, model.solver) == ((), "lbfgs")
    back = model.to_sklearn()
    assert type(back) is LogisticRegression
    assert_same_answers(back, theirs, X)
    np.testing.assert_allclose(back.decision_function(X), theirs.decision_function(X), rtol=0, atol=100 * EQUAL[dtype])
    np.testing.assert_allclose(back.C, theirs.C)
    assert back.n_iter_.shape == theirs.n_iter_.shape


@pytest.mark.parametrize("classes", [2, 3])
def test_alpha_is_c(data, classes):
    """Both are fitted anew, and come to the same probabilities.

    SciPy ends where the loss changes by less than 2e-9 of it; the probabilities are then right to about its root.
    """
    X, y = data[classes]
    theirs = LogisticRegression(C=0.25, tol=1e-10, max_iter=5000).fit(X, y)
    model = MLPClassifier.from_sklearn(theirs)
    assert model.alpha == (8.0 if classes == 2 else 4.0)
    again = clone(model).set_params(tol=1e-8, random_state=0).fit(X, y)
    np.testing.assert_allclose(again.predict_proba(X), theirs.predict_proba(X), rtol=0, atol=2e-4)
    back = clone(again.to_sklearn()).set_params(tol=1e-10).fit(X, y)
    np.testing.assert_allclose(back.predict_proba(X), theirs.predict_proba(X), rtol=0, atol=1e-6)
    other = clone(model).set_params(tol=1e-8, random_state=0, alpha=2.0 * model.alpha).fit(X, y)
    assert np.abs(other.predict_proba(X) - theirs.predict_proba(X)).max() > 2e-2  # it is felt


def test_a_regression_without_penalty(data):
    X, y = data[3]
    model = MLPClassifier.from_sklearn(LogisticRegression(C=np.inf, max_iter=20).fit(X, y))
    assert model.alpha == 0.0
    assert np.isinf(model.to_sklearn().C)


def test_the_part_of_a_penalty_that_is_l2(data):
    X, y = data[3]
    theirs = LogisticRegression(C=0.5, l1_ratio=0.25, solver="saga", max_iter=20)
    theirs = theirs if sklearn.__version__ >= "1.8" else theirs.set_params(penalty="elasticnet")
    theirs.fit(X, y)
    model = MLPClassifier.from_sklearn(theirs)
    assert model.alpha == pytest.approx(0.75 * 2.0)
    assert_same_answers(model, theirs, X)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_regression_with_a_search_of_its_own(data):
    X, y = data[3]
    theirs = LogisticRegressionCV(Cs=[0.1, 1.0], max_iter=20).fit(X, y)
    model = MLPClassifier.from_sklearn(theirs)
    assert_same_answers(model, theirs, X)
    assert model.alpha == pytest.approx(1.0 / np.mean(theirs.C_))


@pytest.mark.skipif(not hasattr(LogisticRegression(), "multi_class"), reason="gone from this scikit-learn")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_multinomial_of_two_classes(data):
    X, y = data[2]
    theirs = LogisticRegression(multi_class="multinomial", max_iter=30).fit(X, y)
    assert_same_answers(MLPClassifier.from_sklearn(theirs), theirs, X)
    with pytest.raises(ValueError, match=r"^model must have softmax probabilities, got .*multi_class='ovr'"):
        MLPClassifier.from_sklearn(LogisticRegression(multi_class="ovr").fit(*data[3]))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_not_taken(data):
    X, y = data[3]
    for other in (StandardScaler().fit(X), 3, MLPClassifier((), max_iter=1).fit(X, y)):
        with pytest.raises(TypeError, match=r"^model must be a fitted MLPClassifier or LogisticRegression of scikit-l"):
            MLPClassifier.from_sklearn(other)
    for unfitted in (Theirs(), LogisticRegression()):
        with pytest.raises(NotFittedError):
            MLPClassifier.from_sklearn(unfitted)
    with pytest.raises(NotFittedError):
        MLPClassifier().to_sklearn()
    several = Theirs((3,), max_iter=2).fit(X, np.eye(3, dtype=int)[y] | [1, 0, 0])
    with pytest.raises(
        ValueError, match=r"^model must tell two or more classes apart, got one of 3 independent labels"
    ):
        MLPClassifier.from_sklearn(several)
    with pytest.raises(ValueError, match=r"^model must tell two or more classes apart, got one of one class"):
        MLPClassifier.from_sklearn(Theirs((3,), max_iter=2).fit(X, np.zeros(len(X), int)))


def test_what_is_not_given(data):
    X, y = data[3]
    model = MLPClassifier((4,), activation="gelu", max_iter=2).fit(X, y)
    with pytest.raises(ValueError, match=r"^activation must be one that scikit-learn has, .*, got 'gelu'\.$"):
        model.to_sklearn()
    model = MLPClassifier((4,), max_iter=2).fit(X, np.zeros(len(X), int))
    with pytest.raises(ValueError, match=r"^classes_ must be two or more for a model of scikit-learn, got \[0\]\.$"):
        model.to_sklearn()
    model = MLPClassifier((4,), max_iter=2).fit(X, y).set_params(activation="tanh")
    with pytest.raises(ValueError, match=r"^activation must be the one that the model was fitted with"):
        model.to_sklearn()


# --- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("hidden", [(), (9, 5)])
def test_onnx(data, classes, hidden):
    """The file that skl2onnx makes of it has its probabilities."""
    skl2onnx = pytest.importorskip("skl2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    X, y = data[classes][0].astype(np.float32), data[classes][1]
    model = MLPClassifier(hidden, activation="tanh", max_iter=20, random_state=0).fit(X, y)
    file = skl2onnx.to_onnx(model.to_sklearn(), X[:1], options={"zipmap": False})
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    labels, probabilities = session.run(None, {session.get_inputs()[0].name: X})
    np.testing.assert_array_equal(labels, model.predict(X))
    np.testing.assert_allclose(probabilities, model.predict_proba(X), rtol=0, atol=1e-5)
