"""Files that are there whole or not at all, under names that any id can be given."""

import hashlib
import itertools
import os
from pathlib import Path
from urllib.parse import quote

_serial = itertools.count()
_LONGEST_NAME = 180  # file systems take 255 bytes; the rest is for suffixes and for the name while it is written


def write_durably(path: Path, *parts: bytes, sync: bool = True) -> None:
    """Write a file so that it survives a power cut and no reader sees half of it; an existing one is replaced.

    It is written under a hidden name ending in `.part` beside its place. With `sync=False` the caller makes the names of many
    files last at once, by `sync_folder`. Raises OSError; nothing is left behind then.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{next(_serial)}.part")
    try:
        with part.open("wb") as file:
            for data in parts:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safe_name(text: str) -> str:
    """A file name for any text: the same for the same text, another for another. Never hidden, never a path."""
    name = quote(text, safe=" @=+,") or "%"
    if name.startswith((".", " ")):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name) > _LONGEST_NAME:
        name = f"{name[:100]}~~{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return name
