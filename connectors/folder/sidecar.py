"""Key and headers of a message that is a file: in a hidden file beside it, `.NAME.headers.json`."""

import base64
import json
from pathlib import Path
from typing import Any

Headers = tuple[tuple[str, bytes], ...]


def sidecar(path: Path) -> Path:
    return path.with_name(f".{path.name}.headers.json")


def pack(key: bytes | None, headers: Headers) -> bytes:
    facts = {
        "key": None if key is None else base64.b64encode(key).decode(),
        "headers": [[name, base64.b64encode(value).decode()] for name, value in headers],
    }
    return json.dumps(facts).encode()


def unpack(raw: bytes) -> tuple[bytes | None, Headers]:
    """Raises ValueError for anything that `pack` did not write."""
    try:
        facts: Any = json.loads(raw)
        key = None if facts["key"] is None else base64.b64decode(facts["key"], validate=True)
        headers = tuple((name, base64.b64decode(value, validate=True)) for name, value in facts["headers"])
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not key and headers of a message: {error!r}") from error
    for name, _ in headers:
        if not isinstance(name, str):
            raise ValueError("not key and headers of a message: a header's name is no text")
        name.encode()  # raises UnicodeEncodeError, a ValueError, for half a surrogate pair
    return key, headers
