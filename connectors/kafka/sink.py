"""Events to a Kafka topic: CloudEvents as structured JSON, keyed by stream."""

from collections.abc import Sequence

from connectors.cloudevents import STRUCTURED, encode, trace_headers
from connectors.kafka.options import KafkaSinkOptions, MapsInTopic
from connectors.kafka.producer import Record
from connectors.kafka.writer import KafkaWriter
from connectors.maps import Place, place_in
from connectors.options import MapsInFolder
from connectors.shrinking import Refused, send_events
from monitor.errors import Rejected
from monitor.ports import Context
from monitor.types import Event

CONTENT_TYPE = (("content-type", STRUCTURED.encode()),)


class KafkaSink(KafkaWriter[KafkaSinkOptions]):
    """See monitor.ports.Sink. Source of the binding: cloudevents/bindings/kafka-protocol-binding.md (1.0.2), 3.3."""

    def __init__(self, options: KafkaSinkOptions, context: Context) -> None:
        super().__init__(options, context)
        match options.maps:
            case MapsInFolder(path=path):
                self._place: Place | None = place_in(path)
            case MapsInTopic():
                self._place = self._place_in_topic
            case None:
                self._place = None

    def _send(self, events: Sequence[Event]) -> None:
        send_events(events, self._record, self._producer.send_or_shrink, self._context.report)

    def _record(self, event: Event) -> Record:
        """Raises Rejected for an event that is too large even without its map."""
        value = encode(event, max_bytes=self._options.max_bytes, place=self._place, report=self._context.report)
        headers = (*CONTENT_TYPE, *((name, said.encode()) for name, said in trace_headers(event)))
        return Record(topic=self._options.topic, value=value, key=event.key.encode(), headers=headers)

    def _place_in_topic(self, event: Event, png: bytes) -> str:
        """A redelivery places its map again: retention clears the topic."""
        assert isinstance(self._options.maps, MapsInTopic)
        topic = self._options.maps.topic
        (outcome,) = self._producer.send([Record(topic=topic, value=png, key=event.key.encode(), headers=(("content-type", b"image/png"),))])
        if isinstance(outcome, Refused):
            raise Rejected(f"topic {topic} does not take the map of {len(png)} bytes: {outcome.error}", [(event.type, event.id)])
        return f"kafka:{topic}/{outcome.partition}-{outcome.offset}"
