"""What student and teacher see of a sample, and the features of the training images, computed once and kept on disk."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detectors.ast.depth import UNSHUFFLE, Scan, scan
from detectors.ast.options import Mode
from detectors.backbones import Backbone
from detectors.images import Pixels, square_rgb
from monitor.errors import ConfigError
from monitor.ports import Progress
from monitor.types import Sample

DEPTH_CHANNELS = UNSHUFFLE * UNSHUFFLE
BATCH = 8


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One sample as this detector takes it: (S, S, 3) pixels unless its mode is depth, a scan unless it is rgb."""

    pixels: Pixels | None
    scan: Scan | None

    def digest(self) -> str:
        """sha256 of everything in it."""
        digest = hashlib.sha256()
        pixels = [] if self.pixels is None else [self.pixels]
        for array in [*pixels, *([] if self.scan is None else [self.scan.depth, self.scan.mask])]:
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def view(sample: Sample, mode: Mode, resolution: int, grid: int) -> View:
    """Thread-safe, on the CPU. Raises BadSample where the sample lacks what the mode looks at."""
    return View(
        pixels=None if mode == "depth" else square_rgb(sample, resolution),
        scan=None if mode == "rgb" else scan(sample, grid),
    )


def features(backbone: Backbone | None, grid: int, pixels: Tensor | None, depth: Tensor | None) -> Tensor:
    """(B, C, grid, grid) fp32: the backbone's levels on one grid, then the depth (B, 1, 8 grid, 8 grid) as 64 channels."""
    parts: list[Tensor] = []
    if backbone is not None:
        assert pixels is not None
        parts += [on_grid(level.float(), grid) for level in backbone(pixels)]
    if depth is not None:
        parts.append(functional.pixel_unshuffle(depth, UNSHUFFLE))  # channel = 8 * row offset + column offset
    return torch.cat(parts, dim=1)


def on_grid(level: Tensor, grid: int) -> Tensor:
    """(B, C, S, S) -> (B, C, grid, grid): means where it shrinks, bilinear where it grows."""
    side = level.shape[-1]
    if side == grid:
        return level
    if side > grid:
        return functional.interpolate(level, size=(grid, grid), mode="area")
    return functional.interpolate(level, size=(grid, grid), mode="bilinear", align_corners=False)


class FeatureFile:
    """Rows of fp32 features in one file, of known content: one that was computed for the same view is not computed again.

    `<name>.npy` holds the rows, `<name>.json` a line with what decides them, then one line per finished row: its number, digest and seconds.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], decided_by: object) -> None:
        """`shape` (N, ...) of all rows; another shape, or anything else in `decided_by`, begins the file anew. Raises OSError without room."""
        self._index = path.with_suffix(".json")
        head = json.dumps([shape, decided_by])
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._whole_lines()
        kept = bool(lines) and lines[0] == head and path.exists()
        self._done: dict[int, tuple[str, float]] = {}
        for row, digest, seconds in map(json.loads, lines[1:] if kept else []):
            self._done[row] = digest, seconds
        if not kept:
            self._index.unlink(missing_ok=True)  # first: it would vouch for rows that are not there
        self.rows = np.lib.format.open_memmap(path, mode="r+" if kept else "w+", dtype=np.float32, shape=None if kept else shape)
        if not kept:
            try:
                with path.open("r+b") as file:  # else a disk that fills up later kills the process: the rows are mapped
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError:
                path.unlink()  # what it did get would keep the disk full
                raise
            self._index.write_text(head + "\n")

    def holds(self, row: int, digest: str) -> bool:
        return row in self._done and self._done[row][0] == digest

    @property
    def seconds(self) -> float:
        """What all rows took together, in this process and those before."""
        return sum(seconds for _, seconds in self._done.values())

    def write(self, first: int, rows: Tensor, digests: Sequence[str], seconds: float) -> None:
        """`seconds`: what these rows took together."""
        done = {first + offset: (digest, seconds / len(digests)) for offset, digest in enumerate(digests)}
        self.rows[first : first + len(rows)] = rows.cpu().numpy()
        self.rows.flush()
        with self._index.open("a") as index:
            index.writelines(json.dumps([row, *facts]) + "\n" for row, facts in done.items())
            index.flush()
            os.fsync(index.fileno())
        self._done |= done

    def _whole_lines(self) -> list[str]:
        """Of the index; a last line that a kill left torn is cut off, lest the next one is written behind it."""
        if not self._index.exists():
            return []
        content = self._index.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self._index, len(whole))
        return whole.decode().splitlines()

    def tensor(self) -> Tensor:
        """(N, ...), read from the disk as it is used."""
        return torch.from_numpy(self.rows)


def reserved(folder: Path, counts: Mapping[str, int], *, channels: int, grid: int, most: int, decided_by: object) -> dict[str, FeatureFile]:
    """Of each set of images its file (N, channels, grid, grid). Raises ConfigError beyond `most` bytes together, or the disk's room."""
    row = 4 * channels * grid * grid
    if (needed := row * sum(counts.values())) > most:
        raise ConfigError(f"feature_cache: {most} bytes: the features of {sum(counts.values())} images need {needed}")
    files = {}
    for name, count in counts.items():
        path = folder / f"{name}.npy"
        try:
            files[name] = FeatureFile(path, (count, channels, grid, grid), decided_by)
        except OSError as error:
            raise ConfigError(f"feature_cache: {path} cannot take {row * count} bytes: {error.strerror}") from error
    return files


def fill(
    file: FeatureFile,
    samples: Sequence[Sample],
    *,
    seen: Callable[[Sample], View],
    compute: Callable[[Sequence[View]], Tensor],
    phase: str,
    progress: Progress,
) -> None:
    """`compute` of batches of what is `seen`, but for those that the file holds.

    Batches are always the same, so that a row does not depend on where an interrupted computation went on.
    """
    for first in range(0, len(samples), BATCH):
        started = time.monotonic()
        views = [seen(samples[index]) for index in range(first, min(first + BATCH, len(samples)))]
        digests = [one.digest() for one in views]
        if not all(file.holds(first + offset, digest) for offset, digest in enumerate(digests)):
            rows = compute(views)
            file.write(first, rows, digests, time.monotonic() - started)
        progress(phase, first + len(views), len(samples), {})
