"""The site: its examples run, its names exist, its figures come from files, its truth table is true."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import re

import _tables
import _truth
import numpy as np
import pytest
from paths import DOCS, ROOT, TESTS

import xpsoftmax as xs
from xpsoftmax import kernels

PAGES = sorted(path for path in DOCS.rglob("*.md") if not {"adr", "_build", "api"} & set(path.parts))
NAMES = [path.relative_to(DOCS).as_posix() for path in PAGES]
pages = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def blocks(page):
    """Line and text of each block of Python."""
    text = page.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text[: match.start()].count("\n") + 1, match.group(1)


@pages
def test_the_examples_of_a_page_run(page, monkeypatch, tmp_path):
    for module in ("array_api_strict", "sklearn", "matplotlib", "torch", "jax"):
        if module == "array_api_strict" or re.search(rf"(from|import) {module}\b", page.read_text()):
            pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)  # some write files
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(kernels, "BACKENDS", kernels.BACKENDS)  # one page adds to them; if it fails they are put back
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception:  # noqa: BLE001 - no CuPy or no GPU: NumPy in its place, so that no example rots
        cupy = None
    namespace: dict = {}
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    for line, text in blocks(page):
        if cupy is None:
            text = text.replace("import cupy as cp", "import numpy as cp")
        if ">>> " in text:
            test = doctest.DocTestParser().get_doctest(text, namespace, page.name, str(page), line)
            report: list[str] = []
            result = doctest.DocTestRunner(optionflags=options).run(test, out=report.append, clear_globs=False)
            assert result.failed == 0, "".join(report)
            namespace.update(test.globs)
        else:
            exec(compile(text, f"{page.name}:{line}", "exec"), namespace)


def lines_of_code(text):
    """The lines of blocks of Python, without what they print."""
    for block in re.findall(r"^ *```python\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
        prompts = ">>> " in block
        yield from (line for line in block.splitlines() if not prompts or line.startswith((">>> ", "... ")))


@pages
def test_code_fits_its_column(page):
    """At 1400 pixels, between both sidebars."""
    assert [line for line in lines_of_code(page.read_text()) if len(line) > 104] == []


def test_code_of_docstrings_fits_its_column():
    found = [
        (path.name, line)
        for path in (ROOT / "xpsoftmax").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r" *(>>>|\.\.\.) ", line) and len(line.strip()) > 100
    ]
    assert found == []


def test_pages_have_examples():
    with_examples = [name for name, page in zip(NAMES, PAGES, strict=True) if list(blocks(page))]
    assert {"index.md", "derivation.md", "vanishing.md"} <= set(with_examples)
    assert len(with_examples) >= 9


# --- what a page names exists -----------------------------------------------------------------------------------------


def defined_tests():
    names = set()
    for path in TESTS.rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return names


@pages
def test_tests_that_a_page_names_exist(page):
    files = {path.name for path in TESTS.rglob("*.py")}
    functions = defined_tests()
    for name in re.findall(r"\btest_\w+(?:\.py)?", page.read_text()):
        assert name in (files if name.endswith(".py") else functions), name


def test_paths_that_a_text_names_exist():
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES, *(DOCS / "adr").glob("*.md")]
    texts += [path for path in (ROOT / "xpsoftmax").rglob("*") if path.suffix in (".py", ".cu", ".cuh")]
    named = {
        name
        for path in texts
        for name in re.findall(r"\b(?:tests|scripts|benchmarks|examples)/[\w/.-]*\w\.\w+", path.read_text("utf-8"))
    }
    assert len(named) > 40
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_the_map_names_every_module():
    drawn = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    words, files = set(re.findall(r"\w+", drawn)), re.findall(r"\b\w+\.py\b", drawn)
    modules = {path.stem for path in (ROOT / "xpsoftmax").rglob("*.py") if path.stem != "__init__"}
    assert modules <= words, "say in the map of CONTRIBUTING.md what they are"
    there = {
        path.name for folder in ("xpsoftmax", "scripts", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")
    }
    assert set(files) <= there | {"noxfile.py"}


@pages
def test_functions_that_a_page_names_exist(page):
    for name in re.findall(r"\{(?:func|class)\}`~xpsoftmax\.(\w+)`", page.read_text()):
        assert name in xs.__all__, name


@pages
def test_files_that_a_page_links_to_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for target in re.findall(r"^```\{(?:image|include|literalinclude)\} (\S+)$", text, re.MULTILINE):
        assert (page.parent / target).exists(), target


def test_every_equation_of_the_derivation_has_its_function_and_test():
    """Each numbered section names at least one of both; the two-loop form stands beside that with arrays."""
    text = (DOCS / "derivation.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    numbered = [section for section in sections if re.match(r"\d", section)]
    assert len(numbered) == 8
    for section in numbered:
        assert re.search(r"\btest_\w+", section), section[:40]
        assert "{func}`" in section or section.startswith("8"), section[:40]
    for form in ("dscores_two_loops", "dscores_vectorised", "two_layer"):
        assert f":pyobject: {form}\n" in text


def test_the_drawing_of_the_cases_has_the_numbers_of_the_text():
    drawn = (DOCS / "_static" / "cases.html").read_text().replace("\N{MINUS SIGN}", "-")
    numbers = [float(text) for text in re.findall(r">(-?\d[\d.]*)</text>", drawn)]
    z = np.log([[2.0, 3.0, 5.0]])
    _, dz = xs.softmax_loss_and_grad(z, np.array([1]))
    assert numbers == pytest.approx([*xs.softmax(z)[0], 0, 1, 0, *dz[0]], abs=1e-12)


def test_the_reference_has_every_public_name():
    listed = re.findall(r"^   (\w[\w.]*)$", (DOCS / "reference.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted([*xs.__all__, "MLPClassifier"])


# --- tables -----------------------------------------------------------------------------------------------------------


def tables_of(page):
    return re.findall(r"^```\{results\} (\S+) (\S+)$", page.read_text(), re.MULTILINE)


@pages
def test_the_tables_of_a_page_can_be_made(page):
    for kind, name in tables_of(page):
        text = _tables.results(kind, name)
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len(lines) >= 3
        assert len({line.count("|") for line in lines}) == 1, kind
        assert f"`{name}`: " in text
        assert "/tmp" not in text


def test_a_table_has_the_numbers_of_its_file():
    name = "2026-11-24-bench-2core-avx512.json"
    content = json.loads((_tables.RESULTS / name).read_text())
    text = _tables.bench(content, "softmax_loss_and_grad")
    case = {"operation": "softmax_loss_and_grad", "rows": 8192, "classes": 1000, "logits": "normal"}
    ratios = [
        next(x for x in content["findings"] if x["case"] == {**case, "dtype": dtype})["ratios"]["xpsoftmax"]
        for dtype in ("float32", "float64")
    ]
    header, _, *rows = text.splitlines()
    column = header.replace("<wbr>", "").split(" | ").index("8192x1000")
    row = next(row for row in rows if row.startswith("| **xpsoftmax**"))
    assert row.split(" | ")[column] == _tables.BESIDE.join(f"{ratio:.2f}" for ratio in ratios)


def test_where_a_table_comes_from():
    content = {
        "command": "python scripts/bench.py --step 2 --json a.json --plot b.png",  # where it was once
        "commit": "0123456789-dirty",
        "date": "2026-01-01",
        "versions": {"numpy": "2.0"},
        "hardware": {"cpu": "CPU", "cores": 2},
    }
    assert _tables.source(content, "a.json") == (
        "`a.json`: 2026-01-01, commit 0123456 with changes, 2 cores of CPU; numpy 2.0. "
        "Made by `python benchmarks/bench.py --step 2`."
    )


# --- numbers in the text ----------------------------------------------------------------------------------------------


def said(page, *phrases):
    text = " ".join((DOCS / page).read_text().split())
    for phrase in phrases:
        assert phrase in text, phrase


def runs_of(name):
    runs = json.loads((_tables.RESULTS / name).read_text())["runs"]
    return {formula: [{k: np.array(v, float) for k, v in run.items()} for run in of] for formula, of in runs.items()}


def jump(run):
    """The record at the end of the steepest rise of the loss."""
    return 1 + int(np.argmax(run["exact_loss"][1:] / run["exact_loss"][:-1]))


def test_the_text_about_the_training_is_true():
    runs = runs_of("2026-11-25-modular.json")
    standard, ours = runs["standard"], runs["xpsoftmax"]
    steps = standard[0]["step"]
    assert all(10500 <= steps[np.argmax(run["zero_share"] > 0.0)] <= 11500 for run in standard)  # about 11 000
    for run in standard:
        assert np.all(np.abs(run["exact_loss"][(steps >= 12000) & (steps <= 17000)] - 2e-7) < 0.5e-7)  # near 2e-7
        assert 17200 <= steps[jump(run)] <= 17800
        assert np.median(run["zero_share"][steps > 18000]) > 0.5
    factors = [run["exact_loss"][jump(run)] / run["exact_loss"][jump(run) - 1] for run in standard]
    before = [run["weight_norm"][np.argmax(run["zero_share"] > 0.0)] for run in standard]
    after = [run["weight_norm"][steps == 18200].item() for run in standard]
    low = [run["mean_logit"][steps == 18200].item() for run in standard]
    wrong = [
        (run["exact_loss"][i], run["train_accuracy"][i])
        for run in standard
        for i in np.flatnonzero((run["train_accuracy"] < 1.0) & (steps >= 200))
    ]
    assert len(wrong) == 1
    assert np.allclose(before, 90, rtol=0.03)
    assert np.allclose(after, 245, rtol=0.03)
    assert all(-3500 < logit < -3000 for logit in low)
    assert sum(run["mean_logit"][-1] < 1.1 * logit for run, logit in zip(standard, low, strict=True)) == 2
    said(
        "vanishing.md",
        f"by a factor of {min(factors):.0f} or more",
        f"loss {wrong[0][0]:.0f}, and {100 * wrong[0][1]:.0f} % of",
        "grows from about 90 to about 245",
    )
    assert all(np.all(np.diff(run["exact_loss"]) < 0.0) for run in ours)  # never rises
    assert all(np.all(run["zero_share"] == 0.0) for run in ours)
    assert all(np.all(np.abs(run["mean_logit"]) < 2.0) for run in ours)
    for other in (*standard, *ours, *runs["standard, then xpsoftmax"]):
        assert other["test_accuracy"][-1] == 0.0
    for formula, run in ((formula, run) for formula, of in runs.items() for run in of):
        missed = np.flatnonzero((run["train_accuracy"] < 1.0) & (steps >= 200))
        assert all(formula != "xpsoftmax" and abs(i - jump(run)) <= 1 for i in missed)
    assert all(a["exact_loss"][-1] > b["exact_loss"][-1] for a, b in zip(standard, ours, strict=True))


def test_the_text_about_three_times_the_learning_rate_is_true():
    runs = runs_of("2026-11-25-modular-rate-0.03.json")
    ends = {formula: np.array([run["exact_loss"][-1] for run in of]) for formula, of in runs.items()}
    ratios = ends["standard"] / ends["xpsoftmax"]
    assert np.all((ratios > 0.3) & (ratios < 0.55))  # a half or a third
    assert np.all(ends["standard, then xpsoftmax"] < np.minimum(ends["standard"], ends["xpsoftmax"]))
    assert all(run["zero_share"][-1] == 1.0 for run in runs["standard"])
    pairs = zip(runs["standard"], runs["xpsoftmax"], strict=True)
    assert all(a["weight_norm"][-1] > 2.0 * b["weight_norm"][-1] for a, b in pairs)
    norms = {}
    for formula, of in runs.items():
        at = [1 + np.flatnonzero(run["exact_loss"] > 1e-9)[-1] for run in of]
        norms[formula] = [run["grad_norm"][i] for run, i in zip(of, at, strict=True)]
    with_jump = [*norms["standard"], *norms["standard, then xpsoftmax"]]
    said(
        "vanishing.md",
        f"{min(with_jump):.1e} to {max(with_jump):.1e} after a jump",
        f"and of {float(np.median(norms['xpsoftmax'])):.0e} without one",
    )
    for run in runs["xpsoftmax"]:
        assert np.all(np.diff(run["exact_loss"]) < 0.0)
        assert np.all(np.abs(run["mean_logit"]) < 2.0)


def test_the_text_about_the_digits_is_true():
    panels = json.loads((_tables.RESULTS / "2026-11-24-confidence.json").read_text())["panels"]
    for panel, latest in zip(panels, (18, 37), strict=True):
        lost = [curve["lost_from"] for name, curve in panel["curves"].items() if name != "xpsoftmax"]
        assert max(gap for gaps in lost for gap in gaps.values()) == latest
        said("index.md", f"{latest} in {panel['dtype']}")
        assert panel["curves"]["scikit-learn"]["lost_from"]["loss"] < latest - 2
    ours = panels[1]["curves"]["xpsoftmax"]["gradient"]
    high = [gap for gap, error in zip(panels[1]["gaps"], ours, strict=True) if error is not None and error > 1e-14]
    assert 290 < min(high) < max(high) < 400


def test_the_text_about_times_is_true():
    findings = json.loads((_tables.RESULTS / "2026-11-24-bench-2core-avx512.json").read_text())["findings"]
    of = {
        (f["case"]["rows"], f["case"]["classes"], f["case"]["dtype"]): {k: v["median"] for k, v in f["timings"].items()}
        for f in findings
        if f["case"]["operation"] == "softmax_loss_and_grad" and f["case"]["logits"] == "normal"
    }
    slower = set()
    for (rows, classes, dtype), times in of.items():
        if rows * classes >= 65536 * 10:
            assert times["xpsoftmax"] < times["torch"]
            if times["xpsoftmax"] > times["torch.compile"]:
                slower.add((rows, classes, dtype))
    assert slower == {(65536, 10, "float32")}
    assert all(
        of[256, 1000, "float32"][peer] < of[256, 1000, "float32"]["xpsoftmax"] for peer in ("torch", "torch.compile")
    )
    assert all(
        of[256, 1000, "float64"]["xpsoftmax"] < of[256, 1000, "float64"][peer] for peer in ("torch", "torch.compile")
    )
    small = {key: times for key, times in of.items() if key[:2] in ((64, 10), (256, 10))}
    shares = [1 - times["kernel"] / times["xpsoftmax"] for times in small.values()]
    said("performance.md", f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of it")
    assert all(times["scikit-learn"] < times["xpsoftmax"] for times in small.values())
    assert all(of[64, 10, dtype]["NumPy"] < of[64, 10, dtype]["xpsoftmax"] for dtype in ("float32", "float64"))
    assert all(
        of[256, 1000, dtype]["np.exp"] > 0.5 * of[256, 1000, dtype]["xpsoftmax"] for dtype in ("float32", "float64")
    )
    older = json.loads((_tables.RESULTS / "2026-11-22-bench-2core-avx2.json").read_text())["findings"]
    exp = {tuple(f["case"].values()): f["timings"]["np.exp"]["median"] for f in older if "np.exp" in f["timings"]}
    single = {key: value for key, value in exp.items() if "float32" in key}
    swapped = {key: tuple("float64" if part == "float32" else part for part in key) for key in single}
    ratios = [exp[swapped[key]] / value for key, value in single.items() if swapped[key] in exp]
    said("performance.md", f"takes {min(ratios):.0f} to {max(ratios):.0f} times as long as in float32")


def test_the_text_about_times_without_a_gradient_is_true():
    findings = json.loads((_tables.RESULTS / "2026-11-24-bench-2core-avx512.json").read_text())["findings"]
    ratios = {tuple(f["case"][key] for key in ("operation", "rows", "classes", "dtype")): f["ratios"] for f in findings}
    slow, large = [], []
    for (operation, rows, classes, dtype), of in ratios.items():
        if operation not in ("softmax_loss", "softmax", "log_softmax"):
            continue
        if (rows, classes) in ((64, 10), (256, 1000)):
            slow.append(of["xpsoftmax"])
        if rows == 65536 or classes >= 32000:
            large.append(of["xpsoftmax"])
        if (rows, classes) == (8192, 1000):
            assert (of["xpsoftmax"] > 1.0) == (dtype == "float32" and operation != "softmax_loss")
    said("performance.md", f"they take {min(slow):.1f} to {max(slow):.1f} times as long as PyTorch's")
    assert len(large) == 18
    assert max(large) < 0.5
    steps = json.loads((_tables.RESULTS / "2026-11-25-bench-training-2core-avx512.json").read_text())["findings"]
    assert [step["ratios"]["NumPy"] < 1.0 for step in steps] == [True] * 6


def test_the_text_about_the_gpu_is_true():
    parts = json.loads((_tables.RESULTS / "2026-11-26-gpu-check-h200.json").read_text())["parts"]
    shares = {}
    for case in parts["kernels"]["cases"]:
        copy = case["timings"]["copy"]["ms"][1]
        for name, timing in case["timings"].items():
            shares.setdefault((case["operation"], name), {})[case["classes"], case["dtype"]] = copy / timing["ms"][1]
    large = {
        name: {key: share for key, share in of.items() if key[0] >= 32000}
        for (operation, name), of in shares.items()
        if operation == "loss and gradient"
    }
    assert {len(of) for of in large.values()} == {6}
    ours = large["xpsoftmax"]
    spans = {name: f"{100 * min(of.values()):.0f} to {100 * max(of.values()):.0f} %" for name, of in large.items()}
    reached = spans["xpsoftmax"]
    said("performance.md", f"Loss and gradient reach {reached} of the copy from 32000 classes on")
    said("gpu-runs.md", f"{reached} of a copy from 32000 classes on")
    readme = " ".join((DOCS.parent / "README.md").read_text().split())
    assert f"From 32000 classes on, in float32 and bfloat16, loss and gradient reached {reached} of the" in readme
    for name, spelled in (("torch", "eager PyTorch"), ("torch.compile", "compiled PyTorch"), ("Liger", "Liger")):
        assert f"{spelled} {spans[name]}" in readme
    faster = {name: {key for key in of if of[key] > ours[key]} for name, of in large.items()}
    assert faster["torch.compile"] == {(128256, "float32"), (128256, "bfloat16")}
    assert faster["Liger"] == {(128256, "bfloat16")}
    of_log = {name: of for (operation, name), of in shares.items() if operation == "log_softmax"}
    assert all(of_log["torch"][key] > share for key, share in of_log["xpsoftmax"].items())
    steps = parts["steps"]["findings"]
    ratios = [step["ratios"]["xpsoftmax train"] for step in steps]
    assert max(ratios) < 1.0
    assert all(step["ratios"]["torch.compile"] < step["ratios"]["xpsoftmax train"] for step in steps)
    said("gpu-runs.md", f"{min(ratios):.2f} to {max(ratios):.2f} of PyTorch eager".replace("0.", "."))
    launches = [step["events"]["xpsoftmax train"]["kernels"] for step in steps]
    said("performance.md", f"a step launches {min(launches)} to {max(launches)} kernels")
    tests = (_tables.RESULTS / "2026-11-26-gpu-tests-h200.txt").read_text()
    total, failed, skipped = (int(re.search(rf"{word} (\d+)", tests)[1]) for word in ("tests", "failures", "skipped"))
    said("gpu-runs.md", f"{total - failed - skipped} passed, {failed} failed, {skipped} skipped")
    assert f"{total - failed - skipped} of {total - skipped} tests passed" in readme


def test_the_text_about_tokens_is_true():
    content = json.loads((_tables.RESULTS / "2026-11-24-train-tokens-2core.json").read_text())
    training, data = content["training"], content["data"]
    said(
        "performance.md",
        f"{data['classes'] // 1000} 000 classes",
        f"{100 * training['validation_accuracy']:.0f} % top-1 accuracy",
        f"brings {100 * data['unigram_accuracy']:.0f} %",
        f"allocated {training['training_peak_bytes'] / 2**20:.0f} MiB",
        f"would be {training['logits_bytes'] / 2**30:.0f} GiB",
        f"took {training['training_seconds'] / 60:.0f} minutes",
    )


# --- the truth table --------------------------------------------------------------------------------------------------


def cells_of_the_page(mark="truth"):
    text = (DOCS / "guides" / "labels.md").read_text()
    lines = text[text.index(f"<!-- {mark}") :].split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_truth_table_is_true_here():
    wanted = _truth.lines(peer=False)
    found = [row[:2] for row in cells_of_the_page()]
    assert [row[0] for row in found] == [row[0] for row in wanted]
    for row, want in zip(found, wanted, strict=True):
        if len(row) > 1 and row[1]:
            assert row[1] == want[1], row[0]


def test_the_table_of_combinations_is_true_here():
    found = cells_of_the_page("together")
    assert [row[:4] for row in found] == _truth.lines_together(peer=False)
    assert len(found) == 2**3 + 2**2  # labels may be ignored, soft targets not


def test_the_table_of_combinations_is_true_in_pytorch(monkeypatch):
    pytest.importorskip("torch")
    assert cells_of_the_page("together") == _truth.lines_together(peer=True)
    right = _truth.here

    def wrong(case):
        loss, grad = right(case)
        return loss, grad * (1 + 1e-12)

    monkeypatch.setattr(_truth, "here", wrong)  # the test of the test: a digit of the gradient
    assert all(row[-1] == "others" for row in _truth.lines_together(peer=True))


def test_the_truth_table_is_true_in_pytorch():
    torch = pytest.importorskip("torch")
    stated = re.search(r"PyTorch (\d+\.\d+) on a CPU", (DOCS / "guides" / "labels.md").read_text())
    if not torch.__version__.startswith(f"{stated.group(1)}."):
        pytest.skip(f"the page speaks of PyTorch {stated.group(1)}")
    assert _differences() == []


def _differences():
    return [(a, b) for a, b in zip(cells_of_the_page(), _truth.lines(peer=True), strict=True) if b[1] and a != b]


def test_a_wrong_cell_beside_pytorch_would_be_seen(monkeypatch):
    """The test of the test."""
    pytest.importorskip("torch")
    monkeypatch.setattr(_truth, "here", lambda case: (np.float64(0.5), np.zeros((4, 3))))
    assert _differences()


# --- README -----------------------------------------------------------------------------------------------------------


README = ROOT / "README.md"


def anchors(page):
    """What can be linked to in a page of Markdown, as GitHub and MyST make it of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_what_readme_links_to_exists():
    links = re.findall(r"\]\(([^)\s]+)\)", README.read_text())
    assert len(links) > 40
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, fragment = link.partition("#")
        assert (ROOT / path).exists(), link
        assert not fragment or fragment in anchors(ROOT / path), link


