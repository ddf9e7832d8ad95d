"""Options that several kinds share."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class MapsInFolder(BaseModel):
    """Maps that are too large to stand inline become files."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: Path
    """Folder that the consumers of the alerts can read too."""
