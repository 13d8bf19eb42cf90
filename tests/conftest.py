"""Fixtures: `backend` (with `impl`), `dtype`, `rng`; and the options that choose backends."""

from __future__ import annotations

import os
import signal
import zlib
from collections import Counter

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
        help="fail, instead of leaving its tests out, if this backend cannot be used (may be repeated)",
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
    """Deselect what was not asked for, and what cannot run here; `pytest_terminal_summary` names it."""
    compiles = config.getoption("--kernels")
    # By markers: the keywords of an item hold the names of its folders, too, and tests/kernels is one.
    marks = lambda item, name: item.get_closest_marker(name) is not None  # noqa: E731
    others = [item for item in items if marks(item, "absent") or (marks(item, "kernels") and not compiles)]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]


def pytest_terminal_summary(terminalreporter, config):
    """Say in a line what was left out, and in a line for each reason how many tests were skipped."""
    asked = config.getoption("--backend") or NAMES
    left_out = [f"{name} ({reason})" for name in asked if (reason := unusable(name)) is not None]
    if not config.getoption("--kernels"):
        left_out.append("CUDA kernels on the CPU (nox -s kernels)")
    if left_out:
        terminalreporter.write_line(f"Left out: {', '.join(left_out)}")
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.getreports("skipped"))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"Skipped: {count} x {reason}")


def pytest_generate_tests(metafunc):
    if "backend" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("backends")
    possible = marker.args if marker else NAMES
    asked = metafunc.config.getoption("--backend") or NAMES
    names = [name for name in NAMES if name in possible and name in asked and unusable(name) is None]
    absent = () if names else pytest.mark.absent
    names = names or possible[:1]
    if "impl" not in metafunc.fixturenames:
        parameters = [pytest.param(name, marks=absent) for name in names]
        metafunc.parametrize("backend", parameters, indirect=True, ids=names)
        return
    # Every backend has the generic code; those with kernels of their own run them too.
    kernel_names = {backend.name for backend in kernels.BACKENDS}
    pairs = [
        (name, impl) for name in names for impl in ("generic", "kernel") if impl == "generic" or name in kernel_names
    ]
    metafunc.parametrize(
        ("backend", "impl"),
        [pytest.param(*pair, marks=absent) for pair in pairs],
        indirect=["backend"],
        ids=["-".join(pair) for pair in pairs],
    )


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
