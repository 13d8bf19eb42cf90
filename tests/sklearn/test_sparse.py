"""The classifier on sparse inputs: the numbers of dense ones, every format, counts, text, and what is refused."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier as Theirs
from sklearn.pipeline import make_pipeline

from xpsoftmax.sklearn import MLPClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
FORMATS = ("csr", "csc", "coo", "lil", "bsr", "dok", "dia")
MODELS = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.01},
    "lbfgs": {"solver": "lbfgs"},
    "early stopping": {"early_stopping": True},
    "weights": {"class_weight": "balanced", "label_smoothing": 0.1},
    "memory": {"max_memory": 100_000},
    "no hidden layer": {"hidden_layer_sizes": ()},
}


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:500], y[:500]


def made(options, **more):
    return MLPClassifier(**{"max_iter": 5, "random_state": 0, "hidden_layer_sizes": (20,), **options, **more})


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csr_matrix])
@pytest.mark.parametrize("name", MODELS)
def test_the_fit_is_that_of_dense_inputs(digits, name, kind):
    X, y = digits
    S = kind(X)
    weight = np.linspace(0.5, 2.0, len(y))
    model, desired = (made(MODELS[name]).fit(inputs, y, weight) for inputs in (S, X))
    for array, like in zip(model.coefs_ + model.intercepts_, desired.coefs_ + desired.intercepts_, strict=True):
        np.testing.assert_allclose(array, like, rtol=0, atol=1e-9)
    np.testing.assert_allclose(model.loss_curve_, desired.loss_curve_, rtol=1e-9)
    for method in ("predict_proba", "predict_log_proba", "decision_function"):
        np.testing.assert_allclose(getattr(model, method)(S), getattr(desired, method)(X), rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(model.predict(S), desired.predict(X))
    assert model.score(S, y, weight) == desired.score(X, y, weight)
    np.testing.assert_allclose(model.predict_proba(X), desired.predict_proba(X), rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore:Constructing a DIA matrix")
@pytest.mark.parametrize("name", FORMATS)
def test_every_format(digits, name):
    X, y = digits
    S = sparse.csr_array(X).asformat(name)
    model, desired = made({}).fit(S, y), made({}).fit(sparse.csr_array(X), y)
    np.testing.assert_allclose(model.coefs_[0], desired.coefs_[0], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(model.predict(S), desired.predict(X))
    assert S.format == name
    np.testing.assert_array_equal(S.toarray(), X)


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "bool", "float32", "float16"])
def test_counts_and_other_numbers(digits, dtype):
    X, y = digits[0].astype("bool" if dtype == "bool" else "int8"), digits[1]
    if dtype == "float16":
        with pytest.raises((TypeError, ValueError)):  # SciPy has none
            sparse.csr_array(X.astype(dtype)) @ np.ones((X.shape[1], 1), dtype)
        return
    S = sparse.csr_array(X.astype(dtype))
    model = made({}).fit(S, y)
    assert model.coefs_[0].dtype == ("float32" if dtype == "float32" else "float64")
    desired = made({}).fit(X.astype(model.coefs_[0].dtype), y)
    np.testing.assert_allclose(model.coefs_[0], desired.coefs_[0], rtol=0, atol=1e-9 if dtype != "float32" else 1e-3)
    np.testing.assert_array_equal(model.predict(S), made({}).fit(S, y).predict(S))
    single = made({}, dtype="float32").fit(S, y)
    assert single.predict_proba(S).dtype == "float32"


def test_partial_fit_is_that_of_dense_inputs(digits):
    X, y = digits
    models = made({}), made({})
    for start in range(0, len(y), 100):
        rows = slice(start, start + 100)
        for model, inputs in zip(models, (sparse.csc_matrix(X), X), strict=True):
            model.partial_fit(inputs[rows], y[rows], classes=np.arange(10))
    np.testing.assert_allclose(models[0].coefs_[0], models[1].coefs_[0], rtol=0, atol=1e-9)


def test_the_loss_curve_of_scikit_learn(digits):
    X, y = digits[0] / 16.0, digits[1]
    options = {"max_iter": 8, "random_state": 0, "tol": 0.0}
    model, theirs = (kind(**options).fit(sparse.csr_array(X), y) for kind in (MLPClassifier, Theirs))
    np.testing.assert_allclose(model.loss_curve_, theirs.loss_curve_, rtol=1e-9)
    np.testing.assert_allclose(model.coefs_[0], theirs.coefs_[0], rtol=0, atol=1e-10)


def test_probabilities_as_targets(digits):
    X, y = digits
    targets = np.eye(10)[y] * 0.9 + 0.01
    model, desired = made({}).fit(sparse.csr_array(X), targets), made({}).fit(X, targets)
    np.testing.assert_allclose(model.coefs_[0], desired.coefs_[0], rtol=0, atol=1e-9)


def test_text():
    """Words that say whose they are: pipelines, searches, pickles, counts and weights of them."""
    rng = np.random.default_rng(0)
    words = {"sea": ["wave", "ship", "harbour", "tide", "salt"], "wood": ["tree", "moss", "root", "bark", "fern"]}
    topics = np.array(list(words))[rng.integers(0, 2, 200)]
    texts = [" ".join([*rng.choice(words[topic], 3), *rng.choice(["and", "the", "of"], 5)]) for topic in topics]
    for vectorizer in (CountVectorizer(), TfidfVectorizer()):
        model = make_pipeline(vectorizer, MLPClassifier((8,), max_iter=100, learning_rate_init=0.05, random_state=0))
        assert cross_val_score(model, texts, topics, cv=3).min() > 0.95
        model.fit(texts, topics)
        assert model.predict(["moss and bark", "salt of the tide"]).tolist() == ["wood", "sea"]
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again.predict_proba(texts), model.predict_proba(texts))
    search = GridSearchCV(model, {"mlpclassifier__alpha": [1e-4, 1e-2]}, cv=2).fit(texts, topics)
    assert search.best_score_ > 0.9


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["csr", "csc"])
def test_numbers_that_are_not_finite(digits, value, name):
    X, y = digits[0].copy(), digits[1]
    model = made({}).fit(X, y)
    X[17, 4], X[200, 2] = value, value
    S = sparse.csr_array(X).asformat(name)
    word = "NaN" if np.isnan(value) else "infinity" if value > 0 else "-infinity"
    message = rf"^X must be finite, got {word} at row 17, column 4"
    for call in (lambda: made({}).fit(S, y), lambda: model.predict(S), lambda: model.partial_fit(S, y)):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_number_too_large_for_float32(digits):
    X, y = digits[0].copy(), digits[1]
    X[5, 6] = 1e300
    with pytest.raises(ValueError, match=r"^X must be finite, got infinity at row 5, column 6, or a number too large"):
        made({}, dtype="float32").fit(sparse.csr_array(X), y)


def test_shapes(digits):
    X, y = digits
    model = made({}).fit(sparse.csr_array(X), y)
    with pytest.raises(ValueError, match=r"X has 63 features, but MLPClassifier is expecting 64 features"):
        model.predict(sparse.csr_array(X[:, 1:]))
    with pytest.raises(ValueError, match=r"[Ff]ound array with 0 sample"):
        model.predict(sparse.csr_array((0, 64)))


def test_a_model_in_pytorch(digits):
    torch = pytest.importorskip("torch")
    X, y = digits
    with pytest.raises(ValueError, match=r"must use the same namespace and device as the model, torch.*got numpy"):
        made({}).fit(torch.asarray(X), y).predict(sparse.csr_array(X))


def test_inputs_are_never_dense():
    """Counts of a million words in less memory than 200 dense rows of them take."""
    code = """