def test_every_claim_of_readme_links_to_what_shows_it():
    text = README.read_text()
    claims = re.split(r"^- ", text[text.index("## What else") : text.index("## Ten lines")], flags=re.MULTILINE)[1:]
    assert len(claims) == 10
    for claim in claims:
        assert re.search(r"\]\((tests|docs|benchmarks)/", claim), claim


def test_the_code_of_readme_runs(capsys):
    one, two = (block for _, block in blocks(README))
    test = doctest.DocTestParser().get_doctest(one, {}, "README", str(README), 0)
    assert doctest.DocTestRunner().run(test).failed == 0
    exec(compile(two, "README.md", "exec"), {})
    loss, accuracy = map(float, capsys.readouterr().out.split())
    assert loss < 0.2
    assert accuracy > 0.9


def test_the_numbers_of_readme_are_true():
    text = " ".join(README.read_text().split())
    findings = json.loads((_tables.RESULTS / "2026-11-24-bench-2core-avx512.json").read_text())["findings"]
    case = {"operation": "softmax_loss_and_grad", "rows": 8192, "classes": 1000, "dtype": "float32", "logits": "normal"}
    (times,) = ({k: v["median"] for k, v in f["timings"].items()} for f in findings if f["case"] == case)
    assert f"take {times['xpsoftmax'] / times['torch']:.2f} of the time of eager PyTorch" in text
    assert f"and {times['xpsoftmax'] / times['torch.compile']:.2f} of that of compiled PyTorch" in text
    said("vanishing.md", "by a factor of 74 or more")
    assert "by a factor of 74 or more" in text


