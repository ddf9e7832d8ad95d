"""monitor.toml (and the environment over it) -> Settings. Every mistake is reported at once, each with its path."""

import copy
import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError

from monitor.errors import ConfigError
from monitor.ports import Options, SinkOptions, SourceOptions
from monitor.registry import Group, options_class
from monitor.settings import ApiSettings, DaemonSettings, DetectorSettings, Settings, SinkSettings, StoreSettings, TracingSettings

PREFIX = "MONITOR__"
NAME = re.compile(r"[a-z][a-z0-9_]*")
NAMED = ("sources", "detectors", "sinks")
WORDS = {
    "path_type": "expected a path",
    "tuple_type": 'expected a list, ["...", "..."]',
    "model_type": "expected a table, { ... }",
}
"""What pydantic says in Python's words, in those of monitor.toml."""

O = TypeVar("O", bound=Options)  # noqa: E741
M = TypeVar("M", bound=BaseModel)


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read and validate. Raises ConfigError with every mistake in the file and in MONITOR__* variables."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    reader = _Reader(path.resolve().parent)
    overlaid: dict[str, Any] = copy.deepcopy(tables)
    _overlay(overlaid, environ, reader.mistakes)
    reader.inline_secrets(tables, overlaid)
    written, tables = tables, overlaid
    settings = reader.settings(tables)
    if reader.mistakes or settings is None:
        raise ConfigError(*(mistake + _made_by(mistake, written, environ) for mistake in reader.mistakes))
    return settings


class _FromEnvironment(str):
    """A value from the environment: a list or a table is written as in TOML; anything else stays text."""

    def parsed(self) -> Any:
        if self[:1] not in "[{":
            return str(self)
        try:
            return tomllib.loads(f"value = {self}")["value"]
        except tomllib.TOMLDecodeError:
            return str(self)


def _overlay(tables: dict[str, Any], environ: Mapping[str, str], mistakes: list[str]) -> None:
    for variable, value in sorted(environ.items()):
        if not variable.upper().startswith(PREFIX):
            continue
        *tops, last = variable[len(PREFIX) :].lower().split("__")
        place: Any = tables
        for top in tops:
            place = place.setdefault(top, {}) if isinstance(place, dict) else None
        if not tops or not last or not isinstance(place, dict):
            mistakes.append(f"{variable}: no such key; expected MONITOR__TABLE__KEY as in monitor.toml")
        else:
            place[last] = _FromEnvironment(value)


