"""A real Chromium, driven over its DevTools protocol with the standard library alone.

The browser reads commands from file descriptor 3 and answers on 4, JSON ended by a NUL byte; see
https://chromedevtools.github.io/devtools-protocol. Nothing is fetched: pages come from disk.
"""
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         "--hide-scrollbars", "--remote-debugging-pipe")
KEYS = {"ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Tab": 9, "Enter": 13, " ": 32}
PATIENCE = 60               # seconds until an answer must be there


class Chromium:
    """The browser with one page. `errors`: uncaught exceptions, the console's errors, requests for other than files."""

    def __init__(self, profile):
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if not program:
            raise FileNotFoundError(f"none of {', '.join(NAMES)} is installed: apt-get install chromium")
        (theirs_in, self.to), (self.back, theirs_out) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs_in, theirs_out)]   # clear of 3 and 4
        self.process = subprocess.Popen([program, *FLAGS, f"--user-data-dir={profile}", "about:blank"], pass_fds=(3, 4),
                                        preexec_fn=lambda: [os.dup2(fd, i) for fd, i in zip(ends, (3, 4))],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (theirs_in, theirs_out, *ends):
            os.close(fd)
        self.rest, self.count, self.session, self.loaded, self.errors = b"", 0, {}, False, []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self):
        """Without its pipes the browser ends by itself."""
        os.close(self.to)
        os.close(self.back)
        self.process.wait(PATIENCE)

    def receive(self):
        """Wait for the next message, and note what it says of errors and of loading."""
        while b"\0" not in self.rest:
            if not select.select([self.back], [], [], PATIENCE)[0]:
                raise TimeoutError("Chromium does not answer")
            data = os.read(self.back, 1 << 20)
            if not data:
                raise ConnectionError("Chromium ended")
            self.rest += data
        message, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(message)
        event, params = message.get("method"), message.get("params", {})
        self.loaded = self.loaded or event == "Page.loadEventFired"
        url = params["request"]["url"] if event == "Network.requestWillBeSent" else ""
        failed = (event == "Runtime.exceptionThrown" or url and url.split(":")[0] not in ("file", "data", "about")
                  or event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert")
                  or event == "Log.entryAdded" and params["entry"]["level"] == "error")
        self.errors += [params] if failed else []
        return message

    def send(self, method, **params):
        """Send a command and return its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params} | self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.count:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, path, fragment=""):
        """Open a file's page and wait until it is loaded. No error of an earlier page is kept."""
        for url in ("about:blank", Path(path).resolve().as_uri() + fragment):
            self.loaded, self.errors = False, []
            self.send("Page.navigate", url=url)
            while not self.loaded:
                self.receive()

    def run(self, script):
        """Return the value of a JavaScript expression in the page; a promise is awaited."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def key(self, name):
        """Press and release a key, as on a keyboard; a single letter is typed."""
        code = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name]} if name in KEYS else \
            {"key": name, "text": name}
        code |= {"text": "\r"} if name == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown" if "text" in code else "rawKeyDown", **code)
        self.send("Input.dispatchKeyEvent", type="keyUp", **code)

    def window(self, width, height=800, dark=False, media="screen"):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def settled(self):
        """Wait for two frames and for every picture in view, 5 seconds at most."""
        self.run("""new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))).then(() =>
            Promise.race([new Promise(done => setTimeout(done, 5000)),
                          Promise.all([...document.images].filter(i => i.loading !== "lazy")
                                      .map(i => i.decode().catch(() => null)))]))""")

    def screenshot(self, path, whole=False):
        self.settled()
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(data))
