"""What the service manager hears, on a real datagram socket; and how the daemon's watch decides what to tell it."""

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from monitor.errors import ConfigError
from monitor.notify import Notifier
from monitor.serving import Devices
from monitor.telemetry import Telemetry
from monitor.watching import Watch


class Manager:
    """As systemd listens."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def heard(self) -> list[list[str]]:
        """The lines of each datagram since the last look."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(65536).decode().split("\n"))
            except BlockingIOError:
                return found


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[Manager]:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "notify")
        manager = Manager(path if request.param == "file" else "@" + path)
        yield manager
        manager.socket.close()


def notifier(manager: Manager, telemetry: Telemetry | None = None, **environ: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.address, **environ}, (telemetry or Telemetry()).report)


def test_it_says_what_systemd_understands(manager: Manager) -> None:
    told = notifier(manager)

    told.ready()
    told.status("two\nlines")
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    told.reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    told.stopping(40.0)

    ready, status, (reloading, when), stopping = manager.heard()
    assert (ready, status, reloading) == (["READY=1"], ["STATUS=two; lines"], "RELOADING=1")
    assert before <= int(when.removeprefix("MONOTONIC_USEC=")) <= after
    assert stopping == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=40000000", "STATUS=draining"]


@pytest.mark.parametrize(
    ("environ", "watchdog"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),  # it is another's
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_told_only_by_whom_it_expects(manager: Manager, environ: dict[str, str], watchdog: float | None) -> None:
    told = notifier(manager, **environ)
    told.alive()

    assert told.watchdog == watchdog
    assert manager.heard() == ([["WATCHDOG=1"]] if watchdog else [])


def test_a_watchdog_that_is_no_number_is_a_mistake(manager: Manager) -> None:
    with pytest.raises(ConfigError, match="WATCHDOG_USEC"):
        notifier(manager, WATCHDOG_USEC="soon")


def test_without_a_service_manager_nothing_is_told() -> None:
    telemetry = Telemetry()
    told = Notifier({"WATCHDOG_USEC": "1000"}, telemetry.report)
    told.ready()
    told.alive()

    assert told.watchdog is None
    assert telemetry.count("notify_failed") == 0


def test_a_manager_that_does_not_listen_holds_nothing_and_is_named_once(manager: Manager) -> None:
    telemetry = Telemetry()
    told = notifier(manager, telemetry)
    manager.socket.close()
    told.ready()

    assert telemetry.count("notify_failed") == 1


def fill(manager: Manager) -> None:
    """Until its queue is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                other.sendto(b"X=1", manager.socket.getsockname())


def test_what_finds_the_queue_full_is_told_later_in_its_order(manager: Manager) -> None:
    telemetry = Telemetry()
    told = notifier(manager, telemetry, WATCHDOG_USEC="30000000")
    fill(manager)
    told.status("starting")
    told.ready()
    told.reloading()
    told.ready()
    told.status("ready")
    told.alive()  # not later
    told.again()
    assert {line for (line,) in manager.heard()} == {"X=1"}

    told.again()
    assert [lines[0] for lines in manager.heard()] == ["RELOADING=1", "READY=1", "STATUS=ready"]
    told.again()
    assert manager.heard() == []
    assert telemetry.count("notify_failed") == 1


def test_a_status_that_is_no_text_or_too_long_is_told_as_far_as_it_can_be(manager: Manager) -> None:
    told = notifier(manager)
    told.status("detector bottle: /var/\udcff")
    told.status("x" * 1_000_000)
    first, (second,) = manager.heard()
    assert first == ["STATUS=detector bottle: /var/?"]
    assert len(second) < 4096


@pytest.mark.anyio
async def test_the_watch_tells_again(manager: Manager) -> None:
    told = notifier(manager, WATCHDOG_USEC="20000")
    fill(manager)
    told.ready()
    watch = Watch([], Devices(), stall=60.0, telemetry=Telemetry(), notifier=told)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        with anyio.fail_after(60):
            while ["READY=1"] not in manager.heard():  # noqa: ASYNC110
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_the_watchdog_is_told_only_while_no_batch_stalls(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry, devices = Telemetry(), Devices()
    told = notifier(manager, telemetry, WATCHDOG_USEC="20000")
    watch = Watch([], devices, stall=60.0, telemetry=telemetry, notifier=told)
    turns: list[None] = []
    monkeypatch.setattr(watch, "troubles", lambda: turns.append(None) or [])  # asked at the end of each

    async def heard(line: str) -> None:
        with anyio.fail_after(60):
            while [line] not in manager.heard():  # noqa: ASYNC110 (a socket that is looked into)
                await anyio.sleep(0.005)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        await heard("WATCHDOG=1")
        devices.running["cuda:0"] = time.monotonic() - 61
        (stall,) = watch.stalls()
        assert stall.startswith("cuda:0: one batch runs for 6")
        assert stall.endswith(" s (stall = 60)")
        with anyio.fail_after(60):
            while not telemetry.count("stalled"):  # noqa: ASYNC110
                await anyio.sleep(0.005)
        manager.heard()
        turns.clear()
        with anyio.fail_after(60):
            while len(turns) < 3:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        assert ["WATCHDOG=1"] not in manager.heard()
        assert telemetry.count("stalled") == 1

        devices.running.clear()
        await heard("WATCHDOG=1")
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_thread_that_works_is_on_record_until_it_is_done() -> None:
    seen = []
    with Devices() as devices:
        await devices.run("cpu", lambda beat: seen.append(dict(devices.running)))
        assert devices.running == {}

    assert list(seen[0]) == ["cpu"]
