"""Train a network to name the next token of Python source: many classes, bounded memory.

    python examples/train_tokens.py
    python examples/train_tokens.py --classes 50000 --tests --minutes 20

Every machine with Python has these megabytes of text, its standard library, and their tokens are distributed as those
of a language are: a few are everywhere, most are rare (Zipf's law). The task is to name the next token, given the ones
before it. It prints, and writes as JSON and PNG (--json, --plot; by default into report/ under the current directory):

- the numbers of tokens and classes, the exponent of Zipf's law, and what is reached on the validation files without any
  context: the accuracy of always naming the most frequent token, and the cross-entropy of the frequencies (unigram);
- what a two-layer network reaches there, and its loss on the way;
- tokens per second of training steps. The first step of each epoch is not counted: before it rows are shuffled, and
  validation is done;
- memory. What training allocates at its peak (parameters, gradients and state of the optimiser included) is counted
  by `tracemalloc`, or on a GPU is the size of CuPy's memory pool, inputs included. The peak of the whole process counts
  Python and its libraries too, and those pages of the inputs' files that happen to be in memory: the system takes them
  back when it needs them. All logits at once, N x C, are given for comparison.

The data:

- A token is a name, number, operator or string as `tokenize` finds it, or the end of a line, an indent or a dedent.
  Comments are left out: their words follow no grammar, and almost each is alone of its kind. Strings that are longer
  than `LONGEST_STRING` or span lines count as one token, for the same reason; shorter ones often are keys, and come
  again. (From Python 3.12 on an f-string is several tokens: other versions give other data, not only other text.)
- The classes are the most frequent tokens of the training files, by rank, and class 0 for all others.
- Whole files are drawn for validation, every `VALIDATION_EVERY`-th: two parts of one file share names and habits.
- The input of the network is dense: each token of the context is replaced by its row of a fixed table of random
  numbers, D = context * embedding in all. `inputs` writes them to a memory-mapped file, a few rows at a time, so that
  memory holds the tokens alone; all files together have at most `DISK_LIMIT` bytes, in the system's temporary folder
  (TMPDIR chooses another). For CuPy they are copied to the GPU, and must fit there (not
  yet tried on one).

Ctrl-C, and --minutes, end the training but not the script: it reports what was learnt so far.

Exit status: 0; 1 if the network is no better than the frequencies or a loss is not finite; 2 for a bad option. Needs
rich and matplotlib: pip install rich matplotlib.
"""

from __future__ import annotations

import math
import os
import sys
import sysconfig
import tempfile
import time
import tokenize
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

from _report import Parser, described, drawn, json_text, parser_of, run_record
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import xpsoftmax as xs

LONGEST_STRING = 24
"""Characters, quotes included; about four of five strings of the standard library are not longer."""
FEWEST_CLASSES, MOST_CLASSES = 1_000, 50_000
VALIDATION_EVERY = 10
DISK_LIMIT = 4 * 2**30
"""Bytes of all inputs."""
FILL_ROWS = 8192
"""Rows of the inputs that are in memory while they are written."""
WARM_UP = 50
"""Steps in which the learning rate rises, at most a tenth of all."""
MOMENTUM = 0.9
"""Of sgd, with Nesterov."""
SMALL_WEIGHTS = 0.1
"""Factor of the output layer's first weights."""
CURVE_POINTS = 200
"""Of the loss that is drawn and written: each is the mean of some batches."""
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
    """Data and training: by default all of the library without its tests, and some minutes on two cores."""

    classes: int = 20_000
    context: int = 8
    embedding: int = 32
    tokens: int = 2_000_000
    seed: int = 0
    tests: bool = False
    hidden: int = 96
    batch_size: int = 512
    epochs: int = 2
    minutes: float = math.inf
    optimizer: str = "adam"
    learning_rate: float = 0.005
    max_memory: int = 64
    dtype: str = "float32"
    backend: str = "numpy"

    def __post_init__(self) -> None:
        ranges = {"classes": (FEWEST_CLASSES, MOST_CLASSES), "context": (1, 64), "embedding": (1, 1_024)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{flag(name)} must be from {least} to {most}, got {getattr(self, name)}")
        for name in ("tokens", "hidden", "batch_size", "epochs", "max_memory"):
            if getattr(self, name) < 1:
                raise ValueError(f"{flag(name)} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {self.seed}")
        if not self.minutes > 0.0:
            raise ValueError(f"--minutes must be a positive number, got {self.minutes}")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"--learning-rate must be a positive number, got {self.learning_rate}")

    @property
    def features(self) -> int:
        """D."""
        return self.context * self.embedding


