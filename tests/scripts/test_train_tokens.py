"""Next tokens: which tokens, which classes, no leak between the parts; a network that learns, in bounded memory."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import sysconfig
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

import train_tokens as script

import xpsoftmax as xs


@pytest.fixture(scope="module")
def tiny():
    """The data of --tiny."""
    root = Path(sysconfig.get_path("stdlib"))
    return script.corpus(script.sources(root, tests=False), script.TINY)


@pytest.fixture
def tree(tmp_path):
    """Thirty files: each has a name of its own and 40 that all share."""
    shared = " ".join(f"s{i} ;" for i in range(40))
    for i in range(30):
        (tmp_path / f"m{i:02}.py").write_text(f"own{i}\n{shared}\n")
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    """Settings for it: the 40, ";", the end of a line, and the rest."""
    monkeypatch.setattr(script, "FEWEST_CLASSES", 1)
    return replace(script.TINY, context=3, classes=43)


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_of_a_file(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('"""Long,\nvery."""\n# a comment\n\ndef f(x):\n    return x + 0x1F  # why\nf("key")\n')
    line, deeper, shallower = "<newline>", "<indent>", "<dedent>"
    assert script.tokens(path) == [
        *("<string>", line),
        *("def", "f", "(", "x", ")", ":", line),
        *(deeper, "return", "x", "+", "0x1F", line, shallower),
        *("f", "(", '"key"', ")", line),
    ]


@pytest.mark.parametrize(("length", "kept"), [(24, True), (25, False)])
def test_long_strings_are_one_class(tmp_path, length, kept):
    path = tmp_path / "a.py"
    literal = repr("x" * (length - 2))
    path.write_text(literal)
    assert script.tokens(path)[0] == (literal if kept else "<string>")


def test_the_text_of_f_strings_is_no_code(tmp_path):
    """One token up to Python 3.11, several from 3.12 on."""
    path = tmp_path / "a.py"
    path.write_text('f"a long text that nobody has ever written before {x}"')
    assert "<string>" in script.tokens(path)
    assert not any("long" in word for word in script.tokens(path))


def test_encodings_are_respected(tmp_path):
    path = tmp_path / "a.py"
    path.write_bytes("# coding: latin-1\nä = 'é'\n".encode("latin-1"))
    assert script.tokens(path) == ["ä", "=", "'é'", "<newline>"]


# --- files ------------------------------------------------------------------------------------------------------------


def test_sources_are_sorted_and_leave_out_what_is_not_the_library(tmp_path):
    names = ["b.py", "a/z.py", "a/b.py", "a.py", "a/test/t.py", "test/t.py", "site-packages/s.py", "a/data.txt"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def found(*, tests):
        return [path.relative_to(tmp_path).as_posix() for path in script.sources(tmp_path, tests=tests)]

    assert found(tests=False) == ["a/b.py", "a/z.py", "a.py", "b.py"]
    assert found(tests=True) == ["a/b.py", "a/test/t.py", "a/z.py", "a.py", "b.py", "test/t.py"]


def test_every_tenth_file_is_for_validation(tree, small):
    found = script.corpus(script.sources(tree, tests=False), small)
    assert (found.train.files, found.validation.files) == (27, 3)
    assert (len(found.train.positions), len(found.validation.positions)) == (27 * 83, 3 * 83)


def test_classes_come_from_the_training_files_alone(tree, small):
    """The names that only validation files have are the rest, like the last of the training files'."""
    found = script.corpus(script.sources(tree, tests=False), replace(small, classes=42 + 27))
    own = [word for word in found.words if word.startswith("own")]
    assert len(own) == 26
    assert np.count_nonzero(found.validation.targets == 0) == 3
    assert found.words[0] == "<rest>"


def test_files_that_cannot_be_read_are_counted(tree, small):
    (tree / "bad_coding.py").write_text("# coding: no-such-encoding\n")
    (tree / "unfinished.py").write_text("f(\n")
    (tree / "dedent.py").write_text("if x:\n        y\n    z\n")
    found = script.corpus(script.sources(tree, tests=False), small)
    assert found.unreadable == 3
    assert found.train.files + found.validation.files == 30


def test_the_number_of_tokens_is_exact(tree, small):
    limit = 15 * 83 + 7
    found = script.corpus(script.sources(tree, tests=False), replace(small, tokens=limit))
    assert len(found.train.positions) + len(found.validation.positions) == limit


