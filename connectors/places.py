"""The places of a source: how many deliveries are out, and who waits for one to come back."""

from collections.abc import Callable

import anyio


class Places:
    """At most `most` deliveries are out. All calls from the event loop's thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._out = 0
        self._changed = anyio.Event()
        self._closed = anyio.Event()

    @property
    def free(self) -> int:
        return self._most - self._out

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def take(self, settled: Callable[[], None]) -> Callable[[], None]:
        """Take a place; returns the `settle` of its delivery, which calls `settled` and frees the place."""
        self._out += 1
        open_ = True

        def settle() -> None:
            nonlocal open_
            if not open_:
                raise ValueError("a delivery was settled twice")
            open_ = False
            self._out -= 1
            settled()
            self._notify()

        return settle

    def close(self) -> None:
        """Nothing more is handed out; ends every wait."""
        self._closed.set()
        self._notify()

    async def changed(self, seconds: float) -> None:
        """Wait until a place comes back or all is closed, `seconds` at most."""
        with anyio.move_on_after(seconds):
            await self._changed.wait()

    async def until_closed(self, seconds: float) -> None:
        """Wait `seconds`, less when closed meanwhile."""
        with anyio.move_on_after(seconds):
            await self._closed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
