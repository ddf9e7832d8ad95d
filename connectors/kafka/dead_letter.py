"""Messages that could not be scored, to a Kafka topic: byte for byte, with their key and headers, and why."""

from collections.abc import Sequence

from connectors.kafka.options import KafkaDeadLetterOptions
from connectors.kafka.producer import Record
from connectors.kafka.writer import KafkaWriter
from connectors.letters import Letter, Letters, written
from connectors.shrinking import reject_refused
from monitor.ports import Context
from monitor.types import Event


class KafkaDeadLetter(KafkaWriter[KafkaDeadLetterOptions]):
    """A monitor.ports.Sink. The record has the message's payload, key and headers, and those of connectors.letters.Letter.

    Rejected is raised only where the topic does not even take the record of a spilled payload.
    """

    def __init__(self, options: KafkaDeadLetterOptions, context: Context) -> None:
        super().__init__(options, context)
        self._letters = Letters(options.spill, options.max_bytes, context)

    def _send(self, events: Sequence[Event]) -> None:
        records = [self._record(self._letters.fitting(event)) for event in events]
        outcomes = self._producer.send_or_shrink(records, lambda at, refused: self._record(self._letters.spilled(events[at], refused.error)))
        reject_refused(events, outcomes)

    def _record(self, letter: Letter) -> Record:
        return Record(topic=self._options.topic, value=letter.value, key=letter.key, headers=written(letter))
