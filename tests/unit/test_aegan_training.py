"""How AEGAN-AD is trained: losses by hand, steps against a slow obvious version, windows, resuming."""

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import detectors.aegan_ad.training
from detectors.aegan_ad.networks import Critic, Generator
from detectors.aegan_ad.options import Norm
from detectors.aegan_ad.training import History, Recipe, Windows, _Run, feature_distance, gradient_penalty, reconstruction, train, wasserstein
from monitor.errors import ConfigError

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_seeded_thread")


def recipe(**changed: Any) -> Recipe:
    usual: dict[str, Any] = {"epochs": 3, "patience": 10, "steps": 1, "batch_size": 4, "stride": 32, "feature_weight": 1.0}
    return Recipe(**(usual | {"match_deviation": False, "beta1": 0.5, "mixed_precision": False} | changed))


def networks(norm: Norm = "layer") -> tuple[Generator, Critic]:
    return Generator(4, norm, first_norm=True), Critic(4)


def clips(*lengths: int) -> list[Tensor]:
    """Soft waves in [-1, 1], (128, T) each."""
    rows = torch.arange(128)[:, None] / 9
    return [0.7 * torch.sin(rows + torch.arange(length) / 5 + torch.rand(())) + 0.05 * torch.randn(128, length) for length in lengths]


def silent(phase: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
    pass


# losses


class Slope(nn.Module):
    """A critic that is linear: the sum of its inputs, each times `weight`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum(dim=(1, 2, 3))


class Bowl(Slope):
    """Half the sum of squares: its gradient is where it is looked at."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * x * self.weight).sum(dim=(1, 2, 3)) / 2


def run_with(critic: Any, **changed: Any) -> _Run:
    return _Run(networks()[0], critic, recipe(**changed), CPU)


def test_the_critic_learns_to_rate_what_is_real_higher() -> None:
    real, rebuilt = torch.full((3, 1, 2, 2), 0.5), torch.full((3, 1, 2, 2), 1.5)
    slope = Slope(torch.ones(1, 2, 2))
    assert wasserstein(slope, real, rebuilt).item() == pytest.approx(4 * 1.5 - 4 * 0.5)
    assert wasserstein(slope, rebuilt, real).item() == pytest.approx(-4)


def test_the_penalty_is_of_the_norm_over_a_whole_window() -> None:
    gradient = torch.tensor([[3.0, 0.0, 0.0, 4.0], [0.0, 0.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    assert gradient_penalty(gradient).item() == pytest.approx(((5 - 1) ** 2 + (0 - 1) ** 2) / 2)


def test_the_penalty_of_a_linear_critic_is_known() -> None:
    weight = torch.zeros(1, 128, 128)
    weight[0, 5, 7], weight[0, 100, 3] = 2.0, -1.5  # a norm of 2.5
    real, rebuilt = torch.randn(2, 4, 1, 128, 128)
    assert run_with(Slope(weight)).penalty(real, rebuilt).item() == pytest.approx(1.5**2)


def test_the_penalty_is_taken_between_real_and_rebuilt_at_a_place_of_each_window() -> None:
    real, rebuilt = torch.full((5, 1, 128, 128), 0.1), torch.zeros(5, 1, 128, 128)
    torch.manual_seed(11)
    found = run_with(Bowl(torch.ones(1, 128, 128))).penalty
    torch.manual_seed(12)
    value = found(real, rebuilt).item()
    torch.manual_seed(12)
    shares = torch.rand(5, 1, 1, 1).flatten().tolist()  # of the real one
    assert value == pytest.approx(sum((128 * 0.1 * share - 1) ** 2 for share in shares) / 5, rel=1e-4)


def test_the_penalty_teaches_the_critic() -> None:
    slope = Slope(torch.full((1, 128, 128), 2 / 128))  # a norm of 2
    run_with(slope).penalty(torch.randn(2, 1, 128, 128), torch.randn(2, 1, 128, 128)).backward()  # type: ignore[no-untyped-call]
    assert slope.weight.grad is not None
    torch.testing.assert_close(slope.weight.grad, torch.full((1, 128, 128), 2 * (2 - 1) / 128))


def test_reconstruction_is_the_mean_over_all_elements() -> None:
    assert reconstruction(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])).item() == pytest.approx((4 + 9 + 1) / 4)


REBUILT, REAL = torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, 4.0]])
"""Means (2, 2) and (0, 2); biased deviations (1, 0) and (0, 2)."""


