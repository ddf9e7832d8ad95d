"""How RDNA is trained: steps against a plain version, where the gradients of the discriminators arrive, samples, schedule, weights kept."""

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import detectors.rdna.training
from detectors.inference import Upload
from detectors.rdna.losses import focal, similarity
from detectors.rdna.model import RdnaModel, Settings
from detectors.rdna.networks import initialised
from detectors.rdna.samples import Samples
from detectors.rdna.training import History, Recipe, Run, train
from detectors.textures import TextureSource, procedural
from detectors.training import seeded
from monitor.errors import ConfigError

CPU = torch.device("cpu")
SIDE = 32
RATE = 1e-2
BOTH = {"adversarial_reconstruction": 0.5, "adversarial_segmentation": 0.3}


pytestmark = pytest.mark.usefixtures("one_seeded_thread")


def recipe(**changed: Any) -> Recipe:
    usual: dict[str, Any] = {"epochs": 3, "steps": 1, "batch_size": 4, "learning_rate": RATE, "weights": "last", "mixed_precision": False}
    return Recipe(**(usual | {"adversarial_reconstruction": 0.0, "adversarial_segmentation": 0.0} | changed))


def networks() -> RdnaModel:
    model = RdnaModel(Settings(width=4, resolution=SIDE, score="max", score_window=5, smoothing=0.0))
    initialised(model)
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """images with a square that is not in clean, both (4, 3, 32, 32), and masks (4, 1, 32, 32): the last has none."""
    clean = 0.5 + 0.2 * torch.randn(4, 3, SIDE, SIDE)
    masks = torch.zeros(4, 1, SIDE, SIDE)
    masks[:3, :, 8:20, 12:28] = 1
    return clean + masks * (0.3 - clean), clean, masks


