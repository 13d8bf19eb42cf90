"""Sessions for development: `nox -l` lists them, `nox -s tests` runs one."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "typecheck", "tests", "tests_lowest", "stand_in", "kernels", "compare", "docs", "build"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
# The tests see the installed wheel, never the source tree: the working directory stays off sys.path.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
# A test that waits for ever fails, with the stacks of all threads, instead of ending the whole run.
TESTING = {**SAFE_PATH, "PYTEST_TIMEOUT": "900"}


def at_hand(version: str) -> bool:
    """Whether this Python starts (a version manager may have a name for it and no interpreter behind it)."""
    program = shutil.which(f"python{version}")
    return program is not None and subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode == 0


FOUND = [version for version in SUPPORTED if at_hand(version)]
# Folders of tests whose subject is the package itself.
OF_THE_PACKAGE = ("dask", "kernels", "loss", "network", "package", "sklearn", "train")
OLDEST_AND_NEWEST = sorted({FOUND[0], FOUND[-1]}) if FOUND else [None]


def install(session: nox.Session, *groups: str) -> None:
    """Install the built package and some dependency groups; with CuPy where there is a GPU."""
    wanted = [dependency for group in groups for dependency in nox.project.dependency_groups(PYPROJECT, group)]
    session.install(".[cuda13]" if shutil.which("nvidia-smi") else ".", *wanted)
    where = session.run("python", "-c", "import xpsoftmax; print(xpsoftmax.__file__)", silent=True, env=SAFE_PATH)
    if "site-packages" not in str(where):
        session.error(f"the tests must see the installed package, not {where}")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, and the direction of imports."""
    session.install(".", *nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def typecheck(session: nox.Session) -> None:
    """mypy --strict on the package; it and pyright on what a user would write."""
    session.install(".", *nox.project.dependency_groups(PYPROJECT, "typecheck"))
    session.run("mypy")
    session.run("mypy", "tests/package/test_typing.py")
    session.run("pyright", "--pythonpath", str(Path(session.bin, "python")), "tests/package/test_typing.py")


def run_tests(session: nox.Session, *arguments: str, folders: Sequence[str] = (), **environment: str) -> None:
    """Run the tests of some folders, or all, or those that the command line names, on all cores."""
    named = any(Path(argument.partition("::")[0]).exists() for argument in session.posargs)
    paths = () if named else [f"tests/{name}" for name in folders]
    session.run("pytest", "-n", "auto", *arguments, *paths, *session.posargs, env={**TESTING, **environment})


@nox.session(python=OLDEST_AND_NEWEST)
def tests(session: nox.Session) -> None:
    """The tests on NumPy, array-api-strict, dask (and CuPy): all on the oldest Python, the package's on the newest."""
    install(session, "test", "report")
    run_tests(session, folders=() if session.python == OLDEST_AND_NEWEST[0] else OF_THE_PACKAGE)


@nox.session(python=FOUND or None)
def tests_all(session: nox.Session) -> None:
    """All tests on every Python found."""
    install(session, "test", "report")
    run_tests(session)


@nox.session(python=OLDEST_AND_NEWEST[0])
def tests_lowest(session: nox.Session) -> None:
    """The tests on NumPy and array-api-strict, with the lowest supported versions of what the package needs."""
    install(session, "test")
    session.install("numpy==2.0.0", "array-api-compat==1.11", "array-api-strict==2.3.1")
    folders = [name for name in OF_THE_PACKAGE if name != "dask"]
    options = ("--backend=numpy", "--backend=array_api_strict", "--ignore=tests/network/test_memory.py")
    run_tests(session, *options, folders=folders)


@nox.session
def tests_peers(session: nox.Session) -> None:
    """The tests on PyTorch and JAX, and those that compare with them. Installs more than a gigabyte."""
    install(session, "test", "report", "peers")
    backends = ("--require-backend=torch", "--require-backend=jax", "--backend=torch", "--backend=jax")
    run_tests(session, *backends, "-k", "torch or jax or competitor")


@nox.session
def stand_in(session: nox.Session) -> None:
    """The tests of CuPy's arrays, on a module that stands in for CuPy: no GPU is needed."""
    install(session, "test")
    run_tests(session, "--stand-in", "--backend=cupy", "--backend=cupy:device1", "-k", "cupy")


@nox.session
def kernels(session: nox.Session) -> None:
    """Compile the CUDA kernels and run them on the CPU: no GPU is needed, but g++ and NVRTC."""
    install(session, "test", "kernels")
    session.run("python", "-c", "from cupy.cuda import nvrtc; nvrtc.getVersion()", env=SAFE_PATH)
    run_tests(session, "--kernels", "-k", "cuda or cupy", folders=("kernels", "support"))


@nox.session
def kernels_compile(session: nox.Session) -> None:
    """Compile every CUDA kernel and specialisation for every architecture: no spills. Takes about half an hour."""
    install(session, "test", "kernels")
    files = ("kernels/test_kernels_cuda_compiled.py",)
    run_tests(session, "--kernels", "--every-kernel", folders=files, PYTEST_TIMEOUT="3600")


@nox.session
def compare(session: nox.Session) -> None:
    """Train the two-layer network on every array library here and compare them."""
    install(session, "report")
    session.run("python", "scripts/compare_backends.py", *session.posargs)  # beside which the package does not lie


@nox.session
def bench(session: nox.Session) -> None:
    """Time the functions beside PyTorch, JAX, SciPy, scikit-learn and plain NumPy. Takes about half an hour."""
    install(session, "report", "peers")
    session.run("python", "benchmarks/bench.py", *session.posargs)


@nox.session
def bench_training(session: nox.Session) -> None:
    """Time training steps beside PyTorch, JAX, scikit-learn and plain NumPy. Takes about ten minutes."""
    install(session, "report", "peers")
    session.run("python", "benchmarks/bench_training.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site, where a warning is an error, and look at it. It opens at docs/_build/html/index.html."""
    groups = (dependency for name in ("docs", "test") for dependency in nox.project.dependency_groups(PYPROJECT, name))
    session.install(".[dask,io,sklearn]", *groups)
    options = ("--fail-on-warning", "--keep-going", "--fresh-env", "--builder", "html")
    session.run("python", "-m", "sphinx", *options, "docs", "docs/_build/html", *session.posargs)
    session.run("pytest", "-n", "auto", "--site", "tests/docs/test_site.py")


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel, and use the wheel alone."""
    session.install("build", "twine")
    target = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(target, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(target), silent=True)
    session.run("twine", "check", "--strict", *map(str, target.iterdir()))
    (wheel,) = target.glob("*.whl")
    session.install("--force-reinstall", str(wheel))
    session.run("python", "-c", "import numpy, xpsoftmax as xs; print(xs.softmax(numpy.zeros(4)))", env=SAFE_PATH)
    session.run("python", "-c", "from xpsoftmax.kernels.cuda import texts; texts.source('softmax_loss')", env=SAFE_PATH)


if __name__ == "__main__":
    sys.exit(subprocess.call([sys.executable, "-m", "nox", *sys.argv[1:]]))
