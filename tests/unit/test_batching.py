"""Micro-batches: by count, by deadline, fair among lanes, bounded."""

import anyio
import pytest

from monitor.batching import Batcher

pytestmark = pytest.mark.anyio


async def test_a_full_batch_does_not_wait():
    batcher = Batcher(max_batch_size=3, max_wait=3600, capacity=6)
    for item in range(4):
        await batcher.put("a", item)

    with anyio.fail_after(1):
        assert await batcher.next_batch() == [0, 1, 2]
    assert len(batcher) == 1


async def test_the_oldest_waits_at_most_max_wait():
    batcher = Batcher(max_batch_size=3, max_wait=0.01, capacity=6)
    await batcher.put("a", 0)

    with anyio.fail_after(1):
        assert await batcher.next_batch() == [0]


async def test_at_once_does_not_wait_to_fill():
    batcher = Batcher(max_batch_size=3, max_wait=3600, capacity=6)
    await batcher.put("a", 0, at_once=True)

    with anyio.fail_after(1):
        assert await batcher.next_batch() == [0]


async def test_lanes_take_turns_and_keep_their_order():
    batcher = Batcher(max_batch_size=4, max_wait=0, capacity=8)
    for item in range(5):
        await batcher.put("flood", item)
    await batcher.put("calm", "x")

    assert await batcher.next_batch() == [0, "x", 1, 2]
    assert await batcher.next_batch() == [3, 4]


async def test_a_flooding_lane_cannot_shut_another_out():
    batcher = Batcher(max_batch_size=2, max_wait=0, capacity=2)
    seen = []

    async def flood():
        for item in range(100):
            await batcher.put("flood", item)

    async def calm():
        for item in range(10):
            await batcher.put("calm", f"calm {item}")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flood)
        tasks.start_soon(calm)
        while len(seen) < 110:
            seen += await batcher.next_batch()

    last_calm = max(place for place, item in enumerate(seen) if str(item).startswith("calm"))
    assert last_calm < 40
    assert [item for item in seen if isinstance(item, int)] == list(range(100))


async def test_capacity_holds_the_producer():
    batcher = Batcher(max_batch_size=2, max_wait=0, capacity=2)
    await batcher.put("a", 0)
    await batcher.put("a", 1)

    with anyio.move_on_after(0.05) as scope:
        await batcher.put("a", 2)
    assert scope.cancelled_caught
    assert len(batcher) == 2


async def test_closed_it_hands_out_the_rest_and_ends():
    batcher = Batcher(max_batch_size=3, max_wait=3600, capacity=6)
    await batcher.put("a", 0)
    batcher.close()

    with anyio.fail_after(1):
        assert await batcher.next_batch() == [0]
        assert await batcher.next_batch() == []


async def test_cancelling_next_batch_loses_nothing():
    batcher = Batcher(max_batch_size=3, max_wait=3600, capacity=6)
    await batcher.put("a", 0)
    with anyio.move_on_after(0.02):
        await batcher.next_batch()
    batcher.close()

    assert await batcher.next_batch() == [0]
