"""SIGHUP: what changed is rebuilt, the rest goes on; a bad file changes nothing and is named."""

import signal
from collections.abc import Callable
from pathlib import Path

from integration.daemon import Daemon, wait_until, write_configuration
from integration.plant import Plant


def test_a_bad_file_keeps_the_old_configuration_and_says_so(plant: Plant, install: Callable[..., Path]) -> None:
    configuration = install(plant.tables())
    with plant.streaming(50, seed=3), Daemon(configuration) as daemon:
        daemon.start()
        daemon.ready()
        write_configuration(configuration, plant.tables(detectors__bottle={"max_batch_size": "many"}, sinks__events={"topik": "x"}))
        daemon.signal(signal.SIGHUP)
        said = str(daemon.wait_for("reload_refused"))
        assert "detectors.bottle.max_batch_size" in said
        assert "sinks.events.topik" in said

        before = len(plant.scored())
        wait_until(lambda: len(plant.scored()) > before + 50, seconds=90, what=daemon.tail)
        daemon.drain()
        assert daemon.events("reloaded") == []
        assert {*plant.scored().values()} == {1}


def test_a_good_file_takes_effect_under_load_without_loss(plant: Plant, install: Callable[..., Path]) -> None:
    configuration = install(plant.tables())
    with Daemon(configuration) as daemon:
        with plant.streaming(50, seed=4):
            daemon.start()
            daemon.ready()
            wait_until(lambda: len(plant.scored()) > 20, seconds=90, what=daemon.tail)
            write_configuration(configuration, plant.tables(detectors__bottle={"max_batch_size": 3}, daemon={"site": "elsewhere"}))
            daemon.signal(signal.SIGHUP)
            daemon.wait_for("reloaded")
            daemon.wait_for("restart_needed")
            before = len(plant.scored())
            wait_until(lambda: len(plant.scored()) > before + 50, seconds=90, what=daemon.tail)
        plant.wait()
        daemon.drain()
    assert {event["source"] for event in plant.read("score")} == {"/test/bottle"}
    plant.audit(doubles=False)


def test_a_detector_can_be_added_to_a_source_that_is_read(plant: Plant, install: Callable[..., Path]) -> None:
    both = plant.tables(detectors__lid=plant.tables()["detectors.bottle"])
    configuration = install(both)
    write_configuration(configuration, plant.tables())
    plant.send(*["normal", "defect"] * 5)
    with Daemon(configuration) as daemon:
        daemon.start()
        plant.wait()
        old = {sent.id for sent in plant.sent}
        write_configuration(configuration, both)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded")
        plant.send(*["normal", "defect"] * 5)
        plant.wait()
        wait_until(lambda: len(plant.scored("score", "lid")) == 10, seconds=90, what=daemon.tail)
        daemon.drain()
    assert plant.scored("score", "lid").keys() == {sent.id for sent in plant.sent} - old
    plant.audit(doubles=False)
