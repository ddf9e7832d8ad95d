"""A broker for `monitor demo`: iotcore (rumqttd) in a process of its own, on 127.0.0.1 only.

    python -m connectors.mqtt.embedded FOLDER

writes FOLDER/rumqttd.toml, serves MQTT 5 and 3.1.1 on free ports, says which on stdout, as one line of JSON, once both take
connections, and ends when its stdin does: so it never outlives who started it. It keeps everything in memory. No broker for a plant.
"""

import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

MAX_PAYLOAD = 16 * 1024 * 1024
"""Bytes of the largest message, as a source takes by default (`max_bytes`)."""
_START = 30.0
"""Seconds that the listeners have to appear."""

_CONFIGURATION = """\
id = 0

[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
"""
_LISTENER = """
[{version}.1]
name = "{version}"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[{version}.1.connections]
connection_timeout_ms = 60000
max_payload_size = {max_payload}
max_inflight_count = 200
dynamic_filters = true
"""


def configuration(ports: dict[str, int]) -> str:
    """rumqttd's own file. ports: "v5" and "v4" (which is MQTT 3.1.1) -> port. Its defaults listen to the world, and take 20 kB."""
    return _CONFIGURATION + "".join(_LISTENER.format(version=version, port=port, max_payload=MAX_PAYLOAD) for version, port in ports.items())


def main(folder: Path) -> int:
    try:
        from iotcore import IotCoreBroker  # noqa: PLC0415 (an optional dependency, of the demo alone)
    except ImportError:
        print("the demo's broker is not installed: pip install 'plant-monitor[demo]'", file=sys.stderr)  # noqa: T201
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us, and who ends us when all others have ended
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)  # it names the spans of every packet, as errors
    ports = dict(zip(("v5", "v4"), _free_ports(2), strict=True))
    file = folder / "rumqttd.toml"
    file.write_text(configuration(ports))
    IotCoreBroker(config_path=str(file)).start()
    deadline = time.monotonic() + _START
    while not all(map(_listens, ports.values())):
        if time.monotonic() > deadline:
            print(f"the broker does not listen on {ports} within {_START:g} s", file=sys.stderr)  # noqa: T201
            return 1
        time.sleep(0.05)
    print(json.dumps(ports), flush=True)  # noqa: T201
    sys.stdin.buffer.read()
    return 0


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # the broker's threads know no end
