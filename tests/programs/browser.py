"""A headless browser, as users have it: what it draws of a page and complains of."""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.request

import pytest

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
needed = pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome")


@contextlib.contextmanager
def tab(folder, url):
    """A page in which one can type; `folder` is a new one for the browser's files."""
    connect = pytest.importorskip("websockets.sync.client").connect
    process = subprocess.Popen(
        [PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu"]
        + ["--remote-debugging-port=0", f"--user-data-dir={folder}", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = folder / "DevToolsActivePort"
        wait(lambda: port.is_file() and port.read_text().count("\n"))
        address = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json"

        def pages():
            with urllib.request.urlopen(address) as answer:
                return [one for one in json.load(answer) if one["type"] == "page"]

        wait(pages)
        with connect(pages()[0]["webSocketDebuggerUrl"], max_size=None) as socket:
            made = Tab(socket)
            # The first page is an empty one, which is complete as well.
            there = "location.href !== 'about:blank'"
            wait(lambda: made.value(f"{there} && document.readyState === 'complete'"))
            yield made
    finally:
        process.terminate()
        process.wait(30)


class Tab:
    """Talks to a page by the protocol of the browser's own tools."""

    def __init__(self, socket):
        self._socket, self._last, self.console = socket, 0, []
        self.ask("Runtime.enable")
        self.ask("Log.enable")

    def ask(self, method, **params):
        """The result of a call; what the console says meanwhile is kept."""
        self._last += 1
        call = {"id": self._last, "method": method, "params": params}
        self._socket.send(json.dumps(call))
        while True:
            found = json.loads(self._socket.recv(30))
            if found.get("method") in ("Runtime.consoleAPICalled", "Log.entryAdded"):
                self.console.append(found["params"])
            if found.get("id") == self._last:
                return found["result"]

    def value(self, expression):
        """What an expression gives in the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def resize(self, width, height=900):
        """Lays the page out for a screen of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.ask("Emulation.setDeviceMetricsOverride", mobile=False, **size)

    def type(self, text):
        """Types into what has the focus, and presses enter."""
        self.ask("Input.insertText", text=text)
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **key)


def wait(ready, seconds=30):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
