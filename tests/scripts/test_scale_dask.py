"""benchmarks/scale_dask.py verifies, measures and writes, and uses the model that docs/scaling.md describes."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

for module in ("dask.array", "distributed", "rich", "matplotlib", "threadpoolctl"):
    pytest.importorskip(module)

import scale_dask as script  # noqa: E402


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "COUNTS", (2, 4, 8))
    monkeypatch.setattr(script, "WIDTHS", (8, 64))
    monkeypatch.setattr(script, "PAUSE", 0.0)
    timed = script.timed
    monkeypatch.setattr(script, "timed", lambda passes, seconds: timed(passes, seconds, least=1))

    def call(*argv):
        status = script.main(["--rows", "50", "--blocks", "8", "--seconds", "0.01", *argv])
        return status, json.loads(Path("report/scale_dask.json").read_text()), capsys.readouterr().out

    return call


def test_everything_is_measured_and_written(run):
    status, content, text = run()
    assert status == 0
    assert set(content["overhead"]) == {"loop", "loop, one thread", "dask, threads", "dask, one thread"}
    assert all(found["error"] < 1e-5 and found["median"] > 0.0 for found in content["overhead"].values())
    assert [(found["workers"], found["blocks"]) for found in content["workers"]] == [
        (workers, blocks) for workers in (1, 2) for blocks in (2, 4, 8)
    ]
    assert len(content["constants"]) == 4
    assert all(math.isfinite(constant) for constant in content["constants"].values())
    assert len(content["predictions"]) == 9
    assert Path("report/scale_dask.png").stat().st_size > 10_000
    assert "dask, one thread" in text


def test_a_wrong_result_is_a_problem(run, monkeypatch):
    right = script.xd.mlp_loss_and_grad

    def wrong(*arguments):
        loss, grads = right(*arguments)
        return loss * 1.01, grads

    monkeypatch.setattr(script.xd, "mlp_loss_and_grad", wrong)
    monkeypatch.setattr(script, "measure_workers", lambda report, seconds: None)
    status, content, text = run()
    assert status == 1
    assert content["problems"] == [
        f"{way}: the result differs by 1.0e-02 from that of the loop." for way in ("dask, threads", "dask, one thread")
    ]
    assert content["problems"][0] in " ".join(text.split())


def test_the_model_is_that_of_the_page():
    constants = {
        "seconds_fixed": 0.1, "seconds_per_block": 0.001, "seconds_per_byte_of_parameters": 1e-9,
        "seconds_per_byte_of_gradients": 2e-9,
    }  # fmt: skip
    b, found = script.GPU["bytes_per_second"], script.step_seconds(512, 10**6, 10**5, constants)
    assert found["compute"] == pytest.approx(6e11 / script.GPU["flops"])
    assert found["scheduler"] == pytest.approx(0.1 + 0.512)
    assert found["parameters"] == pytest.approx(4e6 * (1e-9 + 9 / b))
    assert found["reduction"] == pytest.approx(4e6 * (2e-9 + 7 * 3 / b))
    # Where the reduction takes as long as the computation, whatever the network.
    rows = 4 * script.GPU["flops"] / 6 * (2e-9 + 7 * 3 / b)
    at_limit = script.step_seconds(512, 10**8, rows, constants)
    assert math.isclose(at_limit["compute"], at_limit["reduction"], rel_tol=1e-12)
