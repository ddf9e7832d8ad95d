"""Puts files where a folder source reads them, whole or not at all."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Self

import anyio.to_thread

from connectors.files import write_durably
from connectors.folder.options import FolderSourceOptions
from connectors.folder.sidecar import pack, sidecar
from monitor.errors import Disconnected, Rejected
from monitor.types import Message


class FolderSender:
    """See monitor.ports.Sender. Key and headers go into a hidden file beside the payload, before it."""

    def __init__(self, options: FolderSourceOptions) -> None:
        self._options = options

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def send(self, messages: Sequence[Message]) -> Sequence[tuple[str, str]]:
        """A name that is taken gets a number, because a file is read once: `a.png`, `a~2.png`, ..."""
        return await anyio.to_thread.run_sync(self._send, messages)

    def _send(self, messages: Sequence[Message]) -> list[tuple[str, str]]:
        root = self._options.path.resolve()
        sent = []
        for message in messages:
            name = PurePosixPath(message.position)
            if not message.position or name.is_absolute() or any(part.startswith(".") for part in name.parts) or name.suffix in (".part", ".tmp"):
                raise Rejected(f"{message.position!r} is no name that a folder source reads")
            try:
                path = _free(root / name)
                path.parent.mkdir(parents=True, exist_ok=True)
                if message.key is not None or message.headers:
                    write_durably(sidecar(path), pack(message.key, message.headers))
                write_durably(path, message.payload)
            except OSError as error:
                raise Disconnected(f"{name} cannot be written to {root}: {error}", "lost") from error
            sent.append((root.name, path.relative_to(root).as_posix()))
        return sent


def _free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}~{number}{path.suffix}")
    return free
