"""Validation data of the caller's own; a learning rate that is changed; Ctrl-C in a search."""

import math
import signal
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn import config_context
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

import xpsoftmax as xs
from xpsoftmax.sklearn import MLPClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:400] / 16.0, y[:400], X[400:600] / 16.0, y[400:600]


def made(**options):
    return MLPClassifier(**{"hidden_layer_sizes": (15,), "max_iter": 6, "random_state": 0, **options})


def loss_of(model, X, y, **options):
    return float(xs.mlp_loss(model.params_, X, y, **options))


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_the_curve_of_the_validation_loss(digits, solver):
    X, y, X_val, y_val = digits
    model = made(solver=solver).fit(X, y, X_val=X_val, y_val=y_val)
    assert len(model.validation_loss_curve_) == len(model.loss_curve_) == model.n_iter_
    assert model.validation_loss_curve_[-1] == pytest.approx(loss_of(model, X_val, y_val), rel=1e-12)
    assert model.validation_loss_curve_[-1] < model.validation_loss_curve_[0]
    assert model.validation_scores_ is None
    without = made(solver=solver).fit(X, y)
    assert without.validation_loss_curve_ is None
    np.testing.assert_array_equal(model.coefs_[0], without.coefs_[0])  # it is only looked at
    assert model.loss_curve_ == without.loss_curve_


def test_weights_and_smoothing_count_in_it(digits):
    X, y, X_val, y_val = digits
    weight = np.linspace(0.0, 2.0, len(y_val))
    model = made(class_weight={3: 4.0}, label_smoothing=0.1)
    model.fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weight)
    classes = np.where(np.arange(10) == 3, 4.0, 1.0)
    expected = loss_of(model, X_val, y_val, class_weight=classes, label_smoothing=0.1, sample_weight=weight)
    assert model.validation_loss_curve_[-1] == pytest.approx(expected, rel=1e-12)


def test_early_stopping_looks_at_them_and_learns_from_all_rows(digits):
    X, y, X_val, y_val = digits
    weight = np.linspace(0.5, 2.0, len(y_val))
    options = {"early_stopping": True, "max_iter": 300, "n_iter_no_change": 3, "learning_rate_init": 0.01}
    model = made(**options).fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weight)
    assert model.n_iter_ < 300
    assert model.best_validation_score_ == model.score(X_val, y_val, weight)
    assert len(model.validation_scores_) == len(model.validation_loss_curve_) == model.n_iter_
    best = int(np.argmax(model.validation_scores_)) + 1
    alone = made(max_iter=best, learning_rate_init=0.01, tol=0.0, n_iter_no_change=math.inf).fit(X, y)
    np.testing.assert_array_equal(model.coefs_[0], alone.coefs_[0])


def test_curves_go_on(digits):
    X, y, X_val, y_val = digits
    model = made(warm_start=True).fit(X, y, X_val=X_val, y_val=y_val)
    first = model.validation_loss_curve_
    model.fit(X, y, X_val=X_val, y_val=y_val)
    assert model.validation_loss_curve_[:6] == first
    assert len(model.validation_loss_curve_) == 12
    assert model.fit(X, y).validation_loss_curve_ is None
    fewer = made(warm_start=True).fit(X, y)
    assert len(fewer.fit(X, y, X_val=X_val, y_val=y_val).validation_loss_curve_) == 6


def test_every_library(backend, digits):
    if backend.name == "dask":
        pytest.skip("refused")
    X, y, X_val, y_val = digits
    there = [backend.asarray(array.astype("float32") if array.ndim == 2 else array) for array in digits]
    model = made(early_stopping=True).fit(*there[:2], X_val=there[2], y_val=there[3])
    here = made(early_stopping=True, dtype="float32").fit(X, y, X_val=X_val, y_val=y_val)
    np.testing.assert_allclose(model.validation_loss_curve_, here.validation_loss_curve_, rtol=1e-4)
    np.testing.assert_allclose(model.validation_scores_, here.validation_scores_, atol=0.011)


