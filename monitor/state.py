"""The state database (SQLite): how the last run ended, ids in process with their deaths, positions of settled files.

A record must survive the death of the process, not of the machine: what is lost in a power cut comes again.
"""

import fcntl
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import IO, Self

from monitor.errors import ConfigError, Disconnected

SCHEMA = """
CREATE TABLE IF NOT EXISTS running (began TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS in_process (id TEXT PRIMARY KEY, deaths INTEGER NOT NULL DEFAULT 0, open INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS positions (place TEXT NOT NULL, position TEXT NOT NULL, PRIMARY KEY (place, position)) WITHOUT ROWID;
"""


class State:
    """One daemon's state. Also the `Positions` of its sources. Thread-safe.

    `unclean` is True when the run before ended without `end_clean`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self.unclean = False

    def __enter__(self) -> Self:
        """Raises ConfigError when another daemon holds this state, or the file cannot be written or is not a state database."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._guard = self._hold()
        except OSError as error:
            raise ConfigError(f"daemon.state: {self._path} cannot be written: {error}") from error
        try:
            self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(SCHEMA)
            self.unclean = self._db.execute("SELECT 1 FROM running").fetchone() is not None
            self._db.execute("INSERT INTO running VALUES (datetime('now'))")
            # dying with an id still written is one death on it
            self._db.execute("UPDATE in_process SET deaths = deaths + 1, open = 0 WHERE open = 1")
        except sqlite3.Error as error:
            self._guard.close()
            raise ConfigError(f"daemon.state: {self._path} cannot be used as state database: {error}") from error
        return self

    def __exit__(self, *exc: object) -> None:
        self._db.close()
        self._guard.close()

    def end_clean(self) -> None:
        """Say that no message killed this run: the next one need not process singly, and no id is charged with a death."""
        with self._lock:
            self._db.execute("DELETE FROM running")
            self._db.execute("UPDATE in_process SET open = 0")

    def _hold(self) -> IO[str]:
        guard = self._path.with_name(self._path.name + ".lock").open("w")
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            guard.close()
            raise ConfigError(f"daemon.state: {self._path} is in use by another daemon; each needs its own") from error
        return guard

    def begin(self, message_id: str) -> int:
        """Write an id before it is decoded; returns the deaths that it has caused so far."""
        with self._lock:
            row = self._db.execute(
                "INSERT INTO in_process (id, open) VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET open = 1 RETURNING deaths", (message_id,)
            ).fetchone()
        return int(row[0])

    def rest(self, message_ids: Sequence[str]) -> None:
        """They are in work no more, and not settled: dying now is no death on them, and those before are remembered."""
        with self._lock:
            for message_id in message_ids:
                self._db.execute("UPDATE in_process SET open = 0 WHERE id = ?", (message_id,))
                self._db.execute("DELETE FROM in_process WHERE id = ? AND deaths = 0", (message_id,))

    def finish(self, message_id: str) -> None:
        """Strike an id off: it was settled."""
        with self._lock:
            self._db.execute("DELETE FROM in_process WHERE id = ?", (message_id,))

    def settled(self, place: str) -> set[str]:
        with self._lock:
            return {position for (position,) in self._db.execute("SELECT position FROM positions WHERE place = ?", (place,))}

    def settle(self, place: str, positions: Sequence[str]) -> None:
        self._write("INSERT OR IGNORE INTO positions VALUES (?, ?)", [(place, position) for position in positions])

    def forget(self, place: str, positions: Sequence[str]) -> None:
        self._write("DELETE FROM positions WHERE place = ? AND position = ?", [(place, position) for position in positions])

    def _write(self, statement: str, rows: Sequence[tuple[str, str]]) -> None:
        """All of them or none. Raises Disconnected."""
        with self._lock:
            try:
                self._db.execute("BEGIN")
                with self._db:  # commits, or rolls back
                    self._db.executemany(statement, rows)
            except sqlite3.Error as error:
                raise Disconnected(f"state {self._path} cannot be written: {error}", "lost") from error
