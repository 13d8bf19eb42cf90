"""The row operations on JAX arrays: the arithmetic of `generic`, compiled as a whole, with derivative rules of its own.

JAX differentiates a program as it is written. The generic text has an `abs`, a `where` or a maximum where two logits
are equal, and there the derivative of the program is not the derivative of the function. So each operation has a rule,
a `jax.custom_jvp`, and each rule is written in terms of operations that have rules, which makes derivatives of every
order right. With b = v - <p, v>, the tangent v of the logits relative to its mean:

    operation                       derivative along v
    softmax p                       J v = p b                       (`softmax_jvp`)
    log_softmax                     N v = b
    logsumexp                       <p, v>
    J u                             J (b (u - <p, u>))
    N u                             -<p, b (u - <p, u>)>
    loss of the masses q            <g, v> with the gradient g = sum(q) p - q
    g                               sum(q) J v

J is symmetric, N is not, and both lose digits if JAX transposes the text that computes them. They are therefore a
primitive of JAX that knows its own transpose: see `_product`.

This module imports JAX. `select` loads it for JAX arrays only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from xpsoftmax._typing import SIXTEEN_BIT, Array, LossSpec, dtype_name
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.activations import (
    GELU,
    GELU_CUBIC,
    GELU_SLOPE,
    IDENTITY,
    LOGISTIC,
    RELU,
    SILU,
    TANH,
    Activation,
)
from xpsoftmax.kernels.generic import narrowed

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


# --- the operations ---------------------------------------------------------------------------------------------------

# The cast to the working precision stays outside the rules: JAX then rounds a 16-bit gradient once, at the end.


def softmax_rows(logits: Array, out: None = None) -> Array:  # noqa: ARG001 - JAX arrays cannot be written to
    """See `generic.softmax_rows`."""
    return narrowed(jnp, _softmax(_working(logits)), logits.dtype)


def log_softmax_rows(logits: Array, out: None = None) -> Array:  # noqa: ARG001
    """See `generic.log_softmax_rows`."""
    return narrowed(jnp, _log_softmax(_working(logits)), logits.dtype)


def logsumexp_rows(logits: Array) -> Array:
    """See `generic.logsumexp_rows`."""
    return narrowed(jnp, _logsumexp(_working(logits)), logits.dtype)


def softmax_jvp_rows(logits: Array, tangent: Array) -> Array:
    """See `generic.softmax_jvp_rows`."""
    return _product("J", logits, tangent)


def softmax_jacobian_rows(logits: Array) -> Array:
    """See `generic.softmax_jacobian_rows`."""
    return _jacobian(logits)


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
        return _losses(*arrays, options), None
    losses, dlogits = _losses_and_grads(*arrays, options)
    return losses, narrowed(jnp, dlogits, logits.dtype)


def bias_activation(
    z: Array,
    bias: Array,
    activation: Activation,
    *,
    grad: bool,
    out: None = None,  # noqa: ARG001
) -> tuple[Array, Array | None]:
    """See `generic.bias_activation`."""
    z = z + bias[None, :]  # also where JAX is told not to add a dimension by itself
    return _activated_with_slope(z, activation) if grad else (_activated(z, activation), None)


def class_weight_at(class_weight: Array, labels: Array) -> Array:
    """See `generic.class_weight_at`. The result lies as the labels do, also where JAX wants to be told."""
    sharding = _explicit(labels)
    if sharding is None:
        return generic.class_weight_at(class_weight, labels)
    return class_weight.at[labels].get(out_sharding=sharding)


def product(left: Array, right: Array, like: Array | None = None) -> Array:
    """See `generic.product`."""
    shardings = _explicit(left), _explicit(right)
    mesh = next((x.mesh for x in shardings if x is not None), None)
    if mesh is None:
        return left @ right
    wanted = None if like is None else _explicit(like)
    if wanted is not None:
        spec = wanted.spec
    elif like is not None:
        spec = PartitionSpec()
    else:
        rows, columns = (None if x is None else x.spec[i] for i, x in enumerate(shardings))
        spec = PartitionSpec(rows, None if columns == rows else columns)
    return _left_to_xla(jnp.matmul, mesh, NamedSharding(mesh, spec))(left, right)


def some_rows(array: Array, rows: slice) -> Array:
    """See `generic.some_rows`: on a mesh with explicit axes every device gets them."""
    sharding = _explicit(array)
    if sharding is None:
        return array[rows, ...]
    out_sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec[1:]))
    return array.at[rows].get(out_sharding=out_sharding)


def reshaped(array: Array, shape: tuple[int, ...]) -> Array:
    """See `generic.reshaped`: on a mesh with explicit axes only the first and the last may be in parts."""
    sharding = _explicit(array)
    if sharding is not None and array.ndim > 2:
        first, *middle, last = sharding.spec
        if any(middle):
            spec = PartitionSpec(first, *(None for _ in middle), last)
            array = jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))
    elif sharding is not None and len(shape) == 1 and array.ndim == 2:
        array = jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0], None)))
    return jnp.reshape(array, shape)


def _working(logits: Array) -> Array:
    return logits.astype(jnp.float32) if dtype_name(logits.dtype) in SIXTEEN_BIT else logits


# --- compilation ------------------------------------------------------------------------------------------------------


def _compiled(function: Callable[..., Any], *ranks: int, **options: Any) -> Callable[..., Any]:
    """Compile a function of logits (R, C) and more, whose results have so many of the axes (R, C, C).

    An operation is compiled as a whole: XLA then decides how the steps of arrays on several devices are laid out. Only
    where the axes of a mesh are explicit JAX wants to be told, and would refuse to halve an axis of classes that is in
    parts: these axes are left to XLA, and the results lie as the logits do.
    """
    compiled = jax.jit(function, **options)

    def call(z: Array, *more: Any, **named: Any) -> Any:
        sharding = _explicit(z)
        if sharding is None:
            return compiled(z, *more, **named)
        rows, classes = sharding.spec
        laid_out = [NamedSharding(sharding.mesh, PartitionSpec(*(rows, classes, None)[:rank])) for rank in ranks]
        out_sharding = laid_out[0] if len(laid_out) == 1 else tuple(laid_out)
        arrays = [x for x in more if isinstance(x, jax.Array)]

        def automatic(z: Array, *arrays: Array) -> Any:
            return compiled(z, *_put_back(more, arrays), **named)

        return _left_to_xla(automatic, sharding.mesh, out_sharding)(z, *arrays)

    return call


def _left_to_xla(function: Callable[..., Any], mesh: Any, out_sharding: Any) -> Callable[..., Any]:
    return jax.sharding.auto_axes(function, axes=mesh.explicit_axes, out_sharding=out_sharding)  # type: ignore[no-any-return]


def _explicit(x: Array) -> Any:
    """Return the sharding of an array on a mesh with explicit axes; None for other arrays."""
    sharding: Any = jax.typeof(x).sharding if hasattr(jax, "typeof") else None
    return sharding if getattr(getattr(sharding, "mesh", None), "explicit_axes", ()) else None


def _put_back(arguments: Sequence[Any], arrays: Sequence[Array]) -> list[Any]:
    """The arguments with these arrays in place of those among them."""
    rest = iter(arrays)
    return [next(rest) if isinstance(x, jax.Array) else x for x in arguments]


# --- products with the Jacobians of softmax and log-softmax -----------------------------------------------------------

_TEXTS: dict[str, Callable[[Array, Array], Array]] = {
    "J": generic.softmax_jvp_rows,
    "N": generic.log_softmax_jvp_rows,
    "N^T": generic.log_softmax_vjp_rows,
}
_TRANSPOSES = {"J": "J", "N": "N^T", "N^T": "N"}

_product_p = Primitive("softmax_product")


def _product(name: str, z: Array, v: Array) -> Array:
    """Return a Jacobian at the logits z (R, C) times the vectors v (R, C), in the same precision."""
    return _product_p.bind(z, v, name=name)


def _product_text(z: Array, v: Array, *, name: str) -> Array:
    return _TEXTS[name](z, v)


def _product_jvp(primals: Sequence[Array], tangents: Sequence[Any], *, name: str) -> tuple[Array, Any]:
    (z, v), (dz, dv) = primals, tangents
    terms = []
    if type(dv) is not ad.Zero:
        terms.append(_product(name, z, dv))
    if type(dz) is not ad.Zero:
        terms.append(_along_logits(name, z, v, dz))
    return _product(name, z, v), sum(terms[1:], terms[0])


def _along_logits(name: str, z: Array, v: Array, dz: Array) -> Array:
    """Return the derivative along dz of a product with v."""
    if name == "N^T":  # v - p sum(v)
        return -_product("J", z, dz) * jnp.sum(v, axis=1, keepdims=True)
    both = _product("N", z, v) * _product("N", z, dz)
    if name == "J":
        return _product("J", z, both)
    return jnp.broadcast_to(-jnp.sum(_softmax(z) * both, axis=1, keepdims=True), v.shape)


def _product_transpose(cotangent: Any, z: Array, v: Any, *, name: str) -> tuple[None, Any]:
    if type(cotangent) is ad.Zero:
        return None, ad.Zero(v.aval)
    return None, _product(_TRANSPOSES[name], z, cotangent)


def _product_batched(arrays: Sequence[Array], axes: Sequence[Any], *, name: str) -> tuple[Array, int]:
    """Each row is by itself: a batch of blocks of rows is one block of more rows."""
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    z, v = (
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(arrays, axes, strict=True)
    )
    rows = size * z.shape[1]
    return _product(name, *(x.reshape(rows, x.shape[2]) for x in (z, v))).reshape(v.shape), 0


_product_compiled = _compiled(_product_text, 2, static_argnames="name")
_product_p.def_impl(_product_compiled)
_product_p.def_abstract_eval(lambda z, v, *, name: v.update(weak_type=False))  # noqa: ARG005
mlir.register_lowering(_product_p, mlir.lower_fun(_product_compiled, multiple_results=False))
ad.primitive_jvps[_product_p] = _product_jvp
ad.primitive_transposes[_product_p] = _product_transpose
batching.primitive_batchers[_product_p] = _product_batched


# --- softmax and its relatives; z (R, C) in the working precision -----------------------------------------------------


def _with_rule(function: Callable[..., Any], rule: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return the function with this rule for its derivative: (primals, tangents) to both of the result."""
    symbolic_zeros = options.pop("symbolic_zeros", False)
    ruled = jax.custom_jvp(function, **options)
    ruled.defjvp(rule, symbolic_zeros=symbolic_zeros)
    return ruled  # type: ignore[no-any-return]


