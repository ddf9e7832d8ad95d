"""Configuration of the memory kind: messages and events that never leave the process, for tests."""

from typing import ClassVar

from monitor.ports import SinkOptions, SourceOptions


class MemorySourceOptions(SourceOptions):
    """Messages from a channel of this process. The channel remembers what is settled, as long as the process lives."""

    implementation: ClassVar[str] = "connectors.memory.source:MemorySource"
    sender: ClassVar[str] = "connectors.memory.source:MemorySender"
    probe: ClassVar[str] = "connectors.memory.channel:probe"

    channel: str = "default"
    """Name of the channel in connectors.memory.channel."""


class MemorySinkOptions(SinkOptions):
    """Events to a channel of this process, as JSON; the channel says how the sink behaves."""

    implementation: ClassVar[str] = "connectors.memory.sink:MemorySink"
    receiver: ClassVar[str] = "connectors.memory.sink:MemoryReceiver"
    probe: ClassVar[str] = "connectors.memory.channel:probe"

    channel: str = "default"
    """Name of the channel in connectors.memory.channel."""


class MemoryDeadLetterOptions(MemorySinkOptions):
    """Messages that could not be scored, kept as they are, whatever their size."""

    implementation: ClassVar[str] = "connectors.memory.sink:MemoryDeadLetter"
