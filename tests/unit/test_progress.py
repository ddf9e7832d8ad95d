"""Progress off a terminal: few plain lines, the first and the last of every phase among them."""

import io

import pytest

from monitor.commands.progress import Lines, shown


def test_lines_are_few_and_name_every_phase() -> None:
    stream = io.StringIO()
    with shown(stream) as progress:
        for phase, steps in (("read", 500), ("train", 3)):
            for step in range(1, steps + 1):
                progress(phase, step, steps, {"loss": 0.02134} if phase == "train" else {})
    assert stream.getvalue().splitlines() == ["read 1/500", "read 500/500", "train 1/3 loss=0.02134", "train 3/3 loss=0.02134"]


def test_long_phases_are_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    lines = Lines(stream)
    for step in range(1, 31):
        now = float(step)
        lines("train", step, 100, {})
    assert stream.getvalue().splitlines() == ["train 1/100", "train 11/100", "train 21/100"]
