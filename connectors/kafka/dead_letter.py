"""Messages that could not be scored, to a Kafka topic: byte for byte, with their key and headers, and why."""

import base64
import json
from collections.abc import Sequence

from connectors.cloudevents import STRUCTURED, structured
from connectors.kafka.options import KafkaDeadLetterOptions
from connectors.kafka.producer import Record, Refused
from connectors.kafka.writer import KafkaWriter
from connectors.maps import describe
from connectors.spill import spill
from monitor.errors import Rejected
from monitor.types import Event

_LONGEST_ERROR = 2000

Headers = tuple[tuple[str, bytes], ...]


class KafkaDeadLetter(KafkaWriter[KafkaDeadLetterOptions]):
    """A monitor.ports.Sink. The record has the message's payload, key and headers, and these headers:

    monitor-id, monitor-reason, monitor-error, monitor-source, monitor-topic, monitor-position. A payload beyond `max_bytes`
    lies in the `spill` folder: its record is JSON of its size, sha256 and path, and says `monitor-spilled: true`. A key and
    headers beyond half of `max_bytes` lie there too, as JSON with base64, at the path in `monitor-headers-spilled`.
    An event without a message (one that a sink rejected) goes as structured CloudEvent. Rejected is raised only where the topic
    does not even take the record of a spilled payload.
    """

    def _send(self, events: Sequence[Event]) -> None:
        records = [self._fitting(event) for event in events]
        outcomes = self._producer.send_or_shrink(records, lambda at, refused: self._spilled(events[at], refused.error))
        refused = [(event, outcome.error) for event, outcome in zip(events, outcomes, strict=True) if isinstance(outcome, Refused)]
        if refused:
            raise Rejected("; ".join(f"{event.id}: {error}" for event, error in refused), [(event.type, event.id) for event, _ in refused])

    def _fitting(self, event: Event) -> Record:
        record = self._whole(event)
        size = len(record.value) + _size(record)
        return record if size <= self._options.max_bytes else self._spilled(event, f"{size} bytes, max_bytes is {self._options.max_bytes}")

    def _whole(self, event: Event) -> Record:
        if event.dead_letter is None:
            value = structured(event, map=describe(event)) if event.map is not None else structured(event)
            headers = (("content-type", STRUCTURED.encode()), *_why(event))
            return Record(topic=self._options.topic, value=value, key=event.key.encode(), headers=headers)
        message = event.dead_letter.message
        return Record(topic=self._options.topic, value=message.payload, key=message.key, headers=message.headers + _why(event))

    def _spilled(self, event: Event, error: str) -> Record:
        whole = self._whole(event)
        facts = spill(self._options.spill, whole.value)
        self._context.report("payload_spilled", sink=self._context.name, id=event.id, error=error, **facts)
        key, headers = whole.key, whole.headers
        if _size(whole) > self._options.max_bytes // 2:
            beside = {
                "key": None if key is None else base64.b64encode(key).decode(),
                "headers": [(name, base64.b64encode(value).decode()) for name, value in headers],
            }
            path = spill(self._options.spill, json.dumps(beside).encode())["path"]
            key, headers = None, (*_why(event), ("monitor-headers-spilled", path.encode()))
        headers = (*headers, ("monitor-spilled", b"true"))
        return Record(topic=self._options.topic, value=json.dumps(facts).encode(), key=key, headers=headers)


def _why(event: Event) -> Headers:
    letter = event.dead_letter
    facts = {"id": event.id, "reason": "rejected"}
    if letter is not None:
        facts |= {"reason": letter.reason, "error": letter.error[:_LONGEST_ERROR], "source": letter.message.source}
        facts |= {"topic": letter.message.topic, "position": letter.message.position}
    return tuple((f"monitor-{name}", value.encode("utf-8", "replace")) for name, value in facts.items())


def _size(record: Record) -> int:
    """Bytes of key and headers."""
    return len(record.key or b"") + sum(len(name.encode()) + len(value) for name, value in record.headers)
