"""How long work is shown: a bar on a terminal, plain log lines elsewhere. On stderr, so that stdout is the answer alone."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from monitor.ports import Progress

EVERY = 10.0
"""Seconds between plain lines of one phase; its first and last step are always told."""


@contextmanager
def shown(stream: TextIO | None = None) -> Iterator[Progress]:
    """A Progress while the work lasts."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield Lines(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Bars(*columns, console=Console(file=stream)) as bars:
        tasks = {}

        def progress(phase: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=steps, figures="")
            bars.update(tasks[phase], completed=step, total=steps, figures=_words(figures))

        yield progress


class Lines:
    """A Progress that writes lines such as `train 3/30 loss=0.0213`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phase = ""
        self._told = 0.0

    def __call__(self, phase: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        now = time.monotonic()
        if phase == self._phase and step < steps and now - self._told < EVERY:
            return
        self._phase, self._told = phase, now
        print(" ".join(filter(None, [f"{phase} {step}/{steps}", _words(figures)])), file=self._stream, flush=True)


def _words(figures: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:.4g}" for name, value in figures.items())
