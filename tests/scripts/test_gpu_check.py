"""scripts/gpu_check.py, as far as it runs without a GPU."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import _gpu_report
import gpu_check
import numpy as np
import pytest
from backends import unusable

DEVICE = {"gpu": "A GPU", "cache_bytes": 1, "driver": 13000, "cuda": 13000, "cupy": "14.0"}
JUNIT = """<testsuites><testsuite tests="10" failures="1" errors="1" skipped="3">
<testcase name="test_a[1]"><failure message="AssertionError: 1 of 3&#10;and more">text</failure></testcase>
<testcase name="test_b"><error>text</error></testcase><testcase name="test_c"><skipped message="no"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.skipif(unusable("cupy") is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, capsys):
    assert gpu_check.main([str(tmp_path / "out")]) == gpu_check.NO_GPU != 0
    said = capsys.readouterr().out
    assert said.startswith("gpu_check: there is no GPU that can be used here, so nothing was checked: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "sums", "reason"),
    [(0, 12.0, "CuPy finds no CUDA device"), (1, 11.0, "CuPy computes 0 + 2 + 4 + 6 wrongly")],
)
def test_a_gpu_that_cannot_compute_is_none(monkeypatch, count, sums, reason):
    runtime = SimpleNamespace(getDeviceCount=lambda: count)
    fake = SimpleNamespace(
        cuda=SimpleNamespace(runtime=runtime), arange=lambda n, dtype: np.array(sums / 2, dtype).reshape(1)
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    assert gpu_check.usable_gpu() == reason


def test_tests_are_counted(tmp_path):
    (tmp_path / "tests.xml").write_text(JUNIT)
    failed = ["test_a[1]: AssertionError: 1 of 3", "test_b: "]
    assert gpu_check.counted(tmp_path) == {"passed": 5, "failed": 2, "skipped": 3, "problems": failed}


def report():
    """Findings of every part, as they come from its script."""
    speeds = {"copy": 4000.0, "xpsoftmax": 3600.0}
    timings = {name: {"ms": (1.0, 2.0, 3.0), "gb_per_s": speed} for name, speed in speeds.items()}
    kernel = {"operation": "softmax", "rows": 8, "classes": 10, "dtype": "float32", "aim": 0.95, "timings": timings}
    ours = {"median": 3e-5, "host_microseconds": 7.25, "captured": True, "beside_epochs": 0.02}
    ours["events"] = {"kernels": 13.0, "graphs": 1.0, "launches": 0.0}
    step = {"case": "5x4x10x3", "ms": 0.034, "of_graph": 1.1, "to_graph": 1.05, "failed": {"Liger": "none"}}
    step["timings"] = {"xpsoftmax train": ours, "torch": {"median": 1e-3, "events": {}}}
    found = gpu_check.Report(DEVICE)
    found.parts |= {
        "tests": {"seconds": 1.5, "passed": 5, "failed": 0, "skipped": 3},
        "sanitizer": {"seconds": 2.0, "memcheck": "0 errors", "problems": []},
        "dask": {"seconds": 2.0, "checks": {"labels, threads": {"off_by": 0.0}, "training": {"failed": "no"}}},
        "kernels": {
            "cases": [kernel],
            "small_calls": {"softmax": {"launches": 2, "microseconds": 12.34, "bare_microseconds": 5.0}},
            "missing": {"Liger": "none"},
            "not_timed": ["QuACK failed at a case"],
        },
        "variants": {
            "variants": [
                {"dtype": "float32", "classes": 50257, "shares": {"ring": 0.9, "512x25": 0.95}, "failed": {"x": "no"}}
            ]
        },
        "steps": {
            "findings": [step],
            "functions": [{"name": "update", "median": 1e-4, "events": {"kernels": 4, "launches": 4, "waits": 1}}],
            "not_timed": ["5x4x10x3, compiled: no time was left"],
        },
        "torch": {
            "tensors": [
                {
                    "case": "64x10",
                    "results": [
                        {"check": "no wait", "wrong": True, "failed": "it waited"},
                        {"check": "gradient", "wrong": False},
                        {"name": "torch", "ms": [1, 2.0, 3], "host_microseconds": 50.0},
                    ],
                }
            ]
        },
        "classes": {
            "classes": [
                {"case": "4x5x6", "name": "ours", "results": [{"name": "ours", "ms": [1, 2.0, 3], "peak_mib": 7.0}]}
            ],
            "not_timed": ["4x5x6, Liger: none"],
        },
        "estimator": {
            "epoch_seconds_to_reach": 0.12,
            "fits": [
                {"name": "on CuPy", "epoch_seconds": 0.1},
                {"name": "on CuPy", "digits_seconds": 0.05},
            ],
        },
    }
    found.problems = ["one"]
    return found


def test_the_table_has_every_figure_beside_what_is_to_be_reached():
    text = gpu_check.table(report())
    for part in (
        "tests: seconds 2, passed 5, failed 0, skipped 3",
        "sanitizer: seconds 2, memcheck 0 errors",
        "dask, off by: labels, threads 0.0, training no",
        "share of a copy, softmax, float32:     10",
        "  to be reached           0.950",
        "  copy, TB/s              4.000",
        "  xpsoftmax               0.900",
        "a small softmax without validation: 2 launches, 12.3 microseconds of the host, 2.5 bare launches (at most",
        "not timed: QuACK failed at a case",
        "not here: Liger: none",
        "variants float32 50257: ring 0.900, 512x25 0.950: take 512x25\n  x: no",
        "step 5x4x10x3: train 0.0300 ms (at most 0.034), 1.05 of PyTorch's graph (at most 1.1), captured, host 7.2 us",
        "(at most 10), a training 20 ms beside its epochs",
        "a step's events: xpsoftmax train k13.0 g1.0",
        "others, ms: torch 1.0000",
        "  Liger: none",
        "update: 0.1000 ms, k4.0 l4.0 w1.0 (at most 14 launches, 1 wait)\nnot timed: 5x4x10x3, compiled: no time",
        "tensors 64x10: 1 of 2 checks right; torch 2.0000 ms, host 50 us\n  no wait: it waited",
        "classes 4x5x6: ours 2.00 ms 7 MiB\nnot timed: 4x5x6, Liger: none",
        "an epoch of 200000 x 784, s (on CuPy at most 0.12): on CuPy 0.100",
        "digits, 20 epochs, s (on CuPy at most as on NumPy): on CuPy 0.050",
    ):
        assert part in text
    assert text.endswith("PROBLEM: one")


def test_a_part_that_found_nothing_has_a_line():
    empty = gpu_check.Report(DEVICE, {name: {"seconds": 1.0} for name in gpu_check.PARTS})
    lines = gpu_check.table(empty).splitlines()
    assert lines == ["A GPU", *(f"{name}: seconds 1" for name in gpu_check.PARTS)]


def test_the_row_counts_tests_and_problems():
    line = gpu_check.row(report(), "abc", "2026-01-02", "the command")
    parts = "sanitizer; dask; kernels; variants; steps; torch; classes; estimator"
    result = f"tests (5 passed, 0 failed, 3 skipped); {parts}; 1 problems"
    assert line == f"| 2026-01-02 | abc | A GPU | 13000, 13000, 14.0 | the command | {result} |"


def test_a_variant_is_taken_if_it_is_two_per_cent_faster():
    variant = {"dtype": "bfloat16", "classes": 10, "shares": {"now": 0.9, "other": 0.91}}
    assert _gpu_report.variant_line(variant).endswith("keep")
    variant["shares"]["other"] = 0.92
    assert _gpu_report.variant_line(variant).endswith("take other")
    assert _gpu_report.variant_line({**variant, "shares": {}}).endswith("none ran")


# --- the parts --------------------------------------------------------------------------------------------------------


def part(*codes, seconds=60.0, findings=lambda folder: {}, **kind):
    return gpu_check.Part("", seconds, lambda folder: [[sys.executable, "-c", c] for c in codes], findings, **kind)


def test_a_part_that_goes_well_has_findings_and_no_problem(tmp_path):
    found, problems = gpu_check.run_part(
        part("print('hello')", "print(1 + 1)", findings=lambda folder: {"folder": folder.name}),
        tmp_path,
        tmp_path / "log",
    )
    assert problems == []
    assert found["folder"] == tmp_path.name
    assert "hello\n" in (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().endswith("\n2\n")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit(4)", "status 4"),
        ("import os; os.abort()", "status -6"),
        ("import time; time.sleep(60)", "not finished in 1 s"),
    ],
)
def test_a_command_that_fails_is_a_problem_and_does_not_end_the_others(code, reason, tmp_path):
    seconds = 1.0 if "sleep" in code else 60.0
    _, problems = gpu_check.run_part(part(code, seconds=seconds), tmp_path, tmp_path / "log")
    assert len(problems) == 1
    assert problems[0].endswith(reason)


