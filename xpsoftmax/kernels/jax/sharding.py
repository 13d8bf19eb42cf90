"""Arrays on a mesh whose axes are explicit: there, JAX must be told how each result is distributed over the devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from xpsoftmax._typing import Array
from xpsoftmax.kernels import generic


def compiled(function: Callable[..., Any], *ranks: int, **options: Any) -> Callable[..., Any]:
    """Compile a function of logits (R, C) and more, as `jax.jit` does; each rank is the number of axes of a result.

    The axes of the results are the first of (R, C, C). An operation is compiled as a whole, and XLA decides how arrays
    on several devices are distributed within it. On a mesh with explicit axes, JAX would refuse to halve an axis of
    classes that is distributed: these axes are left to XLA, and the results are distributed as the logits are.
    """
    jitted = jax.jit(function, **options)

    def call(z: Array, *more: Any, **named: Any) -> Any:
        sharding = explicit_sharding(z)
        if sharding is None:
            return jitted(z, *more, **named)
        rows, classes = sharding.spec
        shardings = [NamedSharding(sharding.mesh, PartitionSpec(*(rows, classes, None)[:rank])) for rank in ranks]
        out_sharding = shardings[0] if len(shardings) == 1 else tuple(shardings)
        arrays = [x for x in more if isinstance(x, jax.Array)]

        def automatic(z: Array, *arrays: Array) -> Any:
            return jitted(z, *_with_arrays(more, arrays), **named)

        return _left_to_xla(automatic, sharding.mesh, out_sharding)(z, *arrays)

    return call


def _with_arrays(arguments: Sequence[Any], arrays: Sequence[Array]) -> list[Any]:
    """Replace the arrays among the arguments by these arrays, in order."""
    rest = iter(arrays)
    return [next(rest) if isinstance(x, jax.Array) else x for x in arguments]


def _left_to_xla(function: Callable[..., Any], mesh: Any, out_sharding: Any) -> Callable[..., Any]:
    return jax.sharding.auto_axes(function, axes=mesh.explicit_axes, out_sharding=out_sharding)  # type: ignore[no-any-return]


def explicit_sharding(x: Array) -> Any:
    """Return the sharding of an array on a mesh with explicit axes; None for other arrays."""
    sharding: Any = jax.typeof(x).sharding if hasattr(jax, "typeof") else None
    return sharding if getattr(getattr(sharding, "mesh", None), "explicit_axes", ()) else None


# --- operations of `generic` that need the sharding -------------------------------------------------------------------


def class_weight_at(class_weight: Array, labels: Array) -> Array:
    """See `generic.class_weight_at`; the result is distributed as the labels are."""
    sharding = explicit_sharding(labels)
    if sharding is None:
        return generic.class_weight_at(class_weight, labels)
    return class_weight.at[labels].get(out_sharding=sharding)


def product(left: Array, right: Array, like: Array | None = None) -> Array:
    """See `generic.product`."""
    shardings = explicit_sharding(left), explicit_sharding(right)
    mesh = next((x.mesh for x in shardings if x is not None), None)
    if mesh is None:
        return left @ right
    wanted = None if like is None else explicit_sharding(like)
    if wanted is not None:
        spec = wanted.spec
    elif like is not None:
        spec = PartitionSpec()
    else:
        rows, columns = (None if x is None else x.spec[i] for i, x in enumerate(shardings))
        spec = PartitionSpec(rows, None if columns == rows else columns)
    return _left_to_xla(jnp.matmul, mesh, NamedSharding(mesh, spec))(left, right)


def some_rows(array: Array, rows: slice) -> Array:
    """See `generic.some_rows`; on a mesh with explicit axes every device gets these rows."""
    sharding = explicit_sharding(array)
    if sharding is None:
        return array[rows, ...]
    out_sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec[1:]))
    return array.at[rows].get(out_sharding=out_sharding)


def reshaped(array: Array, shape: tuple[int, ...]) -> Array:
    """See `generic.reshaped`; on a mesh with explicit axes only the first and the last axis may be distributed."""
    sharding = explicit_sharding(array)
    if sharding is not None and array.ndim > 2:
        first, *middle, last = sharding.spec
        if any(middle):
            spec = PartitionSpec(first, *(None for _ in middle), last)
            array = jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))
    elif sharding is not None and len(shape) == 1 and array.ndim == 2:
        array = jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0], None)))
    return jnp.reshape(array, shape)
