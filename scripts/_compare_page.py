"""The page of compare_backends.py: one HTML file that loads nothing, runs no script, and is read in light and in dark.

It is built as a tree, in which every text is escaped, and drawn as SVG in the colours of its style sheet.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias
from xml.etree import ElementTree as ET

from _compare_text import Content, legend, sure_row, verdict, why_slow

Node: TypeAlias = ET.Element
Scale: TypeAlias = Callable[[float], float]
"""Where a value lies on an axis."""

LIGHT = ("#1d5fd0", "#b04a00", "#187038", "#7a3fd0", "#c01c32", "#0a6b7c")
DARK = ("#78acff", "#f59a4e", "#57cc79", "#c8a2ff", "#ff8a86", "#45cdd8")
"""Of the libraries in turn: at least 4.5 times as light, or as dark, as the ground."""

WIDTH, HEIGHT = 360.0, 250.0
"""Of the plot of the losses, in units that are about a pixel on a phone."""
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 10.0, 36.0
NAMES, VALUES, ROW = 106.0, 74.0, 26.0
"""Of the plot of times: room for the names and for the numbers, and the height of a row."""
LEVELS, CHARACTER, SPACE = 34.0, 7.5, 9.0
"""How far apart numbers on the axis upwards are; how wide a character of those below is, and the space between two."""
DASH = 6.0
"""Length of a dash of a curve."""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1c2024; --quiet: #59626c; --line: #d5dadf; --bad: #b3122a;
  LIGHT }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --text: #e8eaed; --quiet: #a4adb6; --line: #3a4149;
  --bad: #ff8a86; DARK } }
CLASSES
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 66rem; background: var(--ground); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p, ul { margin: .5rem 0; }
.quiet, figcaption, small, dt, thead th { color: var(--quiet); font-weight: normal; }
figcaption, small { font-size: .85rem; }
small { display: block; }
.bad { color: var(--bad); font-weight: bold; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; vertical-align: top; padding: .35rem 0 .35rem .75rem; font-size: .925rem; }
th:first-child { text-align: left; padding-left: 0; }
tbody { border-top: 1px solid var(--line); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 0 2.5rem; }
figure { margin: 0; max-width: 34rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font-size: 12px; }
svg .name { fill: var(--text); }
.grid { stroke: var(--line); stroke-width: 1; }
.curve { fill: none; stroke: currentColor; stroke-linejoin: round; }
.dot, .alone { fill: currentColor; }
.verdict { font-weight: bold; }
.key { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: .85rem; }
.key i { display: inline-block; width: 1.1em; height: .3em; margin-right: .4em; vertical-align: middle;
  background: currentColor; }
.key span { color: var(--text); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .925rem; }
dd { margin: 0; }
code { font-size: .9em; }
@media (max-width: 40rem) {
  tr { display: grid; grid-template-columns: var(--columns); padding: .3rem 0; }
  tr > * { padding: 0 0 0 .25rem; font-size: .8rem; }
  tr > [scope=row], thead th:first-child { grid-column: 1 / -1; font-size: .95rem; }
  thead th:nth-child(2), [scope=row] + td, td:first-child { text-align: left; padding-left: 0; }
  td small { font-size: .7rem; }
  thead th:first-child { display: none; }
  dl { display: block; }
  dd { margin-bottom: .5rem; }
}
"""


def node(tag: str, *children: Node | str, **attributes: object) -> Node:
    """Make an element. A trailing underscore of an attribute is dropped, others become hyphens; None is left out."""
    given = {name: value for name, value in attributes.items() if value is not None}
    names = {name.rstrip("_").replace("_", "-"): _spelled(value) for name, value in given.items()}
    element = ET.Element(tag, names)
    for child in children:
        if isinstance(child, str):
            element.text = child
        else:
            element.append(child)
    return element


