"""The options mean what they mean in PyTorch's cross_entropy."""

import numpy as np
import pytest
from grid import SOME, labels, logits

import xpsoftmax as xs

torch = pytest.importorskip("torch")
F = torch.nn.functional

# Both compute in float64, PyTorch with its own formulas: what is compared is the meaning, to half of the digits.
DIGITS = {"rtol": 1e-8, "atol": 1e-12}
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def check(z, targets, reduction, *, axis=1, ignore_index=None, class_weight=None, label_smoothing=0.0):
    """Compare loss and gradient; PyTorch's class axis is the second."""
    theirs = torch.tensor(z, requires_grad=True)
    weight = None if class_weight is None else torch.tensor(class_weight)
    ignored = {} if ignore_index is None else {"ignore_index": ignore_index}
    desired = F.cross_entropy(
        theirs, torch.tensor(targets), weight=weight, reduction=reduction, label_smoothing=label_smoothing, **ignored
    )
    desired.sum().backward()
    loss, grad = xs.softmax_loss_and_grad(
        z,
        targets,
        axis=axis,
        class_weight=class_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    np.testing.assert_allclose(loss, desired.detach().numpy(), **DIGITS)
    np.testing.assert_allclose(grad, theirs.grad.numpy(), **DIGITS)


@pytest.fixture
def z(rng):
    return logits(rng, "scale-10", SOME, "float64")


@pytest.fixture
def weight(rng):
    return rng.random(SOME)


@REDUCTIONS
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("ignore_index", [None, -100, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_hard_labels(rng, z, weight, reduction, label_smoothing, ignore_index, weighted):
    y = labels(rng, z)
    y[:3] = 2 if ignore_index is None else ignore_index
    check(
        z,
        y,
        reduction,
        ignore_index=ignore_index,
        class_weight=weight if weighted else None,
        label_smoothing=label_smoothing,
    )


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_targets(rng, z, weight, reduction, label_smoothing, weighted):
    q = rng.dirichlet(np.ones(SOME), size=z.shape[0])
    check(z, q, reduction, class_weight=weight if weighted else None, label_smoothing=label_smoothing)


def test_the_mean_over_soft_targets(rng, z):
    check(z, rng.dirichlet(np.ones(SOME), size=z.shape[0]), "mean")


@REDUCTIONS
@pytest.mark.parametrize("ignore_index", [None, 1])
def test_pixels(rng, weight, reduction, ignore_index):
    """(N, C, d1, d2)."""
    images = rng.normal(size=(2, SOME, 3, 4))
    y = rng.integers(SOME, size=(2, 3, 4))
    check(images, y, reduction, class_weight=weight, ignore_index=ignore_index, label_smoothing=0.1)


def test_all_rows_ignored(z):
    y = np.full(z.shape[0], 3)
    check(z, y, "sum", ignore_index=3)
