"""The source of a kernel, and the options that it is compiled with. Plain Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from xpsoftmax.kernels.cuda.sizes import ITEMSIZES, MassClass, SizeClass

SCALARS = {"float16": "Half", "bfloat16": "Bfloat", "float32": "float", "float64": "double"}
COMPILER_OPTIONS = ("-std=c++17", "--fmad=false")
"""Without fused multiply-add the merges of partial sums are symmetric, and the text means what a CPU makes of it."""

QUICK_FROM = 256
"""Number of classes from which results of 16 bits take the quick exponential (kernels/cuda/exponentials.cuh)."""


def defines(kind: SizeClass, dtype: str, result: str, *, quick: bool) -> tuple[tuple[str, str], ...]:
    """The specialisation that rows.cuh asks for."""
    ring = (("SLOTS", str(kind.slots)), ("GROUP", str(kind.group))) if kind.slots else ()
    return (
        ("SCALAR", SCALARS[dtype]),
        ("RESULT", SCALARS[result]),
        ("QUICK", str(int(quick))),
        ("LANES", str(kind.lanes)),
        ("VECTORS", str(kind.vectors)),
        ("BLOCKS", str(kind.blocks)),
        ("THREADS", str(kind.threads)),
        ("RESIDENT", str(kind.resident)),
        *ring,
    )


def takes_quick(classes: int, dtype: str, result: str) -> bool:
    """Whether rows of so many classes, written in the type `result`, take the quick exponential."""
    return ITEMSIZES[dtype] == 2 and result == dtype and classes >= QUICK_FROM


@cache
def mass_defines(kind: MassClass, dtype: str, result: str) -> tuple[tuple[str, str], ...]:
    """The specialisation of the kernel for target masses."""
    return (
        ("SCALAR", SCALARS[dtype]),
        ("RESULT", SCALARS[result]),
        ("THREADS", str(kind.threads)),
        ("CLASSES_HELD", str(kind.held)),
        ("RESIDENT", str(kind.resident)),
    )


def options(specialisation: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Compiler options of a specialisation."""
    return (*COMPILER_OPTIONS, *(f"-D{name}={value}" for name, value in specialisation))


@cache
def source(kernel: str) -> str:
    """Source of a kernel with its headers in place: CuPy's cache of compiled kernels sees only this source."""
    return with_headers(f"{kernel}.cu", lambda name: (Path(__file__).parent / name).read_text("utf-8"))


def with_headers(name: str, read: Callable[[str], str]) -> str:
    """Source of a file in which each `#include "..."` is replaced, once, by the file it names."""
    seen: set[str] = set()

    def text(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        lines = [f'#line 1 "{name}"']
        for number, line in enumerate(read(name).splitlines(), 1):
            if line.startswith('#include "'):
                lines += [text(line.split('"')[1]), f'#line {number + 1} "{name}"']
            elif line != "#pragma once":
                lines.append(line)
            else:
                lines.append("")
        return "\n".join(lines)

    return text(name) + "\n"
