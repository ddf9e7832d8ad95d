"""Score maps on the wire: PNG, inline while small, else placed where a sink says.

8 bits: a map is looked at and thresholded, and 1/255 of its range is finer than either needs; 16 bits of a smooth map
compress to three to five times the size, so that fewer would fit inline at full size.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from connectors.files import write_durably
from monitor.errors import Disconnected, MonitorError
from monitor.types import Event, FloatArray

INLINE_BYTES = 64 * 1024
"""Most base64 characters of a map inside its event."""

Place = Callable[[Event, bytes], str]
"""`place(event, png) -> uri`: puts a map where consumers can follow, and returns when it is there. Runs in a worker thread."""


def describe(event: Event, place: Place | None = None) -> dict[str, Any]:
    """`data.map` of an event that has a map.

    The PNG as `base64` or its `uri`, its sha256, media_type, width and height (the sample's, or halved until it fits), and the
    scores that black and white stand for: score = black + grey / 255 * (white - black). Of sound `axes` too, halved with it.
    """
    assert event.map is not None
    scores, axes = event.map, event.axes
    png, facts = _encode(scores, axes)
    if _base64_size(png) > INLINE_BYTES and place is not None:
        return {**facts, "uri": place(event, png), "sha256": hashlib.sha256(png).hexdigest()}
    while _base64_size(png) > INLINE_BYTES:
        scores = _halved(scores)
        axes = None if axes is None else {**axes, "hertz": [*axes["hertz"][:-1:2], axes["hertz"][-1]]}
        png, facts = _encode(scores, axes)
    return {**facts, "sha256": hashlib.sha256(png).hexdigest(), "base64": base64.b64encode(png).decode()}


def place_in(folder: Path) -> Place:
    """Files named by the sha256 of their bytes, so that a redelivery writes nothing new; the uri is file:///...

    The place raises Disconnected where the disk is full or the folder cannot be made.
    """

    def place(event: Event, png: bytes) -> str:
        path = folder.resolve() / f"{hashlib.sha256(png).hexdigest()}.png"
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_durably(path, png)
        except OSError as error:
            raise Disconnected(f"map of event {event.id} cannot be written to {folder}: {error}", "lost") from error
        return path.as_uri()

    return place


def read_map(event: Mapping[str, Any], fetch: Callable[[str], bytes] | None = None) -> bytes | None:
    """The PNG of an event as JSON object: inline, from its file uri, or by `fetch(uri)` for uris of other schemes.

    None for an event without a map. Raises MonitorError where it cannot be had or its sha256 does not match.
    """
    try:
        facts = event.get("data", {}).get("map")
        if facts is None:
            return None
        if "base64" in facts:
            png = base64.b64decode(facts["base64"], validate=True)
        else:
            uri = urlsplit(facts["uri"])
            if uri.scheme == "file":
                png = Path(unquote(uri.path)).read_bytes()
            elif fetch is not None:
                png = fetch(facts["uri"])
            else:
                raise MonitorError(f"map of event {event.get('id')}: nothing here follows {facts['uri']}")
        expected = facts["sha256"]
    except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:  # anybody can write to a topic
        raise MonitorError(f"map of event {event.get('id')} cannot be read: {error!r}") from error
    if hashlib.sha256(png).hexdigest() != expected:
        raise MonitorError(f"map of event {event.get('id')} is not the one that was sent: its sha256 differs")
    return png


def _encode(scores: FloatArray, axes: Mapping[str, Any] | None) -> tuple[bytes, dict[str, Any]]:
    """(H, W) float32 -> grey PNG of 8 bits, and what it says."""
    black, white = float(scores.min()), float(scores.max())
    scale = 255 / (white - black) if white > black else 0.0
    grey = np.rint((scores - black) * scale).astype(np.uint8)
    done, png = cv2.imencode(".png", grey, [cv2.IMWRITE_PNG_COMPRESSION, 4])
    assert done
    height, width = grey.shape
    facts = {"media_type": "image/png", "width": width, "height": height, "black": black, "white": white}
    return png.tobytes(), facts if axes is None else {**facts, "axes": axes}


def _halved(scores: FloatArray) -> FloatArray:
    """(H, W) -> (ceil(H/2), ceil(W/2)): the largest of each 2 x 2, so that a small fault does not fade away."""
    height, width = scores.shape
    even = np.pad(scores, ((0, height % 2), (0, width % 2)), mode="edge")
    halved: FloatArray = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).max(axis=(1, 3))
    return halved


def _base64_size(data: bytes) -> int:
    return (len(data) + 2) // 3 * 4
