"""The real process: `python -m monitor ...` with a monitor.toml of its own, its log read line by line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FAKES = Path(__file__).resolve().parents[1]  # fake_detector.py and the entry point that installs it


def toml(value: Any) -> str:
    """A value as TOML: what JSON writes, but for tables."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def write_configuration(file: Path, tables: Mapping[str, Mapping[str, Any]]) -> Path:
    """`{"sources.cameras": {"kind": "kafka"}}` -> monitor.toml. It appears whole: a running daemon never reads half of it."""
    lines = [f"[{name}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in keys.items()) for name, keys in tables.items()]
    fresh = file.with_suffix(".fresh")
    fresh.write_text("\n".join(lines))
    fresh.replace(file)
    return file


def environment(**extra: str) -> dict[str, str]:
    """Ours, with the detector kind `fake` installed, and the arithmetic on one thread: tests share the cores."""
    path = os.pathsep.join(filter(None, [str(FAKES), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **extra}


def monitor(*arguments: str, timeout: float = 60, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. It must exit 0."""
    command = [sys.executable, "-m", "monitor", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout, env=environment(**extra))
    assert done.returncode == 0, f"monitor {' '.join(arguments)} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def wait_until(condition: Callable[[], object], *, seconds: float, what: str | Callable[[], str], every: float = 0.05) -> Any:
    """The first true value of `condition`; fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(every)
    return value


class Daemon:
    """`monitor run`. Leaving its `with` kills a run that still goes on; a failure in it shows the end of the log."""

    def __init__(self, configuration: Path, name: str = "daemon", **extra: str) -> None:
        self._configuration = configuration
        self._log = configuration.parent / f"{name}.log"
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None
        self._begin = 0

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(f"{self._log.name}:\n{self.tail()}")
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def start(self) -> None:
        """Start it (again); `log` then speaks of this run only."""
        assert self._process is None or self._process.poll() is not None, "it runs already"
        self._begin = self._log.stat().st_size if self._log.exists() else 0
        command = [sys.executable, "-m", "monitor", "run", "--config", str(self._configuration)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(**self._extra))

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log lines of this run; what is not JSON (a traceback of the interpreter) under `text`."""
        with self._log.open("rb") as file:
            file.seek(self._begin)
            lines = file.read().decode().splitlines()
        return [json.loads(line) if line.startswith("{") and line.endswith("}") else {"text": line} for line in lines]

    def events(self, event: str, **facts: Any) -> list[dict[str, Any]]:
        """The log lines of that event with those facts."""
        return [line for line in self.log if line.get("event") == event and facts.items() <= line.items()]

    def tail(self) -> str:
        if self._process is None:
            return "never started"
        return "\n".join(json.dumps(line) for line in self.log[-30:]) + f"\nexit code {self._process.poll()}"

    def wait_for(self, event: str, *, seconds: float = 90, **facts: Any) -> dict[str, Any]:
        """The first log line of that event with those facts. Fails at once when the process has ended without it."""

        def look() -> dict[str, Any] | None:
            ended = self.process.poll() is not None
            found = self.events(event, **facts)
            assert found or not ended, f"ended without {event} {facts}:\n{self.tail()}"
            return found[0] if found else None

        line: dict[str, Any] = wait_until(look, seconds=seconds, what=lambda: f"{event} {facts}:\n{self.tail()}")
        return line

    def ready(self) -> "Daemon":
        self.wait_for("ready")
        return self

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self, *, seconds: float = 90) -> int:
        """Wait for its end."""
        wait_until(lambda: self.process.poll() is not None, seconds=seconds, what=lambda: f"the end:\n{self.tail()}")
        return int(self.process.returncode)

    def drain(self) -> None:
        """An orderly stop: SIGTERM, once it listens to signals; exit 0."""
        self.ready()
        self.signal(signal.SIGTERM)
        code = self.exit_code()
        assert code == 0, self.tail()

    def kill(self) -> None:
        """As a power cut."""
        self.process.kill()
        self.process.wait()
