"""Every CUDA kernel and specialisation compiles for every architecture, within its registers and without spills.

With --kernels only (nox -s kernels): NVRTC compiles without a GPU.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from xpsoftmax._activations import ACTIVATIONS
from xpsoftmax.kernels import plan

nvrtc = getattr(pytest.importorskip("cupy", reason="CuPy brings NVRTC").cuda, "nvrtc", None)
if nvrtc is None:
    pytest.skip("a stand-in for CuPy has no NVRTC", allow_module_level=True)

pytestmark = pytest.mark.kernels

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
OPERATIONS = ("softmax_loss", "softmax_loss_smoothed", "softmax", "log_softmax", "logsumexp")
LIMITS = json.loads((Path(__file__).parent / "data" / "cuda_registers.json").read_text("utf-8"))
REGISTERS_OF_A_MULTIPROCESSOR = 65_536
OF_CUPY = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy adds to the options of any kernel (cupy/cuda/compiler.py): subnormal numbers of float32 become 0."""


def compiled(kernel: str, defines: tuple[tuple[str, str], ...], arch: int) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills."""
    program = nvrtc.createProgram(plan.source(kernel), f"{kernel}.cu", (), ())
    try:
        options = (*plan.options(defines), *OF_CUPY, f"--gpu-architecture=sm_{arch}", "--ptxas-options=-v")
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError:
            pytest.fail(f"{kernel} {defines} for sm_{arch}:\n{nvrtc.getProgramLog(program)}")
        log = nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)
    assert "warning" not in log, log
    (registers,) = re.findall(r"Used (\d+) registers", log)
    (spilled,) = re.findall(r"(\d+) bytes spill stores", log)
    return int(registers), int(spilled)


def specialisations(arch: int, dtype: str):
    """Name, kernel, defines and size class of everything that the launcher can ask for on this architecture."""
    kinds = [*plan.HELD, *(plan.CLUSTERED if arch >= plan.CLUSTERS_FROM else ()), plan.STREAMED]
    for kernel in OPERATIONS:
        for kind in kinds:
            yield f"{kernel} {kind.lanes}x{kind.vectors}x{kind.blocks}", kernel, plan.defines(kind, dtype)
    for threads in plan.MASS_THREADS:
        yield f"softmax_loss_of_masses {threads}", "softmax_loss_of_masses", plan.mass_defines(threads, dtype)
    yield "bad_labels", "bad_labels", plan.LABEL_DEFINES
    if dtype in ("float32", "float64"):  # the working precisions
        yield "total", "total", plan.total_defines(dtype)
        for activation in ACTIVATIONS:
            defines = plan.unit_defines(dtype, ("ACTIVATION", activation))
            yield f"bias_activation {activation}", "bias_activation", defines
        for rule in plan.RULES:
            yield f"parameter_update {rule}", "parameter_update", plan.unit_defines(dtype, ("RULE", rule))
        for step in "01":
            yield f"activation_backward {step}", "activation_backward", plan.unit_defines(dtype, ("STEP", step))


@pytest.mark.parametrize("dtype", plan.SCALARS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiles_within_its_registers(arch, dtype, record_property):
    over, count = [], 0
    for name, kernel, defines in specialisations(arch, dtype):
        registers, spilled = compiled(kernel, defines, arch)
        most_registers, most_spilled = LIMITS[name][dtype]
        if registers > most_registers or spilled > most_spilled:
            over.append(
                f"{name}: {registers} registers, {spilled} bytes spilled; {most_registers}, {most_spilled} allowed"
            )
        count += 1
    assert not over, f"sm_{arch}, {dtype}:\n" + "\n".join(over)
    least = 5 * (11 if arch < plan.CLUSTERS_FROM else 15) + 4
    assert count >= least + (9 + len(plan.RULES) if dtype in ("float32", "float64") else 0)
    record_property("compiled", count)


@pytest.mark.parametrize("arch", [80, 90])
def test_a_cluster_is_compiled_for_no_architecture_without_clusters(arch):
    """An old NVRTC gives a newer GPU the newest code that it knows: it must not be wrong without a word."""
    defines = plan.defines(plan.CLUSTERED[0], "float32")
    if arch >= plan.CLUSTERS_FROM:
        compiled("softmax", defines, arch)
    else:
        with pytest.raises(pytest.fail.Exception, match=r"compute capability 9\.0"):
            compiled("softmax", defines, arch)


@pytest.mark.parametrize("name", LIMITS)
def test_recorded_registers_let_as_many_blocks_run_as_planned(name):
    kernel, _, kind = name.partition(" ")
    if kernel == "softmax_loss_of_masses":
        threads, resident = int(kind), 2
    elif kernel in ("bias_activation", "activation_backward", "parameter_update"):
        threads, resident = plan.UNIT_THREADS, 4
    elif kernel in ("total", "bad_labels"):
        threads, resident = plan.TOTAL_THREADS, 2
    else:
        (size_class,) = (k for k in plan.SIZE_CLASSES if f"{k.lanes}x{k.vectors}x{k.blocks}" == kind)
        threads, resident = size_class.threads, size_class.resident
    for registers, _ in LIMITS[name].values():
        assert registers * threads * resident <= REGISTERS_OF_A_MULTIPROCESSOR