def _softmax_rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _softmax(*primals), _product("J", *primals, *tangents)


def _log_softmax_rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _log_softmax(*primals), _product("N", *primals, *tangents)


def _logsumexp_rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    return _logsumexp(z), jnp.sum(_softmax(z) * dz, axis=1)


def _jacobian_rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    p, jacobian, b = _softmax(z), _jacobian(z), _product("N", z, dz)
    beside = jacobian * (b[:, :, None] + b[:, None, :])  # of -p[j] p[k]
    diagonal = p * (1.0 - 2.0 * p) * b  # of p - p**2
    return jacobian, jnp.where(jnp.eye(z.shape[1], dtype=bool), diagonal[:, :, None], beside)


# A rule gets all arguments of its function: `out` must not be one.
_softmax = _with_rule(_compiled(lambda z: generic.softmax_rows(z), 2), _softmax_rule)
_log_softmax = _with_rule(_compiled(lambda z: generic.log_softmax_rows(z), 2), _log_softmax_rule)
_logsumexp = _with_rule(_compiled(generic.logsumexp_rows, 1), _logsumexp_rule)
_jacobian = _with_rule(_compiled(generic.softmax_jacobian_rows, 3), _jacobian_rule)


# --- the loss ---------------------------------------------------------------------------------------------------------

