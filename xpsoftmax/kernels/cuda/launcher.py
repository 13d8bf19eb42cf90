"""Row operations on CuPy arrays: launches of the texts beside it. The only file that imports CuPy.

Everything happens on the current stream of the device that holds the logits, and nothing is waited for. `plan.py`
decides what is launched.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import cupy
import numpy as np

from xpsoftmax._typing import Array, LossSpec, dtype_name
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.cuda import plan

_uint64 = np.uint64
_NOWHERE = _uint64(0)
"""The address that stands for no array."""


def refusal(logits: Array) -> str | None:
    """Why the kernels cannot take these logits, or None."""
    if cupy.cuda.runtime.is_hip:
        return "its kernels are written for NVIDIA GPUs"
    if logits.shape[-1] > plan.MOST_CLASSES:
        return f"its kernels take at most {plan.MOST_CLASSES} classes"
    capability = _capability(logits.data.device_id)
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
    if type(row_weight) is float and targets.ndim == 1 and spec.class_weight is None and spec.z_loss == 0.0:
        done = _plain_loss(logits, targets, row_weight, spec.label_smoothing, grad=grad, out=out, add_up=add_up)
        if done is not None:
            return done
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
                counter = int(_counter(cupy.cuda.runtime.getDevice()))
                sum_of_losses = cupy.empty((), losses.dtype) if counter else None
            weight_of_all = row_weight if weights is None else 0.0
            sums = _address(sum_of_losses), counter
            _run(_loss_launch(rows, targets, weights, weight_of_all, class_weight, spec, losses, result, sums))
        return losses, None if result is None else _delivered(result, out), sum_of_losses


def _plain_loss(
    logits: Array,
    labels: Array,
    weight: float,
    smoothing: float,
    *,
    grad: bool,
    out: Array | None,
    add_up: bool,
) -> tuple[Array, Array | None, Array | None] | None:
    """The same for labels and a weight that all rows have; None where an array has to be copied first."""
    if _is_elsewhere(logits):
        with logits.device:
            return _plain_loss(logits, labels, weight, smoothing, grad=grad, out=out, add_up=add_up)
    device, shape, dtype = logits.data.device_id, logits.shape, logits.dtype
    result = None if not grad else cupy.empty(shape, dtype) if out is None else out
    adds_up = add_up and smoothing == 0.0 and shape[0] <= plan.MOST_ROWS_IN_ONE_LAUNCH
    counter = _counter(device) if adds_up else _NOWHERE
    ready = _ready_loss(
        shape,
        logits.strides,
        dtype,
        labels.strides,
        labels.dtype,
        None if result is None else result.strides,
        None if result is None else result.dtype,
        weight,
        smoothing,
        bool(counter),
        device,
    )
    first, second, third = _address(logits), _address(labels), _address(result)
    if ready is None or (first | second | third) % ready.alignment:
        return None
    losses = cupy.empty(shape[0], ready.real)
    total = cupy.empty((), ready.real) if counter else None
    sums = (_uint64(_address(total)), counter) if smoothing == 0.0 else ()
    ready.run(_uint64(first), _uint64(second), _NOWHERE, _uint64(_address(losses)), _uint64(third), *sums)
    return losses, result, total


@lru_cache(maxsize=256)
def _ready_loss(
    shape: tuple[int, int],
    strides: tuple[int, int],
    dtype: Any,
    label_strides: tuple[int],
    label_dtype: Any,
    result_strides: tuple[int, int] | None,
    result_dtype: Any,
    weight: float,
    smoothing: float,
    adds_up: bool,  # noqa: FBT001 - part of a key
    device: int,
) -> _Ready | None:
    """A loss of labels without its addresses; None where an array does not lie in rows, or nothing is launched."""
    logits = _laid_out(shape, strides, dtype)
    result = None if result_strides is None else _laid_out(shape, result_strides, result_dtype)
    if logits is None or (result is None) != (result_strides is None) or 0.0 < smoothing < plan.LEAST_SMOOTHING:
        return None
    if logits.rows == 0 or (logits.rows > 1 and label_strides[0] != label_dtype.itemsize):
        return None
    launch = plan.loss_launch(
        logits,
        (0, dtype_name(label_dtype)),
        0,
        0,
        result,
        _capability(device),
        weight_of_all=weight,
        label_smoothing=smoothing,
        counter=int(adds_up),
    )
    sizes = (dtype.itemsize, label_dtype.itemsize, 0 if result is None else result_dtype.itemsize)
    return _made_ready(launch, device, max(sizes), plan.REALS[logits.dtype])


def _has_one_label_a_row(targets: Array, spec: LossSpec) -> bool:
    return targets.ndim == 1 and spec.class_weight is None and spec.z_loss == 0.0 == spec.label_smoothing


def _counter(device: int) -> np.uint64:
    """Address of a counter that is 0 and that no launch of another stream uses; 0 where there is none.

    A launch that is being captured may be replayed beside others: it gets none.
    """
    stream = cupy.cuda.get_current_stream().ptr
    if cupy.cuda.runtime.streamIsCapturing(stream):
        return _NOWHERE
    return _counter_of(device, stream, threading.get_ident() if stream == PER_THREAD else 0)


PER_THREAD = 2
"""The handle that stands for another stream in each thread of the host (cudaStreamPerThread)."""


@cache
def _counter_of(device: int, stream: int, thread: int) -> np.uint64:  # noqa: ARG001 - one for each
    _COUNTERS.append(cupy.zeros((), "u4"))
    return _uint64(_address(_COUNTERS[-1]))


_COUNTERS: list[Array] = []
"""All counters: their memory must not be given to others."""


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
    done = _plain_rows(operation, logits, out)
    if done is not None:
        return done
    with logits.device:
        rows = _in_rows(logits)
        result = _result(rows, out)
        if rows.size:
            _run(plan.rows_launch(operation, _matrix(rows), _matrix(result), _capability(rows.device.id)))
        return _delivered(result, out)


def _plain_rows(operation: str, logits: Array, out: Array | None) -> Array | None:
    """An operation of rows that no array has to be copied for; None for others."""
    if _is_elsewhere(logits):
        with logits.device:
            return _plain_rows(operation, logits, out)
    result = cupy.empty(logits.shape, logits.dtype) if out is None else out
    ready = _ready_rows(
        operation,
        logits.shape,
        logits.strides,
        logits.dtype,
        result.strides,
        result.dtype,
        logits.data.device_id,
    )
    first, second = _address(logits), _address(result)
    if ready is None or (first | second) % ready.alignment:
        return None
    ready.run(_uint64(first), _uint64(second))
    return result


@lru_cache(maxsize=256)
def _ready_rows(
    operation: str,
    shape: tuple[int, int],
    strides: tuple[int, int],
    dtype: Any,
    result_strides: tuple[int, int],
    result_dtype: Any,
    device: int,
) -> _Ready | None:
    """An operation of rows without its addresses; None where an array does not lie in rows, or nothing is launched."""
    logits, result = _laid_out(shape, strides, dtype), _laid_out(shape, result_strides, result_dtype)
    if logits is None or result is None or logits.rows == 0:
        return None
    launch = plan.rows_launch(operation, logits, result, _capability(device))
    return _made_ready(launch, device, max(dtype.itemsize, result_dtype.itemsize), None)


# --- arrays -----------------------------------------------------------------------------------------------------------


def _is_elsewhere(array: Array) -> bool:
    """Whether another device than that of an array is current: to make it current takes a microsecond."""
    return bool(array.data.device_id != cupy.cuda.runtime.getDevice())


def _laid_out(shape: tuple[int, int], strides: tuple[int, int], dtype: Any) -> plan.Matrix | None:
    """Rows whose neighbouring classes are neighbours in memory, at the address 0; None for any others."""
    if len(shape) != 2 or not (shape[1] <= 1 or strides[1] == dtype.itemsize) or strides[0] % dtype.itemsize:
        return None
    return plan.Matrix(0, *shape, strides[0] // dtype.itemsize, dtype_name(dtype))


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
    function = _function(launch.kernel, launch.defines, launch.shared_bytes, device)
    function((_grid(launch, device),), (launch.block,), launch.arguments, shared_mem=launch.shared_bytes)


def _grid(launch: plan.Launch, device: int) -> int:
    if not launch.persistent:
        return launch.grid
    at_once = _at_once(launch.kernel, launch.defines, launch.block, launch.cluster, launch.shared_bytes, device)
    return min(launch.grid, launch.cluster * at_once)


class _Ready(NamedTuple):
    """A launch that only lacks its addresses. It is kept for the next call with arrays of the same layout."""

    function: Any
    grid: tuple[int]
    block: tuple[int]
    shared_bytes: int
    others: tuple[Any, ...]  # the arguments that are no addresses
    in_order: Callable[[tuple[Any, ...]], tuple[Any, ...]]  # puts addresses and others, one after the other, in order
    alignment: int  # of all addresses that are passed, in bytes
    real: Any  # dtype of the losses

    def run(self, *addresses: np.uint64) -> None:
        """Launch on the current device and stream with these addresses, in the order of the arguments."""
        arguments = self.in_order(addresses + self.others)
        self.function(self.grid, self.block, arguments, shared_mem=self.shared_bytes)


def _made_ready(launch: plan.Launch, device: int, alignment: int, real: Any) -> _Ready:
    arguments = launch.arguments
    places = [i for i, argument in enumerate(arguments) if type(argument) is np.uint64]
    others = [i for i in range(len(arguments)) if i not in places]
    positions = {place: position for position, place in enumerate((*places, *others))}
    return _Ready(
        _function(launch.kernel, launch.defines, launch.shared_bytes, device),
        (_grid(launch, device),),
        (launch.block,),
        launch.shared_bytes,
        tuple(arguments[i] for i in others),
        itemgetter(*(positions[i] for i in range(len(arguments)))),
        alignment,
        real,
    )


MOST_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory that a kernel may have without asking for more."""