def test_too_few_files_for_validation(tree, small):
    with pytest.raises(ValueError, match="--tokens must be enough for 10 files, got 83"):
        script.corpus(script.sources(tree, tests=False), replace(small, tokens=83))


def test_more_classes_than_tokens(tree, small):
    paths = script.sources(tree, tests=False)
    with pytest.raises(ValueError, match=r"--classes must be at most 69, .*, got 70; --tests and --tokens give more"):
        script.corpus(paths, replace(small, classes=70))
    found = script.corpus(paths, replace(small, classes=69))
    assert np.bincount(found.train.targets, minlength=69).min() == 1


# --- the data of the library ------------------------------------------------------------------------------------------


def test_classes_are_ranks(tiny):
    counts = np.bincount(tiny.train.targets, minlength=len(tiny.words))
    assert len(tiny.words) == len(counts) == 1_000
    assert (np.diff(counts[1:]) <= 0).all()
    assert counts.min() >= 1
    assert {"self", "(", "<newline>"} <= set(tiny.words[1:30])


def test_equally_frequent_tokens_are_in_the_order_of_their_appearance(tree, small):
    found = script.corpus(script.sources(tree, tests=False), small)
    assert found.words == ["<rest>", ";", "<newline>", *(f"s{i}" for i in range(40))]


def test_two_builds_are_the_same_and_another_seed_takes_other_files(tiny):
    paths = script.sources(Path(sysconfig.get_path("stdlib")), tests=False)
    same = script.corpus(paths, script.TINY)
    assert same.words == tiny.words
    np.testing.assert_array_equal(same.train.stream, tiny.train.stream)
    np.testing.assert_array_equal(same.validation.stream, tiny.validation.stream)
    other = script.corpus(paths, replace(script.TINY, seed=1))
    assert other.words != tiny.words
    assert not np.array_equal(script.embedding(script.TINY), script.embedding(replace(script.TINY, seed=1)))
    np.testing.assert_array_equal(script.embedding(script.TINY), script.embedding(script.TINY))


def test_contexts_are_the_tokens_before_and_end_at_a_file(tree, small):
    found = script.corpus(script.sources(tree, tests=False), small)
    words = [*found.words, "<start>"]
    contexts = found.train.contexts(slice(0, None), small.context)
    rows = [[words[i] for i in row] for row in contexts]
    targets = [words[i] for i in found.train.targets]
    assert rows[0] == ["<start>"] * 3
    assert rows[3] == ["<rest>", "<newline>", "s0"]
    assert targets[:4] == ["<rest>", "<newline>", "s0", ";"]
    assert rows[83] == ["<start>"] * 3  # the next file
    assert sum(row == ["<start>"] * 3 for row in rows) == found.train.files
    for row, target, after in zip(rows, targets, rows[1:], strict=False):
        assert after == [*row[1:], target] or after == ["<start>"] * 3


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_inputs_are_rows_of_the_table(tiny, tmp_path):
    table = script.embedding(script.TINY)
    assert table.shape == (1_001, 8)
    X = script.inputs(tiny.validation, table, script.TINY.context, tmp_path / "X")
    assert X.dtype == np.float32
    assert X.shape == (len(tiny.validation.positions), script.TINY.features)
    np.testing.assert_array_equal(X[0], np.tile(table[-1], 4))  # nothing stands before the first token
    before = tiny.validation.targets[:20]
    for row in range(4, 20):
        np.testing.assert_array_equal(X[row], table[before[row - 4 : row]].ravel())
    assert len(np.unique(table, axis=0)) == 1_001


def test_inputs_are_written_in_parts_and_all_rows_of_them(tiny, tmp_path, monkeypatch):
    table = script.embedding(script.TINY)
    whole = script.inputs(tiny.train, table, 4, tmp_path / "whole")
    monkeypatch.setattr(script, "FILL_ROWS", 1_000)  # does not divide the number of rows
    np.testing.assert_array_equal(script.inputs(tiny.train, table, 4, tmp_path / "parts"), whole)
    assert (tmp_path / "whole").stat().st_size == whole.nbytes
    assert np.abs(whole[-1]).max() > 0.0


def test_inputs_take_the_memory_of_a_part_alone(tiny, tmp_path):
    table = script.embedding(script.TINY)
    tracemalloc.start()
    try:
        X = script.inputs(tiny.train, table, 4, tmp_path / "X")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < X.nbytes / 2
    assert peak < 4 * script.FILL_ROWS * script.TINY.features * 4


