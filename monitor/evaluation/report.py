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

from monitor.evaluation.drawing import CLEAR, Scale, jpeg, overlay, pictures, write_curves, write_png
from monitor.evaluation.evaluate import Evaluation
from monitor.evaluation.layouts import NORMAL
from monitor.ports import Progress

THUMBNAIL = 260

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
    "n_anomalous": "Defective samples",
    "train_seconds": "Seconds of training",
    "samples_per_second": "Samples per second",
}


def write_report(evaluation: Evaluation, facts: Mapping[str, Any], folder: Path, progress: Progress) -> Path:
    """Write everything into `folder`; report.html. `facts` are the figures as `--json` tells them."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_scores(evaluation, folder / "scores.csv")
    curves = write_curves(evaluation, folder)
    cards = _draw_samples(evaluation, folder, progress)
    page = Template(files("monitor.evaluation").joinpath("report.html").read_text("utf-8")).substitute(
        title=html.escape(f"{facts['detector']} on {facts['category']}"),
        subtitle=html.escape(f"{facts['kind']}, model {facts['model_version']}, seed {facts['seed']}, on {facts['device']} in {facts['precision']}"),
        warning=f'<p class="warning">Threshold: {html.escape(facts["supported"])}</p>' if facts["supported"] else "",
        tables=_main_table(facts) + _score_table(facts["scores"]) + _defect_table(evaluation),
        curves="".join(f'<img alt="{path.stem}" src="{_inline(path.read_bytes(), "png")}">' for path in curves),
        legend=html.escape(_legend(evaluation)),
        samples="".join(_section(defect, cards[defect]) for defect in sorted(cards, key=lambda defect: (defect == NORMAL, defect))),
    )
    path = folder / "report.html"
    path.write_text(page, "utf-8")
    return path


def _write_scores(evaluation: Evaluation, path: Path) -> None:
    labelled = evaluation.labelled
    with path.open("w", newline="", encoding="utf-8") as opened:
        table = csv.writer(opened)
        table.writerow(["file", "defect", "anomalous", "score", "threshold", "alerted", "p_value", *evaluation.named])
        for index, score in enumerate(evaluation.scores):
            table.writerow(
                [
                    labelled.files.position(index),
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
        drawn = pictures(sample)
        if scale is not None and drawn:
            heat = scale.heat(evaluation.map(int(index)))
            write_png(folder / "maps" / defect / f"{name}.png", (heat * 65535).round().astype(np.uint16))
            drawn.append(overlay(drawn[0], heat, labelled.mask(int(index), *heat.shape[:2])))
            path = folder / "overlays" / defect / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(drawn[-1]))
        thumbnails = [jpeg(one, side=THUMBNAIL, quality=80) for one in drawn]
        cards.setdefault(defect, []).append(_card(evaluation, int(index), name, thumbnails))
        progress("draw", done + 1, len(evaluation.scores), {})
    return cards


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
    words = "Strangest first within each defect. Framed in red: missed defects and false alarms at the threshold."
    if evaluation.labelled.files[0].depth is not None:
        words += " Of depth, near is white and far is black, each scan on a scale of its own; what was not measured is blue."
    if evaluation.maps is None or evaluation.map_threshold is None:
        return words
    scale = Scale(evaluation.map_threshold)
    clear = scale.black + float(CLEAR) * (scale.white - scale.black)
    drawn = f"Heat runs from {clear:.4g} (clear) over the map threshold {evaluation.map_threshold:.4g} to {scale.white:.4g} (bright)"
    return f"{words} {drawn}, on one scale for all samples. Green: the true defect."


def _main_table(facts: Mapping[str, Any]) -> str:
    return _table([], ((words, _number(facts[key])) for key, words in _FIGURES.items() if key in facts))


def _score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    rows = ((name, _number(one["image_auroc"]), _number(one["image_ap"])) for name, one in scores.items())
    return _table(["Score", "Image AUROC", "Image AP"], rows) if scores else ""


def _defect_table(evaluation: Evaluation) -> str:
    defects = np.array(evaluation.labelled.defects)
    rows = []
    for defect in sorted(set(evaluation.labelled.defects), key=lambda defect: (defect == NORMAL, defect)):
        these = defects == defect
        median = float(np.median(evaluation.scores[these]))
        rows.append((defect, str(int(these.sum())), str(int(evaluation.alerted[these].sum())), f"{median:.4g}"))
    return _table(["Test folder", "Samples", "Alerted", "Median score"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>" if head else ""
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
