"""The command line. Answers `--help` without loading anything heavy; maps errors to exit codes."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from monitor.errors import ConfigError, MonitorError

COMMANDS = ("run", "check", "train", "evaluate", "models", "publish", "listen")

EPILOG = """\
exit codes: 0 done; 1 a bug or an unexpected failure; 2 bad configuration or arguments; 3 stopped hard, unsettled messages
come again; 4 refused by a gate"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="monitor",
        description="Watches a plant's cameras and microphones: scores streams, publishes alerts, loses nothing.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="name", metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f"monitor.commands.{name}").add_parser(commands)
    for command in commands.choices.values():
        command.add_argument("--config", type=Path, default=Path("monitor.toml"), metavar="F", help="the configuration (default: monitor.toml)")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
    except ConfigError as error:
        for mistake in error.mistakes:
            print(mistake, file=sys.stderr)  # noqa: T201 (the operator's answer)
        return 2
    except MonitorError as error:
        print(f"monitor {arguments.name}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except BrokenPipeError:
        return 0  # whoever read our output has seen enough
    return code


if __name__ == "__main__":
    sys.exit(main())
