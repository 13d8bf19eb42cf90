"""Modules of earlier versions, by their old names: pickles name the module of a class."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

MOVED = {
    "_backprop": ("_network.layers", "_network.sums"),
    "_layers": ("_network.layers",),
    "_optim": ("_train.optimizers",),
    "_state": ("_train.state",),
    "_training": ("_train.records", "_train.state"),
}
"""Where what was in a module is now."""


class _Moved(ModuleType):
    """A module of an earlier version; its classes are looked up in the modules that have them now."""

    def __getattr__(self, name: str) -> Any:
        places = () if name.startswith("__") else MOVED[self.__name__.removeprefix("xpsoftmax.")]
        for place in places:
            module = import_module(f"xpsoftmax.{place}")
            if name in vars(module):
                return vars(module)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def install() -> None:
    """Let `pickle` find the old names."""
    for name in MOVED:
        sys.modules.setdefault(f"xpsoftmax.{name}", _Moved(f"xpsoftmax.{name}"))
