"""Follows what a folder sink or a folder dead letter writes."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.to_thread

from connectors.cloudevents import read_event
from connectors.folder.options import FolderDeadLetterOptions, FolderSinkOptions
from connectors.maps import read_map
from monitor.errors import Disconnected

_POLL = 0.2


class FolderReceiver:
    """See monitor.ports.Receiver. Files that are there when it is entered are not shown."""

    def __init__(self, options: FolderSinkOptions | FolderDeadLetterOptions) -> None:
        self._path = options.path
        self._seen: set[str] = set()

    async def __aenter__(self) -> Self:
        self._seen = {path.name for path in await anyio.to_thread.run_sync(self._look)}
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]:
        while True:
            for path in await anyio.to_thread.run_sync(self._look):
                self._seen.add(path.name)
                yield await anyio.to_thread.run_sync(_event, path)
            await anyio.sleep(_POLL)

    async def map(self, event: Mapping[str, Any]) -> bytes | None:
        return await anyio.to_thread.run_sync(read_map, event)

    def _look(self) -> list[Path]:
        """New events, oldest first. A folder that is not made yet has none."""
        if not self._path.exists():
            return []
        try:
            new = [path for path in self._path.iterdir() if path.suffix == ".json" and path.name[0] != "." and path.name not in self._seen]
            return sorted(new, key=lambda path: (path.stat().st_mtime_ns, path.name))
        except OSError as error:
            raise Disconnected(f"folder {self._path} cannot be read: {error}", "lost") from error


def _event(path: Path) -> Mapping[str, Any]:
    try:
        return read_event(path.read_bytes(), str(path))
    except OSError as error:
        return {"error": f"{path} cannot be read: {error}"}
