"""The example that trains a JAX model with both losses shows what it says."""

import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import train_jax


def test_both_agree_at_first_and_only_one_keeps_its_gradients(capsys):
    found = train_jax.main(["--steps", "1500", "--every", "50"])
    for (_, theirs, _), (_, ours, _) in list(zip(found["optax"], found["xpsoftmax"], strict=True))[:3]:
        assert ours == pytest.approx(theirs, rel=2e-2)
    assert found["optax"][-1][2] > 0.15
    assert max(share for *_, share in found["xpsoftmax"]) == 0.0
    assert found["xpsoftmax"][-1][1] < found["xpsoftmax"][1][1]
    assert len(capsys.readouterr().out.splitlines()) == 32


def test_its_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        train_jax.main(["--help"])
    assert "--prime" in capsys.readouterr().out
