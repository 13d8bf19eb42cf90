"""The competitors of the kernel benchmark: the package, CuPy, PyTorch, Liger and QuACK on the same inputs."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from _gpu_timing import Call

import xpsoftmax as xs
from xpsoftmax._typing import LossSpec

Array: TypeAlias = Any
OURS = "xpsoftmax"

ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
CHECKED_ROWS = 64


class Case(NamedTuple):
    """What is done, and with what."""

    operation: str
    rows: int
    classes: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.operation} {self.rows}x{self.classes} {self.dtype}"


@dataclass(frozen=True)
class Inputs:
    """Logits in as many copies as it takes to fill the cache several times, targets, and room for each gradient."""

    logits: list[Array]
    labels: Array
    outs: list[Array]
    host_logits: np.ndarray  # the first rows, as they were rounded
    host_labels: np.ndarray
    masses: list[Array] = field(default_factory=list)  # soft targets, one array for each of the logits
    host_masses: np.ndarray | None = None
    _exact: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of the logits."""
        return int(self.logits[0].nbytes)

    def exact(self, operation: str) -> np.ndarray:
        """The first rows of the result, by the package on NumPy in float64; once for all competitors."""
        if operation not in self._exact:
            z = self.host_logits.astype("f8")
            if operation in LOSSES:
                targets = self.host_labels if self.host_masses is None else self.host_masses.astype("f8")
                grad = xs.softmax_loss_and_grad(z, targets, reduction="sum", validate=False, impl="generic")[1]
                self._exact[operation] = grad / len(self.labels)
            else:
                self._exact[operation] = getattr(xs, operation)(z, impl="generic")
        return self._exact[operation]


