"""The loss and its gradient as other libraries have them, and as most people write them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any


def log_softmax(z: Array, xp: Any = np) -> Array:
    """Return the usual line, of logits (N, C)."""
    t = z - z.max(axis=1, keepdims=True)
    return t - xp.log(xp.exp(t).sum(axis=1, keepdims=True))


def plain(z: Array, y: Array, xp: Any = np) -> tuple[Array, Array]:
    """Return losses (N,) and their gradients (N, C) by the usual lines, which lose those of rows that are sure."""
    rows = xp.arange(len(y))
    log_p = log_softmax(z, xp)
    dz = xp.exp(log_p)
    dz[rows, y] -= 1.0
    return -log_p[rows, y], dz


def network(weights: list[Array], X: Array, y: Array, xp: Any = np) -> tuple[Array, list[Array]]:
    """Return the mean loss of a network with ReLU and the gradients of its weights and biases, as textbooks have them.

    No array is used again but where += says so.
    """
    inputs = [X]
    for i in range(0, len(weights) - 2, 2):
        inputs.append(xp.maximum(inputs[-1] @ weights[i] + weights[i + 1], 0.0))
    z = inputs[-1] @ weights[-2] + weights[-1]
    z -= z.max(axis=1, keepdims=True)
    p = xp.exp(z)
    p /= p.sum(axis=1, keepdims=True)
    rows = xp.arange(len(y))
    loss = -xp.log(p[rows, y]).mean()
    p[rows, y] -= 1.0
    delta, grads = p / len(y), []
    for i in range(len(weights) - 2, -1, -2):
        grads = [inputs[i // 2].T @ delta, delta.sum(axis=0), *grads]
        if i > 0:
            delta = (delta @ weights[i].T) * (inputs[i // 2] > 0)
    return loss, grads


def torch_eager(z: Array, y: Array, **options: Any) -> Callable[[], tuple[Array, Array]]:
    """Call cross_entropy and autograd, as every tutorial has it; z is a leaf, on any device."""
    import torch

    z.requires_grad_()

    def call() -> tuple[Array, Array]:
        z.grad = None
        loss = torch.nn.functional.cross_entropy(z, y, **options)
        (loss if loss.ndim == 0 else loss.sum()).backward()
        return loss.detach(), z.grad

    return call


def jax_losses(z: Array, y: Array) -> Array:
    """Return the losses (N,) by jax.nn.log_softmax."""
    import jax

    log_p = jax.nn.log_softmax(z, axis=1)
    return -jax.numpy.take_along_axis(log_p, y[:, None], axis=1)[:, 0]


def jax_in_float64() -> Any:
    """Import JAX with numbers of 64 bits."""
    import jax

    jax.config.update("jax_enable_x64", True)  # noqa: FBT003 - its signature
    return jax


def sklearn_loss(classes: int) -> Any:
    """Return scikit-learn's (private) multinomial loss."""
    return importlib.import_module("sklearn._loss.loss").HalfMultinomialLoss(n_classes=classes)
