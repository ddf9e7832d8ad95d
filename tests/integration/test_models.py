"""A first training, a promotion and a rollback take effect in the running daemon, by the next look or at once by SIGHUP."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.daemon import Daemon, monitor, wait_until
from integration.plant import Plant


@pytest.mark.parametrize("by", ["poll", "SIGHUP"])
def test_models_are_swapped_in_the_running_daemon(plant: Plant, install: Callable[..., Path], normals: Path, by: str) -> None:
    poll = 0.2 if by == "poll" else 3600.0
    configuration = install(plant.tables(store={"poll": poll}), models=False)

    def command(*arguments: str) -> None:
        monitor(*arguments, "--config", str(configuration))
        if by == "SIGHUP":
            daemon.signal(signal.SIGHUP)

    def train(seed: int) -> None:
        command("train", "bottle", "--data", str(normals), "--layout", "folder", "--seed", str(seed))

    def serving() -> str:
        """The version that scores what is sent now."""
        (sent,) = plant.send("defect")
        plant.wait()
        (version,) = {event["data"]["model_version"] for event in plant.read("alert") if event["id"] == f"bottle:{sent.id}"}
        return str(version)

    plant.send(*["normal", "defect"] * 10)
    with Daemon(configuration) as daemon:
        daemon.start()
        daemon.wait_for("model_missing", detector="bottle")
        assert plant.unsettled() == 20
        assert plant.scored() == {}

        train(seed=1)
        plant.wait()
        first = serving()

        train(seed=2)
        second = wait_until(lambda: (now := serving()) != first and now, seconds=90, what="the second version serves")

        command("models", "rollback", "bottle")
        wait_until(lambda: serving() == first, seconds=90, what="the first version serves again")

        command("models", "promote", "bottle", second)
        wait_until(lambda: serving() == second, seconds=90, what="the second version serves again")
        daemon.drain()
    assert len({event["data"]["model_version"] for event in plant.read("score")}) == 2
    plant.audit(doubles=False)


def test_a_promoted_version_that_is_damaged_is_refused_and_the_one_before_goes_on(plant: Plant, install: Callable[..., Path], normals: Path) -> None:
    configuration = install(plant.tables(store={"poll": 3600.0}))
    store = configuration.parent / "models" / "bottle"
    plant.send("normal", "defect")
    with Daemon(configuration) as daemon:
        daemon.start()
        plant.wait()
        train = ("train", "bottle", "--data", str(normals), "--layout", "folder", "--seed", "9", "--config", str(configuration))
        monitor(*train)
        promoted = json.loads((store / "promotions.json").read_text())["log"][-1]["id"]
        weights = store / promoted / "weights.safetensors"
        weights.chmod(0o644)
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
        daemon.signal(signal.SIGHUP)
        assert "weights.safetensors" in daemon.wait_for("model_refused")["error"]
        plant.send("normal", "defect")
        plant.wait()
        daemon.drain()
    assert promoted not in {event["data"]["model_version"] for event in plant.read("score")}
    plant.audit(doubles=False)
