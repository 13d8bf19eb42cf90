"""Fixtures: `backend` (with `impl`), `dtype`, `rng`; and the options that choose backends."""

from __future__ import annotations

import os
import signal
import zlib

# Before SciPy is imported: scikit-learn's checks of array libraries want it, and 1.6 does not even load without it.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

import numpy as np
import pytest
import stand_in_cupy
from backends import NAMES, backend_named, unusable

from xpsoftmax import kernels


def pytest_addoption(parser):
    parser.addoption(
        "--backend", action="append", choices=NAMES, help="run the tests on this backend only (may be repeated)"
    )
    parser.addoption(
        "--require-backend",
        action="append",
        default=[],
        choices=NAMES,
        help="fail, instead of skipping, if this backend cannot be used (may be repeated)",
    )
    parser.addoption("--stand-in", action="store_true", help="a module of the tests stands in for CuPy: no GPU")
    parser.addoption("--kernels", action="store_true", help="compile the CUDA kernels, and run them on the CPU")
    parser.addoption("--every-kernel", action="store_true", help="compile each for each architecture: half an hour")
    parser.addoption("--site", action="store_true", help="look at the site that is in docs/_build/html")


def pytest_configure(config):
    if config.getoption("--stand-in"):
        stand_in_cupy.install()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in config.getoption("--require-backend"):
        reason = unusable(name)
        if reason is not None:
            raise pytest.UsageError(f"--require-backend={name}: {reason}")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--kernels"):
        skip = pytest.mark.skip(reason="compiles CUDA kernels: nox -s kernels, or pytest --kernels")
        for item in items:
            if item.get_closest_marker("kernels"):
                item.add_marker(skip)


def pytest_generate_tests(metafunc):
    if "backend" not in metafunc.fixturenames:
        return
    names = metafunc.config.getoption("--backend") or NAMES
    wanted = metafunc.definition.get_closest_marker("backends")
    names = [name for name in names if wanted is None or name in wanted.args]
    if "impl" not in metafunc.fixturenames:
        metafunc.parametrize("backend", [_parameter(name) for name in names], indirect=True, ids=names)
        return
    # Every backend has the generic text; those with kernels of their own run them too.
    kernel_names = {backend.name for backend in kernels.BACKENDS}
    pairs = [
        (name, impl) for name in names for impl in ("generic", "kernel") if impl == "generic" or name in kernel_names
    ]
    metafunc.parametrize(
        ("backend", "impl"),
        [_parameter(name, impl) for name, impl in pairs],
        indirect=["backend"],
        ids=["-".join(pair) for pair in pairs],
    )


def _parameter(name, *more):
    reason = unusable(name)
    marks = [] if reason is None else [pytest.mark.skip(reason=f"{name} cannot be used: {reason}")]
    return pytest.param(name, *more, marks=marks)


@pytest.fixture
def backend(request):
    """An array library that can be used here."""
    return backend_named(request.param)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The name of a working precision."""
    return request.param


@pytest.fixture
def rng(request):
    """Random numbers that depend on nothing but the name of the test."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.rpartition("::")[2].encode()))
