"""What is no picture and no sound of a working sensor; and that nothing in the real data is taken for it."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from connectors.sound import read_sound
from monitor.signals import image_flaw, look, sound_flaw
from monitor.types import Sample


def grey(mean: float, deviation: float, shape=(300, 400, 1), dtype=np.uint8) -> np.ndarray:
    values = np.random.default_rng(1).normal(mean, deviation, shape)
    return np.clip(np.rint(values), 0, np.iinfo(dtype).max).astype(dtype)


def white(share: float, shape=(300, 400, 3), dtype=np.uint8, full: int = 255) -> np.ndarray:
    """Noise, with that share of its rows at full scale."""
    image = grey(full / 4, full / 10, shape, dtype)
    image[: int(share * shape[0])] = full
    return image


def sound(seconds: float = 1.0, amplitude: float = 0.1, channels: int = 1) -> np.ndarray:
    time = np.arange(int(seconds * 16_000)) / 16_000
    return np.tile(amplitude * np.sin(2 * np.pi * 220 * time), (channels, 1)).astype(np.float32)


def sample(**sensors) -> Sample:
    return Sample(source="cameras", topic="press", position="0", stream="press/7", captured=1.0, received=1.0, **sensors)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((300, 400, 3), np.uint8),
        np.full((300, 400, 1), 255, np.uint8),
        np.full((300, 400, 3), (20, 200, 90), np.uint8),  # one colour
        np.full((1, 1, 1), 7, np.uint8),
        grey(30, 0.5),
        grey(3000, 8, dtype=np.uint16),  # of 12 bits
    ],
)
def test_a_picture_of_one_colour_is_blank(image):
    assert image_flaw(image) == "signal_blank"


@pytest.mark.parametrize(
    "image",
    [
        grey(30, 2),  # a dark scene with a sensor's noise
        grey(900, 40, dtype=np.uint16),  # the same of 10 bits
        grey(128, 40, (3000, 4000, 1)),
        np.tile(np.array([0, 0, 200, 0], np.uint8), (512, 128))[:, :, None],  # stripes that a grid of every fourth pixel would miss
    ],
)
def test_a_faint_or_regular_picture_is_none(image):
    assert image_flaw(image) is None


@pytest.mark.parametrize("more", [{}, {"dtype": np.uint16, "full": 4095}, {"dtype": np.uint16, "full": 65_535}, {"shape": (3000, 4000, 1)}])
def test_an_overexposed_picture_is_clipped_and_a_white_background_is_not(more):
    assert image_flaw(white(0.96, **more)) == "signal_clipped"
    assert image_flaw(white(0.9, **more)) is None


def test_a_black_background_is_not_clipped():
    image = np.zeros((300, 400, 1), np.uint8)
    image[140:160, 190:210] = 200
    assert image_flaw(image) is None


def test_depth_that_measured_nothing_is_blank():
    image, depth = grey(128, 40), np.full((300, 400), np.nan, np.float32)
    assert look(sample(image=image, depth=depth)).flaw == "signal_blank"
    depth[:] = 0.0
    assert look(sample(image=image, depth=depth)).flaw == "signal_blank"
    depth[10:20] = 0.7  # what is 0 was not measured, and the rest is the same everywhere
    assert look(sample(image=image, depth=depth)).flaw == "signal_blank"
    depth[11] = -1.0  # nor was this
    assert look(sample(image=image, depth=depth)).flaw == "signal_blank"
    depth[12] = 0.6
    assert look(sample(image=image, depth=depth)).flaw is None
    assert look(sample(depth=depth)).flaw is None
    assert look(sample(depth=0 * depth)).flaw == "signal_blank"
    assert look(sample(depth=depth)).content != look(sample(depth=depth + 1)).content


def test_silence_is_blank_whatever_its_offset():
    silence = np.zeros((2, 16_000), np.float32)
    assert sound_flaw(silence) == "signal_blank"
    assert sound_flaw(silence + np.float32(0.02)) == "signal_blank"
    assert sound_flaw(silence + np.where(np.arange(16_000) % 2, 2**-15, 0).astype(np.float32)) == "signal_blank"  # dither of 16 bits
    silence[1] = sound(amplitude=0.0003)[0]
    assert sound_flaw(silence) is None, "one of its channels speaks"


def test_an_overdriven_microphone_is_clipped_and_a_knock_is_not():
    assert sound_flaw(np.clip(sound(amplitude=3.0), -1, 1)) == "signal_clipped"
    assert sound_flaw(np.clip(sound(amplitude=3.0), -1, 32_767 / 32_768).astype(np.float32)) == "signal_clipped"
    stereo = sound(channels=2)
    stereo[1] = np.clip(50 * stereo[1], -1, 1)
    assert sound_flaw(stereo) == "signal_clipped", "one of its channels"
    loud = sound(amplitude=1.0)  # reaches full scale, but only for a sample or two
    assert sound_flaw(loud) is None
    knock = sound()
    knock[0, 100:105] = 1.0
    assert sound_flaw(knock) is None


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_shortest_sounds(length):
    assert sound_flaw(np.zeros((1, length), np.float32)) == "signal_blank"
    assert sound_flaw(np.linspace(-1, 1, length + 1, dtype=np.float32)[None]) in (None, "signal_clipped")


def test_content_is_that_of_the_pixels_wherever_they_were_sent():
    image = grey(128, 40, (64, 64, 3))
    other = image.copy()
    other[63, 63, 2] ^= 1
    assert look(sample(image=image)).content == look(sample(image=np.asfortranarray(image))).content
    assert look(sample(image=image)).content != look(sample(image=other)).content
    assert look(sample(image=image)).content != look(sample(image=image.reshape(32, 128, 3))).content
    assert look(sample(waveform=sound(), rate=16_000)).content != look(sample(waveform=-sound(), rate=16_000)).content


PICTURES = {"mvtec/bottle/test": 83, "mvtec/toothbrush/test": 42, "mvtec_layout/magnetic_tile/test": 292}


@pytest.mark.parametrize("folder", PICTURES)
def test_no_real_picture_is_flawed(data: Path, folder: str):
    files = sorted(path for path in (data / folder).rglob("*") if path.suffix in (".png", ".jpg"))
    found = Counter(image_flaw(np.atleast_3d(cv2.imread(str(file), cv2.IMREAD_UNCHANGED))) for file in files)
    assert found == {None: PICTURES[folder]}


def test_no_real_sound_is_flawed(data: Path):
    files = sorted((data / "dcase2020" / "dev_data" / "fan").rglob("*.wav"))
    found = Counter(sound_flaw(read_sound(file.read_bytes(), 60.0)[0]) for file in files)
    assert found == {None: 40}


def test_real_pictures_and_sounds_that_are_spoilt_are(data: Path):
    file = next((data / "mvtec/bottle/test/good").iterdir())
    bottle = cv2.imread(str(file))
    assert image_flaw(np.clip(8 * bottle.astype(int), 0, 255).astype(np.uint8)) == "signal_clipped"
    assert image_flaw((bottle // 128).astype(np.uint8)) == "signal_blank"
    fan, _ = read_sound(next((data / "dcase2020/dev_data/fan/train").iterdir()).read_bytes(), 60.0)
    assert sound_flaw(np.clip(100 * fan, -1, 1)) == "signal_clipped"
    assert sound_flaw(fan / 1000) == "signal_blank"
