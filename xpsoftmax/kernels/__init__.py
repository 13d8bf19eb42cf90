"""The row operations, once per kind of array; the only place that knows which backends exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from array_api_compat import is_dask_array, is_numpy_array

from xpsoftmax._typing import Array, Impl
from xpsoftmax.kernels import generic
from xpsoftmax.kernels import numpy as numpy_kernels

__all__ = ["OPERATIONS", "select"]

# What a backend may offer: one that lacks an operation leaves it to `generic`.
OPERATIONS = ("softmax_rows", "log_softmax_rows", "logsumexp_rows", "softmax_loss_rows")


class Backend(NamedTuple):
    """A module of kernels: it is imported by `load`, and only for arrays that `takes` it."""

    name: str
    takes: Callable[[Array], bool]
    load: Callable[[], Any]


# Each backend module has some of OPERATIONS, with the signatures of `generic`.
BACKENDS: tuple[Backend, ...] = (Backend("numpy", is_numpy_array, lambda: numpy_kernels),)


def select(operation: str, logits: Array, impl: Impl) -> Callable[..., Any]:
    """Return the row operation for these logits.

    `"auto"` is a kernel if one takes them, else the generic text; `"generic"` and `"kernel"` force one of the two.
    Dask arrays get what their blocks get, block by block.

    Raises
    ------
    NotImplementedError
        With `impl="kernel"` where no kernel takes these logits.
    """
    if impl != "generic":
        for backend in BACKENDS:
            if backend.takes(logits):
                kernel = getattr(backend.load(), operation, None)
                if kernel is not None:
                    return kernel  # type: ignore[no-any-return]
    if is_dask_array(logits):
        from xpsoftmax.kernels.blocks import by_blocks  # imports dask: not before the caller has

        return by_blocks(operation, select(operation, logits._meta, impl))
    if impl == "kernel":
        kind = f"{type(logits).__module__.partition('.')[0]} arrays of {logits.dtype}"
        names = ", ".join(backend.name for backend in BACKENDS) or "none"
        raise NotImplementedError(
            f'impl must be "auto" or "generic" for {kind}, got "kernel": '
            f"no kernel offers {operation} for them (kernels: {names})."
        )
    return getattr(generic, operation)  # type: ignore[no-any-return]