TINY = Settings(classes=1_000, context=4, embedding=8, tokens=60_000, hidden=32, batch_size=256, epochs=3)
CHOICES = {"optimizer": ("adam", "sgd"), "dtype": ("float32", "float64"), "backend": ("numpy", "cupy")}
HELP = {
    "tests": "with the tests of the library",
    "epochs": "through the training files",
    "minutes": "end the training after so many",
    "optimizer": f"sgd has Nesterov momentum of {MOMENTUM:g}",
    "learning_rate": "falls linearly to 0; sgd takes about 0.5",
    "max_memory": "MiB of temporary memory of a step",
}


def flag(name: str) -> str:
    """Spell the option of a setting."""
    return "--" + name.replace("_", "-")


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


@dataclass(frozen=True)
class Library:
    """What holds the arrays, and the only ways in which numbers get there."""

    xp: Any
    asarray: Callable[[np.ndarray], Any]
    finish: Callable[[], object]  # wait for the device
    room: Callable[[], float]  # bytes
    peak: Callable[[], int]  # bytes that training has allocated


@dataclass(frozen=True)
class Outcome:
    """What the training did."""

    parameters: int
    steps: int
    epochs: int  # that were completed
    tokens_seen: int
    training_seconds: float  # all of it
    tokens_per_second: float  # of steps
    train_loss: float  # mean of the last batches
    validation_loss: float
    validation_accuracy: float
    parameter_bytes: int
    training_peak_bytes: int
    process_peak_bytes: int | None
    logits_bytes: int  # of all rows, which are never in memory
    curve: dict[str, list[float]]  # tokens seen, loss
    epoch_losses: list[float]  # validation
    epoch_accuracies: list[float]
    problems: list[str] = field(default_factory=list)  # any makes the exit status 1


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
    table = rng.standard_normal((settings.classes + 1, settings.embedding), dtype=np.float32)
    return table.astype(settings.dtype)


def inputs(part: Part, table: np.ndarray, context: int, path: Path) -> np.memmap:
    """Write the inputs of the network to a file, a few rows at a time; return them, (N, D)."""
    shape = (len(part.positions), context * table.shape[1])
    X = np.memmap(path, dtype=table.dtype, mode="w+", shape=shape)
    for first in range(0, shape[0], FILL_ROWS):
        rows = slice(first, min(first + FILL_ROWS, shape[0]))
        X[rows] = table[part.contexts(rows, context)].reshape(-1, shape[1])
    return X


def input_bytes(found: Corpus, settings: Settings) -> int:
    """Return how large the files of the inputs will be; refuse more than `DISK_LIMIT`."""
    rows = len(found.train.positions) + len(found.validation.positions)
    size = rows * settings.features * np.dtype(settings.dtype).itemsize
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


# --- the training -----------------------------------------------------------------------------------------------------


def library(name: str) -> Library:
    """Return what computes; with CuPy there must be a GPU."""
    if name == "numpy":
        return Library(np, np.asarray, lambda: None, lambda: math.inf, lambda: tracemalloc.get_traced_memory()[1])
    try:
        import cupy

        cupy.zeros(1)
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the reason
        raise ValueError(f"--backend cupy cannot be used: {described(error)}") from None
    pool = cupy.get_default_memory_pool()
    stream = cupy.cuda.get_current_stream()
    return Library(cupy, cupy.asarray, stream.synchronize, lambda: cupy.cuda.Device().mem_info[0], pool.total_bytes)


def first_params(counts: np.ndarray, settings: Settings, lib: Library) -> tuple[xs.Layer, ...]:
    """Draw a network whose first guess is about the frequencies of the classes, whatever stands before.

    The biases of the output layer are the logarithms of the frequencies, and its weights are small. Otherwise the first
    hundred steps or so would only learn that most classes are rare (A. Karpathy, "A recipe for training neural
    networks", 2019, "init well"; for two classes T.-Y. Lin et al., "Focal loss for dense object detection", ICCV 2017,
    section 3.3). Without it the first loss is log C and above: 10.9 in place of 4.9.
    """
    sizes = (settings.features, settings.hidden, settings.classes)
    hidden, output = xs.init_params(sizes, rng=settings.seed, dtype=getattr(lib.xp, settings.dtype), xp=lib.xp)
    bias = lib.asarray(np.log(counts / counts.sum()).astype(settings.dtype))
    return hidden, xs.Layer(SMALL_WEIGHTS * output.weight, bias)


