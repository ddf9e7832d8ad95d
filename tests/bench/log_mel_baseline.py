"""The plainest detector of machine sound: mean and deviation over time of the log-mel spectrum, Mahalanobis distance to the training clips.

    python tests/bench/log_mel_baseline.py --data ../shared/data/dcase2020 --machine fan [--json FILE]

Prints AUC and pAUC (max_fpr 0.1) of each machine id of a dcase2020 tree, and of each kind of fault and loudness where the machine's
folder has a truth.json (tests/machines.py writes one).
"""

# ruff: noqa: T201 (a script that prints)

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import librosa
import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score


def features(files: Sequence[Path]) -> NDArray[np.float64]:
    """(N, 256): of each clip the mean and the deviation of its 128 mel bands in decibels."""
    rows = []
    for file in files:
        waveform, rate = librosa.load(file, sr=None)
        mel = librosa.power_to_db(librosa.feature.melspectrogram(y=waveform, sr=rate, n_fft=2048, hop_length=512, n_mels=128))
        rows.append(np.concatenate([mel.mean(axis=1), mel.std(axis=1)]))
    return np.array(rows, np.float64)


def figures(normal: Sequence[float], anomalous: Sequence[float]) -> dict[str, float]:
    labels, values = [0] * len(normal) + [1] * len(anomalous), [*normal, *anomalous]
    auc, pauc = float(roc_auc_score(labels, values)), float(roc_auc_score(labels, values, max_fpr=0.1))
    return {"auc": auc, "pauc": pauc, "n_normal": len(normal), "n_anomalous": len(anomalous)}


def measure(root: Path) -> dict[str, dict[str, float]]:
    """<data>/dev_data/<machine> -> the figures of each group of its test clips."""
    reference = LedoitWolf().fit(features(sorted(root.glob("train/*.wav"))))
    files = sorted(root.glob("test/*.wav"))
    scores = dict(zip(files, np.sqrt(reference.mahalanobis(features(files))), strict=True))
    found = {}
    for machine in sorted({file.name[file.name.index("id_") :][:5] for file in files}):
        normal, anomalous = ([scores[file] for file in files if file.name.startswith(f"{kind}_{machine}")] for kind in ("normal", "anomaly"))
        found[machine] = figures(normal, anomalous)
    if (root / "truth.json").exists():
        truth = json.loads((root / "truth.json").read_text())
        normal = [score for file, score in scores.items() if file.name not in truth]
        for fact in ("fault", "loudness"):
            for value in sorted({planted[fact] for planted in truth.values()}):
                found[value] = figures(normal, [scores[file] for file in files if truth.get(file.name, {}).get(fact) == value])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds dev_data")
    parser.add_argument("--machine", required=True)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    found = measure(arguments.data / "dev_data" / arguments.machine)
    print("| clips | AUC | pAUC | normal | anomalous |\n|---|---|---|---|---|")
    for group, one in found.items():
        print(f"| {group} | {one['auc']:.3f} | {one['pauc']:.3f} | {one['n_normal']} | {one['n_anomalous']} |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
