"""Child processes of the demo: an MQTT broker, `monitor train` and the real daemon."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import anyio
import anyio.to_thread

from monitor.errors import MonitorError

_END = 30.0
"""Seconds that a child has to end."""
_ANSWER = 5.0
"""Seconds that /ready has to answer."""
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class Child:
    """`python -m MODULE ARGUMENTS` meanwhile. It ends with us, whatever ends us; Ctrl-C reaches us alone, and we end it in order.

    What it prints goes to `log`, or to where ours goes. `answers`: its stdout is for us to read.
    """

    def __init__(self, module: str, *arguments: str | Path, log: Path | None = None, answers: bool = False) -> None:
        self._command = [sys.executable, "-P", "-m", module, *map(str, arguments)]
        self._log = log
        self._answers = answers

    def __enter__(self) -> "Child":
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("MONITOR__")}  # those speak of another file
        log = None if self._log is None else self._log.open("ab")
        try:
            self.process = subprocess.Popen(  # noqa: S603 (our own interpreter and words)
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if self._answers else log,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 (one system call: safe beside threads)
            )
        finally:
            if log is not None:
                log.close()
        return self

    def __exit__(self, *exc: object) -> None:
        process = self.process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.terminate()
        try:
            process.wait(_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def check(self) -> None:
        """Raises MonitorError where it has ended."""
        code = self.process.poll()
        if code is not None:
            raise MonitorError(f"{self._command[3]} ended with exit code {code}; what it said is in {self._log}")


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def broker(folder: Path) -> Child:
    """The embedded MQTT broker; `broker_url` once it is entered."""
    return Child("connectors.mqtt.embedded", folder, log=folder / "broker.log", answers=True)


def broker_url(child: Child) -> str:
    """Waits until it listens. Raises MonitorError."""
    assert child.process.stdout is not None
    said = child.process.stdout.readline()
    if not said:
        child.process.wait()
        child.check()
    return f"mqtt://127.0.0.1:{json.loads(said)['v5']}"


def train(detector: str, data: Path, file: Path) -> None:
    """`monitor train` on a folder of what is good; it prints where we do. Raises MonitorError."""
    with Child("monitor", "train", detector, "--data", data, "--layout", "folder", "--config", file) as training:
        code = training.process.wait()
    if code != 0:
        raise MonitorError(f"the training of {detector} ended with exit code {code}")


async def until_ready(port: int) -> None:
    """Until the daemon has its models and has subscribed: before, the broker keeps nothing for it."""
    while True:
        if await anyio.to_thread.run_sync(_is_ready, port):
            return
        await anyio.sleep(0.2)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=_ANSWER):
            return True
    except OSError:  # nobody listens yet; or it answers that it is not ready, which is an HTTPError
        return False
