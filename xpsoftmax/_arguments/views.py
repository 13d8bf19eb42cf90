"""Arrays of other libraries in host memory, read as NumPy arrays that share their memory.

A function that enters here computes with the views, as it does for NumPy, and its results go back as arrays of the
library. Nothing is copied either way. Arrays that NumPy cannot read, that something follows (autograd, a transform, a
compiler), or that do not belong together are left as they are: the function then takes its way for their library.
"""

from __future__ import annotations

import functools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
from array_api_compat import is_jax_array

from xpsoftmax._typing import Array, dtype_name
from xpsoftmax.kernels import views_of_jax
from xpsoftmax.kernels.memory import numpy_of

P = ParamSpec("P")
R = TypeVar("R")


# --- libraries --------------------------------------------------------------------------------------------------------


class Library(ABC):
    """How a library shows its arrays to NumPy."""

    for_rows = True
    """Whether `rows_on_views` reads the arrays. The door reads those of JAX, and remembers what it found out."""

    @abstractmethod
    def view(self, array: Array, *, differentiable: bool) -> np.ndarray | None:
        """Return a NumPy array that shares the memory of an array; None if NumPy cannot read it there.

        With `differentiable` the library can differentiate what is computed: None for an array that it follows.
        """

    @abstractmethod
    def note_write(self, array: Array) -> None:
        """Tell the library that the memory of an array has been written to through a view."""

    @abstractmethod
    def back(self, array: np.ndarray | np.generic) -> Array:
        """Return an array of the library with the numbers of a NumPy array, whose memory nothing else uses."""


def library_of(array: object) -> Library | None:
    """Return what shows this array, and others of its library, to NumPy; None if nothing does, or not now."""
    if type(array) is np.ndarray:  # no views are needed; this saves time in small calls
        return None
    torch = sys.modules.get("torch")  # array_api_compat would ask a cache, of which the compiler warns
    if torch is not None and isinstance(array, torch.Tensor):
        return None if _follows_all(torch) else _torch()
    return _Jax() if is_jax_array(array) else None


def _follows_all(torch: Any) -> bool:
    """Whether PyTorch may follow all that is computed now: a compiler, a transform, forward-mode AD, or a mode."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.jit.is_tracing()
    )


@functools.cache
def _torch() -> Library:
    return _Torch(sys.modules["torch"])


class _Torch(Library):
    """Tensors on the CPU. NumPy has no bfloat16."""

    def __init__(self, torch: Any) -> None:
        self._kinds = frozenset({torch.Tensor, torch.nn.Parameter})  # a subclass may give operations another meaning
        sizes = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
        self._dtypes = frozenset(getattr(torch, name) for name in ("bool", "float16", "float32", "float64", *sizes))
        self._strided, self._is_grad_enabled, self._from_numpy = torch.strided, torch.is_grad_enabled, torch.from_numpy
        self._increment_version = torch.autograd.graph.increment_version

    def view(self, array: Array, *, differentiable: bool) -> np.ndarray | None:
        if not (
            type(array) in self._kinds
            and array.is_cpu
            and array.dtype in self._dtypes
            and array.layout is self._strided
            and not array.is_nested
            and not array.is_neg()
        ):
            return None
        if not array.requires_grad:
            return numpy_of(array)
        return None if differentiable and self._is_grad_enabled() else numpy_of(array.detach())

    def note_write(self, array: Array) -> None:
        if not array.is_inference():
            self._increment_version(array)  # a graph that needs what was there raises an error

    def back(self, array: np.ndarray | np.generic) -> Array:
        array = array if type(array) is np.ndarray else np.asarray(array)
        return self._from_numpy(array if array.flags.writeable else array.copy())  # PyTorch has no read-only tensors


class _Jax(Library):
    """JAX arrays in host memory, in one call: results go where the arrays of that call are."""

    for_rows = False

    def __init__(self) -> None:
        self._views: Any = views_of_jax()
        self._place: Any = None
        self._alike: Any = None  # type and sharding of the last array
        self._dtypes: set[Any] = set()  # of arrays with that type and sharding

    def view(self, array: Array, *, differentiable: bool) -> np.ndarray | None:  # noqa: ARG002 - JAX follows tracers
        kind, sharding = type(array), getattr(array, "sharding", None)
        if self._alike is None or kind is not self._alike[0] or sharding != self._alike[1]:
            self._alike, self._dtypes = (kind, sharding), set()
        if array.dtype not in self._dtypes:
            if self._views.refusal(array) is not None or dtype_name(array.dtype) == "bfloat16":
                return None
            self._dtypes.add(array.dtype)
        committed = array.committed
        if self._place is None or (committed and not self._place.committed):
            self._place = self._views.place_of(array)
        if committed and sharding != self._place.sharding:
            return None
        return self._views.as_numpy(array)  # type: ignore[no-any-return]

    def note_write(self, array: Array) -> None:
        """JAX arrays are never written to."""

    def back(self, array: np.ndarray | np.generic) -> Array:
        array = np.asarray(array)
        # What is read-only may be an argument.
        return self._place.array(array if array.flags.writeable else array.copy())


# --- entering ---------------------------------------------------------------------------------------------------------


class Entry:
    """The arguments of a call: views of its arrays, or the arguments as they were given."""

    def __init__(self, library: Library | None, given: tuple[Any, ...], arguments: tuple[Any, ...]) -> None:
        self.library, self.given, self.arguments = library, given, arguments

    def run(self, function: Callable[..., R], **options: Any) -> R:
        """Call a function; its errors name the types of the arrays that were given, not those of the views."""
        if self.library is None:
            return function(*self.given, **options)
        try:
            return function(*self.arguments, **options)
        except (TypeError, ValueError, NotImplementedError) as error:
            refusal = error
        try:
            function(*self.given, **options)  # raises the error in the words of the library
        except NotImplementedError:  # impl="kernel": JAX arrays have no kernels but those for their views
            if isinstance(refusal, NotImplementedError):
                raise
        raise refusal

    def back(self, value: Any) -> Any:
        """Return a result with arrays of the library in the place of NumPy's."""
        return value if self.library is None else _returned(self.library, value)


