"""Time the loss kernel with other size classes than those of sizes.py; for gpu_check.py, and for who tunes them.

    python scripts/_gpu_variants.py PATH SECONDS

For each number of classes, the class of sizes.py and others that hold the row without spilled registers
(`python scripts/_gpu_variants.py --compile` counts them on any machine with NVRTC). They are compiled side by side.
A time is that of a CUDA graph of many launches on different inputs, its share that of a copy of as many bytes, timed
beside it. Each line of the table says what to take. Writes JSON.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not

import numpy as np
from _gpu_compile import compile_kernel, processes, side_by_side
from _gpu_kernels import ALLOWED
from _gpu_process import write
from _gpu_report import variant_line
from _gpu_rivals import LOSS, Case, Inputs, copied, copied_by_cuda, drawn, off_by
from _gpu_timing import Call, give_back, milliseconds
from _report import described

from xpsoftmax.kernels.cuda import plan, sizes
from xpsoftmax.kernels.cuda.sizes import SizeClass

ROWS = {1000: 4096}
"""Rows where they are not 8192: the shapes of the kernel benchmark."""
VARIANTS: dict[tuple[str, int], tuple[SizeClass, ...]] = {
    ("float32", 1000): (SizeClass(32, 8, resident=6), SizeClass(128, 2, resident=10)),
    ("float32", 4096): (SizeClass(256, 4, resident=5), SizeClass(128, 8, resident=8), SizeClass(512, 2, resident=3)),
    ("float32", 8192): (SizeClass(512, 4, resident=2), SizeClass(256, 8, resident=4), SizeClass(1024, 2, resident=1)),
    ("float32", 16384): (SizeClass(512, 8, resident=1), SizeClass(1024, 4, resident=1)),
    ("float32", 32000): (
        SizeClass(512, 16, resident=1),
        SizeClass(512, 8, 2, 2),
        SizeClass(480, 9, 2, 1, slots=9, group=3),
    ),
    ("float32", 50257): (
        SizeClass(512, 25, resident=1),
        SizeClass(512, 16, 2, 1),
        SizeClass(1024, 8, 2, 1),
        SizeClass(480, 8, 4, 1, slots=8, group=2),
    ),
    ("float32", 128256): (SizeClass(1024, 8, 4, 1), SizeClass(512, 16, 4, 1)),
    ("bfloat16", 1000): (SizeClass(32, 4, resident=10), SizeClass(16, 8, resident=8), SizeClass(128, 1, resident=10)),
    ("bfloat16", 4096): (SizeClass(128, 4, resident=8), SizeClass(256, 2, resident=5)),
    ("bfloat16", 8192): (SizeClass(128, 8, resident=8), SizeClass(512, 2, resident=3)),
    ("bfloat16", 16384): (SizeClass(512, 4, resident=2), SizeClass(256, 8, resident=3)),
    ("bfloat16", 32000): (SizeClass(512, 8, resident=1), SizeClass(1024, 4, resident=1)),
    ("bfloat16", 50257): (SizeClass(512, 16, resident=1), SizeClass(1024, 8, resident=1), SizeClass(512, 7, 2, 2)),
    ("bfloat16", 128256): (SizeClass(512, 16, 2, 1), SizeClass(1024, 4, 4, 1), SizeClass(512, 25, 2, 1)),
}
"""None of them spills registers on 9.0."""


def named(kind: SizeClass) -> str:
    """Threads x vectors x blocks, how many are resident, and the ring if there is one."""
    ring = f", ring {kind.slots}x{kind.group}" if kind.slots else ""
    return f"{kind.lanes}x{kind.vectors}x{kind.blocks} r{kind.resident}{ring}"


def candidates(dtype: str, classes: int, capability: int) -> list[SizeClass]:
    """The class that rows have now, and the variants that this device can run."""
    now = sizes.on_capability(sizes.size_class("softmax_loss", classes, dtype, capability), capability)
    others = [kind for kind in VARIANTS[dtype, classes] if sizes.exists_on(kind, capability)]
    return list(dict.fromkeys((now, *others)))


def specialised(dtype: str, classes: int, kind: SizeClass, capability: int = 90) -> tuple[str, Any]:
    """Kernel and definitions of a variant, as a launch with it has them."""
    logits = plan.Matrix(0, 1, classes, classes, dtype)
    launch = plan.loss_launch(logits, (0, "int64"), 0, 0, logits, capability, kind)
    return launch.kernel, launch.defines


def launched(inputs: Inputs, kind: SizeClass, capability: int) -> Call:
    """Launch the loss kernel with this class."""
    cupy = importlib.import_module("cupy")
    arrays, launches = (importlib.import_module(f"xpsoftmax.kernels.cuda.{name}") for name in ("arrays", "launches"))
    rows, labels = len(inputs.labels), inputs.labels
    losses = cupy.empty(rows, plan.REALS[inputs.logits[0].dtype.name])

    def launch_of(z: Any, out: Any) -> plan.Launch:
        named_labels = arrays.address_of(labels), labels.dtype.name
        addresses = 0, arrays.address_of(losses), arrays.matrix_of(out)
        return plan.loss_launch(
            arrays.matrix_of(z), named_labels, *addresses, capability, kind, weight_of_all=1.0 / rows
        )

    made = [launch_of(z, out) for z, out in zip(inputs.logits, inputs.outs, strict=True)]

    def call(i: int) -> Any:
        launches.run(made[i])
        return losses, inputs.outs[i]

    return call


def timed(dtype: str, classes: int, cache_bytes: int, capability: int) -> dict[str, Any]:
    """Time the copy and every candidate."""
    case = Case(LOSS, ROWS.get(classes, 8192), classes, dtype)
    inputs = drawn(case, cache_bytes)
    copies = [copied(inputs), copied_by_cuda(inputs)]
    ceiling = min(statistics.median(milliseconds(copy, len(inputs.logits))[0]) for copy in copies)
    found: dict[str, Any] = {"classes": classes, "dtype": dtype, "copy_ms": ceiling, "shares": {}, "failed": {}}
    for kind in candidates(dtype, classes, capability):
        try:
            for out in inputs.outs[:1]:
                out.fill(np.nan)  # what is not written is seen
            call = launched(inputs, kind, capability)
            error = off_by(LOSS, call(0), inputs)
            if not error <= ALLOWED[dtype]:
                found["failed"][named(kind)] = f"off by {error:.2g}"
                continue
            found["shares"][named(kind)] = ceiling / statistics.median(milliseconds(call, len(inputs.logits))[0])
        except Exception as error:  # noqa: BLE001 - a variant may not run at all
            found["failed"][named(kind)] = described(error)
    del inputs
    give_back()
    return found


def count_registers() -> None:
    """Print registers and spills of every variant, compiled for 9.0 without a GPU."""
    compiled = importlib.import_module("cuda_compiled").compiled
    for dtype, classes in VARIANTS:
        for kind in candidates(dtype, classes, 90):
            registers, spilled, _ = compiled(*specialised(dtype, classes, kind), 90)
            print(f"{dtype} {classes} {named(kind)}: {registers} registers, {spilled} bytes spilled", flush=True)


def main(argv: list[str]) -> int:
    """Compile, time, print and write; 1 if there were problems."""
    if argv == ["--compile"]:
        count_registers()
        return 0
    path, seconds = Path(argv[0]), float(argv[1])
    deadline = time.monotonic() + seconds
    cupy = importlib.import_module("cupy")
    device = cupy.cuda.Device()
    capability = int(device.compute_capability)
    cache = int(cupy.cuda.runtime.getDeviceProperties(device.id)["l2CacheSize"])
    wanted = [(d, c, kind) for d, c in VARIANTS for kind in candidates(d, c, capability)]
    jobs = [(compile_kernel, specialised(*each, capability)) for each in wanted]
    _, problems = side_by_side(jobs, processes(64), seconds / 2)
    content: dict[str, Any] = {"variants": [], "problems": problems}
    for dtype, classes in VARIANTS:
        if time.monotonic() > deadline:
            problems.append(f"no time left for {dtype} {classes}")
            continue
        content["variants"].append(timed(dtype, classes, cache, capability))
        print(variant_line(content["variants"][-1]), flush=True)
        write(path, content)
    write(path, content)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
