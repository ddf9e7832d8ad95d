"""What `monitor demo` runs: a simulated line, an MQTT broker and the real daemon as child processes, and the books of what was found.

monitor train                      (a child)
simulated camera -- Sender --> broker (a child) --> monitor run (a child) --> broker -- Receiver --> the books, pictures
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import cv2
import numpy as np
from numpy.typing import NDArray

from monitor.errors import MonitorError
from monitor.evaluation.drawing import Scale, overlay
from monitor.ports import Receiver, Sender
from monitor.registry import resolve
from monitor.settings import Settings
from monitor.simulation.parts import Part, PartFault, line, part
from monitor.types import Message

STREAM = "line-1"
DETECTOR, SOURCE, SINK = "flange", "camera", "alerts"
GOOD_PARTS = 340
"""To train on: three tenths calibrate, and a threshold for 1 % needs 99 of them."""
RATE = 4.0
"""Parts a second."""
TRAINING_SEED, LINE_SEED = 20260, 415
"""The line's parts are others than those of the training, so nothing is found because it was seen before."""
_PATIENCE = 120.0
"""Seconds without an event, while parts are under way, after which something is wrong."""
_END = 30.0
"""Seconds that a child has to end."""
_ENLARGED = 2
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

CONFIGURATION = """\
# What `monitor demo` ran with. Every demo in this folder writes it anew: copy it before you change it.
#
# For your own line: the two urls are those of your broker (the demo's is gone), topics are where your cameras publish,
# and the detector is trained anew on a hundred or more of your good pictures:
#
#   monitor train {detector} --data GOOD_PICTURES --layout folder --config THIS_FILE
#   monitor check --online --config THIS_FILE
#   monitor run --config THIS_FILE

[daemon]
site = "demo"
state = "state.db"
grace = 10.0

[store]
path = "models"

[api]
port = {api_port}                            # GET /live, /ready, /metrics

[sources.{source}]
kind = "mqtt"
url = "{url}"
topics = ["demo/{{stream}}/image"]         # {{stream}} names the camera
client_id = "monitor-demo"

[detectors.{detector}]
kind = "autoencoder"
inputs = ["{source}"]
false_alarm_probability = 0.01
# small, so that it is trained within two minutes on two cores; without these options it takes 3 to 5, and sees finer faults
options = {{ variant = "baseline", score = "l1_topk", resolution = 64, border = 3, smoothing = 1.0, epochs = 7, batch_size = 4 }}

[sinks.{sink}]
kind = "mqtt"
url = "{url}"
topic = "monitor/alerts/{{stream}}"
events = ["alert", "score"]             # a plant wants "alert"; the demo also counts what was found to be good

[dead_letter]
kind = "folder"
path = "dead_letter"
"""


class Child:
    """`python -m MODULE ARGUMENTS` meanwhile. It ends with us, whatever ends us; Ctrl-C reaches us alone, and we end it in order.

    What it prints goes to `log`, or to where ours goes. `answers`: its stdout is for us to read.
    """

    def __init__(self, module: str, *arguments: str | Path, log: Path | None = None, answers: bool = False) -> None:
        self._command = [sys.executable, "-P", "-m", module, *map(str, arguments)]
        self._log = log
        self._answers = answers

    def __enter__(self) -> "Child":
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("MONITOR__")}  # those speak of another file
        log = None if self._log is None else self._log.open("ab")
        try:
            self.process = subprocess.Popen(  # noqa: S603 (our own interpreter and words)
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if self._answers else log,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 (one system call: safe beside threads)
            )
        finally:
            if log is not None:
                log.close()
        return self

    def __exit__(self, *exc: object) -> None:
        process = self.process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.terminate()
        try:
            process.wait(_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def check(self) -> None:
        """Raises MonitorError where it has ended."""
        code = self.process.poll()
        if code is not None:
            raise MonitorError(f"{self._command[3]} ended with exit code {code}; what it said is in {self._log}")


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def broker(folder: Path) -> Child:
    """The embedded MQTT broker; `broker_url` once it is entered."""
    return Child("connectors.mqtt.embedded", folder, log=folder / "broker.log", answers=True)


def broker_url(child: Child) -> str:
    """Waits until it listens. Raises MonitorError."""
    assert child.process.stdout is not None
    said = child.process.stdout.readline()
    if not said:
        child.process.wait()
        child.check()
    return f"mqtt://127.0.0.1:{json.loads(said)['v5']}"


def write_configuration(file: Path, url: str) -> None:
    """The monitor.toml of the demo, for the broker at `url`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file.write_text(CONFIGURATION.format(url=url, api_port=port, detector=DETECTOR, source=SOURCE, sink=SINK))


def write_good_parts(folder: Path, progress: Callable[[str, int, int, Mapping[str, float]], None]) -> None:
    """Pictures to train on."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(TRAINING_SEED)
    for number in range(GOOD_PARTS):
        (folder / f"{number:04}.png").write_bytes(png(part(random).image))
        progress("good parts", number + 1, GOOD_PARTS, {})


@dataclass(eq=False)
class Outcome:
    """A part of the line, and what the daemon said of it."""

    number: int
    part: Part
    sent: float
    score: dict[str, Any] | None = None
    alert: dict[str, Any] | None = None
    map: bytes | None = field(default=None, repr=False)
    seconds: float | None = None
    """From the camera to the alert."""

    @property
    def finished(self) -> bool:
        """Scored, and alerted where the score says so."""
        return self.score is not None and (self.alert is not None or self.score["score"] <= self.score["threshold"])

    @property
    def located(self) -> bool:
        """Whether the strongest region of the alert touches the planted fault."""
        if self.alert is None:
            return False
        box = self.alert["regions"][0]
        return bool(self.part.mask[box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]].any())