def test_too_large_inputs_are_refused(tiny, monkeypatch):
    size = script.input_bytes(tiny, script.TINY)
    assert size == 60_000 * 4 * 8 * 4
    monkeypatch.setattr(script, "DISK_LIMIT", size - 1)
    with pytest.raises(ValueError, match=r"must make inputs of at most .* GiB, got 0.0 GiB"):
        script.input_bytes(tiny, script.TINY)


# --- facts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.3])
def test_zipf_exponent_of_exact_frequencies(exponent):
    counts = 1e6 * np.arange(1.0, 2_000.0) ** -exponent
    assert script.zipf_exponent(counts[::-1]) == pytest.approx(exponent, rel=1e-9)
    assert script.zipf_exponent(np.append(counts, 0.0)) == pytest.approx(exponent, rel=1e-9)


def part(classes, context=2):
    """One file with tokens of these classes."""
    return script.Part(np.array([script.START] * context + classes, np.int32), np.arange(len(classes)) + context, 1)


def test_facts(small):
    """The frequencies are those of the training tokens, the tokens to be named those for validation."""
    found = script.Corpus(["<rest>", "a", "b"], part([1, 2, 1, 0, 2, 1]), part([2, 1, 2, 0]), 5)
    known = script.facts(found, replace(small, classes=3, context=2))
    assert (known.classes, known.train_tokens, known.validation_tokens, known.unreadable_files) == (3, 6, 4, 5)
    assert (known.unigram_token, known.unigram_accuracy, known.rest_share) == ("a", 1 / 4, 1 / 4)
    assert known.unigram_cross_entropy == pytest.approx(-(math.log(3 / 6) + 2 * math.log(2 / 6) + math.log(1 / 6)) / 4)
    assert known.zipf_exponent == pytest.approx(math.log(3 / 2) / math.log(2))  # the rest has no rank
    assert known.input_bytes == 10 * 2 * 8 * 4


def test_the_library_follows_zipfs_law(tiny):
    known = script.facts(tiny, script.TINY)
    assert 0.9 < known.zipf_exponent < 1.5
    assert 0.02 < known.unigram_accuracy < 0.3
    assert 2.0 < known.unigram_cross_entropy < math.log(1_000)


# --- the training -----------------------------------------------------------------------------------------------------


@pytest.fixture
def lib():
    return script.library("numpy")


def test_the_first_guess_is_the_frequencies(tiny, lib, tmp_path):
    counts = np.bincount(tiny.train.targets)
    X = script.inputs(tiny.validation, script.embedding(script.TINY), script.TINY.context, tmp_path / "X")
    params = script.first_params(counts, script.TINY, lib)
    plain = xs.init_params((32, 32, 1_000), rng=0, dtype=np.float32)
    unigram = script.facts(tiny, script.TINY).unigram_cross_entropy
    assert float(xs.mlp_loss(params, X, tiny.validation.targets)) == pytest.approx(unigram, abs=0.05)
    assert float(xs.mlp_loss(plain, X, tiny.validation.targets)) > unigram + 2.0
    np.testing.assert_array_equal(params[0].weight, plain[0].weight)
    assert np.exp(params[1].bias).sum() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 10_000])
def test_the_learning_rate_rises_and_falls(steps):
    rate = script.optimizer(script.TINY, steps).learning_rate
    rates = np.array([rate(step) for step in range(steps)])
    top = int(np.argmax(rates))
    assert top <= min(50, steps / 10)
    assert 0.99 * script.TINY.learning_rate < rates[top] <= script.TINY.learning_rate or steps < 100
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert 0.0 < rates[-1] <= script.TINY.learning_rate / steps * 1.001


def test_optimizers():
    assert type(script.optimizer(script.TINY, 9)) is type(xs.adam(0.1))
    sgd = script.optimizer(replace(script.TINY, optimizer="sgd"), 9)
    assert (sgd.momentum, sgd.nesterov) == (0.9, True)


def test_the_loss_is_smoothed_by_means_of_batches():
    seen = np.array([10, 10, 5] * 200)
    curve = script.smoothed(seen, [1.0, 2.0, 9.0] * 200)
    assert len(curve["loss"]) == len(curve["tokens"]) == 200
    assert curve["loss"] == [pytest.approx(75 / 25)] * 200
    assert curve["tokens"] == list(range(25, 5_001, 25))
    uneven = script.smoothed(np.full(201, 2), np.arange(201.0))
    assert (len(uneven["loss"]), uneven["loss"][0], uneven["loss"][-1], uneven["tokens"][-1]) == (101, 0.5, 200.0, 402)
    assert script.smoothed(np.array([], int), []) == {"tokens": [], "loss": []}


