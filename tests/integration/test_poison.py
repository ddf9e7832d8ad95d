"""One poisoned message must not stop a plant, nor may a broken model empty a stream into the dead letter."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.daemon import Daemon, wait_until
from integration.plant import MODEL, Kind, Plant

STREAM: list[Kind] = [*["normal"] * 9, "defect", "bad"]


def test_what_makes_the_network_raise_goes_to_the_dead_letter_and_the_others_go_on(each_plant: Plant, install: Callable[..., Path]) -> None:
    plant = each_plant
    plant.send(*[*STREAM, "raises", *STREAM, "raises", "raises"] * 3)
    with Daemon(install(plant.tables())) as daemon:
        daemon.start()
        plant.wait()
        daemon.drain()
        assert daemon.events("batch_repeated")
        assert len(daemon.events("dead_lettered", cause="failed")) == 9
    plant.audit(doubles=False)


def test_what_kills_the_process_goes_to_the_dead_letter_at_its_third_death(each_plant: Plant, install: Callable[..., Path]) -> None:
    plant = each_plant
    plant.send(*STREAM, "kills", *STREAM)
    deaths = 0
    with Daemon(install(plant.tables())) as daemon:
        daemon.start()

        def finished() -> bool:
            nonlocal deaths
            if (code := daemon.process.poll()) is not None:
                assert code == -signal.SIGKILL, daemon.tail()
                deaths += 1
                assert deaths <= 4, "one death in a batch, three alone"
                daemon.start()
            return not plant.outstanding()

        wait_until(finished, seconds=90, what=daemon.tail)
        daemon.drain()
    assert deaths == 4
    plant.audit()


@pytest.mark.parametrize(("how", "happening"), [("nan", "model_broken"), ("raise", "model_broken"), ("lost", "device_lost")])
def test_a_broken_model_stops_the_daemon_and_settles_nothing(
    plant: Plant, install: Callable[..., Path], tmp_path: Path, how: str, happening: str
) -> None:
    sabotage = tmp_path / "sabotage"
    configuration = install(plant.tables(detectors__bottle={"options": {**MODEL, "sabotage": str(sabotage)}}))
    plant.send(*STREAM)
    with Daemon(configuration) as daemon:
        daemon.start()
        plant.wait()
        wait_until(lambda: plant.unsettled() == 0, seconds=90, what="settled before the model breaks")
        sabotage.write_text(how)
        first = {sent.id for sent in plant.sent}
        plant.send(*["normal", "defect"] * 20)
        code = daemon.exit_code()

        assert code == 1
        assert daemon.events(happening), daemon.tail()
        assert plant.unsettled() == 40
        assert plant.dead_letters().keys() <= first

        sabotage.unlink()
        daemon.start()
        plant.wait()
        daemon.drain()
    plant.audit()
