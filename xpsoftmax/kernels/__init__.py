"""The row operations, once per kind of array; the only place that knows which backends exist."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_cupy_array, is_dask_array, is_jax_array, is_torch_array

from xpsoftmax._typing import Array, Impl, Namespace
from xpsoftmax.kernels import generic
from xpsoftmax.kernels import numpy as numpy_kernels

__all__ = ["OPERATIONS", "Operations", "kernel_for", "operations", "select", "summed"]

# The operations that `impl="kernel"` insists on.
ROW_OPERATIONS = ("softmax_rows", "log_softmax_rows", "logsumexp_rows", "softmax_loss_rows")
# What a backend may offer: one that lacks an operation leaves it to `generic`.
OPERATIONS = (
    *ROW_OPERATIONS,
    "softmax_loss_total",
    "softmax_loss_and_logsumexp_rows",
    "are_classes",
    "are_weights",
    "total",
    "sum_of_rows",
    "sums_of_rows",
    "weigh_rows",
    "counted_rows",
    "bias_activation",
    "activation_backward",
    "weight_penalties",
    "parameter_updates",
)


class Backend(NamedTuple):
    """A module of kernels. `takes` says whether it is for an array; `load` imports it, and only then.

    The module may have a function `refusal(logits)`: the reason, in words, why it cannot take these logits, or None.
    """

    name: str
    takes: Callable[[Array], bool]
    load: Callable[[], Any]


def _for_torch() -> Any:
    import xpsoftmax.kernels.torch as module  # a plain import: torch.compile cannot trace a cached function

    return module


views_of_jax = cache(lambda: import_module("xpsoftmax.kernels.jax.views"))
"""Import the module that reads JAX arrays as NumPy arrays."""

# Each backend module has some of OPERATIONS, with the signatures of `generic`.
BACKENDS: tuple[Backend, ...] = (
    Backend("numpy", lambda array: isinstance(array, (np.ndarray, np.generic)), lambda: numpy_kernels),
    Backend("cupy", is_cupy_array, cache(lambda: import_module("xpsoftmax.kernels.cuda.launcher"))),
    Backend("torch", is_torch_array, _for_torch),
    # Before a kernel is selected, the argument checks read JAX arrays in host memory as NumPy arrays. This backend says
    # why others are not read so.
    Backend("jax", is_jax_array, lambda: views_of_jax().backend),
)

# The generic arithmetic with derivative rules, for libraries that differentiate what they compute. A module here stands
# in for `generic`, also with impl="generic"; what it lacks is taken from there.
WITH_RULES: tuple[Backend, ...] = (
    Backend("jax", is_jax_array, cache(lambda: import_module("xpsoftmax.kernels.jax"))),
    Backend("torch", is_torch_array, lambda: _for_torch().texts),
)


def select(operation: str, logits: Array, impl: Impl) -> Callable[..., Any]:
    """Return the row operation for these logits.

    `"auto"` is a kernel if one takes them, else the generic operation; `"generic"` and `"kernel"` force one of the two.
    A backend may lack operations that are not row operations: the generic ones are used then.
    Dask arrays get what their blocks get, block by block.

    Raises
    ------
    NotImplementedError
        With `impl="kernel"` where no backend takes these logits, or none that has this row operation.
    """
    if impl != "generic":
        kernel, refusal = _offer(operation, logits)
        if kernel is not None:
            return kernel
    if is_dask_array(logits):
        from xpsoftmax.kernels.dask import by_blocks  # imports dask, as the caller has done already

        return by_blocks(operation, select(operation, logits._meta, impl))
    if impl == "kernel":
        kind = f"{type(logits).__module__.partition('.')[0]} arrays of {logits.dtype}"
        names = ", ".join(backend.name for backend in BACKENDS) or "none"
        reason = refusal or f"no kernel offers {operation} for them (kernels: {names})"
        raise NotImplementedError(f'impl must be "auto" or "generic" for {kind}, got "kernel": {reason}.')
    return _generic(operation, logits)


def kernel_for(operation: str, logits: Array, impl: Impl) -> Callable[..., Any] | None:
    """Return the kernel that `select` would return for these logits; None where that is generic or an error."""
    kernel = None if impl == "generic" else _offer(operation, logits)[0]
    return None if kernel is getattr(generic, operation) else kernel


def selected(operation: str, logits: Array, impl: Impl) -> tuple[Callable[..., Any], bool]:
    """Return the row operation for these logits, as `select` does, and whether it is a kernel."""
    kernel = kernel_for(operation, logits, impl)
    return (select(operation, logits, impl), False) if kernel is None else (kernel, True)


def selected_loss(logits: Array, impl: Impl, *, add_up: bool) -> tuple[Callable[..., Any], bool, bool]:
    """Return the loss operation for these logits, whether it returns the sum of the losses, and whether it is a kernel.

    With `add_up` it returns the sum if a kernel can; otherwise the caller adds up the losses with `summed`.
    """
    total = kernel_for("softmax_loss_total", logits, impl) if add_up else None
    if total is not None:
        return total, True, True
    kernel, by_kernel = selected("softmax_loss_rows", logits, impl)
    return kernel, False, by_kernel


def summed(xp: Namespace, x: Array, impl: Impl = "auto") -> Array:  # noqa: ARG001
    """Sum of all entries, 0-d."""
    if type(x) is np.ndarray:  # without the wrappers of the namespace, which take longer than a small sum
        return np.asarray(np.add.reduce(x, axis=None))
    return select("total", x, "generic" if impl == "generic" else "auto")(x)


def of_library(operation: str, array: Array) -> Callable[..., Any]:
    """Return a generic operation in the version for the library of this array: JAX and dask have their own."""
    return getattr(generic, operation) if type(array) is np.ndarray else select(operation, array, "generic")


class Operations:
    """The row operations for arrays of one kind, as attributes: each is selected when it is first asked for."""

    def __init__(self, array: Array, impl: Impl) -> None:
        self._selected_by = array, impl

    def has_kernel(self, operation: str) -> bool:
        """Whether an operation is computed by a kernel: it needs less memory, and may overwrite its arguments.

        It does not raise where a kernel is insisted on and there is none: the operation that needs it first will.
        """
        array, impl = self._selected_by
        if impl == "kernel" and kernel_for(operation, array, impl) is None:
            return False
        return getattr(self, operation) is not getattr(generic, operation)

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        selected = select(operation, *self._selected_by)
        setattr(self, operation, selected)
        return selected

    def runner(self) -> Any:
        """Return the class that runs programs (xpsoftmax/_train/programs.py) on these arrays; None if there is none."""
        array, impl = self._selected_by
        for backend in BACKENDS if impl != "generic" else ():
            if backend.takes(array):
                module = backend.load()
                refused = hasattr(module, "refusal") and module.refusal(array) is not None
                return None if refused else getattr(module, "Runner", None)
        return None


def operations(array: Array, impl: Impl) -> Operations:
    """Return the row operations for arrays like this one."""
    return _of_numpy(impl, BACKENDS) if type(array) is np.ndarray else Operations(array, impl)


@cache
def _of_numpy(impl: Impl, backends: tuple[Backend, ...]) -> Operations:  # noqa: ARG001
    """Cached: look-up time matters in small calls. NumPy arrays of all dtypes have the same kernels."""
    return Operations(np.empty((0, 1)), impl)


def host_views(impl: Impl, *arrays: Array | None) -> Any:
    """Return the module that reads these JAX arrays as NumPy arrays (`kernels/jax/views.py`); None if it cannot."""
    if impl == "generic" or not is_jax_array(arrays[0]):
        return None
    views = views_of_jax()
    return views if views.refusal(*arrays) is None else None


def _generic(operation: str, logits: Array) -> Callable[..., Any]:
    """Return a generic operation, with derivative rules if the library of these logits has some here."""
    for backend in WITH_RULES:
        if backend.takes(logits) and hasattr(backend.load(), operation):
            return getattr(backend.load(), operation)  # type: ignore[no-any-return]
    return getattr(generic, operation)  # type: ignore[no-any-return]


def _offer(operation: str, logits: Array) -> tuple[Callable[..., Any] | None, str | None]:
    """Return the first kernel that takes these logits; else None and, if a backend refuses them, the reason in words.

    If a backend takes the logits, but none has an operation that is not a row operation, the generic one is returned.
    """
    reason, taken = None, False
    for backend in BACKENDS:
        if not backend.takes(logits):
            continue
        module = backend.load()
        refusal = module.refusal(logits) if hasattr(module, "refusal") else None
        if refusal is not None:
            reason = f"the {backend.name} backend refuses them: {refusal}"
            continue
        kernel = getattr(module, operation, None)
        if kernel is not None:
            return kernel, None
        taken = True
    if taken and operation not in ROW_OPERATIONS:
        return getattr(generic, operation), None
    return None, reason
