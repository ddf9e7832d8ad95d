"""The reference page of monitor.toml, made from the Options themselves: `python -m monitor.manual deploy/reference.md`."""

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from monitor.config import PREFIX
from monitor.registry import Group, kinds, options_class
from monitor.settings import Settings, SinkSettings
from monitor.telemetry import METRICS

_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", SecretStr: "secret"}
_BOUNDS = {Ge: ("ge", "at least"), Gt: ("gt", "above"), Le: ("le", "at most"), Lt: ("lt", "below"), MinLen: ("min_length", "not empty")}
_KINDS: dict[Group, str] = {"sources": "sources.NAME", "sinks": "sinks.NAME", "dead_letters": "dead_letter"}

INTRODUCTION = f"""# Reference of monitor.toml

Made from the code by `python -m monitor.manual deploy/reference.md`; a test keeps it true.

`monitor check` lists every mistake of a file at once. Times are seconds, relative paths are relative to the file.
Every key can be overridden by the environment: `{PREFIX}SOURCES__CAMERAS__MAX_IN_FLIGHT=64`.
A secret is never written in the file: it comes from `KEY_file` or from the environment.
"""


def manual() -> str:
    """Every table and key that monitor.toml may hold, with type, default and meaning, and every metric; as Markdown."""
    parts = [INTRODUCTION]
    for name, field in Settings.model_fields.items():
        table = next(iter(get_args(field.annotation)), field.annotation) if type(None) in get_args(field.annotation) else field.annotation
        if isinstance(table, type) and issubclass(table, BaseModel) and name != "dead_letter":
            parts.append(_section(f"## [{name}]", table))
    parts.append("## Sources, sinks and the dead letter\n\n`kind` chooses the class; the other keys are those of its kind. A sink takes besides:\n")
    parts.append(_table(SinkSettings, skip="options"))
    for group, at in _KINDS.items():
        parts += [_section(f'## [{at}] kind = "{kind}"', options_class(group, kind)) for kind in kinds(group)]
    detectors = Settings.model_fields["detectors"].annotation
    parts.append(_section("## [detectors.NAME]", get_args(detectors)[1], skip="options"))
    parts += [_section(f'## options of [detectors.NAME] kind = "{kind}"', options_class("detectors", kind)) for kind in kinds("detectors")]
    parts.append(
        "## GET /metrics\n\nWhere [api] is written. Besides, `process_*` of the process. Streams are never labels: their names come from outside.\n"
    )
    parts.append(_metrics())
    return "\n".join(parts)


def _metrics() -> str:
    rows = [f"| `{name}` | {metric.kind} | {', '.join(metric.labels)} | {metric.help} |" for name, metric in METRICS.items()]
    return "\n".join(["| metric | type | labels | meaning |", "|---|---|---|---|", *rows, ""])


def _section(title: str, model: type[BaseModel], skip: str = "") -> str:
    said = " ".join((model.__doc__ or "").split())
    return "\n".join([title, "", *([said, ""] if said else []), _table(model, skip)])


def _table(model: type[BaseModel], skip: str = "") -> str:
    rows = [f"| `{name}` | {_type(field)} | {_default(field)} | {meaning} |" for name, field, meaning in _fields(model, skip)]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _fields(model: type[BaseModel], skip: str = "") -> Iterator[tuple[str, FieldInfo, str]]:
    """The keys of a table; those of tables within it under their path."""
    for name, field in model.model_fields.items():
        if name == skip:
            continue
        yield name, field, " ".join((field.description or "").split()).replace("|", "\\|")
        for inner in _members(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from ((f"{name}.{key}", below, meaning) for key, below, meaning in _fields(inner))


def _members(annotation: Any) -> tuple[Any, ...]:
    """Of a union its members but None, else the annotation itself."""
    if get_origin(annotation) in {Union, types.UnionType}:
        return tuple(member for member in get_args(annotation) if member is not type(None))
    return (annotation,)


def _type(field: FieldInfo) -> str:
    words = [_word(member) for member in _members(field.annotation)]
    bounds = [f"{said} {getattr(bound, name):,g}" if name != "min_length" else said for bound in field.metadata for name, said in _bound(bound)]
    return ", ".join([" or ".join(dict.fromkeys(words)), *bounds])


def _bound(bound: Any) -> Iterator[tuple[str, str]]:
    for kind, words in _BOUNDS.items():
        if isinstance(bound, kind):
            yield words


def _word(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {_word(get_args(annotation)[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table " + ", ".join(f"`{name}`" for name in annotation.model_fields)
    return _WORDS[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be written"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return ""
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value, default=str)}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(manual())