def drawn(case: Case, cache_bytes: int) -> Inputs:
    """Draw inputs on the GPU."""
    cupy = importlib.import_module("cupy")
    dtype = case.dtype
    kind = importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    random = cupy.random.default_rng(0)
    shape = case.rows, case.classes
    copies = min(24, 1 + 3 * cache_bytes // (case.rows * case.classes * ITEMSIZES[dtype]))
    first = random.standard_normal(shape, dtype="f4").astype(kind)
    logits = [first, *(first.copy() for _ in range(copies - 1))]
    labels = random.integers(0, case.classes, case.rows)
    wide = "f8" if dtype == "float64" else "f4"
    masses, host_masses = [], None
    if case.operation == SOFT:
        shares = random.random(shape, dtype="f4")
        shares /= shares.sum(axis=1, keepdims=True)
        masses = [shares.astype(kind) for _ in range(copies)]
        host_masses = masses[0][:CHECKED_ROWS].astype(wide).get()
    head = first[:CHECKED_ROWS].astype(wide).get()
    outs = [cupy.empty_like(first) for _ in logits]
    return Inputs(logits, labels, outs, head, labels[:CHECKED_ROWS].get(), masses, host_masses)


COPY = """
struct alignas(16) Vector { unsigned words[4]; };
extern "C" __global__ void copy(const Vector* from, Vector* to, long long number) {
    const long long first = (long long)blockIdx.x * 4 * blockDim.x + threadIdx.x;
    Vector v[4];
    for (int i = 0; i < 4; ++i)
        if (first + i * blockDim.x < number) v[i] = from[first + i * blockDim.x];
    for (int i = 0; i < 4; ++i)
        if (first + i * blockDim.x < number)
            asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to + first + i * blockDim.x),
                         "r"(v[i].words[0]), "r"(v[i].words[1]), "r"(v[i].words[2]), "r"(v[i].words[3]));
}
"""


def copied(inputs: Inputs) -> Call:
    """The ceiling: as many bytes read and written, by a kernel."""
    cupy = importlib.import_module("cupy")
    kernel, threads = cupy.RawKernel(COPY, "copy"), 512
    vectors = -(-inputs.bytes // 16)
    if inputs.bytes % 16:
        return copied_by_cuda(inputs)
    grid = (-(-vectors // (4 * threads)),)
    return lambda i: kernel(grid, (threads,), (inputs.logits[i], inputs.outs[i], np.int64(vectors)))


def copied_by_cuda(inputs: Inputs) -> Call:
    """The same by CUDA, which for some sizes is the slower one."""
    return lambda i: inputs.outs[i].data.copy_from_device_async(inputs.logits[i].data, inputs.bytes)


def ours_elementwise(inputs: Inputs, *, function: str) -> Call:
    """Call softmax or log_softmax of the package."""
    return lambda i: getattr(xs, function)(inputs.logits[i], out=inputs.outs[i])


def cupyx_elementwise(inputs: Inputs, *, function: str) -> Call:
    """Call that of cupyx.scipy.special, in float32 for bfloat16, which it does not know."""
    special = getattr(importlib.import_module("cupyx.scipy.special"), function)
    return lambda i: special(inputs.logits[i].astype("f4", copy=False), axis=1).astype(inputs.outs[0].dtype, copy=False)


def torch_elementwise(inputs: Inputs, *, function: str, compiled: bool = False) -> Call:
    """Call PyTorch's on the same memory."""
    torch = importlib.import_module("torch")
    logits = as_torch(torch, inputs)
    of = functools.partial(getattr(torch, function), dim=1)
    if compiled:
        torch._dynamo.reset()
        of = torch.compile(of, dynamic=False)
    return lambda i: of(logits[i])


def as_torch(torch: Any, inputs: Inputs) -> list[Any]:
    """The logits as tensors, on the same memory."""
    return [tensor_of(torch, z) for z in inputs.logits]


def tensor_of(torch: Any, array: Array) -> Any:
    """A tensor on the same memory; not all versions of the libraries exchange bfloat16."""
    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view("i2")).view(torch.bfloat16)
    return torch.from_dlpack(array)


def ours(inputs: Inputs, **options: Any) -> Call:
    """Call the package; the targets are not looked at: that would wait for the GPU."""
    return lambda i: xs.softmax_loss_and_grad(
        inputs.logits[i], targets_of(inputs, i), out=inputs.outs[i], validate=False, **options
    )


def targets_of(inputs: Inputs, i: int) -> Array:
    """Masses, or the labels."""
    return inputs.masses[i] if inputs.masses else inputs.labels


def kernel_alone(inputs: Inputs) -> Call:
    """Call the row operation, with everything checked and prepared."""
    cupy = importlib.import_module("cupy")
    kernels = importlib.import_module("xpsoftmax.kernels.cuda.launcher")
    wide = "f8" if inputs.outs[0].dtype.name == "float64" else "f4"
    weights, spec = cupy.full(len(inputs.labels), 1 / len(inputs.labels), wide), LossSpec()
    return lambda i: kernels.softmax_loss_rows(
        inputs.logits[i], inputs.labels, weights, spec, grad=True, out=inputs.outs[i]
    )


def plain_cupy(inputs: Inputs, *, special: bool = False) -> Call:
    """The usual lines; with the log_softmax of cupyx.scipy.special if asked for."""
    cupy = importlib.import_module("cupy")
    rows = cupy.arange(len(inputs.labels))

    def usual(z: Array) -> Array:
        t = z - z.max(axis=1, keepdims=True)
        return t - cupy.log(cupy.exp(t).sum(axis=1, keepdims=True))

    log_softmax = (
        functools.partial(importlib.import_module("cupyx.scipy.special").log_softmax, axis=1) if special else usual
    )

    def call(i: int) -> Any:
        z = inputs.logits[i]
        log_p = log_softmax(z.astype("f4", copy=False))
        dz = cupy.exp(log_p)
        dz[rows, inputs.labels] -= 1
        dz /= len(rows)
        return -log_p[rows, inputs.labels].mean(), dz.astype(z.dtype, copy=False)

    return call


def in_torch(inputs: Inputs, *, compiled: bool = False, liger: bool = False) -> Call:
    """PyTorch, forward and backward through autograd, on the same memory."""
    torch = importlib.import_module("torch")
    logits = [z.requires_grad_() for z in as_torch(torch, inputs)]
    targets = [tensor_of(torch, q) for q in inputs.masses] or [torch.from_dlpack(inputs.labels)] * len(logits)
    loss_of = torch.nn.functional.cross_entropy
    if liger:
        loss_of = importlib.import_module("liger_kernel.transformers.functional").liger_cross_entropy
    if compiled:
        torch._dynamo.reset()
        loss_of = torch.compile(loss_of, dynamic=False)

    def call(i: int) -> Any:
        z = logits[i]  # Liger writes the gradient over it; it comes last, and its time does not depend on the values
        z.grad = None
        loss = loss_of(z, targets[i])
        loss.backward()
        return loss.detach(), z.grad

    return call


def quack(inputs: Inputs) -> Call:
    """QuACK's fused loss and gradient, of the sum of the losses."""
    torch = importlib.import_module("torch")
    forward = importlib.import_module("quack.cross_entropy").cross_entropy_fwd
    logits, labels = as_torch(torch, inputs), torch.from_dlpack(inputs.labels)
    return lambda i: forward(logits[i], labels, return_dx=True)


def elementwise(function: str) -> dict[str, Callable[[Inputs], Call]]:
    """The competitors of softmax or log_softmax."""
    return {
        "copy": copied,
        OURS: functools.partial(ours_elementwise, function=function),
        "cupyx": functools.partial(cupyx_elementwise, function=function),
        "torch": functools.partial(torch_elementwise, function=function),
        "torch.compile": functools.partial(torch_elementwise, function=function, compiled=True),
    }


LOSS, SOFT, OTHERS = "loss and gradient", "loss and gradient of soft targets", "loss and gradient, other dtypes"
LOSSES = (LOSS, SOFT, OTHERS)
UNITS = {SOFT: 3}
"""How often as many bytes as the logits have must be read or written; where nothing is said, twice."""
OPERATIONS: dict[str, dict[str, Callable[[Inputs], Call]]] = {
    LOSS: {
        "copy": copied,
        OURS: ours,
        "xpsoftmax kernel": kernel_alone,
        "QuACK": quack,
        "torch.compile": functools.partial(in_torch, compiled=True),
        "torch": in_torch,
        "xpsoftmax generic": functools.partial(ours, impl="generic"),
        "CuPy": plain_cupy,
        "cupyx": functools.partial(plain_cupy, special=True),
        "Liger": functools.partial(in_torch, liger=True),  # the last: it writes over the logits
    },
    SOFT: {
        "copy": copied,
        OURS: ours,
        "torch.compile": functools.partial(in_torch, compiled=True),
        "torch": in_torch,
    },
    OTHERS: {"copy": copied, OURS: ours, "torch": in_torch},
    "softmax": elementwise("softmax"),
    "log_softmax": elementwise("log_softmax"),
}
SLOW = ("xpsoftmax generic", "CuPy", "cupyx")
COMPILED = (OURS, "torch.compile", "QuACK", "Liger")
IN_TORCH = ("torch", "torch.compile", "Liger", "QuACK")
SCALES = {"QuACK": "sum"}
"""Whose gradient is that of the sum of the losses, not of their mean."""


def off_by(operation: str, result: Any, inputs: Inputs, of: str | None = None) -> float:
    """Largest difference of the first rows from the package on NumPy in float64, over the largest entry."""
    found = (result[1] if operation in LOSSES else result)[: len(inputs.host_labels)]
    found = found.double().cpu().numpy() if hasattr(found, "cpu") else found.astype("f8").get()
    exact = inputs.exact(operation) * (len(inputs.labels) if of == "sum" else 1)
    return float(np.abs(found - exact).max() / np.abs(exact).max())