def test_evaluated_is_what_train_computes(tiny, tmp_path, monkeypatch):
    settings = replace(script.TINY, max_memory=1)  # several chunks
    X = script.inputs(tiny.validation, script.embedding(settings), settings.context, tmp_path / "X")
    y = tiny.validation.targets
    params = xs.init_params((32, 8, 1_000), rng=0, dtype=np.float32)
    result = xs.train(params, X, y, optimizer=xs.adam(0.01), epochs=1, batch_size=64, rng=0, validation=(X, y))
    loss, accuracy = script.evaluated(result.params, X, y, settings)
    assert loss == pytest.approx(result.history["validation_loss"][0], rel=1e-5)
    assert accuracy == result.history["validation_accuracy"][0] > 0.1


def outcome(known, **changes):
    """That of a training which reached what is known without one."""
    names = [field for field in script.Outcome.__dataclass_fields__ if field != "problems"]
    values = dict.fromkeys(names, 0) | {
        "validation_loss": known.unigram_cross_entropy,
        "validation_accuracy": known.unigram_accuracy,
    }
    return script.Outcome(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({}, 2),
        ({"validation_loss": 1.0}, 1),
        ({"validation_accuracy": 0.9}, 1),
        ({"validation_loss": 1.0, "validation_accuracy": 0.9}, 0),
        ({"validation_loss": math.nan, "validation_accuracy": 0.9}, 1),
    ],
)
def test_no_better_than_the_unigram_is_a_problem(tiny, changes, problems):
    known = script.facts(tiny, script.TINY)
    assert len(script.judged(known, outcome(known, **changes))) == problems


def test_what_does_not_fit_on_the_device_is_refused(tiny, lib):
    room = script.facts(tiny, script.TINY).input_bytes + 64 * 2**20
    with pytest.raises(
        ValueError, match=r"must leave room on the device of 71 MiB, got inputs and a network of 72 MiB"
    ):
        script.fitting(tiny, script.TINY, replace(lib, room=lambda: room))
    script.fitting(tiny, script.TINY, replace(lib, room=lambda: 2 * room))


# --- the command ------------------------------------------------------------------------------------------------------


def run(*options):
    """Status and JSON of a tiny run under the current directory."""
    status = script.main(["--tiny", "--json", "a.json", "--plot", "a.png", *options])
    return status, json.loads(Path("a.json").read_text())