@pytest.mark.parametrize(("deviation", "expected"), [(False, 2.0), (True, 2.0 + 2.5)])
def test_features_are_compared_by_their_statistics_over_the_batch(deviation: bool, expected: float) -> None:
    assert feature_distance(REBUILT, REAL, deviation=deviation).item() == pytest.approx(expected, rel=1e-5)


def test_a_feature_that_is_the_same_in_a_whole_batch_has_a_finite_gradient() -> None:
    rebuilt = REBUILT.clone().requires_grad_()
    feature_distance(rebuilt, REAL, deviation=True).backward()  # type: ignore[no-untyped-call]
    assert rebuilt.grad is not None
    assert rebuilt.grad.isfinite().all()


# steps


def obvious_step(generator: Generator, critic: Critic, real: Tensor, given: Recipe, rate: float) -> tuple[float, float]:
    """As the specification tells it: the generator runs twice, and the gradients are followed by hand."""

    def follow(network: nn.Module, loss: Tensor) -> None:
        parameters = list(network.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if gradient is not None:
                parameter.data -= rate * gradient

    rebuilt = generator(real).detach()
    share = torch.rand(len(real), 1, 1, 1)
    between = (share * real + (1 - share) * rebuilt).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = sum(((one.square().sum().sqrt() - 1) ** 2 for one in slope), torch.zeros(())) / len(real)
    critic_loss = critic(rebuilt).mean() - critic(real).mean() + 10 * penalty
    follow(critic, critic_loss)
    rebuilt = generator(real)
    f_real, f_rebuilt = critic.embed(real), critic.embed(rebuilt)
    features = functional.mse_loss(f_rebuilt.mean(0), f_real.mean(0))
    if given.match_deviation:
        features = features + functional.mse_loss(f_rebuilt.std(0, correction=0), f_real.std(0, correction=0))
    generator_loss = functional.mse_loss(rebuilt, real) + given.feature_weight * features
    follow(generator, generator_loss)
    return critic_loss.item(), generator_loss.item()


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("deviation", [False, True])
def test_a_step_is_that_of_the_specification(norm: Norm, deviation: bool) -> None:
    """By plain gradient descent: of gradients that are nothing but rounding, Adam would take the sign."""
    given = recipe(match_deviation=deviation, feature_weight=3.0)
    generator, critic = networks(norm)
    before = copy.deepcopy(critic), copy.deepcopy(generator)
    again, critic_again = copy.deepcopy(generator), copy.deepcopy(critic)
    for layer in again.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1
    run = _Run(generator, critic, given, CPU)
    run.generator_steps = torch.optim.SGD(generator.parameters(), lr=0.005)  # type: ignore[assignment]
    run.critic_steps = torch.optim.SGD(critic.parameters(), lr=0.005)  # type: ignore[assignment]
    for seed in range(2):
        real = torch.stack([clip[None] for clip in clips(128, 128, 128, 128)])
        torch.manual_seed(seed)
        losses = [float(loss) for loss in run.step(real)]
        torch.manual_seed(seed)
        expected = obvious_step(again, critic_again, real, given, 0.005)
        assert losses == pytest.approx(expected, rel=1e-3)
    for network, other, begun in zip((critic, generator), (critic_again, again), before, strict=True):
        assert far(network, other) < 0.05 * far(other, begun)
    statistics = [(name, value) for name, value in generator.state_dict().items() if "running" in name]
    assert len(statistics) == (20 if norm == "batch" else 0)
    for name, value in statistics:
        torch.testing.assert_close(value, again.state_dict()[name], rtol=1e-3, atol=1e-4)


def far(one: nn.Module, other: nn.Module) -> float:
    """How far two networks' parameters are apart: the norm of all differences."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return math.sqrt(sum(float((a.detach() - b.detach()).square().sum()) for a, b in pairs))


def test_each_network_has_its_own_step_and_what_is_off_stays_off() -> None:
    generator, critic = networks()
    run = _Run(generator, critic, recipe(), CPU)
    states: list[dict[str, Tensor]] = []

    def remember(*_: object) -> None:
        states.append({name: value.clone() for name, value in nn.ModuleDict({"g": generator, "c": critic}).state_dict().items()})

    remember()
    run.critic_steps.register_step_post_hook(remember)
    run.generator_steps.register_step_post_hook(remember)
    run.step(torch.stack([clip[None] for clip in clips(128, 128)]))
    changed = [{name for name in states[0] if not torch.equal(before[name], after[name])} for before, after in itertools.pairwise(states)]
    assert {name[0] for name in changed[0]} == {"c"}
    assert {name[0] for name in changed[1]} == {"g"}
    assert all(parameter.requires_grad for parameter in critic.parameters())


def test_adam_is_the_published_one() -> None:
    run = _Run(*networks(), recipe(beta1=0.25), CPU)
    for optimizer in (run.critic_steps, run.generator_steps):
        assert isinstance(optimizer, torch.optim.Adam)
        (group,) = optimizer.param_groups
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (2e-4, (0.25, 0.999), 1e-8, 0)


# windows


def test_with_stride_1_every_window_of_every_clip_is_found_once() -> None:
    found = Windows(clips(140, 128, 131)).shuffled(1).tolist()
    assert sorted(found) == [*range(13), 140, *range(268, 272)]
    assert found != sorted(found)


def test_windows_begin_anywhere_in_the_first_stride_and_never_cross_the_border_of_a_clip() -> None:
    lengths, stride = (313, 128, 150), 32
    windows = Windows(clips(*lengths))
    begins = [0, 313, 441]
    phases: list[set[int]] = [set(), set(), set()]
    for _ in range(60):
        found = sorted(windows.shuffled(stride).tolist())
        assert len(found) >= windows.fewest(stride)
        for clip, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
            own = [start for start in found if begin <= start < begin + length]
            assert own == list(range(own[0], begin + length - 128 + 1, stride))
            phases[clip].add(own[0] - begin)
    assert len(phases[0]) > 10
    assert phases[0] <= set(range(32))
    assert phases[1] == {0}
    assert len(phases[2]) > 5
    assert phases[2] <= set(range(23))


@pytest.mark.parametrize(("length", "stride"), [(313, 32), (313, 1), (128, 32), (150, 32), (159, 32), (191, 64)])
def test_the_fewest_windows_of_a_clip_are_found_at_times(length: int, stride: int) -> None:
    windows = Windows(clips(length))
    assert min(len(windows.shuffled(stride)) for _ in range(400)) == windows.fewest(stride)


def test_windows_are_cut_out_as_they_lie() -> None:
    of_clips = clips(200, 150)
    taken = Windows(of_clips).take(torch.tensor([5, 200, 222]))
    assert taken.shape == (3, 1, 128, 128)
    assert torch.equal(taken[0, 0], of_clips[0][:, 5:133])
    assert torch.equal(taken[1, 0], of_clips[1][:, :128])
    assert torch.equal(taken[2, 0], of_clips[1][:, 22:])


def test_held_out_windows_do_not_overlap() -> None:
    assert Windows(clips(313, 128, 256)).apart().tolist() == [0, 128, 313, 441, 569]


def batches_of(run: _Run, training: Windows) -> list[Tensor]:
    """What an epoch learns from."""
    found: list[Tensor] = []

    def step(real: Tensor) -> tuple[Tensor, Tensor]:
        found.append(real)
        return torch.tensor(1.0), torch.tensor(float(len(found)))

    run.step = step  # type: ignore[method-assign]
    critic_loss, generator_loss = run.learn(training)
    assert critic_loss == 1
    assert generator_loss == pytest.approx((1 + len(found)) / 2)
    return found


@pytest.mark.parametrize(
    ("windows", "batch_size", "steps", "expected"), [(10, 4, 1, [4, 4]), (10, 4, 5, [4] * 5), (3, 8, 1, [3]), (3, 8, 4, [3] * 4)]
)
def test_the_last_batch_is_dropped_and_few_windows_are_passed_again(windows: int, batch_size: int, steps: int, expected: list[int]) -> None:
    training = Windows(clips(127 + windows))
    found = batches_of(run_with(networks()[1], batch_size=batch_size, steps=steps, stride=1), training)
    assert [len(batch) for batch in found] == expected
    for first in range(0, len(found), windows // len(found[0])):  # within a pass no window comes twice
        passed = torch.cat(found[first : first + windows // len(found[0])])
        assert len({tuple(window[0, :, 0].tolist()) for window in passed}) == len(passed)


def test_a_batch_larger_than_all_windows_is_as_large_as_the_fewest_of_a_pass() -> None:
    """A first pass with more windows than most would else make all others useless."""
    training = Windows(clips(*[313] * 20))
    found = batches_of(run_with(networks()[1], batch_size=4096, steps=30), training)
    assert [len(batch) for batch in found] == [100] * 30


# trainings


class Killed(BaseException):
    pass


def killer(epoch: int) -> Callable[..., None]:
    def progress(_phase: str, step: int, _steps: int, _figures: Mapping[str, float]) -> None:
        if step == epoch:
            raise Killed

    return progress


def trained(folder: Path, progress: Callable[..., None] = silent, norm: Norm = "batch", **changed: Any) -> tuple[dict[str, Tensor], History]:
    torch.manual_seed(8)
    generator, critic = networks(norm)
    training, held_out = Windows(clips(200, 180)), Windows(clips(140))
    history = train(generator, critic, training, held_out, recipe=recipe(**changed), folder=folder, seed=3, device=CPU, progress=progress)
    assert not generator.training
    assert not critic.training
    return nn.ModuleDict({"generator": generator, "critic": critic}).state_dict(), history


def test_a_resumed_training_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    expected, whole = trained(tmp_path / "whole")
    for epoch in (1, 2):
        with pytest.raises(Killed):
            trained(tmp_path / "killed", killer(epoch))
    torch.manual_seed(123)
    found, history = trained(tmp_path / "killed")
    assert history.epochs == 3
    assert (history.critic_loss, history.generator_loss, history.held_out_error) == (whole.critic_loss, whole.generator_loss, whole.held_out_error)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors.aegan_ad.training, "LEARNING_RATE", 5e-3)
    _, history = trained(tmp_path, epochs=4, steps=8)
    assert history.held_out_error[-1] < 0.8 * history.held_out_error[0]


def test_the_best_epoch_is_kept_and_patience_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors, states = [0.5, 0.3, 0.4, 0.3, 0.2], []

    def measure(run: _Run, _held_out: Windows) -> float:
        states.append({name: value.clone() for name, value in run.generator.state_dict().items()})
        return errors[len(states) - 1]

    monkeypatch.setattr(_Run, "measure", measure)
    state, history = trained(tmp_path, epochs=9, patience=2)
    assert (history.best, history.epochs) == (2, 4)
    assert all(torch.equal(state[f"generator.{name}"], value) for name, value in states[1].items())


def test_the_held_out_error_is_the_mean_over_windows_in_evaluation(tmp_path: Path) -> None:
    generator, critic = networks("batch")
    run = _Run(generator, critic, recipe(batch_size=2), CPU)
    held_out = Windows(clips(384, 128))
    generator.train()
    found = run.measure(held_out)
    assert not generator.training
    with torch.no_grad():
        obvious = [functional.mse_loss(generator(one), one).item() for one in held_out.take(held_out.apart())[:, None]]
    assert len(obvious) == 4
    assert found == pytest.approx(sum(obvious) / 4, rel=1e-5)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Run, "measure", lambda *_: float("nan"))
    with pytest.raises(ConfigError, match=r"not finite after epoch 1"):
        trained(tmp_path)
    assert not list(tmp_path.iterdir())
