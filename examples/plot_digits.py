"""Train xpsoftmax.sklearn.MLPClassifier on scikit-learn's digits; draw its learning curve and confusion matrix.

    python examples/plot_digits.py digits.png

Needs scikit-learn and matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from xpsoftmax.sklearn import MLPClassifier


def main() -> int:
    """Train, draw, and print the accuracy on rows that were not trained with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="where the figure is written")
    picture = parser.parse_args().picture
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
    model = make_pipeline(
        MinMaxScaler(), MLPClassifier((100,), learning_rate_init=0.01, early_stopping=True, random_state=0)
    )
    model.fit(X_train, y_train)
    print(f"accuracy: {model.score(X_test, y_test):.4f}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    epochs = range(1, model[-1].n_iter_ + 1)
    left.semilogy(epochs, model[-1].loss_curve_, label="training loss")
    left.set(xlabel="epoch", ylabel="loss", title="Learning curve")
    score = left.twinx()
    score.plot(epochs, model[-1].validation_scores_, color="C1", label="accuracy on rows held out")
    score.set_ylabel("accuracy")
    left.legend(handles=[*left.lines, *score.lines], loc="center right")
    ConfusionMatrixDisplay.from_estimator(model, X_test, y_test, ax=right, colorbar=False)
    right.set_title("Confusion matrix")
    figure.savefig(picture, dpi=150)
    return 0


if __name__ == "__main__":
    sys.exit(main())
