"""AEGAN-AD as a detector: how badly a machine's sound is reconstructed, or how far it lies from the sounds of training, is how strange it is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from detectors.aegan_ad.model import HOP, AeganAdModel, Settings, read_model, save_model
from detectors.aegan_ad.networks import SIDE
from detectors.aegan_ad.options import MACHINES, PRESETS, SCORES, AeganAdOptions, Preset
from detectors.aegan_ad.scores import FEWEST_CLIPS
from detectors.aegan_ad.synthesis import fault
from detectors.aegan_ad.training import History, Recipe, Windows, train
from detectors.devices import choose_device, choose_precision, has_bf16, watched
from detectors.inference import Arriving, Upload, made_fast
from detectors.presets import overridden
from detectors.spectrogram import LogMel, mono
from detectors.synthesis import synthetic_auroc
from detectors.training import count, seeded
from monitor.errors import BadSample, ConfigError
from monitor.ports import Progress
from monitor.types import Axes, Batch, FloatArray, Sample, Scores, Segmentation

SHORTEST = (SIDE - 1) * HOP
"""Samples of a clip that fill one window."""

Groups = Sequence[tuple[Sequence[int], Arriving]]
"""The clips of a batch by length: their places in it, and their waveforms (b, T)."""


class AeganAd:
    """`AeganAd(options)`; see monitor.ports.Detector."""

    modality = "sound"

    def __init__(self, options: AeganAdOptions) -> None:
        self._options = options
        self._preset = resolved(options)
        self._model: AeganAdModel | None = None
        self._upload: Upload | None = None
        self.segmentation: Segmentation | None = None
        self.device = ""
        self.precision = ""

    def fit(
        self, training: Sequence[Sample], held_out: Sequence[Sample], folder: Path, *, seed: int, device: str, progress: Progress
    ) -> Mapping[str, Any]:
        """The spectrograms of all clips are held: 160 KB for 10 s. The rate is that of the first clip; higher ones are resampled to it."""
        preset, machine, place = self._preset, MACHINES[self._options.machine], choose_device(device)
        if len(training) < FEWEST_CLIPS or not held_out:
            raise ConfigError(f"training: {len(training)} training and {len(held_out)} held-out clips: expected at least {FEWEST_CLIPS} and 1")
        rate = training[0].rate
        assert rate is not None, "training samples hold sound"
        spare = [clip_of(held_out[index], rate) for index in range(len(held_out))]
        with watched(place):
            log_mel = LogMel(rate, hop=HOP, mels=SIDE).to(place)
            lengths: Counter[int] = Counter()
            decibels: list[Tensor] = []
            for index in range(len(training)):
                clip = clip_of(training[index], rate)
                lengths[len(clip)] += 1
                decibels.append(log_mel(torch.from_numpy(clip)[None].to(place))[0].cpu())
                progress("spectrograms", index + 1, len(training), {})
            with seeded(torch.device("cpu"), seed, "networks"):
                model = AeganAdModel(self._settings(rate, lengths.most_common(1)[0][0], decibels), len(training))
            model.to(place)
            learn = [model.scaled(one) for one in decibels]
            aside = Windows([model.scaled(log_mel(torch.from_numpy(clip)[None].to(place))[0].cpu()) for clip in spare])
        recipe = Recipe(
            epochs=preset.epochs or machine.epochs,
            patience=preset.patience,
            steps=preset.steps,
            batch_size=preset.batch_size,
            stride=preset.stride,
            feature_weight=machine.feature_weight,
            match_deviation=machine.match_deviation,
            beta1=machine.beta1,
            mixed_precision=preset.mixed_precision,
        )
        history = train(
            model.generator, model.critic, Windows(learn), aside, recipe=recipe, folder=folder, seed=seed, device=place, progress=progress
        )
        with watched(place):
            try:
                model.remember(learn)
            except ValueError as error:
                raise ConfigError(f"training: {error}") from error
            figures = choose_score(model, spare, seed, progress)
        if self._options.score == "auto":
            model.settings = replace(model.settings, score=max(SCORES, key=lambda name: figures[name]))
        self._model = model
        return {
            "options": asdict(preset) | asdict(machine) | asdict(recipe) | asdict(model.settings),
            "synthetic_auroc": figures,
            "covariance": model.pool.covariance,
            **facts(history),
            "parameters": {"generator": count(model.generator), "critic": count(model.critic)},
            "training_clips": len(training),
            "held_out_clips": len(held_out),
            "segment_seconds": model.settings.samples / rate,
            "shortest_seconds": SHORTEST / rate,
            "seed": seed,
            "device": str(place),
            "mixed_precision": recipe.mixed_precision and has_bf16(place),
            "seconds": history.seconds,
        }

    def save(self, folder: Path) -> None:
        """weights.safetensors and detector.json, after fit."""
        if self._model is None:
            raise RuntimeError("nothing to save: fit comes first")
        save_model(folder, self._model)

    def load(self, folder: Path, *, device: str, precision: str) -> None:
        """Raises ModelRefused where `folder` holds no model of this kind."""
        place = choose_device(device)
        precision = choose_precision(precision, place)
        model = read_model(folder)
        settings = model.settings
        with watched(place):
            model.to(place)
            made_fast(model.generator, device=place, precision=precision, exact=("encoder.0", "to_latent", "out"))
            made_fast(model.critic, device=place, precision=precision, exact=("encoder.0", "head"))
            self._model, self._upload = model.eval(), Upload(place)
            self.device, self.precision = str(place), precision
            self.segmentation = Segmentation(length=settings.samples / settings.rate, hop=settings.hop_seconds, shortest=SHORTEST / settings.rate)
            model.figures(torch.zeros(1, SHORTEST, device=place))

    def prepare(self, sample: Sample) -> FloatArray:
        """-> (T,) float32: one channel at the rate of the training clips."""
        rate = (self._model.settings.rate if self._model else sample.rate) or 1
        return long_enough(mono(sample, rate), rate)

    def stack(self, samples: Sequence[Sample], prepared: Sequence[FloatArray]) -> Batch:
        """Batch.data: Groups, arriving on the device."""
        if self._upload is None:
            raise RuntimeError("nothing to score with: load comes first")
        by_length: dict[int, list[int]] = {}
        for index, clip in enumerate(prepared):
            by_length.setdefault(len(clip), []).append(index)
        with watched(torch.device(self.device)):
            groups = [(places, self._upload.copy(torch.from_numpy(np.stack([prepared[index] for index in places])))) for places in by_length.values()]
        return Batch(samples=tuple(samples), data=groups)

    def score(self, batch: Batch, *, every: bool = False) -> Scores:
        """The chosen score of each clip, and its map over mel bands and frames; `every` names all of SCORES."""
        model = self._model
        assert model is not None
        chosen = model.settings.score
        groups: Groups = batch.data
        values = np.empty(len(batch.samples), np.float32)
        named: dict[str, FloatArray] = {name: np.empty_like(values) for name in SCORES} if every else {}
        maps: list[FloatArray] = [values] * len(values)
        axes: list[Axes] = [model.log_mel.axes(SHORTEST)] * len(values)
        with watched(torch.device(self.device)):
            for places, arriving in groups:
                waveforms = arriving.here()
                figures, drawn = model.figures(waveforms, SCORES if every else (chosen,))
                values[places] = figures[chosen]
                for name, of_all in named.items():
                    of_all[places] = figures[name]
                here = model.log_mel.axes(waveforms.shape[1])
                for place, one in zip(places, drawn if drawn is not None else (), strict=True):
                    maps[place], axes[place] = one, here
        return Scores(values=values, maps=maps, axes=axes, named=named)

    def _settings(self, rate: int, samples: int, decibels: Sequence[Tensor]) -> Settings:
        """Of clips of `samples` samples at `rate` Hz, whose spectrograms give the scale. Raises ConfigError where they are all silent."""
        low, high = min(float(one.min()) for one in decibels), max(float(one.max()) for one in decibels)
        if low == high:
            raise ConfigError("training: there is nothing to hear in any of the clips")
        options, preset, machine = self._options, self._preset, MACHINES[self._options.machine]
        return Settings(
            width=preset.width,
            norm=machine.norm,
            first_norm=machine.first_norm,
            rate=rate,
            samples=samples,
            low=low,
            high=high,
            scoring_stride=preset.scoring_stride,
            hop_seconds=options.hop_seconds or samples / rate,
            score=SCORES[0] if options.score == "auto" else options.score,
            map=options.map,
            smoothing=options.smoothing,
        )


def resolved(options: AeganAdOptions) -> Preset:
    """The preset, with what the options say instead."""
    return overridden(PRESETS[options.preset], options)


def clip_of(sample: Sample, rate: int) -> FloatArray:
    """(T,) at `rate`. Raises ConfigError for a sample of the training that cannot be brought to it, or is too short."""
    try:
        return long_enough(mono(sample, rate), rate)
    except BadSample as error:
        raise ConfigError(f"{sample.position}: {error}") from error


def long_enough(waveform: FloatArray, rate: int) -> FloatArray:
    """The same (T,). Raises BadSample where it does not fill a window."""
    if len(waveform) < SHORTEST:
        raise BadSample("unsupported", f"{len(waveform) / rate:.3g} s of sound; one window of the network is {SHORTEST / rate:.3g} s")
    return waveform


def choose_score(model: AeganAdModel, held_out: Sequence[FloatArray], seed: int, progress: Progress) -> dict[str, float]:
    """AUROC of each score: held-out normals, each (T,), against synthetic faults on them."""
    device = model.reference.device

    def damaged(clip: FloatArray, random: Generator) -> FloatArray:
        return fault(clip, model.settings.rate, random)

    def score(clip: FloatArray) -> dict[str, float]:
        named, _maps = model.figures(torch.from_numpy(clip)[None].to(device), maps=False)
        return {name: float(values[0]) for name, values in named.items()}

    return synthetic_auroc(held_out, damaged, score, seed, progress)


def facts(history: History) -> dict[str, Any]:
    """What the manifest tells of a training."""
    return {"epochs": history.epochs} | {name: value for name, value in asdict(history).items() if name != "seconds"}
