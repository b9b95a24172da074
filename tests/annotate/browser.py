"""Headless Chromium, driven by the DevTools protocol through the keyboard and the mouse."""

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

CHROMIUM = os.environ.get("MEDTUNE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Tab:
    """One tab of the browser.

    Args:
        address: Of its DevTools socket.
    """

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=30, suppress_origin=True)
        self._count = 0
        self.problems: list[str] = []
        self.asked: list[str] = []
        for name in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{name}.enable")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Send a command and return its result; events on the way are kept."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": values}))
        while True:
            told = json.loads(self._socket.recv())
            if told.get("id") == self._count:
                assert "error" not in told, told
                return told["result"]
            self._event(told.get("method", ""), told.get("params", {}))

    def _event(self, method: str, values: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(values)[:500])
        elif method == "Log.entryAdded" and values["entry"]["source"] in ("security", "violation", "javascript"):
            self.problems.append(values["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.asked.append(values["request"]["url"])

    def run(self, script: str) -> Any:
        """Evaluate an expression of JavaScript; what it promises is awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"{script}\n{self.run('document.body.innerText')}\n{self.problems}"
            time.sleep(0.05)

    def open(self, url: str) -> None:
        """Load a page from anew, also if only its fragment differs."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.protocol !== 'about:'")

    def size(self, width: int, height: int, dark: bool = False, touch: bool = False) -> None:
        """Set the window's size and the colours that the person prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key: str, shift: bool = False) -> None:
        """Press and release a key."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        values = {"key": key, "windowsVirtualKeyCode": _KEYS.get(key, ord(key.upper()[0])), "modifiers": 8 * shift}
        self.call("Input.dispatchKeyEvent", type="keyDown", **values, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def middle(self, selector: str) -> tuple[float, float]:
        """Return where an element is."""
        script = "(() => { const e = document.querySelector(SELECTOR); e.scrollIntoView({block: 'nearest'});"
        script += " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        box = self.run(script.replace("SELECTOR", json.dumps(selector)))
        return box[0], box[1]

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Send one event of the mouse."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector: str) -> None:
        """Click on an element."""
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def drag(self, selector: str, dx: float, dy: float) -> None:
        """Drag from the middle of an element."""
        x, y = self.middle(selector)
        self.mouse("mousePressed", x, y, button="left", clickCount=1)
        self.mouse("mouseMoved", x + dx, y + dy, button="left", buttons=1)
        self.mouse("mouseReleased", x + dx, y + dy, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        """Write a PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def text(self, selector: str) -> str:
        """Return an element's text."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).textContent"))


class Browser:
    """A running Chromium.

    Args:
        port: Of its DevTools.
    """

    def __init__(self, port: int) -> None:
        self.port = port

    def tab(self) -> Tab:
        """Open a tab."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=30) as reply:
            return Tab(json.load(reply)["webSocketDebuggerUrl"])


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Start Chromium with a profile of its own, which cannot reach any other host."""
    assert CHROMIUM is not None
    switches = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={folder / 'profile'}",
        "--remote-debugging-port=0",
    ]
    process = subprocess.Popen(
        [CHROMIUM, *switches, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        named = folder / "profile" / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not named.is_file() or not named.read_text().strip():
            assert time.monotonic() < end and process.poll() is None, "Chromium did not start"
            time.sleep(0.1)
        yield Browser(int(named.read_text().splitlines()[0]))
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
