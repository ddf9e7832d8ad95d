"""monitor run: the daemon."""

import argparse
import os

HELP = "run the daemon"
EXAMPLE = """\
example:
  monitor run --config /etc/monitor/monitor.toml

SIGTERM drains and exits 0, a second one stops at once (exit 3 when messages are left, which come again).
SIGHUP reloads the file and looks in the model store at once."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("run", help=HELP, description=HELP, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(command=execute)


def execute(arguments: argparse.Namespace) -> int:
    import anyio

    from monitor.daemon import Daemon
    from monitor.telemetry import Telemetry, configure_logging

    configure_logging()
    return anyio.run(Daemon(arguments.config, os.environ, Telemetry()).run)
