"""/live, /ready and /metrics over HTTP, and nothing else."""

import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitor.api.server import serving
from monitor.errors import ConfigError, MonitorError
from monitor.notify import Notifier
from monitor.serving import Devices
from monitor.settings import ApiSettings
from monitor.telemetry import METRICS, Reading, Telemetry
from monitor.watching import Watch

pytestmark = pytest.mark.anyio


class Served:
    def __init__(self, *parts: Any) -> None:
        self.telemetry = Telemetry()
        self.devices = Devices()
        self.watch = Watch(parts, self.devices, stall=60.0, telemetry=self.telemetry, notifier=Notifier({}, self.telemetry.report))

    @asynccontextmanager
    async def client(self, host: str = "127.0.0.1") -> AsyncIterator[aiohttp.ClientSession]:
        async with serving(ApiSettings(host=host, port=0), self.watch, self.telemetry) as url, aiohttp.ClientSession(url) as session:
            yield session


async def told(session: aiohttp.ClientSession, path: str, method: str = "GET") -> tuple[int, str]:
    async with session.request(method, path) as answer:
        return answer.status, await answer.text()


async def test_live_and_ready_say_why_not() -> None:
    served = Served()
    async with served.client() as session:
        assert await told(session, "/ready") == (503, "starting: models are being loaded\n")
        served.watch.phase = "serving"
        assert await told(session, "/ready") == (200, "ready\n")
        served.watch.phase = "draining"
        assert await told(session, "/ready") == (503, "draining\n")

        assert await told(session, "/live") == (200, "live\n")
        served.devices.running["cuda:0"] = -1e6
        status, why = await told(session, "/live")
        assert status == 503
        assert why.startswith("cuda:0: one batch runs for ")
        assert await told(session, "/live", "HEAD") == (503, "")


async def test_nothing_else_is_there() -> None:
    async with Served().client() as session:
        assert [(await told(session, path))[0] for path in ("/", "/live/", "/metrics/x", "/../etc/passwd", "/api")] == [404] * 5
        assert [(await told(session, "/live", method))[0] for method in ("POST", "PUT", "DELETE", "OPTIONS")] == [405] * 4


async def test_metrics_are_what_prometheus_reads_and_every_name_is_there() -> None:
    served = Served()
    served.telemetry.counter("monitor_scored_total", "bottle").inc(7)
    async with served.client() as session:
        status, text = await told(session, "/metrics")

    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert status == 200
    assert {name.removesuffix("_total") for name in METRICS} <= families.keys()
    assert [(sample.labels, sample.value) for sample in families["monitor_scored"].samples] == [({"detector": "bottle"}, 7.0)]
    assert [sample.value for sample in families["monitor_ready"].samples] == [0.0]


class Part:
    """As much of a pipeline as is asked."""

    def __init__(self, *troubles: str) -> None:
        self._troubles = troubles

    def troubles(self) -> Iterator[str]:
        yield from self._troubles

    def readings(self) -> Iterator[Reading]:
        yield "monitor_sink_connected", ("alerts",), float(not self._troubles)


async def test_a_sink_that_parts_share_is_told_once_as_its_worst() -> None:
    served = Served(Part(), Part("sink alerts: away"), Part("sink alerts: away"))
    served.watch.phase = "serving"
    async with served.client() as session:
        assert await told(session, "/ready") == (503, "sink alerts: away\n")
        _, text = await told(session, "/metrics")

    assert [line for line in text.splitlines() if line.startswith("monitor_sink_connected")] == ['monitor_sink_connected{sink="alerts"} 0.0']


async def test_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"no IPv6 loopback: {error}")
    async with Served().client("::1") as session:
        assert await told(session, "/live") == (200, "live\n")


async def test_where_it_cannot_listen_is_a_mistake_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = ApiSettings(port=other.getsockname()[1])
        served = Served()
        with pytest.raises(ConfigError) as caught:
            async with serving(taken, served.watch, served.telemetry):
                pass
    assert caught.value.mistakes == (
        f"api: 127.0.0.1 port {taken.port} cannot be listened on: {os.strerror(errno.EADDRINUSE)};"
        " another daemon or service listens there: give this one another port",
    )

    with pytest.raises(ConfigError, match=r"^api\.host: 'a\.\.b' cannot be a host: "):
        async with serving(ApiSettings(host="a..b", port=0), served.watch, served.telemetry):
            pass


async def test_an_address_that_may_come_is_no_mistake_and_the_service_manager_tries_again() -> None:
    served = Served()
    with pytest.raises(MonitorError, match=r"^api: 192\.0\.2\.1 port 0 cannot be listened on: ") as caught:  # an address of no machine (RFC 5737)
        async with serving(ApiSettings(host="192.0.2.1", port=0), served.watch, served.telemetry):
            pass
    assert type(caught.value) is MonitorError, "exit 1: with 2, systemd would leave it"


async def test_a_happening_that_nobody_named_is_a_bug() -> None:
    telemetry = Telemetry()
    with pytest.raises(KeyError):
        telemetry.report("misspelt")
    with pytest.raises(KeyError):
        telemetry.counter("monitor_misspelt_total")
