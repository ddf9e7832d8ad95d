"""DCASE's layouts and figures: trees good and broken; AUC, pAUC and means against scikit-learn and by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from monitor.errors import ConfigError
from monitor.evaluation import sound
from monitor.evaluation.dcase import Clip
from monitor.evaluation.layouts import Files, Labelled, labelled_files, training_files


def tree(root: Path, machine: str, **splits: list[str]) -> Path:
    """dev_data/<machine>/{train,test}/<names>.wav, empty: none is decoded here."""
    for split, names in splits.items():
        folder = root / "dev_data" / machine / split
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.wav").touch()
    return root


TRAIN_2020 = [f"normal_id_{machine}_{number:08}" for machine in ("00", "02") for number in range(3)]
TEST_2020 = [f"{truth}_id_{machine}_{number:08}" for truth in ("normal", "anomaly") for machine in ("00", "02") for number in range(2)]
TRAIN_2022 = [f"section_00_source_train_normal_{number:04}_strength_1" for number in range(10)] + ["section_00_target_train_normal_0000"]
TEST_2022 = [
    f"section_{section}_{domain}_test_{truth}_{number:04}_car_A2_spd_28V"
    for section in ("00", "01")
    for domain in ("source", "target")
    for truth in ("normal", "anomaly")
    for number in range(2)
]


def labelled(clips: list[Clip]) -> Labelled:
    """Of the layout that the clips say."""
    root = Path("data/dev_data/fan")
    files = Files(root, "fan", [root / "test" / f"{number}.wav" for number in range(len(clips))])
    return Labelled(files=files, defects=tuple(clip.truth for clip in clips), masks=(None,) * len(clips), normal="normal", clips=tuple(clips))


def machines(sizes: dict[str, tuple[int, int]]) -> Labelled:
    """Machine -> how many of its clips are normal, and anomalous."""
    clips = []
    for group, (normal, anomalous) in sizes.items():
        clips += [Clip(group=group, domain=None, truth=truth) for truth in ["normal"] * normal + ["anomaly"] * anomalous]
    return labelled(clips)


def sections(n: int, names: tuple[str, ...] = ("section_00", "section_01")) -> Labelled:
    """`n` of each section, domain and truth."""
    kinds = [(group, domain, truth) for group in names for domain in ("source", "target") for truth in ("normal", "anomaly")]
    return labelled([Clip(group=group, domain=domain, truth=truth) for group, domain, truth in kinds for _ in range(n)])


def test_dcase2020_on_disk(tmp_path: Path) -> None:
    data = tree(tmp_path, "fan", train=TRAIN_2020, test=TEST_2020)
    files = training_files("dcase2020", data, "fan")
    order = [path.stem.removeprefix("normal_id_") for path in files.paths]
    assert order == ["00_00000000", "02_00000000", "00_00000001", "02_00000001", "00_00000002", "02_00000002"]
    assert files.topic == "fan"
    found = labelled_files("dcase2020", data, "fan")
    assert found.files.position(0) == "test/anomaly_id_00_00000000.wav"
    assert found.defects == ("anomaly",) * 4 + ("normal",) * 4
    assert found.anomalous.tolist() == [True] * 4 + [False] * 4
    assert not found.masked
    assert found.clips is not None
    assert [clip.columns for clip in found.clips][1:3] == [{"id": "00"}, {"id": "02"}]


def test_dcase2022_on_disk(tmp_path: Path) -> None:
    data = tree(tmp_path, "ToyCar", train=TRAIN_2022, test=TEST_2022)
    order = [path.name.split("_")[2] for path in training_files("dcase2022", data, "ToyCar").paths]
    assert order == ["source"] * 5 + ["target"] + ["source"] * 5  # evenly, and not all of one domain first
    found = labelled_files("dcase2022", data, "ToyCar")
    assert found.clips is not None
    assert found.clips[0] == Clip(group="section_00", domain="source", truth="anomaly")
    assert found.clips[-1].columns == {"section": "01", "domain": "target"}
    assert int(found.anomalous.sum()) == 8


@pytest.mark.parametrize(
    ("layout", "split", "name", "words"),
    [
        ("dcase2020", "train", "id_00_00000000", r"expected names such as normal_id_00_00000000\.wav .*, found id_00_00000000\.wav"),
        ("dcase2020", "train", "anomaly_id_00_00000009", r"expected normal clips only, found anomaly_id_00_00000009\.wav"),
        ("dcase2020", "test", "normal_id_0_00000000", r"found normal_id_0_00000000\.wav"),
        ("dcase2020", "test", "normal_id_00_00000000.mp3", r"found normal_id_00_00000000\.mp3"),
        (
            "dcase2022",
            "train",
            "section_00_source_test_normal_0000",
            r"such as section_00_source_train_normal_0000\.wav .*found section_00",
        ),
        ("dcase2022", "test", "section_03_test_0000", r"found section_03_test_0000\.wav"),
        ("dcase2022", "test", "section_00_source_test_normal_0000extra", r"found section_00_source_test_normal_0000extra\.wav"),
    ],
)
def test_names_that_say_something_else_are_told(tmp_path: Path, layout: str, split: str, name: str, words: str) -> None:
    good = {"dcase2020": (TRAIN_2020, TEST_2020), "dcase2022": (TRAIN_2022, TEST_2022)}[layout]
    data = tree(tmp_path, "fan", train=good[0], test=good[1])
    (data / "dev_data" / "fan" / split / (name if "." in name else f"{name}.wav")).touch()
    with pytest.raises(ConfigError, match=words):
        (training_files if split == "train" else labelled_files)(layout, data, "fan")


@pytest.mark.parametrize(
    ("layout", "names", "words"),
    [
        ("dcase2020", [*TEST_2020, "normal_id_04_00000000"], "id_04 has no anomaly"),
        ("dcase2020", ["anomaly_id_00_00000000"], "id_00 has no normal"),
        ("dcase2022", [name for name in TEST_2022 if "target" not in name], "section_00 has no target normal"),
        ("dcase2022", [name for name in TEST_2022 if "01_target_test_normal" not in name], "section_01 has no target normal"),
        ("dcase2022", [name for name in TEST_2022 if "anomaly" not in name], "section_00 has no anomaly"),
    ],
)
def test_a_test_split_without_figures_is_told(tmp_path: Path, layout: str, names: list[str], words: str) -> None:
    data = tree(tmp_path, "fan", train=[], test=names)
    with pytest.raises(ConfigError, match=words):
        labelled_files(layout, data, "fan")


def test_wrong_folders_are_told(tmp_path: Path) -> None:
    data = tree(tmp_path, "fan", train=TRAIN_2020, test=TEST_2020)
    with pytest.raises(ConfigError, match="--category: missing: expected one of fan"):
        training_files("dcase2020", data, None)
    with pytest.raises(ConfigError, match=r"'pump' is not in .*dev_data: expected one of fan"):
        training_files("dcase2020", data, "pump")
    with pytest.raises(ConfigError, match="dev_data: expected a folder of machines, found nothing"):
        training_files("dcase2020", data / "dev_data", "fan")
    (data / "dev_data" / "pump" / "train").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"expected normal clips to train on .*, found none"):
        training_files("dcase2020", data, "pump")


def test_figures_of_2020_are_scikit_learns_and_their_means() -> None:
    split = machines({"id_00": (40, 60), "id_02": (25, 10)})
    scores = (np.random.default_rng(0).normal(size=135) + split.anomalous).astype(np.float32)
    measured = sound.measure(split, scores)

    expected = {}
    for group, here in (("id_00", np.s_[:100]), ("id_02", np.s_[100:])):
        truth, values = split.anomalous[here], scores[here]
        expected[group] = {"auc": roc_auc_score(truth, values), "pauc": roc_auc_score(truth, values, max_fpr=0.1)}
    assert measured.groups == {group: pytest.approx(figures) for group, figures in expected.items()}
    auc = (expected["id_00"]["auc"] + expected["id_02"]["auc"]) / 2
    pauc = (expected["id_00"]["pauc"] + expected["id_02"]["pauc"]) / 2
    assert measured.means == pytest.approx({"auc": auc, "pauc": pauc})
    assert measured.summary == pytest.approx((auc + pauc) / 2)


def test_pauc_by_hand() -> None:
    """10 normals: up to a false-alarm rate of 0.1 only what is above all but the strangest of them counts."""
    split = machines({"id_00": (10, 4)})
    scores = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 20, 9.5, 3.5], np.float32)
    area = 0.1 * 0.5  # recall 2 of 4 until the first false alarm, which comes at a rate of 0.1
    lowest, highest = 0.1**2 / 2, 0.1
    assert sound.measure(split, scores).means["pauc"] == pytest.approx((1 + (area - lowest) / (highest - lowest)) / 2)
    above = 10 + 10 + 9 + 3  # normal clips below each anomalous one
    assert sound.measure(split, scores).means["auc"] == pytest.approx(above / 40)


def test_figures_of_2022_take_the_anomalies_of_both_domains() -> None:
    split = sections(20)
    scores = (np.random.default_rng(1).normal(size=160) + split.anomalous).astype(np.float32)
    scores[20:40] += 1  # anomalies of the source domain
    measured = sound.measure(split, scores)

    values = []
    for section, start in (("section_00", 0), ("section_01", 80)):
        source, target = scores[start : start + 20], scores[start + 40 : start + 60]
        strange = np.concatenate([scores[start + 20 : start + 40], scores[start + 60 : start + 80]])
        figures = measured.groups[section]
        for name, normal in (("auc_source", source), ("auc_target", target)):
            by_hand = np.mean([(one > normal).mean() for one in strange])  # no two are equal
            assert figures[name] == pytest.approx(by_hand)
        truth = [0] * 40 + [1] * 40
        assert figures["pauc"] == pytest.approx(roc_auc_score(truth, np.concatenate([source, target, strange]), max_fpr=0.1))
        values += list(figures.values())
    assert measured.summary == pytest.approx(6 / sum(1 / value for value in values))
    assert measured.means["auc_source"] == pytest.approx(2 / (1 / values[0] + 1 / values[3]))


def test_a_harmonic_mean_has_a_floor() -> None:
    assert sound.harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)
    assert sound.harmonic_mean([0.0, 1.0]) == pytest.approx(2 * 2.0**-52)


def test_what_serves_and_the_oracle_stand_apart() -> None:
    split = machines({"id_00": (4, 4)})
    good, bad = split.anomalous.astype(np.float32), (~split.anomalous).astype(np.float32)
    figures = sound.figures(split, bad, {"worse": bad, "better": good, "as good": good}, "worse")

    assert (figures["auc"], figures["label_free"]["score"], figures["label_free"]["auc"]) == (0.0, "worse", 0.0)
    assert (figures["oracle"]["score"], figures["oracle"]["auc"]) == ("better", 1.0)
    assert figures["oracle"]["margin"] == pytest.approx(1 - figures["summary"])
    assert figures["scores"]["worse"] == {name: figures[name] for name in ("auc", "pauc", "summary")}
    assert figures["ids"]["id_00"] | {"n_normal": 4, "n_anomalous": 4} == figures["ids"]["id_00"]
    assert "oracle" not in sound.figures(split, bad, {}, "score")


def test_counts_stand_beside_each_section() -> None:
    figures = sound.figures(sections(3), np.arange(24, dtype=np.float32), {}, "score")
    expected = {"n_normal": 6, "n_anomalous": 6, "n_normal_source": 3, "n_anomalous_source": 3, "n_normal_target": 3, "n_anomalous_target": 3}
    assert {name: value for name, value in figures["sections"]["section_01"].items() if name.startswith("n_")} == expected


def test_few_normals_are_told() -> None:
    assert sound.doubt(machines({"id_00": (40, 1), "id_02": (6, 20)})) == "pAUC rests on the single strangest of 6 normal clips"
    assert sound.doubt(machines({"id_00": (40, 1)})) is None


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as opened:
        return list(csv.reader(opened))


def test_csv_of_2020(tmp_path: Path) -> None:
    split = machines({"id_00": (1, 1), "id_02": (1, 2)})
    scores = np.array([0.25, 0.5, 1, 0.5, 2], np.float32)
    assert [path.name for path in sound.write_challenge(split, scores, tmp_path)] == [
        "anomaly_score_fan_id_00.csv",
        "anomaly_score_fan_id_02.csv",
        "result.csv",
    ]
    assert rows(tmp_path / "anomaly_score_fan_id_02.csv") == [["2.wav", "1.0"], ["3.wav", "0.5"], ["4.wav", "2.0"]]
    machine, head, first, second, average = rows(tmp_path / "result.csv")
    assert (machine, head) == (["fan"], ["id", "AUC", "pAUC"])
    assert (first[:2], second[:2], average[:2]) == (["00", "1.0"], ["02", "0.5"], ["Average", "0.75"])


def test_csv_of_2022(tmp_path: Path) -> None:
    split = sections(1)
    scores = np.array([0, 1, 2, 3, 1, 1, 0, 2], np.float32)
    written = [path.name for path in sound.write_challenge(split, scores, tmp_path)]
    assert written == ["anomaly_score_fan_section_00_test.csv", "anomaly_score_fan_section_01_test.csv", "result.csv"]
    assert rows(tmp_path / written[0]) == [[f"{index}.wav", f"{index}.0"] for index in range(4)]
    machine, head, first, second, arithmetic, harmonic, overall = rows(tmp_path / "result.csv")
    assert (machine, head) == (["fan"], ["section", "AUC (source)", "AUC (target)", "pAUC"])
    assert (first[:3], second[:3]) == (["00", "1.0", "0.5"], ["01", "0.75", "1.0"])
    assert arithmetic[:3] == ["arithmetic mean", "0.875", "0.75"]
    assert (harmonic[0], float(harmonic[1])) == ("harmonic mean", pytest.approx(2 / (1 + 4 / 3)))
    assert (overall[0], float(overall[1])) == ("harmonic mean of all", pytest.approx(sound.measure(split, scores).summary))


def test_real_fan(data: Path) -> None:
    files = training_files("dcase2020", data / "dcase2020", "fan")
    assert [files.position(index)[-6:-4] for index in range(len(files))] == [f"{number:02}" for number in range(14)]
    found = labelled_files("dcase2020", data / "dcase2020", "fan")
    assert (int((~found.anomalous).sum()), int(found.anomalous.sum())) == (6, 20)
    clip = found.files[0]
    assert clip.waveform is not None
    assert (clip.waveform.shape, clip.rate) == ((1, 160_000), 16_000)
