"""monitor listen: prints the events of a sink as they come, as an alert consumer would receive them."""

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monitor.errors import Backoff, ConfigError, Disconnected, MonitorError

EVENTS = ("monitor.alert.v1", "monitor.score.v1", "monitor.health.v1")
HELP = "subscribe to a sink's topic and print events"
EXAMPLE = """\
example:
  monitor listen --from alerts --maps maps --json-lines

Prints what comes from now on, until interrupted."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("listen", help=HELP, description=HELP, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="sink", metavar="SINK", help="a sink of monitor.toml (default: the only one)")
    parser.add_argument("--maps", type=Path, metavar="DIR", help="save the map of each alert as PNG")
    parser.add_argument("--json-lines", action="store_true", help="print each event as one line of JSON, as it was sent")
    parser.set_defaults(command=execute)


def execute(arguments: argparse.Namespace) -> int:
    import signal

    import anyio

    from monitor.commands.answers import make_folder
    from monitor.config import load_settings
    from monitor.registry import resolve

    sinks = load_settings(arguments.config, os.environ).sinks
    name = arguments.sink or (next(iter(sinks)) if len(sinks) == 1 else None)
    if name is None or name not in sinks:
        raise ConfigError(f"--from {name or ''}: expected one of the sinks {', '.join(sinks) or '(none is written)'}")
    options = sinks[name].options
    if arguments.maps is not None:
        make_folder("--maps", arguments.maps)

    async def listen() -> None:
        """Until interrupted: a connection that is lost is made anew. One that was never had is told at once."""
        backoff, connected = Backoff(), False
        while True:
            try:
                async with resolve(options.receiver)(options) as receiver:
                    connected = True
                    print(f"# listening to {name}", file=sys.stderr, flush=True)
                    async for event in receiver:
                        backoff.reset()
                        await show(receiver, event)
                    return
            except Disconnected as error:
                if not connected:
                    raise
                print(f"# {error}; we try again, and do not hear what is sent meanwhile", file=sys.stderr, flush=True)
            await anyio.sleep(backoff.delay())

    async def show(receiver: Any, event: Mapping[str, Any]) -> None:
        try:
            line = line_of(event).encode("utf-8", "backslashreplace").decode()
        except (KeyError, TypeError, ValueError, AttributeError):  # anybody can write to a topic
            print(f"# no event of ours: {json.dumps(event)[:200]}", file=sys.stderr, flush=True)
            return
        print(json.dumps(event) if arguments.json_lines else line, flush=True)
        if arguments.maps is not None:
            await save(receiver, event)

    async def save(receiver: Any, event: Mapping[str, Any]) -> None:
        try:
            png = await receiver.map(event)
        except MonitorError as error:
            print(f"# {error}", file=sys.stderr, flush=True)
            return
        if png is not None:
            (arguments.maps / _file_name(str(event.get("id")))).write_bytes(png)

    async def until_interrupted() -> None:
        async with anyio.create_task_group() as tasks:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                tasks.start_soon(listen)
                async for _ in signals:
                    tasks.cancel_scope.cancel()

    anyio.run(until_interrupted)
    return 0


def _file_name(event_id: str) -> str:
    """Readable, safe and unambiguous: what had to be replaced or cut is told apart by a hash."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", event_id)[:180]
    return f"{name}-{hashlib.sha256(event_id.encode()).hexdigest()[:8]}.png"


def line_of(event: Mapping[str, Any]) -> str:
    """One event for a person: when, which stream, how strange, where; of a health event, what happened to whom.

    Raises KeyError, TypeError, ValueError or AttributeError for what is none of ours.
    """
    if event["type"] not in EVENTS:
        raise ValueError(event["type"])
    data = event["data"]
    if event["type"] == "monitor.health.v1":
        return _health_line(event, data)
    where = "; ".join(map(_place, data.get("regions", [])[:3]))
    more = len(data.get("regions", [])) - 3
    kind = str(event["type"]).split(".")[1]
    score = f"score {data['score']:.4g} (threshold {data['threshold']:.4g}, p {data['p_value']:.3g})"
    return (
        f"{event['time']} {kind} {data['stream']} {event['id']}: {score}"
        + (f", {data['supported']}" if "supported" in data else "")
        + (", partial" if data.get("sample", {}).get("partial") else "")
        + (f" where: {where}" if where else "")
        + (f" and {more} more" if more > 0 else "")
    )


def _place(region: Mapping[str, Any]) -> str:
    if "low_hz" in region:
        return f"{region['start']:.2f}-{region['end']:.2f} s at {region['low_hz']:.0f}-{region['high_hz']:.0f} Hz"
    return f"{region['width']}x{region['height']} at ({region['x']}, {region['y']})"


def _health_line(event: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    facts = {name: value for name, value in data.items() if name not in ("what", "level", "facts", "ends")} | data["facts"]
    said = ", ".join(f"{name} {' '.join(value) if isinstance(value, list) else value}" for name, value in facts.items())
    ends = f" (ends {', '.join(data['ends'])})" if data["ends"] else ""
    return f"{event['time']} health {event['subject']} {data['level']}: {data['what']}{ends} {said}"
