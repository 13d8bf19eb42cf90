"""The page of compare_backends.py: in a browser, light and dark, on a phone and a desktop; every text is only text."""

from __future__ import annotations

import copy
import html.parser
import itertools
import json
import math
import random
import struct

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("rich")

import compare_backends
from _compare_page import (
    BOTTOM,
    CHARACTER,
    HEIGHT,
    LEVELS,
    NAMES,
    SPACE,
    TOP,
    VALUES,
    WIDTH,
    bounds,
    dashes,
    logarithmic,
    node,
    page,
    short,
    ticks,
)
from chromium import PROGRAM, Chromium

needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium")
WIDTHS = {"phone": 360, "desktop": 1280}
looks = pytest.mark.parametrize(("width", "scheme"), [(w, s) for w in WIDTHS.values() for s in ("light", "dark")])
NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"'</style></title> \ud800"


@pytest.fixture(scope="module")
def content():
    """What a run says: NumPy's own, under the names of six libraries."""
    settings = compare_backends.Settings(epochs=12)
    task = compare_backends.drawn(settings)
    report = compare_backends.Report(settings, {}, {"nothing": "not installed"})
    states = {"first": task.params, "trained": task.params}
    report.budgets_eps = {state: compare_backends.budget(task, params) for state, params in states.items()}
    backend = compare_backends.LOADERS["numpy"]("float32")
    result = compare_backends.run(backend, task, states, settings, lambda: None)
    report.backends = dict.fromkeys(compare_backends.LOADERS, result)
    return json.loads(compare_backends.as_json(compare_backends.described_run(report, ["--epochs", "12"])))


@pytest.fixture
def faulty(content):
    """One in which everything is long, wrong, missing or means something in HTML."""
    content = copy.deepcopy(content)
    content["problems"] = [f"torch failed: {NASTY}", "x" * 400]
    content["unusable"] = {"cupy": NASTY}
    content["command"] = f"python {NASTY}"
    content["commit"] = None
    names = iter(content["backends"].values())
    next(names).update(device=NASTY, final_loss=math.nan)
    next(names)["losses"] = [10.0**i for i in range(12)]
    next(names)["losses"] = [2.0, math.nan, 1.0, math.inf, *[0.0] * 8]
    next(names)["device"] = "NVIDIA H100 80GB HBM3, driver for CUDA 13000"
    next(names)["differences_eps"]["first"].update(loss=math.nan, W1=1234567.0, b1=math.inf)
    next(names)["step_seconds"] = [1e-6, 1e-4, 10.0]
    return content


