"""The state database: clean and unclean ends, deaths, settled positions, one daemon at a time."""

import pytest

from monitor.errors import ConfigError, Disconnected
from monitor.state import State


def test_an_end_is_unclean_until_it_is_said(tmp_path):
    path = tmp_path / "var/state.db"
    with State(path) as first:
        assert not first.unclean
    with State(path) as second:
        assert second.unclean
        second.end_clean()
    with State(path) as third:
        assert not third.unclean


def test_dying_with_an_id_written_is_one_death_on_it(tmp_path):
    path = tmp_path / "state.db"
    for deaths in range(4):
        with State(path) as state:
            assert state.begin("a") == deaths
            assert state.begin("b") == 0
            state.finish("b")
    with State(path) as state:
        state.begin("a")
        state.finish("a")
    with State(path) as state:
        assert state.begin("a") == 0


def test_dying_while_an_id_rests_is_no_death_on_it_but_those_before_are_remembered(tmp_path):
    path = tmp_path / "state.db"
    with State(path) as state:
        state.begin("a")
    for _ in range(2):
        with State(path) as state:
            assert state.begin("a") == 1
            assert state.begin("b") == 0
            state.rest(["a", "b"])
    with State(path) as state:
        state.begin("a")
        state.finish("a")
        state.rest(["a"])
        assert state.begin("a") == 0


def test_no_death_is_charged_for_an_orderly_end(tmp_path):
    path = tmp_path / "state.db"
    with State(path) as state:
        state.begin("a")
        state.end_clean()
    with State(path) as state:
        assert state.begin("a") == 0


def test_positions_last(tmp_path):
    with State(tmp_path / "state.db") as state:
        state.settle("inbox", ["1.png", "2.png"])
        state.settle("inbox", ["2.png"])
    with State(tmp_path / "state.db") as state:
        assert state.settled("inbox") == {"1.png", "2.png"}
        assert state.settled("other") == set()


def test_forgotten_positions_are_gone(tmp_path):
    with State(tmp_path / "state.db") as state:
        state.settle("inbox", ["1.png", "2.png"])
        state.settle("other", ["1.png"])
        state.forget("inbox", ["1.png", "3.png"])
        assert state.settled("inbox") == {"2.png"}
        assert state.settled("other") == {"1.png"}


def test_a_write_that_fails_leaves_nothing_begun(tmp_path):
    with State(tmp_path / "state.db") as state:
        state._db.execute("CREATE TRIGGER full BEFORE INSERT ON positions WHEN NEW.position = 'b' BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        with pytest.raises(Disconnected, match="disk full"):
            state.settle("inbox", ["a", "b"])
        assert state.settled("inbox") == set()
        state._db.execute("DROP TRIGGER full")
        state.settle("inbox", ["a", "b"])
        assert state.settled("inbox") == {"a", "b"}


def test_a_second_daemon_is_refused(tmp_path):
    with State(tmp_path / "state.db"), pytest.raises(ConfigError, match="in use by another daemon"), State(tmp_path / "state.db"):
        pass


def test_what_is_no_database_is_refused(tmp_path):
    (tmp_path / "state.db").write_bytes(b"this is not a database, it only pretends to be one" * 100)
    with pytest.raises(ConfigError, match="cannot be used"), State(tmp_path / "state.db"):
        pass


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"daemon\.state: .* cannot be written"), State(tmp_path / "file" / "state.db"):
        pass
    (tmp_path / "state.db").mkdir()
    with pytest.raises(ConfigError, match=r"daemon\.state: .* cannot be used"), State(tmp_path / "state.db"):
        pass
