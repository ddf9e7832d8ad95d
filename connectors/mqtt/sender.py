"""Messages to the topic that an MQTT source reads, as a plant system would send them."""

import uuid
from collections.abc import Sequence
from typing import Self

import anyio
import anyio.to_thread

from connectors.mqtt import records
from connectors.mqtt.options import MqttSourceOptions
from connectors.mqtt.publisher import Publisher, Record, Taken
from connectors.shrinking import Refused
from monitor.errors import Rejected
from monitor.types import Message

_TIMEOUT = 30.0
"""Seconds for a batch of large files."""


class MqttSender:
    """See monitor.ports.Sender. A message whose topic the source does not read goes to the first that can be published to.

    There the message's key, or its header `stream`, stands at {stream}. MQTT 5: headers become user properties, and a message
    without `id` is given one. MQTT 3.1.1 carries no headers: neither time of capture nor content type arrive.
    """

    def __init__(self, options: MqttSourceOptions) -> None:
        self._options = options
        self._publisher = Publisher(options, delivery_timeout=_TIMEOUT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._publisher.close)

    async def send(self, messages: Sequence[Message]) -> Sequence[tuple[str, str]]:
        """Rejected also where nobody has subscribed, so that the broker keeps nothing (which MQTT 5 tells)."""
        sent, mistakes = [], []
        for message in messages:
            try:
                sent.append(self._record(message))
            except ValueError as error:
                mistakes.append(str(error))
        if mistakes:
            raise Rejected("; ".join(dict.fromkeys(mistakes)))  # most are of the stream, and the same for all
        outcomes = await anyio.to_thread.run_sync(self._publisher.send, [record for record, _ in sent], lambda *_: None)
        refused = [f"{record.topic}: {outcome.error}" for (record, _), outcome in zip(sent, outcomes, strict=True) if isinstance(outcome, Refused)]
        unheard = {record.topic for (record, _), outcome in zip(sent, outcomes, strict=True) if isinstance(outcome, Taken) and not outcome.heard}
        if unheard:
            start = "run the daemon once, and the broker keeps for it what comes later"
            refused.append(f"nobody has subscribed to {', '.join(sorted(unheard))}, so that the broker keeps nothing: {start}")
        if refused:
            raise Rejected(f"{self._options.url}: {'; '.join(refused)}")
        return [(record.topic, position) for record, position in sent]

    def _record(self, message: Message) -> tuple[Record, str]:
        """With the position that the source will give it. Raises ValueError, in words, where it cannot be sent as it is."""
        stream = message.key if message.key is not None else dict(message.headers).get("stream")
        try:
            name = None if stream is None else stream.decode()
        except UnicodeDecodeError:
            raise ValueError(f"the stream's name is not UTF-8: {stream!r}") from None
        topic = self._topic(message.topic, name)
        headers = list(message.headers) if self._options.protocol == "5" else []
        if name is not None and not any(entry.matches(topic) and entry.stream(topic) == name for entry in self._options.parsed_topics):
            if self._options.protocol != "5":
                raise ValueError(f"MQTT 3.1.1 cannot say stream {name!r} on topic {topic!r}: write {{stream}} for one of its levels")
            if not any(key == "stream" for key, _ in headers):
                headers.append(("stream", name.encode()))
        if self._options.protocol == "5" and records.said_id(headers) is None:
            headers.append(("id", str(uuid.uuid4()).encode()))
        content_type, user_properties = records.as_text(headers)
        record = Record(topic=topic, value=message.payload, content_type=content_type, headers=user_properties)
        return record, records.position(topic, headers, message.payload)

    def _topic(self, wanted: str, stream: str | None) -> str:
        topics = self._options.parsed_topics
        if wanted and any(topic.matches(wanted) for topic in topics):
            return wanted
        return next((topic for topic in topics if not topic.has_wildcards), topics[0]).fill(stream)
