"""One connection to an MQTT broker, and what its end means to an operator.

paho is driven by the thread that owns the connection: so nothing of it needs locks, PUBACKs are sent where messages are read, and
what arrives is passed on in groups. Its own loop uses select(), which knows no file beyond 1024.
Source: MQTT 5.0, 3.1 CONNECT, 3.2.2.2 Connect Reason Code, 3.14.2.1 Disconnect Reason Code; MQTT 3.1.1, 3.2.2.3.
"""

import math
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from connectors.mqtt.client import LastError, new_client
from connectors.mqtt.options import MqttConnectionOptions
from connectors.mqtt.publish import Arrived
from monitor.errors import ConfigError, Disconnected

_PACKETS = 256
"""Messages read in one turn at most."""
_CLOSE = 2.0
"""Seconds that the broker has to take our last packets."""
_REFUSED = 0x80
"""Reason codes from here on are refusals."""
NOT_AUTHORISED = frozenset({0x86, 0x87, 0x8A, 0x8C})  # bad user name or password, not authorised, banned, bad authentication method
_KEEP_ALIVE_TIMEOUT, _TAKEN_OVER = 0x8D, 0x8E
_UPON_A_MESSAGE = frozenset({0x90, 0x95, 0x99})  # topic name invalid, packet too large, payload format invalid


