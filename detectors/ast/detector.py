"""AST as a detector: how far the student is from the teacher is how strange a place is."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detectors.ast.depth import UNSHUFFLE, Scan
from detectors.ast.features import FeatureFile, View, features, fill, reserved, view
from detectors.ast.model import SCORES, Pair, Settings, named_scores, read_model, save_model
from detectors.ast.networks import Subnetwork
from detectors.ast.options import PRESETS, AstOptions, Preset
from detectors.ast.synthesis import damaged
from detectors.backbones import Backbone, load_backbone
from detectors.devices import choose_device, choose_precision, has_bf16, watched
from detectors.heatmap import AtSentSize, enlarged, smooth
from detectors.images import stacked
from detectors.inference import Arriving, Upload, made_fast
from detectors.presets import overridden
from detectors.synthesis import synthetic_auroc
from detectors.training import History, Loss, Recipe, count, seeded, train
from monitor.errors import ConfigError, ModelRefused
from monitor.ports import Progress
from monitor.types import Batch, Sample, Scores

WEIGHT_DECAY = 1e-5
LEVEL = 0.01
"""Scores whose synthetic AUROC is so near the best count as equal; of equal ones, auto takes the one over the most positions."""
MAP_SCALE = 8
"""Maps are enlarged so many times with cubics, as published, before they are brought to the size that was sent."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """A batch on its way to the device: pixels (B, 3, S, S), depth (B, 1, 8g, 8g) and mask (B, 1, g, g); None where the mode has none."""

    pixels: Arriving | None
    depth: Arriving | None
    mask: Arriving | None


class Ast:
    """`Ast(options)`; see monitor.ports.Detector."""

    segmentation = None

    def __init__(self, options: AstOptions) -> None:
        self.modality = "image" if options.mode == "rgb" else "rgbd"
        self._options = options
        self._preset = resolved(options)
        self._settings: Settings | None = None
        self._pair: Pair | None = None
        self._backbone: Backbone | None = None
        self._upload: Upload | None = None
        self.device = ""
        self.precision = ""

    def fit(
        self, training: Sequence[Sample], held_out: Sequence[Sample], folder: Path, *, seed: int, device: str, progress: Progress
    ) -> Mapping[str, Any]:
        """Features are computed in fp32, once, and lie in `folder` while it trains. No augmentation."""
        options, preset, place = self._options, self._preset, choose_device(device)
        if not training or not held_out:
            raise ConfigError(f"training: {len(training)} training and {len(held_out)} held-out samples: expected at least one of each")
        backbone = None if options.mode == "depth" else load_backbone(preset.backbone, preset.blocks, weights=options.backbone_weights)
        settings = settings_of(options, preset, backbone)
        with watched(place):
            if backbone is not None:
                backbone.to(place)
            self._backbone, self._settings, self._upload = backbone, settings, Upload(place)
            files = reserved(
                folder,
                {"training": len(training), "held_out": len(held_out)},
                channels=settings.channels + (settings.mode != "rgb"),
                grid=settings.grid,
                most=options.feature_cache,
                decided_by=asdict(settings),
            )
            learning, sparing = files["training"], files["held_out"]
            self._fill(learning, training, "features", progress)
            self._fill(sparing, held_out, "features of held-out", progress)
            learn, spare = learning.tensor(), sparing.tensor()
            with seeded(torch.device("cpu"), seed, "networks"):
                pair = Pair(settings)
            if preset.standardise:
                pair.standardise_by(*parted(learn, settings))
            pair.to(place)
        self._pair = pair.eval()

        def learnt(phase: str, network: nn.Module, loss: Loss, epochs: int) -> History:
            where, recipe = folder / phase, self._recipe(epochs)
            return train(network, loss, learn, spare, recipe=recipe, folder=where, seed=seed, device=place, progress=progress, phase=phase)

        taught = learnt("teacher", pair.teacher, lambda _, batch: pair.likelihood(*parted(batch, settings)).mean(), preset.teacher_epochs)
        repeated = learnt("student", pair.student, lambda _, batch: pair.distances(*parted(batch, settings))[0].mean(), preset.student_epochs)
        with watched(place):
            figures = self._score_synthetic(held_out, seed, progress)
        best = next(name for name in SCORES if figures[name] >= max(figures.values()) - LEVEL)
        self._settings = replace(settings, score=best if options.score == "auto" else options.score)
        return {
            "options": asdict(preset) | asdict(self._settings),
            "synthetic_auroc": figures,
            "epochs": taught.epochs + repeated.epochs,
            "seconds": learning.seconds + sparing.seconds + taught.seconds + repeated.seconds,
            "teacher": facts(taught),
            "student": facts(repeated),
            "parameters": {"teacher": count(pair.teacher), "student": count(pair.student), "backbone": 0 if backbone is None else count(backbone)},
            "training_images": len(training),
            "held_out_images": len(held_out),
            "seed": seed,
            "device": str(place),
            "mixed_precision": preset.mixed_precision and has_bf16(place),
        }

    def save(self, folder: Path) -> None:
        """weights.safetensors and detector.json, after fit."""
        if self._pair is None or self._settings is None:
            raise RuntimeError("nothing to save: fit comes first")
        save_model(folder, self._settings, self._pair)

    def load(self, folder: Path, *, device: str, precision: str) -> None:
        """Raises ModelRefused where `folder` holds no model of this kind, or the backbone found here is another than in training."""
        place = choose_device(device)
        precision = choose_precision(precision, place)
        settings, pair = read_model(folder)
        weights = self._options.backbone_weights  # as written where it was trained: this machine may have them elsewhere
        if weights is not None and not os.path.isfile(weights):
            weights = None
        backbone = None if settings.mode == "depth" else load_backbone(settings.backbone, settings.blocks, weights=weights)
        if backbone is not None and backbone.sha256 != settings.backbone_sha256:
            raise ModelRefused(f"{folder}: trained on {settings.backbone} of sha256 {settings.backbone_sha256}, found {backbone.sha256}")
        with watched(place):
            pair.to(place)  # what is no network stays fp32: mean, deviation, encoding
            for network in (pair.teacher, pair.student):
                made_fast(network, device=place, precision=precision, exact=last_layers(network))
            if backbone is not None:
                # fp32 in every precision: bf16 moves standardised features by 0.06 to 0.15 deviations, which the flow takes for strange
                made_fast(backbone, device=place, precision="fp32", exact=())
            self._pair, self._settings, self._backbone, self._upload = pair, settings, backbone, Upload(place)
            self.modality = "image" if settings.mode == "rgb" else "rgbd"
            self.device, self.precision = str(place), precision
            self._distances(self._send([blank(settings)]))

    def prepare(self, sample: Sample) -> View:
        """-> pixels (S, S, 3) uint8, or float32 in [0, 1] of a 16-bit image; relief (8g, 8g) and mask (g, g) of its depth."""
        settings = self._settings
        if settings is None:
            return view(sample, self._options.mode, self._preset.resolution, self._preset.resolution // self._preset.stride)
        return view(sample, settings.mode, settings.resolution, settings.grid)

    def stack(self, samples: Sequence[Sample], prepared: Sequence[View]) -> Batch:
        """Batch.data: Inputs, arriving on the device."""
        if self._upload is None:
            raise RuntimeError("nothing to score with: load comes first")
        with watched(torch.device(self.device)):
            return Batch(samples=tuple(samples), data=self._send(prepared))

    @torch.inference_mode()
    def score(self, batch: Batch, *, every: bool = False) -> Scores:
        """`every` names all scores, and those of the teacher alone (its likelihood), with which the method competes."""
        settings = self._settings
        assert settings is not None
        with watched(torch.device(self.device)):
            distances, likelihoods = self._distances(batch.data)
            named = named_scores(distances, SCORES if every else (settings.score,))
            if every:
                named |= {f"teacher_{name}": value for name, value in named_scores(likelihoods, ("mean", "max")).items()}
            maps = enlarged(distances, MAP_SCALE).cpu().numpy()
            values = {name: value.cpu().numpy() for name, value in named.items()}
        return Scores(values=values[settings.score], maps=AtSentSize(maps, [size(one) for one in batch.samples]), named=values if every else {})

    def _send(self, views: Sequence[View]) -> Inputs:
        assert self._upload is not None
        scans = [one.scan for one in views if one.scan is not None]
        pixels = [one.pixels for one in views if one.pixels is not None]
        return Inputs(
            pixels=self._upload.send(stacked(pixels)) if pixels else None,
            depth=self._upload.send(np.stack([one.depth[..., None] for one in scans])) if scans else None,
            mask=self._upload.send(np.stack([one.mask[..., None] for one in scans])) if scans else None,
        )

    def _inputs(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """-> features (B, C, g, g), mask (B, 1, g, g): ones where only the image counts."""
        assert self._settings is not None
        pixels = None if inputs.pixels is None else inputs.pixels.here()
        depth = None if inputs.depth is None else inputs.depth.here()
        x = features(self._backbone, self._settings.grid, pixels, depth)
        return x, torch.ones_like(x[:, :1]) if inputs.mask is None else inputs.mask.here()

    def _distances(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Smoothed distances and the teacher's losses, (B, g, g) each."""
        assert self._pair is not None
        assert self._settings is not None
        with torch.inference_mode():
            distances, likelihoods = self._pair.distances(*self._inputs(inputs))
            return smooth(distances, self._settings.smoothing), likelihoods

    def _fill(self, file: FeatureFile, samples: Sequence[Sample], phase: str, progress: Progress) -> None:
        """With features (N, C, g, g); with depth (N, C + 1, g, g), whose last channel is the mask."""
        settings = self._settings
        assert settings is not None

        @torch.inference_mode()
        def compute(views: Sequence[View]) -> Tensor:
            x, mask = self._inputs(self._send(views))
            return x if settings.mode == "rgb" else torch.cat((x, mask), dim=1)

        fill(file, samples, seen=self.prepare, compute=compute, phase=phase, progress=progress)

    def _recipe(self, epochs: int) -> Recipe:
        preset = self._preset
        return Recipe(
            epochs=epochs,
            batch_size=preset.batch_size,
            learning_rate=preset.learning_rate,
            weight_decay=WEIGHT_DECAY,
            plateau=None,
            patience=None,
            clip=preset.clip,
            mixed_precision=preset.mixed_precision,
            cosine=preset.cosine,
            steps=preset.steps,
        )

    def _score_synthetic(self, held_out: Sequence[Sample], seed: int, progress: Progress) -> dict[str, float]:
        """Image AUROC of each score on synthetic defects drawn on held-out normals."""
        normals = [self.prepare(held_out[index]) for index in range(len(held_out))]

        def score(one: View) -> dict[str, float]:
            distances, _ = self._distances(self._send([one]))
            return {name: float(value) for name, value in named_scores(distances, SCORES).items()}

        return synthetic_auroc(normals, damaged, score, seed, progress)


