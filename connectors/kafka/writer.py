"""What a Kafka sink and a Kafka dead letter share."""

from typing import Generic, TypeVar

from connectors.kafka.connection import client_arguments
from connectors.kafka.options import KafkaProducerOptions
from connectors.kafka.producer import Producer
from connectors.writer import Writer
from monitor.ports import Context

Chosen = TypeVar("Chosen", bound=KafkaProducerOptions)


class KafkaWriter(Writer, Generic[Chosen]):
    """A monitor.ports.Sink but for `_send`."""

    def __init__(self, options: Chosen, context: Context) -> None:
        super().__init__()
        self._options = options
        self._context = context
        self._producer = Producer(options, options.delivery_timeout)

    def _check(self) -> None:
        client_arguments(self._options)

    def _look(self) -> None:
        self._producer.look()

    def _close(self) -> None:
        self._producer.close()
