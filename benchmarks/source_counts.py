"""A text data set from Python's standard library: how often each word occurs in a piece of source, and its module."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

LINES = 200
"""Lines of a piece: about 200 different words of 20 000, so that 1 % of the counts are not zero."""
FEATURES = 20_000
CLASSES = 30


def counts(dtype: str = "float32") -> tuple[Any, np.ndarray]:
    """Return counts (N, 20 000) in CSR, and which of the 30 largest modules or packages each piece is of."""
    library = Path(sysconfig.get_paths()["stdlib"])
    pieces: dict[str, list[str]] = {}
    for path in sorted(library.rglob("*.py")):
        place = path.relative_to(library).parts
        if place[0] in ("site-packages", "dist-packages"):
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        parts = ["\n".join(lines[start : start + LINES]) for start in range(0, len(lines), LINES)]
        pieces.setdefault("/".join(place[:2]), []).extend(parts)
    largest = sorted(pieces, key=lambda name: (-len(pieces[name]), name))[:CLASSES]
    texts = [text for name in largest for text in pieces[name]]
    labels = np.repeat(np.arange(len(largest)), [len(pieces[name]) for name in largest])
    vectorizer = CountVectorizer(max_features=FEATURES, dtype=np.dtype(dtype).type, token_pattern=r"[^\W\d]\w*")
    order = np.random.default_rng(0).permutation(len(texts))
    return vectorizer.fit_transform(texts)[order], labels[order]
