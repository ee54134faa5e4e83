"""
The program: it collects the commands, runs one, and turns every error into a sentence.

A mistake of the user's ends in one sentence and never in a traceback. What nobody
foresaw is a fault of ours, and keeps its traceback: a report needs it.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Final, cast

from tallybook import __version__
from tallybook.cli import adjust, dimension, doctor, flush, queue, record, tail, usage, version
from tallybook.cli.output import Exit, Failure, say
from tallybook.cli.parser import Commands, Parser, Run
from tallybook.errors import InvariantBroken, ServerUnreachable, TallybookError

__all__ = ["build_parser", "main"]

_GROUP: Final = "tallybook.commands"
_SERVER: Final = EntryPoint("server", "tallybook_server.cli:register", _GROUP)
_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Args:
        arguments: What stands behind ``tallybook``; by default, what the shell gave.

    Returns:
        The exit code.

    Raises:
        SystemExit: After ``--help``, or an argument that cannot be read.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="tallybook: %(message)s", level=logging.WARNING)
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = build_parser().parse_args(arguments)
    try:
        code = cast(Run, parsed.run)(parsed)
        sys.stdout.flush()
        return code
    except Failure as failure:
        say(f"tallybook: {failure}")
        return failure.code
    except ServerUnreachable as error:
        say(f"tallybook: {error}")
        return Exit.UNREACHABLE
    except InvariantBroken:
        raise
    except TallybookError as error:
        say(f"tallybook: {error}")
        return Exit.USAGE
    except BrokenPipeError:
        # Whoever read has read enough. What is buffered has nowhere to go, and the
        # interpreter would complain about it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except OSError as error:
        say(f"tallybook: {error}")
        return Exit.USAGE
    except KeyboardInterrupt:
        return _INTERRUPTED


def build_parser() -> Parser:
    """The parser with every command, those of other packages included."""
    parser = Parser(
        prog="tallybook",
        description="Measure what every tenant uses, exactly enough to send the invoice from it.",
        epilog="examples:\n"
        "  tallybook serve\n"
        "  tallybook record http.requests --tenant acme\n"
        "  tallybook usage http.requests --group-by tenant\n"
        "\n"
        "exit codes: 0 well, 1 something was found, 2 wrong usage, 3 server unreachable",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tallybook {__version__}")
    commands: Commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    for module in (record, usage, tail, adjust, dimension):
        module.register(commands)
    queues = queue.register(commands)
    flush.register(queues)
    for module in (doctor, version):
        module.register(commands)
    for register in _registrations():
        register(commands)
    return parser


def _registrations() -> Iterator[Callable[[Commands], None]]:
    """What other packages add; one that cannot be loaded costs its own commands only."""
    found = list(entry_points(group=_GROUP))
    if not any(entry.value == _SERVER.value for entry in found):
        found.append(_SERVER)  # Run from a source tree, where nothing is installed.
    for entry in found:
        try:
            yield entry.load()
        except (ImportError, AttributeError) as error:
            say(f"tallybook: the commands of {entry.value} are missing: {error}")