def test_sparse_inputs_probabilities_and_strings(digits):
    sparse = pytest.importorskip("scipy.sparse")
    X, y, X_val, y_val = digits
    desired = made().fit(X, y, X_val=X_val, y_val=y_val).validation_loss_curve_
    found = made().fit(sparse.csr_array(X), y, X_val=sparse.csc_array(X_val), y_val=y_val).validation_loss_curve_
    np.testing.assert_allclose(found, desired, rtol=1e-9)
    names = np.array(list("abcdefghij"))
    found = made().fit(X, names[y], X_val=X_val.tolist(), y_val=names[y_val].tolist()).validation_loss_curve_
    np.testing.assert_allclose(found, desired, rtol=1e-12)
    eye = np.eye(10)
    found = made().fit(X, eye[y], X_val=X_val, y_val=eye[y_val]).validation_loss_curve_
    np.testing.assert_allclose(found, desired, rtol=1e-9)


def test_labels_that_the_validation_data_lack(digits):
    X, y, X_val, y_val = digits
    few = y_val < 3
    model = made().fit(X, y, X_val=X_val[few], y_val=y_val[few])
    assert model.validation_loss_curve_[-1] == pytest.approx(loss_of(model, X_val[few], y_val[few]), rel=1e-12)


WRONG = {
    "y_val alone": (
        lambda X, y: {"y_val": y},
        ValueError,
        r"^X_val must be given with y_val, got None: y_val is",
    ),
    "X_val alone": (
        lambda X, y: {"X_val": X},
        ValueError,
        r"^y_val must be given with X_val, got None: X_val is",
    ),
    "weights alone": (
        lambda X, y: {"sample_weight_val": y},
        ValueError,
        r"^sample_weight_val must be None without",
    ),
    "features": (
        lambda X, y: {"X_val": X[:, 1:], "y_val": y},
        ValueError,
        r"^X_val has 63 features, but MLPClassifier is",
    ),
    "rows": (lambda X, y: {"X_val": X, "y_val": y[1:]}, ValueError, r"inconsistent numbers of samples"),
    "labels": (
        lambda X, y: {"X_val": X, "y_val": y + 5},
        ValueError,
        r"^y_val must have no classes but those that are kn",
    ),
    "nan": (
        lambda X, y: {"X_val": X * np.nan, "y_val": y},
        ValueError,
        r"^X_val must be finite, got NaN at row 0, column 0",
    ),
    "weights": (
        lambda X, y: {"X_val": X, "y_val": y, "sample_weight_val": -1.0 - y},
        ValueError,
        r"^sample_weight_val must be finite and not negative",
    ),
    "no weight": (
        lambda X, y: {"X_val": X, "y_val": y, "sample_weight_val": 0.0 * y},
        ValueError,
        r"^sample_weight_val must let a row count, got weights that are all zero\.$",
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("early_stopping", [False, True])
def test_what_is_refused(digits, name, early_stopping):
    X, y, X_val, y_val = digits
    change, error, message = WRONG[name]
    model = made(early_stopping=early_stopping)
    with pytest.raises(error, match=message) as caught:
        model.fit(X, y, **change(X_val, y_val))
    assert not hasattr(model, "coefs_")
    notes = ["It is about X_val, y_val, sample_weight_val."] if name == "rows" else []
    assert getattr(caught.value, "__notes__", []) == notes


@pytest.mark.parametrize("chunked", [False, True])
def test_class_weights_that_let_no_row_count(digits, chunked, request):
    X, y, X_val, y_val = digits
    few = y_val == 3
    held = X_val[few], y_val[few]
    if chunked:
        X, y, make = request.getfixturevalue("lazy")
        held = make(held[0]), make(held[1])
    model = made(class_weight={3: 0.0})
    with pytest.raises(ValueError, match=r"^class_weight must let a row of X_val count, got \{3: 0\.0\}\.$"):
        model.fit(X, y, X_val=held[0], y_val=held[1])
    assert not hasattr(model, "coefs_")


def test_tensors_of_pytorch_beside_numpy(digits):
    X, y, X_val, y_val = digits
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"must use the same namespace and device as the model"):
        made().fit(X, y, X_val=torch.asarray(X_val), y_val=y_val)


BLOCKS = {"the same": (100, 100), "other": (70, 130), "with an empty one": (0, 150, 50)}


@pytest.fixture
def lazy(digits):
    """The data to learn from as dask arrays, and a function that makes such arrays of the validation data."""
    da = pytest.importorskip("dask.array")
    X, y, *_ = digits
    return da.from_array(X, chunks=(100, -1)), da.from_array(y, chunks=100), da.from_array


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_dask_arrays_give_the_curve_of_arrays_in_memory(digits, lazy, blocks, solver):
    X, y, chunked = lazy
    *_, X_val, y_val = digits
    weight = np.linspace(0.0, 2.0, len(y_val))
    chunks = BLOCKS[blocks]
    options = {"solver": solver, "class_weight": {3: 4.0}, "label_smoothing": 0.1}
    desired = made(**options).fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weight)
    held = {
        "X_val": chunked(X_val, chunks=(chunks, -1)),
        "y_val": chunked(y_val, chunks=50),
        "sample_weight_val": chunked(weight, chunks=50),
    }
    found = made(**options).fit(X, y, **held)
    np.testing.assert_allclose(found.validation_loss_curve_, desired.validation_loss_curve_, rtol=1e-12)
    classes = np.where(np.arange(10) == 3, 4.0, 1.0)
    options = {"class_weight": classes, "label_smoothing": 0.1, "sample_weight": weight}
    assert found.validation_loss_curve_[-1] == pytest.approx(loss_of(found, X_val, y_val, **options), rel=1e-12)
    np.testing.assert_array_equal(found.coefs_[0], desired.coefs_[0])  # it is only looked at


