"""Errors for unknown keywords that name the right one: users know the names of other libraries."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def suggesting(**meant: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function name the keyword that was meant, from what other libraries call it or from what is spelled alike.

    `meant` maps names that other libraries use to advice.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = [name for name in inspect.signature(function).parameters if name != "self"]
        called = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in names:
                    import difflib  # only for a message: its import takes a millisecond

                    closest = difflib.get_close_matches(name, names, n=1)
                    said = meant.get(name) or (f"{closest[0]}=" if closest else None)
                    hint = "" if said is None else f" Did you mean {said}?"
                    raise TypeError(f"{called}() has no argument {name!r}.{hint}")
            return function(*args, **kwargs)

        return checked

    return decorate
