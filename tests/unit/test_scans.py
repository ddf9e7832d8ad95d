"""Scans from files to figures: the synthetic ones are what they say, and layout, training, evaluation and report take them."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fake_detector import FakeOptions
from monitor import reference
from monitor.decoding import decode
from monitor.errors import ConfigError
from monitor.evaluation.evaluate import evaluate
from monitor.evaluation.layouts import labelled_files, training_files
from monitor.evaluation.report import write_report
from monitor.ports import SourceOptions
from monitor.reference import load_detector
from monitor.store import ModelStore
from monitor.training import Job, train
from monitor.types import Message, Sample
from scans import DEFECTS, HEIGHT, scan, write_messages, write_scans

SIDE = 96


def quiet(*_: object, **__: object) -> None:
    pass


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Below a folder that has `rgb` in its name, too."""
    folder = tmp_path_factory.mktemp("data") / "rgb_and_xyz"
    write_scans(folder, train=10, test_per_defect=2, side=SIDE)
    return folder


@pytest.fixture
def own(scans: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(scans, tmp_path / "rgb_and_xyz"))


@pytest.mark.parametrize("seed", range(3))
def test_a_dent_is_in_z_only_and_a_stain_in_the_colours_only(seed: int) -> None:
    good, dent, stain, both = (scan(defect, side=SIDE, seed=(seed,)) for defect in ("good", *DEFECTS))
    np.testing.assert_array_equal(dent.image, good.image)
    np.testing.assert_array_equal(stain.xyz, good.xyz)
    np.testing.assert_array_equal(both.image, stain.image)
    np.testing.assert_array_equal(both.xyz, dent.xyz)
    assert not good.mask.any()
    for spoilt in (dent, stain, both):
        np.testing.assert_array_equal(spoilt.mask, dent.mask)
        assert 0.002 < spoilt.mask.mean() < 0.05
    moved = np.abs(dent.xyz[..., 2] - good.xyz[..., 2])
    assert 0.0025 < moved[dent.mask].max() < 0.0055
    assert moved[~dent.mask].max() < 0.0006
    recoloured = np.abs(stain.image.astype(int) - good.image).max(axis=2)
    assert np.median(recoloured[stain.mask]) > 15
    assert recoloured[~stain.mask].mean() < 0.5


def test_a_scan_is_as_a_3d_camera_sees_a_block() -> None:
    one, other = (scan("good", side=128, seed=(number,)) for number in range(2))
    assert not np.array_equal(one.image, other.image)
    for found in (one, other):
        x, y, z = np.moveaxis(found.xyz, -1, 0)
        assert (found.xyz.dtype, found.image.dtype) == (np.float32, np.uint8)
        missing = z == 0
        assert 0.001 < missing.mean() < 0.1
        assert not x[missing].any()
        assert not y[missing].any()
        assert 0.45 < z[~missing].min() < z[~missing].max() < 0.52
        corners, middle = z[:20, :20], z[54:74, 54:74]
        assert np.median(corners[corners > 0]) - np.median(middle[middle > 0]) == pytest.approx(HEIGHT, abs=0.005)
        assert np.ptp(x[~missing]) == pytest.approx(0.1, abs=0.005)
    np.testing.assert_array_equal(one.xyz, scan("good", side=128, seed=(0,)).xyz)


def test_mvtec3d_joins_image_and_depth(scans: Path) -> None:
    files = training_files("mvtec3d", scans, "block")
    assert [files.position(index) for index in range(2)] == ["train/good/rgb/000.png", "train/good/rgb/001.png"]
    assert len(files) == 10  # the validation split is not used
    sample = files[3]
    assert sample.id == "dataset/block/train/good/rgb/003.png"
    assert sample.modality == "rgbd"
    assert sample.image is not None
    assert sample.depth is not None
    assert (sample.image.shape, sample.depth.shape) == ((SIDE, SIDE, 3), (SIDE, SIDE))
    folder = scans / "block" / "train" / "good"
    np.testing.assert_array_equal(sample.image, cv2.imread(str(folder / "rgb" / "003.png"))[..., ::-1])
    np.testing.assert_array_equal(sample.depth, cv2.imread(str(folder / "xyz" / "003.tiff"), cv2.IMREAD_UNCHANGED)[..., 0])
    np.testing.assert_array_equal(sample.measured, sample.depth > 0)
    assert files.payloads(3) == tuple((folder / name).read_bytes() for name in ("rgb/003.png", "xyz/003.tiff"))
    for some in (files[2:5], files.take([2, 3, 4])):
        assert len(some) == 3
        np.testing.assert_array_equal(some[1].depth, sample.depth)


def test_mvtec3d_labels_by_folder_and_finds_the_masks(scans: Path, own: Path) -> None:
    for folder in (scans, own):
        labelled = labelled_files("mvtec3d", folder, "block")
        assert labelled.defects == ("both", "both", "dent", "dent", "good", "good", "stain", "stain")
        assert labelled.masked
        for index, defect in enumerate(labelled.defects):
            assert labelled.files.position(index) == f"test/{defect}/rgb/{index % 2:03}.png"
            assert labelled.mask(index, SIDE, SIDE).any() == (defect != "good")
        shutil.rmtree(own / "block" / "test" / "good" / "gt", ignore_errors=True)  # normal ones need none
    for defect in DEFECTS:
        shutil.rmtree(own / "block" / "test" / defect / "gt")
    assert not labelled_files("mvtec3d", own, "block").masked


