"""How well scores tell anomalous clips from normal ones, as the DCASE challenges of 2020 and 2022 (task 2) measure it.

2020: AUC and pAUC of each machine; published is (mean AUC + mean pAUC) / 2.
2022: of each section AUC on the normal clips of each domain against the anomalous ones of both, and pAUC on all of them;
published is the harmonic mean of all these figures. pAUC is the area up to a false-alarm rate of 0.1, brought to [0, 1] so that
chance is 0.5 (McClish, 1989).
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from monitor.evaluation.layouts import Labelled
from monitor.types import FloatArray

MAX_FALSE_ALARM_RATE = 0.1

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """groups: figures of each machine or section, by its name; means: of each figure over all of them; summary: the published one."""

    groups: Mapping[str, Mapping[str, float]]
    means: Mapping[str, float]
    summary: float

    @property
    def short(self) -> dict[str, float]:
        return {**self.means, "summary": self.summary}


def measure(labelled: Labelled, scores: FloatArray) -> Measured:
    """scores: (N,), of every clip in order."""
    groups = {}
    for group, here in _groups(labelled).items():
        areas = {name: roc_auc_score(labelled.anomalous[some], scores[some]) for name, some in _compared(labelled, here).items()}
        pauc = roc_auc_score(labelled.anomalous[here], scores[here], max_fpr=MAX_FALSE_ALARM_RATE)
        groups[group] = {name: float(value) for name, value in {**areas, "pauc": pauc}.items()}
    columns = {name: [one[name] for one in groups.values()] for name in next(iter(groups.values()))}
    if _has_domains(labelled):
        means = {name: harmonic_mean(values) for name, values in columns.items()}
        summary = harmonic_mean([value for values in columns.values() for value in values])
    else:
        means = {name: float(np.mean(values)) for name, values in columns.items()}
        summary = (means["auc"] + means["pauc"]) / 2
    return Measured(groups=groups, means=means, summary=summary)


def harmonic_mean(values: Sequence[float]) -> float:
    """Each value floored at the smallest step of a double, as in the challenge: a single 0 leaves next to nothing."""
    return len(values) / sum(1 / max(value, float(np.finfo(np.float64).eps)) for value in values)


def figures(labelled: Labelled, scores: FloatArray, named: Mapping[str, FloatArray], serving: str) -> dict[str, Any]:
    """What `evaluate --json` says of clips.

    The main figures are those of the score that serves, which was chosen without labels ("label_free" names it). "oracle" is the best of all
    scores by these very labels: what a choice without labels cannot know; `margin` is how much higher its summary is.
    """
    main = measure(labelled, scores)
    counted = {group: counts(labelled, here) for group, here in _groups(labelled).items()}
    said: dict[str, Any] = {
        **main.short,
        f"{next(iter(counted)).partition('_')[0]}s": {group: {**main.groups[group], **counted[group]} for group in counted},
        "doubt": doubt(labelled),
        "label_free": {"score": serving, **main.short},
        "scores": {name: measure(labelled, values).short for name, values in named.items()},
    }
    if named:
        best = max(said["scores"], key=lambda name: said["scores"][name]["summary"])  # of equal ones the first
        said["oracle"] = {"score": best, **said["scores"][best], "margin": said["scores"][best]["summary"] - main.summary}
    return said


def counts(labelled: Labelled, here: Bools) -> dict[str, int]:
    """How many clips of each kind, of those `here` (N,)."""
    clips = labelled.clips or ()
    domains = sorted({clip.domain for clip in clips if clip.domain is not None})
    found = {"n_normal": int((here & ~labelled.anomalous).sum()), "n_anomalous": int((here & labelled.anomalous).sum())}
    for domain in domains:
        there = here & np.array([clip.domain == domain for clip in clips])
        found |= {f"n_normal_{domain}": int((there & ~labelled.anomalous).sum()), f"n_anomalous_{domain}": int((there & labelled.anomalous).sum())}
    return found


def doubt(labelled: Labelled) -> str | None:
    """What a reader of pAUC must know where a group has too few normal clips for it; else None."""
    fewest = min(int((here & ~labelled.anomalous).sum()) for here in _groups(labelled).values())
    if fewest * MAX_FALSE_ALARM_RATE > 1:
        return None
    return f"pAUC rests on the single strangest of {fewest} normal clips"


def write_challenge(labelled: Labelled, scores: FloatArray, folder: Path) -> list[Path]:
    """anomaly_score_<machine>_<group>[_test].csv of each machine or section, and result.csv, in the format of the challenges' baselines."""
    assert labelled.clips is not None
    machine, measured, suffix = labelled.files.topic, measure(labelled, scores), "_test" if _has_domains(labelled) else ""
    written = []
    for group, here in _groups(labelled).items():
        rows = [(labelled.files.paths[index].name, float(scores[index])) for index in np.flatnonzero(here)]
        written.append(_write(folder / f"anomaly_score_{machine}_{group}{suffix}.csv", rows))
    head = {"auc": "AUC", "auc_source": "AUC (source)", "auc_target": "AUC (target)", "pauc": "pAUC"}
    rows_of = [[group.partition("_")[2], *one.values()] for group, one in measured.groups.items()]
    columns = [[one[name] for one in measured.groups.values()] for name in measured.means]
    kind, ends = "id", [["Average", *measured.means.values()]]
    if _has_domains(labelled):
        kind, ends = "section", [["arithmetic mean", *(float(np.mean(column)) for column in columns)]]
        ends += [["harmonic mean", *measured.means.values()], ["harmonic mean of all", measured.summary]]
    written.append(_write(folder / "result.csv", [[machine], [kind, *(head[name] for name in measured.means)], *rows_of, *ends]))
    return written


def _write(path: Path, rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(rows)
    return path


def _has_domains(labelled: Labelled) -> bool:
    return labelled.clips is not None and labelled.clips[0].domain is not None


def _groups(labelled: Labelled) -> dict[str, Bools]:
    """Machine or section, by name -> (N,) which clips are of it."""
    assert labelled.clips is not None
    groups = np.array([clip.group for clip in labelled.clips])
    return {str(group): np.asarray(groups == group) for group in np.unique(groups)}


def _compared(labelled: Labelled, here: Bools) -> dict[str, Bools]:
    """Each AUC of a group -> (N,) the clips that it is taken on."""
    if not _has_domains(labelled):
        return {"auc": here}
    assert labelled.clips is not None
    domains = np.array([clip.domain for clip in labelled.clips])
    return {f"auc_{domain}": here & (labelled.anomalous | (domains == domain)) for domain in ("source", "target")}
