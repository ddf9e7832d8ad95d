"""The binding of each kind. What is registered and not here fails the suites. Its variants are named after it: mqtt 3.1.1."""

from collections.abc import Collection, Iterable

from contract import bindings, bindings_kafka, bindings_mqtt_sink, bindings_mqtt_source

SOURCES: dict[str, type[bindings.SourceBinding]] = {
    "folder": bindings.FolderSourceBinding,
    "memory": bindings.MemorySourceBinding,
    **bindings_kafka.SOURCES,
    **bindings_mqtt_source.SOURCES,
}
SINKS: dict[str, type[bindings.SinkBinding]] = {
    "folder": bindings.FolderSinkBinding,
    "memory": bindings.MemorySinkBinding,
    **bindings_kafka.SINKS,
    **bindings_mqtt_sink.SINKS,
}
DEAD_LETTERS: dict[str, type[bindings.DeadLetterBinding]] = {
    "folder": bindings.FolderDeadLetterBinding,
    "memory": bindings.MemoryDeadLetterBinding,
    **bindings_kafka.DEAD_LETTERS,
    **bindings_mqtt_sink.DEAD_LETTERS,
}


def names(kinds: Iterable[str], bindings: Collection[str]) -> list[str]:
    """What a suite runs over: every registered kind, and its variants."""
    return [*kinds, *(name for name in bindings if " " in name)]
