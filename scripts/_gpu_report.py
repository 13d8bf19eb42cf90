"""What gpu_check.py prints and writes: a table of all figures that fits a screen or two, and a row for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """Everything that is printed and written."""

    device: dict[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def table(report: Report) -> str:
    """All figures, each beside what is to be reached where there is such a figure; problems last."""
    lines = [report.device["gpu"], *map(summary, report.parts, report.parts.values())]
    for name, lines_of in LINES.items():
        if name in report.parts:
            lines += lines_of(report.parts[name])
    return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in report.problems)])


def summary(name: str, found: dict[str, Any]) -> str:
    """One line of a part: what is a number or a word."""
    short = {key: value for key, value in found.items() if isinstance(value, (int, float, str)) and key in SHORT}
    said = ", ".join(
        f"{key} {value:.0f}" if isinstance(value, float) else f"{key} {value}" for key, value in short.items()
    )
    return f"{name}: {said}"


SHORT = (
    *("seconds", "passed", "failed", "skipped", "compiled", "seconds_of_it"),
    *("memcheck", "racecheck", "synccheck", "initcheck", "not here"),
)


def kernels(found: dict[str, Any]) -> Iterator[str]:
    """For each operation and dtype the shares of a copy's speed: a line a competitor, a column a number of classes."""
    cases = found.get("cases", ())
    for title in dict.fromkeys(f"{case['operation']}, {case['dtype']}" for case in cases):
        group = [case for case in cases if f"{case['operation']}, {case['dtype']}" == title]
        yield f"share of a copy, {title}:" + cells(case["classes"] for case in group)
        names = dict.fromkeys(name for case in group for name in case["timings"])
        if any(case.get("aim") for case in group):
            yield row_of("to be reached", [case.get("aim") for case in group])
        for name in names:
            yield row_of(name, [share(case["timings"], name) for case in group])
    for name, small in found.get("small_calls", {}).items():
        ratio = small["microseconds"] / small["bare_microseconds"]
        yield (
            f"a small {name} without validation: {small['launches']:.0f} launches, {small['microseconds']:.1f} "
            f"microseconds of the host, {ratio:.1f} bare launches (at most 2.5)"
        )
    yield from (f"not here: {name}: {reason}" for name, reason in found.get("missing", {}).items())
    yield from (f"not timed: {what:.110}" for what in found.get("not_timed", ()))


def share(timings: dict[str, Any], name: str) -> float | None:
    """Speed as a share of the copy's; the copy's own in TB/s."""
    if name not in timings or "copy" not in timings:
        return None
    speed: float = timings[name]["gb_per_s"]
    return speed / 1e3 if name == "copy" else speed / timings["copy"]["gb_per_s"]


def row_of(name: str, numbers: Sequence[float | None]) -> str:
    """A line of shares."""
    name = "copy, TB/s" if name == "copy" else name
    return f"  {name:22}" + cells("-" if number is None else f"{number:.3f}" for number in numbers)


def cells(values: Any) -> str:
    """Columns."""
    return "".join(f"{value!s:>7}" for value in values)


def steps(found: dict[str, Any]) -> Iterator[str]:
    """For each case what `train` takes, beside what is to be reached, and then all others."""
    for finding in found.get("findings", ()):
        timings, of_us = finding["timings"], finding["timings"].get("xpsoftmax train")
        if of_us is not None:
            reach = "" if finding["ms"] is None else f" (at most {finding['ms']})"
            ratio = f", {finding['to_graph']:.2f} of PyTorch's graph (at most {finding['of_graph']})" * (
                "to_graph" in finding
            )
            host = "?" if of_us["host_microseconds"] is None else f"{of_us['host_microseconds']:.1f}"
            captured = "captured" if of_us["captured"] else "NOT CAPTURED"
            yield (
                f"step {finding['case']}: train {1e3 * of_us['median']:.4f} ms{reach}{ratio}, {captured}, "
                f"host {host} us (at most 10), a training {1e3 * of_us['beside_epochs']:.0f} ms beside its epochs"
            )
        events = (f"{name} {counted(timing['events'])}" for name, timing in timings.items() if timing.get("events"))
        yield "  a step's events: " + "; ".join(events)
        others = (f"{name} {1e3 * timing['median']:.4f}" for name, timing in timings.items() if timing is not of_us)
        yield "  others, ms: " + ", ".join(others)
        yield from (f"  {name}: {reason:.110}" for name, reason in finding["failed"].items())
    for each in found.get("functions", ()):
        yield f"{each['name']}: {1e3 * each['median']:.4f} ms, {counted(each['events'])} (at most 14 launches, 1 wait)"
    yield from (f"not timed: {what:.110}" for what in found.get("not_timed", ()))


