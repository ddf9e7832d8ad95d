"""What a folder sink and a folder dead letter share: a folder that is made on entry, and a worker thread."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import anyio.to_thread

from monitor.errors import Disconnected
from monitor.types import Event


class FolderWriter(ABC):
    """A monitor.ports.Sink but for `_send`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def __aenter__(self) -> Self:
        await self.look()
        return self

    async def __aexit__(self, *exc: object) -> None:  # noqa: B027 (nothing is open)
        pass

    async def look(self) -> None:
        """As monitor.ports.Sink. Makes the folder where it is not."""
        try:
            await anyio.to_thread.run_sync(lambda: self._path.mkdir(parents=True, exist_ok=True))
        except OSError as error:
            raise Disconnected(f"folder {self._path} cannot be made: {error}", "lost") from error

    async def send(self, events: Sequence[Event]) -> None:
        """As monitor.ports.Sink."""
        await anyio.to_thread.run_sync(self._send, events)

    @abstractmethod
    def _send(self, events: Sequence[Event]) -> None:
        """In a worker thread."""
