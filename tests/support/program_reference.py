"""Programs of steps (xpsoftmax/_train/programs.py) run by NumPy's formulas: what the CUDA operations are compared with.

`ReferenceRunner` stands where the CUDA backend's runner does. It reads and writes the arrays that it was given, and no
others, and counts its runs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from xpsoftmax._typing import LossSpec
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.activations import ACTIVATIONS
from xpsoftmax.kernels.cuda import plan, table_plan


def of_numpy(array: Any) -> np.ndarray:
    """The memory of an array of the stand-in CuPy, or of NumPy, to read and write."""
    return array if isinstance(array, np.ndarray) else array._array


def view(memory: np.ndarray, shape: tuple[int, ...], dtype: str, offset: int) -> np.ndarray:
    """The entries of a buffer of a program."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    assert offset + size <= memory.size
    return memory[offset : offset + size].view(dtype).reshape(shape)


_thread = threading.local()


def is_within() -> bool:
    """Whether programs run now, in this thread: after the caller's work, and before what follows."""
    return getattr(_thread, "within", False)


class ReferenceRunner:
    runs: int = 0
    made: int = 0  # how many runners
    latest: ClassVar[deque[ReferenceRunner]] = deque(maxlen=4)
    entered: int = 0  # how often programs began to run after the caller's work

    def __init__(self, program: Any, arrays: dict[str, Any]) -> None:
        self.arrays = {name: of_numpy(array) for name, array in arrays.items()}
        for name, buffer in program.buffers.items():
            assert name not in self.arrays, f"{name} is the caller's"
            self.arrays[name] = view(self.arrays["memory"], *buffer)
            self.arrays[name][...] = 99  # what a program does not write shows
        self.program = program
        ReferenceRunner.made += 1
        ReferenceRunner.latest.append(self)

    @staticmethod
    def has_rule(rule: Any) -> bool:
        return rule in table_plan.RULES

    @staticmethod
    @contextmanager
    def in_order(device: Any) -> Iterator[None]:
        assert not is_within()
        _thread.within = True
        ReferenceRunner.entered += 1
        try:
            yield
        finally:
            _thread.within = False

    @property
    def rows(self) -> int:
        """Of the batch."""
        return next(operation.options["rows"] for operation in self.program.operations if operation.name == "record")

    @property
    def chunks(self) -> int:
        return sum(operation.name == "softmax_loss" for operation in self.program.operations)

    def run(self) -> None:
        assert is_within(), "run outside of the order of the streams"
        ReferenceRunner.runs += 1
        with np.errstate(all="ignore"):
            for operation in self.program.operations:
                arrays = [None if name is None else self.arrays[name] for name in operation.arrays]
                getattr(self, operation.name)(*arrays, **operation.options)

    def gather(
        self,
        inputs,
        input_copy,
        targets,
        target_copy,
        weights,
        weight_copy,
        counting,
        counting_copy,
        order,
        place,
        *,
        first,
        rows,
        zero_rows,
    ):
        assert first == 0 or order is not None
        chosen = slice(place[0] + first, place[0] + first + rows)
        chosen = chosen if order is None else order[chosen]
        pairs = ((inputs, input_copy), (targets, target_copy), (weights, weight_copy), (counting, counting_copy))
        for source, copy in pairs:
            if copy is not None:
                copy[...] = source[chosen]
        if zero_rows and input_copy is not None:
            input_copy[weights[chosen] == 0] = 0

    def weigh(self, counting, weights, shares, strength, *, reg):
        total = counting.sum()
        if strength is not None:
            strength[...] = reg / total
        if shares is not None:
            shares[...] = weights / total

    def product(self, left, right, out, *, transposed, spare=None):
        assert not any(np.shares_memory(out, array) for array in (left, right)), "cuBLAS writes while it reads"
        before = 0 if spare is None else out
        out[...] = before + (left.T if transposed == "left" else left) @ (right.T if transposed == "right" else right)

    def bias_activation(self, z, bias, slopes, *, activation):
        value, slope = generic.bias_activation(z, bias, ACTIVATIONS[activation], grad=True)
        z[...] = value
        if slopes is not None:
            slopes[...] = slope

    def activation_backward(self, delta, slopes, *, step):
        delta *= slopes > 0 if step else slopes

    def softmax_loss(self, logits, targets, weights, class_weight, terms, *, weight_of_all, label_smoothing, z_loss):
        weights = np.full(len(logits), weight_of_all, logits.dtype) if weights is None else weights
        spec = LossSpec(class_weight, label_smoothing, z_loss)
        losses, dlogits = generic.softmax_loss_rows(logits, targets, weights, spec, grad=True)
        terms[: len(logits)], logits[...] = losses, dlogits

    def sums_of_rows(self, *matrices_and_sums, added):
        for x, out in zip(matrices_and_sums[::2], matrices_and_sums[1::2], strict=True):
            out[...] = (out if added else 0) + x.sum(axis=0)

    def penalties(self, strength, terms, *weights_and_grads, reg, first):
        reg = reg if strength is None else strength
        size = plan.TOTAL_PART
        for weight, grad in zip(weights_and_grads[::2], weights_and_grads[1::2], strict=True):
            for start in range(0, weight.size, size):
                terms[first] = 0.5 * reg * (weight.ravel()[start : start + size] ** 2).sum()
                first += 1
            grad += (reg * weight).astype(grad.dtype)

    def clip(self, grads, squares, *, max_norm):
        assert squares.size == 3 * plan.total_parts(grads.size)
        norm = np.linalg.norm(grads.astype(np.longdouble))
        if np.isfinite(norm) and norm > max_norm:
            grads *= (max_norm / norm).astype(grads.dtype)

    def record(self, terms, losses, finite, place, *, rows, all_rows):
        losses[place[2]] = terms.sum()
        finite[...] = finite & np.isfinite(losses[place[2]])
        first = place[0] + rows
        place[:] = first if first < all_rows else 0, place[2], place[2] + 1

    def update(self, finite, numbers, place, *arrays, rule, kept):
        if not finite:
            return
        count = {"sgd": 1, "adam": 7, "adamw": 8}.get(rule.name, 2)
        for first in range(0, len(arrays), 2 + kept):
            grad, *changed = arrays[first : first + 2 + kept]
            after = rule(*changed, grad, *numbers[place[1], :count])
            for array, value in zip(changed, after, strict=True):
                array[...] = value