def counted(events: dict[str, float]) -> str:
    """Kernels, graphs, launches, copies and waits by their first letters."""
    order = ("kernels", "graphs", "launches", "copies", "waits")
    return " ".join(f"{name[0]}{events[name]:.1f}" for name in order if events.get(name))


def variants(found: dict[str, Any]) -> Iterator[str]:
    """For each number of classes what size class was fastest."""
    for each in found.get("variants", ()):
        yield variant_line(each)
        yield from (f"  {name}: {reason:.110}" for name, reason in each["failed"].items())


def variant_line(found: dict[str, Any]) -> str:
    """Shares of a copy by variant, the present class first, and what to take."""
    shares = found["shares"]
    if not shares:
        return f"variants {found['dtype']} {found['classes']}: none ran"
    best, now = max(shares, key=shares.__getitem__), next(iter(shares))
    advice = "keep" if shares[best] < 1.02 * shares[now] else f"take {best}"
    listed = ", ".join(f"{name} {value:.3f}" for name, value in shares.items())
    return f"variants {found['dtype']} {found['classes']}: {listed}: {advice}"


def classes(found: dict[str, Any]) -> Iterator[str]:
    """For each case time and peak memory of everyone."""
    entries = found.get("classes", ())
    for case in dict.fromkeys(entry["case"] for entry in entries):
        results = [result for entry in entries if entry["case"] == case for result in entry["results"]]
        listed = (f"{each['name']} {each['ms'][1]:.2f} ms {each['peak_mib']:.0f} MiB" for each in results)
        yield f"classes {case}: " + ", ".join(listed)
    yield from (f"not timed: {what:.110}" for what in found.get("not_timed", ()))


def tensors(found: dict[str, Any]) -> Iterator[str]:
    """For each case how many checks are right, and milliseconds and the host's microseconds of everyone."""
    for entry in found.get("tensors", ()):
        checks = [result for result in entry["results"] if "check" in result]
        timed = [result for result in entry["results"] if "ms" in result]
        right = sum(not check["wrong"] for check in checks)
        listed = (f"{each['name']} {each['ms'][1]:.4f} ms, host {each['host_microseconds']:.0f} us" for each in timed)
        yield f"tensors {entry['case']}: {right} of {len(checks)} checks right; " + "; ".join(listed)
        failed = (result for result in entry["results"] if "failed" in result)
        yield from (f"  {each.get('name') or each['check']}: {each['failed']:.110}" for each in failed)


def estimator(found: dict[str, Any]) -> Iterator[str]:
    """Seconds of an epoch, and of the digits."""
    fits = found.get("fits", ())
    epochs = [f"{fit['name']} {fit['epoch_seconds']:.3f}" for fit in fits if "epoch_seconds" in fit]
    digits = [f"{fit['name']} {fit['digits_seconds']:.3f}" for fit in fits if "digits_seconds" in fit]
    if epochs:
        reach = found.get("epoch_seconds_to_reach")
        yield f"an epoch of 200000 x 784, s (on CuPy at most {reach}): " + ", ".join(epochs)
    if digits:
        yield "digits, 20 epochs, s (on CuPy at most as on NumPy): " + ", ".join(digits)
    yield from (f"not timed: {what:.110}" for what in found.get("not_timed", ()))


def dask(found: dict[str, Any]) -> Iterator[str]:
    """The checks and by how much each is off, or why it failed."""
    checks = found.get("checks", {})
    if checks:
        yield "dask, off by: " + ", ".join(
            f"{name} {each.get('failed') or each['off_by']}" for name, each in checks.items()
        )


LINES = {
    "dask": dask,
    "kernels": kernels,
    "variants": variants,
    "steps": steps,
    "torch": tensors,
    "classes": classes,
    "estimator": estimator,
}


def row(report: Report, commit: str | None, day: str, command: str) -> str:
    """The row for docs/gpu-runs.md."""
    device, results = report.device, []
    for name, found in report.parts.items():
        counts = [f"{found[key]} {key}" for key in ("passed", "failed", "skipped") if key in found]
        results.append(f"{name} ({', '.join(counts)})" if counts else name)
    versions = f"{device['driver']}, {device['cuda']}, {device['cupy']}"
    result = "; ".join([*results, f"{len(report.problems)} problems"])
    return f"| {day} | {commit} | {device['gpu']} | {versions} | {command} | {result} |"