# Arguments: logits (R, C), targets (R,) or (R, C), row_weight (R,), class_weight (C,) or None; then the options, a
# LossSpec without class weights. Labels have no tangent.


def _loss_text(
    z: Array, targets: Array, row_weight: Array, class_weight: Array | None, options: LossSpec, *, grad: bool
) -> Any:
    spec = replace(options, class_weight=class_weight)
    losses, grads = generic.softmax_loss_rows(z, targets, row_weight, spec, grad=grad)
    return (losses, grads) if grad else losses


def _losses_rule(options: LossSpec, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    tangents = [_or_none(x) for x in tangents]
    if tangents[0] is None:
        losses, grads = _losses(*primals, options), None
    else:
        losses, grads = _losses_and_grads(*primals, options)
    return losses, _of_losses(options, primals, tangents, grads)


def _losses_and_grads_rule(options: LossSpec, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    tangents = [_or_none(x) for x in tangents]
    losses, grads = _losses_and_grads(*primals, options)
    return (losses, grads), (
        _of_losses(options, primals, tangents, grads),
        _of_grads(options, primals, tangents, grads),
    )


_static = {"nondiff_argnums": (4,), "symbolic_zeros": True}
_losses = _with_rule(
    _compiled(partial(_loss_text, grad=False), 1, static_argnums=4),
    _losses_rule,
    **_static,
)
_losses_and_grads = _with_rule(
    _compiled(partial(_loss_text, grad=True), 1, 2, static_argnums=4),
    _losses_and_grads_rule,
    **_static,
)


def _or_none(tangent: Any) -> Any:
    return None if type(tangent) is SymbolicZero else tangent


def _of_losses(options: LossSpec, primals: Sequence[Any], tangents: Sequence[Any], grads: Array | None) -> Array:
    """Tangent (R,) of the losses; `grads` are their gradients."""
    z, targets, row_weight, class_weight = primals
    dz, dtargets, dweight, dclass = tangents
    result = jnp.zeros_like(row_weight)
    if dz is not None:
        result = result + jnp.sum(grads * dz, axis=1)
    if dweight is not None:
        # What the row would lose if it counted. An infinite loss stays finite here: inf * 0 would make nan of the sum
        # of all weights.
        of_one = _losses(z, targets, _ones_for(z, targets, row_weight), class_weight, options)
        result = result + jnp.minimum(of_one, jnp.finfo(z.dtype).max) * dweight
    if dtargets is None and dclass is None:
        return result
    z, weight = _safe(z, targets, row_weight)
    minus_log_p = -_log_softmax(z)
    if dtargets is not None:
        share = _target_share(options, class_weight) * weight[:, None]
        result = result + jnp.sum(_times(_never_nan(share, minus_log_p), dtargets), axis=1)
    if dclass is not None:
        share = _smoothed(options, z, targets) * weight[:, None]
        result = result + jnp.sum(_times(_never_nan(share, minus_log_p), dclass[None, :]), axis=1)
        if options.z_loss != 0.0 and targets.ndim == 1:
            result = result + options.z_loss * _logsumexp(z) ** 2 * weight * _at_labels(targets, dclass)
    return result


def _of_grads(options: LossSpec, primals: Sequence[Any], tangents: Sequence[Any], grads: Array) -> Array:
    """Tangent (R, C) of the gradients."""
    z, targets, row_weight, class_weight = primals
    dz, dtargets, dweight, dclass = tangents
    result = jnp.zeros_like(grads)
    if dweight is not None:
        of_one = _losses_and_grads(z, targets, _ones_for(z, targets, row_weight), class_weight, options)[1]
        result = result + of_one * dweight[:, None]
    z, weight = _safe(z, targets, row_weight)
    slope = 2.0 * options.z_loss * weight
    if dz is not None:
        factor = weight * _total_mass(options, z, targets, class_weight)
        if options.z_loss != 0.0:
            of_label = _at_labels(targets, class_weight)
            factor = factor + slope * of_label * _logsumexp(z)
            p = _softmax(z)
            result = result + (slope * of_label * jnp.sum(p * dz, axis=1))[:, None] * p
        result = result + factor[:, None] * _product("J", z, dz)
    if dtargets is not None:
        dmasses = _target_share(options, class_weight) * dtargets
        result = result - weight[:, None] * _product("N^T", z, dmasses)
    if dclass is not None:
        dmasses = _smoothed(options, z, targets) * dclass[None, :]
        result = result - weight[:, None] * _product("N^T", z, dmasses)
        if options.z_loss != 0.0 and targets.ndim == 1:
            result = result + (slope * _logsumexp(z) * _at_labels(targets, dclass))[:, None] * _softmax(z)
    return result


def _safe(z: Array, targets: Array, row_weight: Array) -> tuple[Array, Array]:
    """Return the logits with zeros in rows whose loss is nan, and the weights with nan there, unless they are zero."""
    poor = generic.without_number(z, targets)
    return jnp.where(poor[:, None], 0.0, z), jnp.where(poor, jnp.where(row_weight != 0.0, jnp.nan, 0.0), row_weight)


def _ones_for(z: Array, targets: Array, row_weight: Array) -> Array:
    """Return 1 for each row, but 0 for rows of weight 0 that have no number: these stay out of every derivative."""
    return jnp.where((row_weight == 0.0) & generic.without_number(z, targets), 0.0, jnp.ones_like(row_weight))


def _smoothed(options: LossSpec, z: Array, targets: Array) -> Array:
    """Target masses (R, C) before the class weights multiply them."""
    return generic.soft_targets(jnp, z, targets, options)


def _target_share(options: LossSpec, class_weight: Array | None) -> Any:
    """What multiplies the soft targets in the masses: a number or (1, C)."""
    share = 1.0 - options.label_smoothing
    return share if class_weight is None else share * class_weight[None, :]


def _total_mass(options: LossSpec, z: Array, targets: Array, class_weight: Array | None) -> Any:
    """Sum of the target masses (R,)."""
    if targets.ndim == 1 and options.label_smoothing == 0.0:
        return 1.0
    return jnp.sum(generic.soft_targets(jnp, z, targets, replace(options, class_weight=class_weight)), axis=1)


def _at_labels(targets: Array, class_weight: Array | None) -> Any:
    return generic.class_weight_of(jnp, targets, LossSpec(class_weight))


def _never_nan(share: Array, minus_log_p: Array) -> Array:
    """Product of both with 0 * inf = 0, as in the loss."""
    return share * jnp.where((share == 0.0) & jnp.isinf(minus_log_p), 0.0, minus_log_p)


def _times(x: Array, tangent: Array) -> Array:
    """Product x * tangent with inf * 0 = 0, linear in the tangent: for an infinite x, two factors that are finite."""
    largest = jnp.finfo(x.dtype).max
    return (jnp.minimum(x, largest) * tangent) * jnp.where(jnp.isposinf(x), largest, 1.0)


# --- activations ------------------------------------------------------------------------------------------------------


def _value(z: Array, activation: Activation) -> Array:
    return activation.function(jnp, z)


def _value_and_slope(z: Array, activation: Activation) -> tuple[Array, Array | None]:
    return activation.with_slope(jnp, z)


def _slope_text(z: Array, activation: Activation) -> Array:
    """Derivative of the activation; that of ReLU is 0 at 0."""
    kept: Array = activation.with_slope(jnp, z)[1]
    if activation.kept == "nothing":
        return jnp.ones_like(z)
    return (kept > 0.0).astype(z.dtype) if activation.kept == "value" else kept


def _activated_rule(activation: Activation, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    return _activated(z, activation), _slope(z, activation) * dz


def _activated_with_slope_rule(
    activation: Activation, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Any, Any]:
    (z,), (dz,) = primals, tangents
    value, kept = _activated_with_slope(z, activation)
    dvalue = _slope(z, activation) * dz
    if activation.kept == "nothing":
        return (value, None), (dvalue, None)
    return (value, kept), (dvalue, dvalue if activation.kept == "value" else _curvature(z, activation) * dz)


def _slope_rule(activation: Activation, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    return _slope(z, activation), _curvature(z, activation) * dz


_static_activation = {"nondiff_argnums": (1,)}
_activated = _with_rule(jax.jit(_value, static_argnums=1), _activated_rule, **_static_activation)
_activated_with_slope = _with_rule(
    jax.jit(_value_and_slope, static_argnums=1), _activated_with_slope_rule, **_static_activation
)
_slope = _with_rule(jax.jit(_slope_text, static_argnums=1), _slope_rule, **_static_activation)


def _curvature(z: Array, activation: Activation) -> Array:
    """Second derivative of the activation, in terms of functions that have rules."""
    return _CURVATURES[activation](z)


def _curvature_of_gelu(z: Array) -> Array:
    # GELU is z s(u), u a polynomial of z.
    z = jnp.clip(z, -100.0, 100.0)  # beyond these, the slope of s is 0; z * z must not overflow
    u = GELU_SLOPE * (z + GELU_CUBIC * z * z * z)
    du = GELU_SLOPE * (1.0 + 3.0 * GELU_CUBIC * z * z)
    ddu = GELU_SLOPE * 6.0 * GELU_CUBIC * z
    return (2.0 * du + z * ddu - z * du * du * _activated(0.5 * u, TANH)) * _slope(u, LOGISTIC)


_CURVATURES: dict[Activation, Callable[[Array], Array]] = {
    IDENTITY: jnp.zeros_like,
    RELU: jnp.zeros_like,
    TANH: lambda z: -2.0 * _activated(z, TANH) * _slope(z, TANH),
    LOGISTIC: lambda z: -_activated(0.5 * z, TANH) * _slope(z, LOGISTIC),
    SILU: lambda z: (2.0 - z * _activated(0.5 * z, TANH)) * _slope(z, LOGISTIC),
    GELU: _curvature_of_gelu,
}
