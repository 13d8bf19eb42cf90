"""The row operations on JAX arrays: the arithmetic of `generic`, compiled as a whole, with derivative rules of its own.

JAX differentiates a program as it is written. The generic code has an `abs`, a `where` or a maximum where two logits
are equal, and there the derivative of the program is not the derivative of the function. Each operation therefore has a
rule, a `jax.custom_jvp`. Each rule is written with operations that have rules, which makes derivatives of every order
right. With b = v - <p, v>, the tangent v of the logits relative to its mean:

    operation                       derivative along v
    softmax p                       J v = p b                       (`softmax_jvp`)
    log_softmax                     N v = b
    logsumexp                       <p, v>
    J u                             J (b (u - <p, u>))
    N u                             -<p, b (u - <p, u>)>
    loss of the masses q            <g, v> with the gradient g = sum(q) p - q
    g                               sum(q) J v

J is symmetric, N is not. Both lose digits if JAX transposes the code that computes them, so they are a primitive of JAX
that knows its own transpose: see `softmax`.

This package imports JAX. `select` loads it for JAX arrays only.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp

from xpsoftmax._typing import SIXTEEN_BIT, Array, LossSpec, dtype_name
from xpsoftmax.kernels.activations import Activation
from xpsoftmax.kernels.generic import narrowed
from xpsoftmax.kernels.jax.activations import activated, activated_with_slope
from xpsoftmax.kernels.jax.loss import losses, losses_and_grads
from xpsoftmax.kernels.jax.sharding import class_weight_at, product, reshaped, some_rows
from xpsoftmax.kernels.jax.softmax import jacobian, log_softmax, logsumexp, product_with_jacobian, softmax

__all__ = [
    "bias_activation",
    "class_weight_at",
    "log_softmax_rows",
    "logsumexp_rows",
    "product",
    "reshaped",
    "softmax_jacobian_rows",
    "softmax_jvp_rows",
    "softmax_loss_rows",
    "softmax_rows",
    "some_rows",
]

# The cast to the working precision stays outside the rules: JAX then rounds a 16-bit gradient once, at the end.


def softmax_rows(logits: Array, out: None = None) -> Array:  # noqa: ARG001 - JAX arrays cannot be written to
    """See `generic.softmax_rows`."""
    return narrowed(jnp, softmax(_working(logits)), logits.dtype)


def log_softmax_rows(logits: Array, out: None = None) -> Array:  # noqa: ARG001
    """See `generic.log_softmax_rows`."""
    return narrowed(jnp, log_softmax(_working(logits)), logits.dtype)


def logsumexp_rows(logits: Array) -> Array:
    """See `generic.logsumexp_rows`."""
    return narrowed(jnp, logsumexp(_working(logits)), logits.dtype)


def softmax_jvp_rows(logits: Array, tangent: Array) -> Array:
    """See `generic.softmax_jvp_rows`."""
    return product_with_jacobian("J", logits, tangent)


def softmax_jacobian_rows(logits: Array) -> Array:
    """See `generic.softmax_jacobian_rows`."""
    return jacobian(logits)


def softmax_loss_rows(
    logits: Array,
    targets: Array,
    row_weight: Array,
    spec: LossSpec,
    *,
    grad: bool,
    out: None = None,  # noqa: ARG001
) -> tuple[Array, Array | None]:
    """See `generic.softmax_loss_rows`."""
    arrays = _working(logits), targets, row_weight, spec.class_weight
    options = replace(spec, class_weight=None)
    if not grad:
        return losses(*arrays, options), None
    of_rows, dlogits = losses_and_grads(*arrays, options)
    return of_rows, narrowed(jnp, dlogits, logits.dtype)


def bias_activation(
    z: Array,
    bias: Array,
    activation: Activation,
    *,
    grad: bool,
    out: None = None,  # noqa: ARG001
) -> tuple[Array, Array | None]:
    """See `generic.bias_activation`."""
    z = z + bias[None, :]  # explicit: JAX can be told not to add dimensions by itself
    return activated_with_slope(z, activation) if grad else (activated(z, activation), None)


def _working(logits: Array) -> Array:
    return logits.astype(jnp.float32) if dtype_name(logits.dtype) in SIXTEEN_BIT else logits
