"""AEGAN-AD's networks: the published shapes, counts and initialisation, and what is written otherwise than published but is the same."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from detectors.aegan_ad.networks import MOMENTUM, Critic, Generator, WholeNorm
from detectors.aegan_ad.options import Norm
from detectors.inference import fuse


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        yield


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def windows(number: int = 2) -> Tensor:
    return torch.rand(number, 1, 128, 128) * 2 - 1


@pytest.mark.parametrize(
    ("norm", "first_norm", "parameters"), [("layer", True, 10_781_696), ("layer", False, 10_519_552), ("batch", True, 9_769_856)]
)
def test_generator_has_as_many_parameters_as_published(norm: Norm, first_norm: bool, parameters: int) -> None:
    assert count(Generator(32, norm, first_norm=first_norm)) == parameters


def test_each_half_of_the_generator_has_half_of_them() -> None:
    generator = Generator(32, "layer", first_norm=True)
    assert count(generator.encoder) + count(generator.to_latent) == 5_390_848
    assert count(generator.decoder) + count(generator.out) == 5_390_848


def test_critic_has_as_many_parameters_as_published() -> None:
    assert count(Critic(32)) == 3_303_425


@pytest.mark.parametrize("width", [4, 32])
def test_shapes(width: int) -> None:
    generator, critic = Generator(width, "layer", first_norm=True), Critic(width)
    sides: list[tuple[int, ...]] = []
    for layer in (*generator.encoder, *generator.decoder):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Unflatten):
            layer.register_forward_hook(lambda _layer, _inputs, output: sides.append(tuple(output.shape[1:])))
    with torch.no_grad():
        z = generator.encode(windows())
        assert z.shape == (2, 8 * width)
        rebuilt = generator.decode(z)
        assert critic.embed(rebuilt).shape == (2, 16 * width)
        assert critic(rebuilt).shape == (2,)
    assert rebuilt.shape == (2, 1, 128, 128)
    assert rebuilt.dtype == torch.float32
    assert 0 < rebuilt.abs().max() < 1  # tanh
    down = [(width << step, 64 >> step, 64 >> step) for step in range(5)]
    assert sides == down + down[::-1]


def test_there_is_no_norm_after_the_first_convolution_where_there_shall_be_none() -> None:
    kinds = [type(layer) for layer in Generator(4, "layer", first_norm=False).encoder]
    assert kinds[:4] == [nn.Conv2d, nn.LeakyReLU, nn.Conv2d, WholeNorm]
    assert kinds.count(WholeNorm) == 4


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_initial_weights(norm: Norm) -> None:
    """A bound of six standard errors of the deviation, so that no seed fails."""
    generator, critic = Generator(32, norm, first_norm=True), Critic(32)
    drawn: list[Tensor] = [critic.embedding]
    for layer in (*generator.modules(), *critic.encoder.modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            assert layer.bias is None
            drawn.append(layer.weight)
        elif isinstance(layer, WholeNorm):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.mean().item() == pytest.approx(1, abs=6 * 0.02 / layer.num_features**0.5)
            assert 0.005 < layer.weight.std() < 0.04
            assert (layer.bias == 0).all()
    assert len(drawn) == 1 + 12 + 5
    for weight in drawn:
        assert weight.std().item() == pytest.approx(0.02, rel=6 / (2 * weight.numel()) ** 0.5)
        assert weight.mean().item() == pytest.approx(0, abs=6 * 0.02 / weight.numel() ** 0.5)
    first, _, last = critic.head
    assert isinstance(first, nn.LayerNorm)
    assert isinstance(last, nn.Linear)
    assert (first.weight == 1).all()
    assert 0 < last.weight.abs().max() <= 512**-0.5  # torch's own: uniform
    assert last.bias is not None


def test_whole_norm_is_layer_norm_over_channels_and_places() -> None:
    ours, torchs = WholeNorm(6, 8), nn.LayerNorm((6, 8, 8))
    weight, bias = torch.randn(2, 6, 8, 8)
    with torch.no_grad():
        for norm in (ours, torchs):
            norm.weight.copy_(weight.view_as(norm.weight))
            norm.bias.copy_(bias.view_as(norm.bias))
    x = torch.randn(3, 6, 8, 8) * 5 + 2
    for laid_out in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(ours(laid_out), torchs(x), rtol=1e-5, atol=1e-5)


def test_the_linear_maps_are_the_convolutions_of_the_paper() -> None:
    generator, critic, width = Generator(4, "layer", first_norm=True), Critic(4), 4
    code = torch.randn(3, 16 * width, 4, 4)
    last = nn.Conv2d(16 * width, 8 * width, 4, bias=False)
    z = torch.randn(3, 8 * width)
    first = nn.ConvTranspose2d(8 * width, 16 * width, 4, bias=False)
    depthwise = nn.Conv2d(16 * width, 16 * width, 4, groups=16 * width, bias=False)
    linear, unflatten = list(generator.decoder)[:2]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        last.weight.copy_(generator.to_latent.weight.view_as(last.weight))
        first.weight.copy_(linear.weight.T.reshape_as(first.weight))
        depthwise.weight.copy_(critic.embedding[:, None])
        torch.testing.assert_close(generator.to_latent(code.flatten(1)), last(code)[:, :, 0, 0])
        torch.testing.assert_close(unflatten(linear(z)), first(z[:, :, None, None]))
        x = windows()
        torch.testing.assert_close(critic.embed(x), depthwise(critic.encoder(x))[:, :, 0, 0])


def test_in_evaluation_a_window_does_not_depend_on_the_others() -> None:
    generator = Generator(4, "batch", first_norm=True)
    generator.train()
    x = windows(4)
    with torch.no_grad():
        generator(x)
        generator.eval()
        before = {name: value.clone() for name, value in generator.state_dict().items()}
        torch.testing.assert_close(generator(x)[1:2], generator(x[1:2]), rtol=1e-5, atol=1e-6)
        assert torch.equal(generator(x), generator(x))
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_one_run_moves_the_running_statistics_as_two_of_torch_do() -> None:
    ours, torchs = nn.BatchNorm2d(5, momentum=MOMENTUM), nn.BatchNorm2d(5)
    for _ in range(3):
        x = torch.randn(4, 5, 6, 6) * 3 + 1
        ours(x)
        torchs(x)
        torchs(x)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean)
    torch.testing.assert_close(ours.running_var, torchs.running_var)
    norms = [layer for layer in Generator(4, "batch", first_norm=True).modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == [MOMENTUM] * 10


def test_batch_norms_are_folded_into_convolutions_also_into_transposed_ones() -> None:
    generator = Generator(4, "batch", first_norm=True)
    with torch.no_grad():
        for _ in range(3):
            generator(windows(4) * 3)
        generator.eval()
        x = windows()
        expected = generator(x)
        fuse(generator)
        torch.testing.assert_close(generator(x), expected, rtol=1e-4, atol=1e-6)
    left = [layer for layer in generator.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(left) == 1  # that after the linear map
