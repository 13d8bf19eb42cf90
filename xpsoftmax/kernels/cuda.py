"""Row operations on CuPy arrays: launches of kernels/cuda/*.cu. The only file that imports CuPy.

Everything happens on the current stream of the device that holds the logits, and nothing is waited for. `plan.py`
decides what is launched.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import cupy

from xpsoftmax._typing import Array, LossSpec, dtype_name
from xpsoftmax.kernels import generic, plan


def refusal(logits: Array) -> str | None:
    """Why the kernels cannot take these logits, or None."""
    if cupy.cuda.runtime.is_hip:
        return "its kernels are written for NVIDIA GPUs"
    if logits.shape[-1] > plan.MOST_CLASSES:
        return f"its kernels take at most {plan.MOST_CLASSES} classes"
    capability = _capability(logits.device.id)
    if capability < plan.LEAST_CAPABILITY:
        return f"its kernels need compute capability 7.5, and the device has {capability / 10}"
    return None


def softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.softmax`."""
    return _elementwise("softmax", logits, out)


def log_softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.log_softmax`."""
    return _elementwise("log_softmax", logits, out)


def logsumexp_rows(logits: Array) -> Array:
    """See `xpsoftmax.logsumexp`."""
    with logits.device:
        rows = _in_rows(logits)
        sums = cupy.empty(rows.shape[0], rows.dtype)
        if sums.size:
            _run(plan.rows_launch("logsumexp", _matrix(rows), _address(sums), _capability(rows.device.id)))
        return sums


def softmax_loss_rows(
    logits: Array, targets: Array, row_weight: Array | float, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.softmax_loss_rows`.

    Labels may be of any integer dtype here, and a float is the weight of every row.
    """
    losses, result, _ = _softmax_loss(logits, targets, row_weight, spec, grad=grad, out=out, add_up=False)
    return losses, result


def softmax_loss_total(
    logits: Array, targets: Array, row_weight: Array | float, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.softmax_loss_total`; one launch for few rows and labels without options."""
    losses, result, sum_of_losses = _softmax_loss(logits, targets, row_weight, spec, grad=grad, out=out, add_up=True)
    return total(losses) if sum_of_losses is None else sum_of_losses, result


def _softmax_loss(
    logits: Array,
    targets: Array,
    row_weight: Array | float,
    spec: LossSpec,
    *,
    grad: bool,
    out: Array | None,
    add_up: bool,
) -> tuple[Array, Array | None, Array | None]:
    """Losses, gradient and, if they are to be added up and the kernel does it, their total."""
    with logits.device:
        # Copies, where they are needed; they must live until the launch.
        rows, weights = _in_rows(logits), None if type(row_weight) is float else cupy.ascontiguousarray(row_weight)
        targets = _in_rows(targets) if targets.ndim == 2 else cupy.ascontiguousarray(targets)
        class_weight = None if spec.class_weight is None else cupy.ascontiguousarray(spec.class_weight)
        losses = cupy.empty(rows.shape[0], plan.REALS[dtype_name(rows.dtype)])
        result = _result(rows, out) if grad else None
        sum_of_losses = None
        if losses.size:
            counter = 0
            if add_up and losses.size <= plan.MOST_ROWS_IN_ONE_LAUNCH and _has_one_label_a_row(targets, spec):
                counter = _counter()
                sum_of_losses = cupy.empty((), losses.dtype) if counter else None
            weight_of_all = row_weight if weights is None else 0.0
            sums = _address(sum_of_losses), counter
            _run(_loss_launch(rows, targets, weights, weight_of_all, class_weight, spec, losses, result, sums))
        return losses, None if result is None else _delivered(result, out), sum_of_losses


def _has_one_label_a_row(targets: Array, spec: LossSpec) -> bool:
    return targets.ndim == 1 and spec.class_weight is None and spec.z_loss == 0.0 == spec.label_smoothing


def _counter() -> int:
    """Address of a counter that is 0 and that no launch of another stream uses; 0 where there is none.

    A launch that is being captured may be replayed beside others: it gets none.
    """
    stream = cupy.cuda.get_current_stream().ptr
    if cupy.cuda.runtime.streamIsCapturing(stream):
        return 0
    return _address(
        _counter_of(cupy.cuda.runtime.getDevice(), stream, threading.get_ident() if stream == PER_THREAD else 0)
    )


