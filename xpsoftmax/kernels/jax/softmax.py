"""softmax, log_softmax, logsumexp and the Jacobian with derivative rules, and products with the Jacobians.

The products are a primitive of JAX that knows its transpose. "J" is the Jacobian of softmax, "N" that of log_softmax,
"N^T" its transpose. They and softmax are one module because the rule of each is written with the others. Logits z and
vectors v are (R, C), in the working precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from xpsoftmax._typing import Array
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.jax.rules import with_rule
from xpsoftmax.kernels.jax.sharding import compiled

# --- products with the Jacobians --------------------------------------------------------------------------------------

_FORMULAS: dict[str, Callable[[Array, Array], Array]] = {
    "J": generic.softmax_jvp_rows,
    "N": generic.log_softmax_jvp_rows,
    "N^T": generic.log_softmax_vjp_rows,
}
_TRANSPOSES = {"J": "J", "N": "N^T", "N^T": "N"}

_primitive = Primitive("softmax_product")


def product_with_jacobian(name: str, z: Array, v: Array) -> Array:
    """Return a Jacobian at the logits z times the vectors v."""
    return _primitive.bind(z, v, name=name)


def _formula(z: Array, v: Array, *, name: str) -> Array:
    return _FORMULAS[name](z, v)


def _jvp(primals: Sequence[Array], tangents: Sequence[Any], *, name: str) -> tuple[Array, Any]:
    (z, v), (dz, dv) = primals, tangents
    terms = []
    if type(dv) is not ad.Zero:
        terms.append(product_with_jacobian(name, z, dv))
    if type(dz) is not ad.Zero:
        terms.append(_along_logits(name, z, v, dz))
    return product_with_jacobian(name, z, v), sum(terms[1:], terms[0])


def _along_logits(name: str, z: Array, v: Array, dz: Array) -> Array:
    """Return the derivative along dz of a product with v."""
    if name == "N^T":  # v - p sum(v)
        return -product_with_jacobian("J", z, dz) * jnp.sum(v, axis=1, keepdims=True)
    both = product_with_jacobian("N", z, v) * product_with_jacobian("N", z, dz)
    if name == "J":
        return product_with_jacobian("J", z, both)
    return jnp.broadcast_to(-jnp.sum(softmax(z) * both, axis=1, keepdims=True), v.shape)


def _transpose(cotangent: Any, z: Array, v: Any, *, name: str) -> tuple[None, Any]:
    if type(cotangent) is ad.Zero:
        return None, ad.Zero(v.aval)
    return None, product_with_jacobian(_TRANSPOSES[name], z, cotangent)


def _batched(arrays: Sequence[Array], axes: Sequence[Any], *, name: str) -> tuple[Array, int]:
    """Rows are independent: a batch of arrays of rows is one array of more rows."""
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    z, v = (
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(arrays, axes, strict=True)
    )
    rows = size * z.shape[1]
    return product_with_jacobian(name, *(x.reshape(rows, x.shape[2]) for x in (z, v))).reshape(v.shape), 0


_compiled_formula = compiled(_formula, 2, static_argnames="name")
_primitive.def_impl(_compiled_formula)
_primitive.def_abstract_eval(lambda z, v, *, name: v.update(weak_type=False))  # noqa: ARG005
mlir.register_lowering(_primitive, mlir.lower_fun(_compiled_formula, multiple_results=False))
ad.primitive_jvps[_primitive] = _jvp
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = _batched


# --- softmax, log_softmax, logsumexp, Jacobian ------------------------------------------------------------------------


def _softmax_rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return softmax(*primals), product_with_jacobian("J", *primals, *tangents)


def _log_softmax_rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return log_softmax(*primals), product_with_jacobian("N", *primals, *tangents)


def _logsumexp_rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    return logsumexp(z), jnp.sum(softmax(z) * dz, axis=1)


def _jacobian_rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    p, matrix, b = softmax(z), jacobian(z), product_with_jacobian("N", z, dz)
    off_diagonal = matrix * (b[:, :, None] + b[:, None, :])  # of -p[j] p[k]
    diagonal = p * (1.0 - 2.0 * p) * b  # of p - p**2
    return matrix, jnp.where(jnp.eye(z.shape[1], dtype=bool), diagonal[:, :, None], off_diagonal)


# A rule gets all arguments of its function: `out` must not be one.
softmax = with_rule(compiled(lambda z: generic.softmax_rows(z), 2), _softmax_rule)
log_softmax = with_rule(compiled(lambda z: generic.log_softmax_rows(z), 2), _log_softmax_rule)
logsumexp = with_rule(compiled(generic.logsumexp_rows, 1), _logsumexp_rule)
jacobian = with_rule(compiled(generic.softmax_jacobian_rows, 3), _jacobian_rule)