def test_early_stopping_on_dask_arrays(digits, lazy):
    X, y, chunked = lazy
    *_, X_val, y_val = digits
    weight = np.linspace(0.5, 2.0, len(y_val))
    options = {"early_stopping": True, "max_iter": 60, "n_iter_no_change": 3, "learning_rate_init": 0.01}
    held = chunked(X_val, chunks=(70, -1)), chunked(y_val, chunks=70)
    model = made(**options).fit(X, y, X_val=held[0], y_val=held[1], sample_weight_val=weight)
    assert model.n_iter_ < 60
    assert model.best_validation_score_ == model.score(*held, weight) == max(model.validation_scores_)
    in_memory = made(**options).fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weight)
    assert model.validation_scores_ == in_memory.validation_scores_


def test_dask_arrays_of_unknown_sizes(digits, lazy):
    X, y, chunked = lazy
    *_, X_val, y_val = digits
    few = y_val < 7
    mask = chunked(few, chunks=70)
    held = chunked(X_val, chunks=(70, -1))[mask], chunked(y_val, chunks=70)[mask]
    model = made().fit(X, y, X_val=held[0], y_val=held[1])
    assert model.validation_loss_curve_[-1] == pytest.approx(loss_of(model, X_val[few], y_val[few]), rel=1e-12)


def test_dask_data_frames_of_strings(digits):
    """Their blocks do not know how many rows they have."""
    dd = pytest.importorskip("dask.dataframe")
    pd = pytest.importorskip("pandas")
    names = np.array(list("abcdefghij"))
    X, y, X_val, y_val = digits
    frames = [pd.DataFrame(part, columns=[f"pixel {i}" for i in range(64)]) for part in (X, X_val)]
    for frame, labels in zip(frames, (y, y_val), strict=True):
        frame["digit"] = names[labels]
    (X, y), (X_val, y_val) = (
        (frame.drop(columns="digit"), frame["digit"]) for frame in (dd.from_pandas(f, npartitions=3) for f in frames)
    )
    model = made().fit(X, y, X_val=X_val, y_val=y_val)
    expected = loss_of(model, frames[1].drop(columns="digit").to_numpy(), digits[3])
    assert model.validation_loss_curve_[-1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["labels", "nan", "weights", "rows", "features", "no weight"])
def test_what_is_refused_of_dask_arrays(digits, lazy, name):
    X, y, chunked = lazy
    change, error, message = WRONG[name]
    held = {key: chunked(value, chunks=(50, -1)[: value.ndim]) for key, value in change(*digits[2:]).items()}
    model = made(early_stopping=True)
    with pytest.raises(error, match=message):
        model.fit(X, y, **held)
    assert not hasattr(model, "coefs_")


