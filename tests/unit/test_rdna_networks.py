"""The networks of RDNA against their specification: layers, sizes, cost, first weights, precision."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import detectors.rdna.networks
from detectors.rdna.networks import Discriminator, ReconstructiveNetwork, SegmentationNetwork, initialised
from detectors.training import count

NETWORKS: dict[str, Any] = {
    "reconstruction": ReconstructiveNetwork,
    "segmentation": SegmentationNetwork,
    "image discriminator": lambda *settings: Discriminator(3, *settings),
    "mask discriminator": lambda *settings: Discriminator(1, *settings),
}
CHANNELS = {"reconstruction": (3,), "segmentation": (3, 3), "image discriminator": (3,), "mask discriminator": (1,)}
"""Of what each looks at."""


pytestmark = pytest.mark.usefixtures("one_seeded_thread")


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks of full size, without their weights and without their work; what knows nothing of such a device is left out."""
    monkeypatch.setattr(detectors.rdna.networks, "exact", lambda layer, features: layer(features))
    with torch.device("meta"):
        yield


def described(network: nn.Module, channels: tuple[int, ...]) -> list[str]:
    """Its layers in the order in which they work, with the channels and the side of what each makes of images of 256 pixels."""
    found: list[str] = []

    def note(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        a, z = arguments[0].shape[1], output.shape[1]
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            assert layer.padding == tuple(side // 2 for side in layer.kernel_size)
            found.append(f"conv{layer.kernel_size[0]}/{layer.stride[0]} {a}>{z} @{output.shape[2]}")
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.eps, layer.momentum, layer.affine) == (1e-5, 0.1, True)
            found[-1] += " bn"
        elif isinstance(layer, nn.ReLU):
            found[-1] += " relu"
        elif isinstance(layer, nn.MaxPool2d):
            assert (layer.kernel_size, layer.stride) == (2, 2)
            found.append("pool")
        elif isinstance(layer, nn.Upsample):
            assert (layer.scale_factor, layer.mode, layer.align_corners) == (2, "bilinear", True)
            found.append("up")
        elif isinstance(layer, nn.Linear):
            found.append(f"linear {a}>{z}")
        else:
            raise AssertionError(f"{layer} is not in the specification")

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    network.eval()(*(torch.zeros(1, one, 256, 256) for one in channels))
    for hook in hooks:
        hook.remove()
    return found


def cbr(side: int, *channels: int) -> list[str]:
    return [f"conv3/1 {a}>{z} @{side} bn relu" for a, z in pairwise(channels)]


RECONSTRUCTION = [
    *cbr(256, 3, 128, 128),
    *("pool", *cbr(128, 128, 256, 256)),
    *("pool", *cbr(64, 256, 512, 512)),
    *("pool", *cbr(32, 512, 1024, 1024)),
    *("pool", *cbr(16, 1024, 1024, 1024)),
    *("up", *cbr(32, 1024, 1024, 1024, 512)),
    *("up", *cbr(64, 512, 512, 512, 256)),
    *("up", *cbr(128, 256, 256, 256, 128)),
    *("up", *cbr(256, 128, 128, 128, 128)),
    "conv3/1 128>3 @256",
]
SEGMENTATION = [
    *cbr(256, 6, 64, 64),
    *("pool", *cbr(128, 64, 128, 128)),
    *("pool", *cbr(64, 128, 256, 256)),
    *("pool", *cbr(32, 256, 512, 512)),
    *("pool", *cbr(16, 512, 512, 512)),
    *("pool", *cbr(8, 512, 512, 512)),
    *("up", *cbr(16, 512, 512), *cbr(16, 1024, 512, 512)),
    *("up", *cbr(32, 512, 256), *cbr(32, 768, 256, 256)),
    *("up", *cbr(64, 256, 128), *cbr(64, 384, 128, 128)),
    *("up", *cbr(128, 128, 64), *cbr(128, 192, 64, 64)),
    *("up", *cbr(256, 64, 64), *cbr(256, 128, 64, 64)),
    "conv3/1 64>2 @256",
]


def discriminator(channels: int) -> list[str]:
    return [
        f"conv5/2 {channels}>64 @128 bn relu",
        "conv5/2 64>128 @64 bn relu",
        "conv5/2 128>256 @32 bn relu",
        "conv5/2 256>512 @16 relu",
        "linear 131072>1",
    ]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("reconstruction", RECONSTRUCTION),
        ("segmentation", SEGMENTATION),
        ("image discriminator", discriminator(3)),
        ("mask discriminator", discriminator(1)),
    ],
)
@pytest.mark.usefixtures("meta")
def test_layers_are_those_of_the_paper_in_their_order(name: str, layers: list[str]) -> None:
    assert described(NETWORKS[name](), CHANNELS[name]) == layers