PER_THREAD = 2
"""The handle that stands for another stream in each thread of the host (cudaStreamPerThread)."""


@cache
def _counter_of(device: int, stream: int, thread: int) -> Array:  # noqa: ARG001 - one for each
    return cupy.zeros((), "u4")


def _loss_launch(
    rows: Array,
    targets: Array,
    weights: Array | None,
    weight_of_all: float,
    class_weight: Array | None,
    spec: LossSpec,
    losses: Array,
    result: Array | None,
    sums: tuple[int, int],
) -> plan.Launch:
    matrix, written = _matrix(rows), None if result is None else _matrix(result)
    vectors = _address(weights), _address(losses)
    labels = (_address(targets), dtype_name(targets.dtype))
    smoothing = spec.label_smoothing
    if targets.ndim == 1 and class_weight is None and spec.z_loss == 0.0 and not 0.0 < smoothing < plan.LEAST_SMOOTHING:
        capability = _capability(rows.device.id)
        return plan.loss_launch(
            matrix,
            labels,
            *vectors,
            written,
            capability,
            weight_of_all=weight_of_all,
            label_smoothing=smoothing,
            total=sums[0],
            counter=sums[1],
        )
    return plan.masses_launch(
        matrix,
        _matrix(targets) if targets.ndim == 2 else labels,
        *vectors,
        written,
        class_weights=_address(class_weight),
        label_smoothing=smoothing,
        z_loss=spec.z_loss,
        weight_of_all=weight_of_all,
    )


def are_classes(labels: Array, classes: int) -> bool:
    """Whether all labels, of any integer dtype, are from 0 to classes - 1. Waits for the answer."""
    with labels.device:
        labels = cupy.ascontiguousarray(labels)
        found = cupy.zeros((), "i4")
        if labels.size:
            _run(
                plan.bad_labels_launch(
                    (_address(labels), dtype_name(labels.dtype)), _address(found), labels.size, classes
                )
            )
        return not found.item()


def total(x: Array) -> Array:
    """Sum of all entries of float32 or float64, 0-d."""
    with x.device:
        sums = cupy.ascontiguousarray(x)
        if not sums.size:
            return cupy.zeros((), x.dtype)
        while True:
            parts = plan.total_parts(sums.size)
            x, sums = sums, cupy.empty(parts if parts > 1 else (), x.dtype)
            _run(plan.total_launch(_address(x), _address(sums), x.size, dtype_name(x.dtype)))
            if parts == 1:
                return sums


