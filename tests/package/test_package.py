"""The package as a whole: examples, documentation, what is public, what importing it costs."""

import doctest
import importlib
import importlib.util
import inspect
import os
import pickle
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

import xpsoftmax as xs

MODULES = sorted(module.name for module in pkgutil.walk_packages(xs.__path__, "xpsoftmax."))

PLAIN = {"plan", "clip_plan", "step_plan", "table_plan", "sizes", "texts"}  # modules about launches that need no CuPy
NEEDED = {
    name: ("cupy",)
    for name in MODULES
    if name.startswith("xpsoftmax.kernels.cuda.") and name.rpartition(".")[2] not in PLAIN
}
for library, places in {
    "dask": ("xpsoftmax.dask", "xpsoftmax.kernels.dask"),
    "jax": ("xpsoftmax.kernels.jax",),
    "sklearn": ("xpsoftmax.sklearn",),
    "torch": ("xpsoftmax.torch", "xpsoftmax.kernels.torch"),
}.items():
    NEEDED |= {name: (library,) for name in MODULES if name.startswith(places)}
NEEDED["xpsoftmax.sklearn.on_dask"] = ("dask", "sklearn")
"""What a module cannot be imported without, beyond the package's dependencies."""
TEXTS = (".py", ".md", ".toml", ".cu", ".cuh", ".html", ".txt", ".json")


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
    assert len(functions) == 31
    for function in functions:
        text = inspect.cleandoc(function.__doc__)  # from Python 3.13 on the compiler does it
        assert ">>> " in text, function.__name__
        for section in ("Parameters", "Returns", "Raises", "Examples"):
            assert f"\n{section}\n---" in text, f"{function.__name__}: {section}"


