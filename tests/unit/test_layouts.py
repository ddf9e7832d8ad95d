"""Data sets on disk: found as described, refused in words otherwise."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from monitor.errors import ConfigError
from monitor.evaluation.layouts import labelled_files, training_files


def image(path: Path, value: int = 100, shape: tuple[int, ...] = (8, 12, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full(shape, value, np.uint8))
    return path


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    for n in range(3):
        image(tmp_path / "cup" / "train" / "good" / f"{n:03}.jpg")
    image(tmp_path / "cup" / "test" / "good" / "000.png")
    for n in range(2):
        image(tmp_path / "cup" / "test" / "crack" / f"{n:03}.jpg")
        mask = image(tmp_path / "cup" / "ground_truth" / "crack" / f"{n:03}_mask.png", 0, (8, 12))
        drawn = np.zeros((8, 12), np.uint8)
        drawn[2:4, 3 : 6 + n] = 255
        cv2.imwrite(str(mask), drawn)
    image(tmp_path / "other" / "train" / "good" / "a.bmp")
    return tmp_path


def test_mvtec(mvtec: Path) -> None:
    files = training_files("mvtec", mvtec, "cup")
    assert [files.position(index) for index in range(len(files))] == ["train/good/000.jpg", "train/good/001.jpg", "train/good/002.jpg"]
    sample = files[1]
    assert sample.id == "dataset/cup/train/good/001.jpg"
    assert sample.image is not None
    assert sample.image.shape == (8, 12, 3)
    assert len(files[1:]) == 2
    labelled = labelled_files("mvtec", mvtec, "cup")
    assert labelled.defects == ("crack", "crack", "good")
    assert labelled.anomalous.tolist() == [True, True, False]
    assert labelled.masked
    assert [int(labelled.mask(index, 8, 12).sum()) for index in range(3)] == [6, 8, 0]
    with pytest.raises(ConfigError, match="expected a mask of 10 x 8 as its image, found 12 x 8"):
        labelled.mask(0, 8, 10)


def test_without_masks_only_images_are_evaluated(mvtec: Path) -> None:
    for mask in (mvtec / "cup" / "ground_truth" / "crack").iterdir():
        mask.unlink()
    (mvtec / "cup" / "ground_truth" / "crack").rmdir()
    assert not labelled_files("mvtec", mvtec, "cup").masked


def test_folder(tmp_path: Path) -> None:
    image(tmp_path / "b.png")
    image(tmp_path / "a.bmp")
    (tmp_path / ".hidden").write_text("x")
    assert [path.name for path in training_files("folder", tmp_path, None).paths] == ["a.bmp", "b.png"]
    with pytest.raises(ConfigError, match="--category"):
        training_files("folder", tmp_path, "cup")
    with pytest.raises(ConfigError, match="no labelled test split"):
        labelled_files("folder", tmp_path, None)


@pytest.mark.parametrize(
    ("layout", "category", "words"),
    [
        ("mvtec", None, "--category: missing: expected one of cup, other"),
        ("mvtec", "plate", "'plate' is not in .*: expected one of cup, other"),
        ("mvtec", "..", "is not in"),
        ("coco", "cup", "unknown layout 'coco': expected one of mvtec, mvtec3d, dcase2020, dcase2022, folder"),
    ],
)
def test_wrong_arguments_are_named(mvtec: Path, layout: str, category: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        training_files(layout, mvtec, category)


def test_wrong_folders_are_named(mvtec: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found nothing"):
        training_files("mvtec", tmp_path / "nowhere", "cup")
    with pytest.raises(ConfigError, match=r"expected folders of categories.*found good"):
        training_files("mvtec", mvtec / "cup" / "train", "good")
    with pytest.raises(ConfigError, match=r"test: expected a folder of one folder per defect and good, found nothing"):
        labelled_files("mvtec", mvtec, "other")
    (mvtec / "cup" / "ground_truth" / "crack" / "001_mask.png").unlink()
    with pytest.raises(ConfigError, match=r"found none of 001\.jpg"):
        labelled_files("mvtec", mvtec, "cup")
    (mvtec / "cup" / "test" / "good").rename(mvtec / "cup" / "test" / "fine")
    with pytest.raises(ConfigError, match="expected good and at least one defect, found crack, fine"):
        labelled_files("mvtec", mvtec, "cup")


def test_a_file_that_is_no_sample_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        training_files("folder", tmp_path, None)[0]


@pytest.mark.parametrize(
    ("folder", "category", "train", "good", "defects"), [("mvtec", "bottle", 209, 20, 63), ("mvtec_layout", "magnetic_tile", 300, 100, 192)]
)
def test_real_data(*, data: Path, folder: str, category: str, train: int, good: int, defects: int) -> None:
    assert len(training_files("mvtec", data / folder, category)) == train
    labelled = labelled_files("mvtec", data / folder, category)
    assert (int((~labelled.anomalous).sum()), int(labelled.anomalous.sum())) == (good, defects)
    assert labelled.masked
    for index in range(0, len(labelled.files), 40):
        image = labelled.files[index].image
        assert image is not None
        assert labelled.mask(index, *image.shape[:2]).any() == labelled.anomalous[index]
