"""After an unclean end: how long one thing at a time is in work."""

from pathlib import Path

from monitor.probation import Probation
from monitor.state import State
from monitor.telemetry import Telemetry


def test_it_ends_with_the_first_deliveries_though_something_of_later_ones_always_rests(tmp_path: Path) -> None:
    """A microphone that never stops: three chunks are always out."""
    with State(tmp_path / "state.db") as state:
        state.unclean = True
        probation = Probation(state, Telemetry().report)
        for number in range(7):
            assert probation.singly("mics", 4)
            with probation.delivery("mics", f"mics/plant/{number}") as deaths:
                assert deaths == 0
            if number >= 3:
                probation.settled("mics", f"mics/plant/{number - 3}")
        assert not probation.singly("mics", 4)


def test_what_rested_when_it_ended_is_struck_off_when_it_is_settled(tmp_path: Path) -> None:
    with State(tmp_path / "state.db") as state:
        state.begin("mics/plant/1")
    with State(tmp_path / "state.db") as state:
        state.unclean = True
        probation = Probation(state, Telemetry().report)
        assert probation.singly("mics", 1)
        with probation.delivery("mics", "mics/plant/0"):
            pass
        with probation.delivery("mics", "mics/plant/1") as deaths:
            assert deaths == 1
        probation.settled("mics", "mics/plant/0")
        assert not probation.singly("mics", 1)
        probation.settled("mics", "mics/plant/1")
        assert state.begin("mics/plant/1") == 0