@cache
def _function(
    kernel: str,
    defines: tuple[tuple[str, str], ...],
    shared_bytes: int,
    device: int,  # noqa: ARG001 - one for each
) -> Any:
    """The kernel compiled for the current device; CuPy keeps it on disk, too."""
    module = cupy.RawModule(code=plan.source(kernel), options=plan.options(defines), backend="nvrtc")
    function = module.get_function(kernel)
    if shared_bytes > MOST_SHARED_BYTES:
        function.max_dynamic_shared_size_bytes = shared_bytes
    return function


@cache
def _at_once(
    kernel: str, defines: tuple[tuple[str, str], ...], block: int, cluster: int, shared_bytes: int, device: int
) -> int:
    """How many clusters of blocks of a kernel run at once; any number of them, if the driver does not say.

    If more were launched, the last ones would begin when the first ones are done with all of their rows.
    """
    address = _function(kernel, defines, shared_bytes, device).kernel.ptr
    if cluster == 1:
        blocks: int = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(address, block, shared_bytes)
        return blocks * int(cupy.cuda.Device(device).attributes["MultiProcessorCount"]) or plan.MOST_BLOCKS
    return _clusters_at_once(address, block, cluster, shared_bytes) or plan.MOST_BLOCKS


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


def _clusters_at_once(function: int, block: int, cluster: int, shared_bytes: int) -> int:
    """What cuOccupancyMaxActiveClusters says, which CuPy does not offer; 0 where it cannot be called."""
    count = ctypes.c_int(0)
    config = _LaunchConfig(cluster, 1, 1, block, 1, 1, shared_bytes, None, None, 0)
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
