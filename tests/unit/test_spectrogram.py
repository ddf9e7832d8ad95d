"""The log-mel spectrogram against librosa's, and the one channel at one rate before it."""

import warnings
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from detectors.spectrogram import LogMel, mel_filters, mono
from monitor.errors import BadSample
from monitor.types import FloatArray, Sample

RATE = 16_000


def obvious(waveform: FloatArray, rate: int = RATE, n_fft: int = 2048, hop: int = 512, mels: int = 128) -> NDArray[np.float32]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "n_fft=.* is too large for input signal", UserWarning)  # clips shorter than a window are meant
        return librosa.power_to_db(librosa.feature.melspectrogram(y=waveform, sr=rate, n_fft=n_fft, hop_length=hop, n_mels=mels))


def ours(waveform: FloatArray, front_end: LogMel | None = None) -> NDArray[np.float32]:
    return (front_end or LogMel(RATE))(torch.from_numpy(waveform)[None])[0].numpy()


def noise(samples: int, level: float = 0.1) -> FloatArray:
    return np.random.default_rng(samples).normal(0, level, samples).astype(np.float32)


def tone(hertz: float, seconds: float = 10, rate: int = RATE, level: float = 0.9) -> FloatArray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def impulse() -> FloatArray:
    waveform = np.zeros(3 * RATE, np.float32)
    waveform[RATE] = 1
    return waveform


def sample(waveform: FloatArray | None, rate: int | None) -> Sample:
    return Sample(source="s", topic="t", position="0", stream="x", captured=0, received=0, waveform=waveform, rate=rate)


CLIPS = {
    "noise": noise(160_000),
    "a tone": tone(1000),
    "a tone in faint noise": tone(1234.5) + noise(160_000, 1e-3),  # its quiet bands are where a float32 transform is off by 0.002 dB
    "a low tone": tone(50.3),
    "a knock in silence": impulse(),
    "beyond full scale": noise(48_000, 10),
    "below the quietest": noise(48_000, 1e-7),
    "silence": np.zeros(48_000, np.float32),
    "shorter than a window": noise(1500),
    "shorter than a hop": noise(100),
    "one sample": noise(1),
    "a hop more": noise(20 * 512),
    "a sample less": noise(20 * 512 - 1),
}


@pytest.mark.parametrize("name", CLIPS)
def test_equals_librosa(name: str) -> None:
    found = ours(CLIPS[name])
    assert found.dtype == np.float32
    assert found.shape == (128, LogMel(RATE).frames(len(CLIPS[name])))
    np.testing.assert_allclose(found, obvious(CLIPS[name]), rtol=0, atol=1e-3)


def test_equals_librosa_on_real_clips(data: Path) -> None:
    clips = sorted((data / "dcase2020").rglob("*.wav"))[::8]
    assert clips, f"no clips in {data}/dcase2020"
    for path in clips:
        waveform, rate = soundfile.read(path, dtype="float32")
        found = ours(waveform, LogMel(rate))
        assert found.shape == (128, 313)
        np.testing.assert_allclose(found, obvious(waveform, rate), rtol=0, atol=1e-3, err_msg=path.name)


@pytest.mark.parametrize(
    ("rate", "n_fft", "hop", "mels"), [(16_000, 1024, 512, 128), (44_100, 2048, 441, 64), (48_000, 4096, 1024, 40), (8_000, 512, 100, 200)]
)
def test_equals_librosa_at_other_settings(rate: int, n_fft: int, hop: int, mels: int) -> None:
    waveform = noise(2 * rate) + tone(440, 2, rate)
    found = ours(waveform, LogMel(rate, n_fft=n_fft, hop=hop, mels=mels))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Empty filters detected", UserWarning)  # 200 bands on 257 bins: some hear nothing
        filters = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=mels)
        expected = obvious(waveform, rate, n_fft, hop, mels)
    np.testing.assert_allclose(mel_filters(rate, n_fft, mels), filters, rtol=0, atol=1e-6 * filters.max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_each_clip_has_its_own_floor() -> None:
    clips = torch.from_numpy(np.stack([impulse(), impulse() * 0.001]))
    loud, quiet = LogMel(RATE)(clips)
    assert loud.max() - loud.min() == pytest.approx(80, abs=1e-4)
    assert quiet.max() == pytest.approx(float(loud.max()) - 60, abs=1e-3)
    assert quiet.min() == pytest.approx(max(float(quiet.max()) - 80, -100), abs=1e-4)


def test_alone_as_in_a_batch() -> None:
    clips = torch.from_numpy(np.stack([noise(50_000), tone(700, 3.125), noise(50_000, 1e-4), np.zeros(50_000, np.float32)]))
    front_end = LogMel(RATE)
    batch = front_end(clips)
    assert batch.shape == (4, 128, 98)
    for clip, row in zip(clips, batch, strict=True):
        torch.testing.assert_close(front_end(clip[None])[0], row, rtol=0, atol=1e-4)


def test_fp32_under_autocast_and_no_state() -> None:
    front_end = LogMel(RATE)
    clips = torch.from_numpy(noise(20_000))[None]
    with torch.autocast("cpu", torch.bfloat16):
        found = front_end(clips)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, front_end(clips), rtol=0, atol=1e-4)
    assert not front_end.state_dict()


