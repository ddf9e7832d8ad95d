"""What a trained model holds, saved and read; waveforms -> windows -> scores and maps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.aegan_ad.networks import SIDE, Critic, Generator
from detectors.aegan_ad.options import SCORES, AeganAdOptions, Map, Norm, Score
from detectors.aegan_ad.scores import Pool, Residuals, clip_scores, residuals, window_distances
from detectors.heatmap import smooth
from detectors.model_folder import read_network, save_network
from detectors.spectrogram import LogMel
from monitor.errors import ModelRefused
from monitor.types import FloatArray

HOP = 512
"""Samples from one frame of a spectrogram to the next."""
QUIET_BAND = 20.0
"""A band that is rebuilt more than so many times as well as the mean of all counts as such: one that is always silent has no usual error."""
MOST_WINDOWS = 64
"""That go through the networks at once: more would not be faster on a CPU, and take memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What scoring needs of the options, as resolved in training, and of the training clips.

    rate: Hz. samples: of a training clip. low, high: decibels that stand for -1 and 1.
    """

    width: int
    norm: Norm
    first_norm: bool
    rate: int
    samples: int
    low: float
    high: float
    scoring_stride: int
    hop_seconds: float
    score: Score
    map: Map
    smoothing: float


class AeganAdModel(nn.Module):
    """Generator, critic, and of the N training clips: their embeddings (N, 16 width), what reconstruction leaves of them (N, 256), the mean
    of their scaled spectra (128,), and how far their reconstruction is off in each band, in the mean (128,).
    """

    embeddings: Tensor
    left: Tensor
    reference: Tensor
    usual_error: Tensor
    pool: Pool
    """The training clips' embeddings, ready to compare with."""
    residuals: Residuals
    """What reconstruction leaves of them, too."""

    def __init__(self, settings: Settings, clips: int) -> None:
        super().__init__()
        self.settings = settings
        self.generator = Generator(settings.width, settings.norm, first_norm=settings.first_norm)
        self.critic = Critic(settings.width)
        self.register_buffer("embeddings", torch.zeros(clips, 16 * settings.width))
        self.register_buffer("left", torch.zeros(clips, 2 * SIDE))
        self.register_buffer("reference", torch.zeros(SIDE))
        self.register_buffer("usual_error", torch.ones(SIDE))
        self.log_mel = LogMel(settings.rate, hop=HOP, mels=SIDE)

    def scaled(self, decibels: Tensor) -> Tensor:
        """Those of the training clips lie in [-1, 1]; others are not clipped."""
        middle, reach = (self.settings.high + self.settings.low) / 2, (self.settings.high - self.settings.low) / 2
        return (decibels - middle) / reach

    @torch.inference_mode()
    def remember(self, clips: Sequence[Tensor]) -> None:
        """What scores and maps compare with, of the scaled spectra (128, T) of the training clips. Raises ValueError, as Pool does."""
        device = self.reference.device
        self.embeddings.copy_(torch.cat([self.embed(clip[None].to(device)) for clip in clips]))
        self.reference.copy_(torch.stack([clip.mean(dim=1) for clip in clips]).mean(dim=0))
        errors = []
        for index, clip in enumerate(clips):
            spectrum = clip[None].to(device)
            denoised, _ = self.rebuild(spectrum, again=False)
            self.left[index] = residuals(spectrum, denoised)[0]
            errors.append((denoised - spectrum).abs().mean(dim=(0, 2)))
        usual = torch.stack(errors).mean(dim=0)
        self.usual_error.copy_(usual.clamp_min(float(usual.mean()) / QUIET_BAND))
        self.gather()

    def gather(self) -> None:
        """Makes ready what clips are compared with. Raises ValueError where that cannot be."""
        self.pool = Pool(self.embeddings.cpu().numpy())
        self.residuals = Residuals(self.left.cpu().numpy())

    def embed(self, spectra: Tensor) -> Tensor:
        """(B, 128, T) -> (B, F): the critic's embedding of each clip, the mean over its windows."""
        found = [self.critic.embed(windows).view(len(spectra), len(at), -1) for at, windows in blocks(spectra, self.settings.scoring_stride)]
        return torch.cat(found, dim=1).mean(dim=1)

    def rebuild(self, spectra: Tensor, *, again: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, 128, T) -> the denoised spectra, the mean of all windows that show a column; and the distances of the n windows of each, (B n,).

        Those in z need a second look of the encoder: only where `again`.
        """
        denoised = torch.zeros_like(spectra)
        seen = torch.zeros(spectra.shape[2], device=spectra.device)
        parts: list[dict[str, Tensor]] = []
        for at, windows in blocks(spectra, self.settings.scoring_stride):
            z = self.generator.encode(windows)
            rebuilt = self.generator.decode(z)
            distances = window_distances(windows, rebuilt, z, self.generator.encode(rebuilt) if again else None)
            parts.append({name: values.view(len(spectra), len(at)) for name, values in distances.items()})
            columns = (at[:, None] + torch.arange(SIDE)).flatten().to(spectra.device)  # (k 128,)
            side_by_side = rebuilt.view(len(spectra), len(at), SIDE, SIDE).permute(0, 2, 1, 3).flatten(2)  # (B, 128, k 128)
            denoised.index_add_(2, columns, side_by_side)
            seen.index_add_(0, columns, torch.ones_like(columns, dtype=torch.float32))
        return denoised / seen, {name: torch.cat([part[name] for part in parts], dim=1).flatten() for name in parts[0]}

    @torch.inference_mode()
    def figures(self, waveforms: Tensor, wanted: Sequence[Score] = SCORES, *, maps: bool = True) -> tuple[dict[str, FloatArray], FloatArray | None]:
        """(B, T) -> score name -> (B,), and maps (B, 128, frames) from high to low, where asked."""
        settings = self.settings
        spectra = self.scaled(self.log_mel(waveforms))
        named: dict[str, FloatArray] = {}
        strange = None
        if maps or any(name.startswith(("G", "R")) for name in wanted):
            denoised, distances = self.rebuild(spectra, again=any(name.startswith("G_z") for name in wanted))
            count = len(distances["x_2"]) // len(spectra)
            usual = len(starts(self.log_mel.frames(settings.samples), settings.scoring_stride))
            of_clips = clip_scores(distances, [count] * len(spectra), usual)
            named |= {name: of_clips[name].cpu().numpy() for name in wanted if name.startswith("G")}
            if "R_maha" in wanted:
                named["R_maha"] = self.residuals.scores(residuals(spectra, denoised).cpu().numpy())
            if maps:
                strange = smooth(self.strange(spectra, denoised), settings.smoothing).flip(1).cpu().numpy()
        if any(name.startswith("D") for name in wanted):
            named |= self.pool.scores(self.embed(spectra).cpu().numpy(), wanted)
        return {name: named[name] for name in wanted}, strange

    def strange(self, spectra: Tensor, denoised: Tensor) -> Tensor:
        """Both (B, 128, T) -> a map of that shape, low pitch first: how many times the usual error of its band a place is off; or, as
        published, how far what was reconstructed lies from the training clips' mean, both on a scale from 0 to 1.

        Frames that reach beyond the clip see zeros there, an edge that nobody can rebuild: they repeat the nearest one that does not.
        """
        if self.settings.map == "reference":
            return (denoised - self.reference[:, None]).abs() / 2
        beyond = self.log_mel.n_fft // 2 // HOP
        inside = (denoised - spectra)[:, :, beyond : spectra.shape[2] - beyond].abs() / self.usual_error[:, None]
        return functional.pad(inside, (beyond, beyond), mode="replicate")


def starts(frames: int, stride: int) -> Tensor:
    """First frames of the windows of a clip: every `stride`, and one that ends where the clip ends."""
    last = frames - SIDE
    return torch.tensor([*range(0, last, stride), last])


def blocks(spectra: Tensor, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, 128, T) -> first frames (k,) and windows (B k, 1, 128, 128), some at a time: a long clip has thousands."""
    every = spectra.unfold(2, SIDE, 1)  # (B, 128, T - 127, 128), a view
    for at in torch.split(starts(spectra.shape[2], stride), max(1, MOST_WINDOWS // len(spectra))):
        yield at, every[:, :, at].permute(0, 2, 1, 3).reshape(-1, 1, SIDE, SIDE)


def save_model(folder: Path, model: AeganAdModel) -> None:
    """weights.safetensors and detector.json."""
    save_network(folder, "aegan_ad", {"clips": len(model.embeddings)} | asdict(model.settings), model)


def read_model(folder: Path) -> AeganAdModel:
    """What `save_model` wrote. Raises ModelRefused for anything else, and for what clips cannot be compared with."""
    _, model = read_network(folder, "aegan_ad", checked, lambda settings_and_clips: AeganAdModel(*settings_and_clips))
    try:
        model.gather()
    except (ValueError, RuntimeError) as error:
        raise ModelRefused(f"{folder} holds no model of aegan_ad: {error}") from error
    return model


def checked(saved: Mapping[str, Any]) -> tuple[Settings, int]:
    """Settings as they were saved, and the number of clips. Raises KeyError, TypeError or ValueError where no option could have led to them."""
    own = {name: value for name, value in saved.items() if name != "clips"}
    settings = Settings(**own)
    AeganAdOptions.model_validate({name: value for name, value in own.items() if name in AeganAdOptions.model_fields})
    return settings, saved["clips"]
