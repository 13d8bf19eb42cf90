"""Errors that name arguments as the caller does, where one check serves arguments of several names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

VALIDATION = {"X": "validation[0]", "targets": "validation[1]"}
"""The validation data of `train`."""


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors name arguments by the caller's names; `names` maps the names that the checks use to these.

    An error whose message names none of them gets a note that does.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error)
        renamed = _renamed(text, names)
        if renamed == text:
            error.add_note(f"It is about {', '.join(names.values())}.")
        else:
            error.args = (renamed, *error.args[1:])
        raise


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """Return a message with the caller's names; the value, which follows "got", stays as it is."""
    rule, got, value = text.partition(", got ")
    words = "|".join(map(re.escape, names))
    return re.sub(rf"(?<![\w.])({words})(?![\w.])", lambda found: names[found[0]], rule) + got + value
