"""Micro-batches: filled by count or by deadline, fair among lanes (a source's partition)."""

import math
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Batcher(Generic[T]):
    """A bounded queue of lanes that is emptied in micro-batches. For one event loop.

    The first item of a batch is waited for without limit; then it fills up to `max_batch_size`, or until that first
    item has waited `max_wait` seconds. An idle line costs nothing, a full one never waits. Lanes take turns; within
    one the order is kept. At most `capacity` items wait.
    """

    def __init__(self, *, max_batch_size: int, max_wait: float, capacity: int) -> None:
        self._max_batch_size = max_batch_size
        self._max_wait = max_wait
        self._places = anyio.Semaphore(capacity, fast_acquire=False)  # handed over in turn: no lane can push in
        self._lanes: dict[Hashable, deque[tuple[float, T]]] = {}
        self._size = 0
        self._closed = False
        self._changed = anyio.Event()

    def __len__(self) -> int:
        return self._size

    async def put(self, lane: Hashable, item: T, *, at_once: bool = False) -> None:
        """Wait for room, then append to a lane. There is one caller per lane. `at_once`: its batch does not wait to fill."""
        await self._places.acquire()
        self._lanes.setdefault(lane, deque()).append((-math.inf if at_once else anyio.current_time(), item))
        self._size += 1
        self._wake()

    def close(self) -> None:
        """Nothing more is put; what waits is still handed out."""
        self._closed = True
        self._wake()

    async def next_batch(self) -> list[T]:
        """The next micro-batch; empty when closed and drained. Cancelling it loses nothing."""
        while not self._size:
            if self._closed:
                return []
            await self._changed.wait()
        deadline = min(lane[0][0] for lane in self._lanes.values()) + self._max_wait
        with anyio.CancelScope(deadline=deadline):
            while self._size < self._max_batch_size and not self._closed:
                await self._changed.wait()
        return [self._take() for _ in range(min(self._size, self._max_batch_size))]

    def _take(self) -> T:
        key = next(iter(self._lanes))
        lane = self._lanes.pop(key)
        _, item = lane.popleft()
        if lane:
            self._lanes[key] = lane  # at the end again: lanes take turns
        self._size -= 1
        self._places.release()
        return item

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
