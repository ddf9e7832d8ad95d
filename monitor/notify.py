"""What systemd (or whoever set NOTIFY_SOCKET) is told of the service: sd_notify(3), without a library."""

import os
import socket
import time
from collections.abc import Mapping

from monitor.errors import ConfigError
from monitor.ports import Report

_LONGEST = 1000
"""Characters of a status: the manager ignores what is longer than 4096 bytes."""


class Notifier:
    """Tells the service manager; without one, nobody. What finds no place in its queue waits for `again`, and nothing waits for the manager."""

    def __init__(self, environ: Mapping[str, str], report: Report) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # @ stands for an abstract socket
        self._report = report
        self._failed = False
        self._owed: dict[str, str] = {}
        """What is not told yet, in its order: of each kind the last."""
        self.watchdog: float | None = None
        """Seconds within which WATCHDOG=1 is expected; None where nobody expects it from this process."""
        try:
            if address and "WATCHDOG_USEC" in environ and int(environ.get("WATCHDOG_PID", os.getpid())) == os.getpid():
                self.watchdog = max(0, int(environ["WATCHDOG_USEC"])) / 1e6 or None  # as sd_watchdog_enabled(3): 0 is none
        except ValueError as error:
            raise ConfigError(f"WATCHDOG_USEC, WATCHDOG_PID: expected whole numbers in the environment: {error}") from error

    def ready(self) -> None:
        self._owe("READY=1")

    def reloading(self) -> None:
        """Until `ready`."""
        self._owe("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, seconds: float) -> None:
        """It may take so long, whatever the manager's own limit is."""
        self._owe("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(1e6 * seconds)}", "STATUS=draining")

    def alive(self) -> None:
        """Now, or never: what comes late says nothing."""
        if self.watchdog is not None:
            self._tell("WATCHDOG=1")

    def status(self, words: str) -> None:
        self._owe("STATUS=" + words.replace("\n", "; ")[:_LONGEST])

    def again(self) -> None:
        """Tell what found no place. To be called from time to time."""
        for kind, said in list(self._owed.items()):
            if not self._tell(said):
                return
            del self._owed[kind]

    def _owe(self, *lines: str) -> None:
        """The kind is that of the first line."""
        kind = lines[0].partition("=")[0]
        self._owed.pop(kind, None)
        self._owed[kind] = "\n".join(lines)
        self.again()

    def _tell(self, said: str) -> bool:
        """Whether the manager has it."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as manager:
                manager.sendto(said.encode(errors="replace"), self._address)
        except OSError as error:
            if not self._failed:
                self._failed = True
                self._report("notify_failed", socket=self._address.replace("\0", "@"), error=str(error))
            return False
        return True
