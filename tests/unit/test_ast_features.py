"""What AST sees of a sample, and the file that keeps the features of the training images."""

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.ast.depth import Scan
from detectors.ast.features import BATCH, FeatureFile, View, features, fill, on_grid, reserved, view
from detectors.backbones import Backbone
from monitor.errors import BadSample, ConfigError
from monitor.types import Sample


def image(seed: int) -> Sample:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    return Sample(source="s", topic="t", position=str(seed), stream="s", captured=0.0, received=0.0, image=pixels)


class Counting:
    """Computes (C, 2, 2) of each view, its mean, and counts; dies where it is told to."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.batches: list[int] = []
        self.dies_after = dies_after

    def __call__(self, views: Sequence[View]) -> Tensor:
        if len(self.batches) == self.dies_after:
            raise KeyboardInterrupt
        self.batches.append(len(views))
        return torch.stack([torch.full((3, 2, 2), float(np.mean(one.pixels))) for one in views if one.pixels is not None])


def run(folder: Path, samples: Sequence[Sample], compute: Counting, *, decided_by: Any = "settings", most: int = 10**6) -> FeatureFile:
    def told(phase: str, step: int, steps: int, figures: Any) -> None:
        assert phase == "features"
        assert 1 <= step <= steps == len(samples)

    file = reserved(folder / "work", {"training": len(samples)}, channels=3, grid=2, most=most, decided_by=decided_by)["training"]
    fill(file, samples, seen=lambda sample: view(sample, "rgb", 32, 2), compute=compute, phase="features", progress=told)
    return file


SAMPLES = [image(seed) for seed in range(2 * BATCH + 3)]


def expected(samples: Sequence[Sample]) -> Tensor:
    return Counting()([view(sample, "rgb", 32, 2) for sample in samples])


def index(folder: Path) -> Path:
    return folder / "work" / "training.json"


def test_each_row_is_computed_once_in_batches(tmp_path: Path) -> None:
    compute = Counting()
    found = run(tmp_path, SAMPLES, compute)
    assert compute.batches == [BATCH, BATCH, 3]
    assert found.tensor().shape == (19, 3, 2, 2)
    assert torch.equal(found.tensor(), expected(SAMPLES))
    again = Counting()
    assert torch.equal(run(tmp_path, SAMPLES, again).tensor(), expected(SAMPLES))
    assert not again.batches


def test_only_batches_with_another_content_are_computed_again(tmp_path: Path) -> None:
    run(tmp_path, SAMPLES, Counting())
    samples = [*SAMPLES[:10], image(99), *SAMPLES[11:]]
    compute = Counting()
    assert torch.equal(run(tmp_path, samples, compute).tensor(), expected(samples))
    assert compute.batches == [BATCH]
    again = Counting()
    run(tmp_path, samples, again)  # of a row's two lines the last counts
    assert not again.batches


def test_names_do_not_count_only_what_is_seen(tmp_path: Path) -> None:
    run(tmp_path, SAMPLES, Counting())
    compute = Counting()
    run(tmp_path, [replace(sample, position="other", received=9.0) for sample in SAMPLES], compute)
    assert not compute.batches


def test_other_settings_begin_anew(tmp_path: Path) -> None:
    run(tmp_path, SAMPLES, Counting())
    compute = Counting()
    run(tmp_path, SAMPLES, compute, decided_by="others")
    assert compute.batches == [BATCH, BATCH, 3]


def test_another_number_of_rows_begins_anew(tmp_path: Path) -> None:
    run(tmp_path, SAMPLES, Counting())
    for samples in (SAMPLES[:5], SAMPLES):
        compute = Counting()
        assert torch.equal(run(tmp_path, samples, compute).tensor(), expected(samples))
        assert sum(compute.batches) == len(samples)


def test_what_was_computed_before_a_kill_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, SAMPLES, Counting(dies_after=1))
    compute = Counting()
    assert torch.equal(run(tmp_path, SAMPLES, compute).tensor(), expected(SAMPLES))
    assert compute.batches == [BATCH, 3]


@pytest.mark.parametrize("lost", [1, 30, 100])
def test_a_torn_index_costs_the_batch_it_ends_in_and_nothing_else(tmp_path: Path, lost: int) -> None:
    run(tmp_path, SAMPLES, Counting())
    content = index(tmp_path).read_bytes()
    index(tmp_path).write_bytes(content[:-lost])
    compute = Counting()
    assert torch.equal(run(tmp_path, SAMPLES, compute).tensor(), expected(SAMPLES))
    assert compute.batches == [3]
    again = Counting()
    run(tmp_path, SAMPLES, again)  # what was written behind the tear can be read
    assert not again.batches
    assert all(json.loads(line) for line in index(tmp_path).read_text().splitlines())


def test_an_index_torn_within_its_first_line_begins_anew(tmp_path: Path) -> None:
    run(tmp_path, SAMPLES, Counting())
    index(tmp_path).write_bytes(index(tmp_path).read_bytes()[:5])
    compute = Counting()
    assert torch.equal(run(tmp_path, SAMPLES, compute).tensor(), expected(SAMPLES))
    assert compute.batches == [BATCH, BATCH, 3]


@pytest.mark.parametrize("missing", ["training.npy", "training.json"])
def test_rows_without_their_index_do_not_count_nor_an_index_without_its_rows(tmp_path: Path, missing: str) -> None:
    run(tmp_path, SAMPLES, Counting())
    (tmp_path / "work" / missing).unlink()
    compute = Counting()
    assert torch.equal(run(tmp_path, SAMPLES, compute).tensor(), expected(SAMPLES))
    assert compute.batches == [BATCH, BATCH, 3]


def test_rows_are_never_vouched_for_before_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    flush = np.memmap.flush

    def noted(self: "np.memmap[Any, Any]") -> None:
        written.append(len(index(tmp_path).read_text().splitlines()))
        flush(self)

    monkeypatch.setattr(np.memmap, "flush", noted)
    run(tmp_path, SAMPLES, Counting())
    assert written == [1, 1 + BATCH, 1 + 2 * BATCH]


def test_the_seconds_of_all_rows_count_over_interruptions(tmp_path: Path) -> None:
    whole = run(tmp_path, SAMPLES, Counting())
    assert whole.seconds > 0
    again = run(tmp_path, SAMPLES, Counting())
    assert again.seconds == pytest.approx(whole.seconds)


def test_more_than_the_bound_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    needed = 4 * 19 * 3 * 2 * 2
    compute = Counting()
    with pytest.raises(ConfigError, match=f"feature_cache: {needed - 1} bytes: the features of 19 images need {needed}"):
        run(tmp_path, SAMPLES, compute, most=needed - 1)
    assert not compute.batches
    assert not (tmp_path / "work").exists()
    run(tmp_path, SAMPLES, compute, most=needed)
    assert (tmp_path / "work" / "training.npy").stat().st_size < needed + 1024


def test_a_disk_without_room_is_told_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, length: int) -> None:
        assert length >= 4 * 19 * 3 * 2 * 2
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    compute = Counting()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(ConfigError, match=r"feature_cache: .*training.npy cannot take 912 bytes: No space left"):
            run(tmp_path, SAMPLES, compute)
    assert not compute.batches
    assert not list((tmp_path / "work").iterdir())  # what the disk did give is given back
    assert torch.equal(run(tmp_path, SAMPLES, compute).tensor(), expected(SAMPLES))
    assert compute.batches == [BATCH, BATCH, 3]


def scan_of(value: float) -> Scan:
    return Scan(np.full((16, 16), value, np.float32), np.ones((2, 2), np.float32))


def test_a_digest_tells_every_part_apart() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    changed = pixels.copy()
    changed[31, 31, 2] = 1
    half = Scan(scan_of(1).depth, np.full((2, 2), 0.5, np.float32))
    views = [
        View(pixels, None),
        View(changed, None),
        View(pixels.astype(np.float32), None),
        View(pixels.reshape(16, 64, 3), None),
        View(None, scan_of(1)),
        View(pixels, scan_of(1)),
        View(pixels, scan_of(2)),
        View(pixels, half),
    ]
    digests = [one.digest() for one in views]
    assert len(set(digests)) == len(views)
    assert View(pixels.copy(), scan_of(1)).digest() == digests[5]


def test_on_a_coarser_grid_it_is_means_and_on_a_finer_one_bilinear() -> None:
    level = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert on_grid(level, 4) is level
    assert on_grid(level, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    finer = on_grid(level, 8)[0, 0]
    at = (torch.arange(8) / 2 - 0.25).clamp(0, 3)  # where each lies among the 4; beyond the border the nearest counts
    torch.testing.assert_close(finer, 4 * at[:, None] + at)


def test_levels_stand_first_and_depth_last_unshuffled() -> None:
    backbone = Backbone("efficientnet_lite2", [2, 6])
    pixels, depth = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        levels = backbone(pixels)
        joined = features(backbone, 4, pixels, depth)
        alone = features(None, 4, None, depth)
    first, second = levels[0].shape[1], levels[1].shape[1]
    assert joined.shape == (2, first + second + 64, 4, 4)
    assert torch.equal(joined[:, :first], on_grid(levels[0], 4))
    assert torch.equal(joined[:, first : first + second], on_grid(levels[1], 4))
    assert torch.equal(joined[:, first + second :], alone)
    for row, column in ((0, 0), (3, 5), (7, 7)):
        assert torch.equal(alone[:, 8 * row + column], depth[:, 0, row::8, column::8])


def relief() -> Any:
    depth = np.full((40, 40), 0.5, np.float32)
    depth[10:30, 10:30] = 0.47
    return depth


def test_each_mode_takes_what_it_looks_at_and_needs_nothing_else() -> None:
    picture, depth = image(1), relief()
    both = replace(picture, image=np.zeros((40, 40, 3), np.uint8), depth=depth)
    seen = {mode: view(both, mode, 64, 4) for mode in ("rgb", "depth", "rgb+depth")}
    assert seen["rgb"].scan is None
    assert seen["depth"].pixels is None
    for mode in ("rgb", "rgb+depth"):
        pixels = seen[mode].pixels
        assert pixels is not None
        assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)
    for mode in ("depth", "rgb+depth"):
        scan = seen[mode].scan
        assert scan is not None
        assert scan.depth.shape == (32, 32)
        assert scan.mask.shape == (4, 4)
    assert view(picture, "rgb", 64, 4).pixels is not None
    assert view(replace(both, image=None), "depth", 64, 4).scan is not None


@pytest.mark.parametrize(("mode", "lacking"), [("rgb", "image"), ("rgb+depth", "image"), ("depth", "depth"), ("rgb+depth", "depth")])
def test_a_sample_without_what_the_mode_looks_at_is_bad(mode: Any, lacking: str) -> None:
    both = replace(image(1), image=np.zeros((40, 40, 3), np.uint8), depth=relief())
    with pytest.raises(BadSample, match=f"{lacking} is needed") as caught:
        view(replace(both, **{lacking: None}), mode, 64, 4)
    assert caught.value.reason == "unsupported"
