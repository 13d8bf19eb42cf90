"""scikit-learn's own tests of its MLPClassifier, with this one in its place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
import sklearn
import sklearn.neural_network

THEIRS = Path(sklearn.neural_network.__file__).with_name("tests") / "test_mlp.py"
CHANGES = {
    # The classifier in the place of scikit-learn's.
    "from sklearn.neural_network import MLPClassifier, MLPRegressor\n": (
        "from sklearn.neural_network import MLPRegressor\nfrom xpsoftmax.sklearn import MLPClassifier\n"
    ),
    # Of test_n_iter_no_change_inf: training must go on to the last epoch, however many there are.
    "np.inf\n    max_iter = 3000\n": "np.inf\n    max_iter = 300\n",
}
LEFT_OUT = {
    "test_fit": "sets weights, and calls what its classifier calls within",
    "test_gradient": "calls what its classifier calls within",
    "test_multilabel_classification": "several labels a row are no softmax",
    "test_predict_proba_multilabel": "several labels a row are no softmax",
}


@pytest.mark.skipif(not THEIRS.exists(), reason="this scikit-learn comes without its tests")
@pytest.mark.skipif(sklearn.__version__ < "1.9", reason="its tests of older versions say other things")
def test_the_tests_of_scikit_learn_pass(tmp_path):
    """All but those of the regressor, those that look within, and those of several labels a row."""
    text = THEIRS.read_text()
    for old, new in CHANGES.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "test_sklearn_own_tests.py").write_text(text)
    assert all(f"def {name}(" in text for name in LEFT_OUT)
    deselected = [f"--deselect=test_sklearn_own_tests.py::{name}" for name in LEFT_OUT]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir=.",
        "-k=not regress and not poisson",  # those of MLPRegressor: by name, or by parameter
        *deselected,
        "test_sklearn_own_tests.py",
    ]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900)
    assert process.returncode == 0, process.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", process.stdout).group(1)) > 35
