"""What the sinks and dead letters of all brokers share: one blocking send at a time, which may be left."""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Self

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

    async def look(self) -> None:
        """As monitor.ports.Sink. Beside a `send`, which it does not hold."""
        await _left_when_cancelled(self._look)

    async def send(self, events: Sequence[Event]) -> None:
        """As monitor.ports.Sink."""
        async with self._turn:
            await _left_when_cancelled(self._send, events)

    @abstractmethod
    def _check(self) -> None:
        """Raises ConfigError for files that cannot be used: that is no broker that is away."""

    @abstractmethod
    def _look(self) -> None:
        """As `look`."""

    @abstractmethod
    def _send(self, events: Sequence[Event]) -> None:
        """As `send`."""

    @abstractmethod
    def _close(self) -> None:
        """Within seconds, also while a `_send` hangs in another thread."""


async def _left_when_cancelled(work: Callable[..., None], *args: Any) -> None:
    """In a thread of its own. What a dead network holds for minutes is left there, and the process ends without it: a thread
    of a pool would be joined."""
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()  # whoever waits may leave; the outcome is then nobody's

    def run() -> None:
        try:
            work(*args)
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name=work.__qualname__, daemon=True).start()
    await asyncio.wrap_future(done)
