"""Messages from the files of a folder. The position is the name of the file below it; the daemon remembers what is settled."""

import os
import stat
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Self

import anyio
import anyio.to_thread

from connectors.folder.options import FolderSourceOptions
from connectors.folder.sidecar import Headers, sidecar, unpack
from connectors.places import Places
from monitor.errors import Backoff, ConfigError, Disconnected
from monitor.ports import Context, Delivery
from monitor.types import Message

_GROUP = 16
"""Files read in one hop to a thread."""
_RECORD_EVERY = 1.0
"""Seconds after which settled positions are recorded at the latest while others are handed out."""


class FolderSource:
    """See monitor.ports.Source. A file beyond `max_bytes` is handed out whole too, for the dead letter, but only one at a time."""

    def __init__(self, options: FolderSourceOptions, context: Context) -> None:
        if context.positions is None:
            raise ConfigError(f"source {context.name}: a folder source needs a lasting record of positions")
        self._options = options
        self._context = context
        self._positions = context.positions
        self._places = Places(options.max_in_flight)
        self._known: set[str] = set()  # settled, or handed out
        self._out: set[str] = set()  # of those, the ones that are not settled
        self._large: set[str] = set()  # of those out, the ones beyond max_bytes
        self._unrecorded: list[str] = []  # settled, but not in the record yet
        self._gone: list[str] = []  # in the record, but not in the folder any more
        self._recorded = 0.0
        self._record_failed = False  # reported already
        self._unreadable: set[str] = set()  # reported already

    async def __aenter__(self) -> Self:
        # of another folder the same names are other files
        self._place = f"{self._context.name}:{_text(await anyio.to_thread.run_sync(self._options.path.resolve))}"
        self._known = await anyio.to_thread.run_sync(self._positions.settled, self._place)
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._record()

    async def stop(self) -> None:
        self._places.close()

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        waiting: deque[str] = deque()
        backoff = Backoff(first=self._options.poll, most=max(5.0, self._options.poll))
        lost = made = False
        while not self._places.closed:
            if time.monotonic() - self._recorded > _RECORD_EVERY:
                await self._record()
            if not self._places.free or self._large:
                await self._places.changed(_RECORD_EVERY)
                continue
            if not waiting:
                try:
                    waiting = await anyio.to_thread.run_sync(self._scan, not made)
                except OSError as error:
                    if not lost:
                        self._context.report("source_disconnected", source=self._context.name, cause="lost", error=str(error))
                    lost = True
                    await self._places.until_closed(backoff.delay())
                    continue
                if lost or not made:
                    self._context.report("source_connected", quiet=not lost, source=self._context.name)
                    lost, made = False, True
                    backoff.reset()
                if not waiting:
                    await self._record()
                    await self._places.until_closed(self._options.poll)
                    continue
            names = [waiting.popleft() for _ in range(min(len(waiting), self._places.free, _GROUP))]
            messages = await anyio.to_thread.run_sync(self._read_group, names)
            waiting.extendleft(reversed(names[len(messages) :]))
            if not any(messages):
                await self._places.until_closed(self._options.poll)
            for message in messages:
                if self._places.closed:
                    return
                if message is not None:
                    yield self._hand_out(message)

    def _hand_out(self, message: Message) -> Delivery:
        self._out.add(message.position)
        self._known.add(message.position)
        if len(message.payload) > self._options.max_bytes:
            self._large.add(message.position)
        return Delivery(message, self._places.take(partial(self._settled, message.position)))

    def _settled(self, position: str) -> None:
        self._large.discard(position)
        self._out.discard(position)
        self._unrecorded.append(position)

    async def _record(self) -> None:
        """Make what is settled last. What is not recorded when the process dies comes again, under the same id."""
        self._recorded = time.monotonic()
        settled, gone = list(self._unrecorded), list(self._gone)
        try:
            if gone:  # first: a name that came again may be settled by now
                await anyio.to_thread.run_sync(self._positions.forget, self._place, gone)
                del self._gone[: len(gone)]
            if settled:
                await anyio.to_thread.run_sync(self._positions.settle, self._place, settled)
                del self._unrecorded[: len(settled)]
            self._record_failed = False
        except Disconnected as error:  # tried again at the next turn
            if not self._record_failed:
                self._context.report("commit_failed", source=self._context.name, cause=error.cause, error=str(error))
            self._record_failed = True

    # From here on: in a worker thread.

    def _scan(self, make: bool) -> deque[str]:
        """Names below the folder that are not known yet, sorted. Raises OSError when the folder cannot be read."""
        root = self._options.path
        if make:  # once: later a missing folder is a disk that went away
            root.mkdir(parents=True, exist_ok=True)
        names: list[str] = []
        for folder, folders, files in os.walk(root, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = Path(folder).relative_to(root)
            names += [(below / name).as_posix() for name in files if _is_finished(name)]
        positions = {_text(name): name for name in names}
        if names:  # an empty folder may be a disk that is not mounted: nothing is forgotten by it
            gone = self._known - positions.keys() - self._out
            self._known -= gone
            self._gone += gone
            self._unreadable &= set(names)
        return deque(sorted(name for position, name in positions.items() if position not in self._known))

    def _read_group(self, names: list[str]) -> list[Message | None]:
        """One message per name, None for one that cannot be read now; ends with the first that is beyond max_bytes."""
        messages: list[Message | None] = []
        for name in names:
            try:
                path = self._options.path / name
                large = _regular(path).st_size > self._options.max_bytes
                if large and any(messages):
                    break
                messages.append(self._read(name, path))
                if large:
                    break
            except OSError as error:
                messages.append(None)
                if name not in self._unreadable:
                    self._unreadable.add(name)
                    self._context.report("file_unreadable", source=self._context.name, file=name, error=str(error))
        return messages

    def _read(self, name: str, path: Path) -> Message:
        key, headers = self._headers(name, path)
        stream = os.path.dirname(name)
        if stream and not any(header.lower() == "stream" for header, _ in headers):
            headers = (*headers, ("stream", os.fsencode(stream)))
        return Message(
            source=self._context.name,
            topic=_text(self._options.path.resolve().name),
            position=_text(name),
            payload=path.read_bytes(),
            received=time.time(),
            key=key,
            headers=headers,
            timestamp=path.stat().st_mtime,
        )

    def _headers(self, name: str, path: Path) -> tuple[bytes | None, Headers]:
        try:
            _regular(sidecar(path))
            return unpack(sidecar(path).read_bytes())
        except FileNotFoundError:
            pass
        except ValueError as error:
            self._context.report("file_unreadable", source=self._context.name, file=sidecar(Path(name)).as_posix(), error=str(error))
        return None, ()


def _is_finished(name: str) -> bool:
    return not name.startswith(".") and not name.endswith((".part", ".tmp"))


def _regular(path: Path) -> os.stat_result:
    """Raises OSError for what is no file: to read a pipe or a device may wait for ever."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(f"{path} is a pipe or a device, not a file")
    return facts


def _text(name: str | Path) -> str:
    """A path as text; bytes that are not UTF-8 as \\xNN, so that it can be stored and sent."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _raise(error: OSError) -> None:
    raise error
