"""Shared parts of the detectors: images, heat maps, devices."""

import cv2
import numpy as np
import pytest
import torch

from detectors.devices import choose_device, choose_precision, is_loss, watched
from detectors.heatmap import at_size, gaussian_kernel, smooth, with_border, without_border
from detectors.images import resize, stacked
from monitor.errors import ConfigError, DeviceLost


def test_the_kernel_of_sigma_3_is_the_published_21_wide() -> None:
    kernel = gaussian_kernel(3.0)
    assert len(kernel) == 21
    assert sum(kernel) == pytest.approx(1)


@pytest.mark.parametrize(("height", "width", "sigma"), [(40, 56, 3.0), (32, 32, 1.0), (64, 24, 5.0)])
def test_smoothing_is_opencv_s_gaussian_blur(height: int, width: int, sigma: float) -> None:
    maps = np.random.default_rng(1).uniform(0, 1, (2, height, width)).astype(np.float32)
    side = len(gaussian_kernel(sigma))
    found = smooth(torch.from_numpy(maps), sigma).numpy()
    for one, other in zip(maps, found, strict=True):
        np.testing.assert_allclose(other, cv2.GaussianBlur(one, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101), atol=1e-5)


def test_smoothing_keeps_level_maps_level_and_zero_keeps_all() -> None:
    level = torch.full((1, 16, 16), 0.7)
    torch.testing.assert_close(smooth(level, 4.0), level)
    noise = torch.rand(1, 16, 16)
    assert smooth(noise, 0) is noise


def test_a_border_is_cut_off_and_filled_from_inside() -> None:
    maps = torch.rand(2, 20, 20)
    filled = with_border(without_border(maps, 3), 3)
    assert filled.shape == maps.shape
    assert torch.equal(filled[:, 3:17, 3:17], maps[:, 3:17, 3:17])
    assert torch.equal(filled[:, 0, 5], maps[:, 3, 5])
    assert without_border(maps, 0).shape == maps.shape
    assert with_border(maps, 0) is maps


@pytest.mark.parametrize(("height", "width"), [(1, 1), (512, 480), (3, 9000), (128, 128)])
def test_maps_come_at_the_sent_size(height: int, width: int) -> None:
    found = at_size(np.full((128, 128), 0.25, np.float32), height, width)
    assert found.shape == (height, width)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 0.25, rtol=1e-6)


def test_shrinking_takes_means_so_nothing_aliases() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (512, 256))[..., None]
    assert set(np.unique(resize(stripes, 64, 64))) <= {127, 128}
    assert set(np.unique(resize(stripes[:8], 64, 64))) <= {127, 128}  # also where the other side grows


def test_a_batch_stays_8_bit_unless_one_of_it_is_not() -> None:
    low = np.full((4, 4, 3), 51, np.uint8)
    assert stacked([low, low]).dtype == np.uint8
    mixed = stacked([low, np.full((4, 4, 3), 0.5, np.float32)])
    assert mixed.dtype == np.float32
    assert mixed[0, 0, 0, 0] == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["", "cuda:x", "cuda:-1", "gpu", "cuda:400"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        choose_device(name)


def test_the_cpu_runs_what_it_has_in_hardware() -> None:
    cpu = choose_device("cpu")
    assert choose_precision("auto", cpu) in ("fp32", "bf16")
    assert choose_precision("bf16", cpu) == "bf16"
    with pytest.raises(ConfigError, match="fp16"):
        choose_precision("fp16", cpu)


def test_a_lost_device_is_told_from_full_memory_and_from_a_bug() -> None:
    assert is_loss(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    assert is_loss(RuntimeError("CUDA error: unspecified launch failure"))
    assert not is_loss(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_loss(torch.AcceleratorError("CUDA error: out of memory"))
    assert not is_loss(RuntimeError("shape mismatch"))
    with pytest.raises(DeviceLost, match="cuda:0"), watched(torch.device("cuda", 0)):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    with pytest.raises(RuntimeError, match="shape"), watched(torch.device("cuda", 0)):
        raise RuntimeError("shape mismatch")
