"""What systemd (or whoever set NOTIFY_SOCKET) is told of the service: sd_notify(3), without a library."""

import os
import socket
import time
from collections.abc import Mapping

from monitor.errors import ConfigError
from monitor.ports import Report

_WAIT = 0.1
"""Seconds that the daemon waits for a place in the manager's queue; what finds none is lost."""


class Notifier:
    """Tells the service manager; without one, nobody."""

    def __init__(self, environ: Mapping[str, str], report: Report) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # @ stands for an abstract socket
        self._report = report
        self._failed = False
        self.watchdog: float | None = None
        """Seconds within which WATCHDOG=1 is expected; None where nobody expects it from this process."""
        try:
            if address and "WATCHDOG_USEC" in environ and int(environ.get("WATCHDOG_PID", os.getpid())) == os.getpid():
                self.watchdog = int(environ["WATCHDOG_USEC"]) / 1e6
        except ValueError as error:
            raise ConfigError(f"WATCHDOG_USEC, WATCHDOG_PID: expected whole numbers in the environment: {error}") from error

    def ready(self) -> None:
        self._tell("READY=1")

    def reloading(self) -> None:
        """Until `ready`."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, seconds: float) -> None:
        """It may take so long, whatever the manager's own limit is."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(1e6 * seconds)}", "STATUS=draining")

    def alive(self) -> None:
        if self.watchdog is not None:
            self._tell("WATCHDOG=1")

    def status(self, words: str) -> None:
        self._tell("STATUS=" + words.replace("\n", "; "))

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
                manager.settimeout(_WAIT)
                manager.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._failed:
                self._failed = True
                self._report("notify_failed", socket=self._address.replace("\0", "@"), error=str(error))
