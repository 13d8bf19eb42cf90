"""Compile what the other parts of gpu_check.py need, by a process for each core, before anything is timed.

    python scripts/_gpu_compile.py PATH ours
    python scripts/_gpu_compile.py PATH others SECONDS

"ours" are the package's CUDA kernels: every specialisation that the launcher can ask for on this GPU, into CuPy's
cache on the disk. "others" are the competitors that compile when they are called (PyTorch, Liger, QuACK), into the
caches of Inductor and Triton: their cases are called once. What fails there is told by the part that calls it again.
Writes JSON.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures import TimeoutError as OutOfTime
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, installed or not
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from _gpu_process import write
from _report import described

DTYPES = ("float32", "bfloat16", "float16", "float64")
CALLERS = 12
"""Processes that call competitors at the same time; the largest case takes 17 GB of the GPU, most take less than 4."""
Job = tuple[Callable[..., Any], tuple[Any, ...]]


def kernels(capability: int) -> list[Job]:
    """The package's kernels for a device of this compute capability, those first that take longest."""
    specialisations = importlib.import_module("cuda_compiled").specialisations
    wanted = {(each.kernel, each.defines): each for dtype in DTYPES for each in specialisations(capability, dtype)}
    by_size = sorted(wanted.values(), key=lambda each: -int(dict(each.defines).get("VECTORS", "0")))
    return [(compile_kernel, (each.kernel, each.defines)) for each in by_size]


def compile_kernel(kernel: str, defines: tuple[tuple[str, str], ...]) -> None:
    """Compile as the launcher does; CuPy keeps it on the disk."""
    texts = importlib.import_module("xpsoftmax.kernels.cuda.texts")
    cupy = importlib.import_module("cupy")
    module = cupy.RawModule(code=texts.source(kernel), options=texts.options(defines), backend="nvrtc")
    module.get_function(kernel)


def calls() -> list[Job]:
    """The cases of the parts that have competitors."""
    kernels, steps = importlib.import_module("_gpu_kernels"), importlib.import_module("_gpu_steps")
    classes, tensors = importlib.import_module("_gpu_classes"), importlib.import_module("_gpu_torch")
    return [
        *((steps.compile_case, (case,)) for case in steps.CASES),
        *((kernels.call_once, (case,)) for case in kernels.wanted()),
        *((classes.compile_case, (case,)) for case in classes.CASES),
        *((tensors.compile_case, (case,)) for case in tensors.CASES),
    ]


def side_by_side(jobs: Iterable[Job], pool: Executor, seconds: float) -> tuple[int, list[str]]:
    """Run the jobs in a pool for so many seconds; return how many have ended, and what went wrong."""
    problems, done = [], 0
    futures = {pool.submit(function, *arguments): arguments for function, arguments in jobs}
    try:
        for future in as_completed(futures, timeout=seconds):
            done += 1
            if (error := future.exception()) is not None:
                problems.append(f"{' '.join(map(str, futures[future]))}: {described(error)}")
    except OutOfTime:
        problems.append(f"{len(futures) - done} of {len(futures)} were not done in {seconds:.0f} s")
    pool.shutdown(wait=False, cancel_futures=True)
    return done, problems


def processes(most: int) -> Executor:
    """Processes that compile, each with one thread for what PyTorch compiles."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return ProcessPoolExecutor(min(most, os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn"))


def main(argv: list[str]) -> int:
    """Compile; 1 if a kernel of the package could not be compiled."""
    path, what = Path(argv[0]), argv[1]
    start = time.monotonic()
    if what == "ours":
        device = importlib.import_module("cupy").cuda.Device()
        jobs, pool = kernels(int(device.compute_capability)), processes(64)
    else:
        jobs, pool = calls(), processes(CALLERS)
    done, problems = side_by_side(jobs, pool, float(argv[2]) if len(argv) > 2 else 300.0)
    write(path, {"compiled": done, "seconds_of_it": time.monotonic() - start, "not_compiled": problems})
    print(f"{done} of {len(jobs)} compiled", *problems, sep="\n", flush=True)
    for worker in multiprocessing.active_children():  # those that are still at work
        with suppress(OSError):
            worker.kill()
    return 1 if problems and what == "ours" else 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # the pool would wait for jobs that have not ended
