"""A headless Chromium, driven through its DevTools protocol over a pipe: no driver, no port, no package."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WAIT_SECONDS = 20.0
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")


def executable() -> str | None:
    """Where Chromium is installed; None where it is not."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One tab. Messages are JSON, each ended by a zero byte."""

    def __init__(self, to: int, out: int) -> None:
        self._to, self._out = to, out
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.password = ""
        """What a person would type into the prompt for one; a second prompt in a row is given up."""
        self.prompts = 0
        self.errors: list[str] = []
        """Uncaught exceptions and console errors of the page, violations of its content policy among them."""
        self.requests: list[str] = []
        """Addresses that pages asked for, their own among them."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send("Fetch.enable", handleAuthRequests=True)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and wait for what it returns."""
        number = self._post(method, parameters)
        while (message := self._read()).get("id") != number:
            self._event(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return dict(message["result"])

    def open(self, url: str) -> None:
        """Go to a page; what it loads afterwards is waited for by `until`."""
        self.send("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Evaluate JavaScript, promises included, and return its value."""
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']['exception'].get('description')}")
        return result["result"].get("value")

    def until(self, script: str) -> Any:
        """Evaluate JavaScript until it gives something true; return that."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (value := self.run(script)):
            if time.monotonic() > deadline:
                shown = self.run("document.body.innerText")
                raise TimeoutError(f"{script} did not come true in {WAIT_SECONDS:g} s; {self.errors}; page:\n{shown}")
            time.sleep(0.02)
        return value

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "", modifiers: int = 0) -> None:
        """Press and release one key; Shift is modifier 8."""
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
        self.send("Input.dispatchKeyEvent", type="keyUp", **shared)

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as it lies on the screen."""
        box = self.run(f"(({selector!r}, document.querySelector({selector!r}).getBoundingClientRect())).toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **at)

    def screen(self, width: int, height: int, *, dark: bool = False, phone: bool = False, paper: bool = False) -> None:
        """Become a screen of this size, or a sheet of paper."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1 + phone, mobile=phone
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="print" if paper else "", features=[scheme])

    def picture(self, path: Path) -> None:
        """Write what is on the screen as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def _post(self, method: str, parameters: dict[str, Any]) -> int:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        return self._number

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not (part := os.read(self._out, 2**16)):
                raise RuntimeError("Chromium ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _event(self, message: dict[str, Any]) -> None:
        found = message.get("params", {})
        match message.get("method"):
            case "Fetch.requestPaused":
                self.requests.append(found["request"]["url"])
                self._post("Fetch.continueRequest", {"requestId": found["requestId"]})
            case "Fetch.authRequired":
                self.prompts += 1
                answer: dict[str, str] = {"response": "CancelAuth"}
                if self.prompts == 1:
                    answer = {"response": "ProvideCredentials", "username": "", "password": self.password}
                self._post("Fetch.continueWithAuth", {"requestId": found["requestId"], "authChallengeResponse": answer})
            case "Runtime.exceptionThrown":
                self.errors.append(str(found["exceptionDetails"]))
            case "Log.entryAdded" if found["entry"]["level"] == "error":
                self.errors.append(f"{found['entry']['text']} {found['entry'].get('url', '')}")


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with an empty profile, and end it."""
    chromium = executable()
    assert chromium is not None
    read_by_it, to = os.pipe()
    out, written_by_it = os.pipe()
    # Chromium reads from descriptor 3 and writes to 4.
    command = f'exec "$@" 3<&{read_by_it} 4>&{written_by_it}'
    arguments = (chromium, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe")
    with (profile / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, "bash", *arguments], pass_fds=(read_by_it, written_by_it), stderr=log
        )
    os.close(read_by_it)
    os.close(written_by_it)
    try:
        yield Browser(to, out)
    finally:
        os.close(to)  # Chromium ends when its pipe does
        process.wait(timeout=WAIT_SECONDS)
        os.close(out)
