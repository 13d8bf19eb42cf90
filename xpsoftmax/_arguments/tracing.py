"""Arrays that stand for others: tensors that autograd records, that torch.func transforms, that JAX traces."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
from array_api_compat import is_jax_array, is_torch_array

from xpsoftmax._typing import Array


def layers_by_name(params: object) -> dict[str, object]:
    """Arrays of the layers by their names in messages; without what is not a layer."""
    if not isinstance(params, (tuple, list)):
        return {}
    return {
        f"params[{i}].{part}": array
        for i, layer in enumerate(params)
        if isinstance(layer, (tuple, list)) and len(layer) == 2
        for part, array in zip(("weight", "bias"), layer, strict=True)
    }


def check_untransformed(name: str, tensor: Array) -> None:
    """Refuse a tensor if torch.func or forward-mode AD differentiates what is computed from it."""
    if _is_transformed(tensor):
        raise ValueError(
            f"{name} must not be differentiated by torch.func or forward-mode AD, got a tensor that is: its derivative "
            "would be zero. Call detach() on it, and take gradients from softmax_loss_and_grad or mlp_loss_and_grad."
        )


def is_differentiated(array: object) -> bool:
    """Whether PyTorch differentiates what is computed from an array, in whatever way."""
    return is_torch_array(array) and (_is_recorded(array) or _is_transformed(array))


def _is_recorded(tensor: Array) -> bool:
    """Whether autograd records what is computed from a tensor, on any level of torch.func."""
    torch = sys.modules["torch"]
    if not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling():  # in a compiled torch.func.grad, only a view of its argument requires grad
        return bool(tensor.requires_grad or tensor.view_as(tensor).requires_grad)
    return any(level.requires_grad for level in _levels(tensor))


def _is_transformed(tensor: Array) -> bool:
    torch = sys.modules["torch"]
    if torch.compiler.is_compiling():
        if _has_tangent(tensor):
            return True
        return _is_recorded(tensor) and torch._C._functorch.maybe_current_level() is not None
    if torch._C._functorch.peek_interpreter_stack() is None:
        return _has_tangent(tensor)
    records = torch.is_grad_enabled()
    return any(level.has_tangent or (records and level.wraps and level.requires_grad) for level in _levels(tensor))


def _has_tangent(tensor: Array) -> bool:
    forward = sys.modules["torch"].autograd.forward_ad
    return forward._current_level >= 0 and forward.unpack_dual(tensor).tangent is not None


class _Level(NamedTuple):
    """A tensor on a level of torch.func, which wraps the one on the level below."""

    wraps: bool
    requires_grad: bool
    has_tangent: bool


def _levels(tensor: Array) -> list[_Level]:
    """Properties of a tensor on each level, from the innermost transform outwards; the last level is PyTorch's own."""
    functorch = sys.modules["torch"]._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return [_Level(wraps=False, requires_grad=bool(tensor.requires_grad), has_tangent=False)]
    from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

    levels = []
    with ExitStack() as outside:
        while True:
            wraps = functorch.is_functorch_wrapped_tensor(tensor)
            now = functorch.maybe_current_level()
            if now is not None and not (wraps and functorch.maybe_get_level(tensor) == now):
                # A tensor can be queried only on its own level.
                outside.enter_context(temporarily_pop_interpreter_stack())
                continue
            has_tangent = not functorch.is_batchedtensor(tensor) and _has_tangent(tensor)
            levels.append(_Level(wraps, bool(tensor.requires_grad), has_tangent))
            if not wraps:
                return levels
            tensor = functorch.get_unwrapped(tensor)


def unbatched(array: Array) -> Array:
    """Return a tensor inside torch.func.vmap with the dimensions that vmap hides, outermost first."""
    if not is_torch_array(array):
        return array
    functorch = sys.modules["torch"]._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return array
    while functorch.is_functorch_wrapped_tensor(array):
        hidden = functorch.maybe_get_bdim(array) if functorch.is_batchedtensor(array) else None
        array = functorch.get_unwrapped(array)
        array = array if hidden is None else array.movedim(hidden, 0)
    return array


def check_has_values(name: str, array: Array) -> None:
    """Raise ValueError where an array, `name` in the message, has no values that `validate=True` could look at."""
    if is_traced(array):
        raise ValueError(
            "validate must be False inside jax.jit and jax.vmap, got True: while a function is traced "
            f"its {name} have no values."
        )
    if is_torch_array(array) and array.is_meta:
        raise ValueError("validate must be False on the meta device, got True: its tensors have no values.")


def check_not_batched(name: str, array: Array) -> None:
    """Raise ValueError within torch.func.vmap, where a tensor, `name` in the message, has no rows of its own."""
    if is_batched(array):
        raise ValueError(
            f"validate must be False inside torch.func.vmap, got True: there {name} have no values of their own."
        )


def check_concrete(**arrays: object) -> None:
    """Raise ValueError for the first array without values, for functions that cannot do without them."""
    for name, array in arrays.items():
        if type(array) is np.ndarray:
            continue
        if is_traced(array):
            got = "one that JAX traces. Call this function outside of jax.jit, jax.vmap and jax.grad"
        elif is_batched(array):
            got = "one inside torch.func.vmap. Call this function outside of it"
        elif is_torch_array(array) and array.is_meta:
            got = "one on the meta device. Move it to another device"
        else:
            continue
        raise ValueError(f"{name} must be an array that has values, got {got}.")


def is_batched(array: object) -> bool:
    """Whether an array is a tensor that torch.func.vmap maps over."""
    return is_torch_array(array) and bool(sys.modules["torch"]._C._functorch.is_batchedtensor(array))


def is_traced(array: object) -> bool:
    return is_jax_array(array) and isinstance(array, sys.modules["jax"].core.Tracer)
