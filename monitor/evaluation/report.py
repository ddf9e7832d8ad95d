"""The report of an evaluation: scores.csv, curves, histograms, maps, overlays, and one report.html that needs no other file."""

import base64
import csv
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from monitor.evaluation.drawing import CLEAR, Pixels, Scale, jpeg, overlay, pictures, write_curves, write_png
from monitor.evaluation.evaluate import Evaluation
from monitor.evaluation.sound import write_challenge
from monitor.evaluation.spectrogram import RANGE, framed, spectrogram
from monitor.ports import Progress
from monitor.types import FloatArray, Sample

THUMBNAIL, SPECTROGRAM = 260, 460
"""Pixels of a card's longest side."""

_FIGURES = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "aupro": "AUPRO up to 30 %",
    "threshold": "Threshold",
    "recall": "Recall at it",
    "false_alarm_rate": "False-alarm rate at it",
    "n_normal": "Normal samples",
    "n_anomalous": "Anomalous samples",
    "train_seconds": "Seconds of training",
    "samples_per_second": "Samples per second",
}

_OF_MACHINES = {"auc": "Mean AUC", "pauc": "Mean pAUC", "summary": "Mean of both"}
_OF_SECTIONS = {
    "auc_source": "Harmonic mean of AUC, source",
    "auc_target": "Harmonic mean of AUC, target",
    "pauc": "Harmonic mean of pAUC",
    "summary": "Harmonic mean of all",
}
_HEADS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "auc": "AUC",
    "auc_source": "AUC, source",
    "auc_target": "AUC, target",
    "pauc": "pAUC",
    "summary": "Summary",
    "n_normal": "Normal",
    "n_anomalous": "Anomalous",
}


