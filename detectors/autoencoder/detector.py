"""The autoencoder family as a detector: how badly an image is reconstructed is how strange it is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

from detectors.autoencoder.networks import AutoencoderNetwork
from detectors.autoencoder.options import PRESETS, AutoencoderOptions, Map, Preset, Score, Variant
from detectors.autoencoder.scores import dissimilarity, pixel_l1, top_mean
from detectors.devices import choose_device, choose_precision, has_bf16, watched
from detectors.heatmap import AtSentSize, smooth, with_border, without_border
from detectors.images import Pixels, as_unit, read_square, square_rgb, stacked
from detectors.inference import Arriving, Upload, made_fast
from detectors.model_folder import read_network, save_network
from detectors.presets import overridden
from detectors.synthesis import defect, synthetic_auroc
from detectors.textures import procedural
from detectors.training import History, Recipe, count, seeded, train
from monitor.errors import ConfigError
from monitor.ports import Progress
from monitor.types import Batch, FloatArray, Sample, Scores

SCORES: tuple[Score, ...] = ("l1_topk", "l1", "ssim")  # of equal ones, auto takes the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What scoring needs of the options, as resolved in training; saved beside the weights."""

    variant: Variant
    resolution: int
    score: Score
    map: Map
    border: int
    smoothing: float


class Autoencoder:
    """`Autoencoder(options)`; see monitor.ports.Detector."""

    modality = "image"
    segmentation = None

    def __init__(self, options: AutoencoderOptions) -> None:
        self._options = options
        self._preset = resolved(options)
        self._settings: Settings | None = None
        self._network: AutoencoderNetwork | None = None
        self._upload: Upload | None = None
        self.device = ""
        self.precision = ""

    def fit(
        self, training: Sequence[Sample], held_out: Sequence[Sample], folder: Path, *, seed: int, device: str, progress: Progress
    ) -> Mapping[str, Any]:
        """The two sequences are held prepared: resolution x resolution x 3 bytes each (of 16-bit images: four times that)."""
        options, preset, place = self._options, self._preset, choose_device(device)
        if not training or not held_out:
            raise ConfigError(f"training: {len(training)} training and {len(held_out)} held-out images: expected at least one of each")
        learn = torch.from_numpy(read_square(training, preset.resolution, "prepare training", progress)).permute(0, 3, 1, 2)
        spare = torch.from_numpy(read_square(held_out, preset.resolution, "prepare held-out", progress)).permute(0, 3, 1, 2)
        with seeded(torch.device("cpu"), seed, "network"):
            network = AutoencoderNetwork(options.variant)
        if options.epochs is None:
            longer = stretched(preset, len(training))
            preset = replace(longer, patience=options.patience or longer.patience)
        recipe = Recipe(
            epochs=preset.epochs,
            batch_size=preset.batch_size,
            learning_rate=preset.learning_rate,
            weight_decay=preset.weight_decay,
            plateau=preset.plateau,
            patience=preset.patience,
            clip=preset.clip,
            mixed_precision=preset.mixed_precision,
        )
        history = train(network, reconstruction_loss, learn, spare, recipe=recipe, folder=folder, seed=seed, device=place, progress=progress)
        with watched(place):
            figures = choose_score(network, spare.to(place), preset.border, seed, progress)
        best = max(SCORES, key=lambda score: figures[score])
        self._settings = Settings(
            variant=options.variant,
            resolution=preset.resolution,
            score=best if options.score == "auto" else options.score,
            map=options.map,
            border=preset.border,
            smoothing=options.smoothing,
        )
        self._network = network
        return {
            "options": asdict(preset) | asdict(self._settings),
            "synthetic_auroc": figures,
            **facts(history),
            "parameters": count(network),
            "training_images": len(training),
            "held_out_images": len(held_out),
            "seed": seed,
            "device": str(place),
            "mixed_precision": preset.mixed_precision and has_bf16(place),
            "seconds": history.seconds,
        }

    def save(self, folder: Path) -> None:
        """weights.safetensors and detector.json, after fit."""
        if self._network is None or self._settings is None:
            raise RuntimeError("nothing to save: fit comes first")
        save_network(folder, "autoencoder", asdict(self._settings), self._network)

    def load(self, folder: Path, *, device: str, precision: str) -> None:
        """Raises ModelRefused where `folder` holds no model of this kind."""
        place = choose_device(device)
        precision = choose_precision(precision, place)
        settings, network = read_model(folder)
        with watched(place):
            made_fast(network, device=place, precision=precision, exact=("enc1.0", "out"))
            upload = Upload(place)
            self._network, self._settings, self._upload = network, settings, upload
            self.device, self.precision = str(place), precision
            blank = np.zeros((1, settings.resolution, settings.resolution, 3), np.uint8)
            self._figures(upload.send(blank), every=False)

    def prepare(self, sample: Sample) -> Pixels:
        """-> (S, S, 3) uint8, or float32 in [0, 1] of a 16-bit image."""
        return square_rgb(sample, self._settings.resolution if self._settings else self._preset.resolution)

    def stack(self, samples: Sequence[Sample], prepared: Sequence[Pixels]) -> Batch:
        """Batch.data: (B, 3, S, S), arriving on the device."""
        if self._upload is None:
            raise RuntimeError("nothing to score with: load comes first")
        with watched(torch.device(self.device)):
            return Batch(samples=tuple(samples), data=self._upload.send(stacked(list(prepared))))

    def score(self, batch: Batch, *, every: bool = False) -> Scores:
        """Scores of border-free areas, and maps; `every` names l1, l1_topk and ssim."""
        assert self._settings is not None
        with watched(torch.device(self.device)):
            named, maps = self._figures(batch.data, every=every)
        sizes = [sample.image.shape[:2] for sample in batch.samples if sample.image is not None]
        return Scores(values=named[self._settings.score], maps=AtSentSize(maps, sizes), named=named if every else {})

    @torch.inference_mode()
    def _figures(self, arriving: Arriving, *, every: bool) -> tuple[dict[str, FloatArray], FloatArray]:
        """(score name -> (B,), maps (B, S, S)): the chosen score, or all of them."""
        network, settings = self._network, self._settings
        assert network is not None
        assert settings is not None
        images = as_unit(arriving.here())
        reconstructions = network(images)
        wanted = SCORES if every else (settings.score,)
        named = scores(images, reconstructions, wanted, settings.border)
        strange = pixel_l1(images, reconstructions) if settings.map == "l1" else dissimilarity(images, reconstructions)
        maps = with_border(smooth(without_border(strange, settings.border), settings.smoothing), settings.border)
        return {name: value.cpu().numpy() for name, value in named.items()}, maps.cpu().numpy()


