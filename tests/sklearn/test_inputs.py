"""Inputs of the classifier that are no matrix of real numbers: the error names X, the place and what is there."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("pandas")
import pandas as pd

from xpsoftmax.sklearn import MLPClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
N = 12
Y = np.arange(N) % 3


def made():
    return MLPClassifier((3,), max_iter=2, random_state=0)


def frame(**columns):
    return pd.DataFrame({"a": np.linspace(0.0, 1.0, N), "b": np.ones(N), **columns})


BAD = {
    "strings in a column": (
        lambda: frame(c=["1"] * 7 + ["red"] * 5),
        ValueError,
        r"^X must hold numbers, got 'red' at row 7, column 'c'\. could not convert string to float: 'red'$",
    ),
    "categories": (
        lambda: frame(c=pd.Categorical(["u", "v"] * 6)),
        ValueError,
        r"^X must hold numbers, got 'u' at row 0, column 'c'\. could not convert string",
    ),
    "dates in a column": (
        lambda: frame(c=pd.Timestamp("2020-01-01")),
        TypeError,
        r"^X must be of real numbers, got datetime64\[.*\]\. Convert dates and durations to numbers first\.$",
    ),
    "periods": (
        lambda: frame(c=pd.period_range("2020", periods=N, freq="D")),
        TypeError,
        r"^X must hold numbers, got Period\('2020-01-01', 'D'\) at row 0, column 'c'\.",
    ),
    "complex numbers in a column": (
        lambda: frame(c=1j),
        ValueError,
        r"^X must be of real numbers, got complex128\. Complex data not supported\.$",
    ),
    "an array of strings": (
        lambda: np.array([["1", "x"]] * N),
        ValueError,
        r"^X must hold numbers, got 'x' at row 0, column 1\. could not convert string",
    ),
    "a list": (
        lambda: [[1.0, 2.0]] * 11 + [[3.0, {}]],
        TypeError,
        r"^X must hold numbers, got \{\} at row 11, column 1\.",
    ),
    "an array of dates": (
        lambda: np.full((N, 2), np.datetime64("2020-01-01")),
        TypeError,
        r"^X must be of real numbers, got datetime64\[D\]\. Convert",
    ),
    "an array of durations": (
        lambda: np.full((N, 2), np.timedelta64(3, "s")),
        TypeError,
        r"^X must be of real numbers, got timedelta64\[s\]\. Convert",
    ),
    "complex numbers": (
        lambda: np.ones((N, 2), complex),
        ValueError,
        r"^X must be of real numbers, got complex128\. Complex data not supported\.$",
    ),
    "structures": (
        lambda: np.zeros(N, dtype=[("a", "f8"), ("b", "f4")]),
        TypeError,
        r"^X must be a matrix of real numbers, got a structured array of .*structured_to_unstructured makes a matrix",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_number(name):
    make, error, message = BAD[name]
    model = made()
    with pytest.raises(error, match=message):
        model.fit(make(), Y)
    assert not hasattr(model, "coefs_")


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_number_in_prediction(name):
    make, error, message = BAD[name]
    X = make()
    good = frame(c=np.arange(N)) if isinstance(X, pd.DataFrame) else np.ones((N, 2))
    with pytest.raises(error, match=message):
        made().fit(good, Y).predict(X)


def test_what_is_no_number_in_validation_data():
    good, bad = frame(c=np.arange(N)), frame(c=["red"] * N)
    with pytest.raises(ValueError, match=r"^X_val must hold numbers, got 'red' at row 0, column 'c'\."):
        made().fit(good, Y, X_val=bad, y_val=Y)


def test_numbers_in_strings_are_numbers_as_in_scikit_learn():
    numbers = made().fit(frame(c=2.5), Y)
    texts = made().fit(frame(c="2.5"), Y)
    np.testing.assert_array_equal(numbers.coefs_[0], texts.coefs_[0])


def test_complex_weights():
    with pytest.raises(TypeError, match=r"^sample_weight must be real numbers, got complex128\.$"):
        made().fit(np.ones((N, 2)), Y, np.ones(N, complex))
