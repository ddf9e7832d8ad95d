"""What an MQTT sink and an MQTT dead letter share."""

from typing import Generic, TypeVar

from connectors.mqtt.client import credentials
from connectors.mqtt.options import MqttProducerOptions
from connectors.mqtt.publisher import Publisher
from connectors.mqtt.text import topic_levels
from connectors.mqtt.topics import PLACE
from connectors.writer import Writer
from monitor.ports import Context
from monitor.types import Event

Chosen = TypeVar("Chosen", bound=MqttProducerOptions)


class MqttWriter(Writer, Generic[Chosen]):
    """A monitor.ports.Sink but for `_send`."""

    def __init__(self, options: Chosen, context: Context) -> None:
        super().__init__()
        self._options = options
        self._context = context
        self._publisher = Publisher(options, delivery_timeout=options.delivery_timeout, client_id=options.client_id)

    def _check(self) -> None:
        credentials(self._options)

    def _look(self) -> None:
        self._publisher.look()

    def _close(self) -> None:
        self._publisher.close()

    def _topic(self, event: Event) -> str:
        return self._options.topic.replace(PLACE, topic_levels(event.key))
