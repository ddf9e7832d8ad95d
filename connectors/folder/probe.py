"""Whether a folder can be read and written, without making it."""

import os

from connectors.folder.options import FolderDeadLetterOptions, FolderSinkOptions, FolderSourceOptions
from monitor.errors import Disconnected


async def probe(options: FolderSourceOptions | FolderSinkOptions | FolderDeadLetterOptions) -> None:
    """Returns when the folder is there, or can be made. Raises Disconnected."""
    path = options.path
    if path.exists() and not path.is_dir():
        raise Disconnected(f"{path} is a file, not a folder", "refused")
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    needed = os.R_OK | os.X_OK if isinstance(options, FolderSourceOptions) and nearest == path else os.W_OK | os.X_OK
    if not os.access(nearest, needed):
        raise Disconnected(f"{path}: no permission in {nearest}", "not_authorised")
