"""scripts/_gpu_dask.py with NumPy in the place of CuPy: it runs, and sees a wrong number."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("dask.array")
pytest.importorskip("distributed")

import _gpu_dask

from xpsoftmax import _partitions


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", np)
    monkeypatch.setattr(_gpu_dask, "ROWS", 400)
    monkeypatch.setattr(_gpu_dask, "CHUNKS", (100, 0, 200, 99, 1))


def test_what_is_right_is_not_wrong(small, tmp_path, capsys):
    path = tmp_path / "dask.json"
    assert _gpu_dask.main(str(path)) == 0
    found = json.loads(path.read_text())["checks"]
    names = {name.partition(",")[0] for name in found}
    assert {"gradients", "labels", "training", "bad label"} <= names
    assert len(found) == 2 * len(names)
    assert capsys.readouterr().out == f"{len(found)} checks, 0 wrong\n"


def test_sums_that_are_off_are_seen(small, monkeypatch, tmp_path, capsys):
    sums = _partitions._sums

    def off(*args, **kwargs):
        block = sums(*args, **kwargs)
        return block if block.sums is None else replace(block, sums=block.sums._replace(loss=block.sums.loss * 1.001))

    monkeypatch.setattr(_partitions, "_sums", off)
    assert _gpu_dask.main(str(tmp_path / "dask.json"), processes=False) == 1
    said = capsys.readouterr().out
    assert "wrong: gradients, threads: off by 7.0e-04" in said  # the penalty is not
    assert "wrong: training, threads: off by 1.0e-03" in said


def test_without_dask_nothing_is_checked(monkeypatch, tmp_path, capsys):
    find = _gpu_dask.importlib.util.find_spec
    monkeypatch.setattr(_gpu_dask.importlib.util, "find_spec", lambda name: None if name == "dask" else find(name))
    assert _gpu_dask.main(str(tmp_path / "dask.json")) == 0
    assert json.loads((tmp_path / "dask.json").read_text()) == {"checks": {}, "not here": "dask"}
