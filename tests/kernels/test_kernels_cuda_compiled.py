"""Every CUDA kernel and specialisation compiles for every architecture, within its registers and without spills.

With --kernels only (nox -s kernels): NVRTC compiles without a GPU.
"""

from __future__ import annotations

import cuda_compiled as gpu
import pytest

from xpsoftmax.kernels.cuda import sizes, table_plan, texts

nvrtc = getattr(pytest.importorskip("cupy", reason="CuPy brings NVRTC").cuda, "nvrtc", None)
if nvrtc is None:
    pytest.skip("a stand-in for CuPy has no NVRTC", allow_module_level=True)

pytestmark = pytest.mark.kernels

counted = pytest.mark.skipif(gpu.nvdisasm() is None, reason="nvdisasm is not installed")


MEASURED = 90
"""The architecture whose size classes were measured: each specialisation is compiled for it."""


def share_of(arch, dtype, *, every):
    """Specialisations that are compiled for an architecture: for the measured one all; the others divide them up."""
    specialisations = list(gpu.specialisations(arch, dtype))
    others = [other for other in gpu.ARCHITECTURES if other != MEASURED]
    if every or arch == MEASURED:
        return specialisations
    return specialisations[others.index(arch) :: len(others)]


@pytest.mark.parametrize("dtype", texts.SCALARS)
@pytest.mark.parametrize("arch", gpu.ARCHITECTURES)
def test_compiles_within_its_registers_and_without_spills(arch, dtype, request, record_property):
    """With --every-kernel everything is compiled for every architecture, which takes half an hour."""
    over, share = [], share_of(arch, dtype, every=request.config.getoption("--every-kernel"))
    for each in share:
        registers, spilled, _ = gpu.compiled(each.kernel, each.defines, arch)
        if registers > each.most_registers or spilled:
            most = each.most_registers
            over.append(f"{each.name} {each.defines}: {registers} registers, {most} allowed; {spilled} bytes spilled")
    assert not over, f"sm_{arch}, {dtype}:\n" + "\n".join(over)
    assert share
    record_property("compiled", len(share))


@pytest.mark.parametrize("dtype", texts.SCALARS)
@pytest.mark.parametrize("arch", gpu.ARCHITECTURES)
def test_every_size_class_and_kernel_is_a_specialisation(arch, dtype):
    held = sum(len(sizes.classes_on(name, dtype, arch)) for name in gpu.OPERATIONS)
    others = 9 + (14 + len(table_plan.RULES) if dtype in ("float32", "float64") else 0)
    assert len(list(gpu.specialisations(arch, dtype))) >= held + others


@pytest.mark.parametrize("arch", [80, 90])
def test_a_cluster_is_compiled_for_no_architecture_without_clusters(arch):
    """An old NVRTC gives a newer GPU the newest code that it knows: it must not be wrong without a word."""
    defines = texts.defines(sizes.SizeClass(512, 4, 2, 1), "float32", "float32", quick=False)
    if arch >= sizes.CLUSTERS_FROM:
        gpu.compiled("softmax", defines, arch)
    else:
        with pytest.raises(gpu.CompileError, match=r"compute capability 9\.0"):
            gpu.compiled("softmax", defines, arch)


@counted
@pytest.mark.parametrize(
    ("kernel", "dtype", "quick", "most"),
    [
        ("softmax_loss", "float32", False, 32),
        ("softmax_loss", "bfloat16", True, 28),
        ("softmax_loss", "float16", True, 28),
        ("softmax_loss", "bfloat16", False, 28),
        ("softmax_loss", "float16", False, 28),
        ("softmax", "float32", False, 32),
        ("softmax", "bfloat16", True, 28),
        ("log_softmax", "float32", False, 32),
        ("log_softmax", "bfloat16", True, 28),
        ("logsumexp", "float32", False, 32),
        ("logsumexp", "bfloat16", True, 28),
        ("softmax_loss_smoothed", "float32", False, 32),
        ("softmax_loss_smoothed", "bfloat16", True, 28),
    ],
)
def test_instructions_an_element(kernel, dtype, quick, most, record_property):
    """Memory is fast enough to bring an element in the time of about so many."""
    lines = gpu.lines_an_element(kernel, dtype, quick=quick)
    record_property("lines", lines)
    assert 4 < lines <= most


@counted
@pytest.mark.parametrize("kernel", ["softmax_loss", "softmax"])
@pytest.mark.parametrize(
    ("dtype", "quick", "most"),
    [
        ("float32", False, 16),
        ("bfloat16", True, 13),
        ("float16", True, 13),
        ("bfloat16", False, 21),
        ("float16", False, 21),
    ],
)
def test_instructions_an_element_without_edges_and_label(kernel, dtype, quick, most, record_property):
    """What every element costs: nothing may be asked at each vector that could be asked once a row."""
    lines = gpu.lines_an_element(kernel, dtype, quick=quick, without=True)
    record_property("lines", lines)
    assert 4 < lines <= most


@counted
def test_an_instruction_more_an_element_is_counted(monkeypatch):
    """The test of the count: a text that asks at every element whether it is the label's."""
    source = texts.source("softmax")
    there = "for (int i = 0; i < PER; ++i) e[i] = relative_exp(e[i]);"
    assert there in source
    monkeypatch.setattr(
        texts,
        "source",
        lambda kernel: source.replace(there, "for (int i = 0; i < PER; ++i) e[i] = relative_exp(e[i]) * e[i];"),
    )
    asked = gpu.lines_an_element("softmax", "float32", quick=False)
    monkeypatch.undo()
    assert asked >= gpu.lines_an_element("softmax", "float32", quick=False) + 0.9
