"""What the sinks and dead letters of all brokers share: one blocking send at a time, which may be left."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import anyio
import anyio.to_thread

from monitor.types import Event


class Writer(ABC):
    """A monitor.ports.Sink but for what is blocking. After a cancelled `send` only the exit may follow, which ends what hangs in it."""

    def __init__(self) -> None:
        self._turn = anyio.Lock()

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(self._check)
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._close)

    async def send(self, events: Sequence[Event]) -> None:
        """As monitor.ports.Sink."""
        async with self._turn:
            await anyio.to_thread.run_sync(self._send, events, abandon_on_cancel=True)

    @abstractmethod
    def _check(self) -> None:
        """Raises ConfigError for files that cannot be used: that is no broker that is away."""

    @abstractmethod
    def _send(self, events: Sequence[Event]) -> None:
        """As `send`."""

    @abstractmethod
    def _close(self) -> None:
        """Within seconds, also while a `_send` hangs in another thread."""
