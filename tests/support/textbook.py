"""The textbook forms of the gradients, kept as slow references: NumPy float64, loops where the text has sums."""

from __future__ import annotations

import numpy as np


def probabilities(scores):
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def dscores_two_loops(scores, labels):
    """dL/ds[i, j] = (p[i, j] - 1{j = y[i]}) / N, entry by entry from the derivative of -log of the ratio."""
    p = probabilities(scores)
    n, classes = scores.shape
    d = np.zeros_like(scores)
    for i in range(n):
        for j in range(classes):
            d[i, j] = p[i, j]
            if j == labels[i]:
                d[i, j] -= 1.0
    return d / n


def dscores_one_loop(scores, labels):
    p = probabilities(scores)
    for i in range(len(scores)):
        p[i, labels[i]] -= 1.0
    return p / len(scores)


def dscores_vectorised(scores, labels):
    p = probabilities(scores)
    p[np.arange(len(scores)), labels] -= 1.0
    return p / len(scores)


def dscores_by_chain_rule(scores, labels):
    """dL/ds[i] = J[i]^T dL/da[i]: the loss -log a[y] through the Jacobian a_j (1{j = k} - a_k)."""
    p = probabilities(scores)
    n = len(scores)
    d = np.zeros_like(scores)
    for i in range(n):
        da = np.zeros(scores.shape[1])
        da[labels[i]] = -1.0 / p[i, labels[i]]
        d[i] = jacobian(p[i]) @ da
    return d / n


def jacobian(a):
    """da_j/dz_k = a_j (1{j = k} - a_k), entry by entry."""
    classes = len(a)
    j = np.zeros((classes, classes))
    for row in range(classes):
        for column in range(classes):
            j[row, column] = a[row] * ((1.0 if row == column else 0.0) - a[column])
    return j


def two_layer(W1, b1, W2, b2, X, labels, reg):
    """Mean loss plus reg/2 * sum of squares, and the gradients, of the two-layer ReLU net, every step spelled out."""
    n = len(X)
    z1 = X @ W1 + b1
    h = np.maximum(z1, 0.0)
    scores = h @ W2 + b2
    p = probabilities(scores)
    loss = -np.log(p[np.arange(n), labels]).sum() / n + 0.5 * reg * ((W1 * W1).sum() + (W2 * W2).sum())
    dscores = dscores_vectorised(scores, labels)
    dW2 = h.T @ dscores + reg * W2
    db2 = np.ones(n) @ dscores  # 1^T dscores
    dh = dscores @ W2.T
    dz1 = dh * (z1 > 0.0)
    dW1 = X.T @ dz1 + reg * W1
    db1 = np.ones(n) @ dz1
    return loss, (dW1, db1, dW2, db2)
