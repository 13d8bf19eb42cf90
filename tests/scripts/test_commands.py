"""Every script, benchmark and example starts as a command, in any folder, and says what its options are.

Those that other tests run as commands are left out.
"""

import os
import subprocess
import sys

import pytest
from paths import BENCHMARKS, EXAMPLES, SCRIPTS

for module in ("dask.array", "distributed", "matplotlib", "mpmath", "rich", "sklearn", "threadpoolctl"):
    pytest.importorskip(module)

WITHOUT_OPTIONS = ("call_overhead.py", "competitors.py", "harness.py", "small_calls.py")
RUN_ELSEWHERE = ("bench.py", "compare_backends.py", "compare_sklearn.py", "plot_confidence.py", "train_torch.py")
COMMANDS = [
    path
    for folder in (SCRIPTS, BENCHMARKS, EXAMPLES)
    for path in sorted(folder.glob("*.py"))
    if not path.name.startswith("_") and path.name not in WITHOUT_OPTIONS + RUN_ELSEWHERE
]


@pytest.mark.parametrize("path", COMMANDS, ids=[path.name for path in COMMANDS])
def test_it_says_what_its_options_are(path, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, str(path), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {path.name}")
    assert list(tmp_path.iterdir()) == []
