"""How generator and critic are trained: WGAN-GP for the critic; reconstruction and feature matching, no adversarial term, for the generator.

Source: specification sections 3 and 4; gradient penalty of Gulrajani et al., NeurIPS 2017.
"""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from detectors.aegan_ad.networks import SIDE, Critic, Generator
from detectors.devices import has_bf16, watched
from detectors.resuming import Checkpoint, identity
from detectors.training import CHECKPOINT, copied, seeded
from monitor.errors import ConfigError
from monitor.ports import Progress

PENALTY = 10.0
LEARNING_RATE = 2e-4
BETA2 = 0.999
EPSILON = 1e-12
"""Below the square root of a variance, whose gradient has no bound at 0 (a feature that is the same in a whole batch)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Adam for both networks. An epoch is one pass over the windows, or as many and parts of one as make `steps`; its last batch is dropped.

    Training ends after `epochs`, or after `patience` epochs without a lower reconstruction error of held-out clips; with the weights of
    the epoch that had the lowest. The original takes the epoch that is best on labelled test clips.
    """

    epochs: int
    patience: int
    steps: int
    batch_size: int
    stride: int
    feature_weight: float
    match_deviation: bool
    beta1: float
    mixed_precision: bool


@dataclass(slots=True)
class History:
    """How a training went, epoch by epoch: the critic's loss, the generator's, and the reconstruction error of held-out clips.

    best: the epoch (from 1) with the lowest of these.
    """

    critic_loss: list[float] = field(default_factory=list)
    generator_loss: list[float] = field(default_factory=list)
    held_out_error: list[float] = field(default_factory=list)
    best: int = 0
    seconds: float = 0.0

    @property
    def epochs(self) -> int:
        return len(self.held_out_error)


