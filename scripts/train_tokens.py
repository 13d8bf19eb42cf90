"""Build a next-token data set with many classes from the source of the installed Python standard library.

    python scripts/train_tokens.py
    python scripts/train_tokens.py --classes 50000 --tests

Every machine with Python has these megabytes of text, and their tokens are distributed as those of a language are: a
few are everywhere, most are rare (Zipf's law). The task is to name the next token, given the ones before it. It prints,
and writes as JSON (--json; by default into report/ under the current directory), the numbers of tokens and classes, the
exponent of Zipf's law, and what is reached on the validation files without any context: the accuracy of always naming
the most frequent token, and the cross-entropy of the frequencies.

- A token is a name, number, operator or string as `tokenize` finds it, or the end of a line, an indent or a dedent.
  Comments are left out: their words follow no grammar, and almost each is alone of its kind. Strings that are longer
  than `LONGEST_STRING` or span lines count as one token, for the same reason; shorter ones often are keys, and come
  again. (From Python 3.12 on an f-string is several tokens: other versions give other data, not only other text.)
- The classes are the most frequent tokens of the training files, by rank, and class 0 for all others.
- Whole files are drawn for validation, every `VALIDATION_EVERY`-th: two parts of one file share names and habits.
- The input of the network is dense: each token of the context is replaced by its row of a fixed table of random
  numbers, D = context * embedding in all. `inputs` writes them to a memory-mapped file, a few rows at a time, so that
  memory holds the tokens alone; all files together have at most `DISK_LIMIT` bytes.

Exit status: 0; 2 for a bad option. Needs rich: pip install "xpsoftmax[report]".
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import sysconfig
import tokenize
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from _report import Parser, finite, surroundings
from rich.console import Console
from rich.markup import escape
from rich.table import Table

LONGEST_STRING = 24
"""Characters, quotes included; about four of five strings of the standard library are not longer."""
FEWEST_CLASSES, MOST_CLASSES = 1_000, 50_000
VALIDATION_EVERY = 10
DISK_LIMIT = 4 * 2**30
"""Bytes of all inputs."""
FILL_ROWS = 8192
"""Rows of the inputs that are in memory while they are written."""
REST = "<rest>"
START = -1
"""Stands before the first token of a file; in the inputs it is the last row of the table."""
NOT_CODE = {"site-packages", "dist-packages", "__pycache__"}
TESTS = {"test", "tests", "idle_test"}

# Of the other types are comments, empty lines, and the beginning and the end of a file.
STRUCTURE = {tokenize.NEWLINE: "<newline>", tokenize.INDENT: "<indent>", tokenize.DEDENT: "<dedent>"}
# A name that is missing belongs to a later Python.
STRINGS = {
    getattr(tokenize, name)
    for name in ("STRING", *(f"{kind}STRING_{part}" for kind in "FT" for part in ("START", "MIDDLE", "END")))
    if hasattr(tokenize, name)
}
VERBATIM = {tokenize.NAME, tokenize.NUMBER, tokenize.OP, *STRINGS}


@dataclass(frozen=True)
class Settings:
    """The size of the data; by default all of the library without its tests."""

    classes: int = 20_000
    context: int = 8
    embedding: int = 32
    tokens: int = 2_000_000
    seed: int = 0
    tests: bool = False

    def __post_init__(self) -> None:
        ranges = {"classes": (FEWEST_CLASSES, MOST_CLASSES), "context": (1, 64), "embedding": (1, 1_024)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"--{name} must be from {least} to {most}, got {getattr(self, name)}")
        for name, least in (("tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def features(self) -> int:
        """D."""
        return self.context * self.embedding


TINY = Settings(classes=1_000, context=4, embedding=8, tokens=60_000)


@dataclass(frozen=True)
class Part:
    """The tokens of some files, one file after the other."""

    stream: np.ndarray  # int32: classes; before each file, as many START as a context has
    positions: np.ndarray  # (N,) int64: where the stream has a token
    files: int

    @property
    def targets(self) -> np.ndarray:
        """The classes to be predicted, (N,)."""
        return self.stream[self.positions]

    def contexts(self, rows: slice, length: int) -> np.ndarray:
        """The classes before each of these targets, (rows, length), the nearest last."""
        return self.stream[self.positions[rows, None] + np.arange(-length, 0)]


@dataclass(frozen=True)
class Corpus:
    """The data set, and what its classes stand for."""

    words: list[str]  # of each class
    train: Part
    validation: Part
    unreadable: int  # files: some of the tests are wrong on purpose


@dataclass(frozen=True)
class Facts:
    """What is known about the data before any training."""

    classes: int
    train_tokens: int
    train_files: int
    validation_tokens: int
    validation_files: int
    unreadable_files: int
    rest_share: float  # of the validation tokens
    zipf_exponent: float
    unigram_token: str
    unigram_accuracy: float
    unigram_cross_entropy: float  # nats
    input_bytes: int


# --- from files to tokens ---------------------------------------------------------------------------------------------


def sources(root: Path, *, tests: bool) -> list[Path]:
    """Return the Python files under a folder, always in the same order."""
    unwanted = NOT_CODE if tests else NOT_CODE | TESTS
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in unwanted]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def tokens(path: Path) -> list[str]:
    """Return the tokens of a file, by the names of their classes."""
    with path.open("rb") as file:
        found = [_word(token) for token in tokenize.tokenize(file.readline)]
    return [word for word in found if word is not None]


def _word(token: tokenize.TokenInfo) -> str | None:
    if token.type in STRUCTURE:
        return STRUCTURE[token.type]
    if token.type not in VERBATIM:
        return None
    if token.type in STRINGS and (len(token.string) > LONGEST_STRING or "\n" in token.string):
        return "<string>"
    return token.string


def corpus(paths: Sequence[Path], settings: Settings) -> Corpus:
    """Read files in random order until there are enough tokens; make classes and two parts of them."""
    order = np.random.default_rng(settings.seed).permutation(len(paths))
    numbers: dict[str, int] = {}  # of the tokens, in the order in which they are met
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])  # training, validation
    total = unreadable = 0
    for path in (paths[i] for i in order):
        try:
            words = tokens(path)
        except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
            unreadable += 1
            continue
        read = len(parts[0]) + len(parts[1])
        ids = [numbers.setdefault(word, len(numbers)) for word in words[: settings.tokens - total]]
        parts[read % VALIDATION_EVERY == VALIDATION_EVERY - 1].append(np.array(ids, dtype=np.int32))
        total += len(ids)
        if total == settings.tokens:
            break
    if not parts[1]:
        raise ValueError(f"--tokens must be enough for {VALIDATION_EVERY} files, got {settings.tokens}")
    names, classes = _classes(list(numbers), np.concatenate(parts[0]), settings.classes)
    train, validation = (_part([classes[ids] for ids in part], settings.context) for part in parts)
    return Corpus(names, train, validation, unreadable)


def _classes(words: list[str], ids: np.ndarray, count: int) -> tuple[list[str], np.ndarray]:
    """Return the names of the classes, and the class of each token: its rank among these, or 0."""
    counts = np.bincount(ids, minlength=len(words))
    distinct = int(np.count_nonzero(counts))
    if distinct < count:  # then class 0 would be empty
        raise ValueError(
            f"--classes must be at most {distinct}, the distinct tokens of the training files, got {count}; "
            "--tests and --tokens give more"
        )
    frequent = np.argsort(-counts, kind="stable")[: count - 1]
    classes = np.zeros(len(words), dtype=np.int32)
    classes[frequent] = np.arange(1, count)
    return [REST, *(words[i] for i in frequent)], classes


def _part(files: Sequence[np.ndarray], context: int) -> Part:
    start = np.full(context, START, dtype=np.int32)
    stream = np.concatenate([piece for ids in files for piece in (start, ids)])
    return Part(stream, np.flatnonzero(stream != START), len(files))


# --- from tokens to inputs --------------------------------------------------------------------------------------------


def embedding(settings: Settings) -> np.ndarray:
    """Return a row of random numbers for each class, and one for `START`, (C + 1, embedding)."""
    rng = np.random.default_rng((settings.seed, 1))  # not the numbers that shuffled the files
    return rng.standard_normal((settings.classes + 1, settings.embedding), dtype=np.float32)


def inputs(part: Part, table: np.ndarray, context: int, path: Path) -> np.memmap:
    """Write the inputs of the network to a file, a few rows at a time; return them, (N, D) float32."""
    shape = (len(part.positions), context * table.shape[1])
    X = np.memmap(path, dtype=np.float32, mode="w+", shape=shape)
    for first in range(0, shape[0], FILL_ROWS):
        rows = slice(first, min(first + FILL_ROWS, shape[0]))
        X[rows] = table[part.contexts(rows, context)].reshape(-1, shape[1])
    return X


def input_bytes(found: Corpus, settings: Settings) -> int:
    """Return how large the files of the inputs will be; refuse more than `DISK_LIMIT`."""
    rows = len(found.train.positions) + len(found.validation.positions)
    size = rows * settings.features * np.dtype(np.float32).itemsize
    if size > DISK_LIMIT:
        raise ValueError(
            f"--tokens, --context and --embedding must make inputs of at most {DISK_LIMIT / 2**30:g} GiB, "
            f"got {size / 2**30:.1f} GiB"
        )
    return size


# --- what is known without training -----------------------------------------------------------------------------------


def zipf_exponent(counts: np.ndarray) -> float:
    """Return a of frequency ~ rank^-a: the slope of a straight line through the logarithms, with its sign turned.

    The ranks are weighted by 1 / rank, so that every decade of them counts the same; unweighted, almost all of the fit
    would be the tail, where frequencies are 1, 2 and 3.
    """
    counts = np.sort(counts[counts > 0])[::-1]
    ranks = np.arange(1, len(counts) + 1)
    slope, _ = np.polyfit(np.log(ranks), np.log(counts), 1, w=ranks**-0.5)  # polyfit squares its weights
    return -float(slope)


def facts(found: Corpus, settings: Settings) -> Facts:
    """Count, and measure what is reached without a network."""
    counts = np.bincount(found.train.targets, minlength=settings.classes)
    targets = found.validation.targets
    most_frequent = int(np.argmax(counts))
    return Facts(
        classes=settings.classes,
        train_tokens=len(found.train.positions),
        train_files=found.train.files,
        validation_tokens=len(targets),
        validation_files=found.validation.files,
        unreadable_files=found.unreadable,
        rest_share=float(np.mean(targets == 0)),
        zipf_exponent=zipf_exponent(counts[1:]),  # class 0 is no token
        unigram_token=found.words[most_frequent],
        unigram_accuracy=float(np.mean(targets == most_frequent)),
        unigram_cross_entropy=-float(np.mean(np.log(counts[targets] / counts.sum()))),  # no class is without tokens
        input_bytes=input_bytes(found, settings),
    )


# --- the command line -------------------------------------------------------------------------------------------------


def show(known: Facts, console: Console) -> None:
    """Print the facts, one a line."""
    table = Table("", "", title="Next token, Python standard library", show_header=False)
    table.columns[1].justify = "right"
    for name, value in asdict(known).items():
        text = f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        table.add_row(name.replace("_", " "), escape(text))
    console.print(table)


def as_json(known: Facts, settings: Settings, argv: Sequence[str]) -> str:
    """Everything as JSON."""
    content = {
        "command": shlex.join(["python", "scripts/train_tokens.py", *argv]),
        "date": datetime.now(UTC).date().isoformat(),
        **surroundings(("array-api-compat", "numpy", "rich")),
        "options": asdict(settings),
        "data": asdict(known),
    }
    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"


def parser(defaults: Settings) -> Parser:
    """Name the options."""
    options = Parser(prog="train_tokens.py", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    options.add_argument("--tiny", action="store_true", help="a small data set, for a look or a test")
    for setting in fields(Settings):
        default = getattr(defaults, setting.name)
        if isinstance(default, bool):
            options.add_argument(f"--{setting.name}", action="store_true", help="with the tests of the library")
        else:
            options.add_argument(f"--{setting.name}", type=int, default=default, help="default: %(default)s")
    path = Path("report", "train_tokens.json")
    options.add_argument("--json", type=Path, default=path, metavar="PATH", help="default: %(default)s")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Build the data, print and write what is known about it; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser(TINY if "--tiny" in argv else Settings())
    given = options.parse_args(argv)
    try:
        settings = Settings(**{setting.name: getattr(given, setting.name) for setting in fields(Settings)})
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.open("ab").close()  # a path that cannot be written is found now
        root = Path(sysconfig.get_path("stdlib"))
        known = facts(corpus(sources(root, tests=settings.tests), settings), settings)
    except (OSError, ValueError) as error:
        options.error(str(error))
    console = Console()
    show(known, console)
    given.json.write_text(as_json(known, settings, argv))
    console.print(f"Written: {given.json}", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
