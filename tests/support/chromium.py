"""A page in a real browser: Debian's Chromium without a window, spoken to through its debugging pipe."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless",
    "--no-sandbox",  # it refuses to start for root with one; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PATIENCE = 60.0
"""Seconds for an answer: a machine may be busy."""


@dataclass
class Seen:
    """What a page did while it was open."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # errors, warnings and prints of the console


class Chromium:
    """The browser; `with Chromium() as browser`."""

    def __enter__(self):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The browser reads its descriptor 3 and writes 4. Numbers from 10 on cannot be in their way.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        command = f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]} {ends[0]}<&- {ends[1]}>&-'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command, PROGRAM, *OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self._numbers, self._read, self._events = itertools.count(1), b"", []
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            self._call("Browser.close")
        for end in (self._in, self._out):
            os.close(end)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def _message(self, deadline):
        while b"\0" not in self._read:
            if not select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            part = os.read(self._in, 2**20)
            if not part:
                raise EOFError("Chromium is gone")
            self._read += part
        line, _, self._read = self._read.partition(b"\0")
        return json.loads(line)

    def _call(self, method, session=None, **params):
        number, deadline = next(self._numbers), time.monotonic() + PATIENCE
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            found = self._message(deadline)
            if found.get("id") == number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]
            self._events.append(found)

    def _wait_for(self, method, session):
        deadline = time.monotonic() + PATIENCE
        while True:
            if any(event.get("method") == method and event.get("sessionId") == session for event in self._events):
                return
            self._events.append(self._message(deadline))

    @contextlib.contextmanager
    def page(self, url, *, width, scheme, height=800):
        """Open a page at a width in CSS pixels, in the scheme "light" or "dark"."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        opened = Page(self, session, width)
        for domain in ("Page", "Runtime", "Log", "Network"):
            opened.call(f"{domain}.enable")
        opened.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        opened.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        opened.call("Page.navigate", url=url)
        self._wait_for("Page.loadEventFired", session)
        try:
            yield opened
        finally:
            self._call("Target.closeTarget", targetId=target)


@dataclass
class Page:
    """A page that is open."""

    browser: Chromium
    session: str
    width: int

    def call(self, method, **params):
        return self.browser._call(method, self.session, **params)

    def evaluate(self, expression):
        """Return the value of a JavaScript expression; promises are waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def screenshot(self, path):
        """Write a PNG of all of the page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))

    def seen(self):
        """Return what was requested and said since the page was opened."""
        self.evaluate("new Promise(done => setTimeout(done, 100))")
        seen = Seen()
        for event in self.browser._events:
            params = event.get("params", {})
            if event.get("sessionId") != self.session:
                continue
            if event["method"] == "Network.requestWillBeSent":
                seen.requests.append(params["request"]["url"])
            elif event["method"] == "Log.entryAdded":
                seen.complaints.append(params["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled":
                seen.complaints.append(str(params["args"]))
            elif event["method"] == "Runtime.exceptionThrown":
                seen.complaints.append(str(params["exceptionDetails"]))
        return seen

    def overflow(self):
        """By how many pixels the page is wider than the window."""
        return self.evaluate("document.documentElement.scrollWidth") - self.width
