"""The CUDA kernels compiled by NVRTC, without a GPU: registers, spills, and machine instructions counted.

PYTHONPATH=. python tests/support/cuda_compiled.py        # instructions an element, of each kernel and dtype
PYTHONPATH=. python tests/support/cuda_compiled.py --registers   # registers and spilled bytes of everything on sm_90
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xpsoftmax.kernels.activations import ACTIVATIONS
from xpsoftmax.kernels.cuda import plan, sizes, step_plan, table_plan, texts

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
OPERATIONS = ("softmax_loss", "softmax_loss_smoothed", "softmax", "log_softmax", "logsumexp")
OF_CUPY = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy adds to the options of any kernel (cupy/cuda/compiler.py): subnormal numbers of float32 become 0."""
REGISTERS_OF_A_MULTIPROCESSOR = 65_536
Defines = tuple[tuple[str, str], ...]


class Compiled(NamedTuple):
    registers: int
    spilled: int  # bytes
    cubin: bytes


class Specialisation(NamedTuple):
    """What the launcher can ask for."""

    name: str
    kernel: str
    defines: Defines
    threads: int
    resident: int  # blocks that shall fit on a multiprocessor

    @property
    def most_registers(self) -> int:
        """Registers a thread may have; they are dealt out in eights."""
        return min(REGISTERS_OF_A_MULTIPROCESSOR // (self.threads * self.resident) // 8 * 8, 255)


class CompileError(Exception):
    """What NVRTC says."""


def compiled(kernel: str, defines: Defines, arch: int, text: str | None = None) -> Compiled:
    """Compile a kernel, or another text of it, with CuPy's options."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(texts.source(kernel) if text is None else text, f"{kernel}.cu", (), ())
    try:
        options = (*texts.options(defines), *OF_CUPY, f"--gpu-architecture=sm_{arch}", "--ptxas-options=-v")
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError:
            raise CompileError(f"{kernel} {defines} for sm_{arch}:\n{nvrtc.getProgramLog(program)}") from None
        log, cubin = nvrtc.getProgramLog(program), nvrtc.getCUBIN(program) + b"\0"  # the last byte is dropped there
    finally:
        nvrtc.destroyProgram(program)
    if "warning" in log:
        raise CompileError(log)
    (registers,) = re.findall(r"Used (\d+) registers", log)
    (spilled,) = re.findall(r"(\d+) bytes spill stores", log)
    return Compiled(int(registers), int(spilled), cubin)


def specialisations(arch: int, dtype: str) -> Iterator[Specialisation]:
    """Everything that the launcher can ask for on this architecture."""
    for kernel in OPERATIONS:
        for kind in sizes.classes_on(kernel, dtype, arch):
            kind = sizes.on_capability(kind, arch)
            for result, quick in ways(kernel, kind, dtype):
                defines = texts.defines(kind, dtype, result, quick=quick)
                yield Specialisation(f"{kernel} {name_of(kind)}", kernel, defines, kind.threads, kind.resident)
    for result in dict.fromkeys((dtype, plan.REALS[dtype].__name__)):
        for kind in sizes.mass_classes(dtype):
            name = f"softmax_loss_of_masses {kind.threads}x{kind.held}"
            defines = texts.mass_defines(kind, dtype, result)
            yield Specialisation(name, "softmax_loss_of_masses", defines, kind.threads, kind.resident)
    for target in dict.fromkeys(("int64", dtype, *texts.SCALARS)):
        defines = step_plan.gather_defines(dtype, target)
        yield Specialisation(f"gather {dtype} {target}", "gather", defines, plan.UNIT_THREADS, 4)
    yield Specialisation("bad_labels", "bad_labels", plan.LABEL_DEFINES, 256, 4)
    if dtype in ("float32", "float64"):  # the working precisions
        yield Specialisation("total", "total", plan.total_defines(dtype), plan.TOTAL_THREADS, 2)
        for kernel in ("squares", "shorten"):
            yield Specialisation(kernel, kernel, plan.total_defines(dtype), plan.TOTAL_THREADS, 2)
        yield Specialisation("weigh_rows", "weigh_rows", plan.unit_defines(dtype), plan.UNIT_THREADS, 4)
        yield Specialisation("weigh", "weigh", plan.total_defines(dtype), plan.TOTAL_THREADS, 2)
        yield Specialisation("record", "record", plan.total_defines(dtype), plan.TOTAL_THREADS, 2)
        yield Specialisation("weight_penalty", "weight_penalty", plan.total_defines(dtype), plan.TOTAL_THREADS, 2)
        yield Specialisation("sum_of_rows", "sum_of_rows", table_plan.sum_defines(dtype), table_plan.SUM_THREADS, 2)
        units = [("bias_activation", "ACTIVATION", name) for name in ACTIVATIONS]
        for rule in table_plan.RULES.values():
            defines = table_plan.update_defines(dtype, rule)
            yield Specialisation(f"parameter_update {rule}", "parameter_update", defines, plan.UNIT_THREADS, 4)
        units += [("activation_backward", "STEP", step) for step in "01"]
        for kernel, key, value in units:
            defines = plan.unit_defines(dtype, (key, value))
            yield Specialisation(f"{kernel} {value}", kernel, defines, plan.UNIT_THREADS, 4)


def name_of(kind: sizes.SizeClass) -> str:
    """Threads of a row in a block, vectors of each, blocks."""
    return f"{kind.lanes}x{kind.vectors}x{kind.blocks}"


def ways(kernel: str, kind: sizes.SizeClass, dtype: str) -> list[tuple[str, bool]]:
    """Types of results, and whether their exponentials are quick, that rows of this class can have."""
    per = sizes.VECTOR // sizes.ITEMSIZES[dtype]
    if per < 8:
        return [(dtype, False)]
    most = kind.capacity * per + per - 1
    few = kind.vectors > 0 and kind.capacity * per <= texts.QUICK_FROM  # rows below 256 classes may have it
    narrow = ([(dtype, False)] if few else []) + (
        [(dtype, True)] if most >= texts.QUICK_FROM or not kind.vectors else []
    )
    return narrow if kernel == "logsumexp" else [*narrow, ("float32", False)]


def nvdisasm() -> str | None:
    """Path of the disassembler of the wheel nvidia-cuda-nvdisasm, or None."""
    places = [Path(root, "nvidia", "cu13", "bin", "nvdisasm") for root in sys.path]
    return next((str(place) for place in places if place.exists()), None)


def instructions(kernel: str, defines: Defines, arch: int, text: str | None = None) -> list[str]:
    """The machine code of a kernel, line by line."""
    program = nvdisasm()
    if program is None:
        raise FileNotFoundError("nvdisasm is not installed (pip install nvidia-cuda-nvdisasm)")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled(kernel, defines, arch, text).cubin)
        file.flush()
        done = subprocess.run([program, "-c", file.name], capture_output=True, text=True, check=True)
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?!NOP)(.*);", done.stdout, re.MULTILINE)


PLAIN = (
    ("find(label);", ""),
    ("hot_vector >= 0", "false"),
    ("if (on_boundary)", "if (true)"),
    ("const int j = edge(k); j >= 0", "const int j = -1; j >= 0"),
    ("edges[k] = read_edge(k);", "edges[k] = -Limits<Real>::infinity();"),
)
"""The text of a held row without its edges, without a label, and written on a boundary."""


def plain(kernel: str) -> str:
    """The text with all of that taken out."""
    text = texts.source(kernel)
    for there, instead in PLAIN:
        if there not in text:
            raise ValueError(f"the text has no {there!r}")
        text = text.replace(there, instead)
    return text


def lines_an_element(
    kernel: str, dtype: str, *, quick: bool, arch: int = 90, result: str = "", without: bool = False
) -> float:
    """Instructions of 8 vectors a thread less those of 4, over the elements between; `without` edges and label."""
    text = plain(kernel) if without else None
    few, many = (
        len(instructions(kernel, texts.defines(kind, dtype, result or dtype, quick=quick), arch, text))
        for kind in (sizes.SizeClass(512, 4, resident=2), sizes.SizeClass(512, 8, resident=2))
    )
    return (many - few) / (4 * sizes.VECTOR // sizes.ITEMSIZES[dtype])


def main() -> None:
    if "--registers" in sys.argv:
        for dtype in texts.SCALARS:
            for each in specialisations(90, dtype):
                registers, spilled, _ = compiled(each.kernel, each.defines, 90)
                print(f"{each.name}, {dtype}: {registers} of {each.most_registers} registers, {spilled} bytes spilled")
        return
    print("| instructions an element, sm_90 | all | without edges and label |\n|---|---|---|")
    for kernel in OPERATIONS:
        for dtype, quick in (
            ("float32", False),
            ("bfloat16", True),
            ("bfloat16", False),
            ("float16", True),
            ("float64", False),
        ):
            name = f"{kernel}, {dtype}{', from 256 classes' * quick}"
            both = (lines_an_element(kernel, dtype, quick=quick, without=without) for without in (False, True))
            print(f"| {name} | " + " | ".join(f"{lines:.1f}" for lines in both) + " |", flush=True)


if __name__ == "__main__":
    main()
