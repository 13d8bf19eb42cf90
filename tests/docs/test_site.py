"""The site as it was built: every link leads to something, no page needs a network or more than a phone."""

from __future__ import annotations

import html.parser
from urllib.parse import unquote, urlsplit

import pytest
from chromium import PROGRAM, Chromium
from paths import DOCS

SITE = DOCS / "_build" / "html"


@pytest.fixture(autouse=True, scope="module")
def _asked_for(request):
    if not request.config.getoption("--site"):
        pytest.skip("looks at the site that nox -s docs builds: --site")


class Page(html.parser.HTMLParser):
    """What a page links to, what it loads, and what can be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.names = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.names.update(value for name, value in attrs if name in ("id", "name") and value)
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag in ("script", "img", "iframe", "source") and attributes.get("src"):
            self.loaded.append(attributes["src"])
        if tag == "link" and attributes.get("rel") not in ("index", "search", "next", "prev", "canonical"):
            self.loaded.append(attributes["href"])


@pytest.fixture(scope="module")
def site():
    return {path: Page(path) for path in sorted(SITE.rglob("*.html")) if path.relative_to(SITE).parts[0] != "_static"}


def test_the_site_has_all_pages(site):
    names = {path.relative_to(SITE).as_posix() for path in site}
    assert {"index.html", "derivation.html", "guides/labels.html", "api/xpsoftmax.train.html"} <= names
    assert len(names) > 60


def test_links_lead_to_something(site):
    broken, count = [], 0
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme == "https", link
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            count += 1
            known = site[target].names if target in site else set()
            if not target.is_file() or (parts.fragment and target in site and unquote(parts.fragment) not in known):
                broken.append((path.name, link))
    assert not broken
    assert count > 3000


def test_nothing_is_loaded_from_elsewhere(site):
    loaded = [(path, link) for path, page in site.items() for link in page.loaded]
    assert len(loaded) > 500
    for path, link in loaded:
        parts = urlsplit(link)
        assert parts.scheme in ("", "data"), link
        assert parts.scheme or (path.parent / parts.path).resolve().is_file(), link


# Elements that are cut off: wider than the window, and in nothing that scrolls.
CUT_OFF = """[...document.querySelectorAll("article *, .prev-next-area *")].filter(e => {
  const right = e.getBoundingClientRect().right;
  if (right <= window.innerWidth + 1 || e.closest("mjx-assistive-mml, .visually-hidden, .headerlink")) return false;
  const scrolls = up => ["auto", "scroll"].includes(getComputedStyle(up).overflowX);
  for (let up = e; up && up.tagName !== "ARTICLE" && up !== document.body; up = up.parentElement)
    if (scrolls(up) && up.clientWidth <= window.innerWidth) return false;
  return true;
}).map(e => e.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="module")
def browser():
    if PROGRAM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with Chromium() as browser:
        yield browser


# Blocks of code that do not fit, and tables of results that do not.
TOO_WIDE = """[...document.querySelectorAll("article pre, article .results .pst-scrollable-table-container")]
  .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.trim().slice(0, 60))"""


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light"), (1920, "dark")])
def test_pages_in_a_browser(browser, site, width, scheme):
    formulas, cut_off = 0, []
    for path in site:
        if "_modules" in path.parts:
            continue
        with browser.page(path.as_uri(), width=width, scheme=scheme) as opened:
            if opened.evaluate("typeof MathJax === 'object' && 'startup' in MathJax"):
                opened.evaluate("MathJax.startup.promise.then(() => null)")
            formulas += opened.evaluate("document.querySelectorAll('mjx-container').length")
            assert opened.evaluate("document.querySelectorAll('mjx-merror').length") == 0, path
            assert opened.evaluate("document.documentElement.dataset.theme") == scheme, path
            assert opened.overflow() <= 0, path
            cut_off += [(path.name, text) for text in opened.evaluate(CUT_OFF)]
            if width >= 1400:
                cut_off += [(path.name, text) for text in opened.evaluate(TOO_WIDE)]
            seen = opened.seen()
            assert all(url.startswith(("file:", "data:", "blob:")) for url in seen.requests), path
            said = [text for text in seen.complaints if "[PST]" not in text and "invalid theme mode" not in text]
            assert said == [], path
    assert cut_off == []
    assert formulas > 200


def test_what_is_cut_off_is_seen(browser, tmp_path):
    """The test of the test."""
    long = "<code style='white-space: nowrap'>" + "x" * 100 + "</code>"
    file = tmp_path / "page.html"
    file.write_text(
        f"<meta name='viewport' content='width=device-width'><article style='overflow: auto'><p>{long}</p>"
        f"<div style='overflow: auto'>{long}</div></article>"
    )
    with browser.page(file.as_uri(), width=360, scheme="light") as opened:
        assert opened.overflow() <= 0
        assert [text[:5] for text in opened.evaluate(CUT_OFF)] == ["<code"]
