"""Seeded clips of simulated pumps, some with planted faults, in DCASE 2020's layout: `python -m tests.machines FOLDER --train 250`.

Which clip is which does not depend on how many there are: another --train or --test begins with the same ones.
"""

import argparse
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import soundfile

from monitor.simulation.hums import HUM_FAULTS, LOUDNESSES, Hum, hum

KINDS = [(fault, loudness) for loudness, fault in product(LOUDNESSES, HUM_FAULTS)]
"""Of the anomalous clips, in turn."""


def write_machine(folder: Path, *, machine: str = "pump", train: int = 250, test: int = 60, seconds: float = 10.0, seed: int = 0) -> Path:
    """<folder>/dev_data/<machine>/{train,test}/{normal,anomaly}_id_00_NNNNNNNN.wav, 16 kHz mono PCM16; that folder of the machine.

    `test` normal and as many anomalous clips are to test; of the latter its truth.json says, by file name, what was planted where:
    fault, loudness, start, end (seconds), low, high (hertz).
    """
    root = folder / "dev_data" / machine
    for number in range(train):
        _write(root / "train" / f"normal_id_00_{number:08}.wav", hum(_random(seed, "train", number), seconds=seconds))
    for number in range(train, train + test):
        _write(root / "test" / f"normal_id_00_{number:08}.wav", hum(_random(seed, "normal", number - train), seconds=seconds))
    truth = {}
    for number in range(test):
        fault, loudness = KINDS[number % len(KINDS)]
        one = hum(_random(seed, "anomaly", number), fault, seconds=seconds, severity=LOUDNESSES[loudness])
        assert one.place is not None
        name = f"anomaly_id_00_{number:08}.wav"
        _write(root / "test" / name, one)
        truth[name] = {"fault": fault, "loudness": loudness, **asdict(one.place)}
    (root / "truth.json").write_text(json.dumps(truth, indent=1))
    return root


def _random(seed: int, split: str, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(split.encode()), number])


def _write(path: Path, one: Hum) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, one.waveform.T, one.rate, subtype="PCM_16")


def main(write: Callable[[str], object] = print) -> None:
    parser = argparse.ArgumentParser(description="Write seeded clips of simulated pumps with planted faults in the layout dcase2020.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--machine", default="pump")
    parser.add_argument("--train", type=int, default=250, help="normal clips (default: %(default)s)")
    parser.add_argument("--test", type=int, default=60, help="normal clips, and as many anomalous ones (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each clip (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    write(f"clips in {write_machine(given.pop('folder'), **given)}")


if __name__ == "__main__":
    main()
