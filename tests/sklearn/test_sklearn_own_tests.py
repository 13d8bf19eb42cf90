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
IMPORT = "from sklearn.neural_network import MLPClassifier, MLPRegressor\n"
LEFT_OUT = {
    "test_fit": "sets weights, and calls what its classifier calls within",
    "test_gradient": "calls what its classifier calls within",
    "test_multilabel_classification": "several labels a row are no softmax",
    "test_predict_proba_multilabel": "several labels a row are no softmax",
    "test_mlp_vs_poisson_glm_equivalent": "of the regressor, and needs a fixture of scikit-learn's",
}


@pytest.mark.skipif(not THEIRS.exists(), reason="this scikit-learn comes without its tests")
@pytest.mark.skipif(sklearn.__version__ < "1.9", reason="its tests of older versions say other things")
def test_the_tests_of_scikit_learn_pass(tmp_path):
    """All but those that look within, and those of several labels a row."""
    text = THEIRS.read_text()
    assert text.count(IMPORT) == 1
    own = "from sklearn.neural_network import MLPRegressor\nfrom xpsoftmax.sklearn import MLPClassifier\n"
    (tmp_path / "test_sklearn_own_tests.py").write_text(text.replace(IMPORT, own))
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
        *deselected,
        "test_sklearn_own_tests.py",
    ]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900)
    assert process.returncode == 0, process.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", process.stdout).group(1)) > 50
