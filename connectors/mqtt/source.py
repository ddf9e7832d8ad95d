"""Messages from MQTT topics, in a session that the broker keeps.

One thread owns the connection and passes groups of messages to the event loop: a hop per group. What is settled there comes
back through the window of the connection that brought it, and through no other.
"""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Self

import anyio
import anyio.to_thread

from connectors.mqtt import records
from connectors.mqtt.client import credentials
from connectors.mqtt.connection import Connection
from connectors.mqtt.options import MqttSourceOptions
from connectors.mqtt.publish import Arrived
from connectors.mqtt.window import Window
from connectors.places import Places
from monitor.errors import Backoff, ConfigError, Disconnected
from monitor.ports import Context, Delivery
from monitor.types import Message

_TURN = 1.0
"""Seconds that the thread waits for traffic at most; it is woken when there is something to send."""
_STEADY = 5.0
"""Seconds that a connection must hold until the next loss is followed by a quick try: two clients with one client_id end each other's for ever."""
_CLOSE = 5.0
"""Seconds that closing may take besides, where the broker does not answer."""
_MOST_TOPICS = 10_000
"""Topics come from outside: so many are remembered."""
_LONGEST_TOPIC = 1024
"""Characters of a topic that is remembered, and of what is told of a longer one."""

Read = list[tuple[int, Message | None]]
"""Packet id (0 with QoS 0) and message, None where it is skipped."""


