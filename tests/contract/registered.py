"""The binding of each kind. What is registered and not here fails the suites."""

from contract import bindings, bindings_kafka

SOURCES: dict[str, type[bindings.SourceBinding]] = {
    "folder": bindings.FolderSourceBinding,
    "memory": bindings.MemorySourceBinding,
    **bindings_kafka.SOURCES,
}
SINKS: dict[str, type[bindings.SinkBinding]] = {
    "folder": bindings.FolderSinkBinding,
    "memory": bindings.MemorySinkBinding,
    **bindings_kafka.SINKS,
}
DEAD_LETTERS: dict[str, type[bindings.DeadLetterBinding]] = {
    "folder": bindings.FolderDeadLetterBinding,
    "memory": bindings.MemoryDeadLetterBinding,
    **bindings_kafka.DEAD_LETTERS,
}