def _spelled(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def page(content: Content) -> bytes:
    """Return the file: HTML in ASCII."""
    options = content["options"]
    body = node(
        "body",
        node("h1", "One network on every array library"),
        node(
            "p",
            f"A network with {options['hidden']} hidden units learns scikit-learn's digits with xpsoftmax, in "
            f"{options['epochs']} epochs of minibatches of {options['batch_size']}, in {options['dtype']}: from the "
            "same first weights, with the same batches on every library.",
        ),
        *findings(content),
        node("h2", "Training"),
        training(content),
        explained(content, "train, test", "final loss", "ms a step", "speed"),
        *(node("p", reason) for reason in why_slow(content)),
        node("div", losses(content), times(content), class_="plots"),
        node("h2", f"Largest difference from NumPy in float64, in eps of {options['dtype']}"),
        differences(content),
        node("p", "Of the loss and of each gradient, at the first weights and at the trained ones.", class_="quiet"),
        explained(content, "eps", "budget"),
        node("h2", "A sure row, by two formulas"),
        node("p", sure_row(content)),
        formulas(content),
        node("h2", "Where it ran"),
        surroundings(content),
    )
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Whatever is in the page, a browser loads nothing for it.
        node("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        node("title", "xpsoftmax: one network on every array library"),
        node("style", style()),
    )
    return b"<!DOCTYPE html>\n" + ET.tostring(node("html", head, body, lang="en"), method="html") + b"\n"


def style() -> str:
    """Return the style sheet, with the colours of the libraries."""
    places = range(len(LIGHT))
    colours = ("; ".join(f"--c{i}: {palette[i]}" for i in places) for palette in (LIGHT, DARK))
    text = STYLE
    for word, value in zip(("LIGHT", "DARK"), colours, strict=True):
        text = text.replace(word, f"{value};")
    return text.replace("CLASSES", " ".join(f".c{i} {{ color: var(--c{i}); }}" for i in places))


def colour(place: int) -> str:
    """Name the class of the library at this place."""
    return f"c{place % len(LIGHT)}"


def findings(content: Content) -> list[Node]:
    """Say what came out, what is wrong, and what could not be used."""
    problems, unusable = content["problems"], content["unusable"]
    said = [node("p", verdict(content), class_="verdict")]
    if problems:
        said.append(node("ul", *(node("li", problem, class_="bad") for problem in problems)))
    if unusable:
        said.append(node("p", "Not used:", class_="quiet"))
        said.append(node("ul", *(node("li", f"{name}: {reason}") for name, reason in unusable.items()), class_="quiet"))
    return said


# --- tables -----------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Node], columns: str) -> Node:
    """Make a table; on a phone the first of the columns, a library's name, becomes a line over the others."""
    names = node("tr", *(node("th", name, scope="col") for name in header))
    return node("table", node("thead", names), *rows, style=f"--columns: {columns}")


def training(content: Content) -> Node:
    """Accuracy, loss and time of each library."""
    rows = []
    for name, result in content["backends"].items():
        about = node("small", f"{result['version']}, {result['device']}")
        low, middle, high = (f"{1e3 * seconds:.3g}" for seconds in result["step_seconds"])
        cells = (
            node("td", f"{result['train_accuracy']:.2%}"),
            node("td", f"{result['test_accuracy']:.2%}"),
            node("td", f"{result['final_loss']:.6f}"),
            node("td", middle, node("small", f"{low}\N{EN DASH}{high}")),
            node("td", f"{result['speed']:.3g} x"),
        )
        rows.append(node("tbody", node("tr", node("th", name, about, scope="row"), *cells)))
    return table(("library", "train", "test", "final loss", "ms a step", "speed"), rows, "7fr 7fr 9fr 11fr 9fr")


def differences(content: Content) -> Node:
    """How far each library is from the reference."""
    groups, quantities = [], ()
    for name, result in content["backends"].items():
        rows = []
        for state, found in result["differences_eps"].items():
            limit = content["budgets_eps"][state]
            quantities = tuple(found)
            cells = (node("td", _eps(eps, limit), class_=None if eps <= limit else "bad") for eps in found.values())
            row = node("tr", node("td", state), *cells, node("td", f"{limit:.0f}"))
            if not rows:
                row.insert(0, node("th", name, scope="row", rowspan=len(result["differences_eps"])))
            rows.append(row)
        groups.append(node("tbody", *rows))
    return table(("library", "weights", *quantities, "budget"), groups, f"8fr repeat({len(quantities)}, 6fr) 7fr")


def formulas(content: Content) -> Node:
    """Loss and gradient of the sure row, by the textbook formula and by this package."""
    right = content["sure_row"]["exact"]
    rows = {name: result["sure_row"] for name, result in content["backends"].items()}
    rows["exact"] = {"textbook": right, "xpsoftmax": right}
    bodies = []
    for name, found in rows.items():
        values = [found[formula][quantity] for formula in ("textbook", "xpsoftmax") for quantity in right]
        cells = (node("td", f"{value + 0.0:.4g}") for value in values)  # + 0.0: no sign of zero
        bodies.append(node("tbody", node("tr", node("th", name, scope="row"), *cells)))
    header = ("library", "textbook: loss", "gradient", "xpsoftmax: loss", "gradient")
    return table(header, bodies, "repeat(4, 1fr)")


def explained(content: Content, *columns: str) -> Node:
    """What columns of a table mean."""
    meanings = legend(content)
    terms = ((node("dt", column), node("dd", meanings[column])) for column in columns)
    return node("dl", *(item for pair in terms for item in pair), class_="quiet")


def _eps(value: float, limit: float) -> str:
    return f"{value:.2f}" if value <= limit else f"{value:.3g}"


def surroundings(content: Content) -> Node:
    """Environment, options and limits, as a list of terms."""
    hardware, limits = content["hardware"], content["accuracy_limits"]
    terms: dict[str, Node | str] = {
        "command": node("code", content["command"]),
        "date": content["date"],
        "commit": content["commit"] or "unknown",
        "processor": f"{hardware['cpu']}, {hardware['cores']} cores",
        "platform": content["platform"],
        "threads": _listed(content["threads"], "=") or "as the libraries choose",
        "versions": _listed(content["versions"], " "),
        "options": _listed(content["options"], " "),
        "limits": f"with default hyper-parameters and seed, a test accuracy of at least {limits['least']:.0%} and "
        f"within {limits['margin']:.0%} of NumPy's",
    }
    return node("dl", *(node(tag, item) for name, text in terms.items() for tag, item in (("dt", name), ("dd", text))))


def _listed(items: Content, between: str) -> str:
    return ", ".join(f"{name}{between}{value}" for name, value in items.items())


# --- plots ------------------------------------------------------------------------------------------------------------


def losses(content: Content) -> Node:
    """Draw the mean loss of each epoch, on a logarithmic scale."""
    curves = {name: result["losses"] for name, result in content["backends"].items()}
    # Numbers that a logarithmic scale has no place for leave a gap.
    values = [value for curve in curves.values() for value in curve if 0.0 < value < math.inf]
    epochs = max(map(len, curves.values()))
    down = logarithmic(values or [1.0], HEIGHT - BOTTOM, TOP)
    drawn = [_level(down(value), short(value)) for value in ticks(values or [1.0], down)]

    def across(epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((epoch - 1) / (epochs - 1) if epochs > 1 else 0.5)

    step = next(size for size in _round_steps() if epochs / size <= 8)
    drawn += [
        node("text", str(epoch), x=across(epoch), y=HEIGHT - BOTTOM + 15, text_anchor="middle")
        for epoch in sorted({1, *range(step, epochs + 1, step)})
    ]
    drawn.append(node("text", "epoch", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, text_anchor="middle"))
    for place, (name, curve) in enumerate(curves.items()):
        points = [(across(i), down(y) if 0.0 < y < math.inf else None) for i, y in enumerate(curve, 1)]
        drawn += [node("circle", cx=x, cy=y, r=2.0, class_=f"alone {colour(place)}") for x, y in _alone(points)]
        path = node("path", node("title", name), d=_path(points), class_=f"curve {colour(place)}", stroke_width=2.5)
        path.attrib.update(dashes(place, len(curves)))
        drawn.append(path)
    key = [node("li", node("i"), node("span", name), class_=colour(i)) for i, name in enumerate(curves)]
    return node(
        "figure",
        node("h2", "Loss"),
        _svg(HEIGHT, "Mean loss of the batches of each epoch, a curve for each library", drawn),
        node("ul", *key, class_="key"),
        node("figcaption", "Mean of the batches of an epoch. Where curves coincide, their colours take turns."),
    )


def times(content: Content) -> Node:
    """Draw the median and the quartiles of the time of a step, on a logarithmic scale."""
    seconds = {name: result["step_seconds"] for name, result in content["backends"].items()}
    milliseconds = [1e3 * value for three in seconds.values() for value in three]
    end = TOP + ROW * len(seconds)
    across = logarithmic(milliseconds, NAMES, WIDTH - VALUES)
    drawn = []
    for value in ticks(milliseconds, across, lambda text: CHARACTER * len(text) + SPACE):
        x = across(value)
        drawn.append(node("line", x1=x, x2=x, y1=TOP, y2=end, class_="grid"))
        drawn.append(node("text", short(value), x=x, y=end + 15, text_anchor="middle"))
    drawn.append(node("text", "milliseconds", x=(NAMES + WIDTH - VALUES) / 2, y=end + 31, text_anchor="middle"))
    for place, (name, three) in enumerate(seconds.items()):
        low, middle, high = (across(1e3 * value) for value in three)
        y, kind = TOP + ROW * (place + 0.5), colour(place)
        drawn += [
            node("text", name, x=0.0, y=y + 4, class_="name"),
            node("path", d=f"M{low:.1f} {y:.1f}H{high:.1f}", class_=f"curve {kind}", stroke_width=2.0),
            node("circle", cx=middle, cy=y, r=4.5, class_=f"dot {kind}"),
            node("text", f"{1e3 * three[1]:.3g} ms", x=WIDTH, y=y + 4, text_anchor="end", class_="name"),
        ]
    return node(
        "figure",
        node("h2", "Time of a step"),
        _svg(end + BOTTOM, "Median time of a step of each library, with quartiles", drawn),
        node("figcaption", "Median and quartiles. The problem is small: what is timed is mostly what a call costs."),
    )


def logarithmic(values: Sequence[float], start: float, end: float) -> Scale:
    """Return the scale on which the values, with a margin, lie between two places."""
    low, high = bounds(values)
    return lambda value: start + (end - start) * (math.log10(value) - low) / (high - low)


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a logarithmic scale: at least a fifth of a decade apart."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.1 - (high - low) / 2, 0.05 * (high - low))
    return low - margin, high + margin


def ticks(values: Sequence[float], scale: Scale, room: Callable[[str], float] = lambda _: LEVELS) -> list[float]:
    """Return round numbers within the scale whose texts, as they need this much room, do not meet: three or more."""
    low, high = bounds(values)
    exponents = range(math.floor(low), math.ceil(high) + 1)
    most: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10)), tuple(k / 10 for k in range(10, 100))):
        found = [float(f"{digit}e{k}") for k in exponents for digit in digits]
        found = [value for value in found if value >= sys.float_info.min and low <= math.log10(value) <= high]
        kept = found[:1]
        for value in found[1:]:
            if abs(scale(value) - scale(kept[-1])) >= (room(short(value)) + room(short(kept[-1]))) / 2:
                kept.append(value)
        most = max(most, kept, key=len)
        if len(most) >= 3:
            break
    return most


