"""The next-token data set: which tokens, which classes, no leak between its parts, bounded memory."""

from __future__ import annotations

import json
import math
import sysconfig
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rich")

import train_tokens as script


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


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_tiny_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert script.main(["--tiny", "--json", "new/a.json"]) == 0
    text = capsys.readouterr().out
    assert "unigram accuracy" in text
    assert "<newline>" in text or "<rest>" in text
    assert "new/a.json" in text
    content = json.loads(Path("new/a.json").read_text())
    assert content["command"] == "python scripts/train_tokens.py --tiny --json new/a.json"
    assert content["options"]["classes"] == content["data"]["classes"] == 1_000
    assert content["data"]["train_tokens"] + content["data"]["validation_tokens"] == 60_000
    assert "numpy" in content["versions"]
    assert str(tmp_path) not in json.dumps(content)


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
        (["--tiny", "--classes", "50000"], "--classes must be at most "),
        (["--json", "."], "Is a directory"),
    ],
)
def test_bad_options_end_with_status_2_and_one_line(monkeypatch, tmp_path, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        script.main(options)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
