"""The watermark: never past what is unsettled, never after death."""

import random

import pytest
from kafka import TopicPartition

from connectors.kafka.partitions import Partitions
from connectors.ledger import Ledger
from monitor.errors import Backoff


def test_the_watermark_is_the_settled_beginning() -> None:
    ledger: Ledger[int] = Ledger()
    for position in (3, 4, 7, 8):  # gaps mean nothing
        ledger.track(position)
    assert ledger.uncommitted is None
    ledger.settle(4)
    ledger.settle(8)
    assert ledger.uncommitted is None
    ledger.settle(3)
    assert ledger.uncommitted == 4
    ledger.settle(7)
    assert ledger.uncommitted == 8
    assert ledger.outstanding == 0


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_settlement_keeps_the_promise(seed: int) -> None:
    dice = random.Random(seed)
    ledger: Ledger[int] = Ledger()
    out: list[int] = []
    settled: set[int] = set()
    following = 0
    for _ in range(500):
        if out and dice.random() < 0.5:
            position = out.pop(dice.randrange(len(out)))
            ledger.settle(position)
            settled.add(position)
        else:
            ledger.track(following)
            out.append(following)
            following += 1
        first_open = min(out, default=following)
        assert ledger.uncommitted == (first_open - 1 if first_open else None)
        assert ledger.outstanding == len(out)


def test_what_the_broker_knows_is_not_committed_again() -> None:
    ledger: Ledger[int] = Ledger()
    ledger.track(0)
    ledger.track(1)
    assert ledger.uncommitted is None
    ledger.settle(0)
    assert ledger.uncommitted == 0
    ledger.settle(1)
    ledger.committed(0)  # confirmed after it moved on
    assert ledger.uncommitted == 1
    ledger.committed(1)
    assert ledger.uncommitted is None


def test_a_dead_ledger_commits_nothing() -> None:
    ledger: Ledger[int] = Ledger()
    ledger.track(0)
    ledger.track(1)
    ledger.settle(0)
    ledger.kill()
    ledger.settle(1)
    assert ledger.uncommitted is None
    assert ledger.outstanding == 0


def test_settling_twice_or_what_was_never_out_is_a_bug() -> None:
    ledger: Ledger[int] = Ledger()
    ledger.track(0)
    with pytest.raises(ValueError, match="handed out already"):
        ledger.track(0)
    ledger.settle(0)
    with pytest.raises(ValueError, match="settled twice"):
        ledger.settle(0)
    with pytest.raises(ValueError, match="not out"):
        ledger.settle(5)


def test_a_partition_that_was_lost_is_nobodys() -> None:
    """What was polled of it just before is dropped, not a KeyError."""
    partitions, ours = Partitions(10), TopicPartition("images", 0)
    assert partitions.get(ours) is None
    partitions.assign([ours])
    stay = partitions.get(ours)
    assert stay is not None
    partitions.take([0])
    assert partitions.hand_out(stay, 0)
    partitions.kill([ours])
    assert partitions.get(ours) is None
    partitions.settle(stay, 0)
    assert partitions.watermarks() == {}


def test_backoff_doubles_to_its_cap_with_jitter_and_resets() -> None:
    longest = Backoff(first=1, most=5, uniform=lambda _, high: high)
    assert [longest.delay() for _ in range(5)] == [1, 2, 4, 5, 5]
    longest.reset()
    assert longest.delay() == 1
    shortest = Backoff(first=1, most=5, uniform=lambda low, _: low)
    assert [shortest.delay() for _ in range(4)] == [0.5, 1, 2, 2.5]
    with pytest.raises(ValueError, match="at most"):
        Backoff(first=2, most=1)