def enter(*given: Any, impl: object = "auto", differentiable: bool = False) -> Entry:
    """Read all arrays of a call as NumPy arrays if that is possible. `impl="generic"` asks for another path."""
    library = library_of(_first_array(given))
    if library is None or (isinstance(impl, str) and impl == "generic"):
        return Entry(None, given, given)
    try:
        return Entry(library, given, tuple(_shown(library, given, differentiable=differentiable)))
    except _HiddenError:
        return Entry(None, given, given)


def on_views(*, differentiable: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function compute with views of its arrays, where there are such.

    `differentiable` if PyTorch can differentiate its results.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def entered(*args: P.args, **kwargs: P.kwargs) -> R:
            if library_of(_first_array(args)) is None:
                return function(*args, **kwargs)

            def call(*values: Any) -> R:
                return function(*values[: len(args)], **dict(zip(kwargs, values[len(args) :], strict=True)))

            impl = kwargs.get("impl")
            entry = enter(*args, *kwargs.values(), impl=impl, differentiable=differentiable)
            return entry.back(entry.run(call))  # type: ignore[no-any-return]

        return entered

    return decorate


def rows_on_views(
    function: Callable[..., Any], *given: Any, out: Array | None, impl: object, differentiable: bool
) -> Any:
    """Call `function(*given, out)`, a row operation, with views of its arrays, where there are such.

    The first array holds the logits; others may be None. Logits of 16 bits are left as they are: NumPy would take
    longer to convert them than their library does.
    """
    library = library_of(given[0])
    if library is None or not library.for_rows or given[0].itemsize <= 2 or not _may_be_kernel(impl):
        return function(*given, out)
    views: list[np.ndarray | None] = []
    for array in (*given, out):
        view = None if array is None else library.view(array, differentiable=differentiable)
        if view is None and array is not None:
            return function(*given, out)
        views.append(view)
    try:
        found = function(*views)
    except (TypeError, ValueError):
        return function(*given, out)  # raises the error in the words of the library
    if out is not None:
        library.note_write(out)
    if type(found) is tuple:
        return tuple([_row_result(library, x, views[-1], out) for x in found])
    return _row_result(library, found, views[-1], out)


def _may_be_kernel(impl: object) -> bool:
    return type(impl) is str and (impl == "auto" or impl == "kernel")


def _row_result(library: Library, array: np.ndarray | None, view: np.ndarray | None, out: Array | None) -> Array | None:
    """Return a result of a row operation as an array of the library: `out` in the place of its view."""
    return array if array is None else out if array is view else library.back(array)


class _HiddenError(Exception):
    """An argument cannot be shown to NumPy."""


def _first_array(values: tuple[Any, ...]) -> object:
    for value in values:
        while isinstance(value, (tuple, list)) and value:
            value = value[0]
        if hasattr(value, "shape"):
            return value
    return None


def _shown(library: Library, values: Sequence[Any], *, differentiable: bool) -> list[Any]:
    """Return values, trees of tuples and lists among them, with views in the place of arrays."""
    shown = []
    for value in values:
        if isinstance(value, (tuple, list)):
            shown.append(_rebuilt(value, _shown(library, value, differentiable=differentiable)))
        elif hasattr(value, "shape") and not isinstance(value, np.generic):
            view = library.view(value, differentiable=differentiable)
            if view is None:
                raise _HiddenError
            shown.append(view)
        else:
            shown.append(value)
    return shown


def _returned(library: Library, value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return library.back(value)
    if isinstance(value, tuple):
        return _rebuilt(value, [_returned(library, part) for part in value])
    return value


def _rebuilt(value: Any, parts: list[Any]) -> Any:
    """Return a tuple, a named tuple or a list of the kind of `value`."""
    kind = type(value)
    if kind in (tuple, list):
        return kind(parts)
    if not hasattr(kind, "_make"):
        raise _HiddenError
    return kind._make(parts)
