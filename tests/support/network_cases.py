"""Calls of networks, optimisers and trainings on the numbers of one problem, for libraries that NumPy can read."""

import numpy as np

import xpsoftmax as xs

N, D, H, C = 23, 6, 8, 5  # N is prime: no batch size divides it


class Problem:
    """A network and data, in NumPy's arrays or in tensors with the same numbers."""

    def __init__(self, dtype="float32", convert=lambda array: array):
        rng = np.random.default_rng(0)
        numbers = xs.init_params((D, H, C), rng=0, dtype=np.float64, activation="tanh")
        self.params = tuple(type(layer)(*(convert(array.astype(dtype)) for array in layer)) for layer in numbers)
        self.X = convert(rng.standard_normal((N, D)).astype(dtype))
        self.y = convert(rng.integers(0, C, N))
        self.soft = convert(rng.dirichlet(np.ones(C), N).astype(dtype))
        self.sample_weight = convert(rng.uniform(0.0, 2.0, N).astype(dtype))
        self.class_weight = convert(rng.uniform(0.5, 2.0, C).astype(dtype))
        self.held_out = convert(rng.standard_normal((7, D)).astype(dtype)), convert(rng.integers(0, C, 7))

    @property
    def weights(self):
        return {"sample_weight": self.sample_weight, "class_weight": self.class_weight}


def updated(optimizer, p):
    """Three updates, the later ones with a state of the earlier ones."""
    params, state = p.params, optimizer.init(p.params)
    for _ in range(3):
        _, grads = xs.mlp_loss_and_grad(params, p.X, p.y)
        params, state = optimizer.update(params, grads, state)
    return params, state


def summed(p):
    parts = [xs.mlp_partial_sums(p.params, p.X[i::2], p.y[i::2]) for i in range(2)]
    return parts[0] + parts[1], (parts[0] + parts[1]).finish(p.params, reg=0.1)


def trained(p, **more):
    options = {"optimizer": xs.adam(0.05), "epochs": 3, "batch_size": 10, "rng": 0, **more}
    return xs.train(p.params, p.X, p.y, **options)


def resumed(p):
    half = trained(p, validation=p.held_out, patience=9)
    return trained(p, validation=p.held_out, patience=9, epochs=6, resume=half.state)


def callbacks(p):
    seen = []
    trained(p, callback=lambda step: seen.append((step.params, step.state)))
    return tuple(seen)


CASES = {
    "logits": lambda p: xs.mlp_logits(p.params, p.X),
    "predict": lambda p: xs.mlp_predict(p.params, p.X),
    "predict in chunks": lambda p: xs.mlp_predict(p.params, p.X, max_memory=1000),
    "loss": lambda p: xs.mlp_loss(p.params, p.X, p.y, reg=0.1),
    "loss and grad": lambda p: xs.mlp_loss_and_grad(p.params, p.X, p.y, reg=0.1),
    "weights": lambda p: xs.mlp_loss_and_grad(p.params, p.X, p.y, label_smoothing=0.1, z_loss=1e-3, **p.weights),
    "soft targets": lambda p: xs.mlp_loss_and_grad(p.params, p.X, p.soft, reduction="sum", **p.weights),
    "ignored labels": lambda p: xs.mlp_loss_and_grad(p.params, p.X, p.y, ignore_index=1, max_memory=2000),
    "kernel": lambda p: xs.mlp_loss_and_grad(p.params, p.X, p.y, impl="kernel"),
    "plain pairs": lambda p: xs.mlp_loss_and_grad([list(layer) for layer in p.params], p.X, p.y),
    "partial sums": summed,
    "sgd": lambda p: updated(xs.sgd(0.1, momentum=0.9, nesterov=True), p),
    "adam": lambda p: updated(xs.adam(0.1), p),
    "adamw, clipped": lambda p: updated(xs.clip_by_global_norm(xs.adamw(0.1), 0.01), p),
    "train": trained,
    "train with weights": lambda p: trained(p, label_smoothing=0.1, reg=0.1, accuracy=True, **p.weights),
    "train, resumed": resumed,
    "callbacks": callbacks,
}


def leaves(value):
    """Everything in a tree of tuples, lists and dicts, in order."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else None
    return [value] if parts is None else [leaf for part in parts for leaf in leaves(part)]
