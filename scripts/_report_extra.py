"""Imported first by a script that needs the extra `report`: it says how to install what is missing."""

import importlib.util
import sys
from pathlib import Path

NEEDED = ("xpsoftmax", "numpy", "matplotlib", "rich", "sklearn")


def missing() -> list[str]:
    """Return the packages of the extra that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


if missing():
    print(f"{Path(sys.argv[0]).name}: not installed: {', '.join(missing())}.", file=sys.stderr)
    print("In a clone of the repository: python -m pip install '.[report]'", file=sys.stderr)
    raise SystemExit(2)
