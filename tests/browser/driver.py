"""A small client of chromedriver: the W3C WebDriver protocol over HTTP, as much of it as the tests need."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
_PAINTED = """
const done = arguments[0];
const seen = (list, observer) => {
  if (!list.getEntriesByName("first-contentful-paint").length) return;
  observer.disconnect();
  done();
};
new PerformanceObserver(seen).observe({ type: "paint", buffered: true });
"""
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015"}


class Browser:
    """One window of Chromium. ``requests`` and ``faults`` are what happened since they were last asked for."""

    def __init__(self, port: int, profile: Path, language: str) -> None:
        self._root = f"http://127.0.0.1:{port}"
        flags = [*_FLAGS, f"--user-data-dir={profile}", "--window-size=1360,1000", f"--lang={language}"]
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": flags, "prefs": {"intl.accept_languages": language}},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{made['sessionId']}"

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, page: Path) -> None:
        """Leaves what was open, so that what is asked for from now on is this page's doing.

        Returns when the page has been painted: Chromium throws away keys and clicks that reach a page before its
        first frame, and a person presses none before there is one. WebDriver ends the wait after 30 s, as an error.
        """
        self._call("POST", f"{self._session}/url", {"url": "about:blank"})
        self.requests()
        self._call("POST", f"{self._session}/url", {"url": page.resolve().as_uri()})
        self._call("POST", f"{self._session}/execute/async", {"script": _PAINTED, "args": []})

    def js(self, script: str, *arguments: Any) -> Any:
        """What the body of a function gives."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def _find(self, css: str) -> str:
        found = self._call("POST", f"{self._session}/element", {"using": "css selector", "value": css})
        return f"{self._session}/element/{found[_ELEMENT]}"

    def click(self, css: str) -> None:
        """As a person does: what is hidden or covered is no target."""
        self._call("POST", f"{self._find(css)}/click")

    def type(self, css: str, text: str) -> None:
        self._call("POST", f"{self._find(css)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Keys where the focus is."""
        codes = [KEYS.get(key, key) for key in keys]
        actions = [{"type": kind, "value": code} for code in codes for kind in ("keyDown", "keyUp")]
        self._call("POST", f"{self._session}/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def text(self, css: str) -> str:
        return str(self._call("GET", f"{self._find(css)}/text"))

    def texts(self, css: str) -> list[str]:
        return list(self.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", css))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))

    def print_pdf(self) -> bytes:
        return base64.b64decode(self._call("POST", f"{self._session}/print", {"background": True}))

    def cdp(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self._call("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    @contextmanager
    def seen_on(self, width: int, media: str = "") -> Iterator[None]:
        """A window or sheet so many pixels wide; as it was when the block ends, however it ends."""
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)
        self.cdp("Emulation.setEmulatedMedia", media=media)
        try:
            yield
        finally:
            self.cdp("Emulation.setEmulatedMedia", media="")
            self.cdp("Emulation.clearDeviceMetricsOverride")

    def faults(self) -> list[str]:
        """Errors and warnings of the console."""
        log = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        log = self._call("POST", f"{self._session}/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in log]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def close(self) -> None:
        self._call("DELETE", self._session)


@contextmanager
def browser(profile: Path, language: str = "en-US") -> Iterator[Browser]:
    """Starts chromedriver and a window; ends both."""
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            window = Browser(_port(driver), profile, language)
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.terminate()


def _port(driver: subprocess.Popen[str]) -> int:
    """The free port that chromedriver chose, from what it prints once it listens."""
    said = []
    for line in driver.stdout or ():
        if found := re.search(r"started successfully on port (\d+)", line):
            return int(found[1])
        said.append(line)
    raise AssertionError(f"chromedriver does not start: {''.join(said)}")
