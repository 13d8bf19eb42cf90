"""scripts/_gpu_dask.py with NumPy in the place of CuPy: it runs, and sees a wrong number."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from backends import numpy_as_cupy

pytest.importorskip("dask.array")
pytest.importorskip("distributed")

import _gpu_dask

from xpsoftmax.dask import blocks as _block_sums


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", numpy_as_cupy())
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
    sums = _block_sums._sums

    def off(*args, **kwargs):
        block = sums(*args, **kwargs)
        return block if block.sums is None else replace(block, sums=block.sums._replace(loss=block.sums.loss * 1.001))

    monkeypatch.setattr(_block_sums, "_sums", off)
    assert _gpu_dask.main(str(tmp_path / "dask.json"), processes=False) == 1
    said = capsys.readouterr().out
    assert "wrong: gradients, threads: off by 7.0e-04" in said  # the penalty is not
    assert "wrong: training, threads: off by 1.0e-03" in said


def test_without_dask_nothing_is_checked(monkeypatch, tmp_path, capsys):
    find = _gpu_dask.importlib.util.find_spec
    monkeypatch.setattr(_gpu_dask.importlib.util, "find_spec", lambda name: None if name == "dask" else find(name))
    assert _gpu_dask.main(str(tmp_path / "dask.json")) == 0
    assert json.loads((tmp_path / "dask.json").read_text()) == {"checks": {}, "not here": "dask"}


def test_a_check_that_fails_does_not_end_the_others(small, monkeypatch, tmp_path, capsys):
    def broken(*args, **kwargs):
        raise MemoryError("of the GPU")

    monkeypatch.setattr(_gpu_dask.xs, "mlp_predict", broken)
    path = tmp_path / "dask.json"
    assert _gpu_dask.main(str(path), processes=False) == 1
    assert "wrong: labels, threads: MemoryError: of the GPU" in capsys.readouterr().out
    found = json.loads(path.read_text())["checks"]
    assert found["labels, threads"]["off_by"] is None
    assert found["training, threads"]["off_by"] is not None


def test_what_was_found_is_written_before_a_cluster_that_does_not_start(small, monkeypatch, tmp_path):
    def worker():
        raise OSError("no port")

    monkeypatch.setattr(_gpu_dask, "worker", worker)
    with pytest.raises(OSError, match="no port"):
        _gpu_dask.main(str(tmp_path / "dask.json"))
    assert "gradients, threads" in json.loads((tmp_path / "dask.json").read_text())["checks"]