def test_a_tiny_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert script.main(["--tiny", "--json", "new/a.json", "--plot", "new/a.png"]) == 0
    text = capsys.readouterr().out
    for words in ("unigram accuracy", "<newline>", "top-1 accuracy", "tokens per second", "new/a.json", "new/a.png"):
        assert words in text
    assert Path("new/a.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads(Path("new/a.json").read_text())
    assert content["command"] == "python examples/train_tokens.py --tiny --json new/a.json --plot new/a.png"
    assert "numpy" in content["versions"]
    assert str(tmp_path) not in json.dumps(content)

    data, done = content["data"], content["training"]
    assert content["options"]["classes"] == data["classes"] == 1_000
    assert content["options"]["minutes"] is None  # JSON has no infinity
    assert data["train_tokens"] + data["validation_tokens"] == 60_000
    assert done["validation_accuracy"] > data["unigram_accuracy"] + 0.15
    assert done["validation_loss"] < data["unigram_cross_entropy"] - 0.8
    assert done["train_loss"] < done["curve"]["loss"][0] - 1.0
    assert done["tokens_seen"] == 3 * data["train_tokens"] == done["curve"]["tokens"][-1]
    assert (done["epochs"], done["steps"]) == (3, 3 * math.ceil(data["train_tokens"] / 256))
    assert (len(done["epoch_losses"]), done["epoch_losses"][-1]) == (3, done["validation_loss"])
    assert (len(done["epoch_accuracies"]), done["epoch_accuracies"][-1]) == (3, done["validation_accuracy"])
    assert 0.5 < done["tokens_per_second"] * done["training_seconds"] / done["tokens_seen"] < 20.0
    assert done["parameters"] == 32 * 32 + 32 + 32 * 1_000 + 1_000
    # Adam: first and current parameters, gradients and two means
    assert 5 * done["parameter_bytes"] < done["training_peak_bytes"] < done["logits_bytes"] / 4
    assert done["logits_bytes"] == 60_000 * 1_000 * 4
    assert done["problems"] == []
    assert not tracemalloc.is_tracing()


def test_two_runs_are_the_same_and_another_seed_is_another(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = ("--epochs", "1", "--tokens", "30000")
    losses = [run(*options, "--seed", seed)[1]["training"]["curve"]["loss"] for seed in ("3", "3", "4")]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_sgd_in_float64(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = ("--optimizer", "sgd", "--learning-rate", "0.5", "--dtype", "float64", "--epochs", "1")
    status, content = run(*options)
    assert status == 0
    assert content["training"]["parameter_bytes"] == 8 * content["training"]["parameters"]
    assert content["data"]["input_bytes"] == 60_000 * 32 * 8


def test_no_time(monkeypatch, tmp_path):
    """The training ends after a step, and what was learnt is reported: too little."""
    monkeypatch.chdir(tmp_path)
    status, content = run("--minutes", "1e-9", "--learning-rate", "1e-9")
    done = content["training"]
    assert status == 1
    assert (done["steps"], done["epochs"], done["tokens_seen"]) == (1, 0, 256)
    assert done["tokens_per_second"] is None  # the only step was the first one
    assert done["validation_loss"] == pytest.approx(content["data"]["unigram_cross_entropy"], abs=0.05)
    assert any("the unigram's" in problem for problem in done["problems"])
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


def test_divergence_is_reported(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    status, content = run("--learning-rate", "1e30")
    assert status == 1
    assert "loss must be finite" in content["training"]["problems"][0]
    assert "PROBLEM: loss must be finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "999"], "--classes must be from 1000 to 50000, got 999"),
        (["--classes", "50001"], "--classes must be from 1000 to 50000, got 50001"),
        (["--context", "0"], "--context must be from 1 to 64, got 0"),
        (["--embedding", "2000"], "--embedding must be from 1 to 1024, got 2000"),
        (["--tokens", "0"], "--tokens must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--tokens", "many"], "argument --tokens: invalid int value: 'many'"),
        (["--hidden", "0"], "--hidden must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--max-memory", "0"], "--max-memory must be at least 1, got 0"),
        (["--minutes", "nan"], "--minutes must be a positive number, got nan"),
        (["--learning-rate", "0"], "--learning-rate must be a positive number, got 0.0"),
        (["--learning-rate", "inf"], "--learning-rate must be a positive number, got inf"),
        (["--optimizer", "adagrad"], "argument --optimizer: invalid choice: 'adagrad'"),
        (["--dtype", "float16"], "argument --dtype: invalid choice: 'float16'"),
        (["--backend", "cupy"], "--backend cupy cannot be used: "),
        (["--tiny", "--classes", "50000"], "--classes must be at most "),
        (["--json", "."], "Is a directory"),
        (["--plot", "."], "Is a directory"),
    ],
)
def test_bad_options_end_with_status_2_and_one_line(monkeypatch, tmp_path, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    with pytest.raises(SystemExit) as stop:
        script.main(options)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# --- memory under a real limit ----------------------------------------------------------------------------------------

# What is allocated once (BLAS, matplotlib, threads) is allocated by a first run; then the address space is limited to
# what the process has and 160 MiB. All logits would take N x C x 4, about 1 GiB, also if they came as one batch.
LIMITED = """
import os, resource, sys
import train_tokens as script

tiny = ["--tiny", "--epochs", "1", "--json", "a.json", "--plot", "a.png"]
assert script.main(tiny) == 0
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + 160 * 2**20,) * 2)
try:
    script.main([*tiny, "--tokens", "90000", "--classes", "3500", *sys.argv[1:]])
except MemoryError:
    print("refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS as on Linux")
@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ((), True),
        (("--batch-size", "1000000", "--max-memory", "32"), True),
        (("--batch-size", "1000000", "--max-memory", "4000"), False),
    ],
    ids=["minibatches", "one batch in chunks", "one batch at once"],
)
def test_many_classes_under_a_limit(tmp_path, options, fits):
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert ("refused" not in process.stdout) == fits
    content = json.loads((tmp_path / "a.json").read_text())
    if fits:
        assert content["data"]["classes"] == 3_500
        assert content["training"]["logits_bytes"] > 5 * 160 * 2**20
        assert content["training"]["training_peak_bytes"] < 160 * 2**20
