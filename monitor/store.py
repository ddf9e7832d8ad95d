"""Trained models on disk: published whole or not at all, promoted by replacing one small file, checked before they load.

    <store>/<name>/<UTC>-<sha8>/      manifest.json, weights, reference.npz: never changed after it appears
    <store>/<name>/promotions.json    every promotion and rollback, in order; the current version follows from it

`sha8` is the start of the hash over all files but the manifest, so that equal models have equal hashes; the manifest holds
the hash of every file and of itself. Readers need no lock; writers of one name take turns.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from monitor.errors import ModelRefused, MonitorError
from monitor.types import ModelVersion

FORMAT = 1
"""Of the manifest. A newer one is refused: this release cannot know what it means."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,127}")
_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_MANIFEST = "manifest.json"
_PROMOTIONS = "promotions.json"
_INCOMING = ".incoming-"
_MOST_JSON = 64 * 1024 * 1024


class ModelStore:
    """A folder of model versions. Safe for concurrent readers and writers, in several processes, on a local file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: dict[str, ModelVersion] = {}

    def names(self) -> list[str]:
        """Of the models that have a version, sorted."""
        folders = self.path.iterdir() if self.path.is_dir() else ()
        return sorted(folder.name for folder in folders if _NAME.fullmatch(folder.name) and self.ids(folder.name))

    def ids(self, name: str) -> list[str]:
        """Of the published versions, oldest first."""
        folder = self._folder(name)
        return sorted(entry.name for entry in folder.iterdir() if _ID.fullmatch(entry.name)) if folder.is_dir() else []

    def versions(self, name: str) -> list[ModelVersion]:
        """Every published version, oldest first. Raises ModelRefused where a manifest cannot be read."""
        return [self.open(name, version) for version in self.ids(name)]

    def open(self, name: str, version: str) -> ModelVersion:
        """Read and check the manifest, not the other files: that is `verify`. Raises ModelRefused."""
        folder = self._folder(name, version)
        manifest = _read_json(folder / _MANIFEST)
        newest = manifest.get("format")
        if not isinstance(newest, int) or newest > FORMAT:
            raise ModelRefused(f"{folder}: manifest format {newest!r} is newer than {FORMAT}, the newest that this release reads")
        if manifest.get("digest") != _digest(manifest):
            raise ModelRefused(f"{folder}: manifest.json was changed after it was published")
        if (manifest.get("name"), manifest.get("id")) != (name, version):
            raise ModelRefused(f"{folder}: its manifest is that of {manifest.get('name')}/{manifest.get('id')}")
        return ModelVersion(name=name, id=version, folder=folder, manifest=manifest)

    def current_id(self, name: str) -> str | None:
        """Of the promoted version, which may be damaged. Raises ModelRefused where the log of promotions is."""
        promoted = self._promoted(name)
        return promoted[-1] if promoted else None

    def current(self, name: str) -> ModelVersion | None:
        """The promoted version, or None. Cheap: reads one small file unless it changed. Raises ModelRefused."""
        promoted = self.current_id(name)
        if promoted is None:
            return None
        last = self._last.get(name)
        if last is None or last.id != promoted:
            last = self._last[name] = self.open(name, promoted)
        return last

    def history(self, name: str) -> list[dict[str, str]]:
        """Every promotion and rollback, oldest first: time, action ("promote" or "rollback") and the id it made current."""
        path = self._folder(name) / _PROMOTIONS
        try:
            log = _read_json(path)["log"]
            known = all(entry["action"] in ("promote", "rollback") and _ID.fullmatch(entry["id"]) for entry in log)
        except FileNotFoundError:
            return []
        except (KeyError, TypeError) as error:
            raise ModelRefused(f"{path}: not a log of promotions: {error!r}") from error
        if not known:
            raise ModelRefused(f"{path}: not a log of promotions")
        return list(log)

    def publish(self, name: str, folder: Path, manifest: Mapping[str, Any], *, created: datetime | None = None) -> ModelVersion:
        """Copy the files of `folder` into a new version, which appears whole or not at all; not promoted yet.

        `manifest` gets format, name, id, created, sha256 and digest. Raises MonitorError for what is not a plain file.
        """
        when = (created or datetime.now(UTC)).replace(microsecond=0)
        with self._writing(name) as home:
            for stale in home.glob(f"{_INCOMING}*"):  # of a publisher that died; the living hold the lock
                shutil.rmtree(stale)
            incoming = home / f"{_INCOMING}{uuid.uuid4().hex}"
            incoming.mkdir()
            hashes = {source.name: _copy(source, incoming / source.name) for source in sorted(folder.iterdir())}
            content = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:8]
            last = max(self.ids(name), default="")
            while (target := home / f"{when:%Y%m%dT%H%M%SZ}-{content}").name <= last:  # several within a second: ids keep the order
                when += timedelta(seconds=1)
            plain = json.loads(json.dumps(manifest, allow_nan=False))  # as it will be read: tuples are lists, keys are strings
            complete = {**plain, "format": FORMAT, "name": name, "id": target.name, "created": when.isoformat(), "sha256": hashes}
            complete["digest"] = _digest(complete)
            _write(incoming / _MANIFEST, json.dumps(complete, indent=1, sort_keys=True))
            _sync(incoming)
            incoming.rename(target)
            _sync(home)
        return self.open(name, target.name)

    def promote(self, name: str, version: str) -> ModelVersion:
        """Make a verified version the current one, for running daemons too. Raises ModelRefused."""
        with self._writing(name):
            promoted = self.open(name, version)
            verify(promoted)
            self._log(name, "promote", version)
        return promoted

    def rollback(self, name: str) -> ModelVersion:
        """Make current what was current before the last promotion that still stands. Raises ModelRefused, MonitorError."""
        with self._writing(name):
            promoted = self._promoted(name)
            if len(promoted) < 2:
                raise MonitorError(f"{name}: no version was promoted before the current one; nothing to roll back to")
            before = self.open(name, promoted[-2])
            verify(before)
            self._log(name, "rollback", before.id)
        return before

    def _folder(self, name: str, version: str | None = None) -> Path:
        if not _NAME.fullmatch(name):
            raise ModelRefused(f"{name!r} is not a model's name: expected [a-z][a-z0-9_]*")
        if version is None:
            return self.path / name
        if not _ID.fullmatch(version):
            raise ModelRefused(f"{version!r} is not a version id: expected one like 20261122T061512Z-1a2b3c4d")
        folder = self.path / name / version
        if not folder.is_dir():
            raise ModelRefused(f"{name} has no version {version} in {self.path}")
        return folder

    def _promoted(self, name: str) -> list[str]:
        """The promotions that still stand, oldest first: a rollback takes the last one away."""
        standing: list[str] = []
        for entry in self.history(name):
            if entry["action"] == "rollback":
                del standing[-1:]
            elif entry["id"] not in standing[-1:]:  # promoting the current version again changes nothing
                standing.append(entry["id"])
        return standing

    def _log(self, name: str, action: str, version: str) -> None:
        entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "action": action, "id": version}
        path = self._folder(name) / _PROMOTIONS
        temporary = path.with_suffix(".new")  # one writer at a time: the lock is held
        _write(temporary, json.dumps({"log": [*self.history(name), entry]}, indent=1))
        temporary.replace(path)
        _sync(path.parent)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """Hold the name's writers' lock, which the kernel lets go of if we die."""
        home = self._folder(name)
        home.mkdir(parents=True, exist_ok=True)
        with (home / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield home


def verify(version: ModelVersion) -> None:
    """Check every file of a version against its manifest, before anything of it is loaded. Raises ModelRefused."""
    expected = version.manifest.get("sha256")
    if not isinstance(expected, dict) or not expected:
        raise ModelRefused(f"{version.folder}: its manifest names no files")
    present = {entry.name for entry in version.folder.iterdir()} - {_MANIFEST}
    if missing := sorted(expected.keys() - present):
        raise ModelRefused(f"{version.folder}: {', '.join(missing)} is missing")
    if unknown := sorted(present - expected.keys()):
        raise ModelRefused(f"{version.folder}: {', '.join(unknown)} is not in its manifest")
    for name, digest in expected.items():
        file = version.folder / name
        if not _FILE.fullmatch(name) or file.is_symlink() or not file.is_file():
            raise ModelRefused(f"{file}: not a plain file")
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != digest:
                raise ModelRefused(f"{file}: was changed after it was published (its sha256 is not the manifest's)")


def _digest(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """Raises ModelRefused, FileNotFoundError for a missing log of promotions only."""
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ModelRefused(f"{path}: larger than {_MOST_JSON} bytes")
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        if path.name == _PROMOTIONS:
            raise
        raise ModelRefused(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelRefused(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelRefused(f"{path}: expected a JSON object")
    return content


def _copy(source: Path, target: Path) -> str:
    """Copy one file and make it lasting; its sha256."""
    if source.is_symlink() or not source.is_file() or not _FILE.fullmatch(source.name) or source.name == _MANIFEST:
        raise MonitorError(f"{source}: a model consists of plain files, the manifest aside")
    shutil.copyfile(source, target)
    with target.open("rb") as opened:
        os.fsync(opened.fileno())
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def _sync(folder: Path) -> None:
    """Make the names in a folder lasting."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
