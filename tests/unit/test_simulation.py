"""Simulated machines: seeded, and a planted fault is where its mask says, or sounds as its name says."""

from collections import Counter

import numpy as np
import pytest
from numpy.random import default_rng

from monitor.simulation import HUM_FAULTS, PART_FAULTS, Hum, HumFault, PartFault, hum, line, part


def test_a_seed_gives_the_same_part_and_another_seed_another() -> None:
    for fault in (None, *PART_FAULTS):
        one, same, other = part(default_rng(7), fault), part(default_rng(7), fault), part(default_rng(8), fault)
        assert np.array_equal(one.image, same.image)
        assert np.array_equal(one.mask, same.mask)
        assert one.severity == same.severity
        assert not np.array_equal(one.image, other.image)


def test_a_good_part_has_no_mask_and_stays_near_the_others() -> None:
    random = default_rng(1)
    parts = [part(random, side=96) for _ in range(20)]

    assert all(one.image.shape == (96, 96, 3) and one.image.dtype == np.uint8 for one in parts)
    assert not any(one.mask.any() or one.severity or one.fault for one in parts)
    means = [one.image.mean() for one in parts]
    assert 0.5 < max(means) - min(means) < 20, "light varies, and not much"


@pytest.mark.parametrize("fault", PART_FAULTS)
def test_a_fault_changes_the_part_inside_its_mask_only(fault: PartFault) -> None:
    for seed in range(25):
        good, bad = part(default_rng(seed)), part(default_rng(seed), fault)  # the same view: it is drawn first
        assert bad.mask.dtype == np.bool_
        assert 5 <= bad.mask.sum() < 0.1 * bad.mask.size
        assert 0 <= bad.severity <= 1
        difference = np.abs(bad.image.astype(float) - good.image).mean(axis=2)
        assert difference[bad.mask].mean() > 1.5 * difference[~bad.mask].mean(), "outside there is but the camera's grain"


@pytest.mark.parametrize("fault", [fault for fault in PART_FAULTS if fault != "missing bolt"])
def test_severity_makes_a_fault_plainer(fault: PartFault) -> None:
    changed = []
    for seed in range(50):
        good, bad = part(default_rng(seed), side=128), part(default_rng(seed), fault, side=128)
        changed.append((bad.severity, float(np.abs(bad.image.astype(float) - good.image)[bad.mask].sum())))
    severities, sums = np.array(changed).T
    assert np.corrcoef(severities, sums)[0, 1] > 0.4


def test_a_line_makes_every_fault_as_often_as_the_others() -> None:
    made = line(default_rng(3), 100, 12)

    assert Counter(made) == {None: 88} | dict.fromkeys(PART_FAULTS, 2)
    assert made == line(default_rng(3), 100, 12)
    assert made != line(default_rng(4), 100, 12)


def power(one: Hum, low: float, high: float) -> float:
    """Of a band of frequencies in hertz."""
    spectrum = np.abs(np.fft.rfft(one.waveform[0])) ** 2
    frequencies = np.fft.rfftfreq(one.waveform.shape[1], 1 / one.rate)
    return float(spectrum[(frequencies >= low) & (frequencies < high)].sum())


def test_a_hum_is_seeded_and_fits_a_sample() -> None:
    for fault in (None, *HUM_FAULTS):
        one, same, other = hum(default_rng(5), fault), hum(default_rng(5), fault), hum(default_rng(6), fault)
        assert one.waveform.shape == (1, 2 * one.rate)
        assert one.waveform.dtype == np.float32
        assert np.abs(one.waveform).max() < 1, "not clipped"
        assert np.array_equal(one.waveform, same.waveform)
        assert not np.array_equal(one.waveform, other.waveform)
    assert hum(default_rng(5), seconds=0.5, rate=8000).waveform.shape == (1, 4000)


@pytest.mark.parametrize(("fault", "low", "high"), [("imbalance", 20, 29), ("leak", 4000, 7900), ("bearing", 3000, 3800), ("rattle", 1750, 2050)])
def test_a_faulty_hum_is_louder_where_its_fault_sounds(fault: HumFault, low: float, high: float) -> None:
    good = max(power(hum(default_rng(seed)), low, high) for seed in range(30))
    bad = min(power(hum(default_rng(seed), fault), low, high) for seed in range(30))
    assert bad > 1.5 * good


def test_a_bearing_clicks_3_57_times_a_turn() -> None:
    one = hum(default_rng(2), "bearing", seconds=4.0)
    spectrum = np.fft.rfft(one.waveform[0])
    frequencies = np.fft.rfftfreq(one.waveform.shape[1], 1 / one.rate)
    spectrum[(frequencies < 2500) | (frequencies > 4500)] = 0
    envelope = np.abs(np.fft.irfft(spectrum))
    beats = np.abs(np.fft.rfft(envelope - envelope.mean()))
    rates = np.fft.rfftfreq(len(envelope), 1 / one.rate)
    audible = (rates > 20) & (rates < 150)
    loudest = rates[audible][beats[audible].argmax()]
    assert loudest == pytest.approx(3.57 * 24.5, rel=0.02)
