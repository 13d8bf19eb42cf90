"""Other parts of scripts/gpu_check.py: many classes, tensors, the classifier and variants; PyTorch on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import _gpu_classes
import _gpu_compile
import _gpu_estimator
import _gpu_rivals
import _gpu_torch
import _gpu_variants
import numpy as np
import pytest
import torch_without_cuda
from backends import numpy_as_cupy
from paths import ROOT

from xpsoftmax.kernels.cuda import plan, sizes

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
xpsoftmax_torch = pytest.importorskip("xpsoftmax.torch")  # imported while CuPy is what it is
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of PyTorch's own compiler


@pytest.fixture
def done(monkeypatch):
    """What is done with torch.cuda; CuPy is NumPy, a compiled function itself, and each job is run in this process."""
    cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            deviceSynchronize=lambda: None, getDeviceProperties=lambda number: {"l2CacheSize": 100}
        ),
        Device=lambda: SimpleNamespace(id=0, compute_capability="90"),
    )
    pool = SimpleNamespace(free_all_blocks=lambda: None, total_bytes=lambda: 2**20)
    monkeypatch.setitem(sys.modules, "cupy", numpy_as_cupy(cuda=cuda, get_default_memory_pool=lambda: pool))
    for module in (_gpu_classes, _gpu_torch):
        monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)

    def in_this_process(function, *arguments, seconds):
        try:
            return list(function(*arguments)), None
        except Exception as error:  # noqa: BLE001
            return [], f"{type(error).__name__}: {error}"

    monkeypatch.setattr("_gpu_process.results_of", in_this_process)
    functional = torch.nn.functional
    liger = SimpleNamespace(
        liger_cross_entropy=functional.cross_entropy,
        liger_fused_linear_cross_entropy=lambda x, weight, y, bias: functional.cross_entropy(x @ weight.T + bias, y),
    )
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", liger)
    monkeypatch.setitem(sys.modules, "quack.cross_entropy", SimpleNamespace(cross_entropy=functional.cross_entropy))
    return torch_without_cuda.install(monkeypatch, torch)


# --- many classes -----------------------------------------------------------------------------------------------------

LAYER = _gpu_classes.Case(70, 6, 40, "float32")


def test_many_classes_are_measured_for_everyone(done, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(_gpu_classes, "CASES", (LAYER,))
    path = tmp_path / "classes.json"
    assert _gpu_classes.main([str(path), "100"]) == 0
    content = json.loads(path.read_text())
    found = {entry["name"]: entry["results"] for entry in content["classes"]}
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        assert found.pop("linear_cross_entropy") == []
    assert list(found) == [name for name in _gpu_classes.COMPETITORS if name in found]
    for (result,) in found.values():
        assert result["error"] < 1e-6
        assert result["peak_mib"] == 3.0  # PyTorch's 4 less the 1 before; CuPy's pool did not grow
        assert result["ms"] == sorted(result["ms"])
    assert content["problems"] == []
    assert "70x6x40 float32, xpsoftmax.torch, " in capsys.readouterr().out


def test_only_the_package_has_problems_with_many_classes(done, monkeypatch, tmp_path):
    right = _gpu_classes.torch_eager

    def wrong(layer):
        step = right(layer)
        return lambda: [2.0 * array for array in step()]

    monkeypatch.setattr(_gpu_classes, "CASES", (LAYER,))
    monkeypatch.setattr(_gpu_classes, "COMPETITORS", {"xpsoftmax.torch": wrong, "Liger": wrong, "torch": right})
    path = tmp_path / "classes.json"
    assert _gpu_classes.main([str(path), "100"]) == 1
    content = json.loads(path.read_text())
    assert content["problems"] == ["70x6x40 float32, xpsoftmax.torch: ValueError: is off by 1 in norm: not timed"]
    assert content["not_timed"] == ["70x6x40 float32, Liger: ValueError: is off by 1 in norm: not timed"]


def test_half_the_precision_passes_and_what_is_not_a_number_does_not(done):
    layer = _gpu_classes.Layer(LAYER._replace(dtype="bfloat16"))
    assert 1e-5 < layer.off_by(_gpu_classes.ours(layer)()) < _gpu_classes.ALLOWED["bfloat16"]
    assert layer.off_by([None, torch.full_like(layer.X, float("nan")), None, None]) == float("inf")


def test_arrays_and_tensors_share_their_memory(done, monkeypatch):
    cupy = SimpleNamespace(from_dlpack=np.from_dlpack)
    tensor = torch.ones(3)
    array = _gpu_classes.as_array(cupy, tensor)
    tensor[0] = 5.0
    assert array[0] == 5.0
    half = _gpu_classes.as_array(cupy, torch.full((2,), 1.5, dtype=torch.bfloat16))
    assert half.dtype.name == "bfloat16"
    assert half.astype("f4").tolist() == [1.5, 1.5]
    assert _gpu_classes.as_tensor(torch, half).tolist() == [1.5, 1.5]


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(done, monkeypatch):
    def milliseconds(call, copies, *, of_torch):
        assert of_torch
        for i in range(copies):
            call(i)
        return [1.0, 2.0, 3.0], "as told"

    monkeypatch.setattr(_gpu_torch, "CACHE", 100)
    monkeypatch.setattr(_gpu_torch, "WORK", 8)
    monkeypatch.setattr(_gpu_torch, "events_of", lambda call: (call(), {"kernels": 2})[1])
    monkeypatch.setattr(_gpu_torch, "milliseconds", milliseconds)
    monkeypatch.setattr(_gpu_torch, "CASES", (_gpu_torch.Case(64, 10, "float32"), _gpu_torch.Case(70, 30, "bfloat16")))
    monkeypatch.setattr(_gpu_torch, "COMPILED_AT", _gpu_torch.CASES[:1])
    return done


def test_tensors_are_checked_and_timed(few, tmp_path, capsys):
    path = tmp_path / "torch.json"
    assert _gpu_torch.main([str(path), "100"]) == 0
    content = json.loads(path.read_text())
    assert content["problems"] == []
    for entry in content["tensors"]:
        names = [result["name"] for result in entry["results"] if "name" in result]
        compiled = entry["case"] == "64x10 float32"
        assert names == [name for name in _gpu_torch.COMPETITORS if compiled or "compile" not in name]
        checks = [result for result in entry["results"] if "check" in result]
        assert len(checks) == 6
        assert not any(result["wrong"] for result in checks)
        assert all(result["ms"][1] == 2.0 and result["host_microseconds"] > 0 for result in entry["results"][6:])
    waiting = few.index("mode error")
    assert few[waiting : waiting + 2] == ["mode error", "mode default"]
    assert "wait for other" in few


def test_a_loss_that_is_wrong_is_a_problem(few, monkeypatch, tmp_path):
    right = xpsoftmax_torch.cross_entropy
    monkeypatch.setattr(xpsoftmax_torch, "cross_entropy", lambda z, y, **how: 1.1 * right(z, y, **how))
    path = tmp_path / "torch.json"
    assert _gpu_torch.main([str(path), "100"]) == 1
    problems = json.loads(path.read_text())["problems"]
    assert "64x10 float32: gradient: off by 0.1" in problems
    assert "64x10 float32: xpsoftmax: ValueError: is off by 0.1: not timed" in problems
    assert len(problems) == 12


def test_a_wait_is_a_problem(few, monkeypatch):
    def waits(z, y, **how):
        if few[-1:] == ["mode error"]:
            raise RuntimeError("called a synchronizing CUDA operation")
        return torch.nn.functional.cross_entropy(z, y, **how)

    monkeypatch.setattr(xpsoftmax_torch, "cross_entropy", waits)
    monkeypatch.setattr(_gpu_torch, "events_of", lambda call: {"kernels": 2, "waits": 1})
    found = list(_gpu_torch.measured(_gpu_torch.CASES[0]))
    problems = list(_gpu_torch.problems_of("64x10", found))
    assert problems == [
        "64x10: no wait: RuntimeError: called a synchronizing CUDA operation",
        "64x10: waits: off by 1",
    ]
    assert "mode default" in few


def test_what_compiles_is_called_once(few, monkeypatch):
    """Also after one that fails."""
    called = []

    def competitor(name):
        def call(*which):
            called.append(name)
            if name in ("Liger", "torch.compile"):
                raise RuntimeError("does not compile")

        return lambda inputs: call

    for module in (_gpu_classes, _gpu_torch):
        monkeypatch.setattr(module, "COMPETITORS", {name: competitor(name) for name in module.COMPETITORS})
    wanted = {
        (_gpu_classes, LAYER): ["Liger", "torch.compile"],
        (_gpu_torch, _gpu_torch.CASES[0]): ["torch.compile", "xpsoftmax compiled", "QuACK", "Liger"],
        (_gpu_torch, _gpu_torch.CASES[1]): ["QuACK", "Liger"],
    }
    for (module, case), names in wanted.items():
        called.clear()
        module.compile_case(case)
        assert called == names


# --- the classifier ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_fits(done, monkeypatch):
    sizes_of = {"ROWS": 1000, "FEATURES": 30, "HIDDEN": 8, "BATCH": 50, "DIGITS_EPOCHS": 1}
    for name, value in sizes_of.items():
        monkeypatch.setattr(_gpu_estimator, name, value)
    monkeypatch.setattr(_gpu_estimator, "DEVICE", "cpu")


def test_all_classifiers_fit(small_fits, tmp_path, capsys):
    path = tmp_path / "estimator.json"
    assert _gpu_estimator.main([str(path), "100"]) == 0
    content = json.loads(path.read_text())
    epochs = {fit["name"]: fit for fit in content["fits"] if "epoch_seconds" in fit}
    assert list(epochs) == list(_gpu_estimator.KINDS)
    assert {name: fit["rows"] for name, fit in epochs.items()} == {
        "xpsoftmax on CuPy": 1000,
        "PyTorch on the GPU": 500,
        "xpsoftmax on NumPy": 100,
        "scikit-learn": 100,
    }
    for fit in epochs.values():
        seconds = fit["fits"]["3"] - fit["fits"]["1"]
        assert fit["epoch_seconds"] == pytest.approx(seconds / 2 * 1000 / fit["rows"])
        assert 0 <= fit["accuracy"] <= 1
    assert len([fit for fit in content["fits"] if "digits_seconds" in fit]) == 3
    assert content["problems"] == content["not_timed"] == []


def test_other_losses_than_on_numpy_are_a_problem(small_fits, monkeypatch, tmp_path):
    monkeypatch.setattr(_gpu_estimator, "KINDS", {})
    monkeypatch.setattr(_gpu_estimator, "to_cupy", lambda array: array * 1.001 if array.dtype == "f8" else array)
    path = tmp_path / "estimator.json"
    assert _gpu_estimator.main([str(path), "100"]) == 1
    (problem,) = json.loads(path.read_text())["problems"]
    assert problem.startswith("losses on CuPy: ValueError: losses are off by ")


# --- variants ---------------------------------------------------------------------------------------------------------


def test_every_variant_holds_its_rows_and_is_another_class():
    for dtype, classes in _gpu_variants.VARIANTS:
        kinds = _gpu_variants.candidates(dtype, classes, 90)
        assert kinds[0] == sizes.size_class("softmax_loss", classes, dtype, 90)
        assert len(kinds) == 1 + len(_gpu_variants.VARIANTS[dtype, classes])
        names = [_gpu_variants.named(kind) for kind in kinds]
        assert len(set(names)) == len(names)
        for kind in kinds:
            assert sizes.covers(kind, sizes.whole_vectors(classes, dtype))
            assert sizes.on_capability(kind, 90) == kind  # as many resident as it says
            kernel, defines = _gpu_variants.specialised(dtype, classes, kind)
            assert kernel == "softmax_loss"
            assert dict(defines)["VECTORS"] == str(kind.vectors)


def test_clusters_and_rings_are_left_out_where_there_are_none():
    assert all(kind.blocks == 1 for kind in _gpu_variants.candidates("float32", 50257, 80))


def test_a_variant_is_launched_on_each_input_in_turn(monkeypatch):
    launched = []
    arrays = SimpleNamespace(
        address_of=lambda array: array.ctypes.data,
        matrix_of=lambda array: plan.Matrix(array.ctypes.data, *array.shape, array.shape[1], array.dtype.name),
    )
    monkeypatch.setitem(sys.modules, "xpsoftmax.kernels.cuda.arrays", arrays)
    monkeypatch.setitem(sys.modules, "xpsoftmax.kernels.cuda.launches", SimpleNamespace(run=launched.append))
    monkeypatch.setitem(sys.modules, "cupy", numpy_as_cupy())
    logits, outs = ([np.zeros((3, 50), "f4") for _ in range(2)] for _ in range(2))
    inputs = _gpu_rivals.Inputs(logits, np.zeros(3, "i8"), outs, logits[0], np.zeros(3, "i8"))
    kind = sizes.SizeClass(32, 8, resident=6)
    call = _gpu_variants.launched(inputs, kind, 90)
    assert call(1)[1] is outs[1]
    call(0)
    assert [launch.arguments[0] for launch in launched] == [np.uint64(z.ctypes.data) for z in (logits[1], logits[0])]
    assert all(("RESIDENT", "6") in launch.defines for launch in launched)


def test_variants_are_compiled_verified_timed_and_advised(done, monkeypatch, tmp_path, capsys):
    kinds = (sizes.SizeClass(16, 4, resident=8), sizes.SizeClass(128, 1, resident=8), sizes.SizeClass(64, 2))
    now = sizes.size_class("softmax_loss", 100, "float32", 90)
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((8, 100)).astype("f4"), rng.integers(100, size=8)
    copies = iter([[4.0, 4.0], [2.0, 2.0]])
    times = {"now": 2.5, "slow": 4.0}

    class Array(np.ndarray):
        def get(self):
            return np.asarray(self)

    def launched(inputs, kind, capability):
        if kind == kinds[2]:
            raise RuntimeError("no such launch")

        def call(i):
            grad = np.asarray(inputs.exact(_gpu_rivals.LOSS), "f4").view(Array)
            return None, grad * 2 if kind == kinds[1] else grad

        call.name = "now" if kind == now else "slow"
        return call

    def milliseconds(call, number):
        return (next(copies), "") if not hasattr(call, "name") else ([times[call.name]] * 3, "")

    inputs = _gpu_rivals.Inputs([z], y, [np.empty_like(z)], z, y)
    for name, value in {
        "VARIANTS": {("float32", 100): kinds},
        "drawn": lambda *case: inputs,
        "launched": launched,
        "milliseconds": milliseconds,
        "copied": lambda inputs: lambda i: None,
        "copied_by_cuda": lambda inputs: lambda i: None,
        "give_back": lambda: None,
        "processes": lambda most: None,
        "side_by_side": lambda jobs, pool, seconds: (compiled.extend(jobs), (len(jobs), []))[1],
    }.items():
        monkeypatch.setattr(_gpu_variants, name, value)
    compiled, path = [], tmp_path / "variants.json"
    assert _gpu_variants.main([str(path), "100"]) == 0
    assert [function for function, _ in compiled] == [_gpu_compile.compile_kernel] * 4
    (found,) = json.loads(path.read_text())["variants"]
    names = [_gpu_variants.named(kind) for kind in (now, *kinds)]
    assert found["copy_ms"] == 2.0
    assert found["shares"] == {names[0]: 0.8, names[1]: 0.5}
    assert found["failed"] == {names[2]: "off by 1", names[3]: "RuntimeError: no such launch"}
    assert capsys.readouterr().out.strip().endswith(": keep")


# --- on what stands in for CuPy ---------------------------------------------------------------------------------------

REHEARSAL = """
import sys