def optimizer(settings: Settings, steps: int) -> Any:
    """Return the optimiser; its learning rate rises for a few steps, then falls linearly to 0.

    A. Defazio et al., "Optimal linear decay learning rate schedules and further refinements", arXiv:2310.07831.
    """
    warm_up = min(WARM_UP, 1 + steps // 10)

    def rate(step: int) -> float:
        return settings.learning_rate * min((step + 1) / warm_up, 1.0 - step / steps)

    return xs.adam(rate) if settings.optimizer == "adam" else xs.sgd(rate, momentum=MOMENTUM, nesterov=True)


class Watch:
    """Called after each step: times it, moves the bar, and ends the training when its time is over."""

    def __init__(self, settings: Settings, lib: Library, tick: Callable[[], object]) -> None:
        self.lib, self.tick = lib, tick
        self.start = self.last = time.perf_counter()
        self.deadline = self.start + 60.0 * settings.minutes
        self.epoch = -1
        self.seconds = 0.0  # of all steps but the first of each epoch

    def __call__(self, step: xs.TrainStep) -> bool:
        """Whether the time is over."""
        self.lib.finish()
        now = time.perf_counter()
        if step.epoch == self.epoch:
            self.seconds += now - self.last
        self.epoch, self.last = step.epoch, now
        self.tick()
        return now >= self.deadline


def trained(found: Corpus, folder: Path, settings: Settings, lib: Library, console: Console) -> Outcome:
    """Write the inputs, train on them and measure."""
    table = embedding(settings)
    data = []  # training, validation
    for name, part in (("train", found.train), ("validation", found.validation)):
        X = inputs(part, table, settings.context, folder / name)
        data.append((lib.asarray(X), lib.asarray(part.targets)))
    rows, validation_rows = (len(part.positions) for part in (found.train, found.validation))
    sizes = np.diff([*range(0, rows, settings.batch_size), rows])  # of the batches of an epoch
    steps = settings.epochs * len(sizes)
    tracemalloc.start()  # steps of a millisecond take longer by it, those with many classes hardly
    params = first_params(np.bincount(found.train.targets), settings, lib)
    problems = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("training", total=steps)
        watch = Watch(settings, lib, lambda: bars.advance(bar))
        try:
            result = xs.train(
                params,
                *data[0],
                optimizer=optimizer(settings, steps),
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                rng=settings.seed,
                validation=data[1],
                callback=watch,
                max_memory=settings.max_memory * 2**20,
            )
        except xs.DivergenceError as error:
            result = error.result
            problems.append(str(error))
    seconds = time.perf_counter() - watch.start
    history, state = result.history, result.state
    losses, accuracies = (history.get(f"validation_{name}", []) for name in ("loss", "accuracy"))
    unfinished = state.step > 0 or not losses
    last = evaluated(result.params, *data[1], settings) if unfinished else (losses[-1], accuracies[-1])
    peak = lib.peak()
    tracemalloc.stop()
    seen = np.resize(sizes, len(history["loss"]))
    timed = np.arange(len(seen)) % len(sizes) != 0
    curve = smoothed(seen, history["loss"])
    itemsize = np.dtype(settings.dtype).itemsize
    numbers = sum(array.size for layer in params for array in layer)
    return Outcome(
        parameters=numbers,
        steps=len(seen),
        epochs=state.epoch,
        tokens_seen=int(seen.sum()),
        training_seconds=seconds,
        tokens_per_second=float(seen[timed].sum()) / watch.seconds if timed.any() else math.nan,
        train_loss=curve["loss"][-1] if curve["loss"] else math.nan,
        validation_loss=last[0],
        validation_accuracy=last[1],
        parameter_bytes=numbers * itemsize,
        training_peak_bytes=peak,
        process_peak_bytes=process_peak(),
        logits_bytes=(rows + validation_rows) * settings.classes * itemsize,
        curve=curve,
        epoch_losses=losses,
        epoch_accuracies=accuracies,
        problems=problems,
    )


def evaluated(params: tuple[xs.Layer, ...], X: Any, targets: Any, settings: Settings) -> tuple[float, float]:
    """Return loss and accuracy: for a training that ended within an epoch, after which `train` would compute them."""
    budget = settings.max_memory * 2**20
    loss = float(xs.mlp_loss(params, X, targets, max_memory=budget))
    width = params[-1].weight.shape[1] + 2 * params[0].weight.shape[1]
    rows = max(1, budget // (2 * width * X.dtype.itemsize))
    parts = [slice(first, first + rows) for first in range(0, len(targets), rows)]
    # After a divergence logits may be nan: such rows get the label -1, which is no target.
    right = sum(int((xs.mlp_predict(params, X[part], validate=False) == targets[part]).sum()) for part in parts)
    return loss, right / len(targets)


def smoothed(seen: np.ndarray, losses: Sequence[float]) -> dict[str, list[float]]:
    """Return at most `CURVE_POINTS` means of as many batches each, and the tokens that were seen after these."""
    count = len(losses)
    size = max(1, math.ceil(count / CURVE_POINTS))
    parts = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    total = np.cumsum(seen)
    return {
        "tokens": [int(total[part.stop - 1]) for part in parts],
        "loss": [float(np.average(losses[part], weights=seen[part])) for part in parts],
    }


def process_peak() -> int | None:
    """Return the largest resident size that this process had, in bytes; None where it is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # elsewhere it is in KiB


def judged(known: Facts, done: Outcome) -> list[str]:
    """Say where the network is no better than the frequencies."""
    problems = []
    if not done.validation_loss < known.unigram_cross_entropy:  # nan is not better
        problems.append(
            f"the validation loss is {done.validation_loss:.4f}, the unigram's {known.unigram_cross_entropy:.4f}"
        )
    if not done.validation_accuracy > known.unigram_accuracy:
        problems.append(f"the accuracy is {done.validation_accuracy:.2%}, the unigram's {known.unigram_accuracy:.2%}")
    return problems


# --- what is printed, drawn and written -------------------------------------------------------------------------------


def show_facts(known: Facts, console: Console) -> None:
    """Print the facts, one a line."""
    table = Table("", "", title="Next token, Python standard library", show_header=False)
    table.columns[1].justify = "right"
    for name, value in asdict(known).items():
        text = f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        table.add_row(name.replace("_", " "), escape(text))
    console.print(table)


def show_outcome(known: Facts, done: Outcome, settings: Settings, console: Console) -> None:
    """Print what was reached beside what is reached without a network, and what it took."""
    table = Table("validation files", title=f"{settings.features} x {settings.hidden} x {settings.classes} network")
    for heading in ("network", "unigram"):
        table.add_column(heading, justify="right")
    table.add_row("top-1 accuracy", f"{done.validation_accuracy:.2%}", f"{known.unigram_accuracy:.2%}")
    table.add_row("cross-entropy", f"{done.validation_loss:.4f}", f"{known.unigram_cross_entropy:.4f}")
    console.print(table)
    costs = Table("", "", title="Training", show_header=False)
    costs.columns[1].justify = "right"
    peak = "unknown" if done.process_peak_bytes is None else f"{done.process_peak_bytes / 2**20:,.0f}"
    for name, text in {
        "parameters": f"{done.parameters:,}",
        "steps": f"{done.steps:,}",
        "complete epochs": str(done.epochs),
        "loss of the last batches": f"{done.train_loss:.4f}",
        "tokens per second": f"{done.tokens_per_second:,.0f}",
        "minutes, validation included": f"{done.training_seconds / 60.0:.1f}",
        "MiB allocated by training, peak": f"{done.training_peak_bytes / 2**20:,.0f}",
        "... of it parameters": f"{done.parameter_bytes / 2**20:,.0f}",
        "MiB of the process, peak": peak,
        "MiB of all logits (never held)": f"{done.logits_bytes / 2**20:,.0f}",
    }.items():
        costs.add_row(name, text)
    console.print(costs)
    for problem in done.problems:
        console.print(f"PROBLEM: {problem}", style="bold red", markup=False, highlight=False)


def draw(known: Facts, done: Outcome, path: Path) -> None:
    """Draw the loss over the tokens seen, and the validation accuracy."""
    with drawn(path, 1, 2, (11, 4.2), dpi=120) as (_, ((left, right),)):
        million = 1e-6
        epochs = million * known.train_tokens * np.arange(1, len(done.epoch_losses) + 1)
        left.plot(million * np.array(done.curve["tokens"]), done.curve["loss"], color="C0", label="training batches")
        left.axhline(known.unigram_cross_entropy, color="0.3", linestyle="--", label="unigram, validation files")
        right.axhline(100.0 * known.unigram_accuracy, color="0.3", linestyle="--", label="unigram")
        for axes, found, at_the_end in (
            (left, done.epoch_losses, done.validation_loss),
            (right, [100.0 * share for share in done.epoch_accuracies], 100.0 * done.validation_accuracy),
        ):
            places, values = list(epochs), list(found)
            if not places or done.tokens_seen * million > places[-1]:  # it ended within an epoch
                places, values = [*places, million * done.tokens_seen], [*values, at_the_end]
            axes.plot(places, values, "o-", color="C1", label="validation files")
            axes.set_xlabel("million tokens seen")
            axes.set_xlim(left=0.0)
            axes.grid(visible=True, alpha=0.3)
        left.set(ylabel="nats a token", title=f"Loss, {known.classes:,} classes")
        right.set(ylabel="%", title="Top-1 accuracy", ylim=(0.0, None))
        for axes in (left, right):
            axes.legend()


def as_json(known: Facts, done: Outcome, settings: Settings, argv: Sequence[str]) -> str:
    """Everything as JSON; numbers that are not finite become null."""
    packages = ("array-api-compat", "numpy", "matplotlib", "rich")
    found = {"options": asdict(settings), "data": asdict(known), "training": asdict(done)}
    return json_text(run_record("examples/train_tokens.py", argv, packages, **found))


# --- the command line -------------------------------------------------------------------------------------------------


def parser(defaults: Settings) -> Parser:
    """Name the options."""
    options = parser_of(__file__, __doc__)
    options.add_argument("--tiny", action="store_true", help="a few seconds, for a look or a test")
    for setting in fields(Settings):
        name, default = setting.name, getattr(defaults, setting.name)
        if isinstance(default, bool):
            options.add_argument(flag(name), action="store_true", help=HELP[name])
            continue
        text = "; ".join(filter(None, (HELP.get(name), "default: %(default)s")))
        options.add_argument(flag(name), type=type(default), choices=CHOICES.get(name), default=default, help=text)
    options.add_files("train_tokens", json="json", plot="png")
    return options


def fitting(found: Corpus, settings: Settings, lib: Library) -> Facts:
    """Return the facts; refuse what does not fit on the disk or the device."""
    known = facts(found, settings)
    one = np.dtype(settings.dtype).itemsize * (settings.classes + settings.features) * settings.hidden
    needed = known.input_bytes + 5 * one + settings.max_memory * 2**20  # parameters, gradients and state
    if needed > lib.room():
        raise ValueError(
            f"--tokens, --context and --embedding must leave room on the device of {lib.room() / 2**20:.0f} MiB, "
            f"got inputs and a network of {needed / 2**20:.0f} MiB"
        )
    return known


def main(argv: Sequence[str] | None = None) -> int:
    """Build the data, train, print, draw and write; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser(TINY if "--tiny" in argv else Settings())
    given = options.parse_args(argv)
    console = Console()
    try:
        settings = Settings(**{setting.name: getattr(given, setting.name) for setting in fields(Settings)})
        lib = library(settings.backend)
        options.check_files(given.json, given.plot)
        found = corpus(sources(Path(sysconfig.get_path("stdlib")), tests=settings.tests), settings)
        known = fitting(found, settings, lib)
    except (OSError, ValueError) as error:
        options.error(str(error))
    show_facts(known, console)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps files that are mapped
        done = trained(found, Path(folder), settings, lib, console)
    done.problems.extend(judged(known, done))
    show_outcome(known, done, settings, console)
    draw(known, done, given.plot)
    given.json.write_text(as_json(known, done, settings, argv))
    console.print(f"Written: {given.json} and {given.plot}", markup=False, highlight=False, soft_wrap=True)
    return 1 if done.problems else 0


if __name__ == "__main__":
    sys.exit(main())