class Windows:
    """Windows of clips. clips: each (128, T) fp32, scaled, of T frames each, at least 128; they stay on the CPU."""

    def __init__(self, clips: list[Tensor]) -> None:
        self.frames = torch.cat(clips, dim=1)  # (128, all frames)
        ends = torch.tensor([clip.shape[1] for clip in clips]).cumsum(0).tolist()
        self._clips = list(zip([0, *ends], ends, strict=False))

    def shuffled(self, stride: int) -> Tensor:
        """First frames of windows every `stride`, in any order; a clip's first lies anywhere within its first stride. By torch's random numbers."""
        found = []
        for begin, end in self._clips:
            last = end - SIDE
            found.append(torch.arange(begin + int(torch.randint(min(stride, last - begin + 1), ())), last + 1, stride))
        every = torch.cat(found)
        return every[torch.randperm(len(every))]

    def fewest(self, stride: int) -> int:
        """Windows that `shuffled` finds at least."""
        return sum(max(1, (end - begin - SIDE + 1) // stride) for begin, end in self._clips)

    def apart(self) -> Tensor:
        """First frames of windows that do not overlap."""
        return torch.cat([torch.arange(begin, end - SIDE + 1, SIDE) for begin, end in self._clips])

    def take(self, starts: Tensor) -> Tensor:
        """(B,) -> (B, 1, 128, 128)."""
        return torch.stack([self.frames[:, start : start + SIDE] for start in starts.tolist()])[:, None]


def train(
    generator: Generator,
    critic: Critic,
    training: Windows,
    held_out: Windows,
    *,
    recipe: Recipe,
    folder: Path,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> History:
    """Trains both in place, on `device`; goes on from the checkpoint in `folder`.

    Raises ConfigError when `folder` holds a checkpoint of another training, or when a loss is not finite.
    """
    generator.to(device)
    critic.to(device)
    state = (*generator.state_dict().values(), *critic.state_dict().values())
    run = _Run(generator, critic, recipe, device)
    checkpoint = Checkpoint(
        folder / CHECKPOINT,
        identity([asdict(recipe), seed], *state, training.frames, held_out.frames),
        {"generator": generator, "critic": critic},
        {"generator": run.generator_steps, "critic": run.critic_steps},
    )
    with watched(device):
        return run.complete(checkpoint, training, held_out, seed, progress)


class _Run:
    def __init__(self, generator: Generator, critic: Critic, recipe: Recipe, device: torch.device) -> None:
        self.generator, self.critic, self.recipe, self.device = generator, critic, recipe, device
        betas = (recipe.beta1, BETA2)
        self.generator_steps = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE, betas=betas)
        self.critic_steps = torch.optim.Adam(critic.parameters(), lr=LEARNING_RATE, betas=betas)

    def complete(self, checkpoint: Checkpoint, training: Windows, held_out: Windows, seed: int, progress: Progress) -> History:
        recipe = self.recipe
        networks = torch.nn.ModuleList([self.generator, self.critic])
        found = checkpoint.read()
        history, best = (History(**found[0]), found[1]) if found else (History(), {})
        spent, started = history.seconds, time.monotonic()
        while history.epochs < recipe.epochs and history.epochs - history.best < recipe.patience:
            with seeded(self.device, seed, "epoch", history.epochs):
                critic_loss, generator_loss = self.learn(training)
            error = self.measure(held_out)
            if not all(map(math.isfinite, (critic_loss, generator_loss, error))):
                raise ConfigError(f"the loss is not finite after epoch {history.epochs + 1}: expected other options, e.g. another machine's settings")
            if error < min(history.held_out_error, default=math.inf):
                history.best, best = history.epochs + 1, copied(networks.state_dict())
            history.critic_loss.append(critic_loss)
            history.generator_loss.append(generator_loss)
            history.held_out_error.append(error)
            history.seconds = spent + time.monotonic() - started
            checkpoint.write(asdict(history), best)
            figures = {"loss": generator_loss, "critic": critic_loss, "held_out": error, "best": history.best}
            progress("train", history.epochs, recipe.epochs, figures)
        networks.load_state_dict(best)
        networks.eval()
        return history

    def learn(self, training: Windows) -> tuple[float, float]:
        """One epoch: shuffled batches. Returns the mean losses of critic and generator."""
        self.generator.train()
        self.critic.train()
        size = min(self.recipe.batch_size, training.fewest(self.recipe.stride))  # so that every pass has a batch
        passes = [training.shuffled(self.recipe.stride)]
        steps = max(len(passes[0]) // size, self.recipe.steps)
        while sum(len(one) // size for one in passes) < steps:
            passes.append(training.shuffled(self.recipe.stride))
        order = torch.cat([one[: len(one) // size * size] for one in passes])[: steps * size]
        totals = torch.zeros(2, device=self.device)
        for starts in torch.split(order, size):
            totals += torch.stack(self.step(training.take(starts).to(self.device)))
        critic_loss, generator_loss = (totals / steps).tolist()
        return critic_loss, generator_loss

    def step(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """The critic learns from a batch, then the generator from the same with the critic as it is now.

        The generator is run once for both: it has not changed between.
        """
        recipe = self.recipe
        with self.precision():
            rebuilt = self.generator(real)
            critic_loss = wasserstein(self.critic, real, rebuilt.detach())
        critic_loss = critic_loss + PENALTY * self.penalty(real, rebuilt.detach())
        self.critic_steps.zero_grad(set_to_none=True)
        critic_loss.backward()  # type: ignore[no-untyped-call]
        self.critic_steps.step()
        self.critic.requires_grad_(False)
        with self.precision():
            generator_loss = reconstruction(rebuilt, real) + recipe.feature_weight * feature_distance(
                self.critic.embed(rebuilt), self.critic.embed(real), deviation=recipe.match_deviation
            )
        self.generator_steps.zero_grad(set_to_none=True)
        generator_loss.backward()  # type: ignore[no-untyped-call]
        self.generator_steps.step()
        self.critic.requires_grad_(True)
        return critic_loss.detach(), generator_loss.detach()

    def penalty(self, real: Tensor, rebuilt: Tensor) -> Tensor:
        share = torch.rand(len(real), 1, 1, 1).to(self.device)
        between = (share * real + (1 - share) * rebuilt).requires_grad_()
        with self.precision():
            score = self.critic(between).sum()
        (gradient,) = torch.autograd.grad(score, between, create_graph=True)
        return gradient_penalty(gradient)

    @torch.no_grad()
    def measure(self, held_out: Windows) -> float:
        """Mean squared error of reconstruction over windows that do not overlap."""
        self.generator.eval()
        starts = held_out.apart()
        total = 0.0
        for some in torch.split(starts, self.recipe.batch_size):
            real = held_out.take(some).to(self.device)
            with self.precision():
                total += float(reconstruction(self.generator(real), real)) * len(some)
        return total / len(starts)

    def precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.recipe.mixed_precision and has_bf16(self.device))


def wasserstein(critic: nn.Module, real: Tensor, rebuilt: Tensor) -> Tensor:
    """How much higher the critic rates what was rebuilt, in the mean: what it learns to make small."""
    difference: Tensor = critic(rebuilt).mean() - critic(real).mean()
    return difference


def gradient_penalty(gradient: Tensor) -> Tensor:
    """(B, ...) of the critic's scores -> the mean of (|gradient| - 1)^2, its norm over all inputs of a window."""
    norms = gradient.float().flatten(1).norm(dim=1)
    penalty: Tensor = (norms - 1).square().mean()
    return penalty


def reconstruction(rebuilt: Tensor, real: Tensor) -> Tensor:
    """Mean squared error over all elements."""
    return (rebuilt - real).square().mean()


def feature_distance(rebuilt: Tensor, real: Tensor, *, deviation: bool) -> Tensor:
    """(B, F) both: mean squared difference of the features' means over the batch, and of their (biased) standard deviations where asked."""
    distance = (rebuilt.mean(dim=0) - real.mean(dim=0)).square().mean()
    if deviation:
        distance = distance + (_deviation(rebuilt) - _deviation(real)).square().mean()
    return distance


def _deviation(features: Tensor) -> Tensor:
    return (features.var(dim=0, correction=0) + EPSILON).sqrt()
