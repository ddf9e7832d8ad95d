"""The dead letter as a folder: one JSON file per message, with everything that is needed to send it again."""

import base64
from collections.abc import Sequence
from typing import Any

from connectors.cloudevents import readable, structured
from connectors.files import safe_name, write_durably
from connectors.folder.options import FolderDeadLetterOptions
from connectors.folder.writer import FolderWriter
from connectors.spill import spill
from monitor.errors import Disconnected
from monitor.ports import Context
from monitor.types import Event


class FolderDeadLetter(FolderWriter):
    """See monitor.ports.Sink. `data` of a record: source, topic, position, received, timestamp, key, headers, reason, error, and
    `payload` as base64, or `spilled` with size, sha256 and path of the original bytes."""

    def __init__(self, options: FolderDeadLetterOptions, context: Context) -> None:
        super().__init__(options.path)
        self._options = options
        self._context = context
        self._spill = options.spill or options.path / "spill"

    def _send(self, events: Sequence[Event]) -> None:
        for event in events:
            try:
                path = self._path / f"{safe_name(event.id)}.json"
                if not path.exists():
                    write_durably(path, self._record(event))
            except OSError as error:
                raise Disconnected(f"{event.id} cannot be written to {self._path}: {error}", "lost") from error

    def _record(self, event: Event) -> bytes:
        assert event.dead_letter is not None
        message = event.dead_letter.message
        facts: dict[str, Any] = {
            "source": message.source,
            "topic": message.topic,
            "position": message.position,
            "received": message.received,
            "timestamp": message.timestamp,
            "key": None if message.key is None else readable(message.key),
            "headers": [{"name": name, **readable(value)} for name, value in message.headers],
            "reason": event.dead_letter.reason,
            "error": event.dead_letter.error,
        }
        if len(message.payload) <= self._options.max_bytes:
            record = structured(event, **facts, payload=base64.b64encode(message.payload).decode())
            if len(record) <= self._options.max_bytes:
                return record
        spilled = spill(self._spill, message.payload)
        self._context.report("payload_spilled", message=message.id, **spilled)
        return structured(event, **facts, spilled=spilled)