class Reader(html.parser.HTMLParser):
    """The elements with their attributes, and the text."""

    def __init__(self, data):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(data.decode("ascii"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data + "\n"


# --- without a browser ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["content", "faulty"])
def test_the_page_loads_nothing(request, which):
    elements = Reader(page(request.getfixturevalue(which))).elements
    assert {tag for tag, _ in elements}.isdisjoint({"script", "link", "img", "iframe", "object", "use", "image"})
    names = {name for _, attributes in elements for name in attributes}
    assert names.isdisjoint({"src", "href", "xlink:href", "srcset", "onerror"})
    text = page(request.getfixturevalue(which)).decode()
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_has_the_numbers_of_the_json(content):
    text = Reader(page(content)).text
    for name, result in content["backends"].items():
        assert f"{name}\n" in text
        assert f"{result['test_accuracy']:.2%}" in text
        assert f"{result['final_loss']:.6f}" in text
        assert f"{1e3 * result['step_seconds'][1]:.3g}\n" in text
        for state, found in result["differences_eps"].items():
            assert f"{state}\n" in text
            assert all(f"{eps:.2f}\n" in text for eps in found.values())
    for value in (content["command"], content["hardware"]["cpu"], content["commit"], content["date"]):
        assert value in text
    for package, version in content["versions"].items():
        assert f"{package} {version}" in text
    assert "Every library is within its limits: 6 libraries" in text
    assert "nothing: not installed" in text
    assert "-2.819e-09" in text
    for column in ("train, test", "ms a step", "speed", "eps", "budget"):
        assert f"{column}\n" in text


def test_a_text_is_only_text(faulty):
    seen = Reader(page(faulty)).text
    shown = NASTY.replace("\ud800", "�")  # what no file can hold
    for text in (f"torch failed: {shown}", f"cupy: {shown}", f"python {shown}", f", {shown}"):
        assert text in seen
    assert "Every library is within its limits" not in seen
    assert "Not as it should be: 2 problems with 6 libraries." in seen


def test_differences_over_the_budget_stand_out(faulty):
    bad = [tag for tag, attributes in Reader(page(faulty)).elements if attributes.get("class") == "bad"]
    assert sorted(bad) == ["li", "li", "td", "td", "td"]


def test_a_curve_has_a_line_for_each_library_and_gaps_where_there_is_no_number(faulty):
    elements = Reader(page(faulty)).elements
    curves = [a["d"] for tag, a in elements if tag == "path" and "curve" in a["class"] and len(a["stroke-width"]) == 3]
    curves = [d for d in curves if "H" not in d]  # those are the quartiles
    assert len(curves) == len(faulty["backends"])
    assert [d.count("M") for d in curves] == [1, 1, 2, 1, 1, 1]
    assert [d.count("L") for d in curves] == [11, 11, 0, 11, 11, 11]
    alone = [a for tag, a in elements if tag == "circle" and a["class"] == "alone c2"]
    assert len(alone) == 2


def test_where_curves_coincide_their_dashes_take_turns():
    """Every place along the curve is in a dash of exactly one of the libraries."""
    for count in (2, 5):
        patterns = [dashes(place, count) for place in range(count)]
        for length in range(200):
            drawn = 0
            for pattern in patterns:
                on, off = map(float, pattern["stroke-dasharray"].split())
                drawn += (length + 0.5 + float(pattern["stroke-dashoffset"])) % (on + off) < on
            assert drawn == 1
    assert dashes(0, 1) == {}


def test_losses_that_are_none_of_them_numbers_are_no_error(content):
    content = copy.deepcopy(content)
    for result in content["backends"].values():
        result["losses"] = [math.nan]
    assert b"<svg" in page(content)


AXES = {
    "down": (HEIGHT - BOTTOM, TOP, lambda text: LEVELS),
    "across": (NAMES, WIDTH - VALUES, lambda text: CHARACTER * len(text) + SPACE),
}


@pytest.mark.parametrize("axis", AXES)
def test_ticks_are_round_numbers_within_the_scale_that_do_not_meet(axis):
    start, end, room = AXES[axis]
    draw, count = random.Random(0), 0
    spans = [(0.3, 0.3), (0.29, 0.31), (0.07, 1.7), (1e-8, 1e3), (1e-300, 1e300), (3e-5, 0.2)]
    for width in (0.0, 0.2, 0.5, 2.0, 12.0):
        firsts = [draw.uniform(-6.0, 6.0) for _ in range(1000)]
        spans += [(10.0**first, 10.0 ** (first + draw.uniform(0.0, width))) for first in firsts]
    for values in spans:
        low, high = bounds(values)
        scale = logarithmic(values, start, end)
        found = ticks(values, scale, room)
        assert all(low <= math.log10(value) <= high for value in found)
        assert 3 <= len(found) <= 7, values
        texts = [short(value) for value in found]
        assert [float(text) for text in texts] == found
        assert max(map(len, texts)) <= 6 or min(values) < 1e-9
        places = [scale(value) for value in found]
        for (one, other), (a, b) in zip(itertools.pairwise(texts), itertools.pairwise(places), strict=True):
            assert abs(b - a) >= (room(one) + room(other)) / 2
        count += len(found)
    assert count > 3 * 5000


def test_ticks_of_usual_scales():
    assert ticks([0.07, 1.7], logarithmic([0.07, 1.7], HEIGHT - BOTTOM, TOP)) == [0.1, 0.3, 1.0]
    start, end, room = AXES["across"]
    assert ticks([0.08, 0.1], logarithmic([0.08, 0.1], start, end), room) == [0.08, 0.09, 0.1]


def test_an_attribute_that_is_none_is_left_out():
    assert node("p", class_=None, aria_label=1.0).attrib == {"aria-label": "1.0"}


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with Chromium() as browser:
        yield browser


# Of each text its colour against that of the ground, and of each drawing: the ratio of WCAG 2.
CONTRASTS = """(() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const ratio = colour => {
    const l = light(colour);
    return (Math.max(l, ground) + 0.05) / (Math.min(l, ground) + 0.05);
  };
  const found = {ground, texts: [], drawings: []};
  for (const e of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(e);
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (own && e.tagName !== "title") found.texts.push(ratio(e.tagName === "text" ? style.fill : style.color));
    if (e.matches(".curve, .dot")) found.drawings.push(ratio(e.matches(".dot") ? style.fill : style.stroke));
  }
  return found;
})()"""

# Numbers and names of a plot that lie on each other, or stand out of it.
COLLISIONS = """[...document.querySelectorAll("svg")].flatMap(svg => {
  const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
  const all = svg.getBoundingClientRect();
  const out = texts.filter(([, r]) => r.left < all.left - 1 || r.right > all.right + 1 || r.bottom > all.bottom + 1);
  const meet = texts.flatMap(([one, a], i) => texts.slice(i + 1).filter(([, b]) =>
    a.left < b.right && b.left < a.right && a.top + 1 < b.bottom && b.top + 1 < a.bottom).map(([two]) => one + two));
  return [...out.map(([text]) => text), ...meet];
})"""


# The first: 0.082, 0.088, 0.094 and 0.1 once lay on each other. Others as narrow, and wide ones.
SPANS = [
    [1.02e-4, 1.03e-4],
    [8.7e-5, 8.7e-5],
    [1.15e-3, 1.3e-3],
    [2.1e-4, 2.2e-4],
    [9.9e-3, 1e-2],
    [1e-5, 3e-4],
    [0.5, 90.0],
]


@needs_chromium
@pytest.mark.parametrize("span", SPANS)
def test_numbers_in_the_browser_do_not_meet_whatever_was_timed(content, browser, tmp_path, span):
    content, file = copy.deepcopy(content), tmp_path / "page.html"
    for result, seconds in zip(content["backends"].values(), itertools.cycle(span), strict=False):
        result["step_seconds"] = [seconds] * 3
        result["losses"] = [1e3 * seconds] * 12
    file.write_bytes(page(content))
    with browser.page(file.as_uri(), width=360, scheme="light") as opened:
        assert opened.evaluate(COLLISIONS) == []


@needs_chromium
@looks
@pytest.mark.parametrize("which", ["content", "faulty"])
def test_the_page_in_a_browser(browser, request, tmp_path, which, width, scheme):
    content, file = request.getfixturevalue(which), tmp_path / "page.html"
    file.write_bytes(page(content))
    with browser.page(file.as_uri(), width=width, scheme=scheme) as opened:
        seen = opened.seen()
        assert seen.complaints == []
        assert seen.requests == [file.as_uri()]
        assert opened.overflow() <= 0
        found = opened.evaluate(CONTRASTS)
        assert found["ground"] > 0.9 if scheme == "light" else found["ground"] < 0.1
        assert len(found["texts"]) > 100
        assert min(found["texts"]) >= 4.5
        assert len(found["drawings"]) == 3 * len(content["backends"])
        assert min(found["drawings"]) >= 3.0
        assert opened.evaluate(COLLISIONS) == []
        smallest = 'Math.min(...[...document.querySelectorAll("text")].map(t => t.getBoundingClientRect().height))'
        assert opened.evaluate(smallest) >= 10.0
        opened.screenshot(tmp_path / "page.png")
    head = (tmp_path / "page.png").read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert struct.unpack(">II", head[16:])[0] == width


@needs_chromium
def test_what_would_be_wrong_is_seen(browser, tmp_path):
    """The test of the tests: something loaded, an error of a script, a page that is too wide."""
    file = tmp_path / "page.html"
    file.write_text(
        '<meta name="viewport" content="width=device-width"><p style="width: 500px; color: #eee">x</p>'
        '<img src="missing.png"><script>console.warn("said"); throw new Error("thrown")</script>'
        '<svg><text x="5" y="9">one</text><text x="9" y="9">two</text></svg>'
    )
    with browser.page(file.as_uri(), width=360, scheme="light") as opened:
        seen = opened.seen()
        assert seen.requests == [file.as_uri(), (tmp_path / "missing.png").as_uri()]
        assert any("said" in text for text in seen.complaints)
        assert any("thrown" in text for text in seen.complaints)
        assert any("ERR_FILE_NOT_FOUND" in text for text in seen.complaints)
        assert opened.overflow() > 100
        assert opened.evaluate(COLLISIONS) == ["onetwo"]
        assert opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is False
