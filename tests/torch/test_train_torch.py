"""The example that trains a PyTorch model with both losses shows what it says."""

import pytest

torch = pytest.importorskip("torch")

import train_torch  # noqa: E402


@pytest.fixture
def threads():
    """The example sets how many PyTorch uses."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_both_agree_at_first_and_only_one_keeps_its_gradients(capsys, threads):
    found = train_torch.main(["--steps", "1500", "--every", "50"])
    for (_, theirs, _), (_, ours, _) in list(zip(found["torch"], found["xpsoftmax"], strict=True))[:3]:
        assert ours == pytest.approx(theirs, rel=1e-2)
    assert found["torch"][-1][2] > 0.2
    assert max(share for *_, share in found["xpsoftmax"]) == 0.0
    assert len(capsys.readouterr().out.splitlines()) == 32


def test_its_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        train_torch.main(["--help"])
    assert "--prime" in capsys.readouterr().out