class Line:
    """Sends simulated parts and keeps the books. `told` is called with each part that is alerted."""

    def __init__(self, settings: Settings, *, parts: int, faulty: int, told: Callable[[Outcome], None]) -> None:
        self._settings = settings
        self._random = np.random.default_rng(LINE_SEED)
        self._plan: Sequence[PartFault | None] = line(self._random, parts, faulty)
        self._told = told
        self._run = uuid.uuid4().hex[:8]
        self.outcomes: dict[str, Outcome] = {}
        """By position: the id that the camera gave the picture."""

    async def stream(self, daemon: Child) -> None:
        """Until each part has its score. Raises MonitorError where the daemon ends, or says nothing any more."""
        source, sink = self._settings.sources[SOURCE], self._settings.sinks[SINK].options
        async with resolve(sink.receiver)(sink) as receiver, resolve(source.sender)(source) as sender, anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, daemon)
            tasks.start_soon(self._publish, sender)
            with anyio.move_on_after(_PATIENCE) as patience:
                await self._receive(receiver, patience)
            if patience.cancelled_caught:
                missing = [outcome.number for outcome in self.outcomes.values() if not outcome.finished]
                raise MonitorError(f"for {_PATIENCE:g} s nothing has been heard of {len(missing)} of {len(self.outcomes)} parts that were sent")
            tasks.cancel_scope.cancel()

    async def _watch(self, daemon: Child) -> None:
        while True:
            daemon.check()
            await anyio.sleep(0.5)

    async def _publish(self, sender: Sender) -> None:
        begun = 0.0
        for number, fault in enumerate(self._plan):
            made = part(self._random, fault)
            outcome = self.outcomes[f"{self._run}-{number:04}"] = Outcome(number=number, part=made, sent=time.time())
            picture = png(made.image)
            await self._send(sender, f"{self._run}-{number:04}", picture, outcome)
            while number == 0 and not outcome.finished:  # until the daemon has subscribed, the broker keeps nothing for it
                await anyio.sleep(0.5)
                await self._send(sender, f"{self._run}-{number:04}", picture, outcome)
            begun = begun or anyio.current_time()
            await anyio.sleep(max(0.0, begun + (number + 1) / RATE - anyio.current_time()))

    async def _send(self, sender: Sender, position: str, picture: bytes, outcome: Outcome) -> None:
        outcome.sent = time.time()
        headers = (("id", position.encode()), ("content-type", b"image/png"), ("captured", b"%d" % round(1000 * outcome.sent)))
        message = Message(source="", topic="", position=position, payload=picture, received=outcome.sent, key=STREAM.encode(), headers=headers)
        await sender.send([message])

    async def _receive(self, receiver: Receiver, patience: anyio.CancelScope) -> None:
        async for event in receiver:
            outcome = self.outcomes.get(str(event.get("data", {}).get("sample", {}).get("position")))
            if outcome is None:
                continue
            patience.deadline = anyio.current_time() + _PATIENCE
            if event["type"] == "monitor.score.v1":
                outcome.score = outcome.score or event["data"]
            elif event["type"] == "monitor.alert.v1" and outcome.alert is None:
                outcome.alert, outcome.map, outcome.seconds = event["data"], await receiver.map(event), time.time() - outcome.sent
                self._told(outcome)
            if len(self.outcomes) == len(self._plan) and all(outcome.finished for outcome in self.outcomes.values()):
                return


def png(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) RGB."""
    return cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


def comparison(outcome: Outcome, map_threshold: float) -> NDArray[np.uint8]:
    """Side by side, twice as large: the picture as it was sent, the planted fault outlined, and what the map shows, if it was alerted."""
    side = _ENLARGED * outcome.part.image.shape[0]
    sent = np.asarray(cv2.resize(outcome.part.image, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)
    mask = cv2.resize(outcome.part.mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST).astype(np.bool_)
    panels = [sent, overlay(sent, np.zeros((side, side), np.float32), mask)]
    if outcome.map is not None and outcome.alert is not None:
        grey = np.asarray(cv2.imdecode(np.frombuffer(outcome.map, np.uint8), cv2.IMREAD_GRAYSCALE), np.float32)
        black, white = (np.float32(outcome.alert["map"][end]) for end in ("black", "white"))
        values = np.asarray(cv2.resize(black + grey / 255 * (white - black), (side, side)), np.float32)
        panels.append(overlay(sent, Scale(map_threshold).heat(values), np.zeros_like(mask)))
    return np.hstack(panels)


def where(box: Mapping[str, int], side: int) -> str:
    """A region in words, and in pixels of the sent picture."""
    down = ("upper", "", "lower")[min(2, int(3 * (box["y"] + box["height"] / 2) / side))]
    across = ("left", "", "right")[min(2, int(3 * (box["x"] + box["width"] / 2) / side))]
    return f"{f'{down} {across}'.strip() or 'middle'}, {box['width']}x{box['height']} px at ({box['x']}, {box['y']})"