def bias_activation(
    z: Array, bias: Array, activation: str, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """See `xpsoftmax.kernels.generic.bias_activation`; in place."""
    with z.device:
        value, shift = _in_rows(z), cupy.ascontiguousarray(bias)
        slope = _result(value, out) if grad and activation not in ("identity", "relu") else None
        if value.size:
            written = None if slope is None else _matrix(slope)
            _run(plan.bias_activation_launch(_matrix(value), _address(shift), written, activation))
        if grad and activation == "relu":
            return value, value
        return value, None if slope is None else _delivered(slope, out)


def activation_backward(delta: Array, slope: Array | None, activation: str) -> Array:
    """See `xpsoftmax.kernels.generic.activation_backward`; in place."""
    if slope is None:
        return delta
    with delta.device:
        rows, slopes = _in_rows(delta), _in_rows(slope)
        if rows.size:
            _run(plan.activation_backward_launch(_matrix(rows), _matrix(slopes), step=activation == "relu"))
        return _delivered(rows, delta)


def parameter_update(
    rule: Callable[..., tuple[Array, ...]],
    arrays: Sequence[Array],
    grad: Array,
    numbers: tuple[float, ...],
    *,
    ok: Array | None = None,
    in_place: bool = False,
) -> tuple[Array, ...]:
    """See `xpsoftmax.kernels.generic.parameter_update`."""
    if rule.__name__ not in plan.RULES:
        return generic.parameter_update(rule, arrays, grad, numbers, ok=ok)
    with grad.device:
        after = tuple(cupy.ascontiguousarray(array) if in_place else array.copy(order="C") for array in arrays)
        slopes = cupy.ascontiguousarray(grad)
        if slopes.size:
            addresses = tuple(_address(array) for array in after)
            dtype = dtype_name(slopes.dtype)
            _run(
                plan.update_launch(
                    rule.__name__, addresses, _address(slopes), _address(ok), slopes.size, dtype, numbers
                )
            )
        return after


def _elementwise(operation: str, logits: Array, out: Array | None) -> Array:
    with logits.device:
        rows = _in_rows(logits)
        result = _result(rows, out)
        if rows.size:
            _run(plan.rows_launch(operation, _matrix(rows), _matrix(result), _capability(rows.device.id)))
        return _delivered(result, out)


# --- arrays -----------------------------------------------------------------------------------------------------------


def _lies_in_rows(array: Array) -> bool:
    """Whether neighbouring classes are neighbours in memory: a kernel can read or write it in place."""
    size = array.itemsize
    adjacent = array.shape[1] <= 1 or array.strides[1] == size
    return bool(adjacent and array.strides[0] % size == 0 and _address(array) % size == 0)


def _in_rows(array: Array) -> Array:
    """The array, or a copy where its classes lie apart: one more read and write, less than the generic text takes."""
    return array if _lies_in_rows(array) else cupy.ascontiguousarray(array)


def _result(rows: Array, out: Array | None) -> Array:
    """Where a kernel writes: `out`, or a new array."""
    if out is not None and _lies_in_rows(out):
        return out
    return cupy.empty(rows.shape, rows.dtype if out is None else out.dtype)


def _delivered(result: Array, out: Array | None) -> Array:
    if out is None or out is result:
        return result
    out[...] = result
    return out


def _address(array: Array | None) -> int:
    return 0 if array is None else array.data.ptr


def _matrix(array: Array) -> plan.Matrix:
    rows, classes = array.shape
    return plan.Matrix(_address(array), rows, classes, array.strides[0] // array.itemsize, dtype_name(array.dtype))


# --- launches ---------------------------------------------------------------------------------------------------------


def _run(launch: plan.Launch) -> None:
    """Launch on the current device and stream; raises what CUDA raises, and waits for nothing."""
    device = cupy.cuda.runtime.getDevice()
    function, grid = _function(launch.kernel, launch.defines, device), launch.grid
    if launch.persistent:
        grid = min(grid, launch.cluster * _at_once(launch.kernel, launch.defines, launch.block, launch.cluster, device))
    function((grid,), (launch.block,), launch.arguments)


@cache
def _function(kernel: str, defines: tuple[tuple[str, str], ...], device: int) -> Any:  # noqa: ARG001 - one a device
    """The kernel compiled for the current device; CuPy keeps it on disk, too."""
    module = cupy.RawModule(code=plan.source(kernel), options=plan.options(defines), backend="nvrtc")
    return module.get_function(kernel)


@cache
def _at_once(kernel: str, defines: tuple[tuple[str, str], ...], block: int, cluster: int, device: int) -> int:
    """How many clusters of blocks of a kernel run at once; any number of them, if the driver does not say.

    If more were launched, the last ones would begin when the first ones are done with all of their rows.
    """
    address = _function(kernel, defines, device).kernel.ptr
    if cluster == 1:
        blocks: int = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(address, block, 0)
        return blocks * int(cupy.cuda.Device(device).attributes["MultiProcessorCount"]) or plan.MOST_BLOCKS
    return _clusters_at_once(address, block, cluster) or plan.MOST_BLOCKS


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


def _clusters_at_once(function: int, block: int, cluster: int) -> int:
    """What cuOccupancyMaxActiveClusters says, which CuPy does not offer; 0 where it cannot be called."""
    count = ctypes.c_int(0)
    config = _LaunchConfig(cluster, 1, 1, block, 1, 1, 0, None, None, 0)
    try:
        ask = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuOccupancyMaxActiveClusters
    except (OSError, AttributeError):  # no driver of that name, or an old one
        return 0
    status = ask(ctypes.byref(count), ctypes.c_void_p(function), ctypes.byref(config))
    return count.value if status == 0 else 0


@cache
def _capability(device: int) -> int:
    """Compute capability of a device, as 90 for 9.0."""
    return int(cupy.cuda.Device(device).compute_capability)


__all__ = [
    "activation_backward",
    "are_classes",
    "bias_activation",
    "log_softmax_rows",
    "logsumexp_rows",
    "parameter_update",
    "refusal",
    "softmax_loss_rows",
    "softmax_loss_total",
    "softmax_rows",
    "total",
]