def short(value: float) -> str:
    """Spell a round number in at most six characters."""
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e")


def _round_steps() -> Iterable[int]:
    return (digit * 10**k for k in range(20) for digit in (1, 2, 5))


def _level(y: float, text: str) -> Node:
    """Draw a line of the grid and its number."""
    line = node("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
    return node("g", line, node("text", text, x=LEFT - 6, y=y + 4, text_anchor="end"))


def dashes(place: int, count: int) -> dict[str, str]:
    """Return the dashes of one of several curves: where all agree, those of all take turns."""
    if count == 1:
        return {}
    return {"stroke-dasharray": f"{DASH:g} {DASH * (count - 1):g}", "stroke-dashoffset": f"{-DASH * place:g}"}


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    """Join the points, with a gap where there is none."""
    words, joined = [], False
    for x, y in points:
        if y is not None:
            words.append(f"{'L' if joined else 'M'}{x:.1f} {y:.1f}")
        joined = y is not None
    return "".join(words)


def _alone(points: Sequence[tuple[float, float | None]]) -> Iterable[tuple[float, float]]:
    """Return the points between two gaps, which no line passes through."""
    present = [False, *(y is not None for _, y in points), False]
    for i, (x, y) in enumerate(points):
        if y is not None and not present[i] and not present[i + 2]:
            yield x, y


def _svg(height: float, label: str, drawn: Iterable[Node]) -> Node:
    return node("svg", *drawn, viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", role="img", aria_label=label)
