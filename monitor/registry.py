"""kind -> Options by entry point; Options -> implementation, imported only when it runs."""

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from monitor.errors import ConfigError
from monitor.ports import Format, Options, Unwrap

Group = Literal["sources", "sinks", "dead_letters", "detectors"]


@cache
def kinds(group: str) -> tuple[str, ...]:
    """The kinds that are installed for a group, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=f"monitor.{group}")}))


@cache
def options_class(group: Group, kind: str) -> type[Options]:
    """The Options of a kind. Raises ConfigError for an unknown one."""
    points = [point for point in entry_points(group=f"monitor.{group}") if point.name == kind]
    if not points:
        raise ConfigError(f"unknown kind {kind!r}: expected one of {', '.join(kinds(group))}")
    loaded: type[Options] = points[0].load()
    return loaded


def resolve(path: str) -> Any:
    """Import "package.module:Class" and return the class."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def formats() -> tuple[Format, ...]:
    """Every installed payload format, by name."""
    points = {point.name: point for point in entry_points(group="monitor.formats")}
    return tuple(points[name].load()() for name in sorted(points))


@cache
def unwrap() -> Unwrap:
    """What reads the headers and the envelope of a message: the one entry point `cloudevents` of monitor.envelopes."""
    (point,) = entry_points(group="monitor.envelopes", name="cloudevents")
    loaded: Unwrap = point.load()
    return loaded
