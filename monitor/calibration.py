"""Scores of normal data -> the threshold for a false-alarm budget (split conformal, distribution-free).

With n scores of normal samples that the model never learnt from, and budget p, the threshold is the k-th smallest score,
k = ceil((n + 1)(1 - p)): a further normal sample exceeds it with probability at most p, whatever the distribution
(Vovk et al., "Algorithmic Learning in a Random World", 2005; Papadopoulos et al., ECML 2002).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from monitor.errors import ModelRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A sample is anomalous when its score > `value`, a float32 in a float.

    `supported` is None where the calibration scores support the `asked` probability. Otherwise it is the smallest one that
    they do support, 1/(n + 1); `value` is then their largest and `more_needed` normals are missing.
    """

    value: float
    asked: float
    supported: float | None
    more_needed: int

    @property
    def words(self) -> str | None:
        """What an operator must read, or None where all is supported."""
        if self.supported is None:
            return None
        return f"supported 1/{round(1 / self.supported)}, asked {self.asked:g}, {self.more_needed} more normals needed"


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Ascending float32 scores (n,) of normal samples, and the largest map value of each (n,), ascending too, or None."""

    scores: NDArray[np.float32]
    map_peaks: NDArray[np.float32] | None

    @classmethod
    def of(cls, scores: Sequence[float] | NDArray[np.float32], map_peaks: Sequence[float] | NDArray[np.float32] | None) -> Self:
        """Sort and check. Raises ValueError for none at all or for what is not finite."""
        return cls(_ascending(scores), None if map_peaks is None else _ascending(map_peaks))

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Self:
        """Of a model version's manifest. Raises ModelRefused."""
        try:
            entry = manifest["calibration"]
            return cls.of(entry["scores"], entry["map_peaks"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelRefused(f"the manifest's calibration cannot be read: {error!r}") from error

    def to_manifest(self) -> dict[str, list[float] | None]:
        """JSON-able; comes back from it bit for bit."""
        return {
            "scores": [float(score) for score in self.scores],
            "map_peaks": None if self.map_peaks is None else [float(peak) for peak in self.map_peaks],
        }

    def threshold(self, probability: float) -> Threshold:
        """For a false-alarm probability per sample. Raises ValueError outside of (0, 1)."""
        return _threshold(self.scores, probability)

    def map_threshold(self, probability: float) -> float | None:
        """The same rule on the largest map values: above it lie the regions of an alert. None without maps."""
        return None if self.map_peaks is None else _threshold(self.map_peaks, probability).value

    def p_value(self, score: float) -> float:
        """(1 + number of calibration scores >= this one)/(n + 1): the share of normal data that is as strange."""
        as_strange = len(self.scores) - int(np.searchsorted(self.scores, np.float32(score), side="left"))
        return (1 + as_strange) / (len(self.scores) + 1)


def normals_needed(probability: float) -> int:
    """The fewest calibration scores that support a probability: the least n with (n + 1) p >= 1."""
    return math.ceil(1 / _exact(probability)) - 1


def _threshold(ascending: NDArray[np.float32], probability: float) -> Threshold:
    n = len(ascending)
    k = math.ceil((n + 1) * (1 - _exact(probability)))
    if k <= n:
        return Threshold(value=float(ascending[k - 1]), asked=probability, supported=None, more_needed=0)
    return Threshold(value=float(ascending[-1]), asked=probability, supported=1 / (n + 1), more_needed=normals_needed(probability) - n)


def _exact(probability: float) -> Fraction:
    """The decimal that was written: as a binary float 0.01 is a little more than 1/100, and ceil would jump at whole numbers."""
    if not 0 < probability < 1:
        raise ValueError(f"a false-alarm probability lies between 0 and 1, not {probability}")
    return Fraction(repr(float(probability)))


def _ascending(values: Sequence[float] | NDArray[np.float32]) -> NDArray[np.float32]:
    array = np.sort(np.asarray(values, dtype=np.float32))  # (n,)
    if array.ndim != 1 or not array.size:
        raise ValueError("no calibration scores")
    if not np.isfinite(array).all():
        raise ValueError("calibration scores that are not finite")
    array.flags.writeable = False
    return array