import stand_in_cupy

cupy = stand_in_cupy.install()
import program_reference
from xpsoftmax import kernels
from xpsoftmax._train import programmed

(backend,) = (backend for backend in kernels.BACKENDS if backend.name == "cupy")
backend.load().Runner = program_reference.ReferenceRunner
described, names = programmed.step_program, set()


def noted(step):
    program = described(step)
    names.update(operation.name for operation in program.operations)
    return program


programmed.step_program = noted
import _gpu_estimator, _gpu_rivals, _gpu_small, _gpu_trainers

assert list(_gpu_small.wrong_training(cupy)) + list(_gpu_small.wrong_functions(cupy)) == []
print(*sorted(names))
(losses,) = _gpu_estimator.same_losses()
problem = _gpu_trainers.Problem(_gpu_trainers.Case((6, 5, 7, 4), "adam", 8))
assert problem.off_by(_gpu_trainers.package(problem).verified()) < 1e-3
for operation in (_gpu_rivals.LOSS, _gpu_rivals.SOFT):
    inputs = _gpu_rivals.drawn(_gpu_rivals.Case(operation, 70, 30, "float32"), 100)
    assert _gpu_rivals.off_by(operation, _gpu_rivals.ours(inputs)(0), inputs) < 1e-6
"""


def test_the_sanitizer_sees_every_operation_of_a_program():
    """Also: inputs are drawn, and trainings and the classifier made, by what is as strict as CuPy."""
    folders = ("", "tests/support", "tests/kernels", "scripts", "benchmarks")
    path = os.pathsep.join(str(ROOT / folder) for folder in folders)
    command = [sys.executable, "-c", REHEARSAL]
    environment = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    steps = (ROOT / "xpsoftmax" / "kernels" / "cuda" / "steps.py").read_text("utf-8")
    operations = {name for name in steps.partition("OPERATIONS")[2].split('"') if f'    "{name}": {name},' in steps}
    assert len(operations) > 8
    assert operations <= set(run.stdout.splitlines()[-1].split())
