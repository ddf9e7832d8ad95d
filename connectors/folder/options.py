"""Configuration of the folder kind: files in, files out, no broker."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from connectors.options import MapsInFolder
from monitor.ports import SinkOptions, SourceOptions


class FolderSourceOptions(SourceOptions):
    """One message per file, in the order of their names; the files stay where they are.

    Names that begin with "." or end in ".part" or ".tmp" are not read: write under such a name, then rename. A file in a
    sub-folder belongs to the stream of that name. A file is read once: a new picture needs a new name, or that the
    old file was deleted and missed while other files were there.
    """

    implementation: ClassVar[str] = "connectors.folder.source:FolderSource"
    sender: ClassVar[str] = "connectors.folder.sender:FolderSender"
    probe: ClassVar[str] = "connectors.folder.probe:probe"

    path: Path
    """Folder to read, with its sub-folders; made if missing."""
    poll: float = Field(default=0.5, gt=0, le=3600)
    """Seconds between looks for new files."""


class FolderSinkOptions(SinkOptions):
    """One JSON file per event, named by its id and its kind (`ID.alert.json`). A file that is there already is kept: the first verdict counts."""

    implementation: ClassVar[str] = "connectors.folder.sink:FolderSink"
    receiver: ClassVar[str] = "connectors.folder.receiver:FolderReceiver"
    probe: ClassVar[str] = "connectors.folder.probe:probe"

    path: Path
    """Folder to write; made if missing."""
    maps: MapsInFolder | None = None
    """Where maps beyond 64 KiB go, e.g. `{ path = "var/maps" }`; by default they are halved until they fit."""

    def feeds(self, source: SourceOptions) -> str | None:
        return _read_by(source, self.path, self.maps.path if self.maps else None)


class FolderDeadLetterOptions(SinkOptions):
    """One JSON file per message that could not be scored: the message whole, where it came from, and why."""

    implementation: ClassVar[str] = "connectors.folder.dead_letter:FolderDeadLetter"
    receiver: ClassVar[str] = "connectors.folder.receiver:FolderReceiver"
    probe: ClassVar[str] = "connectors.folder.probe:probe"

    path: Path = Path("var/dead_letter")
    """Folder to write; made if missing."""
    spill: Path | None = None
    """Folder for payloads that would make a record larger than `max_bytes`; by default `spill` inside `path`."""

    def feeds(self, source: SourceOptions) -> str | None:
        return _read_by(source, self.path, self.spill)


def _read_by(source: SourceOptions, *written: Path | None) -> str | None:
    """The first of these folders that lies in the one that `source` reads."""
    if not isinstance(source, FolderSourceOptions):
        return None
    return next((str(path) for path in written if path is not None and path.is_relative_to(source.path)), None)
