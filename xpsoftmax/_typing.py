"""The types that all modules share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

FLOATING = ("float16", "bfloat16", "float32", "float64")


INTEGRAL = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


# The standard has no common base class for arrays, and no library ships a protocol that all of them meet.
Array: TypeAlias = Any


Namespace: TypeAlias = Any


DType: TypeAlias = Any


Device: TypeAlias = Any


Impl: TypeAlias = Literal["auto", "generic", "kernel"]


Reduction: TypeAlias = Literal["mean", "sum", "none"]


Activation: TypeAlias = Literal["identity", "relu", "tanh", "logistic", "silu", "gelu"]


Scheme: TypeAlias = Literal["he", "glorot", "lecun"]


@dataclass(frozen=True)
class LossSpec:
    """The options of a loss that a row operation needs, beside the weight of each row.

    `class_weight` (C,) in the working precision is given only where it cannot be folded into the weight of the row:
    with label smoothing or soft targets. `labels_known` says that all labels are classes: a kernel need not look.
    """

    class_weight: Array | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    labels_known: bool = False


SIXTEEN_BIT = ("float16", "bfloat16")
"""The dtypes that are computed in float32."""


def dtype_name(dtype: DType) -> str:
    """Return the standard's name of a dtype, whatever the library: "float32", also for a non-native byte order."""
    return _dtype_name(dtype.__class__, dtype)


@cache  # NumPy puts the name together anew each time
def _dtype_name(kind: type, dtype: DType) -> str:  # noqa: ARG001 - dtypes of different libraries must not be compared
    return getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]
