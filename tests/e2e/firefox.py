"""Headless Firefox over WebDriver BiDi, which it speaks by itself: no driver programme, no package."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
PULSEAUDIO = shutil.which("pulseaudio")
PREFERENCES: dict[str, bool | int | str] = {
    "media.navigator.permission.disabled": True,  # nobody is there to answer
    "media.autoplay.default": 0,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "app.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "services.settings.server": "",
    "remote.prefs.recommended": True,
}


class Firefox:
    """One tab. Commands are answered in order, so a socket and a counter are all it takes."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []
        self._ask("session.new", capabilities={})
        self._ask("session.subscribe", events=["log.entryAdded"])
        self._tab = self._ask("browsingContext.getTree")["contexts"][0]["context"]

    def visit(self, url: str, script: str = "") -> None:
        """Open the page; `script` runs before its own."""
        if script:
            self._ask("script.addPreloadScript", functionDeclaration=f"() => {{ {script} }}")
        self._ask("browsingContext.navigate", context=self._tab, url=url, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, which must be plain, or a promise of such."""
        answer = self._ask(
            "script.evaluate",
            expression=f"Promise.resolve({expression}).then(found => JSON.stringify(found ?? null))",
            target={"context": self._tab},
            awaitPromise=True,
            userActivation=True,
        )
        if answer["type"] != "success":
            raise AssertionError(answer["exceptionDetails"]["text"])
        return json.loads(answer["result"]["value"])

    def until(self, expression: str, seconds: float = 40.0) -> Any:
        """The first value of an expression that is true, looked at with each frame."""
        return self.evaluate(
            "new Promise((resolve, reject) => {"
            f" const late = performance.now() + {seconds * 1000};"
            " const look = () => {"
            f"  const found = {expression};"
            "  if (found) resolve(found);"
            f"  else if (performance.now() > late) reject(new Error({json.dumps('never: ' + expression)}));"
            "  else setTimeout(look, 20);"
            " };"
            " look(); })"
        )

    def click(self, selector: str) -> None:
        """As a person would: with the pointer, on the middle of it."""
        element = self._element(selector)
        origin = {"type": "element", "element": {"sharedId": element}}
        steps = [
            {"type": "pointerMove", "x": 0, "y": 0, "origin": origin},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        pointer = {"type": "pointer", "id": "mouse", "actions": steps}
        self._ask("input.performActions", context=self._tab, actions=[pointer])

    def choose(self, selector: str, *files: Path) -> None:
        """Give files to a file input."""
        element = {"sharedId": self._element(selector)}
        names = [str(file) for file in files]
        self._ask("input.setFiles", context=self._tab, element=element, files=names)

    def _element(self, selector: str) -> str:
        found = self._ask(
            "browsingContext.locateNodes",
            context=self._tab,
            locator={"type": "css", "value": selector},
        )
        name: str = found["nodes"][0]["sharedId"]
        return name

    def _ask(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=90))
            if message.get("method") == "log.entryAdded":
                entry = message["params"]
                if entry["level"] == "error":
                    self.complaints.append(str(entry.get("text")))
            elif message.get("id") == self._number:
                if message["type"] == "error":
                    raise AssertionError(f"{method}: {message['error']}: {message['message']}")
                return message["result"]


class Room:
    """A sound server of its own, whose only microphone hears what is played to its only loudspeaker."""

    def __init__(self, folder: str) -> None:
        self.environment = {"XDG_RUNTIME_DIR": folder, "PULSE_RUNTIME_PATH": f"{folder}/pulse"}

    def play(self, file: Path) -> subprocess.Popen[bytes]:
        """A recording, at its own pace."""
        return subprocess.Popen(
            ["paplay", str(file)], env={**self.environment, "PATH": "/usr/bin:/bin"}
        )


@contextmanager
def room() -> Iterator[Room]:
    """The sound server, as long as the block runs."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = Room(folder)
        command = [str(PULSEAUDIO), "-n", "--daemonize=no", "--exit-idle-time=-1"]
        for module in (
            "native-protocol-unix",
            "null-sink sink_name=loudspeaker rate=48000",
            "remap-source master=loudspeaker.monitor source_name=microphone",
        ):
            command += ["-L", f"module-{module}"]
        environment = {"HOME": folder, "PATH": "/usr/bin:/bin", **found.environment}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                ask = ["pactl", "set-default-source", "microphone"]
                late = time.monotonic() + 20
                while subprocess.run(
                    ask, env=environment, capture_output=True, check=False
                ).returncode:
                    assert time.monotonic() < late, "pulseaudio does not start"
                yield found
            finally:
                process.terminate()


@contextmanager
def firefox(room: Room | None = None) -> Iterator[Firefox]:
    """A fresh browser with a fresh profile. Without a room it has no sound: its audio never starts."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        rows = [f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in PREFERENCES.items()]
        (Path(profile) / "user.js").write_text("\n".join(rows), "utf-8")
        command = [str(FIREFOX), "--headless", "--no-remote", "--profile", profile]
        command += ["--remote-debugging-port", "0", "about:blank"]
        environment = {
            "HOME": profile,
            "PATH": "/usr/bin:/bin",
            **(room.environment if room else {}),
        }
        with subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=environment,
        ) as process:
            try:
                assert process.stderr is not None
                address = next(
                    line.split()[-1]
                    for line in process.stderr
                    if line.startswith("WebDriver BiDi listening on")
                )
                # What it says later must not fill the pipe.
                rest = threading.Thread(target=process.stderr.read)
                rest.start()
                with connect(f"{address}/session", max_size=None, open_timeout=60) as socket:
                    yield Firefox(socket)
            finally:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                rest.join(10)
