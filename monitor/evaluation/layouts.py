"""How data sets lie on disk -> normal samples to train on, labelled ones to evaluate on.

mvtec    <data>/<category>/train/good/*, test/<defect>/*, ground_truth/<defect>/<stem>_mask.* (normal: test/good)
folder   <data>/*, normal samples only
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from monitor.decoding import decode
from monitor.errors import BadSample, ConfigError
from monitor.ports import SourceOptions
from monitor.types import Message, Sample

LAYOUTS = ("mvtec", "folder")
NORMAL = "good"
SOURCE = "dataset"

LIMITS = SourceOptions(max_bytes=1024**3, max_pixels=500_000_000, max_seconds=24 * 3600.0)
"""Files that an operator names are trusted more than what comes over a network, and may be larger."""


class Files(Sequence[Sample]):
    """Samples that are decoded when indexed, never all held at once: source "dataset", topic the category, position the path."""

    def __init__(self, root: Path, topic: str, paths: Sequence[Path]) -> None:
        self.root = root
        self.topic = topic
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> "Files": ...

    def __getitem__(self, index: int | slice) -> "Sample | Files":
        """Raises ConfigError naming a file that cannot be read as a sample."""
        if isinstance(index, slice):
            return Files(self.root, self.topic, self.paths[index])
        return self.sample(index, self.payload(index))

    def take(self, indices: Sequence[int]) -> "Files":
        """Those samples only."""
        return Files(self.root, self.topic, [self.paths[index] for index in indices])

    def position(self, index: int) -> str:
        """The path relative to the data set."""
        return self.paths[index].relative_to(self.root).as_posix()

    def payload(self, index: int) -> bytes:
        """The file's bytes. Raises ConfigError."""
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise ConfigError(f"{self.paths[index]}: cannot be read: {error.strerror}") from error

    def sample(self, index: int, payload: bytes) -> Sample:
        """Of bytes that were read already. Raises ConfigError."""
        modified = self.paths[index].stat().st_mtime
        message = Message(source=SOURCE, topic=self.topic, position=self.position(index), payload=payload, received=modified)
        try:
            return decode(message, LIMITS)
        except BadSample as error:
            raise ConfigError(f"{self.paths[index]}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The test split: samples with what each shows ("good", or the defect's name) and where its mask lies, if it has one."""

    files: Files
    defects: tuple[str, ...]
    masks: tuple[Path | None, ...]

    @property
    def anomalous(self) -> NDArray[np.bool_]:
        """(N,) bool."""
        return np.array([defect != NORMAL for defect in self.defects], dtype=np.bool_)

    @property
    def masked(self) -> bool:
        """Whether every defect has its mask, so that pixels can be evaluated."""
        pairs = zip(self.defects, self.masks, strict=True)
        return any(self.anomalous) and all(mask is not None for defect, mask in pairs if defect != NORMAL)

    def mask(self, index: int, height: int, width: int) -> NDArray[np.bool_]:
        """(height, width) bool: where the defect is; nowhere on a normal sample. Raises ConfigError for one of another size."""
        path = self.masks[index]
        if path is None:
            return np.zeros((height, width), dtype=np.bool_)
        import cv2  # noqa: PLC0415 (heavy, and training does without)

        mask = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise ConfigError(f"{path}: expected an image that shows where the defect is")
        if mask.shape != (height, width):
            raise ConfigError(f"{path}: expected a mask of {width} x {height} as its image, found {mask.shape[1]} x {mask.shape[0]}")
        return np.asarray(mask > 0, dtype=np.bool_)


def training_files(layout: str, data: Path, category: str | None) -> Files:
    """The normal samples to train on, in the order of their names. Raises ConfigError saying what was expected and found."""
    if layout == "folder":
        if category is not None:
            raise ConfigError("--category: the layout folder has none: --data is the folder of normal files itself")
        return Files(data, data.resolve().name, _files(data, "normal samples"))
    root = _category(layout, data, category)
    return Files(root, root.name, _files(root / "train" / NORMAL, "normal samples to train on"))


def labelled_files(layout: str, data: Path, category: str | None) -> Labelled:
    """The labelled test split. Raises ConfigError saying what was expected and found."""
    if layout == "folder":
        raise ConfigError("--layout: folder has no labelled test split: expected mvtec")
    root = _category(layout, data, category)
    folders = _folders(root / "test", f"one folder per defect and {NORMAL}")
    if NORMAL not in [folder.name for folder in folders] or len(folders) < 2:
        raise ConfigError(f"{root / 'test'}: expected {NORMAL} and at least one defect, found {_named(folders)}")
    paths: list[Path] = []
    masks: list[Path | None] = []
    for folder in folders:
        found = _files(folder, "test samples")
        drawn = root / "ground_truth" / folder.name
        by_stem = {mask.stem.removesuffix("_mask"): mask for mask in _files(drawn, "masks")} if drawn.is_dir() else {}
        if by_stem and (missing := [path.name for path in found if path.stem not in by_stem]):
            raise ConfigError(f"{drawn}: expected a mask STEM_mask.* of every image, found none of {', '.join(missing[:5])}")
        paths += found
        masks += [by_stem.get(path.stem) for path in found]
    return Labelled(files=Files(root, root.name, paths), defects=tuple(path.parent.name for path in paths), masks=tuple(masks))


def _category(layout: str, data: Path, category: str | None) -> Path:
    if layout not in LAYOUTS:
        raise ConfigError(f"--layout: unknown layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    expected = f"{data}: expected folders of categories, each with train/{NORMAL} and test (layout mvtec)"
    categories = [folder for folder in _folders(data, "categories") if (folder / "train").is_dir()]
    if not categories:
        raise ConfigError(f"{expected}, found {_named(_folders(data, 'categories'))}")
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
