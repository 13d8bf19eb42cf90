"""Which tests run: those of absent backends are left out, and a line says so."""

import ast
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT, TESTS

PLUGIN = """
import backends

def probe():
    raise RuntimeError("not today")

backends._PROBES["array_api_strict"] = probe
"""


def collected(tmp_path, *arguments):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "plugin"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [*command, "tests/loss/test_axes.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_backend_that_cannot_be_used_is_left_out_and_named(tmp_path):
    status, text = collected(tmp_path, "--backend=numpy", "--backend=array_api_strict")
    assert status == 0
    assert re.search(r"^Left out: .*\barray_api_strict \(RuntimeError: not today\)", text, re.MULTILINE)
    assert text.count("Left out: ") == 1
    assert re.search(r"\[numpy\b", text)
    assert not re.search(r"\[array_api_strict[-\]]", text)


def test_a_backend_that_was_asked_for_and_is_absent_runs_nothing(tmp_path):
    status, text = collected(tmp_path, "--backend=array_api_strict", "-k", "array_api_strict")
    assert status == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "Left out: array_api_strict (RuntimeError: not today)" in text


def test_a_backend_that_is_required_and_absent_is_an_error(tmp_path):
    status, _ = collected(tmp_path, "--require-backend=array_api_strict", "--backend=numpy")
    assert status == pytest.ExitCode.USAGE_ERROR


def test_what_needs_a_peer_is_found_by_its_name():
    """`nox -s tests_peers` selects by the words torch and jax: in the name, its folder, or the id of a parameter."""
    unnamed = []
    for path in TESTS.rglob("test_*.py"):
        if path.parent.name in ("torch", "jax"):
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                needs = re.search(r"(importorskip|needs)\('(torch|jax)", ast.unparse(node))
                if needs and not re.search("torch|jax", node.name):
                    unnamed.append(node.name)
    assert unnamed == []