def resolved(options: AstOptions) -> Preset:
    """The preset, with what the options say instead."""
    return overridden(PRESETS[options.preset], options)


def settings_of(options: AstOptions, preset: Preset, backbone: Backbone | None) -> Settings:
    return Settings(
        mode=options.mode,
        backbone=preset.backbone,
        blocks=preset.blocks,
        backbone_sha256="" if backbone is None else backbone.sha256,
        resolution=preset.resolution,
        grid=preset.resolution // preset.stride,
        positional_encoding=options.positional_encoding,
        student=options.student,
        teacher_width=preset.teacher_width,
        student_width=preset.student_width,
        clamp=preset.clamp,
        score="mean" if options.score == "auto" else options.score,
        smoothing=options.smoothing,
    )


def parted(batch: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Rows of the feature file -> features (B, C, g, g), mask (B, 1, g, g)."""
    if settings.mode == "rgb":
        return batch, torch.ones_like(batch[:, :1])
    return batch[:, :-1], batch[:, -1:]


def last_layers(network: nn.Module) -> list[str]:
    """Names of the layers that put out what is compared; the factor of a flow's is folded into them."""
    for module in network.modules():
        if isinstance(module, Subnetwork):
            module.fold_gamma()
    return [name for name, _ in network.named_modules() if name.split(".")[-1] == "out"]


def blank(settings: Settings) -> View:
    """A view to warm up with."""
    side, grid = settings.resolution, settings.grid
    return View(
        pixels=None if settings.mode == "depth" else np.zeros((side, side, 3), np.uint8),
        scan=None if settings.mode == "rgb" else Scan(np.zeros((UNSHUFFLE * grid,) * 2, np.float32), np.ones((grid, grid), np.float32)),
    )


def size(sample: Sample) -> tuple[int, int]:
    """Height and width of what was sent."""
    sensor = sample.depth if sample.image is None else sample.image
    assert sensor is not None
    return sensor.shape[0], sensor.shape[1]


def facts(history: History) -> dict[str, Any]:
    """What the manifest tells of one network's training."""
    return asdict(history) | {"epochs": history.epochs}
