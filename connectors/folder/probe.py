"""Whether a folder can be read and written, without making it."""

import os
import tempfile

from connectors.folder.options import FolderDeadLetterOptions, FolderSinkOptions, FolderSourceOptions
from monitor.errors import Disconnected


async def probe(options: FolderSourceOptions | FolderSinkOptions | FolderDeadLetterOptions) -> list[str]:
    """Nothing is doubtful when the folder is there, or can be made. Raises Disconnected."""
    path = options.path
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    if not nearest.is_dir():
        raise Disconnected(f"{nearest} is a file, not a folder", "refused")
    if isinstance(options, FolderSourceOptions) and nearest == path:
        if not os.access(path, os.R_OK | os.X_OK):
            raise Disconnected(f"{path} cannot be read: no permission", "not_authorised")
        return []
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise Disconnected(f"{path} cannot be written: {error.strerror} in {nearest}", "not_authorised") from error
    return []
