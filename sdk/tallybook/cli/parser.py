"""
How a command is declared: its name, its options, and the function that runs it.

A package above the SDK declares its commands in the same way; see `add_command`.
"""

from __future__ import annotations

import argparse
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import NoReturn, Protocol

from tallybook.cli.output import Exit, Failure
from tallybook.names import split_pair

__all__ = [
    "Commands",
    "Parser",
    "Run",
    "add_command",
    "add_group",
    "add_tags",
    "count",
    "moment",
    "pair",
    "seconds",
    "tags_of",
]

Run = Callable[[Namespace], int]
"""What a command does: it prints, and returns its exit code."""

_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """argparse's, with errors of one sentence and the next step."""

    def error(self, message: str) -> NoReturn:
        choice = _CHOICE.search(message)
        if choice:
            near = get_close_matches(choice[1], re.findall(r"[\w.-]+", choice[2]), n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        self.exit(Exit.USAGE, f"tallybook: {message}\nTry: {self.prog} --help\n")


class Commands(Protocol):
    """Where commands are added: what argparse's ``add_subparsers`` returns."""

    def add_parser(
        self,
        name: str,
        *,
        help: str,
        description: str,
        epilog: str,
        formatter_class: type[argparse.HelpFormatter],
        allow_abbrev: bool,
    ) -> Parser:
        """A parser for the arguments behind *name*."""
        ...


def add_command(
    commands: Commands,
    name: str,
    run: Run,
    *,
    summary: str,
    words: str = "",
    examples: Sequence[str] = (),
) -> Parser:
    """
    Declare a command; the caller adds its options to what is returned.

    Args:
        commands: Where it is added.
        name: What the user types.
        run: What it does.
        summary: One line, for the list of commands.
        words: More, for its own help.
        examples: Command lines that work.
    """
    parser = _add(commands, name, summary, words, examples)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=run)
    return parser


def add_group(
    commands: Commands, name: str, *, summary: str, examples: Sequence[str] = ()
) -> Commands:
    """Declare a word that other commands follow, as ``queue`` in ``queue status``."""
    return _add(commands, name, summary, "", examples).add_subparsers(
        title="commands", metavar="COMMAND", dest="subcommand", required=True
    )


def _add(
    commands: Commands, name: str, summary: str, words: str, examples: Sequence[str]
) -> Parser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{words}".strip(),
        epilog="".join(["examples:\n", *(f"  {line}\n" for line in examples)] if examples else []),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


# -- types of options ----------------------------------------------------------------------


def pair(text: str) -> tuple[str, str]:
    """``key=value``; ``\\=`` is an equals sign within the key."""
    found = split_pair(text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no tag; expected key=value, such as region=eu"
        )
    return found


def seconds(text: str) -> float:
    """A time to wait, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; expected seconds, 0 or more")
    return value


def count(text: str) -> int:
    """A number of things, 1 or more."""
    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 9 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of things; expected 1 or more")
    return int(text)


def moment(text: str) -> datetime:
    """A time with its zone, as RFC 3339 writes it."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; expected one such as 2026-11-21T09:00:00Z"
        ) from None
    if time.utcoffset() is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} has no time zone; expected Z or an offset at its end: {text}Z"
        )
    return time


def add_tags(parser: Parser, words: str) -> None:
    """Declare ``--tag``; *words* say what a tag is of. `tags_of` reads what was given."""
    parser.add_argument(
        "--tag",
        type=pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"{words}; may be repeated",
    )


def tags_of(pairs: Sequence[tuple[str, str]], option: str) -> dict[str, str]:
    """
    Repeated ``key=value`` as one mapping.

    Raises:
        Failure: A key is there twice.
    """
    tags = dict(pairs)
    if len(tags) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Failure(f"{option} names {twice!r} twice; expected each key once", Exit.USAGE)
    return tags
