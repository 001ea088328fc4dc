"""Opens a page in headless Chromium and says what a visitor would get: images, errors, requests, a screenshot.

It speaks the DevTools protocol over Chromium's own pipe (`--remote-debugging-pipe`: JSON messages that end in a zero
byte, read by the browser from file descriptor 3 and written to 4), and so needs no driver and no package.
"""
import base64
import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import pathlib
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)


@dataclasses.dataclass
class Visit:
    """What became of a page.

    Attributes:
      title: of the page.
      text: all that is visible to read.
      images: for each <img> its alternative text, its size in the file (0 if it is broken) and its width on the page.
      errors: console errors and warnings, uncaught exceptions, and the browser's own complaints.
      requests: addresses asked for besides the page itself and data: addresses.
      overflow: by how many pixels the page is wider than the window.
    """

    title: str
    text: str
    images: list[dict[str, object]]
    errors: list[str]
    requests: list[str]
    overflow: int


def find_browser() -> str | None:
    """The path of an installed Chromium or Chrome; None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def visit(
    page: pathlib.Path, screenshot: pathlib.Path | None = None, *, width: int = 1200, height: int = 900,
    dark: bool = False, seconds: float = 60,
) -> Visit:
    """Opens a file and waits until it and its images are there.

    Args:
      page: the HTML file.
      screenshot: where to write a PNG of the whole page, if anywhere.
      width: of the window, in CSS pixels; below 600, it is a phone's.
      height: of the window.
      dark: whether the visitor prefers dark pages.
      seconds: how long the browser may take for each answer.
    """
    with _Browser(seconds) as browser:
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.call(f"{domain}.enable")
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                     deviceScaleFactor=2 if width < 600 else 1, mobile=width < 600)
        browser.call("Emulation.setEmulatedMedia",
                     features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        address = page.resolve().as_uri()
        browser.call("Page.navigate", url=address)
        browser.wait_for("Page.loadEventFired")
        found = json.loads(browser.evaluate("""
            Promise.allSettled([...document.images].map(image => image.decode())).then(() => JSON.stringify({
              title: document.title,
              text: document.body.innerText,
              images: [...document.images].map(image => ({
                alt: image.alt, width: image.naturalWidth, height: image.naturalHeight, shown: image.clientWidth})),
              overflow: document.documentElement.scrollWidth - innerWidth}))"""))
        if screenshot is not None:
            image = browser.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
            screenshot.write_bytes(base64.b64decode(image["data"]))
        requests = [event["request"]["url"] for event in browser.events("Network.requestWillBeSent")]
        return Visit(errors=list(_errors(browser)), **found,
                     requests=[url for url in requests if url != address and not url.startswith("data:")])


def _errors(browser: "_Browser") -> Iterator[str]:
    for event in browser.events("Runtime.exceptionThrown"):
        yield event["exceptionDetails"]["text"]
    for event in browser.events("Log.entryAdded"):
        if event["entry"]["level"] in ("warning", "error"):
            yield event["entry"]["text"]
    for event in browser.events("Runtime.consoleAPICalled"):
        if event["type"] in ("warning", "error", "assert"):
            yield " ".join(str(argument.get("value")) for argument in event["args"])


class _Browser(contextlib.AbstractContextManager["_Browser"]):
    """A Chromium with one empty page, its own empty profile, and a line to it."""

    def __init__(self, seconds: float):
        executable = find_browser()
        if executable is None:
            raise FileNotFoundError("no Chromium or Chrome on PATH; on Debian and Ubuntu: apt-get install chromium")
        self._seconds = seconds
        self._numbers = itertools.count(1)
        self._received = b""
        self._messages: list[dict] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (to_child, self._write), (self._read, from_child) = os.pipe(), os.pipe()
        # Out of the way of 3 and 4, which they become in the child; no other descriptor outlives its exec.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in (to_child, from_child)]
        self._process = os.posix_spawn(
            executable, [executable, *FLAGS, f"--user-data-dir={self._profile.name}"], os.environ, setpgroup=0,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4)])
        for end in (to_child, from_child, *high):
            os.close(end)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **params: object) -> dict:
        """Sends a command and returns its result."""
        number = next(self._numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._receive_until(lambda other: other.get("id") == number, method)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def evaluate(self, expression: str) -> str:
        """The value of a JavaScript expression, awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{answer['exceptionDetails']['text']} in {expression}")
        return answer["result"]["value"]

    def wait_for(self, event: str) -> None:
        """Waits until an event has come, now or earlier."""
        if not self.events(event):
            self._receive_until(lambda message: message.get("method") == event, event)

    def events(self, name: str) -> list[dict]:
        """The events of this name so far."""
        return [message["params"] for message in self._messages if message.get("method") == name]

    def _receive_until(self, wanted, what: str) -> dict:
        deadline = time.monotonic() + self._seconds
        while True:
            while b"\0" not in self._received:
                ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
                chunk = os.read(self._read, 1 << 20) if ready else b""
                if not chunk:
                    state = "closed" if ready else f"did not answer within {self._seconds} seconds"
                    raise TimeoutError(f"the browser {state}, waiting for {what}")
                self._received += chunk
            line, _, self._received = self._received.partition(b"\0")
            self._messages.append(json.loads(line))
            if wanted(self._messages[-1]):
                return self._messages[-1]

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._session = None
            self.call("Browser.close")
        for end in (self._write, self._read):
            os.close(end)
        with contextlib.suppress(ProcessLookupError):  # whatever of it did not close
            os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        self._profile.cleanup()
