"""The loss, and the loss with its gradient, with derivative rules.

Arguments of `losses` and `losses_and_grads`: logits (R, C), targets (R,) or (R, C), row_weight (R,), class_weight (C,)
or None; then the options, a LossSpec without class weights, which JAX treats as static. Labels have no tangent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from xpsoftmax._typing import Array, LossSpec
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.jax.rules import with_rule
from xpsoftmax.kernels.jax.sharding import compiled
from xpsoftmax.kernels.jax.softmax import log_softmax, logsumexp, product_with_jacobian, softmax


def _formula(
    z: Array, targets: Array, row_weight: Array, class_weight: Array | None, options: LossSpec, *, grad: bool
) -> Any:
    spec = replace(options, class_weight=class_weight)
    of_rows, grads = generic.softmax_loss_rows(z, targets, row_weight, spec, grad=grad)
    return (of_rows, grads) if grad else of_rows


def _losses_rule(options: LossSpec, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    tangents = [_none_if_zero(x) for x in tangents]
    if tangents[0] is None:
        of_rows, grads = losses(*primals, options), None
    else:
        of_rows, grads = losses_and_grads(*primals, options)
    return of_rows, _tangent_of_losses(options, primals, tangents, grads)


def _losses_and_grads_rule(options: LossSpec, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    tangents = [_none_if_zero(x) for x in tangents]
    of_rows, grads = losses_and_grads(*primals, options)
    return (of_rows, grads), (
        _tangent_of_losses(options, primals, tangents, grads),
        _tangent_of_grads(options, primals, tangents, grads),
    )


_static_options: dict[str, Any] = {"nondiff_argnums": (4,), "symbolic_zeros": True}
losses = with_rule(compiled(partial(_formula, grad=False), 1, static_argnums=4), _losses_rule, **_static_options)
losses_and_grads = with_rule(
    compiled(partial(_formula, grad=True), 1, 2, static_argnums=4), _losses_and_grads_rule, **_static_options
)


def _none_if_zero(tangent: Any) -> Any:
    return None if type(tangent) is SymbolicZero else tangent


def _tangent_of_losses(
    options: LossSpec, primals: Sequence[Any], tangents: Sequence[Any], grads: Array | None
) -> Array:
    """Tangent (R,) of the losses; `grads` are their gradients."""
    z, targets, row_weight, class_weight = primals
    dz, dtargets, dweight, dclass = tangents
    result = jnp.zeros_like(row_weight)
    if dz is not None:
        result = result + jnp.sum(grads * dz, axis=1)
    if dweight is not None:
        # The loss of the row at weight 1. An infinite one stays finite here: inf * 0 would make the sum of all
        # tangents nan.
        of_one = losses(z, targets, _ones_for(z, targets, row_weight), class_weight, options)
        result = result + jnp.minimum(of_one, jnp.finfo(z.dtype).max) * dweight
    if dtargets is None and dclass is None:
        return result
    z, weight = _without_undefined(z, targets, row_weight)
    minus_log_p = -log_softmax(z)
    if dtargets is not None:
        share = _target_share(options, class_weight) * weight[:, None]
        result = result + jnp.sum(_times_tangent(_zero_if_no_share(share, minus_log_p), dtargets), axis=1)
    if dclass is not None:
        share = _smoothed(options, z, targets) * weight[:, None]
        result = result + jnp.sum(_times_tangent(_zero_if_no_share(share, minus_log_p), dclass[None, :]), axis=1)
        if options.z_loss != 0.0 and targets.ndim == 1:
            result = result + options.z_loss * logsumexp(z) ** 2 * weight * _at_labels(targets, dclass)
    return result


def _tangent_of_grads(options: LossSpec, primals: Sequence[Any], tangents: Sequence[Any], grads: Array) -> Array:
    """Tangent (R, C) of the gradients."""
    z, targets, row_weight, class_weight = primals
    dz, dtargets, dweight, dclass = tangents
    result = jnp.zeros_like(grads)
    if dweight is not None:
        of_one = losses_and_grads(z, targets, _ones_for(z, targets, row_weight), class_weight, options)[1]
        result = result + of_one * dweight[:, None]
    z, weight = _without_undefined(z, targets, row_weight)
    slope = 2.0 * options.z_loss * weight
    if dz is not None:
        factor = weight * _total_mass(options, z, targets, class_weight)
        if options.z_loss != 0.0:
            of_label = _at_labels(targets, class_weight)
            factor = factor + slope * of_label * logsumexp(z)
            p = softmax(z)
            result = result + (slope * of_label * jnp.sum(p * dz, axis=1))[:, None] * p
        result = result + factor[:, None] * product_with_jacobian("J", z, dz)
    if dtargets is not None:
        dmasses = _target_share(options, class_weight) * dtargets
        result = result - weight[:, None] * product_with_jacobian("N^T", z, dmasses)
    if dclass is not None:
        dmasses = _smoothed(options, z, targets) * dclass[None, :]
        result = result - weight[:, None] * product_with_jacobian("N^T", z, dmasses)
        if options.z_loss != 0.0 and targets.ndim == 1:
            result = result + (slope * logsumexp(z) * _at_labels(targets, dclass))[:, None] * softmax(z)
    return result


# --- rows without a loss ----------------------------------------------------------------------------------------------


def _without_undefined(z: Array, targets: Array, row_weight: Array) -> tuple[Array, Array]:
    """Logits with zeros in the undefined rows, and the weights with nan there, unless they are zero."""
    undefined = generic.undefined_rows(z, targets)
    weight = jnp.where(undefined, jnp.where(row_weight != 0.0, jnp.nan, 0.0), row_weight)
    return jnp.where(undefined[:, None], 0.0, z), weight


def _ones_for(z: Array, targets: Array, row_weight: Array) -> Array:
    """Weights of 1, but 0 for undefined rows of weight 0: these have no part in any derivative."""
    return jnp.where((row_weight == 0.0) & generic.undefined_rows(z, targets), 0.0, jnp.ones_like(row_weight))


# --- target masses ----------------------------------------------------------------------------------------------------


def _smoothed(options: LossSpec, z: Array, targets: Array) -> Array:
    """Target masses (R, C) before the class weights multiply them."""
    return generic.soft_targets(jnp, z, targets, options)


def _target_share(options: LossSpec, class_weight: Array | None) -> Any:
    """Factor of the soft targets in the masses: a number or (1, C)."""
    share = 1.0 - options.label_smoothing
    return share if class_weight is None else share * class_weight[None, :]


def _total_mass(options: LossSpec, z: Array, targets: Array, class_weight: Array | None) -> Any:
    """Sum of the target masses (R,)."""
    if targets.ndim == 1 and options.label_smoothing == 0.0:
        return 1.0
    return jnp.sum(generic.soft_targets(jnp, z, targets, replace(options, class_weight=class_weight)), axis=1)


def _at_labels(targets: Array, class_weight: Array | None) -> Any:
    return generic.class_weight_of(jnp, targets, LossSpec(class_weight))


# --- products with infinity -------------------------------------------------------------------------------------------


def _zero_if_no_share(share: Array, minus_log_p: Array) -> Array:
    """Product of both, with 0 * inf = 0 as in the loss."""
    return share * jnp.where((share == 0.0) & jnp.isinf(minus_log_p), 0.0, minus_log_p)


def _times_tangent(x: Array, tangent: Array) -> Array:
    """Product x * tangent with inf * 0 = 0, linear in the tangent: an infinite x becomes two finite factors."""
    largest = jnp.finfo(x.dtype).max
    return (jnp.minimum(x, largest) * tangent) * jnp.where(jnp.isposinf(x), largest, 1.0)
