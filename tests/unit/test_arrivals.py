"""The clock by which recordings end and streams are silent: it stands still while nothing can be handed out."""

from monitor.arrivals import Arrivals


class Broker:
    """Its `taken` places, of 4."""

    def __init__(self) -> None:
        self.taken = 0
        self.arrivals = Arrivals(4, None, lambda: self.taken)

    def came(self, now: float) -> float:
        self.taken += 1
        arrived = self.arrivals.came(now)
        self.arrivals.undealt.popleft()
        return arrived

    def settled(self, now: float, *, places: int = 1) -> None:
        """`places`: how many are free by it."""
        self.taken -= places
        self.arrivals.settled(now)


def test_the_clock_stands_still_while_all_places_are_out() -> None:
    broker = Broker()
    for now in range(4):
        assert broker.came(now) == now
    assert broker.arrivals.listened(50.0) == 3.0
    broker.settled(103.0)
    assert broker.arrivals.listened(105.0) == 5.0
    assert broker.came(106.0) == 6.0


def test_what_is_settled_but_keeps_its_place_holds_the_clock_too() -> None:
    """A sink is away, and the broker acknowledges in order: three are out, all four places are taken."""
    broker = Broker()
    for now in range(3):
        broker.came(now)
    broker.settled(3.0, places=0)  # behind the first
    broker.came(4.0)
    assert broker.arrivals.unsettled == 3
    assert broker.arrivals.heard_until(1000.0) == 4.0
    broker.settled(1004.0, places=0)
    assert broker.arrivals.listened(1100.0) == 4.0
    broker.settled(1104.0, places=3)
    assert broker.arrivals.listened(1110.0) == 10.0


def test_a_connection_that_is_over_gives_its_places_back() -> None:
    broker = Broker()
    for now in range(4):
        broker.came(now)
    assert broker.arrivals.listened(100.0) == 3.0
    broker.taken = 2
    assert broker.arrivals.listened(103.0) == 3.0
    assert broker.arrivals.listened(104.0) == 4.0


def test_only_what_rests_on_all_places_is_stuck() -> None:
    broker = Broker()
    for now in range(4):
        assert not broker.arrivals.stuck
        broker.came(now)
        broker.arrivals.rests(now, True)
    assert broker.arrivals.stuck
    broker.arrivals.rests(5.0, False)
    assert not broker.arrivals.stuck
    broker.settled(6.0, places=0)
    assert broker.arrivals.stuck  # three rest, one place is kept behind them
