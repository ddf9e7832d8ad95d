"""The shared training loop: recipe, early stop, checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from detectors.training import CHECKPOINT, History, Recipe, seeded, train
from monitor.errors import ConfigError

CPU = torch.device("cpu")


def recipe(**changed: Any) -> Recipe:
    chosen: dict[str, Any] = {
        "epochs": 6,
        "batch_size": 4,
        "learning_rate": 0.01,
        "weight_decay": 1e-5,
        "plateau": 1,
        "patience": 6,
        "clip": 1.0,
        "mixed_precision": True,
    }
    return Recipe(**(chosen | changed))


def network() -> nn.Module:
    with seeded(CPU, "network"):
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(8, 3, 1))


def data(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def loss(network: nn.Module, batch: Tensor) -> Tensor:
    mean: Tensor = (network(batch).float() - batch).abs().mean()
    return mean


def run(folder: Path, trained: nn.Module, progress: Any = lambda *_: None, seed: int = 1, **changed: Any) -> History:
    return train(trained, loss, data(10, 1), data(5, 2), recipe=recipe(**changed), folder=folder, seed=seed, device=CPU, progress=progress)


class Killed(BaseException):
    pass


def killing(epoch: int) -> Any:
    def progress(phase: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        if step == epoch:
            raise Killed

    return progress


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_interrupted_and_gone_on_it_ends_with_equal_weights(tmp_path: Path, epoch: int) -> None:
    whole = network()
    expected = run(tmp_path / "whole", whole)
    for _ in range(2):
        with pytest.raises(Killed):
            run(tmp_path / "broken", network(), killing(epoch))
        epoch += 1
    resumed = network()
    found = run(tmp_path / "broken", resumed)
    assert equal(whole, resumed)
    assert (found.train_loss, found.held_out_loss, found.best) == (expected.train_loss, expected.held_out_loss, expected.best)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, network(), killing(2))
    (tmp_path / "checkpoint.partial").write_bytes(b"half a")
    steps: list[int] = []
    run(tmp_path, network(), lambda phase, step, steps_, figures: steps.append(step))
    assert steps[0] == 3


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, second = network(), network()
    run(tmp_path, first)
    steps: list[int] = []
    history = run(tmp_path, second, lambda phase, step, steps_, figures: steps.append(step))
    assert not steps
    assert history.epochs == 6
    assert equal(first, second)


def test_the_checkpoint_is_no_pickle(tmp_path: Path) -> None:
    run(tmp_path, network(), epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    assert (tmp_path / CHECKPOINT).read_bytes()[8:9] == b"{"  # safetensors: a length, then JSON


@pytest.mark.parametrize("changed", [{"seed": 2}, {"learning_rate": 0.02}, {"batch_size": 5}])
def test_another_training_does_not_go_on_from_it(tmp_path: Path, changed: dict[str, Any]) -> None:
    run(tmp_path, network(), epochs=1)
    with pytest.raises(ConfigError, match="another training"):
        run(tmp_path, network(), **{"epochs": 1, **changed})


def test_it_stops_early_with_the_best_weights(tmp_path: Path) -> None:
    trained = network()
    history = run(tmp_path, trained, learning_rate=0.3, epochs=60, patience=3, mixed_precision=False)
    assert history.epochs == history.best + 3 < 60
    assert min(history.held_out_loss) == history.held_out_loss[history.best - 1]
    with torch.no_grad():
        again = sum((float(loss(trained, batch)) * len(batch) for batch in torch.split(data(5, 2), 4)), 0.0) / 5
    assert again == pytest.approx(history.held_out_loss[history.best - 1], rel=1e-5)
    assert not trained.training


def test_the_loss_falls_with_fewer_images_than_a_batch(tmp_path: Path) -> None:
    history = train(network(), loss, data(3, 1), data(2, 2), recipe=recipe(epochs=20), folder=tmp_path, seed=1, device=CPU, progress=lambda *_: None)
    assert history.train_loss[-1] < history.train_loss[0]


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path) -> None:
    images = data(8, 1)
    images[0, 0, 0, 0] = torch.nan
    with pytest.raises(ConfigError, match="not finite"):
        train(network(), loss, images, data(2, 2), recipe=recipe(), folder=tmp_path, seed=1, device=CPU, progress=lambda *_: None)
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("clip", [0.5, None])
def test_gradients_are_clipped(tmp_path: Path, clip: float | None) -> None:
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

    def steep(module: nn.Module, batch: Tensor) -> Tensor:
        return 1000 * loss(module, batch)

    hook = register_optimizer_step_pre_hook(note)
    try:
        chosen = recipe(epochs=1, clip=clip)
        train(network(), steep, data(8, 1), data(2, 2), recipe=chosen, folder=tmp_path, seed=1, device=CPU, progress=lambda *_: None)
    finally:
        hook.remove()
    assert len(norms) == 2
    assert (max(norms) <= 0.5 + 1e-4) == (clip is not None)


def test_seeded_depends_on_its_parts_only_and_leaves_no_trace() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with seeded(CPU, 1, "epoch", 2):
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(9)
    with seeded(CPU, 1, "epoch", 2):
        assert torch.equal(torch.rand(4), first)
    with seeded(CPU, 1, "epoch", 3):
        assert not torch.equal(torch.rand(4), first)
