"""The command line. Answers `--help` without loading anything heavy; maps errors to exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from monitor.errors import ConfigError, MonitorError, leaves

COMMANDS = ("demo", "run", "check", "train", "evaluate", "models", "publish", "listen")

EPILOG = """\
exit codes: 0 done; 1 a bug or an unexpected failure; 2 bad configuration or arguments; 3 stopped hard, unsettled messages
come again"""


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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's last flush fails nowhere
        return 0  # whoever read our output has seen enough
    except KeyboardInterrupt:
        print(f"monitor {arguments.name}: interrupted" + (" (--resume goes on from here)" if arguments.name == "train" else ""), file=sys.stderr)  # noqa: T201
        return 130
    except MonitorError as error:
        return _told(arguments.name, error)
    except BaseExceptionGroup as group:
        expected = [error for error in leaves(group) if isinstance(error, MonitorError | BrokenPipeError)]
        if len(expected) != len(list(leaves(group))):
            raise
        told = [_told(arguments.name, error) for error in expected if isinstance(error, MonitorError)]
        return max(told, default=0)
    return code


def _told(command: str, error: MonitorError) -> int:
    """Say what went wrong, in words; the exit code."""
    if isinstance(error, ConfigError):
        for mistake in error.mistakes:
            print(mistake, file=sys.stderr)  # noqa: T201 (the operator's answer)
        return 2
    print(f"monitor {command}: {error}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
