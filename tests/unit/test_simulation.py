"""Simulated machines: seeded, and a planted fault is where its mask says, or sounds when, where and as its name says."""

from collections import Counter

import numpy as np
import pytest
from numpy.random import default_rng

from monitor.simulation import plan
from monitor.simulation.hums import FAINTEST, HUM_FAULTS, LOUDNESSES, SPAN, HumFault, Loudness, hum
from monitor.simulation.parts import PART_FAULTS, PartFault, part
from monitor.types import FloatArray


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


def test_a_plant_makes_every_fault_as_often_as_the_others() -> None:
    made = plan(default_rng(3), PART_FAULTS, 100, 12)

    assert Counter(made) == {None: 88} | dict.fromkeys(PART_FAULTS, 2)
    assert made == plan(default_rng(3), PART_FAULTS, 100, 12)
    assert made != plan(default_rng(4), PART_FAULTS, 100, 12)


def power(waveform: FloatArray, rate: int, low: float, high: float) -> float:
    """Of what lies between two frequencies in hertz, a second."""
    spectrum = np.abs(np.fft.rfft(waveform)) ** 2
    frequencies = np.fft.rfftfreq(len(waveform), 1 / rate)
    return float(spectrum[(frequencies >= low) & (frequencies <= high)].sum() / len(waveform) ** 2)


def test_a_hum_is_seeded_and_fits_a_sample() -> None:
    for fault in (None, *HUM_FAULTS):
        one, same, other = (hum(default_rng(seed), fault, seconds=2.0) for seed in (5, 5, 6))
        assert one.waveform.shape == (1, 2 * one.rate)
        assert one.waveform.dtype == np.float32
        assert (one.fault, one.place, one.severity) == (fault, same.place, same.severity)
        assert np.array_equal(one.waveform, same.waveform)
        assert not np.array_equal(one.waveform, other.waveform)
    assert hum(default_rng(5), seconds=0.5, rate=16000).waveform.shape == (1, 8000)


def test_good_hums_are_unlike_and_have_no_place() -> None:
    hums = [hum(default_rng(seed), seconds=2.0) for seed in range(40)]

    assert not any(one.place or one.severity or one.fault for one in hums)
    assert max(float(np.abs(one.waveform).max()) for one in hums) < 1, "not clipped"
    alike = [hum(default_rng(seed), seconds=2.0, variety=0.1) for seed in range(40)]
    spread, little = (np.ptp([10 * np.log10(power(one.waveform[0], one.rate, 2000, 6000)) for one in some]) for some in (hums, alike))
    assert 5 < spread < 40, "load, room, events and microphone"
    assert little < 0.3 * spread


@pytest.mark.parametrize("loudness", LOUDNESSES)
@pytest.mark.parametrize("fault", HUM_FAULTS)
def test_a_planted_fault_sounds_in_its_place_only_and_as_loudly_as_asked(fault: HumFault, loudness: Loudness) -> None:
    louder = []
    for seed in range(5):
        severity = LOUDNESSES[loudness]
        good, bad = hum(default_rng(seed), seconds=4.0), hum(default_rng(seed), fault, seconds=4.0, severity=severity)  # else the same: drawn first
        place = bad.place
        assert place is not None
        assert 0 <= place.start < place.end <= 4.0
        assert 0 < place.low < place.high < bad.rate / 2
        assert (bad.fault, bad.severity) == (fault, severity)
        assert np.abs(bad.waveform).max() < 1, "not clipped"

        planted = bad.waveform[0] - good.waveform[0]
        here = slice(round(place.start * bad.rate), round(place.end * bad.rate))
        outside = np.ones(len(planted), np.bool_)
        outside[here] = False
        assert np.square(planted[outside]).mean() < 0.01 * np.square(planted[here]).mean()
        assert power(planted[here], bad.rate, place.low, place.high) > 0.6 * power(planted[here], bad.rate, 0, bad.rate / 2)

        usual = power(good.waveform[0, here], bad.rate, place.low, place.high)
        louder.append(10 * np.log10(power(planted[here], bad.rate, place.low, place.high) / usual))
    assert np.median(louder) == pytest.approx(FAINTEST + SPAN * LOUDNESSES[loudness], abs=1), (
        "than the same machine there, unless something happened beside it"
    )


def test_severity_is_drawn_where_none_is_asked() -> None:
    severities = [hum(default_rng(seed), "leak", seconds=0.5).severity for seed in range(20)]
    assert 0 <= min(severities) < 0.3
    assert 0.7 < max(severities) <= 1


def test_a_bearing_knocks_3_57_times_a_turn() -> None:
    good, bad = hum(default_rng(2)), hum(default_rng(2), "bearing")
    assert bad.place is not None
    here = slice(round(bad.place.start * bad.rate), round(bad.place.end * bad.rate))
    envelope = np.abs(bad.waveform - good.waveform)[0, here]
    beats = np.abs(np.fft.rfft(envelope - envelope.mean()))
    rates = np.fft.rfftfreq(len(envelope), 1 / bad.rate)
    audible = (rates > 20) & (rates < 150)
    loudest = rates[audible][beats[audible].argmax()]
    assert loudest == pytest.approx(3.57 * 24.5, rel=0.04)
