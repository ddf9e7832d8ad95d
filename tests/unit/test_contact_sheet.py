"""The picture of what a training sees."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from detectors.contact_sheet import COLUMNS, GAP, LINE, main


def images(folder: Path, count: int = 2) -> Path:
    folder.mkdir()
    for number in range(count):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((50, 40, 3), (30, 90, 200), np.uint8))
    return folder


def tiles(path: Path, side: int) -> list[list[np.ndarray]]:
    """Rows of (side, side, 3) RGB."""
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    height, width = side + LINE + GAP, side + 2 * GAP
    assert picture.shape[0] % height == 0
    assert picture.shape[1] % width == 0
    return [
        [picture[top + LINE : top + LINE + side, left + GAP : left + GAP + side] for left in range(0, picture.shape[1], width)]
        for top in range(0, picture.shape[0], height)
    ]


@pytest.mark.parametrize("source", [False, True])
def test_each_row_shows_a_sample_with_an_anomaly(tmp_path: Path, source: bool) -> None:
    folder, out = images(tmp_path / "good"), tmp_path / "sheet.png"
    options = ["--side", "64", "--count", "4"]
    if source:
        (tmp_path / "textures").mkdir()
        cv2.imwrite(str(tmp_path / "textures" / "green.jpg"), np.full((20, 20, 3), (0, 200, 0), np.uint8))
        options += ["--anomaly-source", str(tmp_path / "textures")]
    assert main([str(folder), str(out), *options]) == 0
    rows = tiles(out, 64)
    assert len(rows) == 4
    assert len(rows[0]) == len(COLUMNS) + 3  # a texture and what ten augmenters make of it
    for clean, anomalous, _, mask, texture, *_ in rows:
        assert set(np.unique(mask)) == {0, 255}
        assert (clean[mask == 0] == anomalous[mask == 0]).all()
        assert (clean != anomalous).any()
        if source:
            assert np.abs(texture.astype(int) - (0, 200, 0)).max() <= 3  # JPEG
    first = out.read_bytes()
    main([str(folder), str(out), *options])
    assert out.read_bytes() == first
    main([str(folder), str(out), *options, "--seed", "1"])
    assert out.read_bytes() != first


def test_mistakes_are_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = str(images(tmp_path / "good")), str(tmp_path / "sheet.png")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "gone"), out], "gone: no such folder"),
        ([str(tmp_path / "empty"), out], "empty: no image in it"),
        ([folder, out, "--anomaly-source", str(tmp_path / "empty")], "empty: no image in it"),
        ([folder, str(tmp_path / "gone" / "sheet.png")], "sheet.png: cannot be written: No such file"),
        ([folder, out, "--side", "8"], "--side 8: 32 to 2048"),
        ([folder, out, "--count", "0"], "--count 0: 1 to 100"),
        ([folder, out, "--seed", "-1"], "--seed -1: 0 or more"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()
