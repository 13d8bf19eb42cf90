"""Train the same JAX model with the loss of optax and with xpsoftmax.softmax_loss, from the same seed.

The task is addition modulo a prime, which a model of two layers learns by heart; Adam, of optax, trains it. Printed
are, as training goes on, the loss and the share of rows whose gradient at the label is exactly zero: rows that no
longer teach the model anything. With the defaults optax's loss ends at 0, and 9 of 10 rows have lost that gradient;
with xpsoftmax every row keeps its gradient, and the loss goes on falling.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import xpsoftmax as xs

HIDDEN = 200
Params = dict[str, jax.Array]


def optax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean of the losses of optax."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


LOSSES: dict[str, Callable[..., Any]] = {
    "optax": optax_loss,
    "xpsoftmax": partial(xs.softmax_loss, validate=False),  # traced labels have no values to look at
}


def sums(prime: int) -> tuple[jax.Array, jax.Array]:
    """All pairs of numbers below a prime, one-hot, and their sums modulo the prime."""
    a, b = (x.ravel() for x in jnp.meshgrid(jnp.arange(prime), jnp.arange(prime), indexing="ij"))
    return jnp.concatenate([jax.nn.one_hot(x, prime, dtype=jnp.float32) for x in (a, b)], axis=1), (a + b) % prime


def initial(prime: int) -> Params:
    """Draw the weights of the two layers: float32, also where JAX is set to 64 bits."""
    draw, (first, second) = jax.nn.initializers.he_normal(), jax.random.split(jax.random.key(0))
    return {
        "hidden": draw(first, (2 * prime, HIDDEN), jnp.float32),
        "hidden bias": jnp.zeros(HIDDEN, jnp.float32),
        "output": draw(second, (HIDDEN, prime), jnp.float32),
        "output bias": jnp.zeros(prime, jnp.float32),
    }


def model(params: Params, X: jax.Array) -> jax.Array:
    """Return the logits (N, C)."""
    hidden = jax.nn.relu(X @ params["hidden"] + params["hidden bias"])
    return hidden @ params["output"] + params["output bias"]


def trained(
    loss: Callable[..., Any], prime: int, steps: int, every: int, rate: float
) -> list[tuple[int, float, float]]:
    """Return step, loss and share of rows without a gradient at the label, now and then."""
    X, y = sums(prime)
    optimizer = optax.adam(rate)

    @jax.jit
    def stepped(params: Params, state: Any) -> tuple[Params, Any, jax.Array, jax.Array]:
        logits, pull_back = jax.vjp(lambda params: model(params, X), params)
        value, dlogits = jax.value_and_grad(loss)(logits, y)
        (grads,) = pull_back(dlogits)
        updates, state = optimizer.update(grads, state, params)
        at_label = jnp.take_along_axis(dlogits, y[:, None], axis=1)
        return optax.apply_updates(params, updates), state, value, jnp.mean(at_label == 0.0)

    params = initial(prime)
    state, seen = optimizer.init(params), []
    for step in range(steps + 1):
        params, state, value, share = stepped(params, state)
        if step % every == 0:
            seen.append((step, float(value), float(share)))
    return seen


def main(arguments: Sequence[str] | None = None) -> dict[str, list[tuple[int, float, float]]]:
    """Train with each loss and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prime", type=int, default=11)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--every", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=0.1)
    options = vars(parser.parse_args(arguments))
    found = {name: trained(loss, **options) for name, loss in LOSSES.items()}
    print(f"{'step':>6}", *(f"{name + ': loss':>18} {'no gradient':>12}" for name in found))
    for rows in zip(*found.values(), strict=True):
        print(f"{rows[0][0]:>6}", *(f"{loss:>18.3g} {100.0 * share:>10.1f} %" for _, loss, share in rows))
    return found


if __name__ == "__main__":
    main()
