"""Messages that could not be scored, to an MQTT topic: byte for byte, with their key and headers, and why."""

import base64
from collections.abc import Sequence

from connectors import letters
from connectors.letters import Letter, Letters, own_headers
from connectors.mqtt.options import MqttDeadLetterOptions
from connectors.mqtt.publisher import Record, Taken
from connectors.mqtt.text import LONGEST, as_text, is_text
from connectors.mqtt.writer import MqttWriter
from connectors.shrinking import reject_refused
from monitor.errors import Disconnected
from monitor.ports import Context
from monitor.types import Event

_KEY = "monitor-key"


class MqttDeadLetter(MqttWriter[MqttDeadLetterOptions]):
    """A monitor.ports.Sink. The user properties are those of connectors.letters.Letter: the message's own and `monitor-*`.

    A key is `monitor-key`, in base64. Where a header is no text that MQTT takes, all of the message's own are packed
    (connectors.letters.own_headers). The content type is the message's own. While nobody has subscribed the broker would drop it:
    that counts as being away, and the sources hold.
    """

    def __init__(self, options: MqttDeadLetterOptions, context: Context) -> None:
        super().__init__(options, context)
        self._letters = Letters(options.spill, options.max_bytes, context)

    def _send(self, events: Sequence[Event]) -> None:
        records = [self._fitting(event) for event in events]
        outcomes = self._publisher.send(records, lambda at, refused: self._spilled(events[at], refused.error))
        unheard = {record.topic for record, outcome in zip(records, outcomes, strict=True) if isinstance(outcome, Taken) and not outcome.heard}
        if unheard:
            raise Disconnected(
                f"{self._options.url}: nobody has subscribed to {', '.join(sorted(unheard))}, the broker would keep nothing", "refused"
            )
        reject_refused(events, outcomes)

    def _fitting(self, event: Event) -> Record:
        letter = self._letters.fitting(event)
        record = self._record(event, letter)
        return record if _is_carried(record) else self._spilled(event, "MQTT cannot carry headers so long")

    def _spilled(self, event: Event, error: str) -> Record:
        record = self._record(event, self._letters.spilled(event, error))
        return record if _is_carried(record) else self._record(event, self._letters.spilled(event, error, headers_too=True))

    def _record(self, event: Event, letter: Letter) -> Record:
        content_type = next((value.decode("utf-8", "replace") for name, value in reversed(letter.headers) if name.lower() == "content-type"), None)
        headers = user_properties(letter)
        return Record(topic=self._topic(event), value=letter.value, content_type=as_text(content_type) if content_type else None, headers=headers)


def _is_carried(record: Record) -> bool:
    return all(len(text.encode()) <= LONGEST for pair in record.headers for text in pair)


def user_properties(letter: Letter) -> tuple[tuple[str, str], ...]:
    """Of a letter's key and headers; one may be longer than MQTT carries."""
    own = [(name, value.decode()) for name, value in own_headers(letter, _is_text)]
    key = [] if letter.key is None else [(_KEY, base64.b64encode(letter.key).decode())]
    facts = [(name, as_text(value.decode("utf-8", "replace"))) for name, value in letter.facts]
    return (*own, *key, *facts)


def letter_of(value: bytes, properties: Sequence[tuple[str, str]]) -> Letter:
    """The other way. Raises ValueError for what `user_properties` did not make."""
    key = dict(properties).get(_KEY)
    headers = tuple((name, text.encode()) for name, text in properties if name != _KEY)
    return letters.letter_of(value, None if key is None else base64.b64decode(key, validate=True), headers)


def _is_text(name: str, value: bytes) -> bool:
    try:
        return is_text(name) and is_text(value.decode())
    except UnicodeDecodeError:
        return False
