"""`monitor listen` at a broker where others write too, and which goes and comes back."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from connectors.cloudevents import structured
from integration.daemon import environment, wait_until, write_configuration
from monitor.types import Event
from mosquitto import Mosquitto
from mqtt_plant import publish

ALERT = Event(
    id="bottle:cameras/t/1",
    type="monitor.alert.v1",
    source="/plant/bottle",
    key="cam",
    time=1_790_000_000.0,
    data={"stream": "cam", "score": 2.0, "threshold": 1.0, "p_value": 0.01},
)
FOREIGN = [
    {"type": "monitor.alert.v1"},
    {"type": "monitor.alert.v1", "data": 1},
    {"type": "monitor.health.v1", "data": {}},
    {**json.loads(structured(ALERT)), "id": "odd map", "data": {**ALERT.data, "map": "base64"}},
    {**json.loads(structured(ALERT)), "id": "odd text", "data": {**ALERT.data, "stream": "\ud800"}},
]


@pytest.mark.parametrize("more", [[], ["--json-lines"]], ids=["lines", "json"])
def test_listening_outlives_what_others_write_and_the_broker(own_mosquitto: Mosquitto, tmp_path: Path, more: list[str]) -> None:
    tables = {
        "store": {"path": "models"},
        "sources.inbox": {"kind": "folder", "path": "inbox"},
        "detectors.bottle": {"kind": "fake", "inputs": ["inbox"], "options": {}},
        "sinks.alerts": {"kind": "mqtt", "url": own_mosquitto.url, "topic": "alerts/{stream}"},
    }
    configuration = write_configuration(tmp_path / "monitor.toml", tables)
    out, err = tmp_path / "out", tmp_path / "err"
    command = [sys.executable, "-m", "monitor", "listen", "--maps", str(tmp_path / "maps"), *more, "--config", str(configuration)]
    with out.open("wb") as printed, err.open("wb") as told:
        process = subprocess.Popen(command, stdout=printed, stderr=told, env=environment())
    try:
        wait_until(lambda: err.read_text().count("# listening"), seconds=60, what="it listens")
        publish(own_mosquitto, "alerts/cam", [json.dumps(payload).encode() for payload in FOREIGN])
        wait_until(lambda: "odd text" in out.read_text(), seconds=60, what=err.read_text)
        assert "odd map" in out.read_text()
        assert err.read_text().count("# no event of ours") == 3
        own_mosquitto.stop()
        wait_until(lambda: "we try again" in err.read_text(), seconds=60, what="it tells that the broker has gone")
        own_mosquitto.start()
        wait_until(lambda: err.read_text().count("# listening") == 2, seconds=60, what="it listens again")
        publish(own_mosquitto, "alerts/cam", [structured(ALERT)])
        wait_until(lambda: ALERT.id in out.read_text(), seconds=60, what="it hears again")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
