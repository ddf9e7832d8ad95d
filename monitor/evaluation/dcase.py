"""What the file names of the DCASE challenges' machine sounds say (task 2 of 2020 and of 2022).

dcase2020  {normal|anomaly}_id_NN_NNNNNNNN.wav
dcase2022  section_NN_{source|target}_{train|test}_{normal|anomaly}_NNNN[_<attributes>].wav; attributes are not read
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monitor.errors import ConfigError

LAYOUTS = ("dcase2020", "dcase2022")
NORMAL, ANOMALY = "normal", "anomaly"

_PATTERNS = {
    "dcase2020": r"(?P<truth>normal|anomaly)_(?P<group>id_\d\d)_\d+\.wav",
    "dcase2022": r"(?P<group>section_\d\d)_(?P<domain>source|target)_{split}_(?P<truth>normal|anomaly)_\d+(_.*)?\.wav",
}
_EXPECTED = {
    "dcase2020": "normal_id_00_00000000.wav or anomaly_id_00_00000000.wav",
    "dcase2022": "section_00_source_{split}_normal_0000.wav (source or target, normal or anomaly, attributes after the number)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What a name says. group: the machine ("id_00") or the section ("section_00"); domain: source or target, of 2020 None."""

    group: str
    domain: str | None
    truth: str

    @property
    def columns(self) -> dict[str, str]:
        """As a table shows it: id, or section and domain."""
        kind, _, number = self.group.partition("_")
        return {kind: number} | ({} if self.domain is None else {"domain": self.domain})


def clips(layout: str, paths: Sequence[Path], split: str) -> list[Clip]:
    """Of each file of the split "train" or "test". Raises ConfigError naming the files whose names say something else."""
    pattern = re.compile(_PATTERNS[layout].replace("{split}", split), re.ASCII)
    found = [pattern.fullmatch(path.name) for path in paths]
    if strange := [path.name for path, match in zip(paths, found, strict=True) if match is None]:
        raise _mistake(paths, f"names such as {_EXPECTED[layout].replace('{split}', split)}", strange)
    return [Clip(group=match["group"], domain=match.groupdict().get("domain"), truth=match["truth"]) for match in found if match is not None]


def training_order(paths: Sequence[Path], named: Sequence[Clip]) -> list[Path]:
    """By name within each machine or section and domain, and these evenly mixed: each part of the training split sees all of them.

    Raises ConfigError where one is not normal.
    """
    if strange := [path.name for path, clip in zip(paths, named, strict=True) if clip.truth != NORMAL]:
        raise _mistake(paths, "normal clips only", strange)
    groups: dict[tuple[str, str | None], list[Path]] = {}
    for path, clip in zip(paths, named, strict=True):
        groups.setdefault((clip.group, clip.domain), []).append(path)
    placed = [((index + 0.5) / len(group), path) for group in groups.values() for index, path in enumerate(sorted(group))]
    return [path for _, path in sorted(placed)]


def check_test(layout: str, folder: Path, named: Sequence[Clip]) -> None:
    """Raises ConfigError where a machine or section lacks what its figures need: normal clips (of each domain) and anomalous ones."""
    held = {(clip.group, clip.domain, clip.truth) for clip in named}
    for group in sorted({clip.group for clip in named}):
        domains = ("source", "target") if layout == "dcase2022" else (None,)
        lacking = [f"{domain or ''} {NORMAL}".strip() for domain in domains if (group, domain, NORMAL) not in held]
        if not any((group, domain, ANOMALY) in held for domain in domains):
            lacking.append(ANOMALY)
        if lacking:
            raise ConfigError(f"{folder}: expected clips of every kind for its figures, {group} has no {' and no '.join(lacking)}")


def _mistake(paths: Sequence[Path], expected: str, names: Sequence[str]) -> ConfigError:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ConfigError(f"{paths[0].parent}: expected {expected}, found {', '.join(names[:3])}{more}")
