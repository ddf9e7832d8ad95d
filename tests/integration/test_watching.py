"""How operators and service managers watch the real process: /live, /ready, /metrics, sd_notify, a trace from camera to alert."""

import re
import signal
import socket
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from brokers import Broker
from collector import Collector
from integration.daemon import Daemon, wait_until
from integration.plant import MODEL, Plant, picture
from kafka_plant import produce

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def tables(**more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A folder of pictures into detector `bottle`; `more` keys by table, `__` for the dot."""
    tables: dict[str, dict[str, Any]] = {
        "daemon": {"site": "test", "state": "state.db", "grace": 60.0},
        "store": {"path": "models", "poll": 0.1},
        "api": {"port": 0},
        "sources.cameras": {"kind": "folder", "path": "inbox", "poll": 0.05},
        "detectors.bottle": {"kind": "fake", "inputs": ["cameras"], "max_batch_size": 4, "max_wait": 0.02, "options": MODEL},
        "sinks.events": {"kind": "folder", "path": "events", "events": ["alert", "score"]},
        "dead_letter": {"kind": "folder", "path": "dead_letter"},
    }
    for table, keys in more.items():
        tables.setdefault(table.replace("__", "."), {}).update(keys)
    return tables


class Watched(Daemon):
    def get(self, path: str) -> tuple[int, str]:
        url = self.wait_for("ready")["api"] + path
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of the series with these labels, whatever others it has; None where there is none."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        found = [sample.value for family in families for sample in family.samples if sample.name == name and labels.items() <= sample.labels.items()]
        assert len(found) <= 1, f"{name} {labels} is not one series"
        return found[0] if found else None

    def until_ready(self) -> None:
        wait_until(lambda: self.get("/ready") == (200, "ready\n"), seconds=60, what=lambda: f"{self.get('/ready')}\n{self.tail()}")

    def until_trouble(self, pattern: str) -> None:
        """Waits for a 503 that says this and nothing else."""

        def look() -> bool:
            status, said = self.get("/ready")
            return status == 503 and re.fullmatch(pattern, said) is not None

        wait_until(look, seconds=60, what=lambda: f"{pattern}, but {self.get('/ready')}\n{self.tail()}")

    def until_metric(self, name: str, value: float, **labels: str) -> None:
        wait_until(
            lambda: self.metric(name, **labels) == value, seconds=60, what=lambda: f"{name} {labels} {value}, not {self.metric(name, **labels)}"
        )


def put(folder: Path, *kinds: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, kind in enumerate(kinds, start=len(list(folder.iterdir()))):
        (folder / ".part").write_bytes(picture(kind, number))
        (folder / ".part").rename(folder / f"{number:04}.png")


def test_metrics_are_what_was_sent(install: Callable[..., Path]) -> None:
    configuration = install(tables())
    home = configuration.parent
    put(home / "inbox", *["normal"] * 9, *["defect"] * 3, *["bad"] * 4)
    with Watched(configuration) as daemon:
        daemon.start()
        daemon.until_ready()
        wait_until(lambda: daemon.metric("monitor_messages_total") == 16 and daemon.metric("monitor_unsettled") == 0, seconds=60, what=daemon.tail)

        loaded = daemon.wait_for("model_loaded")["model_version"]
        assert daemon.metric("monitor_scored_total", detector="bottle") == 12
        assert daemon.metric("monitor_anomalous_total", detector="bottle") == 3
        assert daemon.metric("monitor_events_sent_total", sink="events", type="score") == 12
        assert daemon.metric("monitor_events_sent_total", sink="events", type="alert") == 3
        assert daemon.metric("monitor_events_sent_total", sink="dead_letter") == 4
        letters = ("undecodable", "empty", "unsupported", "too_large", "lying_header", "failed", "rejected")
        assert sum(daemon.metric("monitor_dead_letters_total", reason=reason) or 0 for reason in letters) == 4
        assert daemon.metric("monitor_dead_letters_total", reason="empty") == 1
        assert daemon.metric("monitor_happenings_total", happening="dead_lettered", cause="empty") == 1
        assert daemon.metric("monitor_batch_size_sum", detector="bottle") == 12
        assert daemon.metric("monitor_batch_seconds_count", detector="bottle") == daemon.metric("monitor_batch_size_count", detector="bottle")
        assert daemon.metric("monitor_latency_seconds_count", detector="bottle") == 12
        assert daemon.metric("monitor_model_info", detector="bottle", model_version=loaded) == 1
        assert 0 <= daemon.metric("monitor_model_age_seconds", detector="bottle") < 86_400
        assert daemon.metric("monitor_oldest_unsettled_seconds") == 0
        assert daemon.metric("monitor_queue_depth", queue="detectors.bottle") == 0
        assert daemon.metric("monitor_source_lag") is None  # a folder tells none
        assert (daemon.metric("monitor_ready"), daemon.metric("monitor_source_connected"), daemon.metric("monitor_build_info")) == (1, 1, 1)
        daemon.drain()


def test_ready_says_who_has_no_model_and_who_is_away(install: Callable[..., Path]) -> None:
    configuration = install(tables())
    home = configuration.parent
    (home / "models").rename(home / "elsewhere")
    with Watched(configuration) as daemon:
        daemon.start()
        daemon.until_trouble(r"detector bottle holds its sources: no model; monitor train bottle\n")
        assert daemon.get("/live") == (200, "live\n")
        put(home / "inbox", "normal", "normal")
        daemon.until_metric("monitor_unsettled", 2, source="cameras")
        assert daemon.metric("monitor_ready") == 0
        assert daemon.metric("monitor_oldest_unsettled_seconds", source="cameras") > 0
        (home / "elsewhere").rename(home / "models")
        daemon.until_ready()
        daemon.until_metric("monitor_unsettled", 0, source="cameras")

        (home / "inbox").rename(home / "inbox.away")
        daemon.until_trouble(r"source cameras: .*inbox.* \(lost\)\n")
        assert daemon.metric("monitor_source_connected", source="cameras") == 0
        (home / "inbox.away").rename(home / "inbox")
        daemon.until_ready()

        (home / "dead_letter").rename(home / "dead_letter.away")
        (home / "dead_letter").touch()  # where no folder can be made
        put(home / "inbox", "bad")
        daemon.until_trouble(r"dead_letter: .* cannot be written to .* \(lost\)\n")
        assert daemon.metric("monitor_sink_connected", sink="dead_letter") == 0
        assert daemon.metric("monitor_sink_connected", sink="events") == 1
        daemon.until_metric("monitor_unsettled", 1, source="cameras")

        daemon.signal(signal.SIGTERM)  # it cannot be drained yet
        daemon.until_trouble(r"draining\ndead_letter: .* \(lost\)\n")
        (home / "dead_letter").unlink()
        (home / "dead_letter.away").rename(home / "dead_letter")
        assert daemon.exit_code(seconds=60) == 0, daemon.tail()


def test_ready_says_why_a_model_is_refused(install: Callable[..., Path]) -> None:
    configuration = install(tables())
    for weights in (configuration.parent / "models").rglob("weights.safetensors"):
        weights.write_bytes(b"changed")
    with Watched(configuration) as daemon:
        daemon.start()
        daemon.until_trouble(r"detector bottle holds its sources: .*weights\.safetensors.*\n")
        daemon.drain()


def test_a_broker_that_is_away_from_the_start(install: Callable[..., Path]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        broker = f"127.0.0.1:{nobody.getsockname()[1]}"
        sources = {"kind": "kafka", "bootstrap_servers": broker, "topics": ["images"], "group_id": "watched", "connect_timeout": 2.0}
        wanted = tables()
        wanted["sources.cameras"] = sources
        with Watched(install(wanted)) as daemon:
            daemon.start()
            daemon.until_trouble(rf"source cameras: .*{re.escape(broker)}.* \(refused\)\n")
            assert daemon.get("/live") == (200, "live\n")
            daemon.drain()


def test_a_sink_whose_broker_is_away_is_told_before_it_has_anything_to_send(install: Callable[..., Path]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        broker = f"127.0.0.1:{nobody.getsockname()[1]}"
        office = {"kind": "kafka", "bootstrap_servers": broker, "topic": "health", "events": ["health"]}
        configuration = install(tables(sinks__far={"kind": "mqtt", "url": f"mqtt://{broker}", "topic": "alerts/{stream}"}, sinks__office=office))
        put(configuration.parent / "inbox", *["normal"] * 4)
        with Watched(configuration) as daemon:
            daemon.start()
            daemon.until_trouble(rf"sink far: .*{re.escape(broker)}.* \(refused\)\n")
            daemon.until_metric("monitor_sink_connected", 0, sink="far")
            daemon.until_metric("monitor_scored_total", 4)  # it holds only who has something for it
            daemon.until_metric("monitor_unsettled", 0)
            daemon.drain()


@pytest.mark.parametrize("kind", ["kafka", "mqtt"])
def test_a_broker_that_never_answers_is_not_connected(install: Callable[..., Path], kind: str) -> None:
    wanted = tables()
    with socket.create_server(("127.0.0.1", 0)) as mute:  # the kernel accepts for it
        broker = f"127.0.0.1:{mute.getsockname()[1]}"
        wanted["sources.cameras"] = {
            "kafka": {"kind": "kafka", "bootstrap_servers": broker, "topics": ["images"], "group_id": "watched"},
            "mqtt": {"kind": "mqtt", "url": f"mqtt://{broker}", "topics": ["images"], "client_id": "watched"},
        }[kind]
        wanted["sources.cameras"]["connect_timeout"] = 60.0
        with Watched(install(wanted)) as daemon:
            daemon.start()
            daemon.until_trouble(r"source cameras: connecting\n")
            assert daemon.metric("monitor_source_connected", source="cameras") == 0


def test_a_port_that_is_taken_is_a_mistake(install: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, Watched(install(tables(api={"port": other.getsockname()[1]}))) as daemon:
        daemon.start()
        assert daemon.exit_code(seconds=60) == 2
        assert "another daemon or service listens there" in daemon.tail()


class Manager:
    """A service manager's socket, read at once, as systemd does."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._thread = threading.Thread(target=self._read, name="service manager")
        self._thread.start()

    def _read(self) -> None:
        while said := self._socket.recv(65536):
            self.lines += said.decode().split("\n")

    def wait_for(self, *lines: str) -> None:
        """All of them, in this order; what came until then is forgotten."""

        def came() -> bool:
            rest = iter(self.lines.copy())
            return all(any(line == wanted for line in rest) for wanted in lines)

        wait_until(came, seconds=60, what=lambda: f"{lines}, but {self.lines}")
        self.lines.clear()

    def forget(self) -> None:
        """What was told until now, also what was not read yet."""
        self._tell(b"now")
        self.wait_for("now")

    def close(self) -> None:
        self._tell(b"")
        self._thread.join()
        self._socket.close()

    def _tell(self, said: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(said, self.path)


@pytest.fixture
def manager() -> Iterator[Manager]:
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket is short
        manager = Manager(f"{folder}/notify")
        yield manager
        manager.close()


def test_the_service_manager_is_told(install: Callable[..., Path], manager: Manager, tmp_path: Path) -> None:
    sabotage = tmp_path / "sabotage"
    configuration = install(tables(daemon={"stall": 0.3}, detectors__bottle={"options": {**MODEL, "sabotage": str(sabotage)}}))
    with Watched(configuration, NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="200000") as daemon:
        daemon.start()
        manager.wait_for("STATUS=starting: models are being loaded", "READY=1", "STATUS=ready", "WATCHDOG=1")
        written = configuration.read_text()
        configuration.write_text(written.replace("port = 0", "port = 1"))
        daemon.signal(signal.SIGHUP)
        manager.wait_for("RELOADING=1", "READY=1", "WATCHDOG=1")
        daemon.wait_for("restart_needed", table="api")
        configuration.write_text(written + "surprise = 1\n")
        daemon.signal(signal.SIGHUP)
        manager.wait_for("RELOADING=1", "READY=1", "WATCHDOG=1")
        daemon.wait_for("reload_refused")

        sabotage.write_text("stall")
        put(configuration.parent / "inbox", "normal")
        daemon.wait_for("stalled", seconds=60)
        status, said = daemon.get("/live")
        assert status == 503
        assert said.startswith("cpu: one batch runs for ")
        manager.forget()
        wait_until(lambda: daemon.metric("monitor_running_batch_seconds") > 2, seconds=60, what=daemon.tail)  # several turns of the watchdog
        assert "WATCHDOG=1" not in manager.lines

        sabotage.unlink()
        manager.wait_for("WATCHDOG=1", "STATUS=ready")
        assert daemon.get("/live") == (200, "live\n")
        daemon.drain()
        manager.wait_for("STOPPING=1", "STATUS=draining")


def test_a_trace_leads_from_the_camera_to_the_alert(apache_kafka: Broker, plant: Plant, install: Callable[..., Path]) -> None:
    with Collector() as collector, Watched(install(plant.tables(api={"port": 0}, tracing={"endpoint": collector.endpoint}))) as daemon:
        daemon.start()
        produce(apache_kafka, plant.images["cameras"], [picture("defect", 0)], key=b"press/1", headers=[("traceparent", PARENT.encode())])
        plant.send("normal")
        plant.wait()
        daemon.until_metric("monitor_source_lag", 0, source="cameras")
        daemon.drain()
        spans = [span for span in collector.spans if span.trace_id.hex() == PARENT.split("-")[1]]
        others = {span.trace_id for span in collector.spans} - {span.trace_id for span in spans}

    (alert,) = plant.read("alert")
    publish = next(span for span in spans if span.name == "publish")
    assert alert["traceparent"].split("-")[1:3] == [PARENT.split("-")[1], publish.span_id.hex()]
    assert sorted(span.name for span in spans) == ["decode", "publish", "receive", "score"]
    (record,) = [record for record in plant.events.look() if b"monitor.alert.v1" in record.value]
    assert dict(record.headers)["traceparent"].decode() == alert["traceparent"]
    assert len(others) == 1  # the second message's own