def documented(thing, section):
    """Names of a section of a docstring, in its order."""
    text = inspect.cleandoc(thing.__doc__)
    found = re.search(rf"^{section}\n-+\n(.*?)(?=^\w[^\n]*\n-+\n|\Z)", text, re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^(\S.*?)(?: : .*)?$", found.group(1), re.MULTILINE) if found else []
    return [name.strip().lstrip("*") for line in lines for name in line.split(",")]


def public():
    """Everything in the reference, and the methods of its classes."""
    from xpsoftmax._train.optimizers import Optimizer

    things = [*(getattr(xs, name) for name in xs.__all__), Optimizer]
    if importlib.util.find_spec("sklearn"):
        from xpsoftmax.sklearn import MLPClassifier

        things.append(MLPClassifier)
    return things


def methods(thing):
    classes = inspect.getmro(thing) if inspect.isclass(thing) else ()
    own = [vars(each) for each in classes if each.__module__.startswith("xpsoftmax")]
    for name, value in (item for each in own for item in each.items()):
        function = value.__func__ if isinstance(value, classmethod) else value
        if not name.startswith("_") and inspect.isfunction(function) and "Parameters\n" in (function.__doc__ or ""):
            yield function


def test_everything_public_has_an_example():
    for thing in public():
        assert ">>> " in thing.__doc__, thing.__name__


def test_parameters_are_documented_in_the_order_of_the_signature():
    """And fields of tuples in theirs."""
    checked = 0
    for thing in public():
        if hasattr(thing, "_fields"):
            assert documented(thing, "Attributes") == list(thing._fields), thing.__name__
        functions = [thing] if inspect.isfunction(thing) or thing.__name__ == "MLPClassifier" else []
        for function in (*functions, *methods(thing)):
            names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
            assert documented(function, "Parameters") == names, function.__qualname__
            checked += 1
    assert checked >= 25


def test_a_wrong_order_is_seen():
    """The test of the test."""

    def function(a, b, c): ...

    function.__doc__ = """Summary.

    Parameters
    ----------
    a, c : int
        Text: with a colon.
    b
        More.

    Returns
    -------
    int
    """
    assert documented(function, "Parameters") == ["a", "c", "b"]
    assert documented(function, "Raises") == []


@pytest.mark.parametrize("name", ["softmax_loss", "softmax_loss_and_grad", "mlp_loss", "mlp_loss_and_grad", "softmax"])
def test_arrays_are_positional_and_options_keywords(name):
    kinds = {parameter.kind for parameter in inspect.signature(getattr(xs, name)).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY}


def readme_blocks():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_first_example_of_the_readme_runs():
    prompts, _ = readme_blocks()
    test = doctest.DocTestParser().get_doctest(prompts, {}, "README", None, 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("library", ["numpy", "cupy"])
def test_the_ten_lines_of_the_readme_learn(library, capsys):
    _, block = readme_blocks()
    assert len(block.splitlines()) <= 10
    if library == "cupy":
        try:
            importlib.import_module("cupy").cuda.runtime.getDeviceCount()
        except Exception as error:  # noqa: BLE001 - whatever a machine without CuPy or GPU raises
            pytest.skip(f"cupy cannot be used: {error}")
    assert "import numpy as xp" in block
    exec(block.replace("import numpy as xp", f"import {library} as xp"), {})
    loss, accuracy = map(float, capsys.readouterr().out.split())
    assert loss < 0.3
    assert accuracy > 0.9


def test_the_readme_is_a_front_door():
    """Short, with the two commands, and every link leads to something."""
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") < 150
    for session in ("compare", "tests"):
        assert f"```\npython -m pip install nox && python -m nox -s {session}\n```" in text
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    assert len(targets) > 15
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target


def advised(text):
    """What a text tells its readers to install, if that is this package by its name."""
    return re.findall(r"\binstall\s+(?:-\S+\s+)*[\"'`]*xpsoftmax\b", text)


def test_no_text_advises_to_install_the_package_by_its_name():
    """It is on no index, and anyone could register the name there."""
    folders = ("xpsoftmax", "docs", "scripts", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in TEXTS]
    files += [path for path in ROOT.iterdir() if path.suffix in TEXTS]
    assert len(files) > 60
    assert [path for path in files if advised(path.read_text(encoding="utf-8"))] == []


def test_such_advice_is_found():
    for text in ("pip install xpsoftmax[io]", "pip install -U 'xpsoftmax'", "conda install\n  xpsoftmax"):
        assert advised(text)
    assert not advised("pip install '.[io]' for xpsoftmax.dask")


def test_the_overview_of_the_reference_names_every_public_function():
    text = (ROOT / "docs" / "reference.md").read_text()
    for name in xs.__all__:
        if inspect.isfunction(getattr(xs, name)):
            assert f"`{name}(" in text, name


def test_a_reader_finds_the_formula_in_two_steps():
    """Public function -> kernels/generic: its operations are documented by the public names."""
    from xpsoftmax.kernels import OPERATIONS, generic

    for operation in OPERATIONS:
        assert inspect.isfunction(getattr(generic, operation))


def test_importing_costs_little(tmp_path):
    """At most 1.3 times what NumPy and array-api-compat cost in the same process, once compiled; median of several."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    code = """
import time
start = time.process_time()
import numpy, array_api_compat
between = time.process_time()
import xpsoftmax
print((time.process_time() - start) / (between - start))
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


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("_backprop", "PartialSums"),
        ("_backprop", "Layer"),
        ("_layers", "Layer"),
        ("_state", "TrainState"),
        ("_training", "DivergenceError"),
        ("_training", "TrainResult"),
        ("_training", "TrainState"),
    ],
)
def test_pickles_of_earlier_versions_find_the_classes(module, name):
    """They name the module that a class was in."""
    assert pickle.loads(f"cxpsoftmax.{module}\n{name}\n.".encode()) is getattr(xs, name)
    optimizer = pickle.loads(b"cxpsoftmax._optim\nUncorrectedAdam\n.")
    assert issubclass(optimizer, type(xs.adam(0.1)))
    with pytest.raises(AttributeError, match="attribute 'nothing'"):
        pickle.loads(b"cxpsoftmax._training\nnothing\n.")


def test_the_release_is_named_everywhere():
    """Version, date and licence agree in the package, the changelog and the citation file."""
    citation = dict(re.findall(r"^(\S+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    released = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released.groups() == (citation["version"], citation["date-released"])
    assert citation["version"] == xs.__version__.partition(".dev")[0]
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text()
