"""The model that serves: loaded from the store, swapped between batches, scored on its device's thread, judged sane (rule 9)."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread

from monitor.errors import ConfigError, DeviceLost, ModelBroken, ModelRefused
from monitor.judge import Judge
from monitor.ports import Detector, Report
from monitor.reference import check_map, checked, load_detector, references_pass
from monitor.settings import DetectorSettings
from monitor.store import ModelStore
from monitor.types import Batch, ModelVersion, Sample, Verdict

R = TypeVar("R")


class Devices:
    """One thread per device: batches of all its detectors take turns, and none waits behind decoding."""

    def __init__(self) -> None:
        self.running: dict[str, float] = {}
        """What is in work for a batch now, and since when (monotonic): of several calls of a model, the one that runs."""
        self._threads: dict[str, ThreadPoolExecutor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=True)

    async def run(self, device: str, work: Callable[..., R], *args: Any) -> R:
        """Run `work(*args, beat=beat)` on the device's thread. It calls `beat` whenever the device has answered: it is timed anew from there."""
        if device not in self._threads:
            self._threads[device] = ThreadPoolExecutor(max_workers=1, thread_name_prefix=device)
        return await asyncio.wrap_future(self._threads[device].submit(self.timed, device, partial(work, *args, beat=partial(self._beat, device))))

    def timed(self, what: str, work: Callable[..., R], *args: Any) -> R:
        """On the calling thread; meanwhile it stands in `running` under a name of its own."""
        self._beat(what)
        try:
            return work(*args)
        finally:
            del self.running[what]

    def _beat(self, what: str) -> None:
        self.running[what] = time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A loaded version and what judges by it."""

    version: ModelVersion
    detector: Detector
    judge: Judge


class ModelSlot:
    """The current model of one detector. Whoever took a model before a swap finishes with that one."""

    def __init__(self, name: str, settings: DetectorSettings, *, site: str, store: ModelStore, report: Report) -> None:
        self._name = name
        self._settings = settings
        self._site = site
        self._store = store
        self._report = report
        self._seen: str | None = None  # the version looked at last, "" for none: a refused one is not loaded at every look
        self._refusal: str | None = None
        self._loaded = anyio.Event()
        self._look = anyio.Event()
        self.model: Model | None = None

    @property
    def trouble(self) -> str | None:
        """Why there is no model, in words; None where one serves."""
        if self.model is not None:
            return None
        return self._refusal or (f"no model; monitor train {self._name}" if self._seen == "" else "its model is being loaded")

    async def refresh(self) -> None:
        """Look in the store; load and swap in what was promoted. A version that is refused leaves the one before."""
        try:
            version = await anyio.to_thread.run_sync(self._store.current, self._name)
            if version is None:
                if self._seen != "":
                    self._seen = ""
                    mend = f"monitor train {self._name}, or put the model store back"
                    self._report("model_missing", detector=self._name, mend=mend, serving=self.model.version.id if self.model else None)
                return
            if version.id == self._seen:
                return
            self._seen = version.id
            model = await anyio.to_thread.run_sync(self._load, version)
        except (ModelRefused, ConfigError, OSError) as error:
            if isinstance(error, OSError):
                self._seen = None  # a file system that is away for a moment: look again
            if str(error) != self._refusal:
                self._refusal = str(error)
                self._report(
                    "model_refused",
                    detector=self._name,
                    error=str(error),
                    serving=self.model.version.id if self.model else None,
                    mend=f"monitor models promote {self._name} ANOTHER, or monitor train {self._name}; SIGHUP tries this one again",
                )
            return
        self.model = model
        self._refusal = None
        self._loaded.set()
        self._report("model_loaded", detector=self._name, model_version=version.id, device=model.detector.device, precision=model.detector.precision)

    def _load(self, version: ModelVersion) -> Model:
        if version.manifest["kind"] != self._settings.kind:
            raise ModelRefused(f"{version.folder} is of kind {version.manifest['kind']}, detectors.{self._name} is of kind {self._settings.kind}")
        detector = load_detector(version, device=self._settings.device, precision=self._settings.precision, report=self._report)
        judge = Judge(site=self._site, version=version, false_alarm_probability=self._settings.false_alarm_probability)
        return Model(version=version, detector=detector, judge=judge)

    async def watch(self, poll: float) -> None:
        """Refresh every `poll` seconds, and at once when woken."""
        while True:
            with anyio.move_on_after(poll):
                await self._look.wait()
            self._look = anyio.Event()
            await self.refresh()

    def wake(self) -> None:
        """Look at once, and try a version again that was refused."""
        if self._refusal is not None:
            self._seen = self._refusal = None
        self._look.set()

    async def ready(self) -> Model:
        """The current model; waits for the first one."""
        await self._loaded.wait()
        assert self.model is not None
        return self.model


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What scoring a batch came to, by index: verdicts, and the errors of what fails alone; and how many seconds it took."""

    verdicts: dict[int, Verdict]
    failures: dict[int, str]
    seconds: float


def score(
    model: Model, samples: Sequence[Sample], prepared: Sequence[Any], batch: Batch | Exception, report: Report, *, beat: Callable[[], None]
) -> Outcome:
    """Score and judge a batch on the calling thread; `beat` is called whenever the model has answered.

    A batch that raised when stacked, raises, or scores as not finite is repeated one sample at a time. What fails alone is
    at fault only if the model's own reference samples still pass. Raises ModelBroken when they do not; DeviceLost.
    """
    begun = time.perf_counter()
    try:
        if isinstance(batch, Exception):
            raise batch
        return Outcome(dict(enumerate(_judged(model, samples, batch))), {}, time.perf_counter() - begun)
    except (DeviceLost, MemoryError):
        raise
    except Exception as error:
        report("batch_repeated", detector=model.version.name, model_version=model.version.id, cause=type(error).__name__, error=str(error))
    verdicts: dict[int, Verdict] = {}
    failures: dict[int, str] = {}
    for index, (sample, ready) in enumerate(zip(samples, prepared, strict=True)):
        beat()
        try:
            (verdicts[index],) = _judged(model, [sample], model.detector.stack([sample], [ready]))
        except (DeviceLost, MemoryError):
            raise
        except Exception as error:
            failures[index] = f"{type(error).__name__}: {error}"
    if failures:
        beat()
        check_model(model, beat=beat)
    return Outcome(verdicts, failures, time.perf_counter() - begun)


def check_model(model: Model, *, beat: Callable[[], None]) -> None:
    """Raises ModelBroken when the model no longer repeats its reference scores. `beat` as in `score`."""
    if not references_pass(model.detector, model.version, beat):
        raise ModelBroken(f"{model.version.name} {model.version.id} no longer repeats its reference scores on {model.detector.device}")


def _judged(model: Model, samples: Sequence[Sample], batch: Batch) -> list[Verdict]:
    scores = checked(model.detector.score(batch), samples)
    verdicts = model.judge.verdicts(samples, scores, time.time())
    for verdict in verdicts:
        if verdict.map is not None:
            check_map(verdict.sample, verdict.map, verdict.axes)
    return verdicts
