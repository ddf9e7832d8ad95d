"""The loop that all methods share: devices, mixed precision, schedule, early stop, and checkpoints to go on from.

A training is decided by (network, data, recipe, seed): what is random in an epoch comes from the seed and the epoch's
number, so one that was killed and goes on ends with the weights of one that never stopped, on the same machine.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from detectors.devices import has_bf16, watched
from detectors.resuming import Checkpoint, identity
from monitor.errors import ConfigError
from monitor.ports import Progress

CHECKPOINT = "checkpoint.safetensors"
Loss = Callable[[nn.Module, Tensor], Tensor]
"""`loss(network, batch)`: the mean over the batch, fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Adam with L2 `weight_decay`; the rate is halved after `plateau` epochs without a better held-out loss.

    Training ends after `epochs`, or after `patience` epochs without a better one, with the best weights; without patience after all
    epochs, with the last. `cosine`: the rate rises over the first twentieth of all steps and then falls to 0 along a cosine.
    An epoch is one pass over the data, or as many and parts of one as make `steps`. `clip`: largest L2 norm of the gradient.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    plateau: int | None
    patience: int | None
    clip: float | None
    mixed_precision: bool
    cosine: bool = False
    steps: int = 1


@dataclass(slots=True)
class History:
    """How a training went, epoch by epoch. `best` is the epoch (from 1) with the lowest held-out loss."""

    train_loss: list[float] = field(default_factory=list)
    held_out_loss: list[float] = field(default_factory=list)
    best: int = 0
    seconds: float = 0.0

    @property
    def epochs(self) -> int:
        return len(self.held_out_loss)


@contextmanager
def seeded(device: torch.device, *parts: object) -> Iterator[None]:
    """Inside, torch's random numbers on the CPU and `device` follow from `parts` alone; afterwards they go on as before."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    with torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        yield


def train(
    network: nn.Module,
    loss: Loss,
    training: Tensor,
    held_out: Tensor,
    *,
    recipe: Recipe,
    folder: Path,
    seed: int,
    device: torch.device,
    progress: Progress,
    phase: str = "train",
) -> History:
    """Trains `network` in place, on `device`; goes on from the checkpoint in `folder`.

    training, held_out: (N, ...) of any type, on the CPU, where they stay; `loss` makes what it needs of a batch of them, on `device`.
    Raises ConfigError when `folder` holds a checkpoint of another training, or when the loss is not finite.
    """
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    same = identity([asdict(recipe), seed], *network.state_dict().values(), training, held_out)
    run = _Run(network, loss, recipe, path=folder / CHECKPOINT, identity=same, device=device)
    with watched(device):
        return run.complete(training, held_out, seed, progress, phase)


class _Run:
    def __init__(self, network: nn.Module, loss: Loss, recipe: Recipe, *, path: Path, identity: str, device: torch.device) -> None:
        self.network, self.loss, self.recipe = network, loss, recipe
        self.device = device
        self.optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.scheduler = None if recipe.plateau is None else ReduceLROnPlateau(self.optimizer, factor=0.5, patience=recipe.plateau)
        self.best = {} if recipe.patience is None else copied(network.state_dict())
        self.history = History()
        self.checkpoint = Checkpoint(path, identity, {"network": network}, {"network": self.optimizer})

    def complete(self, training: Tensor, held_out: Tensor, seed: int, progress: Progress, phase: str) -> History:
        self.resume()
        history, recipe = self.history, self.recipe
        spent = history.seconds
        started = time.monotonic()
        while history.epochs < recipe.epochs and (recipe.patience is None or history.epochs - history.best < recipe.patience):
            with seeded(self.device, seed, "epoch", history.epochs):
                train_loss = self.learn(training)
                held_out_loss = self.measure(held_out)
            if not math.isfinite(train_loss) or not math.isfinite(held_out_loss):
                raise ConfigError(f"learning_rate: the loss is not finite after epoch {history.epochs + 1}: expected a lower rate")
            if held_out_loss < min(history.held_out_loss, default=math.inf):
                history.best = history.epochs + 1
                if recipe.patience is not None:
                    self.best = copied(self.network.state_dict())
            history.train_loss.append(train_loss)
            history.held_out_loss.append(held_out_loss)
            if self.scheduler is not None:
                self.scheduler.step(held_out_loss)
            history.seconds = spent + time.monotonic() - started
            self.write()
            progress(phase, history.epochs, recipe.epochs, {"loss": train_loss, "held_out": held_out_loss, "best": history.best})
        if self.best:
            self.network.load_state_dict(self.best)
        self.network.eval()
        return history

    def learn(self, training: Tensor) -> float:
        """One epoch: shuffled batches, the last one dropped unless it is the only one. Returns the mean loss."""
        self.network.train()
        size = min(self.recipe.batch_size, len(training))
        whole = len(training) // size
        steps = max(whole, self.recipe.steps)
        passes = math.ceil(steps / whole)
        order = torch.cat([torch.randperm(len(training))[: whole * size] for _ in range(passes)])[: steps * size]
        total = torch.zeros((), device=self.device)
        for step, index in enumerate(torch.split(order, size)):
            if self.recipe.cosine:
                self.follow_cosine((self.history.epochs + step / steps) / self.recipe.epochs)
            with self.precision():
                loss = self.loss(self.network, training[index].to(self.device))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.recipe.clip is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
            self.optimizer.step()
            total += loss.detach()
        return float(total) / steps

    def follow_cosine(self, done: float) -> None:
        """The rate after the share `done` of all steps."""
        rising = 0.05
        share = (done + 1e-3) / rising if done < rising else 0.5 * (1 + math.cos(math.pi * (done - rising) / (1 - rising)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * min(1.0, share)

    def measure(self, held_out: Tensor) -> float:
        """Mean loss over the held-out samples, each counted once."""
        self.network.eval()
        total = 0.0
        with torch.no_grad(), self.precision():
            for batch in torch.split(held_out, self.recipe.batch_size):
                total += float(self.loss(self.network, batch.to(self.device))) * len(batch)
        return total / len(held_out)

    def precision(self) -> torch.autocast:
        """bf16 where it is asked for and computed in hardware: it has fp32's range, so no loss scaling is needed."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.recipe.mixed_precision and has_bf16(self.device))

    def write(self) -> None:
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        self.checkpoint.write({"scheduler": scheduler, "history": asdict(self.history)}, self.best)

    def resume(self) -> None:
        """Takes up the checkpoint, if there is one."""
        found = self.checkpoint.read()
        if found is not None:
            facts, self.best = found
            self.history = History(**facts["history"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(facts["scheduler"])


def copied(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A network's state that later steps do not change."""
    return {name: value.detach().clone() for name, value in state.items()}


def count(network: nn.Module) -> int:
    """Its parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
