"""The model store: whole or not at all, refused in words when a byte is off, safe while others read and write."""

import json
import multiprocessing
import os
import signal
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from monitor.errors import ModelRefused, MonitorError
from monitor.store import ModelStore, verify

MOMENT = datetime(2026, 11, 22, 6, 15, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def built(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "reference.npz").write_bytes(b"reference")
    return folder


def test_publish_promote_roll_back(store: ModelStore, tmp_path: Path) -> None:
    assert store.current("bottle") is None
    assert store.names() == []
    ids = []
    for letter in (b"a", b"b", b"c"):
        version = store.publish("bottle", built(tmp_path / "built", letter), {"kind": "fake"}, created=MOMENT)
        verify(version)
        assert store.promote("bottle", version.id).id == version.id
        ids.append(version.id)
    assert all(version.startswith("20261122T06151") for version in ids)
    assert store.names() == ["bottle"]
    assert ids == store.ids("bottle")
    current = store.current("bottle")
    assert current is not None
    assert current.id == ids[2]
    assert current.manifest["kind"] == "fake"
    assert store.rollback("bottle").id == ids[1]
    assert store.rollback("bottle").id == ids[0]
    with pytest.raises(MonitorError, match="nothing to roll back"):
        store.rollback("bottle")
    store.promote("bottle", ids[2])
    store.promote("bottle", ids[2])  # again changes nothing
    assert store.rollback("bottle").id == ids[0]
    assert [entry["action"] for entry in store.history("bottle")] == ["promote"] * 3 + ["rollback"] * 2 + ["promote"] * 2 + ["rollback"]


def test_equal_models_have_equal_hashes_and_ids_of_their_own(store: ModelStore, tmp_path: Path) -> None:
    folder = built(tmp_path / "built")
    first, second = (store.publish("bottle", folder, {"n": n}, created=MOMENT) for n in range(2))
    assert first.id != second.id
    assert first.id.split("-")[1] == second.id.split("-")[1]
    assert second.manifest["n"] == 1


def damaged(folder: Path, what: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    if what == "changed byte":
        (folder / "weights.safetensors").write_bytes(b"weightz")
    elif what == "missing":
        (folder / "reference.npz").unlink()
    elif what == "additional":
        (folder / "more.pkl").write_bytes(b"x")
    elif what == "link":
        (folder / "weights.safetensors").rename(folder.parent / "elsewhere")
        (folder / "weights.safetensors").symlink_to(folder.parent / "elsewhere")
    elif what == "newer format":
        (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    elif what == "changed manifest":
        (folder / "manifest.json").write_text(json.dumps({**manifest, "threshold": 9.0}))
    elif what == "not JSON":
        (folder / "manifest.json").write_text("{")
    elif what == "no object":
        (folder / "manifest.json").write_text("[]")
    elif what == "no manifest":
        (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("changed byte", "weights.safetensors: was changed"),
        ("missing", "reference.npz is missing"),
        ("additional", "more.pkl is not in its manifest"),
        ("link", "not a plain file"),
        ("newer format", "format 2 is newer than 1"),
        ("changed manifest", "manifest.json was changed"),
        ("not JSON", "cannot be read"),
        ("no object", "expected a JSON object"),
        ("no manifest", "manifest.json is missing"),
    ],
)
def test_a_damaged_version_is_refused(store: ModelStore, tmp_path: Path, what: str, words: str) -> None:
    version = store.publish("bottle", built(tmp_path / "built"), {"threshold": 1.0})
    damaged(version.folder, what)
    with pytest.raises(ModelRefused, match=words):
        verify(store.open("bottle", version.id))
    with pytest.raises(ModelRefused, match=words):
        store.promote("bottle", version.id)
    assert store.current("bottle") is None


@pytest.mark.parametrize("name", ["../bottle", "", "a/b", "Bottle", "..", "bottle\n"])
def test_a_name_that_escapes_is_refused(store: ModelStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelRefused, match="not a model's name"):
        store.current(name)
    with pytest.raises(ModelRefused, match="not a model's name"):
        store.publish(name, built(tmp_path / "built"), {})


@pytest.mark.parametrize("version", ["../../etc", "", "20261122T061512Z-1a2b3c4d/..", "20261122T061512Z-1a2b3c4d\n", "20261122T061512Z-1A2B3C4D"])
def test_an_id_that_escapes_is_refused(store: ModelStore, version: str) -> None:
    with pytest.raises(ModelRefused, match="not a version id"):
        store.open("bottle", version)


def test_an_unknown_version_and_a_renamed_one_are_refused(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="has no version"):
        store.open("bottle", "20261122T061512Z-1a2b3c4d")
    version = store.publish("bottle", built(tmp_path / "built"), {})
    version.folder.rename(version.folder.with_name("20261122T061512Z-00000000"))
    with pytest.raises(ModelRefused, match="its manifest is that of"):
        store.open("bottle", "20261122T061512Z-00000000")


def test_what_is_not_a_plain_file_is_not_published(store: ModelStore, tmp_path: Path) -> None:
    folder = built(tmp_path / "built")
    (folder / "sub").mkdir()
    with pytest.raises(MonitorError, match="plain files"):
        store.publish("bottle", folder, {})
    assert store.ids("bottle") == []


def test_a_damaged_log_of_promotions_is_refused(store: ModelStore, tmp_path: Path) -> None:
    version = store.publish("bottle", built(tmp_path / "built"), {})
    store.promote("bottle", version.id)
    for content in ('{"log": [{"action": "promote", "id": "../../x"}]}', '{"log": 3}', "{}", "nonsense"):
        (store.path / "bottle" / "promotions.json").write_text(content)
        with pytest.raises(ModelRefused, match=r"promotions\.json"):
            store.current("bottle")


def test_readers_see_whole_versions_while_others_write(store: ModelStore, tmp_path: Path) -> None:
    done = threading.Event()
    failures: list[BaseException] = []
    seen: set[str] = set()

    def read() -> None:
        reader = ModelStore(store.path)
        try:
            while not done.is_set():
                if (current := reader.current("bottle")) is not None:
                    verify(current)
                    seen.add(current.id)
                for version in reader.versions("bottle"):
                    verify(version)
        except BaseException as error:
            failures.append(error)

    def write(writer: int) -> None:
        mine = ModelStore(store.path)
        try:
            for n in range(10):
                version = mine.publish("bottle", built(tmp_path / f"built{writer}-{n}", bytes([writer, n])), {})
                mine.promote("bottle", version.id)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert failures == []
    assert len(store.ids("bottle")) == 30
    assert len(store.history("bottle")) == 30
    assert len(seen) > 1


def publish_for_ever(path: Path, folder: Path) -> None:
    store = ModelStore(path)
    while True:
        store.promote("bottle", store.publish("bottle", folder, {}).id)


def test_a_publisher_killed_at_any_moment_leaves_whole_versions(store: ModelStore, tmp_path: Path) -> None:
    folder = built(tmp_path / "built", b"w" * 300_000)
    context = multiprocessing.get_context("spawn")
    for patience in (0.0, 0.003, 0.011):
        process = context.Process(target=publish_for_ever, args=(store.path, folder))
        process.start()
        before = len(store.ids("bottle"))
        deadline = time.monotonic() + 60
        while len(store.ids("bottle")) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(patience)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for version in store.versions("bottle"):
            verify(version)
        assert store.current("bottle") is not None
    store.publish("bottle", folder, {})  # nobody holds the lock, and what died is cleared away
    assert not list((store.path / "bottle").glob(".incoming-*"))