def write_report(evaluation: Evaluation, facts: Mapping[str, Any], folder: Path, progress: Progress) -> Path:
    """Write everything into `folder`; report.html. `facts` are the figures as `--json` tells them."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_scores(evaluation, folder / "scores.csv")
    if evaluation.labelled.clips is not None:
        write_challenge(evaluation.labelled, evaluation.scores, folder)
    curves = write_curves(evaluation, folder)
    cards = _draw_samples(evaluation, folder, progress)
    page = Template(files("monitor.evaluation").joinpath("report.html").read_text("utf-8")).substitute(
        title=html.escape(f"{facts['detector']} on {facts['category']}"),
        subtitle=html.escape(f"{facts['kind']}, model {facts['model_version']}, seed {facts['seed']}, on {facts['device']} in {facts['precision']}"),
        warning="".join(f'<p class="warning">{html.escape(words)}</p>' for words in _warnings(facts)),
        kind="images" if evaluation.labelled.clips is None else "sound",
        tables=_main_table(facts) + _group_table(facts) + _score_table(evaluation, facts) + _defect_table(evaluation),
        curves="".join(f'<img alt="{path.stem}" src="{_inline(path.read_bytes(), "png")}">' for path in curves),
        legend=html.escape(_legend(evaluation)),
        samples="".join(
            _section(defect, cards[defect]) for defect in sorted(cards, key=lambda defect: (defect == evaluation.labelled.normal, defect))
        ),
    )
    path = folder / "report.html"
    path.write_text(page, "utf-8")
    return path


def _write_scores(evaluation: Evaluation, path: Path) -> None:
    labelled = evaluation.labelled
    clips = [clip.columns for clip in labelled.clips or ()]
    with path.open("w", newline="", encoding="utf-8") as opened:
        table = csv.writer(opened)
        about = [*clips[0], "condition"] if clips else ["defect"]
        table.writerow(["file", *about, "anomalous", "score", "threshold", "alerted", "p_value", *evaluation.named])
        for index, score in enumerate(evaluation.scores):
            table.writerow(
                [
                    labelled.files.position(index),
                    *(clips[index].values() if clips else ()),
                    labelled.defects[index],
                    int(labelled.anomalous[index]),
                    float(score),
                    evaluation.threshold.value,
                    int(evaluation.alerted[index]),
                    evaluation.calibration.p_value(float(score)),
                    *(float(values[index]) for values in evaluation.named.values()),
                ]
            )


def _draw_samples(evaluation: Evaluation, folder: Path, progress: Progress) -> dict[str, list[str]]:
    """maps/ (16 bit) and overlays/ for every sample; the cards of report.html by defect, strangest first."""
    labelled = evaluation.labelled
    scale = Scale(evaluation.map_threshold) if evaluation.maps is not None and evaluation.map_threshold is not None else None
    if scale is not None:
        (folder / "maps").mkdir(exist_ok=True)
        (folder / "maps" / "scale.json").write_text(json.dumps({"black": scale.black, "white": scale.white}))
    cards: dict[str, list[str]] = {}
    for done, index in enumerate(np.argsort(-evaluation.scores, kind="stable")):
        defect, name = labelled.defects[index], Path(labelled.files.position(int(index))).stem
        sample = labelled.files[int(index)]
        heat = scale.heat(evaluation.map(int(index))) if scale is not None else None
        drawn = [_sound(evaluation, int(index), sample, heat)] if sample.waveform is not None else pictures(sample)
        if heat is not None:
            write_png(folder / "maps" / defect / f"{name}.png", (heat * 65535).round().astype(np.uint16))
            if sample.waveform is None:
                drawn.append(overlay(drawn[0], heat, labelled.mask(int(index), *heat.shape[:2])))
            path = folder / "overlays" / defect / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(drawn[-1]))
        side = THUMBNAIL if sample.waveform is None else SPECTROGRAM
        thumbnails = [jpeg(one, side=side, quality=80) for one in drawn]
        cards.setdefault(defect, []).append(_card(evaluation, int(index), name, thumbnails))
        progress("draw", done + 1, len(evaluation.scores), {})
    return cards


def _sound(evaluation: Evaluation, index: int, sample: Sample, heat: FloatArray | None) -> Pixels:
    """The spectrogram and, where there is a map, below it the same under its heat."""
    spectrum = spectrogram(sample)
    if heat is None or evaluation.axes is None:
        return framed(spectrum, spectrum.pixels)
    spread = spectrum.spread(heat, evaluation.axes[index])
    return framed(spectrum, spectrum.pixels, overlay(spectrum.pixels, spread, np.zeros(spread.shape, np.bool_)))


def _card(evaluation: Evaluation, index: int, name: str, thumbnails: Sequence[bytes]) -> str:
    alerted, anomalous = bool(evaluation.alerted[index]), bool(evaluation.labelled.anomalous[index])
    wrong = "" if alerted == anomalous else " <b>missed</b>" if anomalous else " <b>false alarm</b>"
    images = "".join(f'<img loading="lazy" alt="" src="{_inline(one, "jpeg")}">' for one in thumbnails)
    score = float(evaluation.scores[index])
    words = f"{html.escape(name)}: {score:.5g}, p {evaluation.calibration.p_value(score):.3f}{wrong}"
    return f"<figure{' class=wrong' if wrong else ''}><div>{images}</div><figcaption>{words}</figcaption></figure>"


def _section(defect: str, cards: Sequence[str]) -> str:
    return f'<h2>{html.escape(defect)} ({len(cards)})</h2><div class="samples">{"".join(cards)}</div>'


def _legend(evaluation: Evaluation) -> str:
    sound = evaluation.labelled.clips is not None
    words = "Strangest first. Framed in red: missed anomalies and false alarms at the threshold."
    if sound:
        words += f" Pitch over time, loud is white, {RANGE:.0f} dB below the loudest of the clip is black."
    if evaluation.labelled.files[0].depth is not None:
        words += " Of depth, near is white and far is black, each scan on a scale of its own; what was not measured is blue."
    if evaluation.maps is None or evaluation.map_threshold is None:
        return words
    scale = Scale(evaluation.map_threshold)
    clear = scale.black + float(CLEAR) * (scale.white - scale.black)
    drawn = f"Heat runs from {clear:.4g} (clear) over the map threshold {evaluation.map_threshold:.4g} to {scale.white:.4g} (bright)"
    return f"{words} {drawn}, on one scale for all samples." + ("" if sound else " Green: the true defect.")


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    words = [f"Threshold: {facts['supported']}"] if facts["supported"] else []
    return [*words, facts["doubt"]] if facts.get("doubt") else words


def _main_table(facts: Mapping[str, Any]) -> str:
    words = (_OF_SECTIONS if "sections" in facts else _OF_MACHINES) | _FIGURES
    return _table([], ((said, _number(facts[key])) for key, said in words.items() if key in facts))


def _group_table(facts: Mapping[str, Any]) -> str:
    """Of sound: the figures of each machine or section, and on how many clips they rest."""
    kind = next((kind for kind in ("ids", "sections") if kind in facts), None)
    if kind is None:
        return ""
    names = list(next(iter(facts[kind].values())))
    rows = ((group, *(_number(one[name]) for name in names)) for group, one in facts[kind].items())
    return _table([kind.capitalize()[:-1], *(_HEADS.get(name, name) for name in names)], rows)


def _score_table(evaluation: Evaluation, facts: Mapping[str, Any]) -> str:
    """Every score; which one serves and, of sound, which one the labels of this very test split would choose."""
    scores = facts["scores"]
    if not scores:
        return ""
    names = list(next(iter(scores.values())))
    oracle = facts["oracle"]["score"] if "oracle" in facts else None
    rows = []
    for name, one in scores.items():
        marks = [mark for mark, is_so in (("serves (label-free)", name == evaluation.serving), ("oracle", name == oracle)) if is_so]
        rows.append((name, *(_number(one[figure]) for figure in names), ", ".join(marks)))
    return _table(["Score", *(_HEADS[figure] for figure in names), ""], rows)


def _defect_table(evaluation: Evaluation) -> str:
    """How many of each kind were alerted; of sound, of each machine or section and domain."""
    labelled = evaluation.labelled
    kinds = labelled.defects
    if labelled.clips is not None:
        kinds = tuple(" ".join(filter(None, (clip.group, clip.domain, clip.truth))) for clip in labelled.clips)
    normal = dict(zip(kinds, ~labelled.anomalous, strict=True))
    rows = []
    for kind in sorted(normal, key=lambda kind: (normal[kind], kind)):
        these = np.array([one == kind for one in kinds])
        median = float(np.median(evaluation.scores[these]))
        rows.append((kind, str(int(these.sum())), str(int(evaluation.alerted[these].sum())), f"{median:.4g}"))
    return _table(["Test samples", "Number", "Alerted", "Median score"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>" if head else ""
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