def test_a_second_command_has_what_the_first_left_of_the_time(tmp_path):
    _, problems = gpu_check.run_part(
        part("import time; time.sleep(60)", "print(1)", seconds=0.5), tmp_path, tmp_path / "log"
    )
    assert [problem.rpartition(": ")[2] for problem in problems] == ["not finished in 0 s", "no time was left"]


def test_a_command_that_takes_too_long_can_write_what_it_has_and_leaves_no_process(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "GRACE", 2.0)
    child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    code = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}])
pathlib.Path("{tmp_path}/child").write_text(str(child.pid))
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path("{tmp_path}/found").write_text("something")
    time.sleep(60)
"""
    start = time.monotonic()
    found, problems = gpu_check.run_part(
        part(code, seconds=2.2, findings=lambda folder: {"found": (folder / "found").read_text()}),
        tmp_path,
        tmp_path / "log",
    )
    assert time.monotonic() - start < 30
    assert found["found"] == "something"
    assert [problem.rpartition(": ")[2] for problem in problems] == ["not finished in 2 s"]
    state = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_the_sanitizer_is_found_in_the_folder_of_cuda(monkeypatch, tmp_path):
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu_check.sanitizer() == str(program)
    memcheck, *_ = gpu_check.sanitizer_commands(tmp_path)
    assert memcheck[:3] == [str(program), "--tool", "memcheck"]


def test_each_tool_of_the_sanitizer_must_have_reported(tmp_path):
    hazard = "1 hazard displayed (1 error, 0 warnings)"
    said = {
        "memcheck": "========= COMPUTE-SANITIZER\n0 wrong\n========= ERROR SUMMARY: 0 errors\n",
        "racecheck": f"========= RACECHECK SUMMARY: {hazard}\n",
        "synccheck": "Segmentation fault\n",
    }
    sections = (f"\n$ compute-sanitizer --tool {tool} --x y\n{text}" for tool, text in said.items())
    gpu_check.log_of("sanitizer", tmp_path).write_text("".join(sections))
    assert gpu_check.summaries(tmp_path) == {
        "memcheck": "0 errors",
        "racecheck": hazard,
        "synccheck": "said nothing",
        "problems": ["synccheck said nothing", "initcheck said nothing"],
    }


def test_pytest_benchmark_is_left_out(tmp_path):
    (command,) = gpu_check.pytest_commands(tmp_path)
    assert "-p no:benchmark" in " ".join(command)
    assert "--require-backend=cupy" in command


def test_all_parts_together_take_eight_minutes():
    assert gpu_check.most_seconds(gpu_check.PARTS.values()) <= 480


def test_parts_without_times_count_as_the_longest_of_them():
    parts = [part(seconds=seconds, timeless=timeless) for seconds, timeless in ((9, True), (5, False), (7, True))]
    assert gpu_check.most_seconds(parts) == 14
    assert gpu_check.most_seconds([]) == 0


def test_the_page_has_two_commands_that_have_all_parts_and_six_minutes_each():
    page = (gpu_check.ROOT / "docs" / "gpu-runs.md").read_text("utf-8")
    lines = [line for line in page.splitlines() if line.startswith("python scripts/gpu_check.py OUT")]
    commands = [[name.strip() for name in line.split("--part ")[1:]] for line in lines]
    assert len(commands) == 2
    assert [name for names in commands for name in names] == list(gpu_check.PARTS)
    for names in commands:
        assert gpu_check.most_seconds(gpu_check.PARTS[name] for name in names) <= 360


def test_a_missing_program_and_findings_that_cannot_be_read_are_problems(tmp_path):
    absent = gpu_check.Part("", 9.0, lambda folder: [["no-such-program"]], gpu_check.read("none.json"))
    _, problems = gpu_check.run_part(absent, tmp_path, tmp_path / "log")
    assert problems[0] == "no-such-program: no-such-program is not here"
    assert problems[1].startswith("its findings cannot be read: FileNotFoundError")


def test_main_runs_the_parts_that_are_asked_for_and_writes_all(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "usable_gpu", lambda: DEVICE)
    parts = {
        "tests": part("print('tests ran')", findings=lambda folder: {"passed": 5}),
        "kernels": part("raise SystemExit(1)"),
        "steps": part("print('never')"),
    }
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    assert gpu_check.main([str(tmp_path), "--part", "tests", "--part", "kernels"]) == 1
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    assert content["command"] == "python scripts/gpu_check.py OUT --part=tests --part=kernels"
    assert list(content["parts"]) == ["tests", "kernels"]
    assert content["parts"]["tests"]["passed"] == 5
    assert len(content["problems"]) == 1
    log = (tmp_path / "gpu_check.log").read_text()
    assert "tests ran" in log
    assert "never" not in log
    assert (tmp_path / "gpu-runs-row.md").read_text().startswith("| 20")
    assert "PROBLEM: kernels: " in capsys.readouterr().out


def test_commands_of_a_part_can_run_at_the_same_time(tmp_path):
    meet = f"""
