"""Why a broker does not let us in, found within seconds.

kafka-python says `Unable to bootstrap` after 30 s whether the port is closed, the authority unknown or the password wrong. So
the first steps of its way are gone here one by one: TCP, TLS, ApiVersions, SASL, Metadata.
Source: https://kafka.apache.org/protocol, "Protocol Primitive Types" and the messages named below.
"""

import itertools
import socket
import ssl
import struct
from collections.abc import Iterator

import anyio.to_thread
from kafka import KafkaConsumer
from kafka.net.sasl import get_sasl_mechanism

from connectors.kafka.connection import client_arguments, password, security
from connectors.kafka.options import KafkaConnectionOptions, KafkaProducerOptions, KafkaSourceOptions
from connectors.tls import encrypted, reach
from monitor.errors import Disconnected

_METADATA, _SASL_HANDSHAKE, _API_VERSIONS, _SASL_AUTHENTICATE = 3, 17, 18, 36
_ILLEGAL_SASL_STATE = 34
_LONGEST_REPLY = 4 * 1024 * 1024


async def probe(options: KafkaSourceOptions | KafkaProducerOptions) -> list[str]:
    """Doubtful are topics that are not there (yet). Raises Disconnected with its cause, in words; ConfigError for unusable files."""
    await anyio.to_thread.run_sync(check, options)
    return await anyio.to_thread.run_sync(_missing_topics, options)


def _missing_topics(options: KafkaSourceOptions | KafkaProducerOptions) -> list[str]:
    """After check: this call knows no time limit of its own."""
    consumer = KafkaConsumer(**client_arguments(options))
    try:
        there = consumer.topics()
    finally:
        consumer.close()
    wanted = options.topics if isinstance(options, KafkaSourceOptions) else (options.topic,)
    return [f"topic {topic} does not exist on {options.bootstrap_servers} (yet, or not for us)" for topic in wanted if topic not in there]


def check(options: KafkaConnectionOptions) -> None:
    """As probe, blocking: the first bootstrap server that lets us in is enough."""
    failures: list[Disconnected] = []
    for host, port in options.brokers:
        try:
            _Attempt(options, host, port).run()
        except Disconnected as failure:
            failures.append(failure)
        else:
            return
    telling = next((failure for failure in failures if failure.cause not in ("refused", "timeout")), failures[0])
    raise Disconnected("; ".join(map(str, failures)), telling.cause)


class _Closed(Exception):
    """The broker hung up, or answered what is no answer."""


class _Attempt:
    """One try at one broker."""

    def __init__(self, options: KafkaConnectionOptions, host: str, port: int) -> None:
        self._options = options
        self._host = host
        self._port = port
        self._where = f"{host}:{port}"
        self._tls = security(options)
        self._numbers: Iterator[int] = itertools.count(1)

    def run(self) -> None:
        try:
            with reach(self._host, self._port, self._options.connect_timeout) as plain, self._encrypted(plain) as link:
                self._speak(link)
        except TimeoutError:
            raise Disconnected(f"{self._where} gave no answer within {self._options.connect_timeout} s", "timeout") from None
        except OSError as error:  # the network is gone in the middle of it
            raise Disconnected(f"{self._where}: {error}", "lost") from error

    def _encrypted(self, plain: socket.socket) -> socket.socket:
        if self._tls is None:
            return plain
        hint = f"is this port PLAINTEXT, and security_protocol {self._options.security_protocol} wrong?"
        return encrypted(plain, self._tls, (self._host, self._port), self._options.ca_file, hint=hint)

    def _speak(self, link: socket.socket) -> None:
        try:
            self._ask(link, _API_VERSIONS, 0, b"")
        except ssl.SSLError as error:  # TLS 1.3 refuses our certificate only now
            raise Disconnected(f"{self._where} refuses our certificate (cert_file {self._options.cert_file}): {error}", "tls") from error
        except _Closed as error:
            hint = "" if self._tls else ": does this port expect TLS (security_protocol SSL or SASL_SSL)?"
            raise Disconnected(f"{self._where} does not answer as a Kafka broker ({error}){hint}", "tls") from error
        if self._options.security_protocol.startswith("SASL"):
            self._authenticate(link)
        try:
            self._ask(link, _METADATA, 1, struct.pack(">i", 0))  # of no topic
        except _Closed as error:
            hint = " as no user: does this port expect SASL?" if self._options.username is None else f" as user {self._options.username!r}"
            raise Disconnected(f"{self._where} does not let us in{hint} ({error})", "not_authorised") from error

    def _authenticate(self, link: socket.socket) -> None:
        user, mechanism = self._options.username, self._options.sasl_mechanism
        assert mechanism is not None
        try:
            reply = self._ask(link, _SASL_HANDSHAKE, 1, _string(mechanism))
            (code,) = struct.unpack_from(">h", reply)
            if code == _ILLEGAL_SASL_STATE:
                raise Disconnected(
                    f"{self._where} asks for no user: security_protocol {self._options.security_protocol} is wrong here", "not_authorised"
                )
            if code:
                raise Disconnected(f"{self._where} does not take sasl_mechanism {mechanism}, but {', '.join(_strings(reply[2:]))}", "not_authorised")
            exchange = get_sasl_mechanism(mechanism)(
                host=self._host,
                security_protocol=self._options.security_protocol,
                sasl_mechanism=mechanism,
                sasl_plain_username=user,
                sasl_plain_password=password(self._options),
            )
            while not exchange.is_done():
                token = exchange.auth_bytes()
                reply = self._ask(link, _SASL_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
                code, length = struct.unpack_from(">hh", reply)
                if code:
                    raise _Closed(reply[4 : 4 + max(length, 0)].decode("utf-8", "replace"))
                exchange.receive(reply[4 + max(length, 0) + 4 :])
        except (_Closed, ValueError) as error:  # ValueError: the broker cannot prove that it knows the password
            raise Disconnected(f"{self._where} does not accept user {user!r} with this password ({mechanism}): {error}", "not_authorised") from error

    def _ask(self, link: socket.socket, key: int, version: int, body: bytes) -> bytes:
        """Send one request (header version 1), return the body of its response."""
        number = next(self._numbers)
        request = struct.pack(">hhi", key, version, number) + _string("monitor") + body
        try:
            link.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", self._read(link, 4))
            if not 4 <= size <= _LONGEST_REPLY:
                raise _Closed("its answer is not of the Kafka protocol")
            reply = self._read(link, size)
        except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise _Closed("it closes the connection") from error
        if struct.unpack_from(">i", reply) != (number,):
            raise _Closed("its answer is not of the Kafka protocol")
        return reply[4:]

    def _read(self, link: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = link.recv(size - len(data))
            if not piece:
                raise _Closed("it closes the connection")
            data += piece
        return data


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack(">h", len(raw)) + raw


def _strings(data: bytes) -> list[str]:
    """ARRAY of STRING."""
    (count,) = struct.unpack_from(">i", data)
    texts, at = [], 4
    for _ in range(count):
        (length,) = struct.unpack_from(">h", data, at)
        texts.append(data[at + 2 : at + 2 + length].decode())
        at += 2 + length
    return texts
