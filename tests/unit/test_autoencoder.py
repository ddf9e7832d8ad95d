"""The autoencoder family against its specification: layers, scores, options."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from detectors.autoencoder.detector import Autoencoder, choose_score, read_model, resolved, scores, stretched
from detectors.autoencoder.networks import AutoencoderNetwork, Variant
from detectors.autoencoder.options import AutoencoderOptions
from detectors.autoencoder.scores import dissimilarity, pixel_l1, top_mean
from detectors.inference import made_fast
from monitor.errors import ConfigError, ModelRefused


def test_options_leave_torch_and_cv2_alone() -> None:
    script = "import sys, detectors.autoencoder.options; print([m for m in ('torch', 'cv2', 'sklearn') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(("variant", "parameters"), [("baseline", 1_734_947), ("multiscale", 1_928_483)])
def test_parameters(variant: Variant, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in AutoencoderNetwork(variant).parameters()) == parameters


@pytest.mark.parametrize(("variant", "gmac"), [("baseline", 7.41), ("multiscale", 9.22)])
def test_multiplications_and_shapes_at_256(variant: Variant, gmac: float) -> None:
    counted = 0
    shapes: dict[str, tuple[int, ...]] = {}

    def count(name: str, module: torch.nn.Module, out: torch.Tensor) -> None:
        nonlocal counted
        shapes[name] = tuple(out.shape[1:])
        if isinstance(module, torch.nn.Conv2d):
            counted += module.weight.numel() * out.shape[2] * out.shape[3]
        elif isinstance(module, torch.nn.ConvTranspose2d):
            counted += module.weight.numel() * out.shape[2] * out.shape[3] // 4

    network = AutoencoderNetwork(variant).eval()
    for name, module in network.named_modules():
        module.register_forward_hook(lambda module, _, out, name=name: count(name, module, out))
    with torch.inference_mode():
        out = network(torch.rand(1, 3, 256, 256))
    assert round(counted / 1e9, 2) == gmac
    assert out.shape == (1, 3, 256, 256)
    assert shapes["enc1.5"] == (32, 256, 256)
    assert shapes["bottleneck"] == (256, 32, 32)
    assert shapes["up3"] == shapes["dec3"] == (128, 64, 64)
    assert shapes["up2"] == shapes["dec2"] == (64, 128, 128)
    assert shapes["up1"] == shapes["dec1"] == (32, 256, 256)


def test_a_skip_goes_behind_the_upsampled() -> None:
    network = AutoencoderNetwork("multiscale").eval()
    seen: list[torch.Tensor] = []
    network.dec1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.up1.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.inference_mode():
        network(torch.rand(1, 3, 32, 32))
    upsampled, joined = seen
    assert joined.shape[1] == 64
    assert torch.equal(joined[:, :32], upsampled)


@pytest.mark.parametrize("variant", ["baseline", "multiscale"])
def test_fused_is_the_same_network_and_its_ends_stay_fp32(variant: Variant) -> None:
    torch.manual_seed(1)
    network = AutoencoderNetwork(variant)
    images = torch.rand(4, 3, 32, 32)
    for _ in range(3):
        network(images)  # running statistics that are not trivial
    network.eval()
    with torch.no_grad():
        plain = network(images)
    weights = network.state_dict()
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 2e-2)):
        fast = AutoencoderNetwork(variant)
        fast.load_state_dict(weights)
        made_fast(fast, device=torch.device("cpu"), precision=precision, exact=("enc1.0", "out"))
        assert not [name for name, module in fast.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert torch.equal(fast.out.weight, network.out.weight)
        with torch.inference_mode():
            found = fast(images)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, plain, rtol=0, atol=tolerance)


def slow_dissimilarity(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """1 - SSIM of two grey images in [0, 255], pixel by pixel, as section 4 of the specification writes it."""
    height, width = x.shape
    a, b = np.pad(x, 3, mode="symmetric"), np.pad(y, 3, mode="symmetric")
    c1, c2 = 6.5025, 58.5225
    result = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            p, q = a[row : row + 7, column : column + 7].ravel(), b[row : row + 7, column : column + 7].ravel()
            (vx, cxy), (_, vy) = np.cov(p, q)  # divides by 48
            mx, my = p.mean(), q.mean()
            result[row, column] = 1 - (2 * mx * my + c1) * (2 * cxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return result


def test_ssim_against_its_definition() -> None:
    random = np.random.default_rng(3)
    first = random.uniform(0, 1, (20, 20, 3))
    second = np.clip(first + random.normal(0, 0.1, first.shape), 0, 1)
    grey = [0.299, 0.587, 0.114]
    pair = [torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None] for image in (first, second)]
    found = dissimilarity(*pair)[0].numpy()
    np.testing.assert_allclose(found, slow_dissimilarity(255 * first @ grey, 255 * second @ grey), atol=1e-4)


def test_ssim_of_equal_images_is_zero_and_flat_white_is_stable() -> None:
    white = torch.ones(1, 3, 32, 32)
    assert float(dissimilarity(white, white).abs().max()) < 1e-4


def test_pixel_l1_and_top_mean() -> None:
    images, drawn = torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
    drawn[0, :, 0, 0] = torch.tensor((0.3, -0.6, 0.9))
    drawn[0, :, 5, 5] = 0.2
    errors = pixel_l1(images, drawn)
    assert errors[0, 0, 0] == pytest.approx(0.6)
    assert top_mean(errors).tolist() == pytest.approx([(0.6 + 0.2) / 2, 0])  # 1 % of 256, rounded down, is 2
    assert top_mean(errors[:, :4, :4]).tolist() == pytest.approx([0.6, 0])  # at least one
    assert top_mean(torch.rand(1, 256, 256).sort(dim=2).values, 0.01).shape == (1,)


def test_scores_ignore_the_border() -> None:
    images, drawn = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    drawn[:, :, :2] = 1.0
    assert float(scores(images, drawn, ["l1"], 2)["l1"]) == 0
    assert float(scores(images, drawn, ["l1_topk"], 1)["l1_topk"]) == 1
    assert float(scores(images, drawn, ["l1"], 0)["l1"]) == pytest.approx(2 / 32)


def test_presets_and_what_overrides_them() -> None:
    paper = resolved(AutoencoderOptions(preset="paper", variant="baseline"))
    assert (paper.resolution, paper.epochs, paper.batch_size, paper.clip, paper.plateau, paper.patience) == (256, 35, 16, None, 5, 10)
    paper = resolved(AutoencoderOptions(preset="paper", variant="multiscale"))
    assert (paper.resolution, paper.epochs, paper.batch_size, paper.clip, paper.plateau, paper.patience) == (256, 45, 8, 1.0, 8, 15)
    own = resolved(AutoencoderOptions(preset="paper", epochs=3, border=4, mixed_precision=True))
    assert (own.epochs, own.border, own.mixed_precision, own.resolution) == (3, 4, True, 256)


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError):
        AutoencoderOptions(resolution=100)
    with pytest.raises(ValidationError):
        AutoencoderOptions.model_validate({"colour": "red"})
    with pytest.raises(ConfigError, match="border"):
        Autoencoder(AutoencoderOptions(resolution=32, border=10))


def test_scores_are_chosen_by_what_tells_synthetic_defects_apart() -> None:
    class Mean(torch.nn.Module):
        """Draws every image as the even grey that all normal images are."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full_like(images, 128 / 255)

    normals = torch.full((6, 3, 64, 64), 128, dtype=torch.uint8)
    found = choose_score(Mean(), normals, 4, 1, lambda *_: None)
    assert set(found) == {"l1", "l1_topk", "ssim"}
    assert min(found.values()) > 0.8  # a patch of even grey on even grey cannot be seen
    assert found == choose_score(Mean(), normals, 4, 1, lambda *_: None)


@pytest.mark.parametrize("broken", ["{}", "[1]", "no json", json.dumps({"kind": "autoencoder", "format": 2})])
def test_a_folder_of_something_else_is_refused(tmp_path: Any, broken: str) -> None:
    (tmp_path / "detector.json").write_text(broken)
    with pytest.raises(ModelRefused):
        read_model(tmp_path)


def test_few_images_train_for_as_many_steps() -> None:
    preset = resolved(AutoencoderOptions(preset="cpu"))

    assert stretched(preset, 126) == preset
    few = stretched(preset, 29)
    assert (few.epochs, few.patience, few.plateau) == (125, 40, 15)
    assert stretched(resolved(AutoencoderOptions(preset="paper")), 3).epochs == 45
