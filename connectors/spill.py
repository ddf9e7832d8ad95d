"""Where the bytes of a dead letter go that its own record cannot hold."""

import hashlib
from pathlib import Path
from typing import TypedDict

from connectors.files import write_durably
from monitor.errors import Disconnected


class SpillFacts(TypedDict):
    """What the record of a spilled payload carries instead of it."""

    size: int
    sha256: str
    path: str


def spill(folder: Path, payload: bytes) -> SpillFacts:
    """Write the payload into `folder` (made if missing) under its sha256, and say where it lies (absolute path).

    Returns when it is safe on disk. The same payload again writes nothing. Raises Disconnected where the disk is full or the
    folder cannot be written: the dead letter waits, and so do its sources.
    """
    digest = hashlib.sha256(payload).hexdigest()
    try:
        path = folder.resolve() / f"{digest}.bin"
        if not (path.exists() and path.stat().st_size == len(payload)):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, payload)
    except OSError as error:
        raise Disconnected(f"{len(payload)} bytes cannot be spilled to {folder}: {error}", "lost") from error
    return {"size": len(payload), "sha256": digest, "path": str(path)}