def resolved(options: AutoencoderOptions) -> Preset:
    """The preset, with what the options say instead. Raises ConfigError where they contradict each other."""
    preset = overridden(PRESETS[options.preset, options.variant], options)
    if preset.resolution - 2 * preset.border < 16:
        raise ConfigError(f"border: {preset.border} leaves nothing of {preset.resolution} pixels: expected at most {preset.resolution // 2 - 8}")
    return preset


def stretched(preset: Preset, images: int) -> Preset:
    """More and equally more patient epochs where one of `images` has too few steps for the preset's `steps`."""
    per_epoch = max(1, images // preset.batch_size)
    longer = max(1.0, preset.steps / (per_epoch * preset.epochs))
    return replace(
        preset,
        epochs=math.ceil(preset.epochs * longer),
        plateau=math.ceil(preset.plateau * longer),
        patience=math.ceil(preset.patience * longer),
    )


def reconstruction_loss(network: nn.Module, batch: Tensor) -> Tensor:
    """Mean absolute error over batch, colours and pixels."""
    images = as_unit(batch)
    loss: Tensor = (network(images) - images).abs().mean()
    return loss


def scores(images: Tensor, reconstructions: Tensor, names: Sequence[Score], border: int) -> dict[str, Tensor]:
    """Score name -> (B,) fp32: mean L1, mean of the top 1 % of L1, mean of 1 - SSIM, each inside the border."""
    errors = without_border(pixel_l1(images, reconstructions), border)
    named: dict[str, Tensor] = {}
    for name in names:
        if name == "l1":
            named[name] = errors.mean(dim=(1, 2))
        elif name == "l1_topk":
            named[name] = top_mean(errors)
        else:
            named[name] = without_border(dissimilarity(images, reconstructions), border).mean(dim=(1, 2))
    return named


def choose_score(network: nn.Module, held_out: Tensor, border: int, seed: int, progress: Progress) -> dict[str, float]:
    """Image AUROC of each score: held-out normals (N, 3, S, S) against synthetic anomalies on them."""
    textures = procedural(*held_out.shape[2:])

    def damaged(image: Pixels, random: Generator) -> Pixels:
        changed, _ = defect(image, textures, random)
        return changed

    @torch.inference_mode()
    def score(image: Pixels) -> dict[str, float]:
        pixels = as_unit(torch.from_numpy(image).permute(2, 0, 1)[None].to(held_out.device))
        return {name: float(value) for name, value in scores(pixels, network(pixels), SCORES, border).items()}

    return synthetic_auroc(list(held_out.permute(0, 2, 3, 1).cpu().numpy()), damaged, score, seed, progress)


def facts(history: History) -> dict[str, Any]:
    """What the manifest tells of a training."""
    return {
        "epochs": history.epochs,
        "best_epoch": history.best,
        "train_loss": history.train_loss,
        "held_out_loss": history.held_out_loss,
    }


def read_model(folder: Path) -> tuple[Settings, AutoencoderNetwork]:
    """What `save` wrote. Raises ModelRefused for anything else."""
    return read_network(folder, "autoencoder", checked, lambda settings: AutoencoderNetwork(settings.variant))


def checked(saved: Mapping[str, Any]) -> Settings:
    """As they were saved. Raises TypeError or ValueError where no option could have led to them."""
    settings = Settings(**saved)
    AutoencoderOptions.model_validate(saved)
    return settings
