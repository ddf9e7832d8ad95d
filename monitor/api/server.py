"""GET /live, /ready and /metrics over HTTP. Nothing can be written here."""

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from monitor.errors import ConfigError, MonitorError
from monitor.settings import ApiSettings
from monitor.telemetry import Telemetry
from monitor.watching import Watch

_LEAVE = 1.0
"""Seconds that an answer under way may still take when the daemon ends."""


_NEVER = (errno.EACCES, errno.EADDRINUSE)


@asynccontextmanager
async def serving(settings: ApiSettings, watch: Watch, telemetry: Telemetry) -> AsyncIterator[str]:
    """Serve meanwhile; gives the URL. Raises ConfigError where it can never listen, MonitorError where it cannot yet.

    After a power cut an address or a name may be there only a little later: then the service manager shall start us again.
    """
    app = web.Application()

    def probe(path: str, troubles: "list[str]") -> web.Response:
        said = "".join(f"{trouble}\n" for trouble in troubles) or f"{path}\n"
        return web.Response(status=503 if troubles else 200, text=said, headers={"Cache-Control": "no-store"})

    async def live(_: web.Request) -> web.Response:
        return probe("live", watch.stalls())

    async def ready(_: web.Request) -> web.Response:
        return probe("ready", watch.troubles())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=telemetry.exposition(), headers={"Content-Type": telemetry.CONTENT_TYPE})

    app.add_routes([web.get("/live", live), web.get("/ready", ready), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=_LEAVE)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, settings.host, settings.port).start()
        except UnicodeError as error:
            raise ConfigError(f"api.host: {settings.host!r} cannot be a host: {error}") from error
        except OSError as error:
            why = error.strerror if isinstance(error, socket.gaierror) or error.errno is None else os.strerror(error.errno)
            mend = "; another daemon or service listens there: give this one another port" if error.errno == errno.EADDRINUSE else ""
            kind = ConfigError if error.errno in _NEVER else MonitorError
            raise kind(f"api: {settings.host} port {settings.port} cannot be listened on: {why}{mend}") from error
        host, port, *_ = runner.addresses[0]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        await runner.cleanup()
