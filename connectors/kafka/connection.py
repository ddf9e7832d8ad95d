"""How kafka-python is told to connect, and what its errors mean to an operator."""

import logging
import ssl
from typing import Any

from kafka import errors

from connectors.kafka.options import KafkaConnectionOptions
from connectors.kafka.records import read_any_header_name
from connectors.tls import tls_context
from monitor.errors import ConfigError, Disconnected


def client_arguments(options: KafkaConnectionOptions) -> dict[str, Any]:
    """What every client of kafka-python takes. Reads the secrets and certificates now, so that a rotated one is used.

    Raises ConfigError for a file that cannot be read or used.
    """
    _silence()
    read_any_header_name()
    arguments: dict[str, Any] = {
        "bootstrap_servers": [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in options.brokers],
        "security_protocol": options.security_protocol,
        "ssl_context": security(options),
        "bootstrap_timeout_ms": int(2000 * options.connect_timeout),
        "reconnect_backoff_max_ms": 2000,
        "metrics_enabled": False,
    }
    if options.security_protocol.startswith("SASL"):
        arguments |= {
            "sasl_mechanism": options.sasl_mechanism,
            "sasl_plain_username": options.username,
            "sasl_plain_password": password(options),
        }
    return arguments


def password(options: KafkaConnectionOptions) -> str:
    """Raises ConfigError for a password_file that cannot be read."""
    try:
        return options.secret("password") or ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"password_file: {error}") from error


def security(options: KafkaConnectionOptions) -> ssl.SSLContext | None:
    """None without TLS. Raises ConfigError."""
    return tls_context(options) if options.security_protocol.endswith("SSL") else None


def disconnected(error: Exception, options: KafkaConnectionOptions) -> Disconnected:
    """A client's error as what the operator must know."""
    text = f"{options.bootstrap_servers}: {type(error).__name__}: {error}"
    if isinstance(error, errors.AuthorizationError | errors.SaslAuthenticationFailedError):
        return Disconnected(f"{text} (user {options.username!r})", "not_authorised")
    return Disconnected(text, "timeout" if isinstance(error, errors.KafkaTimeoutError) else "lost")


def is_connected(client: Any) -> bool:
    """Whether a KafkaConsumer has an open connection. It tells nobody, and its metrics count attempts too."""
    return any(connection.connected for connection in list(client._manager._conns.values()))


def complete_join(consumer: Any) -> None:
    """Before every poll: a rebalance that was begun is completed by it.

    kafka-python 3.0.12 forgets a join that its own metadata asked for, as soon as the answer comes between two polls (seen under load,
    right after a start): the member is then in the group, but without heartbeats, and every commit fails until it is thrown out.
    """
    coordinator = consumer._coordinator
    if coordinator.rejoining and not coordinator.need_rejoin():
        coordinator.request_rejoin()


def _silence() -> None:
    """kafka-python logs every retry as an error; what an operator needs of it is said by diagnosis.py, once."""
    logger = logging.getLogger("kafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL + 1)
