"""RDNA as a detector: where a network that knows synthetic anomalies sees one is strange."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from detectors.devices import choose_device, choose_precision, has_bf16, watched
from detectors.heatmap import AtSentSize, smooth
from detectors.images import Pixels, as_unit, read_square, square_rgb, stacked
from detectors.inference import Upload, made_fast
from detectors.model_folder import read_network, save_network
from detectors.presets import overridden
from detectors.rdna.model import EXACT, RdnaModel, Settings, checked, named_scores
from detectors.rdna.networks import SIDES, initialised
from detectors.rdna.options import PRESETS, SCORES, Preset, RdnaOptions
from detectors.rdna.samples import Samples
from detectors.rdna.training import History, Recipe, train
from detectors.synthesis import defect, synthetic_auroc
from detectors.textures import from_folder, procedural
from detectors.training import count, seeded
from monitor.errors import ConfigError
from monitor.ports import Progress
from monitor.types import Batch, Sample, Scores


class Rdna:
    """`Rdna(options)`; see monitor.ports.Detector."""

    modality = "image"
    segmentation = None

    def __init__(self, options: RdnaOptions) -> None:
        self._options = options
        self._preset = resolved(options)
        self._model: RdnaModel | None = None
        self._upload: Upload | None = None
        self.device = ""
        self.precision = ""

    def fit(
        self, training: Sequence[Sample], held_out: Sequence[Sample], folder: Path, *, seed: int, device: str, progress: Progress
    ) -> Mapping[str, Any]:
        """Images and textures are held: resolution x resolution x 3 bytes each (16-bit images: four times that)."""
        options, preset, place = self._options, self._preset, choose_device(device)
        if not training or not held_out:
            raise ConfigError(f"training: {len(training)} training and {len(held_out)} held-out images: expected at least one of each")
        side = preset.resolution
        source = options.anomaly_source
        try:
            textures = procedural(side, side) if source is None else from_folder(source, side, seed)
        except ConfigError as error:
            raise ConfigError(f"anomaly_source: {error}") from error
        learn = read_square(training, side, "prepare training", progress)
        spare = read_square(held_out, side, "prepare held-out", progress)
        with seeded(torch.device("cpu"), seed, "networks"):
            model = RdnaModel(self._settings())
            initialised(model)
        recipe = Recipe(
            epochs=preset.epochs,
            steps=preset.steps,
            batch_size=preset.batch_size,
            learning_rate=preset.learning_rate,
            adversarial_reconstruction=options.adversarial_reconstruction,
            adversarial_segmentation=options.adversarial_segmentation,
            weights=options.weights,
            mixed_precision=preset.mixed_precision,
        )
        with watched(place):
            upload = Upload(place)
            sets = Samples(learn, textures, upload, seed), Samples(spare, textures, upload, seed)
            history = train(model, *sets, recipe=recipe, folder=folder, seed=seed, device=place, progress=progress)
            figures = choose_score(model, sets[1], seed, progress)
        if options.score == "auto":
            model.settings = replace(model.settings, score=max(SCORES, key=lambda name: figures[name]))
        self._model = model
        return {
            "options": asdict(preset) | asdict(recipe) | asdict(model.settings) | {"anomaly_source": None if source is None else str(source)},
            "synthetic_auroc": figures,
            **facts(history),
            "parameters": {name: count(network) for name, network in model.items()},
            "training_images": len(training),
            "held_out_images": len(held_out),
            "seed": seed,
            "device": str(place),
            "mixed_precision": preset.mixed_precision and has_bf16(place),
            "seconds": history.seconds,
        }

    def save(self, folder: Path) -> None:
        """weights.safetensors and detector.json, after fit."""
        if self._model is None:
            raise RuntimeError("nothing to save: fit comes first")
        save_network(folder, "rdna", asdict(self._model.settings), self._model)

    def load(self, folder: Path, *, device: str, precision: str) -> None:
        """Raises ModelRefused where `folder` holds no model of this kind."""
        place = choose_device(device)
        precision = choose_precision(precision, place)
        _, model = read_network(folder, "rdna", checked, RdnaModel)
        with watched(place):
            made_fast(model, device=place, precision=precision, exact=EXACT)
            self._model, self._upload = model, Upload(place)
            self.device, self.precision = str(place), precision
            side = model.settings.resolution
            model.maps(as_unit(self._upload.send(np.zeros((1, side, side, 3), np.uint8)).here()))

    def prepare(self, sample: Sample) -> Pixels:
        """-> (S, S, 3) uint8, or float32 in [0, 1] of a 16-bit image."""
        return square_rgb(sample, self._model.settings.resolution if self._model else self._preset.resolution)

    def stack(self, samples: Sequence[Sample], prepared: Sequence[Pixels]) -> Batch:
        """Batch.data: (B, 3, S, S), arriving on the device."""
        if self._upload is None:
            raise RuntimeError("nothing to score with: load comes first")
        with watched(torch.device(self.device)):
            return Batch(samples=tuple(samples), data=self._upload.send(stacked(list(prepared))))

    def score(self, batch: Batch, *, every: bool = False) -> Scores:
        """The chosen score, and the probability of an anomaly at each pixel as map; `every` names all of SCORES."""
        assert self._model is not None
        settings = self._model.settings
        with watched(torch.device(self.device)):
            maps = self._model.maps(as_unit(batch.data.here()))
            found = named_scores(maps, settings.score_window, SCORES if every else (settings.score,))
            named = {name: value.cpu().numpy() for name, value in found.items()}
            drawn = smooth(maps, settings.smoothing).cpu().numpy()
        sizes = [sample.image.shape[:2] for sample in batch.samples if sample.image is not None]
        return Scores(values=named[settings.score], maps=AtSentSize(drawn, sizes), named=named if every else {})

    def _settings(self) -> Settings:
        options, preset = self._options, self._preset
        return Settings(
            width=preset.width,
            resolution=preset.resolution,
            score=SCORES[0] if options.score == "auto" else options.score,
            score_window=preset.score_window,
            smoothing=options.smoothing,
        )


def resolved(options: RdnaOptions) -> Preset:
    """The preset, with what the options say instead. Raises ConfigError where they contradict each other."""
    preset = overridden(PRESETS[options.preset], options)
    if preset.batch_size == 1 and preset.resolution == SIDES:
        raise ConfigError(f"batch_size: 1 leaves batch norm one value at {SIDES} pixels: expected at least 2, or a higher resolution")
    if preset.score_window > preset.resolution:
        raise ConfigError(f"score_window: {preset.score_window} does not fit into {preset.resolution} pixels: expected at most as many")
    return preset


def choose_score(model: RdnaModel, held_out: Samples, seed: int, progress: Progress) -> dict[str, float]:
    """Image AUROC of each score: held-out normals (N, S, S, 3) against synthetic anomalies on them."""

    def damaged(image: Pixels, random: Generator) -> Pixels:
        changed, _ = defect(image, held_out.textures, random)
        return changed

    def score(image: Pixels) -> dict[str, float]:
        maps = model.maps(as_unit(held_out.upload.send(image[None]).here()))
        return {name: float(value) for name, value in named_scores(maps, model.settings.score_window).items()}

    return synthetic_auroc(list(held_out.images), damaged, score, seed, progress)


def facts(history: History) -> dict[str, Any]:
    """What the manifest tells of a training."""
    return {"epochs": history.epochs} | {name: value for name, value in asdict(history).items() if name != "seconds"}
