"""Events to MQTT topics: CloudEvents as structured JSON, QoS 1."""

from collections.abc import Sequence

from connectors.cloudevents import STRUCTURED, encode, trace_headers
from connectors.maps import place_in
from connectors.mqtt.options import MqttSinkOptions
from connectors.mqtt.publisher import Record, Taken
from connectors.mqtt.writer import MqttWriter
from connectors.shrinking import Refused, Shrink, send_events
from monitor.ports import Context
from monitor.types import Event

_MOST_LOGGED = 1000  # names of streams come from outside


class MqttSink(MqttWriter[MqttSinkOptions]):
    """See monitor.ports.Sink. Source of the binding: cloudevents/bindings/mqtt-protocol-binding.md (1.0.2), 3.2.

    Not retained: a broker keeps one such message per topic. What nobody has subscribed to is confirmed and dropped by the broker;
    MQTT 5 tells, and it is reported (`event_unheard`), once until somebody has.
    """

    def __init__(self, options: MqttSinkOptions, context: Context) -> None:
        super().__init__(options, context)
        self._place = place_in(options.maps.path) if options.maps else None
        self._unheard: set[str] = set()

    def _send(self, events: Sequence[Event]) -> None:
        send_events(events, self._record, self._offer, self._context.report)

    def _record(self, event: Event) -> Record:
        """Raises Rejected for an event that is too large even without its map."""
        value = encode(event, max_bytes=self._options.max_bytes, place=self._place, report=self._context.report)
        return Record(topic=self._topic(event), value=value, content_type=STRUCTURED, headers=trace_headers(event))

    def _offer(self, records: Sequence[Record], shrink: Shrink[Record]) -> list[Taken | Refused]:
        outcomes = self._publisher.send(records, shrink)
        for record, outcome in zip(records, outcomes, strict=True):
            if isinstance(outcome, Taken) and not outcome.heard:
                known = record.topic in self._unheard or len(self._unheard) >= _MOST_LOGGED
                self._context.report("event_unheard", quiet=known, sink=self._context.name, topic=record.topic)
                if not known:
                    self._unheard.add(record.topic)
            else:
                self._unheard.discard(record.topic)
        return outcomes
