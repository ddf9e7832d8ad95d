"""How data sets lie on disk -> normal samples to train on, labelled ones to evaluate on.

mvtec    <data>/<category>/train/good/*, test/<defect>/*, ground_truth/<defect>/<stem>_mask.* (normal: test/good)
mvtec3d  <data>/<category>/{train,test}/<defect>/rgb/<stem>.* and xyz/<stem>.*, test/<defect>/gt/<stem>.* (normal: good)
dcase2020, dcase2022  <data>/dev_data/<machine>/{train,test}/*.wav, named as monitor.evaluation.dcase says
folder   <data>/*, normal samples only
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from monitor.decoding import decode
from monitor.errors import BadSample, ConfigError
from monitor.evaluation import dcase
from monitor.ports import SourceOptions
from monitor.types import Message, Sample

LABELLED = ("mvtec", "mvtec3d", *dcase.LAYOUTS)
LAYOUTS = (*LABELLED, "folder")
NORMAL = "good"
SOURCE = "dataset"

LIMITS = SourceOptions(max_bytes=1024**3, max_pixels=500_000_000, max_seconds=24 * 3600.0)
"""Files that an operator names are trusted more than what comes over a network, and may be larger."""


class Files(Sequence[Sample]):
    """Samples that are decoded when indexed, never all held at once: source "dataset", topic the category, position the path.

    paths: one file per sample, or, with `depths`, the image; depths: the file of its depth.
    """

    def __init__(self, root: Path, topic: str, paths: Sequence[Path], depths: Sequence[Path] | None = None) -> None:
        assert depths is None or len(depths) == len(paths)
        self.root = root
        self.topic = topic
        self.paths = tuple(paths)
        self.depths = None if depths is None else tuple(depths)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> "Files": ...

    def __getitem__(self, index: int | slice) -> "Sample | Files":
        """Raises ConfigError naming a file that cannot be read as a sample."""
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self.sample(index, self.payloads(index))

    def take(self, indices: Sequence[int]) -> "Files":
        """Those samples only."""
        depths = None if self.depths is None else [self.depths[index] for index in indices]
        return Files(self.root, self.topic, [self.paths[index] for index in indices], depths)

    def position(self, index: int) -> str:
        """The path relative to the data set."""
        return self.paths[index].relative_to(self.root).as_posix()

    def payloads(self, index: int) -> tuple[bytes, ...]:
        """The bytes of each of the sample's files. Raises ConfigError."""
        return tuple(_bytes(path) for path in self._of(index))

    def sample(self, index: int, payloads: Sequence[bytes]) -> Sample:
        """Of bytes that were read already. Raises ConfigError."""
        paths = self._of(index)
        one, *others = (self._decoded(path, payload) for path, payload in zip(paths, payloads, strict=True))
        for other in others:
            one = _joined(one, other, paths)
        return one

    def _of(self, index: int) -> tuple[Path, ...]:
        return (self.paths[index],) if self.depths is None else (self.paths[index], self.depths[index])

    def _decoded(self, path: Path, payload: bytes) -> Sample:
        position = path.relative_to(self.root).as_posix()
        message = Message(source=SOURCE, topic=self.topic, position=position, payload=payload, received=path.stat().st_mtime)
        try:
            return decode(message, LIMITS)
        except BadSample as error:
            raise ConfigError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The test split: samples with what each shows (`normal`, or the defect's name) and where its mask lies, if it has one.

    clips: of sound, what the name of each says.
    """

    files: Files
    defects: tuple[str, ...]
    masks: tuple[Path | None, ...]
    normal: str = NORMAL
    clips: tuple[dcase.Clip, ...] | None = None

    @property
    def anomalous(self) -> NDArray[np.bool_]:
        """(N,) bool."""
        return np.array([defect != self.normal for defect in self.defects], dtype=np.bool_)

    @property
    def masked(self) -> bool:
        """Whether every defect has its mask, so that pixels can be evaluated."""
        pairs = zip(self.defects, self.masks, strict=True)
        return any(self.anomalous) and all(mask is not None for defect, mask in pairs if defect != self.normal)

    def mask(self, index: int, height: int, width: int) -> NDArray[np.bool_]:
        """(height, width) bool: where the defect is; nowhere on a normal sample. Raises ConfigError for one of another size."""
        path = self.masks[index]
        if path is None:
            return np.zeros((height, width), dtype=np.bool_)
        import cv2  # noqa: PLC0415 (heavy, and training does without)

        mask = cv2.imdecode(np.frombuffer(_bytes(path), np.uint8), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise ConfigError(f"{path}: expected an image that shows where the defect is")
        if mask.shape != (height, width):
            raise ConfigError(f"{path}: expected a mask of {width} x {height} as its image, found {mask.shape[1]} x {mask.shape[0]}")
        return np.asarray(mask > 0, dtype=np.bool_)


def training_files(layout: str, data: Path, category: str | None) -> Files:
    """The normal samples to train on, in the order of their names; those of several machines, sections or domains mixed.

    Raises ConfigError saying what was expected and found.
    """
    if layout == "folder":
        if category is not None:
            raise ConfigError("--category: the layout folder has none: --data is the folder of normal files itself")
        return Files(data, data.resolve().name, _files(data, "normal samples"))
    root = _category(layout, data, category)
    if layout in dcase.LAYOUTS:
        paths = _files(root / "train", f"normal clips to train on (layout {layout})")
        return Files(root, root.name, dcase.training_order(paths, dcase.clips(layout, paths, "train")))
    normal = root / "train" / NORMAL
    if layout == "mvtec3d":
        return Files(root, root.name, *_scans(normal))
    return Files(root, root.name, _files(normal, "normal samples to train on (layout mvtec)"))


def labelled_files(layout: str, data: Path, category: str | None) -> Labelled:
    """The labelled test split. Raises ConfigError saying what was expected and found."""
    if layout == "folder":
        raise ConfigError(f"--layout: folder has no labelled test split: expected one of {', '.join(LABELLED)}")
    root = _category(layout, data, category)
    if layout in dcase.LAYOUTS:
        paths = _files(root / "test", f"test clips (layout {layout})")
        clips = dcase.clips(layout, paths, "test")
        dcase.check_test(layout, root / "test", clips)
        truths = tuple(clip.truth for clip in clips)
        return Labelled(files=Files(root, root.name, paths), defects=truths, masks=(None,) * len(paths), normal=dcase.NORMAL, clips=tuple(clips))
    folders = _folders(root / "test", f"one folder per defect and {NORMAL}")
    if NORMAL not in [folder.name for folder in folders] or len(folders) < 2:
        raise ConfigError(f"{root / 'test'}: expected {NORMAL} and at least one defect, found {_named(folders)}")
    paths = []
    depths: list[Path] = []
    defects: list[str] = []
    masks: list[Path | None] = []
    for folder in folders:
        if layout == "mvtec3d":
            found, deep = _scans(folder)
            depths += deep
            drawn = _masks(folder / "gt", "", found) if folder.name != NORMAL else [None] * len(found)
        else:
            found = _files(folder, "test samples (layout mvtec)")
            drawn = _masks(root / "ground_truth" / folder.name, "_mask", found)
        paths += found
        masks += drawn
        defects += [folder.name] * len(found)
    files = Files(root, root.name, paths, depths if layout == "mvtec3d" else None)
    return Labelled(files=files, defects=tuple(defects), masks=tuple(masks))


def _scans(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images of `rgb` and, in their order, the files of the same stem in `xyz`. Raises ConfigError where one lacks the other."""
    images, points = _files(folder / "rgb", "images (layout mvtec3d)"), _files(folder / "xyz", "scans (layout mvtec3d)")
    rgb, xyz = Counter(path.stem for path in images), Counter(path.stem for path in points)
    if odd := sorted(stem for stem in rgb | xyz if (rgb[stem], xyz[stem]) != (1, 1)):
        raise ConfigError(f"{folder}: expected one file of each name in rgb and one in xyz, not so of {', '.join(odd[:5])}")
    by_stem = {path.stem: path for path in points}
    return images, [by_stem[path.stem] for path in images]


def _masks(folder: Path, suffix: str, images: Sequence[Path]) -> list[Path | None]:
    """Of each image the mask STEM<suffix>.*; of none where there is no such folder. Raises ConfigError where some lack theirs."""
    by_stem = {mask.stem.removesuffix(suffix): mask for mask in _files(folder, "masks")} if folder.is_dir() else {}
    if by_stem and (missing := [path.name for path in images if path.stem not in by_stem]):
        raise ConfigError(f"{folder}: expected a mask STEM{suffix}.* of every image, found none of {', '.join(missing[:5])}")
    return [by_stem.get(path.stem) for path in images]


def _joined(image: Sample, depth: Sample, paths: Sequence[Path]) -> Sample:
    """The two files of one scan -> one sample. Raises ConfigError naming both."""
    where = " and ".join(map(str, paths))
    if image.image is None or image.depth is not None or depth.depth is None or depth.image is not None:
        raise ConfigError(f"{where}: expected an image and a scan, found {image.sensors} in one and {depth.sensors} in the other")
    if image.image.shape[:2] != depth.depth.shape:
        sizes = [f"{width} x {height}" for height, width in (image.image.shape[:2], depth.depth.shape)]
        raise ConfigError(f"{where}: expected the same width and height, found {sizes[0]} and {sizes[1]}")
    return replace(image, depth=depth.depth)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _category(layout: str, data: Path, category: str | None) -> Path:
    if layout not in LAYOUTS:
        raise ConfigError(f"--layout: unknown layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    sound = layout in dcase.LAYOUTS
    data, what, inside = (data / "dev_data", "machines", "train and test") if sound else (data, "categories", f"train/{NORMAL} and test")
    entries = _folders(data, what)
    categories = [folder for folder in entries if (folder / "train").is_dir()]
    if not categories:
        raise ConfigError(f"{data}: expected folders of {what}, each with {inside} (layout {layout}), found {_named(entries)}")
    if category is None:
        raise ConfigError(f"--category: missing: expected one of {_named(categories)}")
    for folder in categories:
        if folder.name == category:
            return folder
    raise ConfigError(f"--category: {category!r} is not in {data}: expected one of {_named(categories)}")


def _folders(path: Path, what: str) -> list[Path]:
    if not path.is_dir():
        raise ConfigError(f"{path}: expected a folder of {what}, found {'a file' if path.exists() else 'nothing'}")
    return sorted(entry for entry in path.iterdir() if entry.is_dir())


def _files(path: Path, what: str) -> list[Path]:
    """The files of a folder by name, hidden ones aside. Raises ConfigError where there are none."""
    if not path.is_dir():
        raise ConfigError(f"{path}: expected a folder of {what}, found {'a file' if path.exists() else 'nothing'}")
    found = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if not found:
        raise ConfigError(f"{path}: expected {what}, found {_named(list(path.iterdir())) or 'no files'}")
    return found


def _named(entries: Sequence[Path]) -> str:
    names = sorted(entry.name for entry in entries)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") if names else "none"
