"""A classifier for scikit-learn, on any array library."""

from xpsoftmax.sklearn.estimator import MLPClassifier

__all__ = ["MLPClassifier"]


def __dir__() -> list[str]:
    return __all__