def _made_by(mistake: str, written: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """The variable that made the table which this mistake is in, where the file has none; a misspelt one does."""
    at = re.split(r"[.:]", mistake)[:2]
    top = written.get(at[0], {})
    if at[0] in written and (at[0] not in NAMED or not isinstance(top, dict) or at[1] in top):
        return ""
    start = PREFIX + "__".join(at if at[0] in NAMED else at[:1]).upper() + "__"
    makers = sorted(variable for variable in environ if variable.upper().startswith(start))
    return f" (this table is not in the file: {makers[0]} makes it)" if makers else ""


class _Reader:
    """Validates tables one by one and gathers what is wrong with them."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.mistakes: list[str] = []

    def settings(self, tables: Mapping[str, Any]) -> Settings | None:
        for name in tables.keys() - Settings.model_fields.keys():
            self.mistakes.append(f"{name}: unknown table{_meant(name, Settings.model_fields)}")
        daemon = self._model(DaemonSettings, "daemon", self._table(tables, "daemon"))
        store = self._model(StoreSettings, "store", self._table(tables, "store"))
        api = self._model(ApiSettings, "api", self._table(tables, "api")) if "api" in tables else None
        tracing = self._model(TracingSettings, "tracing", self._table(tables, "tracing")) if "tracing" in tables else None
        written = {top: {name: table for name, _, table in self._named(tables, top)} for top in ("sources", "detectors", "sinks")}
        sources = {name: self._source(f"sources.{name}", dict(table)) for name, table in written["sources"].items()}
        detectors = {name: self._detector(f"detectors.{name}", dict(table)) for name, table in written["detectors"].items()}
        sinks = {name: self._sink(f"sinks.{name}", dict(table)) for name, table in written["sinks"].items()}
        letters = self._table(tables, "dead_letter") or {"kind": "folder", "path": "var/dead_letter"}
        dead_letter = self._options("dead_letters", SinkOptions, "dead_letter", letters)
        self._topology(written["sources"], written["detectors"], written["sinks"])
        parts: dict[str, Options | None] = {f"sources.{name}": options for name, options in sources.items()}
        parts |= {f"sinks.{name}": None if sink is None else sink.options for name, sink in sinks.items()}
        self._sole({**parts, "dead_letter": dead_letter})
        self._rounds(sources, {f"sinks.{name}": sink.options for name, sink in sinks.items() if sink} | {"dead_letter": dead_letter})
        if self.mistakes:
            return None
        return Settings(
            daemon=_present(daemon),
            store=_present(store),
            api=api,
            tracing=tracing,
            sources={name: _present(options) for name, options in sources.items()},
            detectors={name: _present(detector) for name, detector in detectors.items()},
            sinks={name: _present(sink) for name, sink in sinks.items()},
            dead_letter=_present(dead_letter),
        )

    def _sole(self, parts: Mapping[str, Options | None]) -> None:
        """What only one may have at a time: two would drive each other out for ever."""
        owners: dict[str, str] = {}
        for at, options in parts.items():
            what = options.sole if options is not None else None
            if what is not None and owners.setdefault(what, at) != at:
                self.mistakes.append(f"{at}: {what} is taken by {owners[what]}; only one may have it")

    def _rounds(self, sources: Mapping[str, SourceOptions | None], outlets: Mapping[str, SinkOptions | None]) -> None:
        """What is written where it is read goes round without end."""
        for at, outlet in outlets.items():
            for name, source in sources.items():
                if outlet is not None and source is not None and (where := outlet.feeds(source)) is not None:
                    self.mistakes.append(f"{at}: writes to {where}, which sources.{name} reads: it would go round without end; give another place")

    def inline_secrets(self, written: Mapping[str, Any], overlaid: Mapping[str, Any]) -> None:
        """Note every secret that stands in the file itself, and take it out of what is validated."""
        places: list[tuple[str, Group, Any, Any]] = [("dead_letter", "dead_letters", written.get("dead_letter"), overlaid.get("dead_letter"))]
        for top, group in (("sources", "sources"), ("sinks", "sinks")):
            if isinstance(named := written.get(top), dict):
                places += [(f"{top}.{name}", group, table, overlaid[top][name]) for name, table in named.items()]  # type: ignore[misc]
        for at, group, table, complete in places:
            if not isinstance(table, dict) or not isinstance(complete, dict):
                continue
            try:
                fields = options_class(group, str(complete.get("kind"))).model_fields
            except ConfigError:
                continue  # reported where the kind is read
            for key in [key for key in table if key in fields and _secret(fields[key].annotation)]:
                complete.pop(key)
                variable = PREFIX + "__".join([*at.split("."), key]).upper()
                self.mistakes.append(f"{at}.{key}: a secret is never written inline; expected {key}_file, or {variable} in the environment")

    def _table(self, tables: Mapping[str, Any], at: str) -> dict[str, Any]:
        value = tables.get(at, {})
        if isinstance(value, dict):
            return dict(value)
        self.mistakes.append(f"{at}: expected a table, [{at}]")
        return {}

    def _named(self, tables: Mapping[str, Any], top: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        named = self._table(tables, top)
        if not named and top != "sinks":
            self.mistakes.append(f"{top}: expected at least one, [{top}.NAME]")
        for name, table in named.items():
            at = f"{top}.{name}"
            if not NAME.fullmatch(name):
                self.mistakes.append(f"{at}: a name is lower-case letters, digits and underscores, beginning with a letter")
            elif not isinstance(table, dict):
                self.mistakes.append(f"{at}: expected a table, [{at}]")
            else:
                yield name, at, dict(table)

    def _source(self, at: str, table: dict[str, Any]) -> SourceOptions | None:
        return self._options("sources", SourceOptions, at, table)

    def _sink(self, at: str, table: dict[str, Any]) -> SinkSettings | None:
        own: dict[str, Any] = {key: table.pop(key) for key in ("inputs", "events") if key in table}
        options = self._options("sinks", SinkOptions, at, table)
        settings = self._model(SinkSettings, at, {**own, "options": options or SinkOptions()})
        return settings if options else None

    def _detector(self, at: str, table: dict[str, Any]) -> DetectorSettings | None:
        own = table.pop("options", {})
        if isinstance(own, _FromEnvironment):
            own = own.parsed()
        if not isinstance(own, dict):
            self.mistakes.append(f"{at}.options: expected a table, options = {{ ... }}")
            own = {}
        options = self._of_kind("detectors", Options, at, table.get("kind"), f"{at}.options", own)
        settings = self._model(DetectorSettings, at, {**table, "options": options or Options()}, skip="kind" if "kind" not in table else None)
        return settings if options else None

    def _options(self, group: Group, base: type[O], at: str, table: dict[str, Any]) -> O | None:
        """The options that a kind takes: all keys of a source's or sink's table but `kind`."""
        return self._of_kind(group, base, at, table.pop("kind", None), at, table)

    def _of_kind(self, group: Group, base: type[O], kind_at: str, kind: Any, at: str, table: dict[str, Any]) -> O | None:  # noqa: PLR0917
        if not isinstance(kind, str):
            self.mistakes.append(f"{kind_at}.kind: missing; it names the class")
            return None
        try:
            chosen = options_class(group, kind)
        except ConfigError as error:
            self.mistakes.append(f"{kind_at}.kind: {error}")
            return None
        assert issubclass(chosen, base), f"{chosen} is registered as {group}"
        return self._model(chosen, at, table)

    def _model(self, model: type[M], at: str, table: Mapping[str, Any], skip: str | None = None) -> M | None:
        values = {
            key: value.parsed() if isinstance(value, _FromEnvironment) and not _is_secret(model, key) else value for key, value in table.items()
        }
        try:
            valid = self._anchored(model.model_validate(values))
            self.mistakes += [f"{at}.{name}: {why}" for name, why in _unreadable(valid)]
            return valid
        except ValidationError as error:
            mistakes = error.errors(include_url=False)
            for mistake in mistakes:
                place = ".".join(str(part) for part in mistake["loc"])
                within = any(other["loc"][: len(mistake["loc"])] == mistake["loc"] != other["loc"] for other in mistakes)
                if place == skip or (mistake["type"] == "too_short" and within):  # what is wrong inside is told
                    continue
                where = f"{at}.{place}" if place else at
                if mistake["type"] == "extra_forbidden":
                    self.mistakes.append(f"{where}: unknown key{_meant(place, model.model_fields)}")
                elif mistake["type"] == "missing":
                    self.mistakes.append(f"{where}: missing; it must be written")
                else:
                    got = "" if mistake["type"] == "value_error" or _is_secret(model, place) else f" (it is {_short(mistake['input'])})"
                    self.mistakes.append(f"{where}: {_expected(model, place, mistake)}{got}")
            return None

    def _anchored(self, model: M) -> M:
        """Relative paths are relative to the file."""
        changes: dict[str, Any] = {}
        for name in type(model).model_fields:
            value = getattr(model, name)
            if isinstance(value, Path):
                changes[name] = self._base / value
            elif isinstance(value, BaseModel):
                changes[name] = self._anchored(value)
        return model.model_copy(update=changes)

    def _topology(self, sources: Mapping[str, Any], detectors: Mapping[str, dict[str, Any]], sinks: Mapping[str, dict[str, Any]]) -> None:
        """Names that lead nowhere; on the tables as written, so that another mistake in one does not hide these."""
        read: set[str] = set()
        for name, detector in detectors.items():
            for source in _names(detector.get("inputs")):
                read.add(source)
                if source not in sources:
                    self.mistakes.append(f"detectors.{name}.inputs: no source is named {source!r}; expected one of {_listed(sources)}")
        for name, sink in sinks.items():
            for wanted in _names(sink.get("inputs")):
                if wanted not in detectors:
                    self.mistakes.append(f"sinks.{name}.inputs: no detector is named {wanted!r}; expected one of {_listed(detectors)}")
        if read <= set(sources):  # else a misspelt name is told once, not twice
            self.mistakes += [f"sources.{name}: no detector reads it; name it in the inputs of one" for name in sources if name not in read]


def _names(value: Any) -> list[str]:
    value = value.parsed() if isinstance(value, _FromEnvironment) else value
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _unreadable(model: BaseModel) -> Iterator[tuple[str, str]]:
    """Files that the options name (secrets, certificates) and that cannot be read, and why."""
    for name in type(model).model_fields:
        path = getattr(model, name)
        if name.endswith("_file") and isinstance(path, Path):
            try:
                if not path.read_bytes():
                    yield name, f"{path} is empty"
            except OSError as error:
                yield name, f"{path} cannot be read: {error.strerror}"


def _expected(model: type[BaseModel], place: str, mistake: Mapping[str, Any]) -> str:
    """What was expected, in an operator's words."""
    if mistake["type"] == "too_short":
        return f"expected at least {mistake['ctx']['min_length']}"
    if mistake["type"] in WORDS:
        return WORDS[mistake["type"]]
    if mistake["type"] == "literal_error":
        expected = mistake["ctx"]["expected"]
        quotes = ", in quotes" if "'" in expected and not isinstance(mistake["input"], str) else ""
        return f"expected {expected}{quotes}"
    if mistake["type"] == "string_pattern_mismatch" and place in model.model_fields:
        return f"expected {model.model_fields[place].description} It must match {mistake['ctx']['pattern']}"
    return str(mistake["msg"]).removeprefix("Value error, ")


def _secret(annotation: Any) -> bool:
    return SecretStr in (annotation, *getattr(annotation, "__args__", ()))


def _is_secret(model: type[BaseModel], key: str) -> bool:
    return key in model.model_fields and _secret(model.model_fields[key].annotation)


def _meant(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; expected one of {_listed(known)}"


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "(none is written)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _present(value: M | None) -> M:
    assert value is not None  # None comes with a mistake, and with mistakes nothing is built
    return value