def _small(path: Path) -> None:
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), (40, 30)))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no xyz": (
        lambda good: (good / "xyz" / "004.tiff").unlink(),
        r"good: expected one file of each name in rgb and one in xyz, not so of 004$",
    ),
    "no rgb": (lambda good: (good / "rgb" / "004.png").unlink(), "not so of 004$"),
    "two rgb": (lambda good: shutil.copy(good / "rgb" / "004.png", good / "rgb" / "004.jpg"), "not so of 004$"),
    "no folder": (lambda good: shutil.rmtree(good / "xyz"), r"train/good/xyz: expected a folder of scans \(layout mvtec3d\), found nothing"),
    "other size": (lambda good: _small(good / "xyz" / "004.tiff"), r"rgb/004\.png and .*xyz/004\.tiff: expected the same .* 96 x 96 and 40 x 30"),
    "two images": (
        lambda good: (good / "xyz" / "004.tiff").write_bytes((good / "rgb" / "004.png").read_bytes()),
        r"rgb/004\.png and .*xyz/004\.tiff: expected an image and a scan, found image in one and image in the other",
    ),
    "cut": (lambda good: (good / "xyz" / "004.tiff").write_bytes((good / "xyz" / "004.tiff").read_bytes()[:5000]), r"xyz/004\.tiff: "),
}


@pytest.mark.parametrize("what", SPOILT)
def test_scans_that_do_not_fit_are_named(own: Path, what: str) -> None:
    spoil, words = SPOILT[what]
    spoil(own / "block" / "train" / "good")
    with pytest.raises(ConfigError, match=words):
        training_files("mvtec3d", own, "block")[4]


def test_the_layouts_are_not_taken_for_each_other(scans: Path) -> None:
    with pytest.raises(ConfigError, match=r"good: expected normal samples to train on \(layout mvtec\), found rgb, xyz"):
        training_files("mvtec", scans, "block")
    (scans.parent / "flat" / "cup" / "train" / "good").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"train/good/rgb: expected a folder of images \(layout mvtec3d\), found nothing"):
        training_files("mvtec3d", scans.parent / "flat", "cup")


def test_messages_of_scans_decode_to_the_same_sample(scans: Path, tmp_path: Path) -> None:
    labelled = labelled_files("mvtec3d", scans, "block")
    for number, path in enumerate(write_messages(tmp_path, defect="dent", count=2, side=SIDE)):
        sent = decode(Message(source="s", topic="t", position="1", payload=path.read_bytes(), received=1.0), SourceOptions())
        filed = labelled.files[2 + number]
        assert sent.modality == "rgbd"
        np.testing.assert_array_equal(sent.image, filed.image)
        np.testing.assert_array_equal(sent.depth, filed.depth)


def test_who_can_look_at_what() -> None:
    image: NDArray[np.uint8] = np.zeros((4, 5, 3), np.uint8)
    depth: NDArray[np.float32] = np.ones((4, 5), np.float32)
    common = {"source": "s", "topic": "t", "position": "1", "stream": "x", "captured": 0.0, "received": 0.0}
    takers = {
        "image": Sample(**common, image=image),
        "image rgbd": Sample(**common, image=image, depth=depth),
        "rgbd": Sample(**common, depth=depth),
        "sound": Sample(**common, waveform=depth, rate=8000),
    }
    for modalities, sample in takers.items():
        assert [one for one in ("image", "rgbd", "sound") if sample.has(one)] == modalities.split()
    assert [sample.sensors for sample in takers.values()] == ["image", "image and depth", "depth", "sound"]


def test_training_evaluation_and_report_take_scans(scans: Path, own: Path, tmp_path: Path) -> None:
    """By a detector of images, which sees the image of each: stains, and nothing of dents."""
    store = ModelStore(tmp_path / "models")

    def trained(data: Path) -> Job:
        return Job(
            name="block",
            kind="fake",
            options=FakeOptions(score="largest"),
            files=training_files("mvtec3d", data, "block"),
            seed=3,
            device="cpu",
            false_alarm_probability=0.1,
            max_batch_size=4,
        )

    version = train(trained(scans), store=store, progress=quiet, report=quiet).version
    files = training_files("mvtec3d", scans, "block")
    digests = [hashlib.sha256(b"".join(files.payloads(index))).hexdigest() for index in range(len(files))]
    assert version.manifest["trained_on"]["sha256"] == hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    xyz = own / "block" / "train" / "good" / "xyz"
    (xyz / "001.tiff").write_bytes((xyz / "002.tiff").read_bytes())
    other = train(trained(own), store=store, progress=quiet, report=quiet).version
    assert other.manifest["trained_on"]["sha256"] != version.manifest["trained_on"]["sha256"]  # the depth counts as well
    kept = reference.read(version.folder)
    assert kept
    for one in kept:
        index = [files.position(index) for index in range(len(files))].index(one.position)
        np.testing.assert_array_equal(one.depth, files[index].depth)
        np.testing.assert_array_equal(one.image, files[index].image)

    (tmp_path / "maps").mkdir()
    evaluation = evaluate(
        load_detector(version, device="cpu", precision="auto", report=quiet),
        version,
        labelled_files("mvtec3d", scans, "block"),
        false_alarm_probability=0.1,
        max_batch_size=4,
        folder=tmp_path / "maps",
        progress=quiet,
    )
    figures = evaluation.figures()
    assert (figures["n_normal"], figures["n_anomalous"]) == (2, 6)
    assert 0 <= figures["aupro"] <= 1
    page = write_report(evaluation, {**figures, "layout": "mvtec3d", "category": "block"}, tmp_path / "report", quiet).read_text()
    assert len(re.findall(r'src="data:image/', page)) == 3 + 3 * 8  # the curves; image, depth and overlay of each scan
    assert "what was not measured is blue" in page
    assert {path.parent.name for path in (tmp_path / "report" / "overlays").rglob("*.jpg")} == {"good", *DEFECTS}
