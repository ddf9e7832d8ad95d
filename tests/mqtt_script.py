"""A broker that answers as a test says."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

CONNACK_5, CONNACK_311 = b"\x20\x03\0\0\0", b"\x20\x02\0\0"
Publish = Callable[[bytes], bytes | None]
"""What is sent upon a PUBLISH, of which it is given what follows the length; b"" ends the connection without a word, None waits."""


@asynccontextmanager
async def a_broker(connack: bytes, publish: Publish) -> AsyncIterator[str]:
    """The URL of one that lets everybody in."""

    async def serve(link: SocketStream) -> None:
        stream = BufferedByteReceiveStream(link)
        async with link:
            with suppress(anyio.IncompleteRead, anyio.BrokenResourceError):
                while True:
                    kind = (await stream.receive_exactly(1))[0] >> 4
                    body = await stream.receive_exactly(await _remaining_length(stream))
                    if kind == 1:
                        await link.send(connack)
                    elif kind == 3:
                        answer = publish(body)
                        if answer == b"":
                            return
                        if answer is not None:
                            await link.send(answer)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"mqtt://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


def puback(publish: bytes) -> bytes:
    """That it was taken."""
    packet_id = 2 + int.from_bytes(publish[:2], "big")
    return b"\x40\x02" + publish[packet_id : packet_id + 2]


async def _remaining_length(stream: BufferedByteReceiveStream) -> int:
    length = shift = 0
    while True:
        (byte,) = await stream.receive_exactly(1)
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return length