@pytest.mark.parametrize(
    ("name", "parameters", "gmac"),
    [
        ("reconstruction", 69_048_579, 159.9),
        ("segmentation", 28_374_146, 38.1),
        ("image discriminator", 4_438_529, 2.6),
        ("mask discriminator", 4_435_329, 2.5),
    ],
)
@pytest.mark.usefixtures("meta")
def test_sizes_and_costs_are_those_of_the_paper(name: str, parameters: int, gmac: float) -> None:
    network = NETWORKS[name]().eval()
    images = [torch.zeros(1, channels, 256, 256) for channels in CHANNELS[name]]
    assert count(network) == parameters
    with FlopCounterMode(display=False) as counted:
        network(*images)
    assert round(counted.get_total_flops() / 2 / 1e9, 1) == gmac


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("name", NETWORKS)
def test_all_channels_follow_the_width(name: str) -> None:
    whole, narrow = NETWORKS[name](128).state_dict(), NETWORKS[name](8).state_dict()
    assert list(whole) == list(narrow)
    kept = {1, 2, 3, 5, 6}  # images, their pair, masks, logits, kernels
    for key, value in whole.items():
        assert [side if side in kept else side / 16 for side in value.shape] == list(narrow[key].shape)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 32), (96, 224), (320, 320)])
@pytest.mark.usefixtures("meta")
def test_images_of_any_sides_divisible_by_32_keep_them(height: int, width: int) -> None:
    images = torch.zeros(2, 3, height, width)
    reconstructions = ReconstructiveNetwork(4)(images)
    assert reconstructions.shape == images.shape
    assert SegmentationNetwork(4)(reconstructions, images).shape == (2, 2, height, width)


@pytest.mark.parametrize("resolution", [32, 64, 320])
@pytest.mark.usefixtures("meta")
def test_a_discriminator_is_built_for_one_resolution(resolution: int) -> None:
    network = Discriminator(1, 4, resolution)
    assert network(torch.zeros(3, 1, resolution, resolution)).shape == (3,)
    assert network.head.in_features == 16 * (resolution // 16) ** 2


def test_the_reconstruction_stands_before_the_image_and_the_upsampled_before_the_skip() -> None:
    network = SegmentationNetwork(4).eval()
    seen: list[Tensor] = []
    for block in (network.b1[0], network.b5, network.up5, network.u5):
        block.register_forward_hook(lambda _, arguments, output: seen.extend((arguments[0], output)))
    reconstructions, images = torch.rand(2, 1, 3, 32, 32)
    with torch.inference_mode():
        network(reconstructions, images)
    into_b1, skip, upsampled, into_u5 = seen[0], seen[3], seen[5], seen[6]
    assert torch.equal(into_b1, torch.cat((reconstructions, images), dim=1))
    assert torch.equal(into_u5, torch.cat((upsampled, skip), dim=1))


@pytest.mark.parametrize("name", ["segmentation", "image discriminator"])
def test_first_weights_are_normal_and_biases_of_convolutions_torchs_own(name: str) -> None:
    network = NETWORKS[name](32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    initialised(network)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    weights = torch.cat([layer.weight.flatten() for layer in convolutions])
    assert weights.mean().item() == pytest.approx(0, abs=1e-3)
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    scales = torch.cat([layer.weight for layer in norms])
    assert scales.mean().item() == pytest.approx(1, abs=0.01)
    assert scales.std().item() == pytest.approx(0.02, rel=0.3)
    assert all((layer.bias == 0).all() for layer in norms)
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    names = {id(module): key for key, module in network.named_modules()}
    assert moved == {f"{names[id(layer)]}.weight" for layer in (*convolutions, *norms)}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_comes_out_is_fp32_also_under_autocast(name: str) -> None:
    network = NETWORKS[name](4, 32) if "discriminator" in name else NETWORKS[name](4)
    inner: set[torch.dtype] = set()
    for layer in network.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda _, __, output: inner.add(output.dtype))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(*(torch.rand(2, channels, 32, 32) for channels in CHANNELS[name]))
    assert torch.bfloat16 in inner
    assert output.dtype == torch.float32
