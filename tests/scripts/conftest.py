"""Fixtures of the tests of the benchmarks."""

import harness
import pytest


@pytest.fixture
def short_samples(monkeypatch):
    """Times need not be right: no pause between samples, and short ones."""
    for name, value in (("SAMPLE", 1e-4), ("PAUSE", 0.0), ("WARM", 1e-4)):
        monkeypatch.setattr(harness, name, value)
