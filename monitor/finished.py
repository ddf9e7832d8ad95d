"""Which segments of recordings are finished: a lasting record, since their chunks come again one by one.

A chunk is settled when the last of its segments is finished. So a restart may bring it again for the segment that was open, when
all other chunks of the segment before are settled: that one must be known to be finished, or it would be scored anew from one chunk.
"""

from collections.abc import Sequence
from hashlib import blake2b

import anyio
import anyio.to_thread

from monitor.errors import Backoff, Disconnected
from monitor.ports import Positions, Report


class FinishedSegments:
    """Of one source and detector: the newest `most`. From the event loop's thread."""

    def __init__(self, positions: Positions, *, source: str, detector: str, most: int, report: Report) -> None:
        self._positions = positions
        self._place = f"segments:{source}:{detector}"
        self._source = source
        self._most = most
        self._report = report
        self._known: dict[str, str] = {}  # key -> as it is recorded; oldest first
        self._next = 0
        self._adding = anyio.Lock()

    @staticmethod
    def key(stream: str, recording: str, begin: int, length: int) -> str:
        """Of a segment by its place in samples: the same for every way in which its recording is cut into chunks, another for other segments.

        Its size does not depend on the names, which come from outside.
        """
        digest = blake2b(digest_size=16)
        for name in (stream, recording):
            raw = name.encode()
            digest.update(len(raw).to_bytes(4) + raw)
        digest.update(f"{begin} {length}".encode())
        return digest.hexdigest()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    async def load(self) -> None:
        """What was recorded by former runs."""
        recorded = sorted(await anyio.to_thread.run_sync(self._positions.settled, self._place))
        for position in recorded:
            number, _, key = position.partition(" ")
            self._known[key] = position
            self._next = int(number) + 1

    async def add(self, keys: Sequence[str]) -> None:
        """Returns when they are recorded; tries again while the state database is away."""
        async with self._adding:
            new = {key: f"{self._next + index:015} {key}" for index, key in enumerate(keys)}
            self._next += len(new)
            await self._write(list(new.values()))
            for key, position in new.items():
                self._known.pop(key, None)
                self._known[key] = position

    async def _write(self, positions: list[str]) -> None:
        backoff, told = Backoff(), False
        old = list(self._known.values())[: max(0, len(self._known) + len(positions) - self._most)]
        while True:
            try:
                await anyio.to_thread.run_sync(self._positions.settle, self._place, positions)
                if old:
                    await anyio.to_thread.run_sync(self._positions.forget, self._place, old)
                    self._forget(old)
                return
            except Disconnected as error:
                if not told:
                    self._report("commit_failed", source=self._source, cause=error.cause, error=str(error))
                told = True
                await anyio.sleep(backoff.delay())

    def _forget(self, positions: list[str]) -> None:
        for position in positions:
            del self._known[position.partition(" ")[2]]