class MqttSource:
    """See monitor.ports.Source. A message's position is its user property `id`, or a hash (connectors.mqtt.records)."""

    def __init__(self, options: MqttSourceOptions, context: Context) -> None:
        self._options = options
        self._context = context
        self._places = Places(options.max_in_flight)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._window: Window | None = None
        """The newest from which something came."""
        self._held = 0
        """Messages that the event loop has, handed out or not."""
        self._lock = threading.Lock()
        self._topics = options.parsed_topics
        self._key = lru_cache(_MOST_TOPICS)(self._find_key)
        self._told: set[tuple[str, str]] = set()
        self._lost: str | None = None
        """The cause that was reported last; None while connected."""
        self._said = False
        """Whether it was ever said that we are connected."""
        self._had_session = False

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(credentials, self._options)  # unusable files are a mistake in the configuration, not a broker that is away
        self._loop = asyncio.get_running_loop()
        self._send, self._received = anyio.create_memory_object_stream[Window | BaseException](math.inf)
        if self._places.closed:
            self._send.close()
        self._thread = threading.Thread(target=self._run, name=f"mqtt source {self._context.name}", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._thread is not None
        await self.stop()
        self._closing.set()
        if self._connection is not None:
            self._connection.wake()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._thread.join, self._options.connect_timeout + _CLOSE)
        self._received.close()

    async def stop(self) -> None:
        self._places.close()
        if self._thread is not None:
            self._send.close()

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        async for window in self._received:
            if isinstance(window, BaseException):
                raise window
            while window.waiting and not self._places.closed:
                if self._places.free:
                    number, message = window.waiting.popleft()
                    yield Delivery(message, self._places.take(partial(self._settled, window, number)))
                else:
                    await self._places.changed(math.inf)

    def taken(self) -> int:
        """See monitor.ports.InOrder: the receive maximum counts what is not acknowledged."""
        return 0 if self._window is None else self._window.taken

    def _settled(self, window: Window, number: int | None) -> None:
        self._let_go(1)
        if number is not None:
            window.settle(number)

    def _let_go(self, count: int) -> None:
        with self._lock:
            self._held -= count

    def _pass_on(self, window: Window, arrived: Read) -> None:
        self._window = window
        for mid, message in arrived:
            number = window.arrived(mid) if mid else None
            if message is not None:
                window.waiting.append((number, message))
            elif number is not None:
                window.settle(number)
        if not self._places.closed:
            self._send.send_nowait(window)

    def _kill(self, window: Window) -> None:
        self._let_go(window.kill())

    def _fail(self, error: BaseException) -> None:
        if not self._places.closed:
            self._send.send_nowait(error)

    # From here on: our thread.

    def _run(self) -> None:
        backoff = Backoff()
        try:
            while not self._closing.is_set() and not self._places.closed:
                try:
                    self._serve(backoff)
                except Disconnected as error:
                    self._report_lost(error)
                except ConfigError as error:  # a secret that could be read at start-up
                    self._report_lost(Disconnected(str(error), "not_authorised"))
                self._closing.wait(backoff.delay())
        except BaseException as error:  # a bug: the daemon must hear of it, or it would wait for ever
            self._tell(self._fail, error)

    def _tell(self, call: Callable[..., None], *arguments: object) -> None:
        """The event loop, unless it has gone without waiting for us."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    def _serve(self, backoff: Backoff) -> None:
        """Read over one connection until we close or it ends."""
        options = self._options
        connection = Connection(options, options.client_id, session_expiry=options.session_expiry, receive_maximum=options.max_in_flight)
        window = Window(connection.wake)
        try:
            connection.open()
            self._connection = connection
            self._note_session(connection.session_present)
            connection.subscribe(self._filters, options.qos)
            self._report_back()
            opened = time.monotonic()
            while not self._closing.is_set():
                if connection.messages:
                    self._hand_over(window, connection.messages)
                    connection.messages = []
                connection.step(_TURN)
                self._acknowledge(connection, window)
                if time.monotonic() - opened > _STEADY:
                    backoff.reset()
            self._acknowledge(connection, window)
        finally:
            self._tell(self._kill, window)
            connection.close()

    @property
    def _filters(self) -> list[str]:
        group = self._options.share_group
        return [f"$share/{group}/{topic.filter}" if group else topic.filter for topic in self._topics]

    def _acknowledge(self, connection: Connection, window: Window) -> None:
        while window.released:
            connection.acknowledge(window.released.popleft())

    def _hand_over(self, window: Window, arrived: list[Arrived]) -> None:
        received = time.time()
        group: Read = []
        for one in arrived:
            if one.qos == 0 and not self._take_unkept(one.topic):
                continue
            message = self._message(one, received)
            if message is not None:
                with self._lock:
                    self._held += 1
            group.append((one.mid, message))
        self._tell(self._pass_on, window, group)

    def _take_unkept(self, topic: str) -> bool:
        """Whether there is a place for a message with QoS 0, for which the broker does not wait."""
        if not self._options.lossy:
            self._tell_once("message_at_most_once", topic, mend="publish it with QoS 1: with QoS 0 the broker keeps it for nobody")
        if self._held < self._options.max_in_flight:
            return True
        self._context.report("message_dropped", source=self._context.name, cause="qos_0", topic=topic, quiet=True)
        return False

    def _message(self, arrived: Arrived, received: float) -> Message | None:
        """None where it is to be skipped."""
        topic = arrived.topic
        if arrived.retain and not self._options.retained:
            self._tell_once("message_skipped", topic, cause="retained", mend="retained = true takes what was retained before we subscribed")
            return None
        try:
            key = (self._key if len(topic) <= _LONGEST_TOPIC else self._find_key)(topic)
        except LookupError:  # not remembered: an exception is not cached
            mend = "the session of this client_id subscribed to more in former times: give another client_id, or let the session expire"
            self._tell_once("message_skipped", topic, cause="not_subscribed", mend=mend)
            return None
        headers = records.headers(arrived)
        if self._options.protocol == "5" and records.said_id(headers) is None and not records.is_structured(headers):
            mend = "give each a user property id, unique per topic for ever: until then identical payloads share one id"
            self._tell_once("message_without_id", topic, mend=mend)
        return Message(
            source=self._context.name,
            topic=topic,
            position=records.position(topic, headers, arrived.payload),
            payload=arrived.payload,
            received=received,
            key=key,
            headers=headers,
            cloudevents_prefix="",
        )

    def _find_key(self, topic: str) -> bytes | None:
        """The stream by the first template that matches. Raises LookupError where nothing of `topics` matches."""
        found = next((entry for entry in self._topics if entry.matches(topic)), None)
        if found is None:
            raise LookupError(topic)
        stream = found.stream(topic)
        return stream.encode("utf-8", "surrogatepass") if stream else None

    def _tell_once(self, what: str, topic: str, **facts: str) -> None:
        """Counted always, said once per topic."""
        topic = topic[:_LONGEST_TOPIC]
        quiet = (what, topic) in self._told or len(self._told) >= _MOST_TOPICS
        if not quiet:
            self._told.add((what, topic))
        self._context.report(what, source=self._context.name, topic=topic, quiet=quiet, **facts)

    def _note_session(self, present: bool) -> None:
        if self._had_session and not present:
            self._context.report("session_lost", source=self._context.name, client_id=self._options.client_id, url=self._options.url)
        self._had_session = True

    def _report_lost(self, error: Disconnected) -> None:
        if self._lost != error.cause and not self._closing.is_set():
            self._lost = error.cause
            self._context.report("source_disconnected", source=self._context.name, cause=error.cause, error=str(error))

    def _report_back(self) -> None:
        if self._lost is not None or not self._said:
            self._context.report("source_connected", quiet=self._lost is None, source=self._context.name)
            self._lost, self._said = None, True
