"""kill -9 at random moments, MONITOR_TEST_KILLS times per point: nothing is lost, doubles have the same id."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.daemon import Daemon, wait_until
from integration.plant import Plant

KILLS = int(os.environ.get("MONITOR_TEST_KILLS", "2"))


@pytest.mark.timeout(120 + 30 * KILLS)
@pytest.mark.parametrize("point", ["mid-stream", "starting", "draining"])
def test_kill_9_loses_nothing(each_plant: Plant, install: Callable[..., Path], point: str) -> None:
    plant = each_plant
    chance = random.Random(point)
    daemon = Daemon(install(plant.tables()))
    with plant.streaming(60, seed=len(point)), daemon:
        for _ in range(KILLS):
            before = len(plant.scored())
            daemon.start()
            if point != "starting":
                wait_until(lambda before=before: len(plant.scored()) > before, seconds=60, what=daemon.tail)
            if point == "draining":
                daemon.signal(signal.SIGTERM)
            time.sleep(chance.uniform(0, {"mid-stream": 1.0, "starting": 2.5, "draining": 0.4}[point]))
            daemon.kill()
    with daemon:
        daemon.start()
        plant.finish(daemon)
    plant.audit(innocents=KILLS // 3)
