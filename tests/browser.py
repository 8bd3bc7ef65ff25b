"""A headless Chromium for tests of pages, driven over DevTools' pipe: no port, no further library.

    with Browser() as browser:
        page = browser.open(path, width=390, height=844)
        page.key("ArrowRight")
        assert page.value("document.title") == "..."
        page.screenshot(tmp_path / "phone.png")

Source: https://chromedevtools.github.io/devtools-protocol/ and Chromium's --remote-debugging-pipe
(JSON messages, each ended by a NUL, read from descriptor 3 and written to descriptor 4).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_KEY_CODES = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "End": 35,
    "Home": 36,
    "PageUp": 33,
    "PageDown": 34,
    "Escape": 27,
    "Enter": 13,
    "Tab": 9,
    " ": 32,
}


def find_chromium() -> str | None:
    """The browser's path: $CHROMIUM, or one on the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """A browser process; tests are skipped where there is no Chromium."""

    def __init__(self, *, dark: bool = False) -> None:
        executable = find_chromium()
        if executable is None:
            pytest.skip("no Chromium here ($CHROMIUM names one)")
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        there, self._out = os.pipe()
        self._in, back = os.pipe()
        command = [
            executable,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            f"--user-data-dir={self._profile.name}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        # The shell moves the pipes to the descriptors that Chromium wants them on.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{there} 4>&{back}', "browser", *command],
            pass_fds=(there, back),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)
        self._dark = dark
        self._number = 0
        self._buffer = b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._out)
        os.close(self._in)
        self._profile.cleanup()

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """One DevTools command; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        number = self._number
        while True:
            answer = self._read(timeout=60)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _read(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while b"\0" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self._in], [], [], left)[0], "the browser does not answer"
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "the browser is gone"
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, path: Path, *, width: int, height: int, fragment: str = "") -> Page:
        """Opens a local file in a page of that size and waits until it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 600 else 1,
            mobile=width < 600,
        )
        scheme = "dark" if self._dark else "light"
        page.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        started = time.monotonic()
        page.call("Page.navigate", url=path.resolve().as_uri() + fragment)
        page.until("location.protocol === 'file:' && document.readyState === 'complete'")
        page.opened_in_s = time.monotonic() - started
        return page


class Page:
    """One open page.

    Attributes:
      opened_in_s: seconds from the navigation to the loaded page.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.opened_in_s = 0.0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command to this page."""
        return self._browser.call(method, self._session, **parameters)

    def value(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression; promises are waited for."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, expression: str, timeout: float = 30.0) -> None:
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.02)

    def key(self, name: str) -> None:
        """Presses and releases a key."""
        code = _KEY_CODES[name]
        text = {"Enter": "\r", " ": " "}.get(name, "")
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                code="Space" if name == " " else name,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drags the mouse with its left button held."""
        for kind, (x, y), held in (
            ("mousePressed", start, 1),
            ("mouseMoved", end, 1),
            ("mouseReleased", end, 0),
        ):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                buttons=held,
                clickCount=1,
            )

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Writes a PNG of the window, or of the whole page."""
        clip: dict[str, Any] = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {**size, "scale": 1}, "captureBeyondViewport": True}
        data = self.call("Page.captureScreenshot", format="png", **clip)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path: Path) -> None:
        """Prints the page."""
        data = self.call("Page.printToPDF", printBackground=True)["data"]
        path.write_bytes(base64.b64decode(data))

    @property
    def requests(self) -> list[str]:
        """The addresses that the page asked for, data in the page itself apart."""
        return [
            event["params"]["request"]["url"]
            for event in self._of("Network.requestWillBeSent")
            if not event["params"]["request"]["url"].startswith("data:")
        ]

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the console, of scripts and of the browser itself."""
        thrown = [str(event["params"]) for event in self._of("Runtime.exceptionThrown")]
        logged = [
            str(event["params"])
            for event in self._of("Runtime.consoleAPICalled")
            if event["params"]["type"] in ("error", "warning", "assert")
        ]
        blocked = [
            str(event["params"])
            for event in self._of("Log.entryAdded")
            if event["params"]["entry"]["level"] in ("error", "warning")
        ]
        return thrown + logged + blocked

    def _of(self, method: str) -> list[dict[str, Any]]:
        self.value("1")  # collects what is on its way
        return [
            event
            for event in self._browser.events
            if event.get("method") == method and event.get("sessionId") == self._session
        ]
