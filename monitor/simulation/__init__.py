"""Seeded synthetic machines with planted faults, for the demo and the tests."""

from collections.abc import Sequence
from typing import TypeVar

from numpy.random import Generator

F = TypeVar("F")


def plan(random: Generator, faults: Sequence[F], count: int, faulty: int) -> list[F | None]:
    """What a plant makes of `count`: `faulty` of them, anywhere, have a fault, each kind as often as the others."""
    kinds = [faults[index % len(faults)] for index in range(faulty)]
    made: list[F | None] = [*kinds, *[None] * (count - faulty)]
    return [made[place] for place in random.permutation(count)]
