"""The package as a whole: examples, documentation, what is public, what importing it costs."""

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xpsoftmax as xs

ROOT = Path(__file__).parent.parent
MODULES = sorted(module.name for module in pkgutil.walk_packages(xs.__path__, "xpsoftmax."))

NEEDED = {"xpsoftmax.kernels.cuda": ("cupy",), "xpsoftmax.sklearn": ("sklearn",), "xpsoftmax._targets": ("sklearn",)}
NEEDED |= {f"xpsoftmax.{name}": ("dask",) for name in ("dask", "_partitions", "_partition_training", "kernels.blocks")}
"""What a module cannot be imported without, beyond the package's dependencies."""


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if error.name not in NEEDED.get(name, ()):
            raise
        pytest.skip(f"needs {error.name}")
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_every_public_function_has_an_example():
    functions = [getattr(xs, name) for name in xs.__all__ if inspect.isfunction(getattr(xs, name))]
    assert len(functions) == 22
    for function in functions:
        text = inspect.cleandoc(function.__doc__)  # from Python 3.13 on the compiler does it
        assert ">>> " in text, function.__name__
        for section in ("Parameters", "Returns", "Raises", "Examples"):
            assert f"\n{section}\n---" in text, f"{function.__name__}: {section}"


@pytest.mark.parametrize("name", ["softmax_loss", "softmax_loss_and_grad", "mlp_loss", "mlp_loss_and_grad", "softmax"])
def test_arrays_are_positional_and_options_keywords(name):
    kinds = {parameter.kind for parameter in inspect.signature(getattr(xs, name)).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY}


def readme_blocks():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_examples_of_the_readme_run(capsys):
    blocks = [re.sub(r"(?m)^  ", "", block) if block.startswith("  ") else block for block in readme_blocks()]
    numpy_block, _, *prompt_blocks = blocks
    exec(numpy_block, {})
    loss, accuracy = map(float, capsys.readouterr().out.split())
    assert loss < 2.3
    assert accuracy > 0.5
    for block in prompt_blocks:
        if "sklearn" in block:
            pytest.importorskip("sklearn")
        test = doctest.DocTestParser().get_doctest(block, {}, "README", None, 0)
        assert test.examples
        assert doctest.DocTestRunner().run(test).failed == 0


def test_the_cupy_example_of_the_readme_runs(capsys):
    """On CuPy where there is a GPU; everywhere else with NumPy's generator in its place, so that it cannot rot."""
    block = next(block for block in readme_blocks() if "cupy" in block)
    exec(block.replace("import cupy as cp", "import numpy as cp"), {})
    loss, accuracy = map(float, capsys.readouterr().out.split())
    assert loss < 2.3
    assert accuracy > 0.5


def test_the_readme_names_every_public_function():
    text = (ROOT / "README.md").read_text()
    for name in xs.__all__:
        if inspect.isfunction(getattr(xs, name)):
            assert f"`{name}(" in text, name


def test_a_reader_finds_the_formula_in_two_steps():
    """Public function -> kernels/generic.py: its operations are documented by the public names."""
    from xpsoftmax.kernels import OPERATIONS, generic

    for operation in OPERATIONS:
        assert inspect.isfunction(getattr(generic, operation))


def test_importing_costs_little(tmp_path):
    """At most 1.3 times what NumPy and array-api-compat cost in the same process, once compiled; median of several."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    code = """
import time
start = time.perf_counter()
import numpy, array_api_compat
between = time.perf_counter()
import xpsoftmax
print((time.perf_counter() - start) / (between - start))
"""

    def ratio():
        command = [sys.executable, "-c", code]
        return float(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)

    ratio()  # compiles
    assert 1.0 < np.median([ratio() for _ in range(9)]) < 1.3


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert version("xpsoftmax") == xs.__version__


def test_typed_marker_is_installed():
    assert (Path(xs.__file__).parent / "py.typed").exists()


def test_labels_of_a_small_problem_are_learnt():
    """The example of every textbook: three spirals, a linear classifier fails and the two-layer network does not."""
    t = np.linspace(0.05, 1, 100)
    X = np.concatenate([np.stack([t * np.sin(a + 4 * t), t * np.cos(a + 4 * t)], 1) for a in (0.0, 2.1, 4.2)])
    y = np.repeat([0, 1, 2], 100)

    def accuracy(sizes, steps=1500):
        params = xs.init_params(sizes, rng=0)
        for _ in range(steps):
            _, grads = xs.mlp_loss_and_grad(params, X, y, reg=1e-4)
            params = tuple(xs.Layer(p.weight - g.weight, p.bias - g.bias) for p, g in zip(params, grads, strict=True))
        return float((xs.mlp_predict(params, X) == y).mean())

    assert accuracy((2, 3)) < 0.7
    assert accuracy((2, 64, 3)) > 0.98