def base_loss(model: RdnaModel, images: Tensor, clean: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss without discriminators; reconstructions; the probability of an anomaly (4, 1, 32, 32)."""
    reconstructions = model["reconstruction"](images)
    logits = model["segmentation"](reconstructions, images)
    loss = ((reconstructions - clean) ** 2).mean() + (1 - similarity(reconstructions, clean)) + focal(logits, masks)
    return loss, reconstructions, logits.softmax(dim=1)[:, 1:]


def gradients(of: Tensor, model: nn.Module) -> dict[str, Tensor]:
    found = torch.autograd.grad(of, list(model.parameters()), retain_graph=True, allow_unused=True)
    return {name: torch.zeros_like(value) if one is None else one for (name, value), one in zip(model.named_parameters(), found, strict=True)}


def assert_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], within: float, beside: float = 0.0) -> None:
    """As vectors: the length of their difference is `within` that of the second, and `beside`."""
    assert one.keys() == other.keys()
    a, b = (torch.cat([vectors[name].flatten() for name in other]) for vectors in (one, other))
    assert (a - b).norm() <= within * b.norm() + beside


def part(of: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    return {name: value for name, value in of.items() if name.startswith(network)}


def left(network: nn.Module) -> dict[str, Tensor]:
    """The gradients that lie on its parameters."""
    return {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}


def assert_is_adams_first_step(before: nn.Module, after: nn.Module) -> None:
    """By the gradients left on `after`."""
    expected = copy.deepcopy(before)
    for mine, its in zip(expected.parameters(), after.parameters(), strict=True):
        mine.grad = its.grad
    torch.optim.Adam(expected.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8).step()
    torch.testing.assert_close(flat(after), flat(expected), rtol=1e-5, atol=1e-7)
    assert not torch.equal(flat(after), flat(before))


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def flat(network: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in network.parameters()])


# a step


def test_without_discriminators_a_step_is_that_of_draem() -> None:
    drawn = batch()
    run = Run(networks().train(), recipe(), seed=1, device=CPU)
    assert not run.adversaries
    before = copy.deepcopy(run.networks)
    loss, _, _ = base_loss(before, *drawn)
    told = run.step(*drawn)
    assert told.keys() == {"loss"}
    assert told["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for network in ("reconstruction", "segmentation"):
        assert_close(part(left(run.networks), network), part(gradients(loss, before), network), 1e-3)
    assert_is_adams_first_step(before, run.networks)


@pytest.mark.parametrize(("image", "mask"), [(0.5, 0.0), (0.0, 0.3), (0.5, 0.3)])
def test_the_gradient_of_each_discriminator_reaches_all_that_drew(image: float, mask: float) -> None:
    drawn = batch()
    _, clean, masks = drawn
    run = Run(networks().train(), recipe(adversarial_reconstruction=image, adversarial_segmentation=mask), seed=1, device=CPU)
    weights = {name: weight for name, weight in (("image", image), ("mask", mask)) if weight}
    assert run.adversaries.keys() == weights.keys()
    before = copy.deepcopy(run.networks)
    naive = {name: copy.deepcopy(one.discriminator) for name, one in run.adversaries.items()}
    told = run.step(*drawn)
    assert told.keys() == {"loss"} | {f"{name}_discriminator" for name in weights}

    loss, reconstructions, probability = base_loss(before, *drawn)
    pairs = {"image": (reconstructions, clean), "mask": (probability, masks)}
    base = gradients(loss, before)
    terms = {name: torch.zeros_like(value) for name, value in base.items()}
    assert told["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for name, one in run.adversaries.items():
        shown, real = pairs[name]
        own = 0.5 * (softplus(-naive[name](shown.detach())).mean() + softplus(naive[name](real)).mean())
        assert told[f"{name}_discriminator"].item() == pytest.approx(own.item(), rel=1e-4)
        # of its own loss alone: what the networks' step sent through it did not stay
        assert_close(left(one.discriminator), gradients(own, naive[name]), 1e-3)
        assert_is_adams_first_step(naive[name], one.discriminator)
        judged = copy.deepcopy(one.discriminator)  # as it is after its step
        reached = gradients(softplus(judged(shown)).mean(), before)  # wants the label of what is real
        for parameter, gradient in reached.items():
            if parameter.startswith("segmentation") and name == "image":
                assert not gradient.any(), parameter
            elif not parameter.endswith("bias"):  # a batch norm takes away what a bias before it adds
                assert gradient.any(), parameter
            terms[parameter] += weights[name] * gradient
    found = left(run.networks)
    for network in ("reconstruction", "segmentation"):
        more = {name: value - base[name] for name, value in part(found, network).items()}
        rounding = 1e-4 * torch.cat([value.flatten() for value in part(base, network).values()]).norm().item()
        assert_close(more, part(terms, network), 0.02, rounding)
    assert_is_adams_first_step(before, run.networks)


def test_a_discriminators_step_leaves_the_networks_alone_and_theirs_leaves_it_alone() -> None:
    model = networks().train()
    run = Run(model, recipe(**BOTH), seed=1, device=CPU)
    images, clean, _ = batch()
    adversary = run.adversaries["image"]
    reconstructions, _ = model(images)
    before = flat(model)
    detectors.rdna.training.descend(adversary.optimizer, adversary.loss(reconstructions, clean))
    assert torch.equal(flat(model), before)
    assert all(value.grad is None for value in model.parameters())

    adversary.optimizer.zero_grad(set_to_none=True)
    before = flat(adversary.discriminator)
    detectors.rdna.training.descend(run.optimizer, adversary.term(reconstructions))
    assert torch.equal(flat(adversary.discriminator), before)
    assert all(value.grad is None and value.requires_grad for value in adversary.discriminator.parameters())
    assert all(value.grad is not None for value in model["reconstruction"].parameters())


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_each_discriminator_sees_what_it_should_and_its_term_is_of_its_new_weights(monkeypatch: pytest.MonkeyPatch, mixed_precision: bool) -> None:
    monkeypatch.setattr(detectors.rdna.training, "has_bf16", lambda device: True)
    model = networks().train()
    run = Run(model, recipe(**BOTH, learning_rate=0.1, mixed_precision=mixed_precision), seed=1, device=CPU)
    calls: dict[str, list[tuple[Tensor, bool, Tensor]]] = {"image": [], "mask": []}
    hooks = []
    for name, adversary in run.adversaries.items():

        def note(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            calls[name].append((arguments[0].detach(), arguments[0].requires_grad, output.detach()))

        hooks.append(adversary.discriminator.register_forward_hook(note))
    images, clean, masks = batch()
    run.step(images, clean, masks)
    for hook in hooks:
        hook.remove()
    for name, shown_as_real in (("image", clean), ("mask", masks)):
        (drawn, attached, old), (real, _, _), (again, attached_again, new) = calls[name]  # each in a pass of its own
        assert (attached, attached_again) == (False, True)
        assert torch.equal(drawn, again)
        assert torch.equal(real, shown_as_real)
        assert drawn.dtype == torch.float32
        assert drawn.shape == shown_as_real.shape
        with torch.no_grad(), run.precision():
            now = run.adversaries[name].discriminator(drawn)
        torch.testing.assert_close(new, now, rtol=1e-3, atol=1e-3)
        assert (new - old).abs().max() > 0.05
    probability = calls["mask"][0][0]
    assert probability.shape == (4, 1, SIDE, SIDE)
    assert 0 <= probability.min() < probability.max() <= 1


def test_the_two_discriminators_begin_apart_and_by_the_seed() -> None:
    one, same, other = (Run(networks(), recipe(**BOTH), seed=seed, device=CPU).adversaries for seed in (1, 1, 2))
    for name in ("image", "mask"):
        assert torch.equal(flat(one[name].discriminator), flat(same[name].discriminator))
        assert not torch.equal(flat(one[name].discriminator), flat(other[name].discriminator))
    deeper = "features.3.weight"
    assert not torch.equal(state(one["image"].discriminator)[deeper], state(one["mask"].discriminator)[deeper])


# samples


def pictures(count: int = 6, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def samples(seed: int = 1, textures: TextureSource | None = None, count: int = 6) -> Samples:
    return Samples(pictures(count), textures or procedural(SIDE, SIDE), Upload(CPU), seed)


def all_of(drawn: Iterator[Any]) -> list[Tensor]:
    """Images, clean and masks of all batches."""
    return [torch.cat(parts) for parts in zip(*((one.images.here(), one.clean.here(), one.masks.here()) for one in drawn), strict=True)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_samples_depend_on_seed_epoch_and_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = all_of(samples().epoch(1, 6, 4))
    assert same(found, all_of(samples().epoch(1, 6, 4)))
    assert same(found, all_of(samples().epoch(1, 3, 8)))  # however they are grouped
    for threads in (1, 7):
        monkeypatch.setattr(os, "cpu_count", lambda threads=threads: threads)
        assert same(found, all_of(samples().epoch(1, 6, 4)))
    assert not same(found, all_of(samples().epoch(2, 6, 4)))
    assert not same(found, all_of(samples(seed=2).epoch(1, 6, 4)))
    assert len({image.numpy().tobytes() for image in found[0]}) > 12  # of 6 pictures


def test_a_sample_is_its_clean_image_but_under_the_mask() -> None:
    images, clean, masks = all_of(samples().epoch(1, 10, 8))
    assert images.shape == clean.shape == (80, 3, SIDE, SIDE)
    assert masks.shape == (80, 1, SIDE, SIDE)
    assert images.dtype == clean.dtype == masks.dtype == torch.float32
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(images * (1 - masks), clean * (1 - masks))
    marked = masks.flatten(1).any(dim=1)
    assert 0.3 < marked.float().mean() < 0.65
    assert all(not torch.equal(*both) for both in zip(images[marked], clean[marked], strict=True))


def test_held_out_samples_are_the_same_every_time_and_none_of_an_epoch() -> None:
    one = all_of(samples().held_out(10, 4))
    assert len(one[0]) == 10
    assert same(one, all_of(samples().held_out(10, 4)))
    assert not same(one, [part[:10] for part in all_of(samples().epoch(1, 3, 4))])


# a training


@pytest.mark.parametrize(("epochs", "steps", "whole", "fifth"), [(1, 10, 8, 1), (4, 25, 80, 10), (8, 5, 32, 4), (800, 1, 640, 80)])
def test_the_rate_falls_to_a_fifth_after_eight_and_after_nine_tenths_of_all_steps(
    monkeypatch: pytest.MonkeyPatch, epochs: int, steps: int, whole: int, fifth: int
) -> None:
    run = Run(networks(), recipe(epochs=epochs, steps=steps, **BOTH), seed=1, device=CPU)
    one = next(samples().epoch(1, 1, 4))
    rates: list[set[float]] = []

    def step(run: Run, *drawn: Tensor) -> dict[str, Tensor]:
        rates.append({group["lr"] for one in (run, *run.adversaries.values()) for group in one.optimizer.param_groups})
        return {}

    monkeypatch.setattr(Run, "step", step)
    monkeypatch.setattr(Samples, "epoch", lambda samples, number, steps, size: iter([one] * steps))
    for epoch in range(1, epochs + 1):
        run.learn(samples(count=4), epoch)
    found = [rate / RATE for (rate,) in rates]
    assert found == pytest.approx([1] * whole + [1 / 5] * fifth + [1 / 25] * fifth)


@pytest.mark.parametrize(("images", "steps", "expected"), [(8, 1, 2), (9, 1, 3), (9, 7, 7)])
def test_an_epoch_is_one_pass_or_as_many_steps_as_are_asked_for(monkeypatch: pytest.MonkeyPatch, images: int, steps: int, expected: int) -> None:
    sizes = []

    def step(run: Run, *drawn: Tensor) -> dict[str, Tensor]:
        sizes.append(len(drawn[0]))
        return {"loss": torch.tensor(float(len(sizes)))}

    monkeypatch.setattr(Run, "step", step)
    run = Run(networks(), recipe(steps=steps, **BOTH), seed=1, device=CPU)
    figures = run.learn(samples(count=images), 3)
    assert sizes == [4] * expected
    assert figures == {"loss": pytest.approx((expected + 1) / 2)}


def test_the_held_out_loss_is_the_same_every_time_and_measuring_changes_nothing() -> None:
    run = Run(networks(), recipe(**BOTH), seed=1, device=CPU)
    before = state(run.networks)
    one = run.measure(samples())
    assert run.measure(samples()) == one
    assert all(torch.equal(value, before[name]) for name, value in run.networks.state_dict().items())
    images, clean, masks = all_of(samples().held_out(64, 4))
    with torch.no_grad():
        each = [base_loss(run.networks, *parts)[0].item() for parts in zip(images.split(4), clean.split(4), masks.split(4), strict=True)]
    assert one == pytest.approx(np.mean(each), rel=1e-5)


def trained(
    folder: Path, textures: TextureSource | None = None, told: Callable[..., None] | None = None, **changed: Any
) -> tuple[RdnaModel, History]:
    with seeded(CPU, "networks"):
        model = networks()
    sets = samples(textures=textures), samples(seed=2, textures=textures)
    history = train(model, *sets, recipe=recipe(**changed), folder=folder, seed=1, device=CPU, progress=told or (lambda *_: None))
    return model, history


@pytest.mark.parametrize(("weights", "kept"), [("held_out", 2), ("last", 4)])
def test_which_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, kept: int) -> None:
    losses, runs, after = iter([3.0, 1.0, 2.0, 1.0]), [], {}

    def measure(run: Run, held_out: Samples) -> float:
        runs.append(run)
        return next(losses)

    def told(phase: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        after[step] = state(runs[-1].networks)

    monkeypatch.setattr(Run, "measure", measure)
    model, history = trained(tmp_path, told=told, epochs=4, weights=weights)
    assert history.best == 2
    assert history.held_out_loss == [3, 1, 2, 1]
    assert len(history.loss) == 4
    assert history.image_discriminator == history.mask_discriminator == []
    assert not model.training
    found = state(model)
    assert all(torch.equal(value, after[kept][name]) for name, value in found.items())
    assert not all(torch.equal(value, after[3][name]) for name, value in found.items())


def test_a_loss_that_is_not_finite_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="learning_rate: a loss is not finite"):
        trained(tmp_path, learning_rate=1e30)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_source_of_textures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "measure", lambda run, held_out: 1.0)

    def grey(level: int) -> TextureSource:
        return lambda random: np.full((SIDE, SIDE, 3), level, np.uint8)

    trained(tmp_path, grey(90), epochs=1)
    with pytest.raises(ConfigError, match="another training"):
        trained(tmp_path, grey(91), epochs=1)
    _, history = trained(tmp_path, grey(90), epochs=1)
    assert history.epochs == 1
