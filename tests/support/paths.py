"""Where the parts of this checkout are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SCRIPTS = ROOT / "scripts"
TESTS = ROOT / "tests"
SUPPORT = TESTS / "support"
