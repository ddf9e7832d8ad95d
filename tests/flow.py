"""A pipeline inside the test's own process."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from monitor.pipeline import Pipeline
from monitor.preparation import WORKERS
from monitor.probation import Probation
from monitor.serving import Devices
from monitor.state import State
from monitor.store import ModelStore
from monitor.telemetry import Telemetry
from monitor.topology import PipelineSettings


@asynccontextmanager
async def running(
    settings: PipelineSettings, *, store: ModelStore, home: Path, telemetry: Telemetry, unclean: bool = False, within: float = 120
) -> AsyncIterator[Pipeline]:
    """Drained at the end. Its state database lies in `home`; `unclean`: as if the run before had died."""
    with State(home / "state.db") as state, Devices() as devices:
        state.unclean = unclean
        pipeline = Pipeline(
            settings,
            site="test",
            poll=0.05,
            store=store,
            state=state,
            probation=Probation(state, telemetry.report),
            devices=devices,
            workers=anyio.CapacityLimiter(WORKERS),
            telemetry=telemetry,
        )
        with anyio.fail_after(within):
            async with anyio.create_task_group() as tasks:
                await tasks.start(pipeline.run)
                yield pipeline
                await pipeline.stop()
        assert pipeline.ended.is_set()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 (what is waited for tells nobody)
            await anyio.sleep(0.005)
