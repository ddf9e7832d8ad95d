"""How RDNA is trained: both networks on synthetic anomalies, each against a discriminator whose gradient reaches it.

In the released code the gradients of the adversarial terms are zeroed before they are used; here a step is
1. each discriminator learns to tell what the networks have drawn (detached) from what is real;
2. both networks learn to reconstruct, to segment, and to be taken for real by the discriminators as they are now.
Source: specification sections 1, 4 and 5.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detectors.devices import has_bf16, watched
from detectors.rdna.losses import deception, discrimination, focal, similarity
from detectors.rdna.model import RdnaModel, anomalous
from detectors.rdna.networks import Discriminator, initialised
from detectors.rdna.options import Weights
from detectors.rdna.samples import Samples
from detectors.resuming import Checkpoint, identity
from detectors.training import CHECKPOINT, copied, seeded
from monitor.errors import ConfigError
from monitor.ports import Progress

MILESTONES, FALL = (0.8, 0.9), 0.2
HELD_OUT_SAMPLES = 64
"""By which the held-out loss is measured, at least."""
CHECKPOINT_EVERY = 20.0
"""Seconds from one checkpoint to the next at least, but for the last: at full width one is 1.2 GB, and an epoch may take seconds."""
TEXTURES_COMPARED = 16
"""Of the texture source, when a checkpoint is found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Adam for every network, at `learning_rate`, which is multiplied by FALL after each of MILESTONES of all steps.

    An epoch is one pass over the images, or as many and parts of one as make `steps`. `weights` of the last epoch are kept, or
    those with the lowest held-out loss. A weight of 0: no such discriminator.
    """

    epochs: int
    steps: int
    batch_size: int
    learning_rate: float
    adversarial_reconstruction: float
    adversarial_segmentation: float
    weights: Weights
    mixed_precision: bool

    def rate(self, done: float) -> float:
        """After the share `done` of all steps. The original counts epochs, so that for 4 of them none of its milestones comes."""
        return self.learning_rate * FALL ** sum(done >= share for share in MILESTONES)


@dataclass(slots=True)
class History:
    """How a training went, epoch by epoch: means over its steps. `best` is the epoch (from 1) with the lowest held-out loss.

    loss: without the adversarial terms. image_discriminator, mask_discriminator: their losses, log 2 where they are at a loss, 0 where
    they tell everything; empty where there is none.
    """

    loss: list[float] = field(default_factory=list)
    image_discriminator: list[float] = field(default_factory=list)
    mask_discriminator: list[float] = field(default_factory=list)
    held_out_loss: list[float] = field(default_factory=list)
    best: int = 0
    seconds: float = 0.0

    @property
    def epochs(self) -> int:
        return len(self.loss)


class Adversary:
    """A discriminator beside the network whose drawings it judges."""

    def __init__(self, discriminator: Discriminator, weight: float, learning_rate: float) -> None:
        self.discriminator, self.weight = discriminator, weight
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr=learning_rate)

    def loss(self, drawn: Tensor, real: Tensor) -> Tensor:
        """Its own; drawn and real in passes of their own, so that batch norm sees either alone."""
        return discrimination(self.discriminator(drawn.detach()), self.discriminator(real))

    def term(self, drawn: Tensor) -> Tensor:
        """What is added to the loss of the network that drew; its gradient passes the discriminator and leaves it as it is."""
        with frozen(self.discriminator):
            return self.weight * deception(self.discriminator(drawn))


def train(
    networks: RdnaModel,
    training: Samples,
    held_out: Samples,
    *,
    recipe: Recipe,
    folder: Path,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> History:
    """Trains `networks`, "reconstruction" and "segmentation", in place on `device`; goes on from the checkpoint in `folder`.

    Raises ConfigError when `folder` holds a checkpoint of another training, or when a loss is not finite.
    """
    with watched(device):
        run = Run(networks, recipe, seed=seed, device=device)
        random = np.random.default_rng(seed)
        textures = np.stack([training.textures(random) for _ in range(TEXTURES_COMPARED)])
        data = [torch.from_numpy(array) for array in (training.images, held_out.images, textures)]
        same = identity([asdict(recipe), seed], *networks.state_dict().values(), *data)
        checkpoint = Checkpoint(
            folder / CHECKPOINT,
            same,
            {"networks": networks} | {name: one.discriminator for name, one in run.adversaries.items()},
            {"networks": run.optimizer} | {name: one.optimizer for name, one in run.adversaries.items()},
        )
        return run.complete(checkpoint, training, held_out, progress)


class Run:
    """One training. adversaries: "image" and "mask", those with a weight above 0."""

    def __init__(self, networks: RdnaModel, recipe: Recipe, *, seed: int, device: torch.device) -> None:
        self.networks, self.recipe, self.seed, self.device = networks, recipe, seed, device
        networks.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(networks.parameters(), lr=recipe.learning_rate)
        self.adversaries: dict[str, Adversary] = {}
        for name, channels, weight in (("image", 3, recipe.adversarial_reconstruction), ("mask", 1, recipe.adversarial_segmentation)):
            if weight > 0:
                with seeded(torch.device("cpu"), seed, name):
                    discriminator = Discriminator(channels, networks.settings.width, networks.settings.resolution)
                    initialised(discriminator)
                discriminator.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
                self.adversaries[name] = Adversary(discriminator, weight, recipe.learning_rate)

    def complete(self, checkpoint: Checkpoint, training: Samples, held_out: Samples, progress: Progress) -> History:
        recipe, networks = self.recipe, self.networks
        found = checkpoint.read()
        history, best = (History(**found[0]), found[1]) if found else (History(), {})
        spent, started = history.seconds, time.monotonic()
        written = started
        while history.epochs < recipe.epochs:
            figures = self.learn(training, history.epochs + 1)
            figures["held_out_loss"] = self.measure(held_out)
            if not all(map(math.isfinite, figures.values())):
                raise ConfigError(f"learning_rate: a loss is not finite after epoch {history.epochs + 1} ({figures}): expected a lower rate")
            if figures["held_out_loss"] < min(history.held_out_loss, default=math.inf):
                history.best = history.epochs + 1
                if recipe.weights == "held_out":
                    best = copied(networks.state_dict())
            for name, value in figures.items():
                getattr(history, name).append(value)
            history.seconds = spent + time.monotonic() - started
            if time.monotonic() - written >= CHECKPOINT_EVERY or history.epochs == recipe.epochs:
                checkpoint.write(asdict(history), best)
                written = time.monotonic()
            told = {name: value for name, value in figures.items() if name != "held_out_loss"}
            progress("train", history.epochs, recipe.epochs, told | {"held_out": figures["held_out_loss"], "best": history.best})
        if best:
            networks.load_state_dict(best)
        networks.eval()
        return history

    def learn(self, training: Samples, epoch: int) -> dict[str, float]:
        """One epoch. Returns the means of History's figures."""
        recipe = self.recipe
        self.networks.train()
        steps = max(math.ceil(len(training.images) / recipe.batch_size), recipe.steps)
        totals: dict[str, Tensor] = {}
        for step, drawn in enumerate(training.epoch(epoch, steps, recipe.batch_size)):
            self.follow(recipe.rate((epoch - 1 + step / steps) / recipe.epochs))
            for name, value in self.step(*drawn.here()).items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value
        return {name: float(total) / steps for name, total in totals.items()}

    def follow(self, rate: float) -> None:
        """Every optimizer at this learning rate from now on."""
        for optimizer in (self.optimizer, *(one.optimizer for one in self.adversaries.values())):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def step(self, images: Tensor, clean: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """images, clean (B, 3, S, S), masks (B, 1, S, S) -> History's figures, of this batch."""
        with self.precision():
            reconstructions, logits = self.networks(images)
        loss = total = loss_of(reconstructions, clean, logits, masks)
        figures = {"loss": loss.detach()}
        drawings = {"image": (reconstructions, clean), "mask": (anomalous(logits), masks)}
        for name, adversary in self.adversaries.items():
            drawn, real = drawings[name]
            with self.precision():
                told = adversary.loss(drawn, real)
            descend(adversary.optimizer, told)
            with self.precision():
                total = total + adversary.term(drawn)
            figures[f"{name}_discriminator"] = told.detach()
        descend(self.optimizer, total)
        return figures

    @torch.no_grad()
    def measure(self, held_out: Samples) -> float:
        """Mean loss, without the adversarial terms, over the same synthetic anomalies every time."""
        self.networks.eval()
        count = max(HELD_OUT_SAMPLES, len(held_out.images))
        total = 0.0
        for drawn in held_out.held_out(count, self.recipe.batch_size):
            images, clean, masks = drawn.here()
            with self.precision():
                reconstructions, logits = self.networks(images)
            total += len(images) * float(loss_of(reconstructions, clean, logits, masks))
        return total / count

    def precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.recipe.mixed_precision and has_bf16(self.device))


def loss_of(reconstructions: Tensor, clean: Tensor, logits: Tensor, masks: Tensor) -> Tensor:
    """Mean squared error over all elements, what SSIM lacks of 1, and the focal loss; all fp32."""
    return (reconstructions - clean).square().mean() + 1 - similarity(reconstructions, clean) + focal(logits, masks)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside, its parameters take no gradient."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