import pathlib, sys, time
here, other = (pathlib.Path("{tmp_path}", name) for name in NAMES)
here.write_text("")
deadline = time.monotonic() + 30
while not other.exists() and time.monotonic() < deadline:
    time.sleep(0.01)
print("met" if other.exists() else "alone", here.name)
"""
    codes = [meet.replace("NAMES", names) for names in ('("a", "b")', '("b", "a")')]
    _, problems = gpu_check.run_part(part(*codes, side_by_side=True), tmp_path, tmp_path / "log")
    assert problems == []
    said = (tmp_path / "log").read_text()
    assert 0 < said.index("met a") < said.index("met b")  # in the order of the commands
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".log"] == []


def test_parts_without_times_run_at_the_same_time_and_others_alone(monkeypatch, tmp_path):
    spans = {}

    def run_part(each, folder, log):
        begin = time.monotonic()
        log.write_text(f"{each.what} ran\n")
        time.sleep(0.3)
        spans[each.what] = begin, time.monotonic()
        return {"seconds": 0.3}, []

    kinds = {"first": False, "a": True, "b": True, "last": False}
    parts = {name: gpu_check.Part(name, 1.0, None, timeless=timeless) for name, timeless in kinds.items()}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    monkeypatch.setattr(gpu_check, "run_part", run_part)
    assert {name for name, *_ in gpu_check.run_parts(list(kinds), tmp_path)} == set(kinds)
    assert spans["a"][0] < spans["b"][1]
    assert spans["b"][0] < spans["a"][1]
    assert spans["first"][1] <= min(spans["a"][0], spans["b"][0])
    assert spans["last"][0] >= max(spans["a"][1], spans["b"][1])
    log = (tmp_path / gpu_check.LOG).read_text()
    assert all(f"--- {name} ---\n{name} ran" in log for name in kinds)
    assert [path.name for path in tmp_path.iterdir()] == [gpu_check.LOG]


def test_who_stops_early_ends_every_command(monkeypatch, tmp_path):
    parts = {"long": part("import time; time.sleep(60)", timeless=True), "short": part("", timeless=True)}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    runs = gpu_check.run_parts(list(parts), tmp_path)
    assert next(runs)[0] == "short"
    begin = time.monotonic()
    runs.close()
    assert time.monotonic() - begin < 30
    assert set() == gpu_check.RUNNING


def test_problems_that_a_part_found_are_problems_of_the_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "usable_gpu", lambda: DEVICE)
    found = {"problems": ["5x4x10x3: steps were not captured"]}
    parts = {"steps": part("raise SystemExit(1)", "raise SystemExit(2)", findings=lambda folder: found)}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    assert gpu_check.main([str(tmp_path)]) == 1
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("PROBLEM")]
    assert problems[-1] == "PROBLEM: steps: 5x4x10x3: steps were not captured"
    assert [problem.rpartition(" ")[2] for problem in problems[:-1]] == ["2"]  # what the status 1 says, it says itself


def test_few_files_are_left(monkeypatch, tmp_path):
    """Some ways to bring files back from a machine take eight at most."""
    monkeypatch.setattr(gpu_check, "usable_gpu", lambda: DEVICE)
    write = "open({!r}, 'w').write('{{}}')"
    parts = {
        name: part(*(write.format(str(tmp_path / f"{name}.{end}")) for end in ("json", "html", "png")))
        if name == "compare"
        else part(write.format(str(tmp_path / f"{name}.json")))
        for name in gpu_check.PARTS
    }
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    assert gpu_check.main([str(tmp_path)]) == 0
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"gpu_check.json", "gpu_check.log", "gpu-runs-row.md", "compare.html", "compare.png"}


def test_what_is_compiled_is_kept_for_the_next_command(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    first, second = gpu_check.environment(), gpu_check.environment()
    assert first["CUPY_CACHE_DIR"] == second["CUPY_CACHE_DIR"] != ""
    assert Path(first["CUPY_CACHE_DIR"]).parent.name == "xpsoftmax-gpu-check"
    assert first["TRITON_CACHE_DIR"] == "/elsewhere"
    assert first["PYTHONPATH"].startswith(str(gpu_check.ROOT))


def test_every_part_is_a_script_of_this_checkout(tmp_path):
    for name, found in gpu_check.PARTS.items():
        for command in found.commands(tmp_path):
            files = [word for word in command if word.endswith(".py")]
            assert all(Path(word).is_relative_to(gpu_check.ROOT) and Path(word).exists() for word in files)
            assert files or name == "tests"
        assert f"- {name}, " in gpu_check.__doc__


def test_the_scripts_of_the_parts_know_their_options(tmp_path):
    """compare_backends.py parses its options; the others take a file and seconds."""
    for needed in ("rich", "sklearn", "matplotlib"):
        pytest.importorskip(needed)
    import compare_backends

    (command,) = gpu_check.PARTS["compare"].commands(tmp_path)
    given = vars(compare_backends.parser().parse_args(command[2:]))
    assert given["backend"] == ["cupy"]
    assert given["json"] == tmp_path / "compare.json"
    for name in ("steps", "kernels", "variants", "torch", "classes", "estimator"):
        (command,) = gpu_check.PARTS[name].commands(tmp_path)
        assert Path(command[2]) == tmp_path / f"{name}.json"
        assert 0 < float(command[3]) < gpu_check.PARTS[name].seconds
    assert gpu_check.PARTS["compile"].commands(tmp_path)[0][3] == "ours"
    assert gpu_check.PARTS["others"].commands(tmp_path)[0][3] == "others"