class Connection:
    """Opened and closed once. All calls from one thread, but for `wake`.

    session_expiry: seconds that the broker shall keep our session (3.1.1: as long as it likes), or None for none.
    receive_maximum: unacknowledged messages that it may send (3.1.1 cannot say that).
    """

    def __init__(
        self, options: MqttConnectionOptions, client_id: str, *, session_expiry: float | None = None, receive_maximum: int | None = None
    ) -> None:
        self._options = options
        self._client_id = client_id
        self._session_expiry = session_expiry
        self._receive_maximum = receive_maximum
        self._where = f"{options.host}:{options.port}"
        self._v5 = options.protocol == "5"
        self._errors = LastError()
        self._connack: tuple[bool, ReasonCode, Properties] | None = None
        self._ended: tuple[bool, ReasonCode] | None = None
        self._granted: dict[int, list[ReasonCode]] = {}
        self._woken = False
        self._opened = False
        self.messages: list[Arrived] = []
        """What has arrived; taken out by the owner."""
        self.confirmed: dict[int, ReasonCode] = {}
        """The broker's word on what was published, by packet id; taken out by the owner."""

    def open(self) -> None:
        """Raises Disconnected, with its cause; ConfigError for files that cannot be used."""
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._opened = True
        self.client = new_client(self._options, self._client_id, clean=self._session_expiry is None)
        self.client.enable_logger(self._errors.logger)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_subscribe = self._on_subscribe
        self.client.arrived = self._on_arrived
        self.client.on_publish = self._on_publish
        more: dict[str, Any] = {}
        if self._v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            if self._session_expiry is not None:
                properties.SessionExpiryInterval = math.ceil(self._session_expiry)
            if self._receive_maximum is not None:
                properties.ReceiveMaximum = self._receive_maximum
            more = {"clean_start": self._session_expiry is None, "properties": properties}
        self._call(lambda: self.client.connect(self._options.host, self._options.port, math.ceil(self._options.keepalive), **more))
        self._selector.register(self._socket(), selectors.EVENT_READ)
        self._until(lambda: self._connack is not None, "no answer to CONNECT")
        assert self._connack is not None
        if self._connack[1].value >= _REFUSED:
            raise self._gone()

    @property
    def session_present(self) -> bool:
        """Whether the broker goes on with the session that it had kept."""
        return self._connack is not None and self._connack[0]

    @property
    def properties(self) -> Properties:
        """What the broker said of its limits (MQTT 5, CONNACK); empty in 3.1.1."""
        assert self._connack is not None
        return self._connack[2]

    @property
    def refused_by_ending(self) -> bool:
        """Of a connection that is lost: whether its end may be the broker's answer to what was published. It said so (MQTT 5), it said
        nothing (3.1.1 has no word for it), or something that paho-mqtt 2.2 cannot read, which Mosquitto's word for it is."""
        if self._connack is None or self._connack[1].value >= _REFUSED:
            return False
        said = self._ended is not None and self._ended[0]
        return not said or (self._ended is not None and self._ended[1].value in _UPON_A_MESSAGE)

    def subscribe(self, filters: Sequence[str], qos: int) -> None:
        """Returns when the broker has granted all. Raises Disconnected naming those that it refuses, or grants less than `qos`.

        In MQTT 5 retained messages come only where we had not subscribed before; in 3.1.1 always.
        """
        new_only = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
        wanted = [(text, SubscribeOptions(qos=qos, retainHandling=new_only) if self._v5 else qos) for text in filters]
        _, mid = self.client.subscribe(wanted)  # type: ignore[arg-type]
        self._check()
        assert mid is not None
        self._until(lambda: mid in self._granted, "no answer to SUBSCRIBE")
        granted = self._granted.pop(mid)
        if len(granted) != len(filters):
            what = f"{len(granted)} answers to {len(filters)} subscriptions"
            raise Disconnected(f"{self._where} sends what is no MQTT {self._options.protocol}: {what}", "lost")
        refused = [(text, code) for text, code in zip(filters, granted, strict=True) if code.value >= _REFUSED]
        if refused:
            denied = not self._v5 or any(code.value in NOT_AUTHORISED for _, code in refused)
            said = ", ".join(f"{text} ({code})" if self._v5 else text for text, code in refused)
            raise Disconnected(f"{self._where} refuses {self._options.as_whom} the subscription to {said}", "not_authorised" if denied else "refused")
        if less := [text for text, code in zip(filters, granted, strict=True) if code.value < qos]:
            raise Disconnected(
                f"{self._where} grants less than qos = {qos} for {', '.join(less)}: what is lost there would not come again", "refused"
            )

    def publish(self, topic: str, payload: bytes, properties: Properties | None = None) -> int:
        """With QoS 1; the packet id under which `confirmed` will hold the broker's word. Raises Disconnected.

        The caller keeps to the broker's receive maximum."""
        sent: list[int] = []
        self._call(lambda: sent.append(self.client.publish(topic, payload, 1, properties=properties).mid))
        return sent[0]

    def step(self, seconds: float) -> None:
        """Read, write and keep alive; wait at most `seconds` for something to do. Raises Disconnected when the connection has ended."""
        link = self._socket()
        self._selector.modify(link, selectors.EVENT_READ | (selectors.EVENT_WRITE if self.client.want_write() else 0))
        pending = isinstance(link, ssl.SSLSocket) and link.pending() > 0
        events = {key.fileobj: mask for key, mask in self._selector.select(0 if pending else max(0.0, seconds))}
        if self._ear in events:
            with suppress(BlockingIOError):
                self._ear.recv(4096)
            self._woken = False  # only now: who rang meanwhile has said before what there is to do, and the owner looks after this
        if events.get(link, 0) & selectors.EVENT_WRITE:
            self._call(self.client.loop_write)
        if pending or events.get(link, 0) & selectors.EVENT_READ:
            for _ in range(_PACKETS):
                before = len(self.messages)
                self._call(self.client.loop_read)
                if len(self.messages) == before:
                    break
        self._call(self.client.loop_misc)

    def wake(self) -> None:
        """End the wait of `step`. From any thread, at any time."""
        if not self._woken:
            self._woken = True
            with suppress(OSError):  # closed meanwhile
                self._bell.send(b"x")

    def acknowledge(self, mid: int) -> None:
        """Send a PUBACK."""
        self._call(lambda: self.client.ack(mid, 1))

    def close(self, *, at_once: bool = False) -> None:
        """Send what waits, then DISCONNECT, which ends no session; within seconds. `at_once` sends nothing more."""
        if not self._opened:
            return
        link = self.client.socket() if hasattr(self, "client") else None
        if link is not None and at_once:
            link.close()
        elif link is not None:
            assert isinstance(link, socket.socket)
            self.client.on_socket_close = self._linger
            with suppress(Disconnected):
                self._call(self.client.disconnect, ending=True)
                end = time.monotonic() + _CLOSE
                while self._ended is None and time.monotonic() < end:
                    self._selector.modify(link, selectors.EVENT_WRITE)
                    self._selector.select(0.1)
                    self._call(self.client.loop_write, ending=True)
            link.close()
        self._selector.close()
        self._bell.close()
        self._ear.close()

    @staticmethod
    def _linger(_: object, __: object, link: Any) -> None:
        """Let the broker close first: what we had not read would make our close a reset, which may overtake our last packets."""
        with suppress(OSError):
            link.shutdown(socket.SHUT_WR)
            link.settimeout(_CLOSE)
            end = time.monotonic() + _CLOSE
            while link.recv(65536) and time.monotonic() < end:
                pass

    # What paho calls.

    def _on_connect(self, _: object, __: object, flags: mqtt.ConnectFlags, reason: ReasonCode, properties: Properties | None) -> None:
        self._connack = flags.session_present, reason, properties or Properties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]

    def _on_disconnect(self, _: object, __: object, flags: mqtt.DisconnectFlags, reason: ReasonCode, ___: object) -> None:
        self._ended = flags.is_disconnect_packet_from_server, reason

    def _on_subscribe(self, _: object, __: object, mid: int, reasons: list[ReasonCode], ___: object) -> None:
        self._granted[mid] = reasons

    def _on_arrived(self, message: Arrived) -> None:
        if message.qos > 1:
            why = f"the session of client_id {self._client_id!r} did in former times; give another client_id, or let the session expire"
            raise Disconnected(f"{self._where} sends a message with QoS 2, which we have not asked for: {why}", "refused")
        self.messages.append(message)

    def _on_publish(self, _: object, __: object, mid: int, reason: ReasonCode, ___: object) -> None:
        self.confirmed[mid] = reason

    # Calls of paho, and how they fail.

    def _socket(self) -> socket.socket:
        link = self.client.socket()
        if link is None:
            raise self._gone()
        assert isinstance(link, socket.socket)
        return link

    def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        end = time.monotonic() + self._options.connect_timeout
        while not condition():
            if time.monotonic() > end:
                raise Disconnected(f"{self._where} gives {otherwise} within {self._options.connect_timeout} s", "timeout")
            self.step(end - time.monotonic())

    def _call(self, call: Callable[[], object], *, ending: bool = False) -> None:
        try:
            call()
        except (Disconnected, ConfigError):
            raise
        except TimeoutError:
            raise Disconnected(f"{self._where} gave no answer within {self._options.connect_timeout} s", "timeout") from None
        except Exception as error:  # paho raises nearly anything where the broker sends what is no MQTT
            raise Disconnected(f"{self._where} sends what is no MQTT {self._options.protocol}: {error!r}", "lost") from error
        if not ending:
            self._check()

    def _check(self) -> None:
        if self._ended is not None or self.client.socket() is None:
            raise self._gone()

    def _gone(self) -> Disconnected:
        """Why the connection is no more."""
        if self._ended is not None and not self._ended[0] and self._ended[1].value == _KEEP_ALIVE_TIMEOUT:
            return Disconnected(f"{self._where} is silent for longer than keepalive = {self._options.keepalive} s", "timeout")
        if self._connack is None:
            return self._gone_unanswered()
        if (refusal := self._connack[1]).value >= _REFUSED:
            if refusal.value in NOT_AUTHORISED:
                return Disconnected(f"{self._where} does not let us in {self._options.as_whom}: {refusal}", "not_authorised")
            return Disconnected(f"{self._where} refuses client_id {self._client_id!r} with MQTT {self._options.protocol}: {refusal}", "refused")
        if self._ended is not None and self._ended[0]:
            return self._gone_by_disconnect(self._ended[1])
        hint = f"(it does not say why; another client with client_id {self._client_id!r} would have this effect)"  # also in MQTT 5: Mosquitto 2.0
        return Disconnected(f"{self._where} has closed the connection{self._errors.said} {hint}", "lost")

    def _gone_by_disconnect(self, reason: ReasonCode) -> Disconnected:
        """MQTT 5: the broker said why."""
        if reason.value == _TAKEN_OVER:
            return Disconnected(
                f"{self._where}: another client with client_id {self._client_id!r} took over our session: only one can have it", "lost"
            )
        text = f"{self._where} ends the connection of client_id {self._client_id!r}: {reason}"
        return Disconnected(text, "not_authorised" if reason.value in NOT_AUTHORISED else "lost")

    def _gone_unanswered(self) -> Disconnected:
        said = self._errors.said
        if self._options.tls and "certificate" in said.lower():  # TLS 1.3 refuses our certificate only now
            which = f"our certificate (cert_file {self._options.cert_file})" if self._options.cert_file else "us without a certificate (cert_file)"
            return Disconnected(f"{self._where} refuses {which}{said}", "tls")
        expected = "does this port expect TLS (mqtts://)?"
        if self._options.tls:  # the alert does not always arrive
            shown = "" if self._options.cert_file else "ask for a certificate (cert_file), or "
            expected = f"does it {shown}speak another protocol?"
        return Disconnected(f"{self._where} does not answer as an MQTT {self._options.protocol} broker{said}: {expected}", "tls")