# --- docstrings -------------------------------------------------------------------------------------------------------


def public():
    """Every public function and class, with its name."""
    found = {name: getattr(xs, name) for name in xs.__all__}
    for name in ("dask", "sklearn"):
        try:
            module = importlib.import_module(f"xpsoftmax.{name}")
        except ImportError:
            continue
        found |= {f"{name}.{each}": getattr(module, each) for each in module.__all__}
    return found


def parameters(docstring):
    """The lines that name parameters, each with the first line of its description."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-{3,}\n|\Z)", docstring, re.DOTALL | re.MULTILINE)
    lines = section.group(1).rstrip().split("\n") if section else []
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        if line and not line.startswith(" "):
            yield line, following


def test_every_parameter_is_described_where_it_is_used():
    """`help()` of a function is enough: no parameter is looked up in another one's."""
    found = [(name, *pair) for name, thing in public().items() for pair in parameters(inspect.getdoc(thing))]
    assert len(found) > 150
    wanting = [
        (name, line) for name, line, text in found if not text.startswith("    ") or re.match(r"    As (for )?`", text)
    ]
    assert wanting == []


def test_every_option_of_the_loss_has_an_example():
    example = inspect.getdoc(xs.softmax_loss).partition("Examples\n")[2]
    options = [name for name, p in inspect.signature(xs.softmax_loss).parameters.items() if p.kind == p.KEYWORD_ONLY]
    assert [name for name in options if f"{name}=" not in example] == ["impl"]
