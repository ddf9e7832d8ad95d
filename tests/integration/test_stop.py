"""How the daemon ends: drained, impatiently, out of grace."""

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration.daemon import Daemon, wait_until
from integration.plant import MODEL, Plant

SLOW = {"max_batch_size": 1, "options": {**MODEL, "delay": 0.5}}
"""Half a second per message."""


def test_sigterm_under_load_drains_and_makes_no_doubles(plant: Plant, install: Callable[..., Path]) -> None:
    daemon = Daemon(install(plant.tables()))
    with plant.streaming(150, seed=1), daemon:
        for _ in range(2):
            before = len(plant.scored())
            daemon.start()
            daemon.ready()
            wait_until(lambda before=before: len(plant.scored()) > before + 150, seconds=90, what=daemon.tail)
            daemon.drain()
            assert daemon.events("draining")
            assert daemon.events("stopped", unsettled=0)

    with daemon:
        daemon.start()
        plant.wait()
        daemon.drain()
    plant.audit(doubles=False)


@pytest.mark.parametrize(("grace", "signals"), [(20.0, 2), (1.0, 1)], ids=["second SIGTERM", "out of grace"])
def test_a_hard_stop_exits_3_and_what_is_unsettled_comes_again(plant: Plant, install: Callable[..., Path], grace: float, signals: int) -> None:
    tables = plant.tables(daemon={"grace": grace}, detectors__bottle=SLOW)
    configuration = install(tables)
    plant.send(*["normal", "defect", "bad", "normal"] * 5)
    with Daemon(configuration) as daemon:
        daemon.start()
        wait_until(lambda: len(plant.scored()) > 0, seconds=90, what=daemon.tail)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("draining")
        if signals == 2:
            daemon.signal(signal.SIGTERM)
        code = daemon.exit_code()

        assert code == 3, daemon.tail()
        unsettled = daemon.wait_for("stopped")["unsettled"]
        assert unsettled > 0
        assert plant.unsettled() >= unsettled

        daemon.start()
        plant.wait()
        daemon.drain()
    plant.audit()


@pytest.mark.parametrize("kind", ["kafka", "mqtt"])
def test_a_sink_whose_broker_never_answers_does_not_hold_the_end(install: Callable[..., Path], kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        broker = f"127.0.0.1:{silent.getsockname()[1]}"
        address = {"bootstrap_servers": broker, "topic": "health"} if kind == "kafka" else {"url": f"mqtt://{broker}", "topic": "health/{stream}"}
        tables = {
            "daemon": {"site": "test", "state": "state.db"},
            "store": {"path": "models"},
            "sources.cameras": {"kind": "folder", "path": "inbox"},
            "detectors.bottle": {"kind": "fake", "inputs": ["cameras"], "options": MODEL},
            "sinks.alerts": {"kind": "folder", "path": "alerts"},
            "sinks.office": {"kind": kind, **address, "events": ["health"], "connect_timeout": 60.0},
        }
        with Daemon(install(tables)) as daemon:
            daemon.start()
            daemon.ready()
            silent.settimeout(60)
            with silent.accept()[0] as link:
                link.settimeout(60)
                assert link.recv(1), "it asks, and waits for the answer"
                daemon.drain()
            assert daemon.events("stopped", hard=False)


def test_a_mistake_in_the_configuration_exits_2_before_anything_starts(plant: Plant, install: Callable[..., Path]) -> None:
    tables: dict[str, Any] = plant.tables(detectors__bottle={"inputs": ["camera"], "max_batch_size": 0}, daemon={"grase": 1.0})
    with Daemon(install(tables)) as daemon:
        daemon.start()
        code = daemon.exit_code()
        words = daemon.tail()

    assert code == 2
    assert all(path in words for path in ("detectors.bottle.inputs", "detectors.bottle.max_batch_size", "daemon.grase"))
    assert daemon.events("ready") == []


def test_signals_in_a_burst_end_it_as_one_or_two_do(plant: Plant, install: Callable[..., Path]) -> None:
    """Some come while the process is already on its way out."""
    configuration = install(plant.tables())
    for burst in ([signal.SIGTERM] * 3, [signal.SIGINT] * 2 + [signal.SIGTERM], [signal.SIGTERM] * 40):
        with Daemon(configuration) as daemon:
            daemon.start()
            daemon.ready()
            for signum in burst:
                if daemon.process.poll() is None:
                    daemon.process.send_signal(signum)
                    time.sleep(0.005)

            assert daemon.exit_code() in (0, 3), daemon.tail()
            assert daemon.events("stopped")