import resource, warnings
import numpy as np
from scipy import sparse
from xpsoftmax.sklearn import MLPClassifier
import xpsoftmax as xs
warnings.simplefilter("ignore")
rows, columns = 20_000, 1_000_000
rng = np.random.default_rng(0)
data, indices = np.ones(10 * rows, np.float32), rng.integers(0, columns, 10 * rows)
X = sparse.csr_matrix((data, indices, np.arange(0, 10 * rows + 1, 10)), shape=(rows, columns))
y = rng.integers(0, 3, rows)
MLPClassifier((2,), max_iter=1).fit(X[:3, :9], y[:3])
xs.threads(1).__enter__()
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20, resource.RLIM_INFINITY))
model = MLPClassifier((4,), max_iter=1, batch_size=2000, random_state=0, early_stopping=True).fit(X, y)
print(model.predict_proba(X).shape, model.predict(X).shape)
"""
    environment = {"OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stderr[-1500:]
    assert process.stdout == "(20000, 3) (20000,)\n"


def test_the_way_of_matrices_of_cupyx(digits, monkeypatch):
    """Taken with SciPy's, since there may be no GPU here: the checks, and what they say, are those of that way."""
    from xpsoftmax.sklearn import inputs

    X, y = digits
    S = sparse.csr_array(X)
    desired = made({}).fit(S, y)
    monkeypatch.setattr(inputs, "library_of", lambda value: "cupy" if sparse.issparse(value) else None)
    model = made({}, dtype="float64").fit(sparse.csc_array(X), y, X_val=S, y_val=y)
    np.testing.assert_array_equal(model.coefs_[0], desired.coefs_[0])
    np.testing.assert_array_equal(model.predict_proba(S), desired.predict_proba(S))
    single = made({}, dtype="float32").fit(S, y)
    assert single.coefs_[0].dtype == np.float32
    assert single.predict_proba(S).dtype == np.float32
    with pytest.raises(ValueError, match=r"^X must have shape \(N, D\), both at least 1, got \(0, 64\)\.$"):
        model.predict(S[:0])
    with pytest.raises(ValueError, match=r"^X must be of real numbers, got complex128: complex data is not"):
        made({}).fit(S.astype(complex), y)
    with pytest.raises(ValueError, match=r"X has 63 features, but MLPClassifier is expecting 64 features"):
        model.predict(S[:, 1:])
    S.data[7] = np.nan
    with pytest.raises(ValueError, match=r"^X must be finite, got NaN at row 0, column "):
        model.predict(S)


@pytest.mark.parametrize("method", ["fit", "partial_fit", "predict", "predict_proba"])
def test_entries_outside_the_matrix(method):
    X, y = np.eye(4), np.arange(4) % 2
    model = MLPClassifier(max_iter=2).fit(X, y)
    S = sparse.csr_array(X)
    S.indices[0] = 4
    with pytest.raises(ValueError, match=r"^X must have entries within its shape, \(4, 4\), got an invalid matrix\."):
        getattr(model, method)(S, *([y] if "fit" in method else []))