def test_a_nan_stays_in_its_clip() -> None:
    clips = torch.from_numpy(np.stack([noise(20_000), noise(20_000)]))
    clips[0, 7] = torch.nan
    found = LogMel(RATE)(clips)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives() -> None:
    clips = torch.from_numpy(np.stack([noise(160_000), tone(1234.5) + noise(160_000, 1e-3)]))
    front_end = LogMel(RATE)
    expected = front_end(clips)
    found = front_end.to("cuda")(clips.to("cuda")).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("samples", [1, 511, 512, 20 * 512, 20 * 512 + 300, 160_000])
def test_axes_cover_the_clip_without_gaps(samples: int) -> None:
    front_end = LogMel(RATE)
    axes = front_end.axes(samples)
    assert axes.seconds.shape == (front_end.frames(samples) + 1,)
    assert axes.hertz.shape == (129,)
    assert (np.diff(axes.seconds) > 0).all()
    assert (np.diff(axes.hertz) < 0).all()
    assert (axes.seconds[0], axes.hertz[-1], axes.hertz[0]) == (0, 0, RATE / 2)
    assert axes.seconds[-1] == pytest.approx(samples / RATE)


@pytest.mark.parametrize(("hertz", "second"), [(120, 0.5), (950, 4.2), (1050, 7.25), (3000, 9.6), (7500, 1.7)])
def test_axes_say_where_the_loudest_is(hertz: float, second: float) -> None:
    """A short burst is loudest in the cell that its middle and its pitch lie in, or one beside it where they lie near an edge."""
    waveform = noise(160_000, 1e-4)
    at = round((second - 0.05) * RATE)
    waveform[at : at + RATE // 10] += tone(hertz, 0.1) * np.hanning(RATE // 10).astype(np.float32)
    front_end = LogMel(RATE)
    turned, axes = ours(waveform, front_end)[::-1], front_end.axes(len(waveform))
    row, column = np.unravel_index(turned.argmax(), turned.shape)
    assert axes.seconds[max(column - 1, 0)] <= second <= axes.seconds[column + 2]
    assert axes.hertz[max(row - 1, 0)] >= hertz >= axes.hertz[row + 2]


def test_channels_are_averaged() -> None:
    left, right = tone(440, 1), noise(RATE)
    found = mono(sample(np.stack([left, right]), RATE), RATE)
    assert (found.shape, found.dtype) == ((RATE,), np.float32)
    np.testing.assert_allclose(found, (left + right) / 2, atol=1e-7)
    np.testing.assert_array_equal(mono(sample(left[None], RATE), RATE), left)


@pytest.mark.parametrize("rate", [16_001, 22_050, 44_100, 44_101, 48_000, 96_000, 384_000])
def test_resampled_a_tone_keeps_pitch_level_and_length(rate: int) -> None:
    found = mono(sample(tone(1000, 2, rate, level=0.5)[None], rate), RATE)
    assert found.dtype == np.float32
    assert abs(len(found) - 2 * RATE) <= 1
    middle = slice(RATE // 2, RATE * 3 // 2)  # its ends ring
    np.testing.assert_allclose(found[middle], tone(1000, 2, level=0.5)[middle], atol=1e-3)


def test_resampled_what_is_too_high_for_the_rate_is_gone() -> None:
    found = mono(sample(tone(9000, 2, 48_000, level=0.5)[None], 48_000), RATE)
    assert np.abs(found[RATE // 2 : RATE * 3 // 2]).max() < 1e-4


@pytest.mark.parametrize(
    ("waveform", "rate", "reason", "words"),
    [
        (np.zeros((1, 800), np.float32), 8000, "unsupported", "8000 Hz; this model was trained at 16000 Hz"),
        (np.zeros((2, 0), np.float32), 16_000, "empty", "0 samples in 2 channels"),
        (np.zeros((0, 5), np.float32), 16_000, "empty", "5 samples in 0 channels"),
        (np.zeros((1, 1), np.float32), 384_000, "empty", "has none at 16000 Hz"),
    ],
)
def test_refused(waveform: FloatArray, rate: int, reason: str, words: str) -> None:
    with pytest.raises(BadSample, match=words) as refused:
        mono(sample(waveform, rate), RATE)
    assert refused.value.reason == reason


def test_refused_what_is_no_sound() -> None:
    picture = Sample(source="s", topic="t", position="0", stream="x", captured=0, received=0, image=np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(BadSample, match="sound is needed, this is image"):
        mono(picture, RATE)