def test_a_late_bad_input_of_dask_arrays_is_named_before_the_first_step(digits, lazy, monkeypatch):
    X, y, chunked = lazy
    *_, X_val, y_val = digits
    bad = X_val.copy()
    bad[161, 5] = np.inf
    monkeypatch.setattr("xpsoftmax.sklearn.fitting.fit_epochs", lambda *_, **__: pytest.fail("a step was made"))
    message = r"^X_val must be finite, got infinity at row 161, column 5"
    with pytest.raises(ValueError, match=message):
        made().fit(X, y, X_val=chunked(bad, chunks=(50, -1)), y_val=y_val)


def test_dask_arrays_beside_arrays_in_memory(digits, lazy):
    X, y, X_val, y_val = digits
    message = r"^X_val must be in memory if X is, got a dask collection\. Call its compute\(\)\.$"
    with pytest.raises(TypeError, match=message):
        made().fit(X, y, X_val=lazy[2](X_val), y_val=y_val)
    message = r"^y_val and sample_weight_val must be in memory if X_val is, got one of dask\. Call its compute\(\)\.$"
    with pytest.raises(TypeError, match=message):
        made().fit(X, y, X_val=X_val, y_val=lazy[2](y_val))
    with pytest.raises(TypeError, match=r"^y_val must be labels \(N,\) for dask arrays, got shape \(200, 10\)"):
        made().fit(*lazy[:2], X_val=lazy[2](X_val), y_val=np.eye(10)[y_val])


def test_metadata_routing(digits):
    """A pipeline scales the validation data as it scales X."""
    X, y, X_val, y_val = digits
    with config_context(enable_metadata_routing=True):
        classifier = made().set_fit_request(X_val=True, y_val=True, sample_weight_val=True)
        steps = [("scale", StandardScaler()), ("net", classifier)]
        pipeline = Pipeline(steps, transform_input=["X_val"])
        weight = np.linspace(0.5, 1.0, len(y_val))
        pipeline.fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weight)
    scale = StandardScaler().fit(X)
    alone = made().fit(scale.transform(X), y, X_val=scale.transform(X_val), y_val=y_val, sample_weight_val=weight)
    assert pipeline[-1].validation_loss_curve_ == alone.validation_loss_curve_


# --- a learning rate that is changed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_learning_rate_can_be_changed_between_calls(digits, solver):
    """The state of the optimiser stays: with a rate of nearly 0 what is kept of the gradients goes on to be learnt."""
    X, y, *_ = digits
    options = {"solver": solver, "batch_size": 400, "shuffle": False}
    model, same, other = (made(**options) for _ in range(3))
    for each in (model, same, other):
        each.partial_fit(X, y, classes=np.arange(10))
    model.set_params(learning_rate_init=0.1).partial_fit(X, y)
    same.partial_fit(X, y)
    kept = same._state[1][0].weight if solver == "adam" else None
    assert not np.array_equal(model.coefs_[0], same.coefs_[0])
    if solver == "adam":
        np.testing.assert_array_equal(model._state[1][0].weight, kept)  # the mean of gradients does not see the rate
        steps = [each.coefs_[0] - other.coefs_[0] for each in (model, same)]
        np.testing.assert_allclose(steps[0], 100.0 * steps[1], rtol=1e-6, atol=1e-12)
    model.partial_fit(X, y)
    assert model._optimizer.learning_rate == 0.1


def test_a_schedule_goes_on_from_the_new_rate(digits):
    X, y, *_ = digits
    model = made(solver="sgd", learning_rate="invscaling").partial_fit(X, y, classes=np.arange(10))
    model.set_params(learning_rate_init=0.5).partial_fit(X, y)
    assert model._optimizer.learning_rate == 0.5 / (model.t_ + 1) ** 0.5


# --- Ctrl-C in a search -----------------------------------------------------------------------------------------------


def test_the_warning_of_an_interrupt_can_end_a_search(digits):
    """As the guide says."""
    X, y, *_ = digits
    model = made(max_iter=10_000, tol=0.0, n_iter_no_change=math.inf)
    grid = {"alpha": [1e-4, 1e-3]}
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Training interrupted by user")
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(UserWarning, match="Training interrupted by user"):
                GridSearchCV(model, grid, cv=2, error_score="raise").fit(X, y)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
